//! Addresses that are adopted, taken and yielded.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use common::net::{Connection, Host, expect, switch};
use common::{eventually, ip, isolated, without_a_say};
use tcpmig_lock::address::{self, Adopted, Taken, Yielded};
use tcpmig_lock::{LockError, Locker, Nftables};

fn shown(host: &Host, arguments: &str) -> String {
    let run = || {
        Command::new("ip")
            .args(arguments.split_whitespace())
            .output()
    };
    String::from_utf8(host.run(run).unwrap().stdout).unwrap()
}

fn setting(host: &Host, name: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/all/{name}");
    let value = host.run(|| std::fs::read_to_string(path).unwrap());
    value.trim().to_owned()
}

fn station(host: &Host) -> String {
    let text = shown(host, "link show dev eth0");
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    words.next().unwrap().to_owned()
}

/// The station that a host takes an address for, if it knows one.
fn known(host: &Host, address: IpAddr) -> Option<String> {
    let text = shown(host, &format!("neighbour show {address} dev eth0"));
    let mut words = text.split_whitespace();
    words.find(|word| *word == "lladdr")?;
    words.next().map(str::to_owned)
}

#[test]
fn an_adopted_address_and_its_settings_go_with_the_last() {
    isolated(
        "an_adopted_address_and_its_settings_go_with_the_last",
        || {
            let host = Host::new();
            host.sysctl("ipv4/conf/all/arp_announce", "1");
            let settings = || ["arp_ignore", "arp_announce"].map(|name| setting(&host, name));
            let before = shown(&host, "address show");
            let one = host.run(|| Adopted::new(ip("192.0.2.1")).unwrap());
            let two = host.run(|| Adopted::new(ip("192.0.2.2")).unwrap());
            let six = host.run(|| Adopted::new(ip("2001:db8::5")).unwrap());
            assert_eq!(settings(), ["1", "2"]);
            let text = shown(&host, "address show dev lo");
            for address in ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::5/128"] {
                assert!(text.contains(address), "{text}");
            }
            assert!(!shown(&host, "address show tentative").contains("2001"));
            one.undo().unwrap();
            assert_eq!(settings(), ["1", "2"]);
            // From another thread, in another namespace.
            drop(two);
            assert_eq!(settings(), ["0", "1"]);
            drop(six);
            assert_eq!(shown(&host, "address show"), before);

            // What is there already stays.
            host.ip("address add 192.0.2.3/32 dev lo");
            host.sysctl("ipv4/conf/all/arp_ignore", "2");
            drop(host.run(|| Adopted::new(ip("192.0.2.3")).unwrap()));
            assert!(shown(&host, "address show dev lo").contains("192.0.2.3/32"));
            assert_eq!(settings(), ["2", "1"]);
            // What a dead process left is removed.
            assert!(host.run(|| address::disown(ip("192.0.2.3")).unwrap()));
            assert!(!host.run(|| address::disown(ip("192.0.2.3")).unwrap()));
        },
    );
}

#[test]
fn an_adopted_address_is_not_told_to_others() {
    isolated("an_adopted_address_is_not_told_to_others", || {
        let (target, peer) = (Host::new(), Host::new());
        let _switch = switch(&[(&target, 2), (&peer, 9)]);
        let _adopted = ["10.0.0.1", "2001:db8::1"]
            .map(|address| target.run(|| Adopted::new(ip(address)).unwrap()));
        for address in ["10.0.0.1", "2001:db8::1"].map(ip) {
            // No answer, and so no route to it: within three seconds the kernel says so.
            let failed = peer
                .run(|| TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(90)));
            let kind = failed.unwrap_err().kind();
            assert_eq!(kind, std::io::ErrorKind::HostUnreachable);
            assert_eq!(known(&peer, address), None);
        }
    });
}

