//! Locks: silence in both directions, for these flows only, all or none, and never longer than the lease.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::net::{Connection, expect, expect_nothing, send};
use common::{addresses, flows, isolated, locking_hosts, slowed};
use tcpmig_lock::{Backend, EntryKind, LockError, LockGuard, Locker, Nftables, Redirect};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);

#[test]
fn a_locked_flow_is_silent_both_ways_until_unlocked() {
    isolated("a_locked_flow_is_silent_both_ways_until_unlocked", || {
        let (server, client, locker) = locking_hosts();
        for address in addresses() {
            let mut flow = Connection::new(&server, &client, address);
            let mut neighbour = Connection::new(&server, &client, address);
            flow.ping();
            let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            send(&mut flow.client, b'c');
            send(&mut flow.server, b's');
            neighbour.ping();
            expect_nothing(&flow.server);
            expect_nothing(&flow.client);
            guard.unlock().unwrap();
            expect(&mut flow.server, b'c');
            expect(&mut flow.client, b's');
            flow.ping();
        }
        assert_eq!(locker.list().unwrap(), []);
    });
}

#[test]
fn flows_of_both_families_are_locked_in_one_call() {
    isolated("flows_of_both_families_are_locked_in_one_call", || {
        let (server, client, locker) = locking_hosts();
        let mut connections = addresses().map(|address| Connection::new(&server, &client, address));
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        let flows = connections.each_ref().map(Connection::flow);
        let guard = locker.lock(&flows, LEASE).unwrap();
        assert_eq!(guard.flows(), flows);
        for connection in &mut connections {
            send(&mut connection.client, b'x');
        }
        neighbour.ping();
        for connection in &connections {
            expect_nothing(&connection.server);
        }
        drop(guard);
        for connection in &mut connections {
            expect(&mut connection.server, b'x');
        }
    });
}

#[test]
fn a_lease_ends_by_itself() {
    isolated("a_lease_ends_by_itself", || {
        let (server, client, locker) = locking_hosts();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let lease = slowed(Duration::from_millis(300));
        let start = Instant::now();
        let mut guard = locker.lock(&[flow.flow()], lease).unwrap();
        send(&mut flow.client, b'x');
        expect(&mut flow.server, b'x');
        let held = start.elapsed();
        // The kernel counts in ticks.
        assert!(held >= lease - Duration::from_millis(50), "{held:?}");
        assert_eq!(locker.list().unwrap(), []);
        // An ended lease is told to who would prolong it, and is not an error for who ends it.
        assert!(
            matches!(guard.renew(LEASE), Err(LockError::NotHeld(ended)) if ended == flow.flow())
        );
        guard.unlock().unwrap();
    });
}

#[test]
fn a_renewed_lease_lasts() {
    isolated("a_renewed_lease_lasts", || {
        let locker = Nftables::new().unwrap();
        let flows = flows(3);
        let mut guard = locker.lock(&flows, slowed(Duration::from_secs(2))).unwrap();
        guard.renew(LEASE).unwrap();
        let entries = locker.list().unwrap();
        assert_eq!(entries.len(), 3);
        for entry in entries {
            assert!(entry.remaining > Duration::from_secs(50), "{entry:?}");
            assert_eq!(entry.kind, EntryKind::Lock);
            assert_eq!(entry.owner, Some(std::process::id()));
        }
        // One that somebody else ended: nothing is prolonged.
        locker.force_unlock(&flows[1..2]).unwrap();
        let error = guard.renew(Duration::from_secs(1000)).unwrap_err();
        assert!(
            matches!(error, LockError::NotHeld(flow) if flow == flows[1]),
            "{error}"
        );
        for entry in locker.list().unwrap() {
            assert!(entry.remaining < LEASE, "{entry:?}");
        }
        guard.unlock().unwrap();
        assert_eq!(locker.list().unwrap(), []);
    });
}

