//! Routes and next hops, as the kernel's routing tables have them.
#![allow(clippy::unwrap_used)]

mod common;

use common::net::{Host, switch};
use common::{ip, isolated};
use tcpmig_lock::{LockError, NextHop, Nftables, route};

/// This host's own address, a neighbour's, and the peer's, of each family.
const FAMILIES: [[&str; 3]; 2] = [
    ["10.0.0.1", "10.0.0.2", "10.0.0.9"],
    ["2001:db8::1", "2001:db8::2", "2001:db8::9"],
];

/// Runs a test on a host with two neighbours, one of them a router.
fn on_a_host(name: &str, test: impl FnOnce(&Nftables) + Send) {
    isolated(name, || {
        let (host, neighbour, peer) = (Host::new(), Host::new(), Host::new());
        let _switch = switch(&[(&host, 1), (&neighbour, 2), (&peer, 9)]);
        host.ip("route add 192.0.2.0/24 via 10.0.0.9");
        host.ip("route add 192.0.3.0/24 via inet6 2001:db8::9 dev eth0");
        host.ip("route add 2001:db8:1::/64 via 2001:db8::9");
        host.ip("route add unreachable 192.0.4.0/24");
        host.ip("route add blackhole 192.0.5.0/24");
        // The handle is of the host, and the test runs elsewhere.
        let locker = host.run(|| Nftables::new().unwrap());
        host.run(|| test(&locker));
    });
}

#[test]
fn a_neighbour_is_reached_directly() {
    on_a_host("a_neighbour_is_reached_directly", |locker| {
        for [own, neighbour, peer] in FAMILIES.map(|family| family.map(ip)) {
            let route = route::lookup(neighbour, None).unwrap();
            assert_eq!((route.device.as_str(), route.gateway), ("eth0", None));
            assert!(!route.local);
            assert_eq!(route.source, Some(own));
            let from = route::lookup(neighbour, Some(own)).unwrap();
            assert_eq!(from, route);

            let hop = NextHop::toward(neighbour, peer).unwrap();
            let expected = NextHop {
                device: "eth0".to_owned(),
                address: neighbour,
                ingress: "eth0".to_owned(),
            };
            assert_eq!(hop, expected);
            let elsewhere = Host::new();
            let hop = elsewhere.run(|| locker.next_hop(neighbour, peer).unwrap());
            assert_eq!(hop, expected);
        }
    });
}

#[test]
fn an_address_of_this_host_is_no_target() {
    on_a_host("an_address_of_this_host_is_no_target", |locker| {
        for [own, _, peer] in FAMILIES.map(|family| family.map(ip)) {
            assert!(route::lookup(own, None).unwrap().local);
            let error = locker.next_hop(own, peer).unwrap_err();
            assert!(matches!(error, LockError::TargetIsLocal(address) if address == own));
        }
    });
}

#[test]
fn a_target_behind_a_router_is_refused_with_the_router() {
    on_a_host(
        "a_target_behind_a_router_is_refused_with_the_router",
        |locker| {
            for (target, router) in [
                ("192.0.2.7", "10.0.0.9"),
                ("192.0.3.7", "2001:db8::9"),
                ("2001:db8:1::7", "2001:db8::9"),
            ] {
                let error = locker.next_hop(ip(target), ip("10.0.0.9")).unwrap_err();
                assert!(
                    matches!(error, LockError::NotOnLink { gateway, .. } if gateway == ip(router)),
                    "{error}"
                );
            }
        },
    );
}

#[test]
fn what_cannot_be_reached_has_no_route() {
    on_a_host("what_cannot_be_reached_has_no_route", |locker| {
        for nowhere in ["198.51.100.1", "192.0.4.1", "192.0.5.1", "2001:db8:ffff::1"] {
            let error = route::lookup(ip(nowhere), None).unwrap_err();
            assert!(
                matches!(error, LockError::NoRoute(address) if address == ip(nowhere)),
                "{error}"
            );
            // The same if it is the peer.
            let error = locker.next_hop(ip("10.0.0.2"), ip(nowhere)).unwrap_err();
            assert!(matches!(error, LockError::NoRoute(_)), "{error}");
        }
    });
}
