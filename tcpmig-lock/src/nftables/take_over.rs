//! Locks and redirects that a process left behind which has ended: others take them over, prolong them, and give them back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::batch::Op;
use super::capture;
use super::connection::Failure;
use super::element::{self, Element, Extra};
use super::layout;
use super::lease_class::Class;
use super::names::{REDIRECT, Set};
use super::shared::{FEW, Shared, State, deadline};
use crate::check_request;
use crate::{Entry, EntryKind, LockError, NextHop};

/// How often a step is tried again because others changed the rules while it looked.
const TRIES: usize = 64;
/// What a flow's elements in a batch are at most: one in each set of a redirect, a lock that is removed and one that is added.
const PER_FLOW: usize = REDIRECT.len() + 2;
/// The sets whose elements are prolonged.
const PROLONGED: [Set; 4] = [Set::Locked, Set::Gone, Set::Hop, Set::Device];

/// Locks that were taken over.
pub(super) struct Taken {
    /// When the first of them ends.
    pub(super) until: Instant,
    /// Whose the captured packets are.
    pub(super) token: Option<u64>,
    /// What was there before.
    pub(super) entries: Vec<Entry>,
}

impl Shared {
    /// Locks flows, also those that are held by a process that has ended.
    pub(super) fn take_over(
        self: &Arc<Self>,
        flows: &[FourTuple],
        lease: Duration,
    ) -> Result<Taken, LockError> {
        check_request(flows, lease)?;
        self.watch();
        let state = &mut *self.state();
        let mut inbox = self.capture.begin()?;
        let mut taken = Taken {
            until: deadline(element::lease_ms(lease)?),
            token: None,
            entries: Vec::new(),
        };
        let at_once = state.at_once(flows.len(), PER_FLOW);
        let mut done = 0;
        for part in flows.chunks(at_once) {
            match self.take_part(state, part, lease) {
                Ok((until, entries)) => {
                    // The first one's own lease counts: what was taken over may last for longer than was asked for.
                    taken.until = if done == 0 {
                        until
                    } else {
                        taken.until.min(until)
                    };
                    taken.entries.extend(entries);
                    done += part.len();
                }
                Err(error) => {
                    // What cannot be given back stays locked until its lease ends; the first error is the one to tell.
                    let done = &flows[..done];
                    let _ = self.give_back(state, done, &taken.entries, taken.until);
                    return Err(error);
                }
            }
        }
        taken.token = inbox.as_mut().map(|inbox| inbox.register(flows));
        Ok(taken)
    }

    /// The same for as many as go into one batch.
    fn take_part(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        lease: Duration,
    ) -> Result<(Instant, Vec<Entry>), LockError> {
        let mut sets = vec![Set::Locked];
        sets.extend(REDIRECT);
        let group = self.group();
        let mut tries = 0..TRIES;
        loop {
            if !state.ready {
                self.set_up(state)?;
            }
            self.catch_up(state);
            // What follows is only done if nobody has changed anything since, who might be alive.
            let generation = state.connection.generation()?;
            let connection = &mut state.connection;
            let table = &self.table;
            let entries =
                self.entries(|set| connection.all_elements_of(table, set, flows, FEW + 1))?;
            if let Some(entry) = entries.iter().find(|entry| entry.owner_may_live()) {
                return Err(LockError::AlreadyLocked(entry.flow));
            }
            let longest = entries.iter().map(|entry| entry.remaining).max();
            let lease_ms = element::lease_ms(lease.max(longest.unwrap_or_default()))?;
            let deadline = deadline(lease_ms);
            let removals = self.removals(state, flows, &sets)?;
            let mut batch = state.connection.batch(Some(generation));
            layout::add_exempt(&mut batch, &self.table, &state.exempt);
            if let Some(group) = self.capture.group() {
                // As for a lock: it would hold without the chain, and capture nothing.
                capture::check(&mut batch, &self.table, group);
            }
            self.put_removals(&mut batch, &removals, flows);
            let extra = self.extra(lease_ms, Some(&group));
            batch.elements(&self.table, Set::Locked, Op::Add(extra), flows);
            let Err(failure) = state.connection.send(batch) else {
                for set in [Set::Locked, Set::Gone] {
                    state.forget(set, flows);
                }
                state.kept.lock(flows, deadline);
                let redirected = entries.iter().filter(|entry| entry.kind != EntryKind::Lock);
                // A packet that is being looked at meanwhile may put back what a rule prolongs.
                self.remove_later(state, redirected.map(|entry| entry.flow).collect());
                return Ok((deadline, entries));
            };
            if failure.lacks_destroy() && state.destroy {
                state.destroy = false;
            } else if again(&failure) && tries.next().is_some() {
                // ENOENT without a set: somebody removed the table.
                state.ready &= failure.set.is_some() || failure.is(libc::ERESTART);
            } else {
                return Err(self.explain(state, failure));
            }
        }
    }

