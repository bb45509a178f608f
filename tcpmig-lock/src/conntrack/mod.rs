//! What this host's connection tracking knows of a connection, and does to it.
//!
//! Rules that translate addresses (DNAT, REDIRECT, SNAT, MASQUERADE), `SYNPROXY` and helpers that change what is sent leave
//! an entry in a table of the kernel, by which every later packet is rewritten. The socket sees one side of it and the
//! peer the other, so a socket that is rebuilt on another host, without the entry, speaks to nobody. [`translation`]
//! tells of it.
//!
//! A packet filter that keeps to connections it knows (`ct state established accept`, `ct state invalid drop`) knows nothing of
//! one that comes from another host: its FIN is invalid, and what it sends first is new. [`Known::make`] makes the entry that it
//! would have had if it had been opened here.
//!
//! This belongs here, not to the crate that reads sockets: entries are part of what happens to packets, and no call on a
//! socket shows them.
//!
//! # What cannot be seen
//!
//! What rewrites packets without connection tracking: rules of nftables that set a field of the packet
//! (`ip daddr set`), `tc` actions (`nat`, `pedit`), eBPF programs on `tc`, XDP or a cgroup's `connect`, and IPVS. Nor what
//! another network namespace or another host does on the way, which does not matter as long as the way stays the same.

mod channel;
mod entry;
mod known;
mod zones;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use tcpmig_format::FourTuple;

use crate::LockError;
use crate::netlink::socket;
use entry::{Entry, IPS_DST_NAT, IPS_SEQ_ADJUST, IPS_SRC_NAT, Tuple};

pub use known::{Arrival, Known};

/// Why connection tracking could not be made to know a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConntrackError {
    /// This host rewrites packets with the connection's addresses and ports: those of another connection, or of this one
    /// on its way to where it was.
    #[error(
        "this host's connection tracking translates packets with these addresses and ports ({0})"
    )]
    Translates(Box<Translation>),
    /// There is no room for its entry, nor would there be for one that its packets make.
    #[error("the table of connection tracking is full (net.netfilter.nf_conntrack_max)")]
    Full,
    /// A call failed.
    #[error("{call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How this host rewrites the packets of a connection.
///
/// ```text
/// DNAT: 198.18.0.9:50000 -> 198.18.0.80:80 becomes 198.18.0.9:50000 -> 198.18.0.80:8080
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Translation {
    /// Source and destination of what the end sends that opened the connection, before it is rewritten.
    pub from: (SocketAddr, SocketAddr),
    /// The same when it was rewritten.
    pub to: (SocketAddr, SocketAddr),
    /// What else changes: sequence numbers are shifted, by a helper that changes what is sent.
    pub sequence_adjusted: bool,
    /// `SYNPROXY` made the handshake: it shifts sequence numbers and timestamps.
    pub proxied: bool,
}

impl Translation {
    /// What an entry says about its packets; `None` if they pass as they are.
    fn of(entry: &Entry) -> Option<Self> {
        let to = entry.reply.reversed();
        let sequence_adjusted = entry.status & IPS_SEQ_ADJUST != 0;
        // The bits as well as the tuples: a translation to the same address is a translation to come.
        let translated = entry.status & (IPS_SRC_NAT | IPS_DST_NAT) != 0 || to != entry.original;
        (translated || sequence_adjusted || entry.proxied).then_some(Self {
            from: (entry.original.source, entry.original.destination),
            to: (to.source, to.destination),
            sequence_adjusted,
            proxied: entry.proxied,
        })
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, .. } = self;
        let kinds = [
            (from.0 != to.0, "SNAT"),
            (from.1 != to.1, "DNAT"),
            (self.proxied, "SYNPROXY"),
            (self.sequence_adjusted, "sequence numbers are shifted"),
        ];
        let mut first = true;
        for (_, kind) in kinds.iter().filter(|(is_so, _)| *is_so) {
            f.write_str(if first { "" } else { ", " })?;
            f.write_str(kind)?;
            first = false;
        }
        let between = if first { "" } else { ": " };
        write!(
            f,
            "{between}{} -> {} becomes {} -> {}",
            from.0, from.1, to.0, to.1
        )
    }
}

/// What connection tracking has in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Survey {
    /// TCP connections that are tracked.
    pub tracked: usize,
    /// How many of them are rewritten, and cannot be moved from here.
    pub translated: usize,
}

/// Whether the kernel has connection tracking loaded. Nothing loads it.
#[must_use]
pub fn is_loaded() -> bool {
    channel::is_loaded()
}

/// Looks through the whole table, in the network namespace of the calling thread. `None` if that cannot be asked.
///
/// # Errors
///
/// [`LockError::Netlink`].
pub fn survey() -> Result<Option<Survey>, LockError> {
    let look = |channel: &mut channel::Channel| {
        let mut survey = Survey::default();
        channel.scan(|entry| {
            survey.tracked += 1;
            survey.translated += usize::from(Translation::of(entry).is_some());
        })?;
        Ok(survey)
    };
    channel::with(look).map_err(LockError::call("netlink(IPCTNL_MSG_CT_GET)"))
}

/// How this host rewrites the packets of the connection whose socket has these addresses; `None` if it does not. Any
/// `socket` in the network namespace of the connection shows which one that is.
///
/// Nothing is changed. Takes some microseconds for a connection that is tracked; one that is not costs a look through
/// the whole table at times (once in two seconds at most, and one part in a hundred of the time), for zones that rules have set
/// (`ct zone set`). A host that has not loaded connection tracking rewrites nothing by it, and this does not load it. The
/// calling thread has to be in the network namespace of the connection.
///
/// # Errors
///
/// [`LockError::Netlink`]. Without `CAP_NET_ADMIN`, and on a kernel without `CONFIG_NF_CT_NETLINK`, nothing can be told, and the
/// answer is `None`.
pub fn translation(
    socket: BorrowedFd<'_>,
    flow: &FourTuple,
) -> Result<Option<Translation>, LockError> {
    translation_in(socket::namespace_cookie(&socket), flow)
}

/// Like [`translation`], but with the cookie of the network namespace (`SO_NETNS_COOKIE`), if it is known.
///
/// # Errors
///
/// Those of [`translation`].
pub fn translation_in(
    namespace: Option<u64>,
    flow: &FourTuple,
) -> Result<Option<Translation>, LockError> {
    // One look is enough: both directions of an entry are in the table, and the socket's side of it is what the socket
    // sends if it opened the connection, and what it answers if the peer did.
    let sent = Tuple::sent_by(flow);
    let found = channel::with_in(namespace, |channel| channel.find(&sent))
        .map_err(LockError::call("netlink(IPCTNL_MSG_CT_GET)"))?;
    Ok(found.iter().flatten().find_map(Translation::of))
}

/// Finds out now what [`Known::make`] would have to find out if that was a while ago, in the network namespace of the calling
/// thread: which zones there are. Before a connection stands still: it can take a millisecond.
pub fn freshen() {
    // Whoever needs it is told of the error.
    let _ = channel::with(channel::Channel::zones);
}
