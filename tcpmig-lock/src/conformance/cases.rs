//! The cases.

use std::time::{Duration, Instant};

use super::checks::{assert_locked, flows, locked, refused, wait_for_nothing, within_lease};
use super::lab::{Connection, eventually, expect, expect_nothing, send, slowed};
use super::{Case, Ground, LEASE, Setup, faults, take_over};
use crate::{EntryKind, LockError, Locker, NextHop, Packet, Scope};

macro_rules! cases {
    ($($name:ident: $run:path,)*) => {
        /// All cases.
        pub const CASES: &[Case] = &[$(Case { name: stringify!($name), run: $run }),*];
    };
}

cases! {
    a_locked_flow_is_silent_both_ways_until_unlocked: silent_until_unlocked,
    others_are_as_silent_as_promised: others,
    flows_of_both_families_are_locked_in_one_call: both_families,
    a_second_lock_is_refused_and_nothing_of_it_holds: second_lock,
    what_makes_no_sense_is_refused_and_locks_nothing: nonsense,
    a_lease_ends_by_itself: lease_ends,
    a_renewed_lease_lasts: renewed,
    a_renewal_never_shortens: never_shortened,
    unlocking_what_is_over_is_no_error: unlock_twice,
    dropping_unlocks_and_detaching_does_not: drop_and_detach,
    the_list_names_flow_lease_age_and_owner: list,
    sweep_leaves_what_holds_and_nothing_else: sweep,
    packets_with_an_exempt_mark_pass: exempt,
    what_arrives_is_captured: capture,
    what_cannot_be_redirected_stays_locked: redirect,
    a_locker_keeps_its_namespace: namespace,
    many_flows_in_one_call: many,
    a_lock_of_many_is_split_as_promised: split,
    a_killed_holder_leaves_its_lock_to_the_lease: faults::killed_holder,
    a_killed_holder_takes_no_other_lock_with_it: faults::killed_beside_another,
    holders_killed_at_random_leave_nothing_behind: faults::killed_at_random,
    what_a_dead_holder_left_is_taken_over_and_given_back: take_over::from_dead,
    what_a_living_holder_has_is_not_taken_over: take_over::from_living,
    what_nobody_holds_is_locked_by_taking_over: take_over::from_nobody,
}

fn silent_until_unlocked(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let silence = locker.features().silence;
    for address in Ground::addresses() {
        let mut flow = ground.connection(address);
        flow.ping();
        let guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
        assert_eq!(guard.flows(), [flow.flow()]);
        ground.expect_locked(silence, &mut flow);
        guard.unlock().expect("unlock");
        Ground::expect_unlocked(silence, &mut flow);
    }
    assert_locked(&*locker, &[]);
}

fn others(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let silence = locker.features().silence;
    let mut flow = ground.connection(Ground::addresses()[0]);
    let mut beside = Ground::addresses().map(|address| ground.connection(address));
    let mut elsewhere = Ground::other_addresses().map(|address| ground.connection(address));
    let guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
    for connection in &mut elsewhere {
        connection.ping();
    }
    for connection in &mut beside {
        match silence {
            Scope::Flows | Scope::Nothing => connection.ping(),
            Scope::Device => ground.expect_silence(connection),
        }
    }
    // New ones too.
    if silence != Scope::Device {
        ground.connection(Ground::addresses()[0]).ping();
    }
    ground.connection(Ground::other_addresses()[0]).ping();
    drop(guard);
    flow.ping();
    for connection in &mut beside {
        match silence {
            Scope::Flows | Scope::Nothing => connection.ping(),
            Scope::Device => Ground::expect_sound(connection),
        }
    }
}

fn both_families(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let silence = locker.features().silence;
    let mut connections = Ground::addresses().map(|address| ground.connection(address));
    let flows = connections.each_ref().map(Connection::flow);
    let guard = locker.lock(&flows, LEASE).expect("lock");
    assert_locked(&*locker, &flows);
    for connection in &mut connections {
        ground.expect_locked(silence, connection);
    }
    guard.unlock().expect("unlock");
    for connection in &mut connections {
        Ground::expect_unlocked(silence, connection);
    }
}

