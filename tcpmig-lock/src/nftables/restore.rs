//! Sets up again what somebody removed, and what else is due between calls.

use std::collections::{HashMap, HashSet};
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
use super::names::{Set, Table};
use super::registry::{HopData, Moved};
use super::shared::{FEW as FEW_ASKED, REDIRECT, Shared, State, TRIES, left_ms};
use super::watch;
use crate::{Event, LockError};

/// Longer than the rules take for a packet.
pub(super) const PACKET: Duration = Duration::from_millis(1);
/// How long to collect what was made before it is looked at.
const COLLECT: Duration = Duration::from_millis(10);
/// How long after the first look at what was made there is a second one, the last.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How often a packet can have made a double while others were looked at.
const DOUBLES: usize = 4;
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
        let again = state.later.damage.map(|_| now + AGAIN);
        let due_of =
            |flows: &Option<(Instant, Vec<FourTuple>)>| flows.as_ref().map(|(due, _)| *due);
        let made = due_of(&state.later.made);
        let looked_at = due_of(&state.later.looked_at);
        state.later.sleeps = [
            state.later.look,
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
                self.capture.lost();
                Event::Restored {
                    table: self.table.clone(),
                    locks: locks.len() + locked,
                    redirects: redirects.len() + moved,
                    took: noticed.elapsed(),
                }
            }
            Err(error) => {
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
                Err(_) => {}
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
            let put = self.put_elements(state, damage, flows, &extras[1..]);
            put.map_err(|failure| failure.into_error(&self.table))?;
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
        self.apply(state, flows, 2 * extras.len(), |batch, flows| {
            for (set, extra) in extras {
                // Somebody may have loaded an old copy of the rules, with other leases. Where the elements stayed,
                // traffic may have kept them up for longer than is known here.
                if damage.all && destroy {
                    batch.elements(&self.table, *set, Op::Destroy, flows);
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
                batch.elements(&self.table, *set, Op::Destroy, flows);
            }
            batch.elements(&self.table, *set, Op::Keep(*extra), flows);
        }
    }

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
    fn remove_again(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let (due, rest) = std::mem::take(&mut state.later.removed)
            .into_iter()
            .partition(|(due, _)| *due <= now);
        state.later.removed = rest;
        drop(state);
        for (_, flows) in due as Vec<(Instant, Vec<FourTuple>)> {
            for set in REDIRECT {
                let made = self.those_of(set, &flows, |owner| owner.is_none());
                self.remove_left(set, made);
                // Where there were two, the one that was removed may be that of a rule.
                let mut own = self.those_of(set, &flows, |owner| owner == Some(std::process::id()));
                let state = self.state();
                let is_kept = |flow: &FourTuple| {
                    state.kept.has(Set::Gone, flow) || state.kept.has(Set::Locked, flow)
                };
                own.retain(|flow| !is_kept(flow));
                drop(state);
                self.remove_left(set, own);
            }
        }
    }

    fn remove_left(&self, set: Set, flows: Vec<FourTuple>) {
        if flows.is_empty() {
            return;
        }
        let state = &mut *self.state();
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
        let most = FEW_ASKED.max(self.state().kept.redirected_flows() / 4);
        let Ok(mut reader) = self.reader.lock() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if flows.len() <= most {
            found = reader.get_each(&self.table, set, flows).unwrap_or_default();
            found.retain(is_such);
        } else {
            let flows: HashSet<&FourTuple> = flows.iter().collect();
            for v4 in [true, false] {
                if flows.iter().any(|flow| flow.is_ipv4() == v4) {
                    let elements = reader.elements(&self.table, set, v4);
                    found.extend(elements.ok().flatten().unwrap_or_default());
                }
            }
            found.retain(|element| is_such(element) && flows.contains(&element.flow));
        }
        found.into_iter().map(|element| element.flow).collect()
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
    fn remove_doubles(&self, now: Instant) {
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
            flows.retain(|flow| is_wanted(state, flow));
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

    /// Learns how long redirects last that traffic keeps up. The dump may take long, so nobody waits for it.
    fn ask_how_long(&self) {
        let now = Instant::now();
        if self.state().later.look.is_none_or(|look| look > now) {
            return;
        }
        let Ok(mut reader) = self.reader.lock() else {
            return;
        };
        let mut left = HashMap::new();
        for v4 in [true, false] {
            match reader.elements(&self.table, Set::Device, v4) {
                Ok(Some(elements)) => {
                    left.extend(
                        elements
                            .into_iter()
                            .map(|element| (element.flow, element.remaining)),
                    );
                }
                // Somebody removed the table, which is seen elsewhere.
                Ok(None) | Err(_) => return,
            }
        }
        drop(reader);
        let mut state = self.state();
        // What somebody flushed meanwhile is not over.
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
