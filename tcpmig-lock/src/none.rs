//! The locker that locks nothing.

use std::time::Duration;

use tcpmig_format::FourTuple;

use crate::check_request;
use crate::{
    Entry, Features, LeaseEnd, LockBackend, LockError, LockGuard, Locker, NextHop, RedirectBackend,
    Scope,
};

/// The `none` locker: it does nothing, because the caller keeps the packets away by other means.
///
/// Every lock succeeds at once, nothing is remembered, and nothing can be redirected.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLock;

const NAME: &str = "none";

impl Locker for NoLock {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        Features {
            silence: Scope::Nothing,
            lease: LeaseEnd::Nothing,
            remembers: false,
            takes_over: true,
            waits: false,
            ..Features::default()
        }
    }

    /// See [`Locker::lock`].
    ///
    /// # Errors
    ///
    /// [`LockError::Duplicate`], [`LockError::LeaseZero`].
    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        check_request(flows, lease)?;
        Ok(LockGuard::new(flows.to_vec(), Box::new(Nothing)))
    }

    /// The same as [`lock`](Locker::lock): nothing is held that could be taken over.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Locker::lock).
    fn take_over(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.lock(flows, lease)
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        Ok(Vec::new())
    }
}

struct Nothing;

impl LockBackend for Nothing {
    fn renew(&mut self, _flows: &[FourTuple], _lease: Duration) -> Result<(), LockError> {
        Ok(())
    }

    fn unlock(&mut self, _flows: &[FourTuple]) -> Result<(), LockError> {
        Ok(())
    }

    fn redirect(
        &mut self,
        _flows: &[FourTuple],
        _hop: &NextHop,
        _lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        Err(LockError::Unsupported {
            locker: NAME,
            operation: "redirect",
        })
    }
}