fn second_lock(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let (first, second) = (setup.locker(&ground), setup.locker(&ground));
    let features = first.features();
    let mut held = ground.connection(Ground::addresses()[0]);
    let mut free = ground.connection(Ground::addresses()[1]);
    let guard = first.lock(&[held.flow()], LEASE).expect("lock");
    // The flow that is held last, so that the other would be locked by the time it is found.
    for locker in [&first, &second] {
        let again = locker.lock(&[free.flow(), held.flow()], LEASE);
        if features.remembers {
            refused(
                again,
                "Locker::lock of a flow that is locked",
                "AlreadyLocked with the flow that is locked",
                |error| matches!(error, LockError::AlreadyLocked(flow) if *flow == held.flow()),
            );
            assert_locked(&**locker, &[held.flow()]);
        } else {
            drop(again.expect("a second lock of one that does not remember"));
        }
    }
    if features.silence == Scope::Flows {
        free.ping();
    }
    // The first lock is as it was.
    ground.expect_locked(features.silence, &mut held);
    // Two holders at once, of different flows: each ends its own.
    let other = second.lock(&[free.flow()], LEASE).expect("lock");
    guard.unlock().expect("unlock");
    assert_locked(&*first, &[free.flow()]);
    ground.expect_locked(features.silence, &mut free);
    other.unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut held);
    Ground::expect_unlocked(features.silence, &mut free);
    // What was unlocked can be locked, also by the other.
    drop(
        second
            .lock(&[held.flow(), free.flow()], LEASE)
            .expect("lock"),
    );
}

fn nonsense(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let before = setup.traces(&ground);
    let mut twice = flows(10);
    twice.push(twice[4]);
    refused(
        locker.lock(&twice, LEASE),
        "Locker::lock with a flow that is named twice",
        "Duplicate with that flow",
        |error| matches!(error, LockError::Duplicate(flow) if *flow == twice[4]),
    );
    refused(
        locker.lock(&flows(1), Duration::ZERO),
        "Locker::lock with a lease of zero",
        "LeaseZero",
        |error| matches!(error, LockError::LeaseZero),
    );
    assert_locked(&*locker, &[]);
    locker
        .lock(&[], LEASE)
        .expect("nothing")
        .unlock()
        .expect("nothing");
    locker.sweep().expect("sweep");
    super::expect_traces(setup, &ground, &before);
    ground.connection(Ground::addresses()[0]).ping();
}

fn lease_ends(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut flow = ground.connection(Ground::addresses()[0]);
    let lease = slowed(Duration::from_millis(1500));
    let start = Instant::now();
    let mut guard = locker.lock(&[flow.flow()], lease).expect("lock");
    if !features.remembers {
        flow.ping();
        guard.renew(LEASE).expect("renew");
        return guard.unlock().expect("unlock");
    }
    send(&mut flow.client, b'x');
    expect(&mut flow.server, b'x');
    // The kernel counts in jiffies.
    assert!(
        start.elapsed() + Duration::from_millis(30) >= lease,
        "a lease of {lease:?} ended after {:?}",
        start.elapsed()
    );
    flow.ping();
    eventually("the entry goes", || {
        locked(&*locker).is_empty().then_some(())
    });
    // An ended lease is told to who would prolong it.
    refused(
        guard.renew(LEASE),
        "LockGuard::renew after the lease has ended",
        "NotHeld with the flow",
        |error| matches!(error, LockError::NotHeld(ended) if *ended == flow.flow()),
    );
    // Somebody else's lock of the flow is not touched by the guard whose lease ended.
    let other = setup.locker(&ground);
    let newer = other.lock(&[flow.flow()], LEASE).expect("lock");
    guard.unlock().expect("unlock");
    assert_locked(&*locker, &[flow.flow()]);
    newer.unlock().expect("unlock");
    assert_locked(&*locker, &[]);
    flow.ping();
}

