//! Carries frames of bytes (connection images, handover messages) between hosts over QUIC with
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
//! use tcpmig_transport::{Authorities, Bytes, Endpoint, Identity, TransportLimits, Trust, keys::Authority};
//!
//! let authority = Authority::create("example")?;
//! let host = |name, allowed: &str| {
//!     let issued = authority.issue(name)?;
//!     let identity = Identity::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())?;
//!     let authorities = Authorities::from_pem(authority.ca_pem().as_bytes())?;
//!     let trust = Trust::only(authorities, [allowed]);
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
//! - [`Identity`] and [`Trust`]: who this host is, and whom it believes and admits.
//! - [`Endpoint`]: one UDP socket; connects and accepts. [`TransportLimits`]: what it allows.
//! - [`Peer`]: one authenticated connection, kept warm.
//! - [`Exchange`]: ordered frames both ways on one stream of it, or [in memory](memory) for tests.
//!
//! # Under a flood
//! Anybody who reaches the UDP port can send first packets, with any source address and without end. While
//! [`retry_above`](TransportLimits::retry_above) handshakes are under way, the endpoint keeps nothing of a host that has not shown that it is at its
//! address: it sends a QUIC Retry, 8192 per second at most, each less than a tenth of the packet that drew it, and waits for the
//! token in it to come back. The hosts that have shown theirs share a bounded number of
//! [handshakes](TransportLimits::max_handshakes), a few for each address, and one that does not go on makes way for the next after a
//! second. Hosts that are connected go on, and others connect.
//! [`Endpoint::knocks`] counts, and a line of the log at level `warn` says every ten seconds what was turned away.
//! `cargo run --release -p tcpmig-transport --features keys --example flood` shows it.
//!
//! What it does not do: a host that shares its address with an attacker who answers a Retry shares the few handshakes of
//! that address as well; and what fills the link or the CPU has to be kept away by a packet filter.
//!
//! # Features
//! - `arbitrary`: the body of the fuzz target.
//! - `keys`: the `keys` module, a small certificate authority.
//!
//! # On the wire
//! QUIC version 1 with the ALPN name `tcpmig/1`. The accepting side opens one stream of one
//! direction and sends the bytes `tcpmig/1` on it to let the other in, or closes with code 1 and
//! a reason. Each exchange is a stream of both directions that carries frames: length (`u32`, big
//! endian), bytes. The length `0xffff_ffff` ends a direction; a stream that ends without it was
//! given up.
#![forbid(unsafe_code)]

mod budget;
mod cause;
mod credentials;
mod dates;
mod door;
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
mod knocking;
mod limits;
mod link;
pub mod memory;
mod peer;
mod private;
mod reset;
mod stream;
mod tls;
mod trust;

/// What a frame is given and taken as.
pub use bytes::Bytes;
pub use endpoint::Endpoint;
pub use error::{ConfigError, TransportError};
pub use exchange::{Exchange, ExchangeReceiver, ExchangeSender, ExchangeStats};
pub use identity::Identity;
pub use knocking::Knocks;
pub use limits::TransportLimits;
pub use peer::Peer;
pub use trust::{Authorities, Trust};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
