//! Several guards at once: one step of the locker for all of them costs little more than for one.

use std::time::Duration;

use crate::{LockBackend, LockError, LockGuard, Locker, NextHop, Redirect, Unlocked};
use tcpmig_format::FourTuple;

impl LockGuard {
    /// Locks each of these flows with a guard of its own, in one step if the locker [can](crate::Features::splits) and all of them can be
    /// locked; otherwise one after the other. One that cannot be locked hinders no other.
    pub fn lock_each(
        locker: &dyn Locker,
        flows: &[FourTuple],
        lease: Duration,
    ) -> Vec<Result<Self, LockError>> {
        if flows.len() > 1
            && locker.features().splits
            && let Ok(all) = locker.lock(flows, lease)
            // One that is not split is dropped, and so unlocked.
            && let Ok(each) = all.split()
        {
            return each.into_iter().map(Ok).collect();
        }
        let lock = |flow| locker.lock(std::slice::from_ref(flow), lease);
        flows.iter().map(lock).collect()
    }

    /// Does what [`released`](Self::released) does for each of these guards, in one step if they are of one locker that can;
    /// otherwise one after the other.
    ///
    /// # Errors
    ///
    /// Of each guard, as for [`released`](Self::released).
    pub fn release_each(mut guards: Vec<Self>) -> Vec<Result<Unlocked, LockError>> {
        if let Some(Ok(())) = with_all(
            &mut guards.iter_mut().collect::<Vec<_>>(),
            |first, others| {
                let (flows, held) = first;
                held.release_with(flows, others)
            },
        ) {
            return guards.into_iter().map(Self::ended).map(Ok).collect();
        }
        guards.into_iter().map(Self::released).collect()
    }

    /// Does what [`try_redirect`](Self::try_redirect) does for each of these guards, in one step if they are of one locker that can and all
    /// of them can be redirected; otherwise one after the other.
    ///
    /// # Errors
    ///
    /// Of each guard, as for [`try_redirect`](Self::try_redirect).
    pub fn redirect_each(
        guards: &mut [&mut Self],
        hop: &NextHop,
        lease: Duration,
    ) -> Vec<Result<Redirect, LockError>> {
        if let Some(Ok(redirects)) = with_all(guards, |(flows, held), others| {
            held.redirect_with(flows, others, hop, lease)
        }) {
            let guards = guards.iter_mut();
            return guards
                .zip(redirects)
                .map(|(guard, redirect)| Ok(guard.redirected(redirect)))
                .collect();
        }
        let redirect = |guard: &mut &mut Self| guard.try_redirect(hop, lease);
        guards.iter_mut().map(redirect).collect()
    }
}

type Part<'a> = (&'a [FourTuple], &'a mut dyn LockBackend);

/// Works on the locks of several guards, if there are several and all hold theirs.
fn with_all<T>(
    guards: &mut [&mut LockGuard],
    work: impl FnOnce(Part<'_>, &mut [Part<'_>]) -> Option<T>,
) -> Option<T> {
    let parts: Option<Vec<Part<'_>>> = guards.iter_mut().map(|guard| guard.part()).collect();
    let mut parts = parts?.into_iter();
    let first = parts.next()?;
    let mut others: Vec<_> = parts.collect();
    if others.is_empty() {
        return None;
    }
    work(first, &mut others)
}
