//! Two lockers as one.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tcpmig_format::FourTuple;

use crate::{
    Captured, Entry, Features, LockBackend, LockError, LockGuard, Locker, NextHop, Redirect,
    RedirectBackend, Swept, Unlocked,
};

/// Locks by one locker and redirects by another: for lockers that cannot redirect themselves.
///
/// A lock ends as a redirect in three steps, between which no packet is delivered or answered here: the other locker
/// locks the flows too, ends its own lock as a redirect, and then the first lock is ended.
///
/// ```no_run
/// # fn main() -> Result<(), tcpmig_lock::LockError> {
/// use tcpmig_lock::{Iptables, Nftables, RedirectedBy};
///
/// let locker = RedirectedBy::new(Iptables::new()?, Nftables::new()?);
/// # Ok(())
/// # }
/// ```
pub struct RedirectedBy {
    locks: Box<dyn Locker>,
    redirects: Arc<dyn Locker>,
}

impl RedirectedBy {
    /// `locks` locks and captures, `redirects` redirects.
    pub fn new(locks: impl Locker + 'static, redirects: impl Locker + 'static) -> Self {
        Self::boxed(Box::new(locks), Arc::new(redirects))
    }

    /// Like [`RedirectedBy::new`], but with lockers that were chosen at run time.
    #[must_use]
    pub fn boxed(locks: Box<dyn Locker>, redirects: Arc<dyn Locker>) -> Self {
        Self { locks, redirects }
    }
}

impl fmt::Debug for RedirectedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedirectedBy")
            .field("locks", &self.locks.name())
            .field("redirects", &self.redirects.name())
            .finish()
    }
}

impl Locker for RedirectedBy {
    fn name(&self) -> &'static str {
        self.locks.name()
    }

    fn features(&self) -> Features {
        let (locks, redirects) = (self.locks.features(), self.redirects.features());
        Features {
            redirects: redirects.redirects,
            takes_over: locks.takes_over && redirects.takes_over,
            waits: locks.waits || redirects.waits,
            splits: locks.splits && redirects.splits,
            ..locks
        }
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let held = Both {
            guard: Some(self.locks.lock(flows, lease)?),
            unlocked: None,
            lease,
            redirects: self.redirects.clone(),
            of_other: Vec::new(),
        };
        Ok(LockGuard::new(flows.to_vec(), Box::new(held)))
    }

    /// See [`Locker::take_over`]: the first locker takes over what it holds, and then the other one, whose locks and
    /// redirects end behind that.
    ///
    /// # Errors
    ///
    /// As the two lockers document.
    fn take_over(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let guard = self.locks.take_over(flows, lease)?;
        let other = match self.redirects.take_over(flows, lease) {
            Ok(other) => other,
            Err(error) => {
                // What cannot be given back stays locked until its lease ends; the first error is the one to tell.
                let _ = guard.give_back();
                return Err(error);
            }
        };
        let of_other = other.taken_over().to_vec();
        let taken = [guard.taken_over(), &of_other].concat();
        // From here on the lock keeps packets away that a redirect would have sent on.
        let mut held = Both {
            guard: Some(guard),
            unlocked: None,
            lease,
            redirects: self.redirects.clone(),
            of_other,
        };
        if let Err(error) = other.release() {
            let _ = held.give_back(flows, &taken);
            return Err(error);
        }
        let flows = flows.to_vec();
        Ok(LockGuard::with_taken(flows, Box::new(held), taken))
    }

    fn get_ready(&self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        self.redirects.get_ready(hop, lease)
    }

    fn end_redirects(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        self.redirects.end_redirects(flows)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        let mut swept = self.locks.sweep()?;
        let other = self.redirects.sweep()?;
        swept.flows.extend(other.flows);
        swept.structures.extend(other.structures);
        Ok(swept)
    }

    fn redirects(&self, flow: &FourTuple) -> Result<bool, LockError> {
        Ok(self.redirects.redirects(flow)? || self.locks.redirects(flow)?)
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        let mut entries = self.locks.list()?;
        entries.extend(self.redirects.list()?);
        Ok(entries)
    }
}

struct Both {
    // None once it has ended.
    guard: Option<LockGuard>,
    /// What is left of it.
    unlocked: Option<Unlocked>,
    lease: Duration,
    redirects: Arc<dyn Locker>,
    /// What the other locker held, of what was taken over.
    of_other: Vec<Entry>,
}

impl Both {
    fn guard(&mut self) -> Result<&mut LockGuard, LockError> {
        // Nobody asks after its end: the guard around this sees to that.
        let ended = LockError::Unsupported {
            locker: "ended",
            operation: "go on",
        };
        self.guard.as_mut().ok_or(ended)
    }
}

impl LockBackend for Both {
    fn renew(&mut self, _: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.guard()?.renew(lease)?;
        self.lease = self.lease.max(lease);
        Ok(())
    }