#[test]
fn a_second_lock_is_refused_by_name_and_nothing_of_it_holds() {
    isolated(
        "a_second_lock_is_refused_by_name_and_nothing_of_it_holds",
        || {
            // Two handles, as two processes would have.
            let (first, second) = (Nftables::new().unwrap(), Nftables::new().unwrap());
            let flows = flows(1000);
            let guard = first.lock(&flows[700..701], LEASE).unwrap();
            let error = second.lock(&flows, LEASE).unwrap_err();
            assert!(
                matches!(error, LockError::AlreadyLocked(flow) if flow == flows[700]),
                "{error}"
            );
            assert_eq!(first.list().unwrap().len(), 1);
            guard.unlock().unwrap();
            let _guard = second.lock(&flows, LEASE).unwrap();
            assert_eq!(first.list().unwrap().len(), 1000);
        },
    );
}

#[test]
fn a_flow_named_twice_is_refused() {
    isolated("a_flow_named_twice_is_refused", || {
        let locker = Nftables::new().unwrap();
        let mut flows = flows(10);
        flows.push(flows[4]);
        let error = locker.lock(&flows, LEASE).unwrap_err();
        assert!(
            matches!(error, LockError::Duplicate(flow) if flow == flows[4]),
            "{error}"
        );
        assert_eq!(locker.list().unwrap(), []);
    });
}

#[test]
fn nothing_to_lock_and_no_time_to_lock() {
    isolated("nothing_to_lock_and_no_time_to_lock", || {
        let locker = Nftables::new().unwrap();
        locker.lock(&[], LEASE).unwrap().unlock().unwrap();
        let error = locker.lock(&flows(1), Duration::ZERO).unwrap_err();
        assert!(matches!(error, LockError::LeaseZero));
        assert!(matches!(
            Nftables::with_table("a b"),
            Err(LockError::TableName(_))
        ));
    });
}

#[test]
fn dropping_unlocks_and_detaching_does_not() {
    isolated("dropping_unlocks_and_detaching_does_not", || {
        let locker = Nftables::new().unwrap();
        let flows = flows(2);
        drop(locker.lock(&flows, LEASE).unwrap());
        assert_eq!(locker.list().unwrap(), []);
        locker.lock(&flows, LEASE).unwrap().detach();
        assert_eq!(locker.list().unwrap().len(), 2);
    });
}

#[test]
fn ten_thousand_flows_in_one_call() {
    isolated("ten_thousand_flows_in_one_call", || {
        let (server, client, locker) = locking_hosts();
        locker.prepare().unwrap();
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        for count in [1, 1000, 10_000] {
            let flows = flows(count);
            let start = Instant::now();
            let guard = locker.lock(&flows, LEASE).unwrap();
            let locked = start.elapsed();
            assert_eq!(locker.list().unwrap().len(), usize::from(count));
            neighbour.ping();
            let start = Instant::now();
            guard.unlock().unwrap();
            println!(
                "{count} flows: lock {locked:?}, unlock {:?}",
                start.elapsed()
            );
            assert_eq!(locker.list().unwrap(), []);
        }
        // The one that is locked is at the end: all before it are taken back, however many batches it took.
        let flows = flows(10_000);
        let guard = locker.lock(&flows[9999..], LEASE).unwrap();
        let error = locker.lock(&flows, LEASE).unwrap_err();
        assert!(
            matches!(error, LockError::AlreadyLocked(flow) if flow == flows[9999]),
            "{error}"
        );
        assert_eq!(locker.list().unwrap().len(), 1);
        drop(guard);
    });
}

/// The kernel makes a set's table larger some time after elements were added, and reorders them; a list that it gives in several parts
/// then names some twice and others not at all.
#[test]
fn a_list_is_complete_while_the_kernel_resizes_a_set() {
    isolated("a_list_is_complete_while_the_kernel_resizes_a_set", || {
        for number in 0..12 {
            let locker = Nftables::with_table(&format!("resized{number}")).unwrap();
            let flows = flows(600 + 200 * number);
            let guard = locker.lock(&flows, LEASE).unwrap();
            let listed: HashSet<_> = locker.list().unwrap().iter().map(|e| e.flow).collect();
            let missing = flows.iter().filter(|flow| !listed.contains(flow)).count();
            assert_eq!(missing, 0, "of {} flows", flows.len());
            guard.unlock().unwrap();
        }
    });
}

