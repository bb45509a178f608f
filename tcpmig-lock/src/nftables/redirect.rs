//! The operations on redirects.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::batch::Op;
use super::connection::Failure;
use super::element::{self, Extra};
use super::layout;
use super::lease_class::Class;
use super::names::{REDIRECT, Set, Table};
use super::registry::{HopData, Moved};
use super::shared::{Removal, Shared, State, TRIES, deadline, left_ms};
use crate::{LockError, NextHop};

impl Shared {
    /// See [`Locker::get_ready`](crate::Locker::get_ready).
    pub(super) fn get_ready(
        self: &Arc<Self>,
        hop: &NextHop,
        lease: Duration,
    ) -> Result<(), LockError> {
        let class = Class::of(element::lease_ms(lease)?);
        self.watch();
        let state = &mut *self.state();
        self.catch_up(state);
        if !state.ready {
            self.set_up(state)?;
        }
        self.hook_devices(state, Some(&hop.ingress))?;
        self.hook_class(state, class)
    }

    /// Turns locks into redirects. `until` is when the locks end.
    pub(super) fn redirect(
        &self,
        flows: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
        until: Instant,
    ) -> Result<(u64, Arc<HopData>), LockError> {
        let state = &mut *self.state();
        self.catch_up(state);
        self.redirect_in(state, flows, hop, lease, until)
    }

    pub(super) fn redirect_in(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
        until: Instant,
    ) -> Result<(u64, Arc<HopData>), LockError> {
        let lease_ms = element::lease_ms(lease)?;
        if let Some(flow) = flows
            .iter()
            .find(|flow| flow.is_ipv4() != hop.address.is_ipv4())
        {
            return Err(LockError::HopFamily {
                flow: *flow,
                hop: hop.address,
            });
        }
        let device = self.routes.device_index(&hop.device)?;
        let data = Arc::new(HopData::new(device, hop.address, Class::of(lease_ms)));
        self.routes.device_index(&hop.ingress)?;
        let mut tries = 0..TRIES;
        loop {
            let deadline = deadline(lease_ms);
            let removals = self.removals(state, flows, &REDIRECT)?;
            self.hook_devices(state, Some(&hop.ingress))?;
            self.hook_class(state, data.class)?;
            let redirected = self.put_redirect(state, flows, lease_ms, &data, &removals);
            let Err((done, failure)) = redirected else {
                state.last_token += 1;
                let token = state.last_token;
                state.kept.redirect(flows, &data, deadline);
                state
                    .redirects
                    .extend(flows.iter().map(|flow| (*flow, token)));
                self.look_in_time(state);
                self.look_for_doubles(state, flows);
                return Ok((token, data));
            };
            state.hosts.clear();
            self.back_to_locks(state, &flows[..done], until);
            // Of the locks this is said if one has ended, of what it replaces also if that has ended just now.
            let not_held = failure.is(libc::ENOENT)
                && failure.table == Some(Table::Inet)
                && failure
                    .set
                    .is_some_and(|set| set == Set::Locked || state.destroy);
            if failure.lacks_destroy() && state.destroy {
                state.destroy = false;
            } else if not_held && tries.next().is_some() && self.catch_up_with_all(state) {
                // Somebody removed it just now, and it is there again.
            } else if not_held {
                return Err(LockError::NotHeld(self.blame(
                    state,
                    &failure,
                    Set::Locked,
                    false,
                )?));
            } else if failure.is(libc::ENOENT) && tries.next().is_some() {
                state.frame.forget();
            } else if failure.is(libc::EEXIST) && tries.next().is_some() {
                // Packets have made a second element of an earlier redirect, or are making one.
                self.remove_once(state, flows, &REDIRECT)?;
            } else {
                return Err(failure.into_error(&self.table));
            }
        }
    }

