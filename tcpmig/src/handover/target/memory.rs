//! Which ended handovers a target remembers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::HandoverId;

/// Handovers that ended and may be asked about again. One goes when its time is over, or when its host has more
/// of them than it may: then the oldest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Memory {
    remember: Duration,
    by_each: usize,
    /// Of each host, the oldest first. One queue needs no timer for each handover.
    ended: BTreeMap<Arc<str>, VecDeque<(Duration, HandoverId)>>,
    /// When it is looked through next, if there is anything.
    sweep_at: Option<Duration>,
}

impl Memory {
    pub(super) fn new(remember: Duration, by_each: usize) -> Self {
        Self {
            remember,
            by_each,
            ended: BTreeMap::new(),
            sweep_at: None,
        }
    }

    /// Remembers one of that host as ended, from now on; and which have to go for it.
    pub(super) fn ended(
        &mut self,
        now: Duration,
        id: HandoverId,
        from: &Arc<str>,
    ) -> Vec<HandoverId> {
        let ended = self.ended.entry(from.clone()).or_default();
        ended.push_back((now, id));
        let excess = ended.len().saturating_sub(self.by_each);
        let oldest = ended.drain(..excess).map(|(_, id)| id).collect();
        self.sweep_at
            .get_or_insert(now.saturating_add(self.pause()));
        oldest
    }

    /// Which ended so long ago that nobody asks any more.
    pub(super) fn sweep(&mut self, now: Duration) -> Vec<HandoverId> {
        if self.sweep_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let mut over = Vec::new();
        self.ended.retain(|_, ended| {
            let is_over = |(since, _): &(Duration, _)| now.saturating_sub(*since) >= self.remember;
            let until = ended.partition_point(is_over);
            over.extend(ended.drain(..until).map(|(_, id)| id));
            !ended.is_empty()
        });
        let next = now.saturating_add(self.pause());
        self.sweep_at = (!self.ended.is_empty()).then_some(next);
        over
    }

    pub(super) fn sweep_at(&self) -> Option<Duration> {
        self.sweep_at
    }

    /// It need not be exact.
    fn pause(&self) -> Duration {
        (self.remember / 8).clamp(Duration::from_millis(50), Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> HandoverId {
        HandoverId::from_bytes([number; 16])
    }

    #[test]
    fn each_host_forgets_its_own_oldest() {
        let mut memory = Memory::new(Duration::MAX, 2);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let now = Duration::ZERO;
        assert_eq!(memory.ended(now, id(0), &b), []);
        let gone = (1..5).flat_map(|n| memory.ended(now, id(n), &a));
        assert_eq!(gone.collect::<Vec<_>>(), [id(1), id(2)]);
        assert_eq!(memory.sweep(Duration::from_secs(1 << 40)), []);
    }

    #[test]
    fn what_is_over_leaves_nothing() {
        let mut memory = Memory::new(Duration::from_secs(8), 10);
        let at = Duration::from_secs;
        for n in 1..5 {
            let from = n.to_string().as_str().into();
            assert_eq!(memory.ended(at(n), id(n as u8), &from), []);
        }
        assert_eq!(memory.sweep_at(), Some(at(2)));
        assert_eq!(memory.sweep(at(10)), [id(1), id(2)]);
        assert_eq!(memory.sweep_at(), Some(at(11)));
        assert_eq!(memory.sweep(at(20)), [id(3), id(4)]);
        assert_eq!(memory.sweep_at(), None);
        assert!(memory.ended.is_empty());
    }
}
