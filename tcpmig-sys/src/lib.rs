//! TCP repair as safe functions: freeze a live connection, read it, rebuild it
//! elsewhere.
//!
//! This crate is what the kernel does and nothing more. It keeps no packets away
//! (a connection has to be locked before it is frozen, see `tcpmig-lock`),
//! knows no file format and decides no policy. It needs Linux 5.14 (4.19 for repair
//! itself; tested on 6.1, 6.12 and 6.18) and `CAP_NET_ADMIN` in the user namespace that owns the network namespace, which
//! an ordinary user has inside `unshare -Urn`. Rebuilding a connection that one end has closed needs `CAP_NET_RAW`
//! as well: segments of the peer are then sent from this host to itself.
//!
//! - [`frozen::FrozenSocket`]: a connection under repair that goes on here when dropped.
//! - [`rebuild`]: a connection made again from its numbers; dropped, it vanishes
//!   without a packet.
//! - [`mute`]: both are silent while they stand still, whatever the packet filters do.
//! - [`listener`]: a listener made again, and what waits in it.
//! - [`sockopt`], [`info`]: one function per socket option. [`options`]: what becomes of every option there is.
//! - [`sockets`]: whether a connection is there, or what is left of one. [`owners`], [`take`]: which processes have it, and their descriptors. [`pause`]: they stand still meanwhile. [`netns`]: network namespaces.
//!   [`exec`]: handing a connection to a program. [`descriptors`]: the descriptor table. [`settings`]: what a process without privileges may set. [`signals`]: held back while
//!   something is half-done. [`files`]: a file that never replaces another. [`probe`]: what this kernel and process can do.
//!
//! The whole way of a connection from one host to another is in `examples/between_hosts.rs`.
//!
//! All `unsafe` of the project is here and in `tcpmig-lock`'s netlink code.
//!
//! ```no_run
//! use std::net::TcpStream;
//! use tcpmig_sys::frozen::FrozenSocket;
//!
//! let stream = TcpStream::connect("10.0.0.9:80")?;
//! let frozen = FrozenSocket::freeze(stream.into())?;
//! let snapshot = frozen.read()?;
//! println!("{} octets wait to be acknowledged", snapshot.send_queue.len());
//! let stream: TcpStream = frozen.thaw()?.into();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! * `lab`: small networks of namespaces, for demonstrations and tests.

mod arrive;
mod closing;
pub mod deliver;
pub mod descriptors;
mod diag;
mod ended;
mod error;
pub mod exec;
pub mod files;
pub mod flags;
pub mod following;
pub mod frozen;
pub mod info;
mod inject;
#[cfg(feature = "lab")]
pub mod lab;
pub mod listener;
mod local_address;
pub mod mute;
pub mod netns;
mod opening;
pub mod options;
pub mod owners;
pub mod passing;
pub mod pause;
pub mod probe;
mod queue;
mod raw;
pub mod rebuild;
pub mod settings;
pub mod signals;
pub mod sockets;
pub mod sockopt;
pub mod take;
mod uapi;
mod wake;

pub use ended::Ended;
pub use error::{Error, NotMigratable, Result};
pub use local_address::NotUsable;
pub use uapi::RepairWindow;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
