//! What keeps a connection's packets away, for as long as somebody counts on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;
use tcpmig_lock::{LockError, LockGuard, Locker, NextHop, Packet, Redirect, Unlocked};

/// Something whose lease is renewed until it is over.
pub(crate) trait Keep: Send + Sync {
    /// Renews the lease, and takes again what had ended. How soon to come back; `None` when nothing is left to keep.
    fn keep(&self, locker: &dyn Locker) -> Option<Duration>;
}

/// How soon to try again what failed, or was in use.
const AGAIN: Duration = Duration::from_millis(50);

/// At the longest, so that a lock which somebody removed is not missed for long.
const EVERY: Duration = Duration::from_secs(10);

/// How often a lease of this length is renewed: late once is early enough.
pub(crate) fn every(lease: Duration) -> Duration {
    (lease / 3).min(EVERY)
}

/// Renews a lock. One that has ended is taken again: whoever holds it counts on it for as long as it is there, and what it
/// stands for, a socket that is mute, has missed nothing.
pub(crate) fn hold_on(
    lock: &mut LockGuard,
    lease: Duration,
    locker: &dyn Locker,
) -> Result<(), LockError> {
    match lock.renew(lease) {
        Err(LockError::NotHeld(flow)) => {
            let newer = locker.lock(lock.flows(), lease)?;
            // It would end the newer one of the same flows.
            std::mem::replace(lock, newer).detach();
            said_again(flow, "lock");
            Ok(())
        }
        renewed => renewed,
    }
}

fn said_again(flow: FourTuple, what: &str) {
    tracing::warn!(%flow, "the {what} of a connection that stands still had ended, and was re-created");
}

/// When [`Keep::keep`] comes back.
pub(crate) fn next(renewed: &Result<(), LockError>, every: Duration) -> Duration {
    match renewed {
        Ok(()) => every,
        Err(error) => {
            tracing::warn!("a connection that stands still was not kept from its packets: {error}");
            AGAIN.max(every.min(Duration::from_secs(1)))
        }
    }
}

/// A lock or a redirect. Dropping it ends it.
///
/// It is shared with whoever renews it meanwhile.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// `None` once it has ended. Apart, because whoever renews it remembers the rest for a while after that.
    held: Option<Box<Held>>,
    /// The redirect that a lock stands for meanwhile.
    suspended: Option<(NextHop, Duration)>,
    /// What was captured by what is held no more.
    earlier: Vec<Packet>,
    renewed: Instant,
    every: Duration,
}

/// Each with the lease that it was made with: a lock ends soon if its holder dies, a redirect lives for as long as
/// packets of the flow may still come here.
#[derive(Debug)]
enum Held {
    Locked(LockGuard, Duration),
    Redirected(Redirect, Duration, NextHop),
}

impl Hold {
    pub(crate) fn locked(lock: LockGuard, lease: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            held: Some(Box::new(Held::Locked(lock, lease))),
            suspended: None,
            earlier: Vec::new(),
            renewed: Instant::now(),
            every: every(lease),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        state(&self.0)
    }

    /// For whoever keeps it.
    pub(crate) fn to_keep(&self) -> (Weak<dyn Keep>, Duration) {
        let every = self.state().every;
        let shared: Arc<dyn Keep> = self.0.clone();
        (Arc::downgrade(&shared), every)
    }

    /// Those of [`Frozen::captured`](crate::capture::Frozen::captured).
    pub(crate) fn captured(&mut self) -> Result<Vec<Packet>, LockError> {
        let state = &mut *self.state();
        let newer = state
            .held
            .as_mut()
            .map_or(Ok(Vec::new()), |held| held.captured())?;
        let mut packets = std::mem::take(&mut state.earlier);
        packets.extend(newer);
        Ok(packets)
    }

    /// Makes a redirect of a lock.
    pub(crate) fn redirect(&mut self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        self.state().redirect(hop, lease)
    }

