//! Second elements of redirects, and elements that come back: packets make both while others add and remove elements.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::connection::Failure;
use super::element;
use super::names::{REDIRECT, Set};
use super::shared::{FEW, Shared, State};
use crate::LockError;

/// Longer than the rules take for a packet.
const PACKET: Duration = Duration::from_millis(1);
/// How long to collect what was made before it is looked at.
const COLLECT: Duration = Duration::from_millis(10);
/// How long after the first look at what was made there is a second one, the last.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How often a packet can have made a double while others were looked at.
const DOUBLES: usize = 4;

impl Shared {
    /// Notes that redirects were removed, which a packet that was being looked at may have put back.
    pub(super) fn remove_later(&self, state: &mut State, flows: Vec<FourTuple>) {
        if flows.is_empty() {
            return;
        }
        // Without the thread it is done when the handle ends.
        state.later.removed.push((Instant::now() + PACKET, flows));
        self.monitor.wake();
    }

    /// Removes what packets have put back. Looking for it may take long, so nobody waits for that.
    pub(super) fn remove_again(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let later = &mut state.later;
        let is_due = |(due, _): &mut (Instant, Vec<FourTuple>)| *due <= now;
        let first: Vec<_> = later.removed.extract_if(.., is_due).collect();
        let again: Vec<_> = later.put_back.extract_if(.., is_due).collect();
        for (_, flows) in &first {
            later.put_back.push((now + SECOND_LOOK, flows.clone()));
        }
        drop(state);
        // By then another handle of this process may have redirected them: what is owned is left alone.
        for (_, flows) in again {
            for set in REDIRECT {
                self.remove_made(set, &flows);
            }
        }
        for (_, flows) in first {
            for set in REDIRECT {
                self.remove_made(set, &flows);
                // Where there were two, the one that was removed may be that of a rule.
                let is_own = |owner| owner == Some(std::process::id());
                let own = self.those_of(set, &flows, is_own);
                self.remove_left(set, own, |state, flow, owner| {
                    let is_kept =
                        state.kept.has(Set::Gone, flow) || state.kept.has(Set::Locked, flow);
                    is_own(owner) && !is_kept
                });
            }
        }
    }

    /// Removes what rules have made.
    fn remove_made(&self, set: Set, flows: &[FourTuple]) {
        let made = self.those_of(set, flows, |owner| owner.is_none());
        self.remove_left(set, made, |_, _, owner| owner.is_none());
    }

    fn remove_left(
        &self,
        set: Set,
        mut flows: Vec<FourTuple>,
        is_such: impl Fn(&State, &FourTuple, Option<u32>) -> bool,
    ) {
        if flows.is_empty() {
            return;
        }
        let state = &mut *self.state();
        self.retain_such(state, set, &mut flows, is_such);
        // The next packet may have come in this moment.
        if self.remove_once(state, &flows, &[set]).is_ok() {
            let due = Instant::now() + PACKET;
            state.later.removed.push((due, flows));
        }
    }

    /// Those of the flows whose element is of such a process, or (none) was made by a rule.
    fn those_of(
        &self,
        set: Set,
        flows: &[FourTuple],
        is_such: impl Fn(Option<u32>) -> bool,
    ) -> Vec<FourTuple> {
        let is_such =
            |element: &element::Element| is_such(element.owner.as_ref().map(|owner| owner.pid));
        // To read all takes longer the more there are.
        let most = FEW.max(self.state().kept.redirected_flows() / 4);
        let Ok(mut reader) = self.reader.lock() else {
            return Vec::new();
        };
        let mut found = reader
            .elements_of(&self.table, set, flows, most + 1)
            .unwrap_or_default();
        found.retain(is_such);
        found.into_iter().map(|element| element.flow).collect()
    }

    /// Keeps those whose element is such a one still: since they were looked for, another thread may have removed the element that was
    /// found, so that what would be removed is the only one left.
    fn retain_such(
        &self,
        state: &mut State,
        set: Set,
        flows: &mut Vec<FourTuple>,
        is_such: impl Fn(&State, &FourTuple, Option<u32>) -> bool,
    ) {
        let connection = &mut state.connection;
        let found = connection.elements_of(&self.table, set, flows, usize::MAX);
        let found = found.unwrap_or_default().into_iter();
        let owners = found.map(|element| (element.flow, element.owner.map(|owner| owner.pid)));
        let owners: HashMap<_, _> = owners.collect();
        // Each once, however often it was noted: the second removal would be that of the other element.
        let mut seen = HashSet::new();
        flows.retain(|flow| {
            let owner = owners.get(flow);
            seen.insert(*flow) && owner.is_some_and(|owner| is_such(state, flow, *owner))
        });
    }