    fn put_redirect(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        lease_ms: u64,
        data: &HopData,
        removals: &[Removal],
    ) -> Result<(), (usize, Box<Failure>)> {
        let host = self.host(state, data);
        let extras = self.redirect_extras(lease_ms, data);
        let put = self.apply(state, flows, 9, |batch, flows| {
            if let Some((link, _)) = host {
                layout::add_host(batch, &self.table, link);
            }
            self.put_removals(batch, removals, flows);
            for (set, extra) in &extras {
                batch.elements(&self.table, *set, Op::Add(*extra), flows);
            }
            batch.elements(&self.table, Set::Locked, Op::Delete, flows);
        });
        if put.is_ok() {
            state.hosts.extend(host.map(|(_, address)| address));
        }
        put
    }

    /// The link-layer address of a host to which packets are sent, if the set does not have it and it is known. Without
    /// it, what that host sends back one day goes back and forth.
    fn host(&self, state: &State, data: &HopData) -> Option<([u8; 6], IpAddr)> {
        if state.hosts.contains(&data.hop) {
            return None;
        }
        let link = self
            .routes
            .neighbour(data.device_index(), data.hop)
            .ok()??;
        Some((link, data.hop))
    }

    /// Takes the first part of a redirect back whose second part failed.
    fn back_to_locks(&self, state: &mut State, flows: &[FourTuple], until: Instant) {
        if let Ok(lease_ms) = left_ms(until) {
            let group = self.group();
            let extra = self.extra(lease_ms, Some(&group));
            // What cannot be locked again stays silent as a redirect, which is the safe side.
            let locked = self.apply(state, flows, 1, |batch, flows| {
                batch.elements(&self.table, Set::Locked, Op::Add(extra), flows);
            });
            if locked.is_ok() {
                let _ = self.remove(state, flows, &REDIRECT);
            }
        }
    }

    /// Prolongs redirects. Those that last for longer stay as they are, each for itself: traffic keeps some up.
    pub(super) fn renew_redirect(
        &self,
        flows: &[FourTuple],
        token: u64,
        data: &mut Arc<HopData>,
        lease: Duration,
    ) -> Result<(), LockError> {
        let lease_ms = element::lease_ms(lease)?;
        // Traffic must not shorten what was granted before.
        let class = Class::of(lease_ms);
        if class.ms() > data.class.ms() {
            *data = Arc::new(HopData::new(data.device_index(), data.hop, class));
        }
        let data = &*data;
        let state = &mut *self.state();
        self.catch_up(state);
        self.unless_removed(state, |state| {
            self.renew_in(state, flows, token, data, lease)
        })
    }

    fn renew_in(
        &self,
        state: &mut State,
        flows: &[FourTuple],
        token: u64,
        data: &Arc<HopData>,
        lease: Duration,
    ) -> Result<(), LockError> {
        let lease_ms = element::lease_ms(lease)?;
        if let Some(flow) = flows
            .iter()
            .find(|flow| state.redirects.get(flow) != Some(&token))
        {
            return Err(LockError::NotHeld(*flow));
        }
        let deadline = deadline(lease_ms);
        let closing = self.present(state, flows, Set::Closing)?;
        let mut short = Vec::new();
        let mut until = deadline;
        for (flow, left) in self.left(state, flows)? {
            match left {
                None => return Err(LockError::NotHeld(flow)),
                Some(left) if left < lease && !closing.contains(&flow) => {
                    short.push(flow);
                    until = until.min(Instant::now() + left);
                }
                Some(_) => {}
            }
        }
        // Only now: where somebody removed the rules when all leases had ended, nobody has set them up again, and
        // what is said is that it ended.
        self.hook_class(state, data.class)?;
        let extras = |left_ms| self.redirect_extras(left_ms, data);
        self.replace(state, &short, extras, lease_ms, until)?;
        state.kept.redirect(&short, data, deadline);
        self.look_in_time(state);
        self.look_for_doubles(state, &short);
        Ok(())
    }

    /// Whether this flow is redirected, by whatever process.
    pub(super) fn redirects(&self, flow: &FourTuple) -> Result<bool, LockError> {
        let state = &mut *self.state();
        if self.is_nothing_redirected(state) {
            return Ok(false);
        }
        let found = state.connection.get(&self.table, Set::Device, flow)?;
        Ok(found.is_some())
    }

