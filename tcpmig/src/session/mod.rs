//! What a session stands on, and how it leaves one process and reaches another.
//!
//! A session (HTTP/1, a WebSocket) reads and writes a [`Carrier`] and knows no socket: a plain TCP connection, or a protocol over
//! one, such as TLS. At a safe point the two are taken apart into [`Parts`]: a socket, and the layers that run on it. These leave
//! by a [`Way`], of which a server may use several, and come in again as an [`Arrival`].
//!
//! ```text
//!  session     HTTP/1, WebSocket        one layer                 ┐
//!  carrier     plain TCP, TLS           no layer, or its own      ├ Parts ── Way ──> Arrival
//!  socket      TCP                      moves in the way's manner ┘
//! ```
//!
//! Nothing here knows how packets are locked or how hosts talk to each other. With the feature `driver`,
//! [`driver::Mover`](crate::driver::Mover) is a way to another host, and what
//! [`driver::Arrivals`](crate::driver::Arrivals) gives becomes an [`Arrival`].

mod carrier;
#[cfg(feature = "driver")]
mod mover;
mod way;

pub use carrier::{Carrier, Carriers, FactsOf, Rebuilt, Tcp};
pub use way::{Arrival, Departed, Doubt, Parts, Way};
