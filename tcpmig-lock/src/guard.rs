//! The guards that callers hold.

use std::fmt;
use std::mem;
use std::time::Duration;

use tcpmig_format::FourTuple;

use crate::{Captured, Entry, LockBackend, LockError, NextHop, RedirectBackend};

/// Flows that are locked. Dropping it unlocks them, and an error of that is lost: [`unlock`](Self::unlock) reports
/// it.
///
/// The lock ends by itself when its lease does. The guard may be used from any thread, also one in another network
/// namespace.
#[must_use = "dropping the guard unlocks the flows"]
pub struct LockGuard {
    flows: Vec<FourTuple>,
    /// None once the lock has ended or was left to its lease.
    held: Option<Box<dyn LockBackend>>,
    /// What the flows were before, of those that were taken over.
    taken: Vec<Entry>,
}

impl LockGuard {
    /// A guard for flows that a [`Locker`](crate::Locker) has just locked.
    pub fn new(flows: Vec<FourTuple>, held: Box<dyn LockBackend>) -> Self {
        Self {
            flows,
            held: Some(held),
            taken: Vec::new(),
        }
    }

    /// A guard for flows that a [`Locker`](crate::Locker) has just locked with
    /// [`take_over`](crate::Locker::take_over): `taken` says what those of them were that somebody held before, with
    /// one entry or more for each.
    pub fn with_taken(
        flows: Vec<FourTuple>,
        held: Box<dyn LockBackend>,
        taken: Vec<Entry>,
    ) -> Self {
        let mut guard = Self::new(flows, held);
        guard.taken = taken;
        guard
    }

    /// What those of the flows were, until this guard began, that were
    /// [taken over](crate::Locker::take_over): as [`Locker::list`](crate::Locker::list) shows it. Empty if nobody held
    /// any of them.
    #[must_use]
    pub fn taken_over(&self) -> &[Entry] {
        &self.taken
    }

    /// Ends a lock that began with [`take_over`](crate::Locker::take_over) as if it had not been: what was locked stays
    /// locked and what was redirected is redirected again, each left to the lease that it had, without a
    /// moment in between in which a packet passes or is answered; what nobody held is unlocked. For who took over and
    /// could not do what he wanted.
    ///
    /// The owner that others see is this process.
    ///
    /// # Errors
    ///
    /// If the locker could not do it: the flows are then locked until their leases end.
    pub fn give_back(mut self) -> Result<(), LockError> {
        match self.held.take() {
            Some(mut held) => held.give_back(&self.flows, &self.taken),
            None => Ok(()),
        }
    }

    /// The flows, in the order in which they were given.
    #[must_use]
    pub fn flows(&self) -> &[FourTuple] {
        &self.flows
    }

    /// Prolongs the lock: it now ends `lease` from now. A renewal never shortens: a lock that would end later than that
    /// stays as it is.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the lease of a flow ended before, so that its packets may have passed, or if
    /// [`try_redirect`](Self::try_redirect) has ended the lock. After any error the leases are as they were.
    pub fn renew(&mut self, lease: Duration) -> Result<(), LockError> {
        match (&mut self.held, self.flows.first()) {
            (Some(held), _) => held.renew(&self.flows, lease),
            (None, Some(flow)) => Err(LockError::NotHeld(*flow)),
            (None, None) => Ok(()),
        }
    }

    /// Hands over what has arrived for the flows since the lock began, or since the last call: incoming packets only,
    /// in the order in which they arrived. Waits for nothing; a packet that was dropped before the call is there.
    ///
    /// Packets keep arriving, so what is to go with a connection that leaves is asked for **after**
    /// [`try_redirect`](Self::try_redirect), with [`Redirect::captured`]: from the redirect on nothing is captured
    /// here any more, and what arrived before and was not handed over yet is there. Where the lock ends otherwise,
    /// [`Unlocked::captured`] has what arrived between the last call and its end; what is never asked for is lost, as it
    /// would be without capture.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the locker does not capture, [`LockError::NotHeld`] if the lease of a flow ended
    /// before, so that its packets may have passed, or if [`try_redirect`](Self::try_redirect) has ended the lock.
    pub fn captured(&mut self) -> Result<Captured, LockError> {
        match (&mut self.held, self.flows.first()) {
            (Some(held), _) => held.captured(&self.flows),
            (None, Some(flow)) => Err(LockError::NotHeld(*flow)),
            (None, None) => Ok(Captured::new()),
        }
    }

    /// Ends the lock. Flows whose lease ran out before are not an error, and a redirect that an earlier holder left
    /// for them stays.
    ///
    /// # Errors
    ///
    /// If the locker could not end it: the flows are then locked until the lease ends.
    pub fn unlock(self) -> Result<(), LockError> {
        self.unlocked().map(drop)
    }

    /// Like [`unlock`](Self::unlock), and what arrived in the last moment of the lock can still be asked for.
    ///
    /// # Errors
    ///
    /// As for [`unlock`](Self::unlock).
    pub fn unlocked(mut self) -> Result<Unlocked, LockError> {
        let mut held = self.held.take();
        if let Some(held) = &mut held {
            held.unlock(&self.flows)?;
        }
        Ok(Unlocked::new(&mut self, held))
    }