    /// Ends locks that were taken over as if they had not been. They end at `until`.
    pub(super) fn give_back(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        taken: &[Entry],
        until: Instant,
    ) -> Result<(), LockError> {
        let mut hops: HashMap<NextHop, (Vec<FourTuple>, Duration)> = HashMap::new();
        let mut free = flows.to_vec();
        for entry in taken {
            free.retain(|flow| *flow != entry.flow);
            if let Some((hop, lease)) = entry.redirected() {
                let (flows, longest) = hops.entry(hop).or_default();
                flows.push(entry.flow);
                *longest = (*longest).max(lease);
            }
        }
        let mut result = self.remove(state, &free, &[Set::Locked]);
        for (hop, (flows, lease)) in hops {
            match self.redirect_in(state, &flows, &hop, lease, until) {
                Ok((token, _)) => state.forget_redirects(&flows, token),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Prolongs locks and redirects, whoever made them: he stays their owner. Redirects whose flow was seen to end are left
    /// alone.
    pub(super) fn renew_any(&self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        check_request(flows, lease)?;
        let lease_ms = element::lease_ms(lease)?;
        let mut locked = self.state();
        let state = &mut *locked;
        self.catch_up(state);
        let redirected = self.elements_of(state, Set::Gone, flows)?;
        if !redirected.is_empty() {
            self.hook_class(state, Class::of(lease_ms))?;
        }
        let at_once = state.at_once(flows.len(), 2 * PROLONGED.len());
        // Of too many for one batch, nothing is prolonged either if one is not held.
        self.held(state, flows)?;
        for part in flows.chunks(at_once) {
            self.renew_part(state, part, lease_ms)?;
        }
        drop(locked);
        let mut owned: Vec<FourTuple> = Vec::new();
        owned.extend(
            redirected
                .iter()
                .filter(|element| element.owner.is_some())
                .map(|element| element.flow),
        );
        self.remove_doubles_of(&owned, |_, _| true);
        Ok(())
    }

    /// The elements of flows that are locked or redirected.
    fn held(
        &self,
        state: &mut State,
        flows: &[FourTuple],
    ) -> Result<Vec<(Set, Element)>, LockError> {
        let mut found: Vec<(Set, Element)> = Vec::new();
        for set in PROLONGED {
            let elements = self.elements_of(state, set, flows)?;
            found.extend(elements.into_iter().map(|element| (set, element)));
        }
        let held: HashSet<FourTuple> = found.iter().map(|(_, element)| element.flow).collect();
        match flows.iter().find(|flow| !held.contains(flow)) {
            Some(flow) => Err(LockError::NotHeld(*flow)),
            None => Ok(found),
        }
    }

    fn renew_part(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        wanted_ms: u64,
    ) -> Result<(), LockError> {
        let mut tries = 0..TRIES;
        loop {
            let generation = state.connection.generation()?;
            let closing = self.present(state, flows, Set::Closing)?;
            let mut held = self.held(state, flows)?;
            held.retain(|(set, element)| *set == Set::Locked || !closing.contains(&element.flow));
            let mut batch = state.connection.batch(Some(generation));
            for (set, element) in &mut held {
                if *set == Set::Gone {
                    reclass(element, Class::of(wanted_ms));
                }
                let comment = element.owner.as_ref().map(element::owner_comment);
                let extra = Extra {
                    lease_ms: wanted_ms.max(element::lease_ms(element.remaining)?),
                    comment: comment.as_deref().unwrap_or_default(),
                    data: element.data.as_deref(),
                };
                let flow = [element.flow];
                batch.elements(&self.table, *set, Op::Delete, &flow);
                batch.elements(&self.table, *set, Op::Add(extra), &flow);
            }
            match state.connection.send(batch) {
                Ok(()) => return Ok(()),
                Err(failure) if again(&failure) && tries.next().is_some() => {}
                Err(failure) => return Err(self.explain(state, failure)),
            }
        }
    }
}

/// Whether something has changed just now, or ended.
fn again(failure: &Failure) -> bool {
    failure.is(libc::ERESTART) || failure.is(libc::ENOENT)
}

/// Has traffic prolong a redirect by the longer lease.
fn reclass(gone: &mut Element, class: Class) {
    let id = gone.data.as_deref().and_then(<[u8]>::first_chunk);
    let before = id.and_then(|id| Class::from_id(u32::from_ne_bytes(*id)));
    if before.is_none_or(|before| before.ms() < class.ms()) {
        gone.data = Some(class.id().to_ne_bytes().to_vec());
    }
}
