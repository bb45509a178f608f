//! The operations on redirects.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::batch::Op;
use super::element::{self, Extra};
use super::layout::{self, Set, Table};
use super::shared::{REDIRECT, Shared, State, TRIES, deadline, left_ms};
use crate::{LockError, NextHop};

impl Shared {
    /// Turns locks into redirects. `until` is when the locks end.
    pub(super) fn redirect(
        &self,
        flows: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
        until: Instant,
    ) -> Result<(u64, HopData, Instant), LockError> {
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
        let data = HopData::new(device, hop.address);
        self.routes.device_index(&hop.ingress)?;
        let state = &mut *self.state();
        let mut tries = 0..TRIES;
        loop {
            let deadline = deadline(lease_ms);
            let removals = self.removals(state, flows, &REDIRECT)?;
            // Putting the rules again makes the kernel look at each element of the sets that they change.
            let mut set_up = !(state.ingresses.contains(&hop.ingress)
                && state.connection.has_chain(
                    Table::Netdev,
                    &self.table,
                    &layout::ingress_chain(&hop.ingress),
                )?);
            if set_up {
                state.hosts.clear();
            }
            let host = self.host(state, device, hop.address);
            let (owned, closing_ms) = (state.owned, state.closing_ms);
            let redirected = self.apply(state, flows, 8, |batch, flows| {
                if set_up {
                    layout::set_up_redirects(batch, &self.table, owned, &hop.ingress, closing_ms);
                    set_up = false;
                }
                if let Some(link) = host {
                    layout::add_host(batch, &self.table, link);
                }
                self.put_removals(batch, &removals, flows);
                for (set, extra) in self.redirect_extras(lease_ms, &data) {
                    batch.elements(&self.table, set, Op::Add(extra), flows);
                }
                batch.elements(&self.table, Set::Locked, Op::Delete, flows);
            });
            let Err((done, failure)) = redirected else {
                state.last_token += 1;
                let token = state.last_token;
                state.hosts.extend(host.map(|_| hop.address));
                if !state.ingresses.contains(&hop.ingress) {
                    state.ingresses.insert(hop.ingress.clone());
                }
                state
                    .redirects
                    .extend(flows.iter().map(|flow| (*flow, token)));
                return Ok((token, data, deadline));
            };
            state.ingresses.clear();
            state.hosts.clear();
            self.back_to_locks(state, &flows[..done], until);
            if failure.lacks_destroy() && state.destroy {
                state.destroy = false;
            } else if failure.is(libc::ENOENT) && failure.table == Some(Table::Inet) {
                let ended_just_now = !state.destroy && failure.set == Some(Set::Gone);
                if !(ended_just_now && tries.next().is_some()) {
                    return Err(LockError::NotHeld(self.blame(
                        state,
                        &failure,
                        Set::Locked,
                        false,
                    )?));
                }
            } else if !(failure.is(libc::ENOENT) && failure.set.is_some() && tries.next().is_some())
            {
                return Err(failure.into_error(&self.table));
            }
        }
    }

    /// The link-layer address of a host to which packets are sent, if the set does not have it and it is known. Without
    /// it, what that host sends back one day goes back and forth.
    fn host(&self, state: &State, device: u32, address: IpAddr) -> Option<[u8; 6]> {
        if state.hosts.contains(&address) {
            return None;
        }
        self.routes.neighbour(device, address).ok()?
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

    /// Prolongs a redirect that ends at `until` now.
    pub(super) fn renew_redirect(
        &self,
        flows: &[FourTuple],
        token: u64,
        data: &HopData,
        lease: Duration,
        until: Instant,
    ) -> Result<Instant, LockError> {
        let lease_ms = element::lease_ms(lease)?;
        let state = &mut *self.state();
        if let Some(flow) = flows
            .iter()
            .find(|flow| state.redirects.get(flow) != Some(&token))
        {
            return Err(LockError::NotHeld(*flow));
        }
        let deadline = deadline(lease_ms);
        let closing = self.present(state, flows, Set::Closing)?;
        let mut open = flows.to_vec();
        open.retain(|flow| !closing.contains(flow));
        let extras = |lease_ms| self.redirect_extras(lease_ms, data);
        self.replace(state, &open, extras, lease_ms, until)?;
        Ok(deadline)
    }

    /// Those of these flows whose end was seen, and whose redirect has ended for that. So does this host's silence for
    /// them.
    pub(super) fn end_closed(&self, flows: &[FourTuple]) -> Result<HashSet<FourTuple>, LockError> {
        let state = &mut *self.state();
        let redirected = self.present(state, flows, Set::Device)?;
        if flows.iter().all(|flow| redirected.contains(flow)) {
            return Ok(HashSet::new());
        }
        // The silence is left of those that were not ended by somebody or by their lease.
        let silent = self.present(state, flows, Set::Gone)?;
        let mut over = flows.to_vec();
        over.retain(|flow| !redirected.contains(flow) && silent.contains(flow));
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
        self.remove(state, &own, &REDIRECT)
    }

    /// Forgets who made these redirects, whose guard is gone.
    pub(super) fn forget_redirects(&self, flows: &[FourTuple], token: u64) {
        let state = &mut *self.state();
        for flow in flows {
            if state.redirects.get(flow) == Some(&token) {
                state.redirects.remove(flow);
            }
        }
    }

    fn redirect_extras<'a>(&'a self, lease_ms: u64, data: &'a HopData) -> [(Set, Extra<'a>); 3] {
        [
            (Set::Gone, self.extra(lease_ms, None)),
            (Set::Device, self.extra(lease_ms, Some(&data.device))),
            (Set::Hop, self.extra(lease_ms, Some(&data.address))),
        ]
    }
}

/// The values of a redirect's elements.
#[derive(Debug, Clone)]
pub(super) struct HopData {
    device: [u8; 4],
    address: Vec<u8>,
}

impl HopData {
    fn new(device: u32, address: IpAddr) -> Self {
        Self {
            device: device.to_ne_bytes(),
            address: match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            },
        }
    }
}
