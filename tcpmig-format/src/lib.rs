//! The versioned image of a live TCP connection: addresses, sequence numbers,
//! queues, negotiated options, windows, socket options, and the layers that
//! run on it (TLS, HTTP, an application), as bytes that another host can read.
//!
//! The crate never does I/O, never touches a socket and has no `unsafe`. It
//! needs no capability and no particular kernel, and builds on any operating
//! system. How an image is taken from a socket and put back is the matter of
//! `tcpmig`.
//!
//! [`Image`] holds a [`Subject`], which is a connection or a listener, and the
//! [`Layer`]s on it; [`Image::encode`] and [`Image::decode`] convert it,
//! [`specification`] says what the bytes mean. Types are valid by
//! construction or checked on the way out and in; the decoder takes nothing on
//! trust ([`Limits`], [`DecodeError`]). A layer that nobody consumes is an
//! error that names it ([`LayerReader`]). Queues and payloads ([`SecretBytes`]) do
//! not print and are zeroed when dropped.
//!
//! ```
//! use tcpmig_format::*;
//!
//! let flow: FourTuple = "10.0.0.1:80,10.0.0.9:51234".parse()?;
//! let image = Image::new(IpImage::new(flow, SocketFamily::Ipv4));
//!
//! let bytes = image.encode()?;
//! assert_eq!(Envelope::peek(&bytes)?.version, FORMAT_VERSION);
//!
//! let decoded = Image::decode(&bytes, &Limits::default())?;
//! assert_eq!(decoded.ip().map(|ip| ip.flow), Some(flow));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Cost
//!
//! Encoding copies the queues once, [`Image::decode_shared`] not at all; both sum them up. With queues of 1 MiB together encoding
//! takes 1.1 times as long as copying them and decoding 0.4 times; an image without queues is encoded in 1.3 µs and decoded in 2.2 µs,
//! of which plain `rmp-serde` would take 0.9 and 1.3. `cargo bench -p tcpmig-format` measures it. Dropping queues
//! takes time too: they are zeroed, at the speed of memory.
//!
//! # Features
//!
//! * `arbitrary`: `arbitrary::Arbitrary` for [`Image`], for fuzz targets.
#![forbid(unsafe_code)]

#[macro_use]
mod fields;

mod check;
mod envelope;
mod error;
mod flow;
mod image;
mod ip;
mod layer;
mod limits;
mod listen;
mod options;
mod schema;
mod secret_bytes;
mod seq;
mod state;
mod tcp;

#[doc = include_str!("../FORMAT.md")]
#[allow(clippy::doc_markdown, reason = "also read as plain text")]
pub mod specification {}

#[cfg(feature = "arbitrary")]
mod arbitrary;
#[cfg(feature = "arbitrary")]
#[doc(hidden)]
pub mod fuzz;

pub use check::InvalidTcp;
pub use envelope::{Envelope, MAGIC};
pub use error::{DecodeError, EncodeError};
pub use flow::{FlowError, FourTuple};
pub use image::{
    ConnectionImage, FORMAT_VERSION, Image, LOWEST_COMPATIBLE_VERSION, MAX_BYTES, Subject,
};
pub use ip::{InvalidIp, IpImage, SocketFamily};
pub use layer::{Layer, LayerReader, MAX_LAYERS, UnconsumedLayer};
pub use limits::Limits;
pub use listen::{InvalidListen, ListenImage};
pub use options::{FilterInstruction, KeepAlive, Linger, SocketOptions};
pub use secret_bytes::SecretBytes;
pub use seq::Seq;
pub use state::TcpState;
pub use tcp::{
    Negotiated, PendingError, ReceiveSpace, SendSpace, TcpImage, TcpParts, TimestampUnit,
    Timestamps, Window, WindowScale,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
