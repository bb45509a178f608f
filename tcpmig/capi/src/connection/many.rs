//! Locks of many connections, in one step where that can be done.

use std::time::Duration;

use tcpmig_format::FourTuple;
use tcpmig_lock::{LockError, LockGuard, Locker};

/// One lock of each flow, in their order.
pub(crate) fn lock_each(
    locker: &dyn Locker,
    flows: &[FourTuple],
    lease: Duration,
) -> Vec<Result<LockGuard, LockError>> {
    if locker.features().splits
        && let Ok(guards) = locker.lock(flows, lease).map(LockGuard::split)
    {
        match guards {
            Ok(guards) if guards.len() == flows.len() => {
                return guards.into_iter().map(Ok).collect();
            }
            // Dropped, so that each can be locked by itself.
            _ => {}
        }
    }
    // One that cannot be locked must not keep the others.
    let each = |flow: &FourTuple| locker.lock(&[*flow], lease);
    flows.iter().map(each).collect()
}
