//! The tables: shared by everybody, re-created when they are gone, swept when nothing is in them.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::net::{Connection, Host, expect, expect_nothing, send};
use common::{addresses, eventually, flows, isolated, locking_hosts, slowed};
use tcpmig_lock::{FourTuple, LockError, LockGuard, Locker, Nftables};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);

#[test]
fn a_table_that_somebody_removed_is_made_again() {
    isolated("a_table_that_somebody_removed_is_made_again", || {
        let (server, client, locker) = locking_hosts();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        server.nft("flush ruleset");
        guard.unlock().unwrap();
        let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        send(&mut flow.client, b'x');
        neighbour.ping();
        expect_nothing(&flow.server);
        drop(guard);
        expect(&mut flow.server, b'x');
    });
}

#[test]
fn a_table_without_its_rules_is_made_right_by_the_next_handle() {
    isolated(
        "a_table_without_its_rules_is_made_right_by_the_next_handle",
        || {
            let (server, client, locker) = locking_hosts();
            let mut flow = Connection::new(&server, &client, addresses()[0]);
            let mut neighbour = Connection::new(&server, &client, addresses()[0]);
            locker.prepare().unwrap();
            server.nft("flush table inet tcpmig");
            let other = server.run(|| Nftables::new().unwrap());
            let _guard = other.lock(&[flow.flow()], LEASE).unwrap();
            send(&mut flow.client, b'x');
            neighbour.ping();
            expect_nothing(&flow.server);
        },
    );
}

#[test]
fn a_table_of_somebody_else_is_refused() {
    isolated("a_table_of_somebody_else_is_refused", || {
        let (server, _client, locker) = locking_hosts();
        server.nft("add table inet tcpmig");
        server.nft("add set inet tcpmig locked4 { type ipv4_addr; }");
        let error = locker.lock(&flows(1), LEASE).unwrap_err();
        assert!(matches!(error, LockError::ForeignTable { .. }), "{error}");
    });
}

#[test]
fn nft_shows_the_tables() {
    isolated("nft_shows_the_tables", || {
        let (server, _client, locker) = locking_hosts();
        let _guard = locker.lock(&flows(1), LEASE).unwrap();
        let text = server.nft("list ruleset");
        assert!(text.contains("10.0.0.9 . 1025 . 10.0.0.1 . 80"), "{text}");
        assert!(text.contains("comment \"pid "), "{text}");
        assert!(
            text.contains("ip saddr . tcp sport . ip daddr . tcp dport map @locked4 goto locked"),
            "{text}"
        );
        assert!(
            text.contains("ip daddr . tcp dport . ip saddr . tcp sport map @locked4 drop"),
            "{text}"
        );
    });
}

#[test]
fn sweep_removes_what_is_empty_and_nothing_else() {
    isolated("sweep_removes_what_is_empty_and_nothing_else", || {
        let locker = Nftables::new().unwrap();
        assert!(locker.sweep().unwrap().is_empty());
        let guard = locker
            .lock(&flows(1), slowed(Duration::from_secs(2)))
            .unwrap();
        assert!(locker.sweep().unwrap().is_empty());
        assert_eq!(locker.list().unwrap().len(), 1);
        // Its holder is gone; the lease is not.
        guard.detach();
        assert!(locker.sweep().unwrap().is_empty());
        // It may end between the looks at the one table and at the other.
        let mut structures = Vec::new();
        eventually("the lease ends", || {
            structures.extend(locker.sweep().unwrap().structures);
            (structures.len() == 2).then_some(())
        });
        structures.sort();
        assert_eq!(structures, ["inet tcpmig", "netdev tcpmig"]);
        drop(locker.lock(&flows(1), LEASE).unwrap());
    });
}

