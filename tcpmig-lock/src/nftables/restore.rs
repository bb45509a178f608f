//! Sets up again what somebody removed, and what else is due between calls.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::batch::Op;
use super::connection::Failure;
use super::element;
use super::later::Damage;
use super::layout;
use super::monitor::Seen;
use super::names::{REDIRECT, Set, Table};
use super::registry::{HopData, Moved};
use super::shared::{FEW as FEW_ASKED, Shared, State, TRIES, left_ms};
use super::watch;
use crate::{Event, LockError};

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the kernel is asked at most, and at least, how long redirects last.
const LOOK: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(60)];

impl Shared {
    /// Begins to watch, if that has not been done.
    pub(super) fn watch(self: &Arc<Self>) {
        if self.watching.swap(true, Ordering::AcqRel) {
            return;
        }
        let state = &mut *self.state();
        let started = self
            .monitor
            .start(state.connection.port())
            .and_then(|()| watch::spawn(self).map_err(LockError::call("pthread_create")));
        match started {
            Ok(()) => state.others_redirect = self.look_for_redirects(),
            Err(error) => self.listener().tell(&Event::NotWatched { error }),
        }
    }

    /// Whether there may be a redirect, or a part of one. There can be very many, so no more is read than shows it, and the
    /// connection, which is of the handle's network namespace, is not used again.
    fn look_for_redirects(&self) -> bool {
        let scout = self
            .scout
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut scout) = scout else { return true };
        REDIRECT.iter().any(|set| {
            let mut has = |v4| scout.has_elements(&self.table, *set, v4).unwrap_or(true);
            has(true) || has(false)
        })
    }

    /// Does what is due, and says when something is due again.
    pub(super) fn look(&self) -> Option<Instant> {
        self.ask_how_long();
        self.copy_all();
        self.remove_again();
        self.remove_doubles(Instant::now());
        let mut state = self.state();
        let restored = self.catch_up(&mut state);
        if !restored && state.ready && state.handle.is_none() {
            let handle = state.connection.table_handle(Table::Inet, &self.table);
            state.handle = handle.ok().flatten();
        }
        let redirects = state.kept.has_redirects() || state.care.has_redirects();
        if state.later.damage.is_none() && redirects && state.frame.stale {
            let _ = self.hook_devices(&mut state, None);
        }
        let events = std::mem::take(&mut state.later.events);
        let next = self.next(&mut state);
        drop(state);
        let listener = self.listener();
        for event in &events {
            listener.tell(event);
        }
        next
    }

    fn next(&self, state: &mut State) -> Option<Instant> {
        let now = Instant::now();
        state.later.look = state
            .kept
            .next_look()
            .map(|look| look.clamp(now + LOOK[0], now + LOOK[1]));
        let removed = state.later.removed.first().map(|(due, _)| *due);
        let put_back = state.later.put_back.first().map(|(due, _)| *due);
        let again = state.later.damage.map(|_| now + AGAIN);
        let due_of =
            |flows: &Option<(Instant, Vec<FourTuple>)>| flows.as_ref().map(|(due, _)| *due);
        let made = due_of(&state.later.made);
        let looked_at = due_of(&state.later.looked_at);
        state.later.sleeps = [
            state.later.look,
            put_back,
            removed,
            made,
            looked_at,
            again,
            state.care.due,
        ]
        .into_iter()
        .flatten()
        .min();
        state.later.sleeps
    }

    /// Has the thread look in time after the redirects that were just made or prolonged.
    pub(super) fn look_in_time(&self, state: &mut State) {
        let sleeps = state.later.sleeps;
        let look = state.kept.next_look();
        if look.is_some_and(|look| sleeps.is_none_or(|sleeps| look < sleeps)) {
            self.monitor.wake();
        }
    }

    /// Like [`catch_up`](Self::catch_up), for whoever found something missing: also takes in what is being removed this moment. True
    /// also if it could not be set up again so far.
    pub(super) fn catch_up_with_all(&self, state: &mut State) -> bool {
        state.connection.wait_for_others();
        self.catch_up(state) || state.later.is_damaged()
    }

    /// Takes in what others did, and says whether anything had to be set up again. Costs little if that is nothing.
    pub(super) fn catch_up(&self, state: &mut State) -> bool {
        if !self.watching.load(Ordering::Acquire) {
            return false;
        }
        if state.later.damage.is_none() && self.monitor.is_quiet() {
            return false;
        }
        let seen = self.monitor.read(&self.table, self.capture.group());
        state.others_redirect |= seen.redirected;
        state.frame.stale |= seen.links || seen.lost;
        if seen.added || seen.lost {
            state.care.hurry();
        }
        self.forget_removed(state, &seen);
        let lost = seen.lost && self.is_another_table(state);
        if seen.damage() || seen.lost {
            let before = state.later.damage;
            let all = seen.gone || lost;
            state.later.damage = Some(Damage {
                all: all || before.is_some_and(|damage| damage.all),
                dormant: seen.dormant || before.is_some_and(|damage| damage.dormant),
            });
        }
        if let Some(damage) = state.later.damage {
            self.restore(state, damage);
            return true;
        }
        false
    }

    /// Forgets flows that somebody else unlocked or ended the redirect of: that was on purpose. Our own calls may have
    /// locked them again meanwhile.
    fn forget_removed(&self, state: &mut State, seen: &Seen) {
        let same_table = seen.lost && !self.is_another_table(state);
        for set in [Set::Locked, Set::Gone] {
            let mut flows = seen.removed(set);
            if same_table {
                flows.extend(state.kept.flows(set));
                flows.extend(state.care.flows(set));
            }
            flows.retain(|flow| state.kept.has(set, flow) || state.care.has(set, flow));
            let Ok(present) = self.present(state, &flows, set) else {
                continue;
            };
            flows.retain(|flow| !present.contains(flow));
            state.forget(set, &flows);
        }
    }

    /// Whether the table is not the one that was set up last: each has its own number.
    fn is_another_table(&self, state: &mut State) -> bool {
        let now = state.connection.table_handle(Table::Inet, &self.table);
        state.handle.is_none() || now.ok().flatten() != state.handle
    }

    /// Sets up again what this handle holds.
    fn restore(&self, state: &mut State, damage: Damage) {
        let noticed = Instant::now();
        let locks = state.kept.locks();
        let redirects = state.kept.redirects();
        state.ready = false;
        state.frame.forget();
        if locks.is_empty() && redirects.is_empty() && state.care.is_empty() {
            // Nobody needs it.
            state.later.damage = None;
            return;
        }
        let kept = &state.kept;
        let copied = |set| state.care.count(set, |flow| !kept.has(set, flow));
        let [locked, moved] = [Set::Locked, Set::Device].map(copied);
        let event = match self.set_up_again(state, damage, &locks, &redirects) {
            Ok(()) => {
                state.later.damage = None;
                state.kept.set_up_again();
                self.capture.lost();
                Event::Restored {
                    table: self.table.clone(),
                    locks: locks.len() + locked,
                    redirects: redirects.len() + moved,
                    took: noticed.elapsed(),
                }
            }
            Err(error) => {
                state.connection.wait_for_others();
                if !self.monitor.is_quiet() {
                    // Somebody has removed it once more meanwhile; the watching thread, or the next call, begins again.
                    return;
                }
                // Once for each change, and not for each time that it is tried.
                if state.later.failed {
                    return;
                }
                Event::NotRestored {
                    table: self.table.clone(),
                    error,
                }
            }
        };
        state.later.failed = matches!(event, Event::NotRestored { .. });
        state.later.events.push(event);
        self.monitor.wake();
    }

    fn set_up_again(
        &self,
        state: &mut State,
        damage: Damage,
        locks: &[(FourTuple, Instant)],
        redirects: &[(FourTuple, Moved)],
    ) -> Result<(), LockError> {
        let mut groups = Groups::default();
        for (flow, until) in locks {
            groups.lock(*flow, *until)?;
        }
        for (flow, moved) in redirects {
            groups.redirect(*flow, moved)?;
        }
        for tries in (0..TRIES).rev() {
            // The silence first: everything else is lost on the way at worst.
            match self.put_silence(state, damage, &groups) {
                Ok(()) => break,
                Err(failure) if failure.lacks_destroy() && state.destroy => state.destroy = false,
                Err(failure) if tries == 0 => return Err(failure.into_error(&self.table)),
                Err(failure) => {
                    let flows = state.kept.flows(Set::Gone);
                    self.remove_doubled(state, &flows, &failure)?;
                }
            }
        }
        state.ready = true;
        if damage.all {
            self.put_copy(state, true)?;
        }
        state.handle = state
            .connection
            .table_handle(Table::Inet, &self.table)
            .ok()
            .flatten();
        if redirects.is_empty() && !state.care.has_redirects() {
            return Ok(());
        }
        self.hook_devices(state, None)?;
        for ((data, left), flows) in &groups.redirects {
            self.hook_class(state, data.class)?;
            let extras = self.redirect_extras(*left, data);
            let mut tries = 0..TRIES;
            loop {
                match self.put_elements(state, damage, flows, &extras[1..]) {
                    Ok(()) => break,
                    Err(failure)
                        if tries.next().is_some()
                            && self.remove_doubled(state, flows, &failure)? => {}
                    Err(failure) => return Err(failure.into_error(&self.table)),
                }
            }
            self.look_for_doubles(state, flows);
        }
        if damage.all {
            self.put_copy(state, false)?;
            let copied = state.care.flows(Set::Device);
            self.look_for_doubles(state, &copied);
        }
        Ok(())
    }

    fn put_silence(
        &self,
        state: &mut State,
        damage: Damage,
        groups: &Groups,
    ) -> Result<(), Box<Failure>> {
        let mut batch = state.connection.batch(None);
        if damage.dormant {
            layout::wake(&mut batch, &self.table);
        }
        layout::set_up_maps(&mut batch, &self.table, state.owned);
        self.put_locks(&mut batch, state.owned, &state.exempt);
        // In one step with the elements if these are few.
        let group = self.group();
        let few = groups.count() < FEW;
        if few && damage.all {
            for (left, flows) in &groups.locks {
                self.put_again(
                    &mut batch,
                    state,
                    flows,
                    &[(Set::Locked, self.extra(*left, Some(&group)))],
                );
            }
            for ((data, left), flows) in &groups.redirects {
                let extras = self.redirect_extras(*left, data);
                self.put_again(&mut batch, state, flows, &extras[..1]);
            }
        }
        state.connection.send(batch).map_err(Box::new)?;
        if few && damage.all {
            return Ok(());
        }
        for (left, flows) in &groups.locks {
            let extra = [(Set::Locked, self.extra(*left, Some(&group)))];
            self.put_elements(state, damage, flows, &extra)?;
        }
        for ((data, left), flows) in &groups.redirects {
            let extras = self.redirect_extras(*left, data);
            self.put_elements(state, damage, flows, &extras[..1])?;
        }
        Ok(())
    }

    fn put_elements(
        &self,
        state: &mut State,
        damage: Damage,
        flows: &[FourTuple],
        extras: &[(Set, element::Extra<'_>)],
    ) -> Result<(), Box<Failure>> {
        let destroy = state.destroy;
        self.apply(state, flows, 3 * extras.len(), |batch, flows| {
            for (set, extra) in extras {
                // Somebody may have loaded an old copy of the rules, with other leases. Where the elements stayed,
                // traffic may have kept them up for longer than is known here.
                if damage.all && destroy {
                    self.put_removal_of_both(batch, *set, flows);
                }
                batch.elements(&self.table, *set, Op::Keep(*extra), flows);
            }
        })
        .map_err(|(_, failure)| failure)
    }

    fn put_again(
        &self,
        batch: &mut super::batch::Batch,
        state: &State,
        flows: &[FourTuple],
        extras: &[(Set, element::Extra<'_>)],
    ) {
        for (set, extra) in extras {
            if state.destroy {
                self.put_removal_of_both(batch, *set, flows);
            }
            batch.elements(&self.table, *set, Op::Keep(*extra), flows);
        }
    }

    /// Each removes one: packets may have made a second.
    fn put_removal_of_both(&self, batch: &mut super::batch::Batch, set: Set, flows: &[FourTuple]) {
        for _ in 0..2 {
            batch.elements(&self.table, set, Op::Destroy, flows);
        }
    }

    /// Learns how long redirects last that traffic keeps up. The dump may take long, so nobody waits for it.
    fn ask_how_long(&self) {
        let now = Instant::now();
        if self.state().later.look.is_none_or(|look| look > now) {
            return;
        }
        let flows = self.state().kept.flows(Set::Device);
        let Ok(mut reader) = self.reader.lock() else {
            return;
        };
        let Ok(found) = reader.elements_of(&self.table, Set::Device, &flows, FEW_ASKED + 1) else {
            return;
        };
        drop(reader);
        let left = found
            .into_iter()
            .map(|element| (element.flow, element.remaining))
            .collect();
        let mut state = self.state();
        // What somebody flushed meanwhile is not over; nor is what another thread has set up again since.
        if !self.catch_up(&mut state) {
            state.kept.learn(now, &left);
        }
    }
}

/// Flows that are set up in the same way.
#[derive(Default)]
struct Groups {
    locks: HashMap<u64, Vec<FourTuple>>,
    redirects: HashMap<(Arc<HopData>, u64), Vec<FourTuple>>,
}

/// So many flows go into the batch that sets the tables up.
const FEW: usize = 64;

impl Groups {
    fn lock(&mut self, flow: FourTuple, until: Instant) -> Result<(), LockError> {
        self.locks.entry(left_ms(until)?).or_default().push(flow);
        Ok(())
    }

    fn redirect(&mut self, flow: FourTuple, moved: &Moved) -> Result<(), LockError> {
        let key = (Arc::clone(&moved.data), left_ms(moved.until)?);
        self.redirects.entry(key).or_default().push(flow);
        Ok(())
    }

    fn count(&self) -> usize {
        let count =
            |groups: &mut dyn Iterator<Item = &Vec<FourTuple>>| groups.map(Vec::len).sum::<usize>();
        count(&mut self.locks.values()) + count(&mut self.redirects.values())
    }
}
