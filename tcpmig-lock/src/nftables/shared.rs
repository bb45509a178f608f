//! What a handle and its guards share: one socket, and the operations on flows.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::batch::{Batch, Op};
use super::capture;
use super::care::Care;
use super::connection::{Connection, Failure};
use super::element::{self, Element, Extra};
use super::frame::Frame;
use super::later::Later;
use super::layout;
use super::monitor::Monitor;
use super::names::{REDIRECT, Set, Table};
use super::object;
use super::registry::Registry;
use crate::capture::Capture;
use crate::event::Listener;
use crate::route::Routes;
use crate::{LockError, Owner};

/// So many flows are looked up one by one; for more, all are read.
pub(super) const FEW: usize = 100;
/// For so long what a lock needs besides is taken to be there.
const CHECKED_FOR: Duration = Duration::from_millis(100);
/// As long as a TCP endpoint waits for late segments (TIME-WAIT).
const CLOSING_MS: u64 = 60_000;

/// How often a step is tried again because somebody else, or the end of a lease, came in between.
pub(super) const TRIES: usize = 4;
/// For so long a step is tried again while somebody else removes again and again what it needs.
const REMOVED_FOR: Duration = Duration::from_secs(1);
/// More than the messages that set tables up, and all headers, take in a batch.
const FIXED: usize = 32768;

pub(super) struct Shared {
    pub(super) table: String,
    pub(super) routes: Routes,
    comment: Vec<u8>,
    pub(super) capture: Arc<Capture>,
    pub(super) monitor: Arc<Monitor>,
    /// Whether the thread that watches was started, or tried to.
    pub(super) watching: AtomicBool,
    /// For what takes long, so that nobody waits for it.
    pub(super) reader: Mutex<Connection>,
    /// To look once whether others have redirected anything.
    pub(super) scout: Mutex<Option<Connection>>,
    listener: Mutex<Listener>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) connection: Connection,
    pub(super) exempt: Vec<u32>,
    /// Whether the tables are this handle's only.
    pub(super) owned: bool,
    /// How long a redirect outlives its flow.
    pub(super) closing_ms: u64,
    /// Whether the table for locks is set up, as far as this handle knows.
    pub(super) ready: bool,
    /// When it was last looked at that what a lock needs besides is in it.
    checked: Option<Instant>,
    /// Whether others may have redirected something: they had when this handle began to watch, or have since.
    pub(super) others_redirect: bool,
    /// Whether this handle has.
    pub(super) has_redirected: bool,
    /// What of the rules for redirects is set up, as far as this handle knows.
    pub(super) frame: Frame,
    /// The number of the table for locks, once it was needed.
    pub(super) handle: Option<u64>,
    /// What this handle holds, to set it up again.
    pub(super) kept: Registry,
    pub(super) later: Later,
    pub(super) care: Care,
    /// Hosts that packets are sent to and whose link-layer addresses are in their set.
    pub(super) hosts: HashSet<IpAddr>,
    /// Whether the kernel has `DESTROYSETELEM`; taken for granted until it says no.
    pub(super) destroy: bool,
    /// Which redirect is the newest of a flow: an older guard must not end a newer redirect.
    pub(super) redirects: HashMap<FourTuple, u64>,
    pub(super) last_token: u64,
}

/// What has to be removed from a set so that none of some flows is in it.
pub(super) struct Removal {
    set: Set,
    /// None: the kernel finds out.
    present: Option<HashSet<FourTuple>>,
}

impl State {
    /// How many of so many flows go into one batch.
    pub(super) fn at_once(&mut self, flows: usize, elements_per_flow: usize) -> usize {
        let per_flow = elements_per_flow * element::MAX_LENGTH;
        let room = self.connection.room(FIXED + per_flow * flows);
        (room.saturating_sub(FIXED) / per_flow.max(1)).max(1)
    }

    /// Forgets who made these redirects, whose guard is gone.
    pub(super) fn forget_redirects(&mut self, flows: &[FourTuple], token: u64) {
        for flow in flows {
            if self.redirects.get(flow) == Some(&token) {
                self.redirects.remove(flow);
            }
        }
    }

    /// Flows are not locked any more, or (`Set::Gone`) not redirected.
    pub(super) fn forget(&mut self, set: Set, flows: &[FourTuple]) {
        self.care.forget(set, flows);
        if set == Set::Locked {
            self.kept.unlock(flows);
            return;
        }
        self.kept.end(flows);
        for flow in flows {
            self.redirects.remove(flow);
        }
    }
}