fn renewed(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut flow = ground.connection(Ground::addresses()[0]);
    let renewing = |lease| {
        let start = Instant::now();
        let mut guard = locker.lock(&[flow.flow()], lease).expect("lock");
        // Half of it is left at the end.
        guard.renew(lease * 4).expect("renew");
        (guard, start)
    };
    let ((guard, start), lease) = within_lease(Duration::from_secs(2), renewing);
    let longer = lease * 4;
    ground.expect_locked(features.silence, &mut flow);
    // Past the first lease, and past what a lease may take to end.
    while features.remembers && start.elapsed() < lease * 2 {
        assert_locked(&*locker, &[flow.flow()]);
        expect_nothing(&flow.server);
        std::thread::sleep(Duration::from_millis(50));
    }
    for entry in locker.list().expect("list") {
        assert!(entry.remaining > lease, "{entry:?}");
        assert!(entry.remaining <= longer, "{entry:?}");
    }
    guard.unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut flow);
    assert_locked(&*locker, &[]);
}

fn never_shortened(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut flow = ground.connection(Ground::addresses()[0]);
    let short = Duration::from_millis(300);
    let mut guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
    // By a longer lease between two shorter ones, too.
    for lease in [short, LEASE * 2, short] {
        guard.renew(lease).expect("renew");
    }
    let start = Instant::now();
    ground.expect_locked(features.silence, &mut flow);
    while features.remembers && start.elapsed() < short * 5 {
        let entries = locker.list().expect("list");
        let remaining: Vec<Duration> = entries.iter().map(|entry| entry.remaining).collect();
        assert!(
            remaining.len() == 1 && remaining[0] > LEASE,
            "{remaining:?} is left of {:?}",
            LEASE * 2
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    guard.unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut flow);
    assert_locked(&*locker, &[]);
}

fn unlock_twice(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let mut flow = ground.connection(Ground::addresses()[0]);
    for end in [crate::LockGuard::unlock, crate::LockGuard::release] {
        let guard = locker.lock(&[flow.flow()], Duration::from_millis(300));
        let guard = guard.expect("lock");
        if locker.features().remembers {
            eventually("the lease ends", || {
                let _ = locker.sweep().expect("sweep");
                locked(&*locker).is_empty().then_some(())
            });
        }
        // Another handle sweeps what is over before the guard ends it.
        let _ = setup.locker(&ground).sweep().expect("sweep");
        end(guard).expect("what is over");
        flow.ping();
    }
    drop(locker.lock(&[flow.flow()], LEASE).expect("lock"));
    flow.ping();
}

fn drop_and_detach(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let silence = locker.features().silence;
    let mut flow = ground.connection(Ground::addresses()[0]);
    drop(locker.lock(&[flow.flow()], LEASE).expect("lock"));
    assert_locked(&*locker, &[]);
    flow.ping();
    let detached = |lease| {
        wait_for_nothing(&*locker);
        // A connection for each: what is sent into silence arrives once the lease has ended.
        let mut flow = ground.connection(Ground::addresses()[0]);
        let guard = locker.lock(&[flow.flow()], lease).expect("lock");
        guard.detach();
        assert_locked(&*locker, &[flow.flow()]);
        ground.expect_locked(silence, &mut flow);
        flow
    };
    let (mut flow, _) = within_lease(Duration::from_secs(4), detached);
    // Nobody ends it, and so the lease does.
    Ground::expect_unlocked(silence, &mut flow);
    eventually("the entry goes", || {
        locked(&*locker).is_empty().then_some(())
    });
}

fn list(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let flows = flows(3);
    let guard = locker.lock(&flows, LEASE).expect("lock");
    // As another process would see it.
    let other = setup.locker(&ground);
    assert_locked(&*other, &flows);
    let expected = if locker.features().remembers { 3 } else { 0 };
    let entries = other.list().expect("list");
    assert_eq!(entries.len(), expected);
    for entry in entries {
        assert_eq!(entry.kind, EntryKind::Lock);
        assert!(
            entry.remaining > LEASE / 2 && entry.remaining <= LEASE,
            "{entry:?}"
        );
        assert!(entry.age.is_some_and(|age| age < LEASE / 2), "{entry:?}");
        assert_eq!(entry.owner, Some(std::process::id()));
        assert!(entry.owner_name.is_some_and(|name| !name.is_empty()));
    }
    guard.unlock().expect("unlock");
}

fn sweep(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let before = setup.traces(&ground);
    let (locker, other) = (setup.locker(&ground), setup.locker(&ground));
    let silence = locker.features().silence;
    let mut flow = ground.connection(Ground::addresses()[0]);
    assert!(locker.sweep().expect("sweep").flows.is_empty());
    let guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
    let swept = other.sweep().expect("sweep");
    assert_eq!(swept.flows, []);
    assert_locked(&*locker, &[flow.flow()]);
    ground.expect_locked(silence, &mut flow);
    guard.unlock().expect("unlock");
    Ground::expect_unlocked(silence, &mut flow);
    other.sweep().expect("sweep");
    assert!(other.sweep().expect("sweep").is_empty());
    super::expect_traces(setup, &ground, &before);
    // It can be used again after that.
    drop(locker.lock(&[flow.flow()], LEASE).expect("lock"));
}

fn exempt(_test: &str, setup: &dyn Setup) {
    const MARK: u32 = 7;
    let ground = Ground::new();
    let plain = setup.locker(&ground);
    let Some(locker) = setup.exempting(&ground, MARK) else {
        assert!(!plain.features().exempts, "it says that it can exempt");
        return;
    };
    assert!(locker.features().exempts, "it says that it cannot");
    let mut flow = ground.connection(Ground::addresses()[0]);
    let mut neighbour = ground.connection(Ground::addresses()[0]);
    // The first lock may set things up, the second finds them; both know the mark.
    drop(locker.lock(&[flow.flow()], LEASE).expect("lock"));
    let _guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
    send(&mut flow.server, b'x');
    neighbour.ping();
    expect_nothing(&flow.client);
    let socket = socket2::SockRef::from(&flow.server);
    socket.set_mark(MARK).expect("SO_MARK");
    // The retransmission carries the mark.
    expect(&mut flow.client, b'x');
}

fn capture(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let plain = setup.locker(&ground);
    let flow = ground.connection(Ground::addresses()[0]);
    let mut guard = plain.lock(&[flow.flow()], LEASE).expect("lock");
    if !plain.features().captures {
        refused(
            guard.captured(),
            "LockGuard::captured of a locker whose features do not have it",
            "Unsupported",
            |error| matches!(error, LockError::Unsupported { .. }),
        );
    }
    drop(guard);
    let Some(locker) = setup.capturing(&ground) else {
        assert!(!plain.features().captures, "it says that it captures");
        return;
    };
    assert!(locker.features().captures, "it says that it does not");
    for address in Ground::addresses() {
        let mut flow = ground.connection(address);
        let mut neighbour = ground.connection(address);
        let mut guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
        assert_eq!(guard.captured().expect("capture").packets, []);
        send(&mut neighbour.client, b'n');
        send(&mut flow.server, b's');
        send(&mut flow.client, b'c');
        let captured = eventually("the packet", || {
            let captured = guard.captured().expect("capture");
            (!captured.packets.is_empty()).then_some(captured)
        });
        assert!(!captured.overflowed);
        let packet = &captured.packets[0];
        assert_eq!(packet.flow, flow.flow());
        assert_eq!(packet.bytes.last(), Some(&b'c'));
        // Nor did it get through.
        expect_nothing(&flow.server);
        guard.unlock().expect("unlock");
        expect(&mut flow.server, b'c');
        expect(&mut flow.client, b's');
    }
    if locker.features().splits {
        split_capture(&ground, &*locker);
    }
}

/// What was captured goes along with its flow.
fn split_capture(ground: &Ground, locker: &dyn Locker) {
    let mut connections = Ground::addresses().map(|address| ground.connection(address));
    let both = connections.each_ref().map(Connection::flow);
    let guard = locker.lock(&both, LEASE).expect("lock");
    let bytes = *b"xy";
    for (connection, byte) in connections.iter_mut().zip(bytes) {
        send(&mut connection.client, byte);
    }
    let parts = guard.split().expect("Features::splits was promised");
    let parts = parts.into_iter().zip(&mut connections).zip(both);
    for (((mut guard, connection), flow), byte) in parts.zip(bytes) {
        let captured = eventually("the packet", || {
            let captured = guard.captured().expect("capture");
            (!captured.packets.is_empty()).then_some(captured)
        });
        let mine = |packet: &Packet| packet.flow == flow && packet.bytes.last() == Some(&byte);
        assert!(captured.packets.iter().all(mine), "{:?}", captured.packets);
        guard.unlock().expect("unlock");
        expect(&mut connection.server, byte);
    }
}

fn redirect(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut flow = ground.connection(Ground::addresses()[0]);
    let mut guard = locker.lock(&[flow.flow()], LEASE).expect("lock");
    let hop = NextHop {
        device: "none0".to_owned(),
        address: "10.0.0.7".parse().expect("an address"),
        ingress: "eth0".to_owned(),
    };
    let redirected = guard.try_redirect(&hop, LEASE);
    if features.redirects {
        refused(
            redirected,
            "a redirect to a device that does not exist",
            "NoDevice",
            |error| matches!(error, LockError::NoDevice(_)),
        );
    } else {
        refused(
            redirected,
            "a redirect by a locker whose features do not have it",
            "Unsupported",
            |error| matches!(error, LockError::Unsupported { .. }),
        );
    }
    assert_locked(&*locker, &[flow.flow()]);
    ground.expect_locked(features.silence, &mut flow);
    guard.unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut flow);
}