    /// Whether redirects are certainly there, without asking the kernel, which tells what others do to them. If not, only the
    /// kernel knows.
    pub(super) fn are_there(&self, flows: &[FourTuple], token: u64) -> Result<bool, LockError> {
        let state = &mut *self.state();
        if !self.watching.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.catch_up(state);
        if state.later.is_damaged() {
            return Ok(false);
        }
        let now = Instant::now();
        for flow in flows {
            if state.redirects.get(flow) != Some(&token) {
                return Err(LockError::NotHeld(*flow));
            }
            let until = state.kept.redirected(flow).map(|moved| moved.until);
            if until.is_none_or(|until| until <= now) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How long redirects last that are there.
    fn left(
        &self,
        state: &mut State,
        flows: &[FourTuple],
    ) -> Result<Vec<(FourTuple, Option<Duration>)>, LockError> {
        let found = self.elements_of(state, Set::Device, flows)?;
        let found: HashMap<_, _> = found
            .into_iter()
            .map(|element| (element.flow, element.remaining))
            .collect();
        let left = |flow: &FourTuple| (*flow, found.get(flow).copied());
        Ok(flows.iter().map(left).collect())
    }

    /// Those of these flows whose end was seen, and whose redirect has ended for that. So does this host's silence for
    /// them. Whatever else ends a redirect before its lease is told to this handle.
    pub(super) fn end_closed(
        &self,
        flows: &[FourTuple],
        token: u64,
    ) -> Result<HashSet<FourTuple>, LockError> {
        let state = &mut *self.state();
        self.catch_up(state);
        let redirected = self.present(state, flows, Set::Device)?;
        let now = Instant::now();
        let mut over = flows.to_vec();
        over.retain(|flow| {
            let early = |moved: &Moved| now < moved.until;
            !redirected.contains(flow)
                && state.redirects.get(flow) == Some(&token)
                && state.kept.redirected(flow).is_some_and(early)
        });
        // What somebody removed just now, or could not be set up again yet, is not over.
        if over.is_empty() || self.catch_up_with_all(state) {
            return Ok(HashSet::new());
        }
        self.remove(state, &over, &REDIRECT)?;
        Ok(over.into_iter().collect())
    }

    /// Those of these flows whose end was seen, and whose redirect soon ends.
    pub(super) fn closing(&self, flows: &[FourTuple]) -> Result<HashSet<FourTuple>, LockError> {
        self.present(&mut self.state(), flows, Set::Closing)
    }

    /// Ends those redirects that no newer one has replaced.
    pub(super) fn end_own_redirects(
        &self,
        flows: &[FourTuple],
        token: u64,
    ) -> Result<(), LockError> {
        let state = &mut *self.state();
        let mut own = flows.to_vec();
        own.retain(|flow| state.redirects.get(flow) == Some(&token));
        // After the end of a lease the flow may be redirected by somebody else.
        let now = Instant::now();
        let process = std::process::id();
        own.retain(|flow| {
            let runs = |moved: &Moved| now < moved.until;
            state.kept.redirected(flow).is_some_and(runs) || {
                // One of them may be hidden by what packets made.
                [Set::Gone, Set::Device].into_iter().any(|set| {
                    let found = state.connection.get(&self.table, set, flow);
                    let owner = found.ok().flatten().and_then(|element| element.owner);
                    owner.is_some_and(|owner| owner.pid == process)
                })
            }
        });
        self.remove(state, &own, &REDIRECT)
    }

    /// Forgets who made these redirects, whose guard is gone.
    pub(super) fn forget_redirects(&self, flows: &[FourTuple], token: u64) {
        self.state().forget_redirects(flows, token);
    }

    /// The elements of a redirect that lasts for `left_ms` from now, the silence first. The kernel commits them in this order: see
    /// [`look_for_doubles`](Self::look_for_doubles).
    pub(super) fn redirect_extras<'a>(
        &'a self,
        left_ms: u64,
        data: &'a HopData,
    ) -> [(Set, Extra<'a>); 3] {
        [
            (Set::Gone, self.extra(left_ms, Some(&data.class_id))),
            (Set::Hop, self.extra(left_ms, Some(&data.address))),
            (Set::Device, self.extra(left_ms, Some(&data.device))),
        ]
    }
}