impl Shared {
    pub(super) fn new(table: &str, owned: bool) -> Result<Self, LockError> {
        Ok(Self {
            table: table.to_owned(),
            routes: Routes::new()?,
            comment: element::owner_comment(&Owner::current()),
            capture: Arc::new(Capture::new()?),
            monitor: Arc::new(Monitor::open()?),
            watching: AtomicBool::new(false),
            reader: Mutex::new(Connection::open()?),
            scout: Mutex::new(Some(Connection::open()?)),
            listener: Mutex::default(),
            state: Mutex::new(State {
                checked: None,
                connection: Connection::open()?,
                exempt: Vec::new(),
                owned,
                closing_ms: CLOSING_MS,
                ready: false,
                others_redirect: true,
                has_redirected: false,
                frame: Frame::default(),
                handle: None,
                kept: Registry::default(),
                later: Later::default(),
                care: Care::default(),
                hosts: HashSet::new(),
                destroy: true,
                redirects: HashMap::new(),
                last_token: 0,
            }),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // What a panic can leave behind is an answer that was not read, and those are told apart by number.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn listener(&self) -> Listener {
        let listener = self.listener.lock();
        listener.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_listener(&self, listener: Listener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    }

    /// Sets the tables up.
    pub(super) fn prepare(self: &Arc<Self>) -> Result<(), LockError> {
        self.watch();
        self.set_up(&mut self.state())
    }

    pub(super) fn set_up(&self, state: &mut State) -> Result<(), LockError> {
        self.own(state)?;
        self.set_up_maps(state);
        let mut batch = state.connection.batch(None);
        self.put_locks(&mut batch, state.owned, &state.exempt);
        self.send(state, batch)?;
        self.set_ready(state);
        Ok(())
    }

    /// The table for locks is there. The thread that watches has to find out its number: it may have looked before, and sleep.
    fn set_ready(&self, state: &mut State) {
        state.ready = true;
        state.handle = None;
        self.monitor.wake();
    }

    /// Finds out whether the tables can be owned, if they are to be.
    fn own(&self, state: &mut State) -> Result<(), LockError> {
        if !state.owned {
            return Ok(());
        }
        let mut batch = state.connection.batch(None);
        layout::own(&mut batch, &self.table);
        match state.connection.send(batch) {
            Err(failure) if failure.call == object::NEW_TABLE && failure.is(libc::EOPNOTSUPP) => {
                // The kernel does not know how, or there is a table that is not owned.
                state.owned = false;
                Ok(())
            }
            Err(failure) => Err(self.explain(state, failure)),
            Ok(()) => Ok(()),
        }
    }

    /// For an error that has no meaning of its own where it happened.
    pub(super) fn explain(&self, state: &mut State, failure: Failure) -> LockError {
        // The kernel says the same of a table that another process owns, and to who may do nothing at all.
        if failure.is(libc::EPERM) && state.connection.generation().is_ok() {
            return LockError::TableOwned(self.table.clone());
        }
        failure.into_error(&self.table)
    }

    /// Sets the maps for redirects up, so that releasing flows that have none finds the table: a batch that the
    /// kernel has to take back because there is none costs it an RCU grace period, 10 ms and more.
    fn set_up_maps(&self, state: &mut State) {
        let mut batch = state.connection.batch(None);
        layout::set_up_maps(&mut batch, &self.table, state.owned);
        // Kernels without the family netdev cannot redirect, but lock.
        let _ = self.send(state, batch);
    }

    /// What sets the table for locks up, and the handle's own chain in it if it captures.
    pub(super) fn put_locks(&self, batch: &mut Batch, owned: bool, exempt: &[u32]) {
        layout::set_up_locks(batch, &self.table, owned, exempt);
        if let Some(group) = self.capture.group() {
            capture::set_up(batch, &self.table, group);
        }
    }

    /// Whether what a lock needs besides its element was there a moment ago, and nobody was seen to change it: to make sure of that the
    /// kernel looks at every rule of the table.
    fn is_checked(&self, state: &mut State) -> bool {
        let lately = |checked: &Instant| checked.elapsed() < CHECKED_FOR;
        state.checked.as_ref().is_some_and(lately)
            && self.watching.load(Ordering::Acquire)
            && !self.catch_up(state)
    }

    /// The value of this handle's elements in the maps of locks.
    pub(super) fn group(&self) -> [u8; 4] {
        element::group_data(self.capture.group().unwrap_or(capture::NO_GROUP))
    }

    /// Locks flows. Gives when that ends, and in a handle that captures whose their packets are.
    pub(super) fn lock(
        self: &Arc<Self>,
        flows: &[FourTuple],
        lease: Duration,
    ) -> Result<(Instant, Option<u64>), LockError> {
        let lease_ms = element::lease_ms(lease)?;
        self.watch();
        let state = &mut *self.state();
        if !state.ready {
            self.own(state)?;
            self.set_up_maps(state);
        }
        let group = self.group();
        let extra = self.extra(lease_ms, Some(&group));
        let back = self.extra(lease_ms, None);
        // A flow that is redirected here may be one that comes back: the other host redirects it here before this one ends its own
        // redirect.
        let mut coming_back = HashSet::new();
        if state.frame.is_ready() {
            let is_redirected =
                |flow: &&FourTuple| state.others_redirect || state.kept.has(Set::Gone, flow);
            coming_back.extend(flows.iter().filter(is_redirected).copied());
        }
        // Before the inbox is taken: what is set up again tells it that packets may have passed.
        let was_checked = state.ready && self.is_checked(state);
        let mut inbox = self.capture.begin()?;
        let mut tries = 0..TRIES;
        loop {
            let deadline = deadline(lease_ms);
            let (exempt, owned) = (state.exempt.clone(), state.owned);
            let is_checked = was_checked && state.ready;
            let mut set_up = !state.ready;
            let mut check = self.capture.group().filter(|_| state.ready && !is_checked);
            let added = self.apply(state, flows, 2, |batch, flows| {
                if set_up {
                    self.put_locks(batch, owned, &exempt);
                    set_up = false;
                } else if !is_checked {
                    layout::add_exempt(batch, &self.table, &exempt);
                }
                if let Some(group) = check.take() {
                    // Somebody may have removed the table and somebody else made it again, without this handle's
                    // chain: the lock would hold, and capture nothing.
                    capture::check(batch, &self.table, group);
                }
                batch.elements(&self.table, Set::Locked, Op::Add(extra), flows);
                if !coming_back.is_empty() {
                    let mut flows = flows.to_vec();
                    flows.retain(|flow| coming_back.contains(flow));
                    batch.elements(&self.table, Set::Back, Op::Keep(back), &flows);
                }
            });
            let Err((done, failure)) = added else {
                if !state.ready && !flows.is_empty() {
                    self.set_ready(state);
                }
                if !is_checked {
                    state.checked = Some(Instant::now());
                }
                state.kept.lock(flows, deadline);
                let token = inbox.as_mut().map(|inbox| inbox.register(flows));
                return Ok((deadline, token));
            };
            // What cannot be taken back here ends with its lease; the first error is the one to tell.
            let _ = self.remove(state, &flows[..done], &[Set::Locked]);
            if failure.is(libc::ENOENT) && failure.table == Some(Table::Netdev) {
                // Without the table there are no redirects.
                coming_back.clear();
            } else if failure.is(libc::ENOENT) && state.ready && tries.next().is_some() {
                // Somebody removed the table.
                state.ready = false;
            } else if failure.already_there() {
                let flow = self.blame(state, &failure, Set::Locked, true)?;
                let twice = flows.iter().filter(|other| **other == flow).count() > 1;
                return Err(if twice {
                    LockError::Duplicate(flow)
                } else {
                    LockError::AlreadyLocked(flow)
                });
            } else {
                return Err(self.explain(state, *failure));
            }
        }
    }

    /// Prolongs locks that end at `until` now.
    pub(super) fn renew_lock(
        &self,
        flows: &[FourTuple],
        lease: Duration,
        until: Instant,
    ) -> Result<Instant, LockError> {
        // What is left of it is the least that it keeps.
        let lease_ms = element::lease_ms(lease)?.max(left_ms(until)?);
        let deadline = deadline(lease_ms);
        let group = self.group();
        let extras = |lease_ms| [(Set::Locked, self.extra(lease_ms, Some(&group)))];
        let state = &mut *self.state();
        self.catch_up(state);
        self.unless_removed(state, |state| {
            self.replace(state, flows, extras, lease_ms, until)
        })?;
        state.kept.lock(flows, deadline);
        Ok(deadline)
    }

    /// Does something to what is held, and does it again where somebody has removed that just now and it has been set up again.
    pub(super) fn unless_removed<T>(
        &self,
        state: &mut State,
        mut renew: impl FnMut(&mut State) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        let begun = Instant::now();
        loop {
            match renew(state) {
                // Whoever does that without end is not waited for.
                Err(LockError::NotHeld(_))
                    if begun.elapsed() < REMOVED_FOR && self.catch_up_with_all(state) => {}
                done => return done,
            }
        }
    }

    /// Gives elements that exist a new lease. Removing and adding them in one batch does so on every kernel, and
    /// fails if one has gone meanwhile.
    pub(super) fn replace<'a, const N: usize>(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        extras: impl Fn(u64) -> [(Set, Extra<'a>); N],
        lease_ms: u64,
        until: Instant,
    ) -> Result<(), LockError> {
        let replace = |state: &mut State, flows: &[FourTuple], lease_ms, are_doubled: bool| {
            self.apply(state, flows, 3 * N, |batch, flows| {
                for (set, extra) in extras(lease_ms) {
                    batch.elements(&self.table, set, Op::Delete, flows);
                    if are_doubled {
                        batch.elements(&self.table, set, Op::Destroy, flows);
                    }
                    batch.elements(&self.table, set, Op::Add(extra), flows);
                }
            })
        };
        let mut tries = 0..TRIES;
        let mut are_doubled = false;
        let (done, failure) = loop {
            match replace(state, flows, lease_ms, are_doubled) {
                Ok(()) => return Ok(()),
                // Packets have made second elements, which go with the first ones.
                Err((0, failure)) if tries.next().is_some() && failure.already_there() => {
                    are_doubled = state.destroy;
                    if !state.destroy {
                        self.remove_doubled(state, flows, &failure)?;
                    }
                }
                Err((0, failure)) if failure.lacks_destroy() => {
                    (state.destroy, are_doubled) = (false, false);
                }
                Err(failed) => break failed,
            }
        };
        if let (Some(done @ [_, ..]), Ok(lease_ms)) = (flows.get(..done), left_ms(until)) {
            // What cannot be put back ends with the newer lease; the first error is the one to tell.
            let _ = replace(state, done, lease_ms, are_doubled);
        }
        if failure.is(libc::ENOENT) {
            let set = failure.set.unwrap_or(Set::Locked);
            Err(LockError::NotHeld(self.blame(state, &failure, set, false)?))
        } else {
            Err(failure.into_error(&self.table))
        }
    }