    /// For whoever redirects several in one step.
    #[cfg(feature = "driver")]
    pub(crate) fn holding(&self) -> Holding {
        Holding(self.0.clone())
    }

    /// Locks what is redirected, with this lease, until it is [resumed](Self::resume). On an error it is redirected still.
    #[cfg(feature = "driver")]
    pub(crate) fn suspend(
        &mut self,
        locker: &dyn Locker,
        lease: Duration,
    ) -> Result<(), LockError> {
        let state = &mut *self.state();
        let Some(held) = &mut state.held else {
            return Ok(());
        };
        let Held::Redirected(redirect, ..) = &**held else {
            return Ok(());
        };
        // Before the redirect ends, so that no packet passes in between.
        let lock = locker.lock(redirect.flows(), lease)?;
        match std::mem::replace(&mut **held, Held::Locked(lock, lease)) {
            Held::Redirected(mut redirect, lease, hop) => {
                let captured = redirect.captured().unwrap_or_default();
                state.earlier.extend(captured.packets);
                state.suspended = Some((hop, lease));
                redirect.end()
            }
            Held::Locked(..) => Ok(()),
        }
    }

    /// Redirects again what was [suspended](Self::suspend).
    #[cfg(feature = "driver")]
    pub(crate) fn resume(&mut self) -> Result<(), LockError> {
        let suspended = self.state().suspended.take();
        suspended.map_or(Ok(()), |(hop, lease)| self.redirect(&hop, lease))
    }

    /// Prolongs it by its own lease.
    pub(crate) fn renew(&mut self) -> Result<(), LockError> {
        let mut state = self.state();
        state.held.as_mut().map_or(Ok(()), |held| held.renew())
    }

    /// Makes sure that it is there, and lasts for its lease if it was not looked at for a while: from here on no socket keeps
    /// this host silent. Whoever sets up what somebody flushed may not have come to it yet.
    pub(crate) fn make_sure(&mut self, locker: &dyn Locker) {
        let state = &mut *self.state();
        let is_late = state.renewed.elapsed() >= state.every;
        // One that takes long to answer is asked when it is time only.
        if is_late || (!locker.features().waits && !state.is_there()) {
            let renewed = state.hold_on(locker);
            next(&renewed, state.every);
        }
    }

    /// Ends it; also what had arrived until then and was not handed over yet, and where to look for what another processor was
    /// dropping just then.
    pub(crate) fn end(self) -> (Vec<Packet>, Result<Option<Unlocked>, LockError>) {
        let state = &mut *self.state();
        let mut packets = std::mem::take(&mut state.earlier);
        let ended = match state.held.take().map(|held| *held) {
            Some(Held::Locked(lock, _)) => lock.unlocked().map(|mut unlocked| {
                // One that ended before has nothing more.
                packets.extend(unlocked.captured().unwrap_or_default().packets);
                Some(unlocked)
            }),
            Some(Held::Redirected(mut redirect, ..)) => {
                packets.extend(redirect.captured().unwrap_or_default().packets);
                redirect.end().map(|()| None)
            }
            None => Ok(None),
        };
        (packets, ended)
    }

    /// Leaves it to its lease.
    pub(crate) fn detach(self) {
        if let Some(held) = self.state().held.take() {
            held.detach();
        }
    }
}

/// A panic elsewhere left it as it was: its steps are complete or not begun.
fn state(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a [`Hold`] holds, for as long as that is so.
#[cfg(feature = "driver")]
#[derive(Clone)]
pub(crate) struct Holding(Arc<Mutex<State>>);

/// Like [`Hold::redirect`] for each of these, in one step if they can be redirected together.
#[cfg(feature = "driver")]
pub(crate) fn redirect_each(
    all: &[Holding],
    hop: &NextHop,
    lease: Duration,
) -> Vec<Result<(), LockError>> {
    // Whoever else has one of them locks no second one.
    let mut states: Vec<_> = all.iter().map(|holding| state(&holding.0)).collect();
    let locks = states.iter_mut().map(|state| state.lock());
    let Some(mut locks) = locks.collect::<Option<Vec<_>>>() else {
        return states
            .iter_mut()
            .map(|state| state.redirect(hop, lease))
            .collect();
    };
    let redirects = LockGuard::redirect_each(&mut locks, hop, lease);
    let redirected = |(state, redirect): (&mut MutexGuard<'_, State>, Result<Redirect, _>)| {
        state.redirected(redirect?, hop, lease);
        Ok(())
    };
    states.iter_mut().zip(redirects).map(redirected).collect()
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Here and now, also if it is being renewed.
        let held = self.state().held.take();
        drop(held);
    }
}