    /// Ends the lock and, in the same atomic step, every redirect of these flows that an earlier holder left here:
    /// what a target does when it takes a connection over that was here before. For flows without a redirect it is
    /// the same as [`unlock`](Self::unlock).
    ///
    /// # Errors
    ///
    /// If the locker could not do it: lock and redirect are then left to their leases.
    pub fn release(self) -> Result<(), LockError> {
        self.released().map(drop)
    }

    /// Like [`release`](Self::release), and what arrived in the last moment of the lock can still be asked for.
    ///
    /// # Errors
    ///
    /// As for [`release`](Self::release).
    pub fn released(mut self) -> Result<Unlocked, LockError> {
        let mut held = self.held.take();
        if let Some(held) = &mut held {
            held.release(&self.flows)?;
        }
        self.held = held;
        Ok(self.ended())
    }

    /// Ends the lock as a redirect: from now on packets of these flows that arrive here are sent on to `hop`, and
    /// this host still says nothing for them. In one atomic step: no packet is delivered here or answered in between.
    /// An older redirect of the same flows is replaced.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] for a locker that cannot redirect, [`LockError::NotHeld`] if the lease of a flow
    /// ended before, [`LockError::HopFamily`], [`LockError::NoDevice`]. After any error nothing has been redirected
    /// and **the flows stay locked until their lease ends**, because silence is the safe side while it is open who
    /// owns the connection. [`try_redirect`](Self::try_redirect) keeps the guard instead.
    pub fn redirect(mut self, hop: &NextHop, lease: Duration) -> Result<Redirect, LockError> {
        let result = self.try_redirect(hop, lease);
        self.detach();
        result
    }

    /// Like [`redirect`](Self::redirect), but after an error the guard still holds the lock. After success the guard
    /// holds nothing, and dropping it does nothing; what it has captured goes to the [`Redirect`].
    ///
    /// # Errors
    ///
    /// As for [`redirect`](Self::redirect). The lock is then as it was.
    pub fn try_redirect(&mut self, hop: &NextHop, lease: Duration) -> Result<Redirect, LockError> {
        let Some(held) = &mut self.held else {
            return match self.flows.first() {
                Some(flow) => Err(LockError::NotHeld(*flow)),
                None => Ok(Redirect::new(Vec::new(), None)),
            };
        };
        let redirecting = held.redirect(&self.flows, hop, lease)?;
        Ok(self.redirected(redirecting))
    }

    /// Makes one guard of each flow, in their order: for who locks many in one step and has each go its own way. What was captured goes
    /// along with its flow.
    ///
    /// # Errors
    ///
    /// The guard as it was, if the locker cannot split ([`Features::splits`](crate::Features::splits)).
    pub fn split(mut self) -> Result<Vec<Self>, Self> {
        let Some(held) = &mut self.held else {
            return Ok(Vec::new());
        };
        let Some(parts) = held.split(&self.flows) else {
            return Err(self);
        };
        self.held = None;
        let (flows, taken) = (mem::take(&mut self.flows), mem::take(&mut self.taken));
        let guard = |(flow, held)| {
            let taken = taken.iter().filter(|entry| entry.flow == flow);
            Self::with_taken(vec![flow], held, taken.cloned().collect())
        };
        Ok(flows.into_iter().zip(parts).map(guard).collect())
    }

    /// Leaves the lock to its lease: nothing is undone here any more.
    pub fn detach(mut self) {
        self.held = None;
    }

    /// Its flows and what it holds, until that has ended.
    pub(crate) fn part(&mut self) -> Option<(&[FourTuple], &mut dyn LockBackend)> {
        let held = self.held.as_deref_mut()?;
        Some((&self.flows, held))
    }

    /// Its lock was ended.
    pub(crate) fn ended(mut self) -> Unlocked {
        let held = self.held.take();
        Unlocked::new(&mut self, held)
    }

    /// Its lock was ended as this redirect.
    pub(crate) fn redirected(&mut self, redirecting: Box<dyn RedirectBackend>) -> Redirect {
        self.held = None;
        Redirect::new(self.flows.clone(), Some(redirecting))
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(mut held) = self.held.take() {
            // Nobody is there to tell; the lease ends the lock all the same.
            let _ = held.unlock(&self.flows);
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("flows", &self.flows)
            .field("held", &self.held.is_some())
            .finish()
    }
}

/// What is left of a lock that has ended: packets that it dropped in its last moment, between the last call of
/// [`LockGuard::captured`] and its end. They would be lost otherwise, until the peer sends them again.
#[must_use = "it has the last packets that the lock dropped"]
pub struct Unlocked {
    flows: Vec<FourTuple>,
    held: Option<Box<dyn LockBackend>>,
}

impl Unlocked {
    fn new(guard: &mut LockGuard, held: Option<Box<dyn LockBackend>>) -> Self {
        Self {
            flows: mem::take(&mut guard.flows),
            held,
        }
    }