    /// Ends locks, if that is asked for, and whatever redirects there are of these flows, in one step.
    pub(super) fn release(&self, flows: &[FourTuple], locked: bool) -> Result<(), LockError> {
        let state = &mut *self.state();
        let mut sets = Vec::with_capacity(1 + REDIRECT.len());
        if !self.is_nothing_redirected(state) {
            sets.extend(REDIRECT);
        }
        if locked {
            sets.push(Set::Locked);
        }
        self.remove(state, flows, &sets)
    }

    /// Whether there is no redirect in the tables, whoever made it, so that whoever ends one need not look for it. Others are seen
    /// to redirect before their call returns; rules only make elements of flows that somebody has redirected.
    pub(super) fn is_nothing_redirected(&self, state: &mut State) -> bool {
        if state.has_redirected || state.others_redirect || state.care.due.is_some() {
            return false;
        }
        // What it takes in can change the answer.
        let restored = self.catch_up(state);
        !state.others_redirect && !restored && self.watching.load(Ordering::Acquire)
    }

    /// Makes sure that none of the flows is in these sets, in one step (or in as many as the socket's buffer makes
    /// necessary).
    pub(super) fn remove(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        sets: &[Set],
    ) -> Result<(), LockError> {
        let redirects = sets.contains(&Set::Gone);
        // A packet that is being looked at meanwhile may put back what a rule prolongs.
        let mut prolonged = Vec::new();
        if redirects && flows.len() <= FEW {
            prolonged.extend(self.present(state, flows, Set::Device)?);
        } else if redirects {
            // Which of them were redirected would take long to find out.
            prolonged.extend_from_slice(flows);
        }
        self.remove_once(state, flows, sets)?;
        for set in [Set::Locked, Set::Gone] {
            if sets.contains(&set) {
                state.forget(set, flows);
            }
        }
        self.remove_later(state, prolonged);
        Ok(())
    }