    fn unlock(&mut self, _: &[FourTuple]) -> Result<(), LockError> {
        self.unlocked = self.guard.take().map(LockGuard::unlocked).transpose()?;
        Ok(())
    }

    fn release(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        // The redirects first: what they would still forward is kept from here by the lock.
        self.redirects.lock(flows, self.lease)?.release()?;
        self.unlocked = self.guard.take().map(LockGuard::released).transpose()?;
        Ok(())
    }

    fn give_back(&mut self, _: &[FourTuple], _: &[Entry]) -> Result<(), LockError> {
        let mut hops: HashMap<NextHop, (Vec<FourTuple>, Duration)> = HashMap::new();
        for entry in &self.of_other {
            match entry.redirected() {
                Some((hop, lease)) => {
                    let (flows, longest) = hops.entry(hop).or_default();
                    flows.push(entry.flow);
                    *longest = (*longest).max(lease);
                }
                None => self
                    .redirects
                    .lock(&[entry.flow], entry.remaining)?
                    .detach(),
            }
        }
        for (hop, (flows, lease)) in hops {
            let other = self.redirects.lock(&flows, self.lease)?;
            other.redirect(&hop, lease)?.detach();
        }
        // Last: until here it keeps the packets away.
        self.guard.take().map_or(Ok(()), LockGuard::give_back)
    }

    fn captured(&mut self, _: &[FourTuple]) -> Result<Captured, LockError> {
        self.guard()?.captured()
    }

    fn left_over(&mut self, _: &[FourTuple]) -> Result<Captured, LockError> {
        self.unlocked
            .as_mut()
            .map_or(Ok(Captured::new()), Unlocked::captured)
    }

    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn LockBackend>>> {
        let parts = match self.guard.take()?.split() {
            Ok(parts) => parts,
            Err(whole) => {
                self.guard = Some(whole);
                return None;
            }
        };
        let part = |(flow, guard): (&FourTuple, LockGuard)| -> Box<dyn LockBackend> {
            let of_other = self.of_other.iter().filter(|entry| entry.flow == *flow);
            Box::new(Self {
                guard: Some(guard),
                unlocked: None,
                lease: self.lease,
                redirects: Arc::clone(&self.redirects),
                of_other: of_other.cloned().collect(),
            })
        };
        Some(flows.iter().zip(parts).map(part).collect())
    }

    fn redirect(
        &mut self,
        flows: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        let mut other = self.redirects.lock(flows, lease)?;
        let redirect = other.try_redirect(hop, lease)?;
        let captured = self.guard()?.captured();
        self.unlock(flows)?;
        Ok(Box::new(Redirected {
            redirect: Some(redirect),
            captured,
        }))
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        // Left to its lease, as the guard around this was.
        if let Some(guard) = self.guard.take() {
            guard.detach();
        }
    }
}

struct Redirected {
    // None once it has ended.
    redirect: Option<Redirect>,
    /// Of the lock before it, until it is handed over.
    captured: Result<Captured, LockError>,
}

impl RedirectBackend for Redirected {
    fn renew(&mut self, _: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.redirect.as_mut().map_or(Ok(()), |r| r.renew(lease))
    }

    fn closed(&mut self, _: &[FourTuple]) -> Result<Vec<FourTuple>, LockError> {
        let redirect = self.redirect.as_mut();
        redirect.map_or(Ok(Vec::new()), Redirect::closed)
    }

    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn RedirectBackend>>> {
        let parts = match self.redirect.take()?.split() {
            Ok(parts) => parts,
            Err(whole) => {
                self.redirect = Some(whole);
                return None;
            }
        };
        // An error was about all of them: the first one reports it.
        let mut captured = std::mem::replace(&mut self.captured, Ok(Captured::new()));
        let part = |(flow, redirect): (&FourTuple, Redirect)| -> Box<dyn RedirectBackend> {
            Box::new(Self {
                redirect: Some(redirect),
                captured: captured_of(flow, &mut captured),
            })
        };
        Some(flows.iter().zip(parts).map(part).collect())
    }

    fn end(&mut self, _: &[FourTuple]) -> Result<(), LockError> {
        self.redirect.take().map_or(Ok(()), Redirect::end)
    }

    fn captured(&mut self, _: &[FourTuple]) -> Result<Captured, LockError> {
        std::mem::replace(&mut self.captured, Ok(Captured::new()))
    }
}

/// Takes out what was captured for one of the flows.
fn captured_of(
    flow: &FourTuple,
    all: &mut Result<Captured, LockError>,
) -> Result<Captured, LockError> {
    let Ok(rest) = all else {
        return std::mem::replace(all, Ok(Captured::new()));
    };
    let mut own = Captured::new();
    own.overflowed = rest.overflowed;
    own.packets = rest
        .packets
        .extract_if(.., |packet| packet.flow == *flow)
        .collect();
    Ok(own)
}

impl Drop for Redirected {
    fn drop(&mut self) {
        // As above.
        if let Some(redirect) = self.redirect.take() {
            redirect.detach();
        }
    }
}
