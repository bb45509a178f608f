//! What a locker is.

use std::any::Any;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpmig_format::FourTuple;

use crate::{Captured, Features, LockError, LockGuard, NextHop, Owner};

/// What a locker answers that lacks an operation; its own name is not known where these stand.
const NO_CAPTURE: LockError = LockError::Unsupported {
    locker: "chosen",
    operation: "capture",
};
const NO_REDIRECT: LockError = LockError::Unsupported {
    locker: "chosen",
    operation: "redirect",
};

/// Something that can keep the packets of single connections from passing.
///
/// The calls of a locker and of its guards are synchronous, and may come from any thread. One that can wait says so in
/// [`Features::waits`]; async programs (such as the drivers of the crate `tcpmig`) then call it from threads of their own.
///
/// # What an implementation has to do
///
/// The conformance suite demands it of every locker, and `examples/custom_locker.rs` is one from outside that passes. Guards are
/// made with [`LockGuard::new`] from a [`LockBackend`]. Five methods have no default: [`name`](Self::name), [`lock`](Self::lock)
/// and [`list`](Self::list) here, and [`renew`](LockBackend::renew) and [`unlock`](LockBackend::unlock) there.
///
/// - [`check_request`](crate::check_request) comes first: a list that names a flow twice is [`LockError::Duplicate`], a lease of zero
///   [`LockError::LeaseZero`].
/// - A guard is about its own lock. When its lease has ended and somebody has locked the flow anew, the old guard neither prolongs nor
///   ends that: [`LockBackend::renew`] is [`LockError::NotHeld`] then, and [`LockBackend::unlock`] does nothing.
/// - A handle belongs to the network namespace of the thread that made it, whatever thread uses it.
/// - An [`Entry`] of [`list`](Self::list) has its age and its owner beside what [`Entry::new`] takes
///   ([`Entry::owned_by`]), by which others can tell whether its holder lives.
pub trait Locker: Send + Sync {
    /// The name that users choose this locker by, for example `nftables`.
    fn name(&self) -> &'static str;

    /// What this handle can do and what it cannot, as it is set up now.
    ///
    /// The conformance suite (feature `conformance`) holds a locker to its word: what is claimed here has to work, and
    /// what is not claimed has to be refused.
    fn features(&self) -> Features {
        Features::default()
    }

    /// Silences these flows in both directions: what arrives for them is not delivered, and what this host sends for
    /// them does not leave.
    ///
    /// All of them, or none: after an error no flow of the list is locked by this call, and locks that others hold
    /// are as they were. The lock ends with the guard, and at the latest after `lease`, also if this process is gone
    /// by then. An empty list is allowed.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if somebody, also this process, holds a lock of one of the flows. Others as the
    /// locker documents.
    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError>;

    /// Like [`lock`](Self::lock), and makes locks and redirects of these flows that a process left behind which has ended
    /// this process's own, with no moment in between in which a packet passes or is answered. A redirect ends in the step
    /// in which its flow is locked. Flows that nobody holds are locked. A lock that would have lasted for longer than
    /// `lease` ends when it would have ended.
    ///
    /// [`LockGuard::taken_over`] tells what that was, and [`LockGuard::give_back`] undoes it.
    ///
    /// All of them, or none, as for [`lock`](Self::lock).
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if the process that made or last renewed a lock or redirect lives, or if that is not
    /// known ([`Entry::owner_may_live`]). [`LockError::Unsupported`] for a locker that cannot, which is what this
    /// answers unless it is implemented. Others as for [`lock`](Self::lock).
    fn take_over(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let _ = (flows, lease);
        Err(LockError::Unsupported {
            locker: self.name(),
            operation: "take over what another process left",
        })
    }

    /// Does now what the first [redirect](crate::LockGuard::redirect) by this hop and with this lease would have to do, so that
    /// no connection stands still for it. Redirects nothing; does nothing unless it is implemented.
    ///
    /// # Errors
    ///
    /// As for the redirect.
    fn get_ready(&self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        let _ = (hop, lease);
        Ok(())
    }

    /// Ends the redirects of these flows, whoever made them: for who knows the flows and has no guard. Packets of them that arrive
    /// are delivered here, and answered. A flow without a redirect is not an error.
    ///
    /// Unless it is implemented, this locks the flows for a moment and [releases](LockGuard::release) them.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock), and for [`LockGuard::release`].
    fn end_redirects(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        if flows.is_empty() {
            return Ok(());
        }
        self.lock(flows, Duration::from_secs(1))?.release()
    }