#[test]
fn a_taken_address_moves_with_all_who_send_to_it() {
    isolated("a_taken_address_moves_with_all_who_send_to_it", || {
        let (source, target, peer) = (Host::new(), Host::new(), Host::new());
        let _switch = switch(&[(&source, 3), (&target, 2), (&peer, 9)]);
        source.ip("address add 10.0.0.1/24 dev eth0");
        source.ip("address add 2001:db8::1/64 dev eth0 nodad");
        source.ip("route add 192.0.2.0/24 via 10.0.0.9");
        source.ip("route add 2001:db8:1::/64 via 2001:db8::9");
        let routes = || shown(&source, "route") + &shown(&source, "-6 route");
        let routes_before = routes();
        for (service, own, prefix) in [
            ("10.0.0.1", "10.0.0.3", 24),
            ("2001:db8::1", "2001:db8::3", 64),
        ] {
            let service = ip(service);
            let mut flow = Connection::new(&source, &peer, service);
            let mut neighbour = Connection::new(&source, &peer, ip(own));
            flow.ping();
            assert_eq!(known(&peer, service), Some(station(&source)));
            let locks = [&source, &target].map(|host| {
                let locker = host.run(|| Nftables::new().unwrap());
                locker
                    .lock(&[flow.flow()], Duration::from_secs(600))
                    .unwrap()
            });

            let taken = target.run(|| Taken::new(service, prefix, "eth0").unwrap());
            eventually("the peer sends to the target", || {
                (known(&peer, service) == Some(station(&target))).then_some(())
            });
            let yielded = source.run(|| Yielded::new(service, "eth0").unwrap());
            taken.announce().unwrap();
            let addresses = shown(&source, "address show dev eth0");
            assert!(!addresses.contains(&format!("{service}/")), "{addresses}");
            assert!(addresses.contains(&format!("{own}/")), "{addresses}");
            assert_eq!(routes(), routes_before);
            neighbour.ping();
            // The locks hold, and new connections arrive at the target.
            let listener = target.run(|| TcpListener::bind((service, 0)).unwrap());
            let mut new = Connection::to(&listener, &peer, listener.local_addr().unwrap());
            new.ping();

            // All back.
            drop(new);
            taken.undo().unwrap();
            yielded.undo().unwrap();
            eventually("the peer sends to the source", || {
                (known(&peer, service) == Some(station(&source))).then_some(())
            });
            for lock in locks {
                lock.unlock().unwrap();
            }
            flow.ping();
            common::net::send(&mut neighbour.client, b'n');
            expect(&mut neighbour.server, b'n');
        }
        assert_eq!(routes(), routes_before);
    });
}

#[test]
fn yielding_the_first_address_leaves_the_others() {
    isolated("yielding_the_first_address_leaves_the_others", || {
        let (source, peer) = (Host::new(), Host::new());
        let _switch = switch(&[(&source, 1), (&peer, 9)]);
        // Secondary addresses, which the kernel takes away with the first one.
        source.ip("address add 10.0.0.3/24 dev eth0");
        source.ip("address add 10.0.0.4/24 dev eth0");
        source.ip("route add default via 10.0.0.9");
        let mut neighbour = Connection::new(&source, &peer, ip("10.0.0.3"));
        source.run(|| Yielded::new(ip("10.0.0.1"), "eth0").unwrap().detach());
        let addresses = shown(&source, "-4 address show dev eth0");
        assert!(!addresses.contains("10.0.0.1/24"), "{addresses}");
        assert!(
            addresses.contains("10.0.0.3/24") && addresses.contains("10.0.0.4/24"),
            "{addresses}"
        );
        assert!(shown(&source, "route").contains("default via 10.0.0.9"));
        neighbour.ping();
    });
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    isolated("what_cannot_be_is_refused_and_changes_nothing", || {
        let (host, peer) = (Host::new(), Host::new());
        let _switch = switch(&[(&host, 1), (&peer, 9)]);
        host.run(|| {
            let before = Command::new("ip").arg("address").output().unwrap().stdout;
            let error = Taken::new(ip("10.0.0.1"), 24, "eth0").unwrap_err();
            assert!(matches!(error, LockError::AddressInUse { .. }), "{error}");
            let error = Taken::new(ip("10.0.0.5"), 24, "none0").unwrap_err();
            assert!(matches!(error, LockError::NoDevice(_)), "{error}");
            let error = Yielded::new(ip("10.0.0.5"), "eth0").unwrap_err();
            assert!(matches!(error, LockError::NoAddress { .. }), "{error}");
            assert_eq!(
                Command::new("ip").arg("address").output().unwrap().stdout,
                before
            );
        });
    });
}

#[test]
fn without_privileges_the_error_says_what_is_missing() {
    const NAME: &str = "without_privileges_the_error_says_what_is_missing";
    let set_up = || {
        common::net::ip("link set lo up");
    };
    without_a_say(NAME, set_up, || {
        let errors = [
            Adopted::new(ip("2001:db8::5")).map(drop).unwrap_err(),
            Taken::new(ip("192.0.2.1"), 32, "lo").map(drop).unwrap_err(),
            Yielded::new(ip("127.0.0.1"), "lo").map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, LockError::NoPermission { .. }), "{error}");
        }
    });
}
