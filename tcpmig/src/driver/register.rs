//! The handovers that a target has under way, and those that ended and may be asked about again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::handover::HandoverId;

/// Handovers by identifier. What has ended goes when its time is over, or when its host has more
/// of them than it may: then the oldest.
pub(super) struct Register<S> {
    content: Mutex<Content<S>>,
    remember: Duration,
    by_each: usize,
}

struct Content<S> {
    handovers: HashMap<HandoverId, Arc<S>>,
    /// Of each host, the oldest first. One queue needs no timer for each handover.
    ended: HashMap<Arc<str>, VecDeque<(Instant, HandoverId)>>,
}

impl<S> Register<S> {
    pub(super) fn new(remember: Duration, by_each: usize) -> Self {
        Self {
            content: Mutex::new(Content {
                handovers: HashMap::new(),
                ended: HashMap::new(),
            }),
            remember,
            by_each,
        }
    }

    pub(super) fn get(&self, id: HandoverId) -> Option<Arc<S>> {
        self.content().handovers.get(&id).cloned()
    }

    /// Begins a handover; false if there is one with that identifier.
    #[must_use]
    pub(super) fn begin(&self, id: HandoverId, handover: Arc<S>) -> bool {
        let mut content = self.content();
        let is_new = !content.handovers.contains_key(&id);
        if is_new {
            content.handovers.insert(id, handover);
        }
        is_new
    }

    /// Forgets one that never came to be.
    pub(super) fn forget(&self, id: HandoverId) {
        let gone = self.content().handovers.remove(&id);
        // Whatever it does when it is dropped, nobody has to wait for that.
        drop(gone);
    }

    /// Remembers one of that host as ended, from now on.
    pub(super) fn ended(&self, id: HandoverId, from: &Arc<str>) {
        let mut content = self.content();
        let ended = content.ended.entry(from.clone()).or_default();
        ended.push_back((Instant::now(), id));
        let excess = ended.len().saturating_sub(self.by_each);
        let oldest: Vec<_> = ended.drain(..excess).collect();
        let gone = content.remove(oldest);
        drop(content);
        drop(gone);
    }

    /// Forgets what ended so long ago that nobody asks any more.
    pub(super) fn sweep(&self) {
        let mut content = self.content();
        let mut oldest = Vec::new();
        content.ended.retain(|_, ended| {
            let is_over = |(since, _): &(Instant, _)| since.elapsed() >= self.remember;
            let over = ended.partition_point(is_over);
            oldest.extend(ended.drain(..over));
            !ended.is_empty()
        });
        let gone = content.remove(oldest);
        drop(content);
        drop(gone);
    }

    fn content(&self) -> MutexGuard<'_, Content<S>> {
        // At worst one that ended is remembered without an end.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Content<S> {
    fn remove(&mut self, ended: Vec<(Instant, HandoverId)>) -> Vec<Arc<S>> {
        let remove = |(_, id)| self.handovers.remove(&id);
        ended.into_iter().filter_map(remove).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> HandoverId {
        HandoverId::from_octets([number; 16])
    }

    fn known(register: &Register<()>) -> Vec<u8> {
        (0..50).filter(|n| register.get(id(*n)).is_some()).collect()
    }

    #[test]
    fn each_host_forgets_its_own_oldest() {
        let register = Register::new(Duration::MAX, 2);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for n in 0..6 {
            assert!(register.begin(id(n), Arc::default()));
            assert!(!register.begin(id(n), Arc::default()));
        }
        register.ended(id(0), &b);
        for n in 1..5 {
            register.ended(id(n), &a);
        }
        // What is under way is never forgotten.
        assert_eq!(known(&register), [0, 3, 4, 5]);
        register.sweep();
        assert_eq!(known(&register), [0, 3, 4, 5]);
    }

    #[test]
    fn what_is_over_leaves_nothing() {
        let register = Register::new(Duration::ZERO, 10);
        for n in 0..6 {
            assert!(register.begin(id(n), Arc::default()));
        }
        for n in 1..5 {
            register.ended(id(n), &n.to_string().as_str().into());
        }
        register.forget(id(5));
        register.sweep();
        assert_eq!(known(&register), [0]);
        assert!(register.content().ended.is_empty());
    }
}