    /// Hands over what arrived before the lock ended and was not handed over yet. A packet that another processor was dropping
    /// at that moment may be there only a little later: this can be called again.
    ///
    /// Nothing with a locker that does not capture.
    ///
    /// # Errors
    ///
    /// As the locker documents.
    pub fn captured(&mut self) -> Result<Captured, LockError> {
        match &mut self.held {
            Some(held) => held.left_over(&self.flows),
            None => Ok(Captured::new()),
        }
    }
}

impl fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unlocked")
            .field("flows", &self.flows)
            .finish_non_exhaustive()
    }
}

/// Flows whose packets are sent on to another host. Dropping it ends that, as [`end`](Self::end) does, and an error
/// of that is lost.
///
/// The redirect ends by itself when its lease does. After its end this host answers packets of a flow that still
/// arrive with RST, unless the connection's socket is here again: keep it until they no longer come.
#[must_use = "dropping it ends the redirect"]
pub struct Redirect {
    flows: Vec<FourTuple>,
    redirecting: Option<Box<dyn RedirectBackend>>,
}

impl Redirect {
    fn new(flows: Vec<FourTuple>, redirecting: Option<Box<dyn RedirectBackend>>) -> Self {
        Self { flows, redirecting }
    }

    /// The flows, in the order in which they were locked.
    #[must_use]
    pub fn flows(&self) -> &[FourTuple] {
        &self.flows
    }

    /// Prolongs the redirect: it now ends `lease` from now. A renewal never shortens: a redirect that would end later
    /// than that stays as it is. Flows that have [closed](Self::closed) are left alone, so
    /// whoever renews as long as some are open renews as long as the flows live.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the redirect of a flow has ended otherwise, or was replaced by a newer one. After any
    /// error the leases are as they were.
    pub fn renew(&mut self, lease: Duration) -> Result<(), LockError> {
        match &mut self.redirecting {
            Some(redirecting) => redirecting.renew(&self.flows, lease),
            None => Ok(()),
        }
    }

    /// Makes sure that the redirect is there: somebody may have flushed the rules that it consists of. Prolongs nothing.
    ///
    /// # Errors
    ///
    /// Those of [`renew`](Self::renew).
    pub fn check(&mut self) -> Result<(), LockError> {
        match &mut self.redirecting {
            Some(redirecting) => redirecting.check(&self.flows),
            None => Ok(()),
        }
    }

    /// Hands over what arrived for the flows during the lock that this redirect ended, and was not handed over by
    /// [`LockGuard::captured`] before. Waits for nothing, and once it has answered there is no more to come.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the locker does not capture.
    pub fn captured(&mut self) -> Result<Captured, LockError> {
        match &mut self.redirecting {
            Some(redirecting) => redirecting.captured(&self.flows),
            None => Ok(Captured::new()),
        }
    }

    /// Those of the flows whose end was seen in the packets that were sent on: the peer has sent FIN or RST. The
    /// redirect of such a flow ends by itself some time after its last packet (see
    /// [`Nftables::closing_time`](crate::Nftables::closing_time)), and with this call or the next
    /// [`renew`](Self::renew) after that, so does this host's silence for it.
    ///
    /// # Errors
    ///
    /// As the locker documents.
    pub fn closed(&mut self) -> Result<Vec<FourTuple>, LockError> {
        match &mut self.redirecting {
            Some(redirecting) => redirecting.closed(&self.flows),
            None => Ok(Vec::new()),
        }
    }

    /// Ends the redirect: packets of these flows that arrive here are delivered here, and answered. A flow that has
    /// been released, or redirected again, through the same locker is left alone.
    ///
    /// # Errors
    ///
    /// If the locker could not end it: the redirect then stays until its lease ends.
    pub fn end(mut self) -> Result<(), LockError> {
        match self.redirecting.take() {
            Some(mut redirecting) => redirecting.end(&self.flows),
            None => Ok(()),
        }
    }

    /// Makes one redirect of each flow, as [`LockGuard::split`].
    ///
    /// # Errors
    ///
    /// The redirect as it was, if the locker cannot split.
    pub fn split(mut self) -> Result<Vec<Self>, Self> {
        let Some(redirecting) = &mut self.redirecting else {
            return Ok(Vec::new());
        };
        let Some(parts) = redirecting.split(&self.flows) else {
            return Err(self);
        };
        self.redirecting = None;
        let flows = mem::take(&mut self.flows).into_iter();
        let redirect = |(flow, part)| Self::new(vec![flow], Some(part));
        Ok(flows.zip(parts).map(redirect).collect())
    }

    /// Leaves the redirect to its lease: nothing is undone here any more.
    pub fn detach(mut self) {
        self.redirecting = None;
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        if let Some(mut redirecting) = self.redirecting.take() {
            // Nobody is there to tell; the lease ends the redirect all the same.
            let _ = redirecting.end(&self.flows);
        }
    }
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirect")
            .field("flows", &self.flows)
            .field("held", &self.redirecting.is_some())
            .finish()
    }
}
