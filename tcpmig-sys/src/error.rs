//! Errors that name the call.

use std::io;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call on a socket failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the call for lack of a capability.
    #[error(
        "{call}: {source} (needs CAP_NET_ADMIN in the user namespace that owns the network namespace)"
    )]
    NoPermission {
        /// The call, as in a manual page.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not have this option or state.
    #[error("{call}: not supported by this kernel ({source})")]
    Unsupported {
        /// The call, as in a manual page.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Any other failed call.
    #[error("{call}: {source}{}", hint(call, source))]
    Call {
        /// The call, as in a manual page.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another socket of this host has the addresses and ports of a connection.
    #[error("connect: {occupant}")]
    Occupied {
        /// What has them.
        occupant: crate::sockets::occupant::Occupant,
    },
    /// The local address is on this host, and cannot be used.
    #[error("bind: {address} is on {device} of this host and {because}")]
    NotUsable {
        /// The address.
        address: std::net::Ipv6Addr,
        /// Where it is.
        device: String,
        /// Why not.
        because: NotUsable,
    },
    /// A value came back with another length than its type has.
    #[error("{call}: the kernel returned {got} bytes instead of {expected}")]
    Length {
        /// The call, as in a manual page.
        call: &'static str,
        /// Bytes returned.
        got: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// The connection cannot be moved; it was left as it was.
    #[error("the connection cannot be moved: {0}")]
    NotMigratable(#[from] NotMigratable),
    /// A rebuilt connection has ended before it was activated.
    #[error(
        "the connection ended while it was being rebuilt: a timer of it ran out, or a segment reached it (its packets have to be locked before its send queue is filled)"
    )]
    Gone,
    /// There is nothing to thaw.
    #[error("the socket is not in repair mode")]
    NotInRepairMode,
    /// A process that was to stand still is being traced by somebody else.
    #[error("process {pid} is traced by process {by}: only one can do that at a time")]
    Traced {
        /// The process.
        pid: u32,
        /// Who traces it: a debugger, `strace`, another dump.
        by: u32,
    },
    /// A segment that stands for one of the peer did not reach the socket.
    #[error(
        "the peer's {segment} was injected to lead the connection to {asked}, and its state is {got} still: the lock must let packets with the firewall mark {mark:#x} pass, and the packet filter of this host packets of the peer that come in on lo"
    )]
    NotDelivered {
        /// Which segment.
        segment: &'static str,
        /// The state that it leads to.
        asked: crate::state::State,
        /// The state read back.
        got: crate::state::State,
        /// Its firewall mark.
        mark: u32,
    },
    /// A segment could not be injected because this host does not have its destination.
    #[error(
        "{address} is not on this host: a connection that the peer has closed, or whose closing it has acknowledged, can be restored only where its address is"
    )]
    NotLocal {
        /// The connection's local address.
        address: std::net::IpAddr,
    },
    /// What was read back differs from what was set.
    #[error("{what} is {got} after the rebuild instead of {asked}")]
    NotAsAsked {
        /// Which value.
        what: &'static str,
        /// The value that was set.
        asked: String,
        /// The value read back.
        got: String,
    },
}