    /// Whether packets of this flow that arrive here are redirected, whoever made the redirect: then the connection lives where
    /// they go, and a lock would silence it there.
    ///
    /// Unless it is implemented, this looks it up in [`list`](Self::list).
    ///
    /// # Errors
    ///
    /// As for [`list`](Self::list).
    fn redirects(&self, flow: &FourTuple) -> Result<bool, LockError> {
        let redirects =
            |entry: &Entry| entry.flow == *flow && matches!(entry.kind, EntryKind::Redirect { .. });
        Ok(self.list()?.iter().any(redirects))
    }

    /// Removes what is stale, and says what that was: locks whose lease ended, and what dead holders left behind that
    /// holds nothing any more. Never ends a lock or redirect whose lease still runs.
    ///
    /// Unless it is implemented, this does nothing: for a locker of which nothing is left once a lease has ended.
    ///
    /// # Errors
    ///
    /// As the locker documents.
    fn sweep(&self) -> Result<Swept, LockError> {
        Ok(Swept::default())
    }

    /// The locks and redirects that are held now, whoever made them.
    ///
    /// # Errors
    ///
    /// As the locker documents.
    fn list(&self) -> Result<Vec<Entry>, LockError>;
}

/// What a [`LockGuard`] holds: the part of a locker that ends or prolongs one lock.
///
/// `flows` is always the whole list that was locked. A guard calls [`unlock`](Self::unlock),
/// [`release`](Self::release) and a successful [`redirect`](Self::redirect) at most once, and nothing after it but
/// [`left_over`](Self::left_over) after the first two.
pub trait LockBackend: Send + Sync {
    /// Prolongs the lock: it ends `lease` from now, or later if it would have ended later anyway. **Never shortens
    /// it**: several parts of a program may renew one lock, each with the lease that it needs itself.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the lock of a flow has ended: then nothing is prolonged.
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError>;

    /// Ends the lock. A flow whose lease ran out before is not an error.
    ///
    /// # Errors
    ///
    /// As the locker documents. The lock is then left to its lease.
    fn unlock(&mut self, flows: &[FourTuple]) -> Result<(), LockError>;

    /// Ends the lock, and in the same step every redirect of these flows. For a locker that cannot redirect this is
    /// [`unlock`](Self::unlock).
    ///
    /// # Errors
    ///
    /// As for [`unlock`](Self::unlock).
    fn release(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        self.unlock(flows)
    }

    /// Ends a lock that began with [`Locker::take_over`]: flows that were held before are held again as they were
    /// (`taken`, in no order), for as long as they would have been, and the others are unlocked.
    ///
    /// Unless it is implemented, this unlocks if nothing was taken over, and leaves all flows to their leases otherwise.
    /// A locker that redirects and takes over has to implement it.
    ///
    /// # Errors
    ///
    /// As the locker documents. The flows are then locked until their leases end.
    fn give_back(&mut self, flows: &[FourTuple], taken: &[Entry]) -> Result<(), LockError> {
        if taken.is_empty() {
            return self.unlock(flows);
        }
        Ok(())
    }

    /// Hands over what has arrived for these flows since the lock began, or since the last call, in the order in
    /// which it arrived. Waits for nothing.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] for a locker that does not capture, which is what this answers unless it is
    /// implemented; [`LockError::NotHeld`] if the lock of a flow has ended, so that packets may have passed.
    fn captured(&mut self, flows: &[FourTuple]) -> Result<Captured, LockError> {
        let _ = flows;
        Err(NO_CAPTURE)
    }

    /// After the lock has ended: what had arrived by then and was not handed over, because it came between the last call of
    /// [`captured`](Self::captured) and the end. Nothing, unless it is implemented.
    ///
    /// # Errors
    ///
    /// As for [`captured`](Self::captured).
    fn left_over(&mut self, flows: &[FourTuple]) -> Result<Captured, LockError> {
        let _ = flows;
        Ok(Captured::new())
    }

    /// Makes one lock of each flow, in their order, with what was captured for it. What this was before is not used any more. `None`
    /// for a locker that cannot, which is what this answers unless it is implemented.
    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn LockBackend>>> {
        let _ = flows;
        None
    }

