//! A copy of what the tables hold, of others too.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::element::Element;
use super::names::Set;

/// How soon to copy after somebody has added something.
const SOON: Duration = Duration::from_millis(20);

/// A copy of what the tables hold.
#[derive(Default)]
pub(super) struct Care {
    /// When to copy next; none if nobody asked for it.
    pub(super) due: Option<Instant>,
    pub(super) copied: Option<Instant>,
    pub(super) elements: Vec<(Set, Element)>,
}

impl Care {
    /// Somebody has added something.
    pub(super) fn hurry(&mut self) {
        self.due = self.due.map(|due| due.min(Instant::now() + SOON));
    }

    /// Of which flows there is a copy.
    pub(super) fn flows(&self, set: Set) -> Vec<FourTuple> {
        let elements = self.elements.iter().filter(|(other, _)| *other == set);
        elements.map(|(_, found)| found.flow).collect()
    }

    pub(super) fn has(&self, set: Set, flow: &FourTuple) -> bool {
        let mut elements = self.elements.iter();
        elements.any(|(other, found)| *other == set && found.flow == *flow)
    }

    /// How many of these flows there are.
    pub(super) fn count(&self, set: Set, which: impl Fn(&FourTuple) -> bool) -> usize {
        self.flows(set).iter().filter(|flow| which(flow)).count()
    }

    /// Flows are not locked any more, or (`Set::Gone`) not redirected.
    pub(super) fn forget(&mut self, set: Set, flows: &[FourTuple]) {
        if self.elements.is_empty() || flows.is_empty() {
            return;
        }
        let flows: HashSet<&FourTuple> = flows.iter().collect();
        self.elements.retain(|(other, found)| {
            let same = (*other == Set::Locked) == (set == Set::Locked);
            !(same && flows.contains(&found.flow))
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub(super) fn has_redirects(&self) -> bool {
        self.elements.iter().any(|(set, _)| *set == Set::Device)
    }
}
