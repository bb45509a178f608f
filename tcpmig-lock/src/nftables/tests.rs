//! What a kernel that this one is not would make of it.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use super::Nftables;
use super::element::Element;
use super::names::Set;
use crate::conformance::isolate;
use crate::conformance::lab::{eventually, nft};
use crate::{EntryKind, LockError, Locker, NextHop, Owner};

const LEASE: Duration = Duration::from_secs(60);

fn flows() -> Vec<FourTuple> {
    let flow = |number: u8| match number % 2 {
        0 => format!("10.0.0.1:80,10.0.0.9:{}", 1025 + u16::from(number)),
        _ => format!(
            "[2001:db8::1]:80,[2001:db8::9]:{}",
            1025 + u16::from(number)
        ),
    };
    (0..100)
        .map(|number| flow(number).parse().unwrap())
        .collect()
}

/// Kernels before 6.3 have no `DESTROYSETELEM`, and refuse to remove an element that is not there.
#[test]
fn everything_works_without_destroy() {
    isolate::isolated("nftables::tests::everything_works_without_destroy", || {
        let flows = flows();
        let (v4, v6): (Vec<_>, Vec<_>) = flows.iter().copied().partition(FourTuple::is_ipv4);
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let locker = Nftables::new().unwrap();
        locker.shared.state().destroy = false;
        // No table yet.
        locker.force_unlock(&flows).unwrap();

        let guard = locker.lock(&flows, LEASE).unwrap();
        locker.force_unlock(&flows[10..20]).unwrap();
        assert_eq!(locker.list().unwrap().len(), 90);
        guard.unlock().unwrap();
        assert_eq!(locker.list().unwrap(), []);

        for (flows, hop) in [(v4, "10.0.0.2"), (v6, "2001:db8::2")] {
            let hop = NextHop {
                device: "lo".to_owned(),
                address: hop.parse().unwrap(),
                ingress: "lo".to_owned(),
            };
            // Twice, so that the second finds the first there.
            let first = locker
                .lock(&flows, LEASE)
                .unwrap()
                .redirect(&hop, LEASE)
                .unwrap();
            let mut guard = locker.lock(&flows, LEASE).unwrap();
            let mut second = guard.try_redirect(&hop, LEASE).unwrap();
            second.renew(LEASE).unwrap();
            let entries = locker.list().unwrap();
            assert_eq!(entries.len(), flows.len());
            assert!(entries.iter().all(|entry| entry.kind != EntryKind::Lock));
            drop(first);
            assert_eq!(locker.list().unwrap().len(), flows.len());
            let guard = locker.lock(&flows, LEASE).unwrap();
            locker.end_redirects(&flows[..5]).unwrap();
            assert_eq!(locker.list().unwrap().len(), 2 * flows.len() - 5);
            guard.release().unwrap();
            assert_eq!(locker.list().unwrap(), []);

            let guard = locker.lock(&flows, LEASE).unwrap();
            locker.force_unlock(&flows[7..8]).unwrap();
            let error = guard.redirect(&hop, LEASE).unwrap_err();
            assert!(
                matches!(error, LockError::NotHeld(flow) if flow == flows[7]),
                "{error}"
            );
            assert_eq!(locker.list().unwrap().len(), flows.len() - 1);
            locker.force_unlock(&flows).unwrap();
        }
    });
}

/// Whose a redirect is decides whether it may be taken over. An element that a packet made names nobody, and comes beside
/// the one with the owner, or hides it.
#[test]
fn a_redirect_has_one_entry_with_its_owner_also_where_packets_made_elements() {
    const NAME: &str =
        "nftables::tests::a_redirect_has_one_entry_with_its_owner_also_where_packets_made_elements";
    isolate::isolated(NAME, || {
        let locker = Nftables::new().unwrap();
        let flow = flows()[0];
        let element = |owner: Option<Owner>, data: [u8; 4]| Element {
            flow,
            remaining: LEASE,
            age: None,
            owner,
            data: Some(data.to_vec()),
        };
        let own = Some(Owner::current());
        let hop = [10, 0, 0, 2];
        let [made, others] = [element(own.clone(), hop), element(None, hop)];
        for hops in [
            vec![others.clone()],
            vec![others.clone(), made.clone()],
            vec![made, others],
        ] {
            let entries = locker.shared.entries(|set| {
                Ok(match set {
                    Set::Hop => hops.clone(),
                    Set::Gone => vec![element(own.clone(), [0; 4])],
                    Set::Device => vec![element(None, [0; 4])],
                    _ => Vec::new(),
                })
            });
            let entries = entries.unwrap();
            assert_eq!(entries.len(), 1, "{entries:?}");
            assert_eq!(entries[0].owner, Some(std::process::id()));
        }
    });
}

/// More changes than the socket that watches holds.
fn flood() {
    for _ in 0..20 {
        let numbers = (0..500).map(|n| format!("10.0.{}.{}", n >> 8, n & 255));
        let elements = numbers.collect::<Vec<_>>().join(", ");
        nft(&format!(
            "add table inet many; add set inet many s {{ type ipv4_addr; }}; add element inet many s {{ {elements} }}"
        ));
        nft("delete table inet many");
    }
}

#[test]
fn news_that_were_lost_are_made_up_for() {
    isolate::isolated(
        "nftables::tests::news_that_were_lost_are_made_up_for",
        || {
            let flows = flows();
            let locker = Nftables::new().unwrap();
            let other = Nftables::new().unwrap();
            let mut guard = locker.lock(&flows, LEASE).unwrap();
            eventually("it watches", || locker.shared.state().handle.map(drop));

            // Nothing is read meanwhile. What somebody else unlocks stays unlocked.
            let unread = locker.shared.state();
            flood();
            other.force_unlock(&flows[7..8]).unwrap();
            drop(unread);
            eventually("it is forgotten", || {
                let state = locker.shared.state();
                (!state.kept.has(Set::Locked, &flows[7])).then_some(())
            });

            // What somebody flushes comes back.
            let unread = locker.shared.state();
            flood();
            nft("flush ruleset");
            drop(unread);
            eventually("all others are locked again", || {
                (other.list().unwrap().len() == flows.len() - 1).then_some(())
            });
            let error = guard.renew(LEASE).unwrap_err();
            assert!(
                matches!(error, LockError::NotHeld(flow) if flow == flows[7]),
                "{error}"
            );
        },
    );
}

#[test]
fn who_sets_the_table_up_wakes_who_watches() {
    isolate::isolated(
        "nftables::tests::who_sets_the_table_up_wakes_who_watches",
        || {
            let locker = Nftables::new().unwrap();
            // Instead of a thread that has looked already and sleeps.
            locker.shared.watching.store(true, Ordering::Release);
            let _guard = locker.lock(&flows(), LEASE).unwrap();
            let start = Instant::now();
            locker.shared.monitor.wait(Some(Duration::from_secs(60)));
            assert!(start.elapsed() < Duration::from_secs(30));
            let _ = locker.shared.look();
            assert!(locker.shared.state().handle.is_some());
        },
    );
}
