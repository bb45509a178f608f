//! Sessions of hyper servers: stop a connection at a safe point, even in the middle of a
//! response, and go on with it elsewhere.
//!
//! A [`Gate`] goes between hyper and the socket. [`drive`] runs the connection until a drain is
//! asked for; then the gate takes what hyper has still to write instead of the socket, so
//! that nothing depends on how fast the peer reads, and [`Drained`] holds the socket, the
//! octets that were read and not used, and those that wait to be written.
//!
//! On the other side [`Gate::resume`] hands hyper the request again; the service
//! answers with the rest of the body, and the gate swallows the head of that answer.

mod drive;
mod gate;

pub use drive::{Drained, Driven, drive};
pub use gate::{Drain, Gate};
