//! Which zones the entries of a network namespace are in.
//!
//! Rules set zones (`ct zone set`), and an entry is found only by who knows its zone. To learn them, the whole table has to
//! be looked through, which takes a millisecond for some thousand entries: this is shared by all threads, and bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long the zones that were seen are taken for all that there are: rules change seldom.
const KNOWN_FOR: Duration = Duration::from_secs(2);
/// The same where nothing was to be seen: to find that out costs little.
const EMPTY_FOR: Duration = Duration::from_millis(50);
/// Looking through the whole table takes at most one part of so many of the time.
const SHARE: u32 = 100;
/// Of more namespaces than this nothing is remembered: they are made and gone.
const NAMESPACES: usize = 1000;

/// By the cookie of the namespace.
static SEEN: Mutex<BTreeMap<u64, Seen>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Clone)]
struct Seen {
    zones: BTreeSet<u16>,
    when: Instant,
    /// How long that counts.
    lasts: Duration,
}

/// Whether the table of a namespace should be looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// It never was.
    First,
    Again,
    No,
}

fn seen() -> MutexGuard<'static, BTreeMap<u64, Seen>> {
    // What a panic left is whole: every change is one assignment.
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Zones other than 0.
pub(super) fn known(namespace: u64) -> Vec<u16> {
    let seen = seen();
    seen.get(&namespace)
        .map(|seen| seen.zones.iter().copied().collect())
        .unwrap_or_default()
}

pub(super) fn due(namespace: u64) -> Due {
    match seen().get(&namespace) {
        None => Due::First,
        Some(seen) if seen.when.elapsed() > seen.lasts => Due::Again,
        Some(_) => Due::No,
    }
}

/// Somebody looks through it just now: for others it is not due.
pub(super) fn begin(namespace: u64) {
    if let Some(seen) = seen().get_mut(&namespace) {
        seen.when = Instant::now();
        // Also where nothing was to be seen the last time: the look takes longer than that counts.
        seen.lasts = seen.lasts.max(KNOWN_FOR);
    }
}

/// What looking through the whole table has shown, and how long that took.
pub(super) fn learnt(namespace: u64, mut zones: BTreeSet<u16>, took: Duration) {
    zones.remove(&0);
    remember(namespace, zones, KNOWN_FOR.max(took * SHARE));
}

/// The namespace has no entry at all.
pub(super) fn learnt_nothing(namespace: u64) {
    remember(namespace, BTreeSet::new(), EMPTY_FOR);
}

fn remember(namespace: u64, zones: BTreeSet<u16>, lasts: Duration) {
    let mut seen = seen();
    if seen.len() >= NAMESPACES {
        seen.clear();
    }
    let when = Instant::now();
    seen.insert(namespace, Seen { zones, when, lasts });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the last look had been so long ago.
    fn age(namespace: u64, by: Duration) {
        let mut seen = seen();
        let seen = seen.get_mut(&namespace).unwrap();
        seen.when = seen.when.checked_sub(by).unwrap();
    }

    #[test]
    fn a_look_counts_for_a_time_and_one_at_an_empty_table_for_less() {
        let namespace = u64::MAX;
        assert_eq!(due(namespace), Due::First);
        learnt_nothing(namespace);
        assert_eq!(due(namespace), Due::No);
        age(namespace, EMPTY_FOR * 2);
        assert_eq!(due(namespace), Due::Again);
        begin(namespace);
        age(namespace, EMPTY_FOR * 2);
        assert_eq!(due(namespace), Due::No);
        learnt(namespace, [0, 9].into(), Duration::ZERO);
        assert_eq!((known(namespace), due(namespace)), (vec![9], Due::No));
        age(namespace, KNOWN_FOR * 2);
        assert_eq!(due(namespace), Due::Again);
        begin(namespace);
        assert_eq!(due(namespace), Due::No);
    }
}
