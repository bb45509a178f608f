//! The lock under which `tcpmig restore` brings a connection to life.
//!
//! On a host where nobody holds the connection's packets it is an ordinary lock. Where it was dumped, the lock or the
//! redirect of that dump still runs, and its process has ended: then it is taken over, so that the connection can come back
//! without a moment in which its peer gets an answer. If the restore fails it is given back.

use std::time::Duration;

use anyhow::{Context, bail};
use tcpmig::options::Unsupported;
use tcpmig::restore::{Activated, Prepared, RestoreError};
use tcpmig_format::{FourTuple, Image};
use tcpmig_lock::{Backend, LockError, LockGuard, Locker};

use super::locks::{Held, held, holder};
use super::restore::Witness;

/// How long the packets stay locked at least if this process dies in between.
const LEASE: Duration = Duration::from_secs(10);

/// Restores a connection. If it fails, what held its packets before holds them again.
///
/// The witness gets its socket before it lives.
pub(super) fn restore(
    image: Image,
    backend: &Backend,
    unsupported: Unsupported,
    witness: &Witness,
) -> anyhow::Result<Activated> {
    let locker = tcpmig::locker::open(backend).context("lock")?;
    let flow = image.ip().ok_or(RestoreError::Layer("IP"))?.flow;
    // Before the lock: some of these take long to ask.
    let others = held_otherwise(flow, backend)?;
    let lease = others.iter().map(|held| held.entry.remaining).max();
    let lease = lease.unwrap_or_default().max(LEASE);
    let guard = lock(&*locker, flow, lease)?;
    tracing::debug!(%flow, "its packets are locked");
    // A device that is unplugged has no route, without which nothing can be built.
    release(
        flow,
        others.iter().filter(|held| held.source.name == "link"),
    )?;
    let mut prepared = match Prepared::build_locked(image, guard, lease, unsupported) {
        Ok(prepared) => prepared,
        Err(not) => {
            give_back(not.lock);
            let error = anyhow::Error::from(not.error);
            return Err(match backend {
                Backend::Link(device) => error.context(format!(
                    "while {device} is unplugged (a connection that uses it needs another locker)"
                )),
                _ => error,
            });
        }
    };
    if let Err(error) = release(flow, others.iter()) {
        give_back(prepared.discard());
        return Err(error);
    }
    match prepared.settle() {
        Ok(socket) => witness.hold(socket),
        Err(error) => {
            give_back(prepared.discard());
            return Err(error.into());
        }
    }
    prepared.activate_with([]).map_err(|not| {
        witness.forget();
        if let Some(lock) = not.lock {
            give_back(lock);
        }
        not.error.into()
    })
}

/// Locks its packets, or takes the lock or redirect over that a process has left which has ended.
pub(super) fn lock(
    locker: &dyn Locker,
    flow: FourTuple,
    lease: Duration,
) -> anyhow::Result<LockGuard> {
    let locked = match locker.take_over(&[flow], lease) {
        Err(LockError::Unsupported { .. }) => locker.lock(&[flow], lease),
        other => other,
    };
    locked.map_err(|error| {
        let named = || {
            let entries = locker.list().ok()?;
            let entry = entries.iter().find(|entry| entry.flow == flow)?;
            Some(format!("held by {}", holder(entry)))
        };
        let is_held = matches!(error, LockError::AlreadyLocked(_));
        let error = anyhow::Error::from(RestoreError::from(error));
        match is_held.then(named).flatten() {
            Some(by) => error.context(by),
            None => error,
        }
    })
}

/// What of a connection is held in other ways than by this locker, by processes that have ended: a dump may have been told
/// another one.
fn held_otherwise(flow: FourTuple, backend: &Backend) -> anyhow::Result<Vec<Held>> {
    let own = match backend {
        Backend::Link(_) => "link".to_owned(),
        other => other.to_string(),
    };
    let mut others = held(&[flow])?;
    // The default flavour of iptables is one of the two.
    others.retain(|held| {
        let name = held.source.name;
        name != own && !(own == "iptables" && name.starts_with("iptables-"))
    });
    if let Some(held) = others.iter().find(|held| held.entry.owner_may_live()) {
        bail!(
            "{flow} is already locked with {}, by {}",
            held.source.name,
            held.holder()
        );
    }
    Ok(others)
}

fn release<'a>(flow: FourTuple, held: impl Iterator<Item = &'a Held>) -> anyhow::Result<()> {
    for held in held {
        (held.source.release)(&[flow]).context(held.source.name)?;
    }
    Ok(())
}

/// The restore failed for another reason, and that is what is said.
fn give_back(lock: LockGuard) {
    if let Err(error) = lock.give_back() {
        tracing::warn!(%error, "the packets stay locked until the lease ends");
    }
}
