//! Which socket options move with a connection, and what happens to those that the target
//! cannot honour.
//!
//! An image carries what an application set, read once before the freeze
//! ([`Plan::read`](crate::capture::Plan::read)). A restore sets it again: what decides binding and routing
//! before `bind`, the rest before the connection lives, and what would get in the way of its queues
//! in [`Activated::write`](crate::restore::Activated::write). Options that every new socket has at 0 or off are set only if they
//! are not. What a target takes of them from another host is up to its
//! [`policy`](crate::driver::policy). Those whose default a host can choose (`net.ipv4.*`) are set
//! unless a new socket of this host, at most a quarter of a second older, has the same value: the connection goes on as it was.
//!
//! # Which
//!
//! The tables of [`tcpmig_sys::options`] have every option of the levels [`SOL_SOCKET`](tcpmig_sys::options::SOCKET),
//! [`IPPROTO_IP`](tcpmig_sys::options::IP), [`IPPROTO_IPV6`](tcpmig_sys::options::IPV6) and
//! [`IPPROTO_TCP`](tcpmig_sys::options::TCP), and say of each whether it is carried, or why not. A connection that uses one
//! that is refused there is not captured ([`NotMigratable`](tcpmig_sys::NotMigratable)).
//!
//! Besides options these are carried:
//!
//! | | |
//! |---|---|
//! | Scope of link-local addresses | by the interface's name; no policy can leave it out |
//! | `shutdown(SHUT_RD)` | the peer does not see it |
//! | `O_NONBLOCK` | of the description; until [`Activated::write`](crate::restore::Activated::write) it is on |
//! | `FD_CLOEXEC` | of the descriptor that was read; until [`Activated::write`](crate::restore::Activated::write), and in an image that does not say, it is on |
//!
//! And these are not:
//!
//! | | Why |
//! |---|---|
//! | `O_ASYNC`, `F_SETOWN`, `F_SETSIG` | they name a process of the source |
//! | Membership in `epoll` sets, duplicates of the descriptor | they belong to a process |
//! | What only BPF programs set (`TCP_BPF_*`, a place in a sockmap) | no call reads it back |

mod apply;
mod fresh;
mod read;
mod rows;

use std::fmt;

use tcpmig_sys::Error;

pub(crate) use apply::{Setter, alive, before_bind, connected, kept, listener};
#[cfg(feature = "driver")]
pub(crate) use fresh::{FRESHEN_AFTER, freshen};
pub(crate) use fresh::{Fresh, fresh};
pub(crate) use read::{ip, socket};

/// What to do with an option that this host cannot honour.
///
/// The scope of a link-local address is none of them: without its interface there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unsupported {
    /// Do not restore the connection: it goes on at the source, which gets the option's name to know.
    #[default]
    Refuse,
    /// Restore it without the option and say so.
    Warn,
}

/// An option that could not be set on this host.
///
/// ```text
/// TCP_CONGESTION=vegas: this host does not have it (ENOENT)
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub struct NotSet {
    /// Its name, as in the manual pages.
    pub option: &'static str,
    /// Its value: decimal numbers, flags as 0 and 1, texts as they are.
    pub value: String,
    /// What the kernel said.
    pub error: Error,
}

impl NotSet {
    fn new(error: Error, value: String) -> Self {
        let call = match &error {
            Error::NoPermission { call, .. }
            | Error::Unsupported { call, .. }
            | Error::Call { call, .. }
            | Error::Length { call, .. } => *call,
            _ => "option",
        };
        let inner = call.split_once('(').map_or(call, |(_, inner)| inner);
        Self {
            // Tried after the plain one, which lowers a size without a word.
            option: inner.trim_end_matches(')').trim_end_matches("FORCE"),
            value,
            error,
        }
    }

    /// An option that the policy of this host does not allow: as if this process could not set it.
    pub(crate) fn not_permitted(option: &'static str, value: String) -> Self {
        Self::failed(option, value, ERRNO_PERM)
    }

    /// A congestion control that this host does not have.
    pub(crate) fn no_congestion(name: String) -> Self {
        Self::failed("TCP_CONGESTION", name, ERRNO_NOENT)
    }

    fn failed(option: &'static str, value: String, errno: i32) -> Self {
        Self {
            option,
            value,
            error: Error::Call {
                call: option,
                source: std::io::Error::from_raw_os_error(errno),
            },
        }
    }

    /// Why, in a few words.
    fn reason(&self) -> Option<&'static str> {
        Some(match (self.option, self.error.errno()?) {
            ("TCP_CONGESTION", ERRNO_NOENT) => "this host does not have it (ENOENT)",
            (_, ERRNO_NODEV) => "this host has no such device (ENODEV)",
            ("SO_RCVBUF", ERRNO_PERM) => "above net.core.rmem_max of this host (EPERM)",
            ("SO_SNDBUF", ERRNO_PERM) => "above net.core.wmem_max of this host (EPERM)",
            (_, ERRNO_PERM) => "this process may not set it (EPERM)",
            (_, ERRNO_INVAL) => "this host does not take the value (EINVAL)",
            (_, ERRNO_NOPROTOOPT) => "this kernel does not know it (ENOPROTOOPT)",
            (_, ERRNO_OPNOTSUPP) => "this kernel does not support it (EOPNOTSUPP)",
            _ => return None,
        })
    }
}

// Of Linux on every architecture, but for the last two on a few.
const ERRNO_PERM: i32 = 1;
const ERRNO_NOENT: i32 = 2;
const ERRNO_NODEV: i32 = 19;
const ERRNO_INVAL: i32 = 22;
const ERRNO_NOPROTOOPT: i32 = 92;
const ERRNO_OPNOTSUPP: i32 = 95;

impl fmt::Display for NotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}: ", self.option, self.value)?;
        match self.reason() {
            Some(reason) => f.write_str(reason),
            None => self.error.fmt(f),
        }
    }
}