#[test]
fn packets_with_an_exempt_mark_pass() {
    isolated("packets_with_an_exempt_mark_pass", || {
        let (server, client, locker) = locking_hosts();
        let locker = locker.exempt_mark(7);
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        // The first lock sets the table up, the second finds it; both know the mark.
        drop(locker.lock(&[flow.flow()], LEASE).unwrap());
        let _guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        send(&mut flow.server, b'x');
        neighbour.ping();
        expect_nothing(&flow.client);
        socket2::SockRef::from(&flow.server).set_mark(7).unwrap();
        // The retransmission carries the mark.
        expect(&mut flow.client, b'x');
    });
}

#[test]
fn a_guard_works_from_any_namespace() {
    isolated("a_guard_works_from_any_namespace", || {
        let (server, client, locker) = locking_hosts();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut guard = client.run(|| locker.lock(&[flow.flow()], LEASE).unwrap());
        client.run(|| guard.renew(LEASE).unwrap());
        assert_eq!(client.run(|| locker.list().unwrap()).len(), 1);
        send(&mut flow.client, b'x');
        client.run(|| guard.unlock().unwrap());
        expect(&mut flow.server, b'x');
    });
}

/// The process that `a_killed_holder_leaves_its_lock_to_the_lease` kills: this binary once more, with this variable.
const HOLDER: &str = "TCPMIG_LOCK_TEST_HOLDER";

#[test]
fn a_killed_holder_leaves_its_lock_to_the_lease() {
    const NAME: &str = "a_killed_holder_leaves_its_lock_to_the_lease";
    if let Ok(flow) = std::env::var(HOLDER) {
        let locker = Nftables::new().unwrap();
        let _guard = locker
            .lock(&[flow.parse().unwrap()], slowed(Duration::from_secs(2)))
            .unwrap();
        println!("locked");
        loop {
            std::thread::park();
        }
    }
    isolated(NAME, || {
        let (server, client, locker) = locking_hosts();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        let mut holder = server.run(|| {
            Command::new(std::env::current_exe().unwrap())
                .args([NAME, "--exact", "--nocapture"])
                .env(HOLDER, flow.flow().to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("locked")));
        let owner = Some(holder.id());
        holder.kill().unwrap();
        holder.wait().unwrap();

        // The empty table for redirects may go, the lock stays.
        let swept = locker.sweep().unwrap();
        assert!(swept.flows.is_empty());
        assert!(
            swept
                .structures
                .iter()
                .all(|table| table.starts_with("netdev"))
        );
        let entries = locker.list().unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].owner, owner);
        let error = locker.lock(&[flow.flow()], LEASE).unwrap_err();
        assert!(matches!(error, LockError::AlreadyLocked(_)), "{error}");
        send(&mut flow.client, b'c');
        send(&mut flow.server, b's');
        neighbour.ping();
        expect_nothing(&flow.server);
        expect_nothing(&flow.client);
        // After the lease the connection goes on.
        expect(&mut flow.server, b'c');
        expect(&mut flow.client, b's');
        drop(locker.lock(&[flow.flow()], LEASE).unwrap());
    });
}

#[test]
fn handles_and_guards_go_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Nftables>();
    shared::<LockGuard>();
    shared::<Redirect>();
    shared::<Box<dyn Locker>>();
}

#[test]
fn a_handle_can_be_opened_in_another_namespace() {
    isolated("a_handle_can_be_opened_in_another_namespace", || {
        let (server, client, here) = locking_hosts();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let namespace = server.run(|| std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        for name in ["nftables", "iptables"] {
            let backend: Backend = name.parse().unwrap();
            let locker = backend.open_in(namespace.as_fd()).unwrap();
            let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            send(&mut flow.client, b'c');
            expect_nothing(&flow.server);
            guard.unlock().unwrap();
            expect(&mut flow.server, b'c');
        }
        assert_eq!(here.list().unwrap(), []);
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Backend::None.open_in(file.as_fd()).err();
        assert!(
            matches!(error, Some(LockError::Namespace { .. })),
            "{error:?}"
        );
    });
}
