//! Which socket options move with a connection, and what happens to those that the target
//! cannot honour.
//!
//! An image carries what an application set, read once before the freeze
//! ([`Plan::of`](crate::capture::Plan::of)). A restore sets it again: what decides binding and routing
//! before `bind`, the rest before the connection lives, and what would get in the way of its queues
//! in [`Restored::write`](crate::restore::Restored::write). Options that every new socket has at 0 or off are set only if they
//! are not. Those whose default a host can choose (`net.ipv4.*`) are always set: the connection goes on as it was.
//!
//! # Carried
//!
//! | Option | |
//! |---|---|
//! | `SO_REUSEADDR`, `SO_REUSEPORT` | as before repair, which overwrites the first |
//! | `SO_BINDTODEVICE`, `SO_BINDTOIFINDEX` | by the device's name, also that of a VRF |
//! | Scope of link-local addresses | by the interface's name; no policy can leave it out |
//! | `SO_MARK`, `SO_PRIORITY`, `IP_TOS`, `IPV6_TCLASS` | before routing is decided |
//! | `IP_TTL`, `IPV6_UNICAST_HOPS`, `IP_MINTTL`, `IPV6_MINHOPCOUNT` | |
//! | `IP_FREEBIND`, `IP_TRANSPARENT`, `IPV6_V6ONLY`, `IP_MTU_DISCOVER`, `IPV6_MTU_DISCOVER` | `FREEBIND` and `TRANSPARENT` let a connection be rebuilt before its address is there |
//! | `IP_BIND_ADDRESS_NO_PORT`, `IP_LOCAL_PORT_RANGE` | |
//! | `IP_OPTIONS` | what the socket sends |
//! | `IPV6_FLOWLABEL_MGR`, `IPV6_FLOWINFO_SEND`, `IPV6_AUTOFLOWLABEL` | a label that the socket leased is leased on the target; one that `connect` took while another socket's lease allowed it is not seen |
//! | `IPV6_FL_F_REFLECT` | with the label, which the peer sent in its SYN |
//! | `IP_RECVERR`, `IP_PKTINFO`, `IP_RECVTTL`, `IP_RECVTOS` | of IPv4 packets |
//! | `IPV6_RECVERR`, `IPV6_RECVPKTINFO`, `IPV6_RECVHOPLIMIT`, `IPV6_RECVTCLASS`, `IPV6_FLOWINFO`, `IPV6_RECVHOPOPTS`, `IPV6_RECVRTHDR`, `IPV6_RECVDSTOPTS` | of IPv6 sockets |
//! | `SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT` | the time that has passed starts anew |
//! | `SO_LINGER`, `SO_OOBINLINE`, `SO_RCVLOWAT`, `SO_RCVTIMEO`, `SO_SNDTIMEO`, `SO_PEEK_OFF`, `SO_DONTROUTE` | |
//! | `SO_RCVBUF`, `SO_SNDBUF`, `SO_BUF_LOCK` | a size above `net.core.rmem_max` or `wmem_max` of the target only with `CAP_NET_ADMIN` in the initial user namespace, if the application asked for it; one that tuned itself as far as the limit |
//! | `SO_ATTACH_FILTER`, `SO_LOCK_FILTER` | the classic filter |
//! | `SO_BUSY_POLL`, `SO_PREFER_BUSY_POLL` | a longer time than the host has by default, and the second, with `CAP_NET_ADMIN` in the initial user namespace |
//! | `SO_ZEROCOPY`, `SO_SELECT_ERR_QUEUE`, `SO_TIMESTAMP`, `SO_TIMESTAMPNS`, `SO_TIMESTAMPING` | not the numbers that `SOF_TIMESTAMPING_OPT_ID` counts, which start anew, nor notifications that were not read |
//! | `SO_MAX_PACING_RATE`, `SO_TXREHASH` | |
//! | `TCP_NODELAY`, `TCP_CORK`, `TCP_QUICKACK` | the last is as the kernel left it |
//! | `TCP_USER_TIMEOUT`, `TCP_LINGER2`, `TCP_SYNCNT`, `TCP_DEFER_ACCEPT`, `TCP_NOTSENT_LOWAT`, `TCP_WINDOW_CLAMP` | |
//! | `TCP_CONGESTION` | the name; not what the algorithm has measured |
//! | `TCP_THIN_LINEAR_TIMEOUTS`, `TCP_TX_DELAY`, `TCP_INQ` | |
//! | `TCP_RTO_MAX_MS`, `TCP_RTO_MIN_US`, `TCP_DELACK_MAX_US` | from Linux 6.15 on |
//! | `O_NONBLOCK` | of the description; until [`Restored::write`](crate::restore::Restored::write) it is on |
//! | `FD_CLOEXEC` | of the descriptor that was read; until [`Restored::write`](crate::restore::Restored::write), and in an image that does not say, it is on |
//!
//! # Not carried
//!
//! | Option | Why |
//! |---|---|
//! | `SO_ATTACH_BPF` | no call reads it back: the connection is not captured ([`CaptureError::ExtendedFilter`](crate::capture::CaptureError::ExtendedFilter)) |
//! | `TCP_ULP`, `TCP_MD5SIG`, `TCP_AO_*` | state beside them would be lost; `tcpmig_sys::NotMigratable` says which are refused |
//! | `SO_INCOMING_CPU` | each packet overwrites it with the CPU that handled it |
//! | `SO_ATTACH_REUSEPORT_CBPF`, `SO_ATTACH_REUSEPORT_EBPF` | they choose among listeners |
//! | `TCP_SAVE_SYN`, `TCP_FASTOPEN` and the like | they act on listeners and while a connection is opened |
//! | `TCP_THIN_DUPACK` | the kernel ignores it |
//! | `IPV6_ADDR_PREFERENCES`, `IP_UNICAST_IF`, multicast options | they act on no TCP connection that is established |
//! | `SO_RCVMARK`, `SO_RCVPRIORITY`, `SO_RXQ_OVFL`, `SO_WIFI_STATUS`, `SO_NO_CHECK`, `SO_BROADCAST`, `SO_TXTIME`, `IP_RECVORIGDSTADDR`, `IP_RECVFRAGSIZE`, `IPV6_DONTFRAG` and the like | they act on no TCP connection |
//! | `SO_BUSY_POLL_BUDGET`, `SO_CNX_ADVICE` | no call reads them back |
//! | `SO_RESERVE_MEM`, `SO_DEBUG` | they concern the host |
//! | `O_ASYNC`, `F_SETOWN`, `F_SETSIG` | they name a process of the source |
//! | Membership in `epoll` sets, duplicates of the descriptor | they belong to a process |

mod apply;
mod read;

use std::fmt;

use tcpmig_sys::Error;

pub(crate) use apply::{Setter, alive, before_bind, connected, kept, listener};
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
const ERRNO_ACCES: i32 = 13;
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

/// Whether reading a filter failed because it is an eBPF program.
fn is_extended_filter(error: &Error) -> bool {
    error.errno() == Some(ERRNO_ACCES)
}
