//! What a handle holds, so that it can be set up again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::lease_class::Class;
use super::names::Set;

/// What a handle holds, also what its guards left to its lease.
#[derive(Default)]
pub(super) struct Registry {
    /// Until when each flow is certainly locked.
    locks: HashMap<FourTuple, Instant>,
    redirects: HashMap<FourTuple, Moved>,
    /// No redirect has to be looked after before. It is not sought anew at each change, which would take as long as there
    /// are redirects.
    next_look: Option<Instant>,
}

/// A redirect.
#[derive(Clone)]
pub(super) struct Moved {
    pub(super) data: Arc<HopData>,
    /// Until when it lasts as far as is known: traffic may have kept it up since.
    pub(super) until: Instant,
    /// When that was last so.
    known: Instant,
}

impl Moved {
    /// When the kernel should be asked about it: before it ends, which traffic may have put off.
    fn look(&self) -> Instant {
        self.known + (self.until - self.known) / 2
    }
}

/// Where flows are redirected to, and the values of their elements.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HopData {
    pub(super) hop: IpAddr,
    pub(super) class: Class,
    pub(super) device: [u8; 4],
    pub(super) address: Vec<u8>,
    pub(super) class_id: [u8; 4],
}

impl HopData {
    pub(super) fn new(device: u32, address: IpAddr, class: Class) -> Self {
        Self {
            hop: address,
            class,
            class_id: class.id().to_ne_bytes(),
            device: device.to_ne_bytes(),
            address: match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            },
        }
    }

    pub(super) fn device_index(&self) -> u32 {
        u32::from_ne_bytes(self.device)
    }
}

impl Registry {
    pub(super) fn lock(&mut self, flows: &[FourTuple], until: Instant) {
        self.locks.extend(flows.iter().map(|flow| (*flow, until)));
    }

    pub(super) fn unlock(&mut self, flows: &[FourTuple]) {
        for flow in flows {
            self.locks.remove(flow);
        }
    }

    /// Locks end as redirects, or redirects were prolonged.
    pub(super) fn redirect(&mut self, flows: &[FourTuple], data: &Arc<HopData>, until: Instant) {
        self.unlock(flows);
        let moved = Moved {
            data: Arc::clone(data),
            until,
            known: Instant::now(),
        };
        let look = moved.look();
        self.next_look = Some(self.next_look.map_or(look, |next| next.min(look)));
        self.redirects
            .extend(flows.iter().map(|flow| (*flow, moved.clone())));
    }

    pub(super) fn end(&mut self, flows: &[FourTuple]) {
        for flow in flows {
            self.redirects.remove(flow);
        }
    }

    /// Whether a flow is locked, or (any other set) redirected.
    pub(super) fn has(&self, set: Set, flow: &FourTuple) -> bool {
        match set {
            Set::Locked => self.locks.contains_key(flow),
            _ => self.redirects.contains_key(flow),
        }
    }

    /// All of these.
    pub(super) fn flows(&self, set: Set) -> Vec<FourTuple> {
        match set {
            Set::Locked => self.locks.keys().copied().collect(),
            _ => self.redirects.keys().copied().collect(),
        }
    }

    pub(super) fn redirected(&self, flow: &FourTuple) -> Option<&Moved> {
        self.redirects.get(flow)
    }

    /// What is locked now, with what is left of each lease. Forgets the others.
    pub(super) fn locks(&mut self) -> Vec<(FourTuple, Instant)> {
        let now = Instant::now();
        self.locks.retain(|_, until| *until > now);
        let locks = self.locks.iter();
        locks.map(|(flow, until)| (*flow, *until)).collect()
    }

    /// What is redirected now. Forgets the others.
    pub(super) fn redirects(&mut self) -> Vec<(FourTuple, Moved)> {
        let now = Instant::now();
        self.redirects.retain(|_, moved| moved.until > now);
        let redirects = self.redirects.iter();
        redirects
            .map(|(flow, moved)| (*flow, moved.clone()))
            .collect()
    }

    /// How many flows are redirected.
    pub(super) fn redirected_flows(&self) -> usize {
        self.redirects.len()
    }

    pub(super) fn has_redirects(&self) -> bool {
        !self.redirects.is_empty()
    }

    /// When the kernel should be asked how long redirects last: not later than one needs it.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look.filter(|_| self.has_redirects())
    }

    /// All of it is there: what the kernel said before is worth nothing.
    pub(super) fn set_up_again(&mut self) {
        let now = Instant::now();
        for moved in self.redirects.values_mut() {
            moved.known = now;
        }
    }

    /// Takes over what the kernel says of redirects that were known before `asked`: those that it did not name are
    /// over.
    pub(super) fn learn(&mut self, asked: Instant, left: &HashMap<FourTuple, Duration>) {
        let now = Instant::now();
        self.redirects.retain(|flow, moved| {
            if moved.known >= asked {
                return true;
            }
            let Some(left) = left.get(flow) else {
                return false;
            };
            moved.until = asked + *left;
            moved.known = now;
            true
        });
        self.next_look = self.redirects.values().map(Moved::look).min();
    }
}
