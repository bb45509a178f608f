//! Carries frames of octets (connection images, handover messages) between hosts over QUIC with
//! mutual TLS.
//!
//! It never looks into a frame, never touches the connections that migrate, never uses early data
//! or resumed sessions, and never reports a host as connected before that host has let this one in.
//! It needs UDP between the hosts, a certificate of a common authority on each (the `keys` feature
//! makes them) and a tokio runtime with I/O and time; no capabilities.
//!
//! ```
//! # #[cfg(feature = "keys")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! use bytes::Bytes;
//! use tcpmig_transport::{Endpoint, Identity, TransportLimits, Trust, keys::Authority};
//!
//! let authority = Authority::create("example")?;
//! let host = |name, allowed: &str| {
//!     let issued = authority.issue(name)?;
//!     let identity = Identity::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())?;
//!     let trust = Trust::from_pem(authority.ca_pem().as_bytes())?.allow(allowed);
//!     let any_port = "127.0.0.1:0".parse()?;
//!     let limits = TransportLimits::default();
//!     Ok::<_, Box<dyn std::error::Error>>(Endpoint::bind(any_port, &identity, &trust, limits)?)
//! };
//! let source = host("host-a.example", "host-b.example")?;
//! let target = host("host-b.example", "host-a.example")?;
//! let address = target.local_addr()?;
//!
//! let answering = tokio::spawn(async move {
//!     let peer = target.accept().await.expect("open")?;
//!     assert_eq!(peer.name(), "host-a.example");
//!     let mut exchange = peer.accept().await.expect("open")?;
//!     while let Some(frame) = exchange.recv().await? {
//!         exchange.send(frame).await?;
//!     }
//!     exchange.finish().await?;
//!     peer.closed().await;
//!     Ok::<_, tcpmig_transport::TransportError>(())
//! });
//!
//! let peer = source.connect(address, "host-b.example").await?;
//! let mut exchange = peer.open().await?;
//! exchange.send(Bytes::from_static(b"image")).await?;
//! exchange.finish().await?;
//! assert_eq!(exchange.recv().await?.as_deref(), Some(&b"image"[..]));
//! assert_eq!(exchange.recv().await?, None);
//! source.close("done").await;
//! answering.await??;
//! # Ok(())
//! # })
//! # }
//! # #[cfg(not(feature = "keys"))]
//! # fn main() {}
//! ```
//!
//! - [`Identity`] and [`Trust`]: who this host is, and whom it believes.
//! - [`Endpoint`]: one UDP socket; connects and accepts. [`TransportLimits`]: what it allows.
//! - [`Peer`]: one authenticated connection, kept warm.
//! - [`Exchange`]: ordered frames both ways on one stream of it, or [in memory](memory) for tests.
//!
//! # Features
//! - `arbitrary`: the body of the fuzz target.
//! - `keys`: the `keys` module, a small certificate authority.
//!
//! # On the wire
//! QUIC version 1 with the ALPN name `tcpmig/1`. The accepting side opens one stream of one
//! direction and sends the octets `tcpmig/1` on it to let the other in, or closes with code 1 and
//! a reason. Each exchange is a stream of both directions that carries frames: length (`u32`, big
//! endian), octets. The length `0xffff_ffff` ends a direction; a stream that ends without it was
//! given up.
#![forbid(unsafe_code)]

mod budget;
mod cause;
mod endpoint;
mod error;
mod exchange;
mod frame;
#[cfg(feature = "arbitrary")]
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod identity;
#[cfg(feature = "keys")]
pub mod keys;
mod limits;
pub mod memory;
mod peer;
mod reset;
mod stream;
mod tls;
mod trust;

pub use endpoint::Endpoint;
pub use error::{ConfigError, TransportError};
pub use exchange::{Exchange, ExchangeReceiver, ExchangeSender, ExchangeStats};
pub use identity::Identity;
pub use limits::TransportLimits;
pub use peer::Peer;
pub use trust::Trust;
