//! Stops and redirects the packets of single TCP connections.
//!
//! A [`Locker`] silences connections, named by their [`FourTuple`], in both directions and in one step, for at most a
//! lease; a lock ends as an unlock or, with [`Nftables`], as a [`Redirect`], which sends what still arrives on to
//! another host. Beside that, the module [`address`] brings a host the addresses of connections that come to it.
//!
//! The crate never opens, reads or closes a connection, knows nothing of what is done to a socket meanwhile, and touches
//! no firewall rule outside its own tables and chains. Only [`Link`] and [`address`] change links, routes and addresses,
//! and only [`Iptables`] starts programs. It needs `CAP_NET_ADMIN` in the user namespace that owns the network
//! namespace, and for [`Nftables`] a kernel with `nf_tables`. Tested on Linux 6.1, 6.12 and 6.18: what
//! older kernels lack (`DESTROYSETELEM`, 6.3) is done otherwise there, and a table is owned from 6.9 on.
//!
//! ```no_run
//! use std::time::Duration;
//! use tcpmig_lock::{FourTuple, LockError, Locker, NextHop, Nftables};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let flow: FourTuple = "10.0.0.1:80,10.0.0.9:51234".parse()?;
//! let nftables = Nftables::new()?;
//! let guard = nftables.lock(&[flow], Duration::from_secs(30))?;
//! // Nothing arrives and nothing leaves: the connection can be read and rebuilt on 10.0.0.2. Then:
//! let hop = NextHop::toward("10.0.0.2".parse()?, flow.remote().ip())?;
//! let redirect = guard.redirect(&hop, Duration::from_secs(3600))?;
//! # drop(redirect);
//! # Ok(())
//! # }
//! ```
//!
//! # Lockers
//!
//! | | silences | a call takes | ends a lease whose holder is dead | captures | redirects |
//! |---|---|---|---|---|---|
//! | [`Nftables`] | the flows | 10 microseconds for one, one atomic step for thousands | the kernel | yes | yes |
//! | [`Iptables`] | the flows | milliseconds, and each packet of the host is compared with each rule | the kernel, to the second | yes | no |
//! | [`Link`] | a whole network device | below a millisecond | `sweep` | no | no |
//! | [`NoLock`] | nothing: the caller keeps the packets away | | | no | no |
//!
//! [`Backend`] knows them by name. Others implement [`Locker`] and [`LockBackend`], say in their [`Features`] what they
//! cannot do and whether they wait, and run the suite of the module `conformance` (feature `conformance`), as those here do.
//!
//! # Capture
//!
//! A peer whose packets are dropped sends them again only when its timer runs out, 200 ms and more later. So a lock
//! can keep what arrives ([`Nftables::capturing`], [`Iptables::capturing`], [`LockGuard::captured`]): whoever rebuilds the connection can add
//! it. What this host itself would have sent meanwhile is never kept.
//!
//! # Leases
//!
//! Whoever holds a lock may die. So every lock and redirect has a lease after which it ends, and guards have
//! [`renew`](LockGuard::renew). What a process leaves to its lease can be [taken over](Locker::take_over) by another one
//! when it has ended ([`Owner::may_live`]). [`Nftables`] counts a lease in milliseconds, rounded up, 10 ms at least.
//!
//! # Files
//!
//! [`Iptables`] and [`Link`] keep other processes away with a lock on one of the files `lock-0` to `lock-63`, chosen by the
//! network namespace, in `/run/tcpmig` (or where that cannot be written, `$XDG_RUNTIME_DIR/tcpmig`, or `tcpmig-` and the user's
//! number in the directory for temporary files). They stay there, empty. [`Link`] has a file beside it for each device that is unplugged.
//!
//! # Features
//!
//! * `nftables`, on by default: [`Nftables`] and [`Iptables`], which links libnftnl. Without it there are [`Link`], [`NoLock`] and your
//!   own.
//! * `conformance`: the suite that every locker has to pass, for tests of your own.
#![cfg_attr(
    not(feature = "nftables"),
    allow(
        dead_code,
        reason = "the packet filter is what most of the shared parts are for"
    )
)]

pub mod address;
mod backend;
mod capture;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod conntrack;
mod error;
mod event;
mod features;
mod guard;
mod hop;
#[cfg(feature = "nftables")]
mod iptables;
mod lease;
mod link;
mod locker;
#[cfg(feature = "nftables")]
pub mod manual;
mod namespace;
mod netlink;
#[cfg(feature = "nftables")]
mod nftables;
mod none;
mod owner;
mod redirected_by;
pub mod route;
mod rtnl;
mod runtime;
mod together;

pub use backend::Backend;
pub use capture::{Captured, Packet};
pub use error::LockError;
pub use event::Event;
pub use features::{Features, LeaseEnd, Scope};
pub use guard::{LockGuard, Redirect, Unlocked};
pub use hop::NextHop;
#[cfg(feature = "nftables")]
pub use iptables::{Flavour, Iptables};
pub use link::{Link, Unplug, Unplugged};
pub use locker::{Entry, EntryKind, LockBackend, Locker, RedirectBackend, Swept, check_request};
#[cfg(feature = "nftables")]
pub use nftables::{Nftables, TableKind};
pub use none::NoLock;
pub use owner::Owner;
pub use redirected_by::RedirectedBy;
pub use tcpmig_format::FourTuple;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