    /// Turns the lock into a redirect, with no moment in between in which a packet passes. After an error the lock is
    /// as it was.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] for a locker that cannot, which is what this answers unless it is implemented.
    fn redirect(
        &mut self,
        flows: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        let _ = (flows, hop, lease);
        Err(NO_REDIRECT)
    }

    /// For a locker that works on several of its locks in one step ([`release_with`](Self::release_with),
    /// [`redirect_with`](Self::redirect_with)), and has to know its own. `None` unless it is implemented.
    fn as_any(&mut self) -> Option<&mut dyn Any> {
        None
    }

    /// Does for this lock and others what [`release`](Self::release) does for each. `None` if nothing was done, because the
    /// locker cannot, or one of them is of another locker or has ended: which is what this answers unless it is implemented.
    fn release_with(
        &mut self,
        flows: &[FourTuple],
        others: &mut [(&[FourTuple], &mut dyn LockBackend)],
    ) -> Option<Result<(), LockError>> {
        let _ = (flows, others);
        None
    }

    /// Does for this lock and others what [`redirect`](Self::redirect) does for each: either all are redirected, this one first, or all
    /// are as they were. `None` as [`release_with`](Self::release_with).
    fn redirect_with(
        &mut self,
        flows: &[FourTuple],
        others: &mut [(&[FourTuple], &mut dyn LockBackend)],
        hop: &NextHop,
        lease: Duration,
    ) -> Option<Result<Vec<Box<dyn RedirectBackend>>, LockError>> {
        let _ = (flows, others, hop, lease);
        None
    }
}

/// What a [`Redirect`](crate::Redirect) holds: the part of a locker that ends or prolongs one redirect.
pub trait RedirectBackend: Send + Sync {
    /// Prolongs the redirect: it ends `lease` from now, or later if it would have ended later anyway, as
    /// [`LockBackend::renew`]. Flows that have [closed](Self::closed) are left alone.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the redirect of another flow has ended: then nothing is prolonged.
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError>;

    /// Makes sure that the redirect is there, and changes no lease. A locker that is told what others do to its
    /// redirects can answer without asking for them; by default this is the shortest [renewal](Self::renew).
    ///
    /// # Errors
    ///
    /// Those of [`renew`](Self::renew).
    fn check(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        self.renew(flows, Duration::from_millis(1))
    }

    /// Those of the flows whose end was seen (both ends have closed, or one has aborted). Their redirects end by
    /// themselves; until then late segments are sent on. None for a locker that does not look, which is what this
    /// answers unless it is implemented.
    ///
    /// # Errors
    ///
    /// As the locker documents.
    fn closed(&mut self, flows: &[FourTuple]) -> Result<Vec<FourTuple>, LockError> {
        let _ = flows;
        Ok(Vec::new())
    }

    /// Makes one redirect of each flow, as [`LockBackend::split`].
    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn RedirectBackend>>> {
        let _ = flows;
        None
    }

    /// Ends the redirect. A flow whose lease ran out before is not an error.
    ///
    /// # Errors
    ///
    /// As the locker documents. The redirect is then left to its lease.
    fn end(&mut self, flows: &[FourTuple]) -> Result<(), LockError>;

    /// Hands over what arrived for these flows before the redirect began and was not handed over yet. See
    /// [`LockBackend::captured`].
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] for a locker that does not capture, which is what this answers unless it is
    /// implemented.
    fn captured(&mut self, flows: &[FourTuple]) -> Result<Captured, LockError> {
        let _ = flows;
        Err(NO_CAPTURE)
    }
}

/// A lock or redirect that is held now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The flow, seen from this host.
    pub flow: FourTuple,
    /// Which of the two it is.
    pub kind: EntryKind,
    /// How long the lease still runs.
    pub remaining: Duration,
    /// How long ago it was made or last renewed, if the locker knows it.
    pub age: Option<Duration>,
    /// The process that made or last renewed it, as numbered in its own pid namespace, if the locker knows it.
    pub owner: Option<u32>,
    /// The name of that process (its `comm`), if the locker knows it.
    pub owner_name: Option<String>,
    /// When that process was started ([`Owner::started`]), if the locker knows it.
    pub owner_started: Option<u64>,
    /// The pid namespace of that process ([`Owner::namespace`]), if the locker knows it.
    pub owner_namespace: Option<u64>,
    /// Of a redirect: whether the flow's end was seen, so that the redirect ends soon after the last packet.
    pub closing: bool,
}