impl State {
    /// If it is one.
    fn lock(&mut self) -> Option<&mut LockGuard> {
        match self.held.as_deref_mut() {
            Some(Held::Locked(lock, _)) => Some(lock),
            _ => None,
        }
    }

    fn redirect(&mut self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        if let Some(lock) = self.lock() {
            let redirect = lock.try_redirect(hop, lease)?;
            self.redirected(redirect, hop, lease);
        }
        Ok(())
    }

    fn redirected(&mut self, redirect: Redirect, hop: &NextHop, lease: Duration) {
        self.held = Some(Box::new(Held::Redirected(redirect, lease, hop.clone())));
    }

    /// Whether it has not ended; what cannot be asked may have.
    fn is_there(&mut self) -> bool {
        match self.held.as_deref_mut() {
            // A renewal never shortens a lease, and changes nothing of one that runs for longer anyway.
            Some(Held::Locked(lock, _)) => lock.renew(Duration::from_millis(1)).is_ok(),
            Some(Held::Redirected(redirect, ..)) => redirect.check().is_ok(),
            None => true,
        }
    }

    fn hold_on(&mut self, locker: &dyn Locker) -> Result<(), LockError> {
        let Some(held) = &mut self.held else {
            return Ok(());
        };
        let renewed = match held.renew() {
            Err(LockError::NotHeld(_)) => held.again(locker).map(|packets| {
                self.earlier.extend(packets);
            }),
            renewed => renewed,
        };
        if renewed.is_ok() {
            self.renewed = Instant::now();
        }
        renewed
    }
}

impl Keep for Mutex<State> {
    fn keep(&self, locker: &dyn Locker) -> Option<Duration> {
        let mut state = match self.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Some(AGAIN),
        };
        state.held.as_ref()?;
        let renewed = state.hold_on(locker);
        Some(next(&renewed, state.every))
    }
}

impl Held {
    fn captured(&mut self) -> Result<Vec<Packet>, LockError> {
        let captured = match self {
            Self::Locked(lock, _) => lock.captured(),
            Self::Redirected(redirect, ..) => redirect.captured(),
        };
        match captured {
            // What did not fit is as if it had been lost on the way: the peer sends it again.
            Ok(captured) => Ok(captured.packets),
            Err(LockError::Unsupported { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn renew(&mut self) -> Result<(), LockError> {
        match self {
            Self::Locked(lock, lease) => lock.renew(*lease),
            Self::Redirected(redirect, lease, _) => redirect.renew(*lease),
        }
    }

    /// Takes again what has ended; what the older one had captured.
    fn again(&mut self, locker: &dyn Locker) -> Result<Vec<Packet>, LockError> {
        let captured = self.captured().unwrap_or_default();
        match self {
            Self::Locked(lock, lease) => hold_on(lock, *lease, locker)?,
            Self::Redirected(redirect, lease, hop) => {
                let flows = redirect.flows().to_vec();
                let mut lock = locker.lock(&flows, *lease)?;
                let newer = lock.try_redirect(hop, *lease)?;
                std::mem::replace(redirect, newer).detach();
                if let Some(flow) = flows.first() {
                    said_again(*flow, "redirect");
                }
            }
        }
        Ok(captured)
    }

    fn detach(self) {
        match self {
            Self::Locked(lock, _) => lock.detach(),
            Self::Redirected(redirect, ..) => redirect.detach(),
        }
    }
}
