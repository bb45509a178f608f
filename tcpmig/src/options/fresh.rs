//! What a new socket of this host has, so that what is the same need not be set.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tcpmig_format::SocketFamily;
use tcpmig_sys::repair::ClosedSocket;
use tcpmig_sys::{Result, sockopt};

/// Options of a new socket whose values a host can choose (`net.ipv4.*`) and nothing else decides: no route, and not the
/// moment at which it is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fresh {
    /// Of IPv4 packets.
    pub(super) mtu_discover: Option<i32>,
    /// Of IPv6 packets.
    pub(super) mtu_discover_v6: Option<i32>,
    pub(super) linger2: i32,
    pub(super) syn_count: u32,
    pub(super) keep_idle: u32,
    pub(super) keep_interval: u32,
    pub(super) keep_count: u32,
    /// Those that this kernel has.
    pub(super) rto_max: Option<u32>,
    pub(super) rto_min: Option<u32>,
    pub(super) delayed_ack_max: Option<u32>,
}

/// For so long they are taken to be the same: whoever changes a default does not expect it of sockets that are there already.
const LASTS: Duration = Duration::from_millis(250);

/// How long to wait with the next [`freshen`].
pub(crate) const FRESHEN_AFTER: Duration = Duration::from_millis(100);

/// Of a few network namespaces, by their cookies, and of each family.
static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
const KEEP: usize = 8;

struct Seen {
    namespace: u64,
    is_v6: bool,
    when: Instant,
    fresh: Fresh,
}

fn seen() -> MutexGuard<'static, Vec<Seen>> {
    // What a panic left is whole: every change is one call.
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads them in the network namespace of the calling thread, so that what is restored next costs less. What cannot be read is set.
pub(crate) fn freshen() {
    for is_v6 in [false, true] {
        let Ok(closed) = ClosedSocket::open(is_v6) else {
            continue;
        };
        let Some(namespace) = closed.namespace() else {
            continue;
        };
        let when = Instant::now();
        let Ok(fresh) = Fresh::read(&closed, is_v6) else {
            continue;
        };
        let mut seen = seen();
        seen.retain(|seen| (seen.namespace, seen.is_v6) != (namespace, is_v6));
        seen.push(Seen {
            namespace,
            is_v6,
            when,
            fresh,
        });
        if seen.len() > KEEP {
            seen.remove(0);
        }
    }
}

/// Those of a socket of this family in the network namespace with this cookie, if they were read lately.
pub(crate) fn fresh(namespace: Option<u64>, family: SocketFamily) -> Option<Fresh> {
    let is_v6 = family != SocketFamily::Ipv4;
    let seen = seen();
    let found = seen.iter().find(|seen| {
        Some(seen.namespace) == namespace && seen.is_v6 == is_v6 && seen.when.elapsed() < LASTS
    });
    found.map(|seen| seen.fresh)
}

impl Fresh {
    /// The value of an option by its name, for the rows of the table.
    pub(super) fn number(&self, option: &str) -> Option<u32> {
        match option {
            "IP_MTU_DISCOVER" => self.mtu_discover.map(i32::cast_unsigned),
            "IPV6_MTU_DISCOVER" => self.mtu_discover_v6.map(i32::cast_unsigned),
            "TCP_LINGER2" => Some(self.linger2.cast_unsigned()),
            "TCP_SYNCNT" => Some(self.syn_count),
            "TCP_RTO_MAX_MS" => self.rto_max,
            "TCP_RTO_MIN_US" => self.rto_min,
            "TCP_DELACK_MAX_US" => self.delayed_ack_max,
            _ => None,
        }
    }

    fn read(closed: &ClosedSocket, is_v6: bool) -> Result<Self> {
        let fd = closed.as_fd();
        let mtu_discover_v6 = is_v6.then(|| sockopt::mtu_discover_v6(fd)).transpose()?;
        Ok(Self {
            mtu_discover: sockopt::mtu_discover(fd).ok(),
            mtu_discover_v6,
            linger2: sockopt::linger2(fd)?,
            syn_count: sockopt::syn_count(fd)?,
            keep_idle: sockopt::keep_idle(fd)?,
            keep_interval: sockopt::keep_interval(fd)?,
            keep_count: sockopt::keep_count(fd)?,
            rto_max: sockopt::rto_max(fd).ok(),
            rto_min: sockopt::rto_min(fd).ok(),
            delayed_ack_max: sockopt::delayed_ack_max(fd).ok(),
        })
    }
}