    pub(super) fn remove_once(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        sets: &[Set],
    ) -> Result<(), LockError> {
        let mut sets = sets.to_vec();
        let mut tries = 0..TRIES;
        loop {
            let removals = self.removals(state, flows, &sets)?;
            let removed = self.apply(state, flows, sets.len(), |batch, flows| {
                self.put_removals(batch, &removals, flows);
            });
            match removed {
                Ok(()) => return Ok(()),
                Err((_, failure)) if failure.lacks_destroy() && state.destroy => {
                    state.destroy = false;
                }
                Err((_, failure)) if failure.is(libc::ENOENT) && tries.next().is_some() => {
                    // With DESTROY this says that there is no such table, and so nothing to remove from it. Without,
                    // that a lease ended just now.
                    if state.destroy {
                        sets.retain(|set| Some(set.table()) != failure.table);
                    }
                }
                Err((_, failure)) => return Err(self.explain(state, *failure)),
            }
        }
    }

    pub(super) fn extra<'a>(&'a self, lease_ms: u64, data: Option<&'a [u8]>) -> Extra<'a> {
        Extra {
            lease_ms,
            comment: &self.comment,
            data,
        }
    }

    pub(super) fn removals(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        sets: &[Set],
    ) -> Result<Vec<Removal>, LockError> {
        let mut removals = Vec::new();
        for &set in sets {
            let present = if state.destroy {
                None
            } else {
                Some(self.present(state, flows, set)?)
            };
            removals.push(Removal { set, present });
        }
        Ok(removals)
    }

