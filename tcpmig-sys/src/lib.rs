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
//! - [`repair`]: [`FrozenSocket`](repair::FrozenSocket), a connection in repair mode that goes on here when dropped, and
//!   [`RestoringSocket`](repair::RestoringSocket), one re-created from its numbers; dropped, it vanishes without a packet.
//!   Both are [mute](repair::mute) while they stand still, whatever the packet filters do.
//! - [`listener`]: a listener re-created, and what waits in it.
//! - [`sockopt`], [`info`], [`ends`]: one function per socket option, and what else a socket tells. [`options`]: what becomes
//!   of every option there is.
//! - [`sockets`]: which connections there are, or what is left of them.
//! - [`process`]: who has a connection, their descriptors, and how they stand still meanwhile; handing a connection to a program.
//! - [`netns`]: network namespaces. [`settings`]: what a process without privileges may set. [`files`]: a file that never
//!   replaces another. [`probe`]: what this kernel and process can do.
//!
//! The whole way of a connection from one host to another is in `examples/between_hosts.rs`.
//!
//! All `unsafe` of the project is here and in `tcpmig-lock`'s netlink code.
//!
//! ```no_run
//! use std::net::TcpStream;
//! use tcpmig_sys::repair::FrozenSocket;
//!
//! let stream = TcpStream::connect("10.0.0.9:80")?;
//! let frozen = FrozenSocket::freeze(stream.into())?;
//! let snapshot = frozen.read()?;
//! println!("{} bytes wait to be acknowledged", snapshot.send_queue.len());
//! let stream: TcpStream = frozen.thaw()?.into();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! * `lab`: small networks of namespaces, for demonstrations and tests.

pub mod ends;
mod error;
pub mod fcntl;
pub mod files;
pub mod info;
#[cfg(feature = "lab")]
pub mod lab;
pub mod listener;
pub mod netns;
pub mod options;
mod packet;
pub mod probe;
pub mod process;
mod raw;
pub mod repair;
mod seam;
pub mod settings;
pub mod sockets;
pub mod sockopt;
mod state;
mod uapi;

pub use error::{Error, NotMigratable, Result};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