    /// Notes that elements of redirects were added.
    ///
    /// As long as the kernel commits them they are found by packets, but a rule that prolongs one does not find it
    /// (`NFT_GENMASK_ANY` in `nft_rhash_update`), and makes a second one, with the values that the rule names. Packets would find
    /// that one first, and go nowhere.
    ///
    /// The rule prolongs the element in `device*` and then that in `hop*`, which is committed before the other: where it found the
    /// first it finds the second, too, so that a flow without a double in `device*` has none.
    pub(super) fn look_for_doubles(&self, state: &mut State, flows: &[FourTuple]) {
        if flows.is_empty() {
            return;
        }
        if let Some((_, made)) = &mut state.later.made {
            made.extend_from_slice(flows);
            return;
        }
        let due = Instant::now() + COLLECT;
        state.later.made = Some((due, flows.to_vec()));
        if state.later.sleeps.is_none_or(|sleeps| due < sleeps) {
            self.monitor.wake();
        }
    }

    /// Removes second elements of redirects which packets have made, if that is due. One that is found has been made by a rule
    /// if it names no process: the newer one is found first.
    pub(super) fn remove_doubles(&self, now: Instant) {
        let mut state = self.state();
        let again = state.later.looked_at.take_if(|(due, _)| *due <= now);
        let first = state.later.made.take_if(|(due, _)| *due <= now);
        if let Some((_, flows)) = &first {
            let due = now + SECOND_LOOK;
            let (_, looked_at) = state.later.looked_at.get_or_insert((due, Vec::new()));
            looked_at.extend_from_slice(flows);
        }
        drop(state);
        for (_, flows) in [first, again].into_iter().flatten() {
            // What was ended meanwhile is removed as a whole.
            let is_there = |state: &State, flow: &FourTuple| {
                state.kept.has(Set::Gone, flow) || state.care.has(Set::Gone, flow)
            };
            self.remove_doubles_of(&flows, is_there);
        }
    }

    pub(super) fn remove_doubles_of(
        &self,
        flows: &[FourTuple],
        is_wanted: impl Fn(&State, &FourTuple) -> bool,
    ) {
        let doubled = self.remove_doubles_in(Set::Device, flows, &is_wanted);
        if !doubled.is_empty() {
            self.remove_doubles_in(Set::Hop, &doubled, is_wanted);
        }
    }

    /// Which of the flows had one in this set.
    fn remove_doubles_in(
        &self,
        set: Set,
        flows: &[FourTuple],
        is_wanted: impl Fn(&State, &FourTuple) -> bool,
    ) -> Vec<FourTuple> {
        let mut all = Vec::new();
        let mut flows = flows.to_vec();
        for tries in 0..DOUBLES {
            flows = self.those_of(set, &flows, |owner| owner.is_none());
            let state = &mut *self.state();
            let is_such = |state: &State, flow: &FourTuple, owner: Option<u32>| {
                owner.is_none() && is_wanted(state, flow)
            };
            self.retain_such(state, set, &mut flows, is_such);
            if tries == 0 {
                all.clone_from(&flows);
            }
            // What fails here is tried again by whoever prolongs or ends the redirect.
            if flows.is_empty() || self.remove_once(state, &flows, &[set]).is_err() {
                break;
            }
        }
        all
    }

    /// Does what is due later now: the handle ends.
    pub(super) fn finish(&self) {
        let made = self.state().later.made.as_ref().map(|(due, _)| *due);
        if let Some(due) = made {
            self.remove_doubles(due);
        }
        for _ in 0..DOUBLES {
            let due = self.state().later.removed.last().map(|(due, _)| *due);
            let Some(due) = due else { return };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.remove_again();
        }
    }

    /// Removes the second elements that packets have made of these flows, where such a one is in the way of a batch. False if that
    /// is not what went wrong.
    pub(super) fn remove_doubled(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        failure: &Failure,
    ) -> Result<bool, LockError> {
        let Some(set) = failure.set.filter(|_| failure.already_there()) else {
            return Ok(false);
        };
        // The one that a rule made is found first, and names no process.
        let mut doubled = self.elements_of(state, set, flows)?;
        doubled.retain(|element| element.owner.is_none());
        let doubled: HashSet<_> = doubled.iter().map(|element| element.flow).collect();
        let doubled: Vec<_> = doubled.into_iter().collect();
        self.remove_once(state, &doubled, &[set])?;
        Ok(true)
    }
}