#[test]
fn an_owned_table_is_changed_by_its_owner_only() {
    isolated("an_owned_table_is_changed_by_its_owner_only", || {
        let (server, client, plain) = locking_hosts();
        let open = || server.run(|| Nftables::with_owned_table("mine").unwrap());
        let owner = open();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        let other_flow = neighbour.flow();
        let guard = owner
            .lock(&[flow.flow()], slowed(Duration::from_secs(3)))
            .unwrap();
        let second = open();
        if !owner.owns_table().unwrap() {
            println!("this kernel has no tables that are owned and stay: this one is a plain one");
            drop(second.lock(&[other_flow], LEASE).unwrap());
            return guard.unlock().unwrap();
        }
        let errors = [
            second.lock(&[other_flow], LEASE).map(drop).unwrap_err(),
            second.force_unlock(&[flow.flow()]).unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(&error, LockError::TableOwned(name) if name == "mine"),
                "{error}"
            );
        }
        // They see it, though.
        assert_eq!(second.list().unwrap().len(), 1);
        drop(plain.lock(&[other_flow], LEASE).unwrap());
        server.nft("flush ruleset");
        assert_eq!(plain.list().unwrap(), []);
        send(&mut flow.client, b'x');
        neighbour.ping();
        expect_nothing(&flow.server);
        // The owner goes, and its lock stays to the end of its lease.
        guard.detach();
        drop(owner);
        // The thread that watches the table may be at work with it still.
        let error = eventually("the owner has gone", || {
            let error = second.lock(&[flow.flow()], LEASE).map(drop).unwrap_err();
            (!matches!(error, LockError::TableOwned(_))).then_some(error)
        });
        assert!(matches!(error, LockError::AlreadyLocked(_)), "{error}");
        expect(&mut flow.server, b'x');
        second
            .lock(&[flow.flow()], LEASE)
            .unwrap()
            .unlock()
            .unwrap();
        assert!(second.owns_table().unwrap());
        assert_eq!(
            second.sweep().unwrap().structures,
            ["inet mine", "netdev mine"]
        );
    });
}

#[test]
fn a_dead_owner_is_swept_by_anybody() {
    isolated("a_dead_owner_is_swept_by_anybody", || {
        let (server, _client, _) = locking_hosts();
        let owner = server.run(|| Nftables::with_owned_table("mine").unwrap());
        owner
            .lock(&flows(1), Duration::from_millis(300))
            .unwrap()
            .detach();
        drop(owner);
        let other = server.run(|| Nftables::with_table("mine").unwrap());
        // Not always by one sweep: the lease can end in the middle of it.
        let mut swept = Vec::new();
        eventually("the lease ends", || {
            swept.extend(other.sweep().unwrap().structures);
            (swept.len() == 2).then_some(())
        });
        swept.sort();
        assert_eq!(swept, ["inet mine", "netdev mine"]);
    });
}

#[test]
fn many_handles_at_once() {
    isolated("many_handles_at_once", || {
        let host = Host::new();
        let flows = flows(400);
        // Each in its own handle, from the first moment, with somebody who sweeps all the time.
        let guards: Vec<LockGuard> = std::thread::scope(|scope| {
            let threads: Vec<_> = flows
                .chunks(50)
                .enumerate()
                .map(|(number, flows)| {
                    let host = &host;
                    scope.spawn(move || {
                        let locker = host.run(|| match number % 2 {
                            0 => Nftables::new().unwrap(),
                            _ => Nftables::new().unwrap().capturing(4096).unwrap(),
                        });
                        let lock = |flow: &FourTuple| {
                            drop(locker.lock(&[*flow], LEASE).unwrap());
                            locker.lock(&[*flow], LEASE).unwrap()
                        };
                        flows.iter().map(lock).collect::<Vec<_>>()
                    })
                })
                .collect();
            let sweeper = host.run(|| Nftables::new().unwrap());
            while threads.iter().any(|thread| !thread.is_finished()) {
                sweeper.sweep().unwrap();
            }
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let locker = host.run(|| Nftables::new().unwrap());
        assert_eq!(locker.list().unwrap().len(), flows.len());
        assert_eq!(host.nft("list chains").matches("capture-").count(), 4);
        drop(guards);
        assert_eq!(locker.list().unwrap(), []);
        assert_eq!(host.nft("list chains").matches("capture-").count(), 0);
    });
}

#[test]
fn without_privileges_the_error_says_what_is_missing() {
    const NAME: &str = "without_privileges_the_error_says_what_is_missing";
    if !common::isolate::is_again() {
        // A user namespace of its own has no say in a network namespace that it does not own.
        return common::isolate::again(NAME, &["-U"]);
    }
    let locker = Nftables::new().unwrap();
    let errors = [
        locker.lock(&flows(1), LEASE).map(drop).unwrap_err(),
        locker.prepare().unwrap_err(),
        locker.list().map(drop).unwrap_err(),
        locker.sweep().map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, LockError::NoPermission { .. }), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }
}
