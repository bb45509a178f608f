//! What the guards of this locker hold.

use std::any::Any;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::names::Set;
use super::registry::HopData;
use super::shared::Shared;
use crate::capture::CaptureHandle;
use crate::{Captured, Entry, LockBackend, LockError, NextHop, RedirectBackend};

/// A lock. Once `until` has passed, the lock of a flow may be somebody else's: then nothing is touched.
pub(super) struct Lock {
    pub(super) shared: Arc<Shared>,
    pub(super) until: Instant,
    pub(super) capture: CaptureHandle,
}

/// What a handle says that was not told to capture.
const NOT_CAPTURING: LockError = LockError::Unsupported {
    locker: "nftables",
    operation: "capture without Nftables::capturing",
};

impl Lock {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// The error for a lock that is over, if it had any flow.
    fn check(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        match flows.first() {
            Some(flow) if self.is_over() => Err(LockError::NotHeld(*flow)),
            _ => Ok(()),
        }
    }
}

impl LockBackend for Lock {
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.check(flows)?;
        self.until = self.shared.renew_lock(flows, lease, self.until)?;
        Ok(())
    }

    fn unlock(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        if self.is_over() {
            return Ok(());
        }
        let mut state = self.shared.state();
        self.shared.remove(&mut state, flows, &[Set::Locked])
    }

    fn release(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        self.shared.release(flows, !self.is_over())
    }

    fn give_back(&mut self, flows: &[FourTuple], taken: &[Entry]) -> Result<(), LockError> {
        // What was taken over would have ended by then, too.
        if self.is_over() {
            return Ok(());
        }
        let mut state = self.shared.state();
        self.shared.catch_up(&mut state);
        self.shared.give_back(&mut state, flows, taken, self.until)
    }

    fn captured(&mut self, flows: &[FourTuple]) -> Result<Captured, LockError> {
        let share = self.capture.share().ok_or(NOT_CAPTURING)?;
        self.check(flows)?;
        share.captured()
    }

    fn left_over(&mut self, _flows: &[FourTuple]) -> Result<Captured, LockError> {
        self.capture.left_over()
    }

    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn LockBackend>>> {
        let part = |capture| -> Box<dyn LockBackend> {
            Box::new(Self {
                shared: Arc::clone(&self.shared),
                until: self.until,
                capture,
            })
        };
        let captures = self.capture.split(flows);
        Some(captures.into_iter().map(part).collect())
    }

    fn redirect(
        &mut self,
        flows: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        self.check(flows)?;
        let (token, data) = self.shared.redirect(flows, hop, lease, self.until)?;
        Ok(self.redirected(flows, token, data))
    }

    fn as_any(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }

    fn release_with(
        &mut self,
        flows: &[FourTuple],
        others: &mut [(&[FourTuple], &mut dyn LockBackend)],
    ) -> Option<Result<(), LockError>> {
        let (all, _) = self.together(flows, others)?;
        Some(self.shared.release(&all, true))
    }

    fn redirect_with(
        &mut self,
        flows: &[FourTuple],
        others: &mut [(&[FourTuple], &mut dyn LockBackend)],
        hop: &NextHop,
        lease: Duration,
    ) -> Option<Result<Vec<Box<dyn RedirectBackend>>, LockError>> {
        let (all, until) = self.together(flows, others)?;
        let (token, data) = match self.shared.redirect(&all, hop, lease, until) {
            Ok(done) => done,
            Err(error) => return Some(Err(error)),
        };
        let mut redirects = vec![self.redirected(flows, token, data.clone())];
        for (flows, other) in others {
            // INVARIANT: they were found to be its own.
            let other = own(*other).expect("a lock of this locker");
            redirects.push(other.redirected(flows, token, data.clone()));
        }
        Some(Ok(redirects))
    }
}

/// One of this kind of locker.
fn own(other: &mut dyn LockBackend) -> Option<&mut Lock> {
    other.as_any()?.downcast_mut()
}

impl Lock {
    /// The flows of this lock and of others of the same handle, and until when all of them last. None if one has ended.
    fn together(
        &self,
        flows: &[FourTuple],
        others: &mut [(&[FourTuple], &mut dyn LockBackend)],
    ) -> Option<(Vec<FourTuple>, Instant)> {
        let mut all = flows.to_vec();
        let mut until = self.until;
        for (flows, other) in others {
            let other = own(*other).filter(|other| Arc::ptr_eq(&other.shared, &self.shared))?;
            all.extend_from_slice(flows);
            until = until.min(other.until);
        }
        (Instant::now() < until).then_some((all, until))
    }

    fn redirected(
        &mut self,
        flows: &[FourTuple],
        token: u64,
        data: Arc<HopData>,
    ) -> Box<dyn RedirectBackend> {
        Box::new(Redirected {
            shared: Arc::clone(&self.shared),
            flows: flows.to_vec(),
            over: Vec::new(),
            token,
            data,
            capture: mem::take(&mut self.capture),
        })
    }
}

struct Redirected {
    shared: Arc<Shared>,
    /// Those that are not over.
    flows: Vec<FourTuple>,
    /// Those that ended with their flow.
    over: Vec<FourTuple>,
    token: u64,
    data: Arc<HopData>,
    /// For what arrived before the redirect.
    capture: CaptureHandle,
}

impl Redirected {
    fn end_closed(&mut self) -> Result<(), LockError> {
        let over = self.shared.end_closed(&self.flows, self.token)?;
        self.flows.retain(|flow| !over.contains(flow));
        self.over.extend(over);
        Ok(())
    }
}

impl RedirectBackend for Redirected {
    fn renew(&mut self, _flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.end_closed()?;
        let data = &mut self.data;
        self.shared
            .renew_redirect(&self.flows, self.token, data, lease)
    }

    fn check(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        if self.shared.are_there(&self.flows, self.token)? {
            return Ok(());
        }
        // A renewal never shortens, so it changes nothing.
        self.renew(flows, Duration::from_millis(1))
    }

    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn RedirectBackend>>> {
        // From here on each forgets its own.
        let (open, over) = (mem::take(&mut self.flows), mem::take(&mut self.over));
        let captures = self.capture.split(flows);
        let part = |(flow, capture): (&FourTuple, _)| -> Box<dyn RedirectBackend> {
            let of =
                |all: &[FourTuple]| all.iter().filter(|other| *other == flow).copied().collect();
            Box::new(Self {
                shared: Arc::clone(&self.shared),
                flows: of(&open),
                over: of(&over),
                token: self.token,
                data: Arc::clone(&self.data),
                capture,
            })
        };
        Some(flows.iter().zip(captures).map(part).collect())
    }

    fn closed(&mut self, _flows: &[FourTuple]) -> Result<Vec<FourTuple>, LockError> {
        self.end_closed()?;
        let mut closed = self.over.clone();
        closed.extend(self.shared.closing(&self.flows)?);
        Ok(closed)
    }

    fn end(&mut self, _flows: &[FourTuple]) -> Result<(), LockError> {
        self.shared.end_own_redirects(&self.flows, self.token)
    }

    fn captured(&mut self, _flows: &[FourTuple]) -> Result<Captured, LockError> {
        self.capture.share().ok_or(NOT_CAPTURING)?.captured()
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        self.shared.forget_redirects(&self.flows, self.token);
    }
}
