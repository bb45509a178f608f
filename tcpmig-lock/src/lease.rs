//! Leases that a locker writes down itself: `iptables` in the comments of its rules, `link` in files. (The kernel counts
//! those of `nftables`, as the timeouts of its elements.)
//!
//! They are counted by a clock that nobody can set and that also runs while the host sleeps, so that every process of
//! the host, also a later one, agrees on when a lease ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};
use tcpmig_format::FourTuple;

use crate::{Entry, EntryKind, Owner};

/// The longest lease: ten years, so that times can be added, and because the match `time` of iptables ends in 2038.
pub(crate) const MAX_LEASE: Duration = Duration::from_secs(10 * 365 * 86400);
/// One step of the clock, which is added to each lease, because the clock counts whole ones.
const STEP_MS: u64 = 1;

/// What a lock says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    /// No other lock on this host has the same.
    pub(crate) id: String,
    /// When it was made or last renewed, in milliseconds since this host started.
    pub(crate) made: u64,
    /// When it ends.
    pub(crate) until: u64,
    /// The process that made or last renewed it.
    pub(crate) owner: Owner,
}

impl Lease {
    /// One of this process, which begins now.
    pub(crate) fn begin(now: u64, lease: Duration) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("{:x}-{now:x}-{number:x}", std::process::id()),
            made: now,
            until: end(now, lease),
            owner: Owner::current(),
        }
    }

    /// Whether it has not ended. One from before this host started, which somebody saved and loaded, has.
    pub(crate) fn runs(&self, now: u64) -> bool {
        self.made <= now && now < self.until
    }

    /// Prolongs it: it ends `lease` from now, or later if it would have ended later anyway.
    pub(crate) fn renew(&mut self, now: u64, lease: Duration) {
        self.made = now;
        self.until = self.until.max(end(now, lease));
    }

    /// How a lock of this flow is listed, at a moment in which it runs.
    pub(crate) fn entry(&self, flow: FourTuple, now: u64) -> Entry {
        let ms = Duration::from_millis;
        let remaining = ms(self.until.saturating_sub(now).saturating_sub(STEP_MS));
        let mut entry = Entry::new(flow, EntryKind::Lock, remaining).owned_by(&self.owner);
        entry.age = Some(ms(now.saturating_sub(self.made)));
        entry
    }
}

/// Milliseconds since this host started.
pub(crate) fn now() -> u64 {
    milliseconds(clock_gettime(ClockId::Boottime))
}

pub(crate) fn milliseconds(time: Timespec) -> u64 {
    let ms = i128::from(time.tv_sec) * 1000 + i128::from(time.tv_nsec) / 1_000_000;
    u64::try_from(ms).unwrap_or(0)
}

/// How long a lease lasts that ends at `until`.
pub(crate) fn left(until: u64) -> Duration {
    Duration::from_millis(until.saturating_sub(now()))
}

/// When a lease ends that begins at `now`.
fn end(now: u64, lease: Duration) -> u64 {
    let ms = lease.min(MAX_LEASE).as_nanos().div_ceil(1_000_000);
    now.saturating_add(u64::try_from(ms).unwrap_or(u64::MAX))
        .saturating_add(STEP_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_never_shortens_and_a_list_shows_no_more_than_was_asked_for() {
        let minute = Duration::from_secs(60);
        let mut lease = Lease::begin(5_000, minute);
        let flow = "10.0.0.1:80,10.0.0.9:51234".parse().expect("a flow");
        assert_eq!(lease.entry(flow, 5_000).remaining, minute);
        assert!(
            lease.runs(65_000),
            "the clock may have counted one step too many"
        );
        assert!(!lease.runs(65_001));
        assert!(!lease.runs(4_999), "of an earlier start of this host");
        lease.renew(6_000, Duration::from_secs(1));
        assert_eq!((lease.made, lease.until), (6_000, 65_001));
        lease.renew(6_000, Duration::from_nanos(59_000_000_001));
        assert_eq!(lease.until, 65_002, "rounded up");
        assert_ne!(Lease::begin(5_000, minute).id, lease.id);
        Lease::begin(5_000, Duration::MAX);
    }
}