/// Why a connection cannot be moved: reasons in the connection, so that a
/// caller with many of them skips it instead of failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotMigratable {
    /// The descriptor is no TCP socket.
    #[error("the descriptor is not a TCP socket")]
    NotTcp,
    /// A multipath connection: repair mode acts on plain TCP only.
    #[error("it is a multipath TCP connection")]
    Mptcp,
    /// A listener carries no connection.
    #[error("the socket is listening, not connected")]
    Listening,
    /// There is no connection: none was ever opened, or the one that was opened was refused. `TIME_WAIT` and a connection
    /// that a listener has not handed out have no socket at all.
    #[error(
        "its state is {0}: only ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING and a connection that has ended in CLOSE can be moved"
    )]
    State(crate::state::State),
    /// The handshake is under way and carries data (TCP Fast Open): of an opening end nobody can tell whether the peer
    /// took them, an accepted one in `SYN_RECEIVED` cannot be made by repair. Two ends whose SYNs cross are in
    /// `SYN_RECEIVED` too.
    #[error("its handshake is under way with data in it (TCP Fast Open)")]
    FastOpen,
    /// It has ended with an error that its application has not been told, which can be read only by taking it and put back
    /// only with its addresses and ports; and those are another connection's by now.
    #[error(
        "it has ended with an error that its application has not read, and another connection lives with its addresses and ports"
    )]
    PortsInUse,
    /// The socket is already in repair mode, by somebody else's doing.
    #[error("the socket is already in repair mode (TCP_REPAIR)")]
    InRepairMode,
    /// Segments are signed with MD5 keys (RFC 2385), which the kernel does not hand out.
    #[error("its segments are signed with MD5 keys (TCP_MD5SIG)")]
    Md5,
    /// Segments are signed with TCP-AO keys (RFC 5925), which the kernel does not hand out.
    #[error("its segments are signed with keys of the TCP authentication option (TCP-AO)")]
    Ao,
    /// Its filter cannot be changed, and this kernel has no other means to keep what arrives from the connection while
    /// it stands still (see [`mute`](crate::repair::mute)).
    #[error(
        "its filter is locked (SO_LOCK_FILTER), and this kernel has no policies of IPsec for sockets, without which nothing else keeps it silent"
    )]
    FilterLocked,
    /// The option of this name is used, which cannot be carried: see [`options`](crate::options).
    #[error("it uses {0}, which cannot be carried")]
    Option(&'static str),
    /// Urgent data waits to be read: its mark would be lost.
    #[error("urgent data waits to be read")]
    Urgent,
    /// An upper-layer protocol (kernel TLS, for example) is attached.
    #[error("an upper-layer protocol such as kernel TLS is attached to the socket (TCP_ULP)")]
    UpperLayer,
}

impl Error {
    pub(crate) fn new(call: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NoPermission { call, source },
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOSYS) => {
                Self::Unsupported { call, source }
            }
            _ => Self::Call { call, source },
        }
    }

    pub(crate) fn last(call: &'static str) -> Self {
        Self::new(call, io::Error::last_os_error())
    }

    /// The error number of the call, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoPermission { source, .. }
            | Self::Unsupported { source, .. }
            | Self::Call { source, .. } => source.raw_os_error(),
            Self::Occupied { .. } | Self::NotUsable { .. } => Some(libc::EADDRNOTAVAIL),
            _ => None,
        }
    }
}

/// What an error number of a repair call means, where its text misleads.
fn hint(call: &str, source: &io::Error) -> &'static str {
    match (call, source.raw_os_error()) {
        ("connect", Some(libc::EADDRNOTAVAIL)) => {
            " (the local address is not on this host, or a socket that the kernel does not name has these addresses and ports)"
        }
        ("connect", Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => " (no route to the peer)",
        ("bind" | "listen", Some(libc::EADDRINUSE)) => {
            " (a listener of this host has the port, or a connection or TIME_WAIT whose socket did not share it: `ss -tanp` shows it)"
        }
        ("bind", Some(libc::EADDRNOTAVAIL)) => " (the local address is not on this host)",
        ("setsockopt(TCP_REPAIR_WINDOW)", Some(libc::EINVAL)) => {
            " (max_window below snd_wnd, snd_wl1 after the receive window, or rcv_wup after rcv_nxt)"
        }
        ("pidfd_open", Some(libc::ESRCH)) => " (no such process)",
        ("pidfd_getfd", Some(libc::EBADF)) => " (the process has no such descriptor)",
        _ => "",
    }
}

/// What keeps an address that is on this host from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotUsable {
    /// Duplicate address detection is under way (RFC 4862 section 5.4).
    Tentative,
    /// Another host of the link has the address.
    Duplicate,
}

impl std::fmt::Display for NotUsable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tentative => {
                "tentative: duplicate address detection is under way; wait for its end, or add the address with nodad"
            }
            Self::Duplicate => {
                "not in use: another host of the link has it (dadfailed); once that has given it up, add it again with nodad"
            }
        })
    }
}