fn namespace(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let silence = locker.features().silence;
    let mut flow = ground.connection(Ground::addresses()[0]);
    let at_client = |call: &(dyn Fn() + Sync)| ground.client.run(call);
    let guard = ground.client.run(|| locker.lock(&[flow.flow()], LEASE));
    let mut guard = guard.expect("lock");
    ground.client.run(|| guard.renew(LEASE)).expect("renew");
    at_client(&|| assert_locked(&*locker, &[flow.flow()]));
    ground.expect_locked(silence, &mut flow);
    at_client(&|| drop(locker.sweep().expect("sweep")));
    ground.client.run(|| guard.unlock()).expect("unlock");
    Ground::expect_unlocked(silence, &mut flow);
    assert_locked(&*locker, &[]);
}

fn many(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut flow = ground.connection(Ground::addresses()[0]);
    let mut neighbour = ground.connection(Ground::addresses()[0]);
    let mut flows = flows(1000);
    flows.push(flow.flow());
    let guard = locker.lock(&flows, LEASE).expect("lock");
    assert_locked(&*locker, &flows);
    if features.silence == Scope::Flows {
        neighbour.ping();
    }
    ground.expect_locked(features.silence, &mut flow);
    if features.remembers {
        // None of those before the one that is held.
        refused(
            locker.lock(&flows[1000..], LEASE),
            "Locker::lock of the last of many locked flows",
            "AlreadyLocked",
            |error| matches!(error, LockError::AlreadyLocked(_)),
        );
    }
    guard.unlock().expect("unlock");
    assert_locked(&*locker, &[]);
    Ground::expect_unlocked(features.silence, &mut flow);
    neighbour.ping();
}