    pub(super) fn present(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        set: Set,
    ) -> Result<HashSet<FourTuple>, LockError> {
        let found = self.elements_of(state, set, flows)?;
        Ok(found.into_iter().map(|element| element.flow).collect())
    }

    /// The elements of these flows in a set.
    pub(super) fn elements_of(
        &self,
        state: &mut State,
        set: Set,
        flows: &[FourTuple],
    ) -> Result<Vec<Element>, LockError> {
        state
            .connection
            .elements_of(&self.table, set, flows, FEW + 1)
    }

    pub(super) fn put_removals(
        &self,
        batch: &mut Batch,
        removals: &[Removal],
        flows: &[FourTuple],
    ) {
        for Removal { set, present } in removals {
            match present {
                None => batch.elements(&self.table, *set, Op::Destroy, flows),
                Some(present) => {
                    let mut flows = flows.to_vec();
                    flows.retain(|flow| present.contains(flow));
                    batch.elements(&self.table, *set, Op::Delete, &flows);
                }
            }
        }
    }

    /// The flow that a failure is about, also where the kernel did not say: the first that is (or is not) in the set.
    pub(super) fn blame(
        &self,
        state: &mut State,
        failure: &Failure,
        set: Set,
        there: bool,
    ) -> Result<FourTuple, LockError> {
        if let Some(flow) = failure.flow {
            return Ok(flow);
        }
        let present = self.present(state, &failure.flows, set)?;
        let guilty = failure
            .flows
            .iter()
            .find(|flow| present.contains(flow) == there);
        guilty
            .or(failure.flows.first())
            .copied()
            .ok_or(LockError::Netlink {
                call: failure.call,
                source: std::io::ErrorKind::InvalidData.into(),
            })
    }

    /// Sends one batch for all flows; or, if the socket's buffer cannot be made large enough for that, several. After
    /// an error, `.0` flows from the first on have been dealt with.
    pub(super) fn apply(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        elements_per_flow: usize,
        mut fill: impl FnMut(&mut Batch, &[FourTuple]),
    ) -> Result<(), (usize, Box<Failure>)> {
        let at_once = state.at_once(flows.len(), elements_per_flow);
        for (index, chunk) in flows.chunks(at_once).enumerate() {
            let mut batch = state.connection.batch(None);
            fill(&mut batch, chunk);
            state
                .connection
                .send(batch)
                .map_err(|failure| (index * at_once, Box::new(failure)))?;
        }
        Ok(())
    }

    /// How many of so many flows go into one batch.
    fn send(&self, state: &mut State, batch: Batch) -> Result<(), LockError> {
        match state.connection.send(batch) {
            Err(failure) => Err(self.explain(state, failure)),
            Ok(()) => Ok(()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.monitor.wake();
        self.finish();
        let state = &mut *self.state();
        if let Some(group) = self.capture.group().filter(|_| state.ready) {
            // Flows that are left to their leases stay silent without it. What cannot be removed here is swept.
            let mut batch = state.connection.batch(None);
            capture::remove(&mut batch, &self.table, group);
            let _ = self.send(state, batch);
        }
    }
}

/// Two jiffies with HZ=100: by so much the kernel may end an element early, because it counts whole ones.
const EARLY_MS: u64 = 20;

/// Until when a lease that begins now certainly lasts: the kernel's element is never gone before this.
pub(super) fn deadline(lease_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(lease_ms.saturating_sub(EARLY_MS))
}

/// What is left of a lease that lasts until then.
pub(super) fn left_ms(until: Instant) -> Result<u64, LockError> {
    let left = until.saturating_duration_since(Instant::now());
    element::lease_ms(left + Duration::from_millis(EARLY_MS))
}