impl Entry {
    /// An entry whose age and owner are not known.
    #[must_use]
    pub fn new(flow: FourTuple, kind: EntryKind, remaining: Duration) -> Self {
        Self {
            flow,
            kind,
            remaining,
            age: None,
            owner: None,
            owner_name: None,
            owner_started: None,
            owner_namespace: None,
            closing: false,
        }
    }

    /// The same entry, made or last renewed by this process.
    #[must_use]
    pub fn owned_by(mut self, owner: &Owner) -> Self {
        self.owner = Some(owner.pid);
        self.owner_name = Some(owner.name.clone());
        self.owner_started = owner.started;
        self.owner_namespace = owner.namespace;
        self
    }

    /// Where a redirect goes, and the lease that it was made with, by which traffic keeps it up.
    pub(crate) fn redirected(&self) -> Option<(NextHop, Duration)> {
        let EntryKind::Redirect { address, device } = &self.kind else {
            return None;
        };
        let hop = NextHop {
            device: device.clone(),
            address: *address,
            ingress: device.clone(),
        };
        Some((hop, self.remaining + self.age.unwrap_or_default()))
    }

    /// Whether the process that made or last renewed it lives, or may live ([`Owner::may_live`]). True also if it is not
    /// known which that is.
    #[must_use]
    pub fn owner_may_live(&self) -> bool {
        let Some(pid) = self.owner else {
            return true;
        };
        let mut owner = Owner::new(pid, self.owner_name.clone().unwrap_or_default());
        owner.started = self.owner_started;
        owner.namespace = self.owner_namespace;
        owner.may_live()
    }
}

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryKind {
    /// The flow is silent in both directions.
    Lock,
    /// What arrives for the flow is sent on, and this host says nothing for it.
    Redirect {
        /// The address of the next hop.
        address: IpAddr,
        /// The device it leaves by.
        device: String,
    },
    /// This host says nothing for the flow, and nothing is sent on: its redirect is over. [`Locker::sweep`] ends it.
    Silent,
}

/// What [`Locker::sweep`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Flows whose lease had ended and whose entry was still there; of `nftables`, whose entries the kernel removes by
    /// itself, those for which this host was silent though their redirect was over.
    pub flows: Vec<FourTuple>,
    /// Structures that held nothing any more, for example `inet tcpmig`.
    pub structures: Vec<String>,
}

impl Swept {
    /// Whether there was nothing to remove.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.structures.is_empty()
    }
}

macro_rules! by_pointer {
    ($($pointer:ident),*) => { $(
        impl<L: Locker + ?Sized> Locker for $pointer<L> {
            fn name(&self) -> &'static str {
                (**self).name()
            }

            fn features(&self) -> Features {
                (**self).features()
            }

            fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
                (**self).lock(flows, lease)
            }

            fn take_over(
                &self,
                flows: &[FourTuple],
                lease: Duration,
            ) -> Result<LockGuard, LockError> {
                (**self).take_over(flows, lease)
            }

            fn get_ready(&self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
                (**self).get_ready(hop, lease)
            }

            fn end_redirects(&self, flows: &[FourTuple]) -> Result<(), LockError> {
                (**self).end_redirects(flows)
            }

            fn redirects(&self, flow: &FourTuple) -> Result<bool, LockError> {
                (**self).redirects(flow)
            }

            fn sweep(&self) -> Result<Swept, LockError> {
                (**self).sweep()
            }

            fn list(&self) -> Result<Vec<Entry>, LockError> {
                (**self).list()
            }
        }
    )* };
}

by_pointer!(Arc, Box);

/// What is wrong with a lock whatever the locker: for the beginning of [`Locker::lock`].
///
/// # Errors
///
/// [`LockError::LeaseZero`] for a lease of zero, [`LockError::Duplicate`] for a flow that is named twice.
pub fn check_request(flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
    if lease.is_zero() {
        return Err(LockError::LeaseZero);
    }
    let mut seen = HashSet::with_capacity(flows.len());
    match flows.iter().find(|flow| !seen.insert(**flow)) {
        Some(flow) => Err(LockError::Duplicate(*flow)),
        None => Ok(()),
    }
}