fn split(_test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let addresses = Ground::addresses();
    let mut connections = addresses.map(|address| ground.connection(address));
    let both = connections.each_ref().map(Connection::flow);
    let guard = locker.lock(&both, LEASE).expect("lock");
    let parts = match guard.split() {
        Ok(_) if !features.splits => panic!("a locker that splits has to say so in Features"),
        Ok(parts) => parts,
        Err(guard) => {
            assert!(!features.splits, "Features::splits was promised");
            assert_eq!(guard.flows(), both, "the guard is as it was");
            assert_locked(&*locker, &both);
            guard.unlock().expect("unlock");
            return assert_locked(&*locker, &[]);
        }
    };
    assert_eq!(parts.len(), both.len());
    for connection in &mut connections {
        ground.expect_locked(features.silence, connection);
    }
    for (at, guard) in parts.into_iter().enumerate() {
        assert_eq!(guard.flows(), &both[at..=at]);
        assert_locked(&*locker, &both[at..]);
        guard.unlock().expect("unlock");
        let (unlocked, still) = connections[at..].split_at_mut(1);
        Ground::expect_unlocked(features.silence, &mut unlocked[0]);
        for connection in still {
            expect_nothing(&connection.server);
            expect_nothing(&connection.client);
        }
    }
    assert_locked(&*locker, &[]);
}
