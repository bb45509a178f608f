//! What a process left behind, for others to take over.

use std::time::{Duration, Instant};

use super::checks::{assert_locked, locked, refused, wait_for_nothing, within_lease};
use super::faults::{Holder, MARGIN, SHORT};
use super::lab::{Connection, eventually, expect_nothing};
use super::{Ground, LEASE, Setup};
use crate::{EntryKind, LockError, Locker, Scope};

/// A copy of both ends of a connection, for a holder.
fn copy(connection: &Connection) -> Connection {
    Connection {
        server: connection.server.try_clone().expect("dup"),
        client: connection.client.try_clone().expect("dup"),
    }
}

/// Whether the locker takes over; asserts that one that does not refuses to.
fn takes_over(locker: &dyn Locker, connection: &Connection) -> bool {
    if !locker.features().takes_over {
        refused(
            locker.take_over(&[connection.flow()], LEASE),
            "Locker::take_over of a locker whose features do not have it",
            "Unsupported",
            |error| matches!(error, LockError::Unsupported { .. }),
        );
    }
    locker.features().takes_over
}

/// The lock of a dead process becomes another one's, which lasts for its own lease; given back, it lasts as it would have.
pub(super) fn from_dead(test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut dead = ground.connection(Ground::addresses()[0]);
    let mut free = ground.connection(Ground::addresses()[1]);
    if !takes_over(&*locker, &dead) {
        return;
    }
    let flows = [dead.flow(), free.flow()];
    let taking = |lease| {
        wait_for_nothing(&*locker);
        let (mut holder, _client) = Holder::start(test, &ground, copy(&dead), Some(lease));
        holder.wait_for("locked");
        let start = Instant::now();
        let owner = holder.child.id();
        holder.kill();
        let guard = locker.take_over(&flows, LEASE).expect("take over");
        assert_eq!(guard.flows(), flows);
        assert_locked(&*locker, &flows);
        if features.remembers {
            let taken = guard.taken_over();
            assert_eq!(taken.len(), 1, "{taken:?}");
            assert_eq!(
                (taken[0].flow, &taken[0].kind, taken[0].owner),
                (flows[0], &EntryKind::Lock, Some(owner))
            );
        }
        (guard, start)
    };
    let ((guard, start), lease) = within_lease(SHORT, taking);
    if !features.remembers {
        assert_eq!(guard.taken_over(), []);
        dead.ping();
        return guard.give_back().expect("give back");
    }
    for entry in locker.list().expect("list") {
        assert_eq!(entry.owner, Some(std::process::id()), "{entry:?}");
        assert!(entry.owner_may_live());
        assert!(entry.remaining > LEASE / 2, "{entry:?}");
    }
    ground.expect_locked(features.silence, &mut dead);
    ground.expect_locked(features.silence, &mut free);
    // Past what the dead one's lease was, the new one lasts.
    while start.elapsed() < lease + MARGIN {
        expect_nothing(&dead.server);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_locked(&*locker, &flows);
    guard.unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut dead);
    Ground::expect_unlocked(features.silence, &mut free);
    assert_locked(&*locker, &[]);

    // The same once more, and given back.
    let given_back = |lease| {
        wait_for_nothing(&*locker);
        let mut dead = ground.connection(Ground::addresses()[0]);
        let mut free = ground.connection(Ground::addresses()[1]);
        let flows = [dead.flow(), free.flow()];
        let (mut holder, _client) = Holder::start(test, &ground, copy(&dead), Some(lease));
        holder.wait_for("locked");
        holder.kill();
        let guard = locker.take_over(&flows, lease).expect("take over");
        guard.give_back().expect("give back");
        assert_locked(&*locker, &flows[..1]);
        if features.silence == Scope::Flows {
            free.ping();
        }
        ground.expect_locked(features.silence, &mut dead);
        (dead, free)
    };
    let ((mut dead, mut free), _) = within_lease(Duration::from_secs(8), given_back);
    // This process lives, and may be faster than a sweep.
    eventually("the lease ends", || {
        locker.sweep().expect("sweep");
        locked(&*locker).is_empty().then_some(())
    });
    Ground::expect_unlocked(features.silence, &mut dead);
    free.ping();
}

/// What a process holds that lives stays its own, and so does everything else of that call.
pub(super) fn from_living(test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut held = ground.connection(Ground::addresses()[0]);
    let mut free = ground.connection(Ground::addresses()[1]);
    if !takes_over(&*locker, &held) {
        return;
    }
    let (held_flow, free_flow) = (held.flow(), free.flow());
    let refuse = || {
        let result = locker.take_over(&[free_flow, held_flow], LEASE);
        if features.remembers {
            refused(
                result,
                "Locker::take_over of a flow that a living process holds",
                "AlreadyLocked with the flow that it holds",
                |error| matches!(error, LockError::AlreadyLocked(flow) if *flow == held_flow),
            );
            assert_locked(&*locker, &[held_flow]);
        } else {
            drop(result.expect("one that does not remember"));
        }
    };
    // This process.
    let guard = setup.locker(&ground).lock(&[held_flow], LEASE);
    refuse();
    if features.silence == Scope::Flows {
        free.ping();
    }
    ground.expect_locked(features.silence, &mut held);
    guard.expect("lock").unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut held);
    // Another one.
    let (mut holder, _client) = Holder::start(test, &ground, copy(&held), Some(LEASE));
    holder.wait_for("locked");
    refuse();
    holder.kill();
    let guard = locker.take_over(&[held_flow, free_flow], LEASE);
    guard.expect("take over").unlock().expect("unlock");
    held.ping();
    free.ping();
}

/// Taking over is locking where there is nothing to take over, and refuses the same.
pub(super) fn from_nobody(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let before = setup.traces(&ground);
    let locker = setup.locker(&ground);
    let silence = locker.features().silence;
    let mut flow = ground.connection(Ground::addresses()[0]);
    if !takes_over(&*locker, &flow) {
        return;
    }
    for end in [crate::LockGuard::unlock, crate::LockGuard::give_back] {
        let guard = locker.take_over(&[flow.flow()], LEASE).expect("take over");
        assert_eq!(guard.taken_over(), []);
        assert_locked(&*locker, &[flow.flow()]);
        ground.expect_locked(silence, &mut flow);
        end(guard).expect("the end");
        Ground::expect_unlocked(silence, &mut flow);
        assert_locked(&*locker, &[]);
    }
    refused(
        locker.take_over(&[flow.flow(), flow.flow()], LEASE),
        "Locker::take_over with a flow that is named twice",
        "Duplicate with that flow",
        |error| matches!(error, LockError::Duplicate(twice) if *twice == flow.flow()),
    );
    refused(
        locker.take_over(&[flow.flow()], Duration::ZERO),
        "Locker::take_over with a lease of zero",
        "LeaseZero",
        |error| matches!(error, LockError::LeaseZero),
    );
    drop(locker.take_over(&[], LEASE).expect("nothing"));
    flow.ping();
    locker.sweep().expect("sweep");
    locker.sweep().expect("sweep");
    super::expect_traces(setup, &ground, &before);
}
