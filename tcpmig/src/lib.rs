//! Moves live TCP connections, and the sessions on them, between hosts.
//!
//! The peer of a connection that moves keeps it: no reset, no FIN, no lost or repeated byte. This
//! crate puts the layers together, and each of them can be used alone: the image
//! ([`tcpmig_format`]), the system calls ([`tcpmig_sys`]), the packets ([`tcpmig_lock`]) and
//! the way between hosts ([`tcpmig_transport`]). It never moves a process or its memory, and it
//! does not thaw what may live elsewhere.
//!
//! - [`driver`]: give connections away and take them in, over QUIC. Start here.
//! - [`handover`]: the protocol behind it, as state machines without input and output.
//! - [`capture`] and [`restore`]: one connection into an image and out of it, if the image
//!   travels in another way (a file, your own protocol).
//! - [`listener`]: a listener, re-created on another host.
//! - [`criu`]: images of CRIU, made into those of this crate.
//! - [`segments`]: what packets that arrived meanwhile add to an image.
//! - [`options`]: which socket options move, and what happens to those that the target does not have.
//! - [`steer`]: how the packets find the new host.
//! - [`session`]: what the session on a connection stands on, and how the two leave together, by whatever way.
//! - [`upgrade`]: the next version of a server takes its listeners and sessions over, on the same host and without privileges.
//! - [`agent`]: servers without privileges, in any language, let the agent of their host move their connections.
//! - [`http`]: stop a hyper connection in the middle of a response and go on elsewhere.
//! - [`tls`]: the same over TLS.
//!
//! # Features
//!
//! Libraries switch default features off and take what they need.
//!
//! * none: [`handover`] and [`segments`], without any call of the system.
//! * `connection`: [`capture`], [`restore`], [`listener`], [`options`] and [`steer`]; with your own locker, or one of
//!   `tcpmig-lock`. Links neither libnftnl nor a TLS stack.
//! * `criu`: [`criu`], with `connection`.
//! * `driver`: [`driver`] and [`locker`], with `connection`.
//! * `session`: [`session`]. Links neither libnftnl nor QUIC nor a TLS stack.
//! * `http`: [`http`], with `session` and no more than that. Connections move by a way of your own, or with `driver`.
//! * `http2`: HTTP/2 connections of [`http`], with `http`.
//! * `upgrade`: [`upgrade`], with `session` and no more than that.
//! * `agent-client`: [`agent`], with `session` and no more than that.
//! * `agent`: [`agent::server`], with `agent-client` and `driver`.
//! * `tls`: [`tls`], with `session`: with the provider of cryptography that the application gives rustls, and no other.
//! * `cli`, on by default: the command `tcpmig`, with all of these.
//!
//! It needs Linux 5.14, `CAP_NET_ADMIN` in the user namespace that owns the network
//! namespace, and nf_tables for [`tcpmig_lock::Nftables`].
//!
//! A connection into an image and back, on one host:
//!
//! ```no_run
//! use std::net::TcpStream;
//! use std::os::fd::AsFd;
//! use std::time::Duration;
//!
//! use tcpmig::capture::{Frozen, Plan};
//! use tcpmig::locker;
//! use tcpmig::restore::Prepared;
//! use tcpmig_format::{Image, Limits};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = TcpStream::connect("198.18.0.9:80")?;
//! let locker = locker::nftables()?;
//! let lease = Duration::from_secs(10);
//!
//! let plan = Plan::read(stream.as_fd())?;
//! let flow = plan.flow();
//! let mut frozen = Frozen::freeze(stream.into(), plan, &locker, lease)?;
//! let bytes = frozen.capture(None)?.encode()?;
//! frozen.check_unchanged()?;
//! frozen.discard()?; // Ends it here without a packet; the lock stays for its lease.
//! locker.force_unlock(&[flow])?;
//!
//! let image = Image::decode(&bytes, &Limits::default())?;
//! let restored = Prepared::build(image, &locker, lease)?.activate()?.write();
//! let stream = TcpStream::from(restored.socket);
//! # Ok(())
//! # }
//! ```
//!
//! # What does not move
//!
//! Every state that has a socket moves: a connection that is being opened (SYN-SENT: the target sends the SYN
//! again, within a second), one that is open, one that an end or both have closed, and one that has ended (CLOSED), with
//! what nobody has read and the error that nobody has been told.
//!
//! Refused before anything is done, each with its own [`NotMigratable`](tcpmig_sys::NotMigratable):
//!
//! - a listener, which [`listener`] makes again; a socket that never had a connection, or was refused one;
//! - a handshake that carries data (TCP Fast Open), until it is done. TIME-WAIT, and SYN-RECEIVED without Fast
//!   Open, have no socket; a target that takes over an address gets the peer's late FIN, and answers it with a reset;
//! - urgent data that waits to be read; a multipath connection, as those of other protocols (SMC); kernel TLS and other
//!   upper layers; MD5 keys, if the kernel has `CONFIG_INET_TCP_DIAG`, and TCP-AO keys; a socket that somebody
//!   else has put into repair mode.
//!
//! The kernel tells nobody that a BPF program has a socket in a sockmap: take it out before. It offers no way to set these;
//! they start anew on the target, or are lost:
//!
//! | State | What an end sees |
//! |---|---|
//! | Round-trip time, congestion window, slow-start threshold | sending starts as on a new connection |
//! | Out-of-order data that was received | the peer sends them again, after its retransmission timer |
//! | Negotiated ECN | packets without it |
//! | The peer's last timestamp (`ts_recent`) | nothing: the next packet brings it |
//! | Urgent pointer of data under way | ordinary data |
//! | A pending error that is neither ECONNRESET nor EPIPE (ETIMEDOUT, EHOSTUNREACH) | the application gets ECONNRESET |
//! | What waits in the error queue (`MSG_ERRQUEUE`: completions of `MSG_ZEROCOPY`, timestamps) | the application waits for it in vain |
//! | Window scale that a lone SYN offered | windows are too small or too large where `net.ipv4.tcp_rmem` differs |
#![forbid(unsafe_code)]
#![cfg_attr(
    all(feature = "connection", not(feature = "driver")),
    allow(dead_code, reason = "what only the driver asks of a connection")
)]

#[cfg(feature = "agent-client")]
pub mod agent;
#[cfg(feature = "connection")]
pub mod capture;
#[cfg(feature = "connection")]
mod convert;
#[cfg(feature = "criu")]
pub mod criu;
#[cfg(feature = "driver")]
mod draft;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "arbitrary")]
#[doc(hidden)]
pub mod fuzz;
pub mod handover;
#[cfg(feature = "connection")]
mod hold;
#[cfg(any(feature = "agent", feature = "serve"))]
mod hosts;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "http2")]
mod http2;
#[cfg(feature = "connection")]
mod inject;
#[cfg(feature = "connection")]
pub mod listener;
#[cfg(feature = "driver")]
pub mod locker;
#[cfg(feature = "connection")]
pub mod options;
#[cfg(feature = "connection")]
pub mod restore;
pub mod segments;
#[cfg(feature = "session")]
pub mod session;
#[cfg(feature = "connection")]
pub mod steer;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "upgrade")]
pub mod upgrade;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
