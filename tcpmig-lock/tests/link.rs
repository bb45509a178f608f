//! Unplugging a device: all that the kernel forgets of it comes back, and what must stay reachable is not cut off.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::net::{Connection, Host, expect, link, send, switch};
use common::{eventually, ip, isolated, slowed, without_a_say};
use tcpmig_lock::{FourTuple, Link, LockError, Locker, Unplug};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);

fn flow() -> FourTuple {
    "10.0.0.1:80,10.0.0.9:1025".parse().unwrap()
}

/// What `ip` prints for a host, line by line, sorted.
fn shown(host: &Host, arguments: &str) -> Vec<String> {
    let output = host.run(|| {
        Command::new("ip")
            .args(arguments.split_whitespace())
            .output()
    });
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    // Seconds that run on, and states of neighbours that are asked for again.
    let steady = |word: &&str| {
        !word.ends_with("sec") && !["REACHABLE", "DELAY", "STALE", "PROBE"].contains(word)
    };
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.split_whitespace()
                .filter(steady)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    lines.sort();
    lines
}

fn all(host: &Host) -> Vec<String> {
    let questions = [
        "address show",
        "-4 route show table all",
        "-6 route show table all",
        "neighbour show",
        "neighbour show proxy",
    ];
    questions
        .into_iter()
        .flat_map(|question| shown(host, question))
        .collect()
}

#[test]
fn addresses_routes_and_neighbours_come_back() {
    isolated("addresses_routes_and_neighbours_come_back", || {
        let (server, client) = (Host::new(), Host::new());
        link(&server, &client);
        // As on hosts that are not told otherwise.
        server.sysctl("ipv6/conf/eth0/accept_dad", "1");
        for host in [&server, &client] {
            host.settle("eth0");
        }
        for command in [
            "address add 10.0.0.77/24 dev eth0",
            "address add 10.3.0.1/16 dev eth0 valid_lft 5000 preferred_lft 4000",
            "address add 2001:db8::77/64 dev eth0 nodad valid_lft 5000 preferred_lft 4000",
            "address add 2001:db8:7::1/64 dev eth0 nodad noprefixroute",
            "route add 192.0.2.0/24 via 10.0.0.9",
            "route add 192.0.3.0/24 via 10.0.0.9 metric 50 mtu 1300",
            "route add 192.0.3.0/24 via 10.0.0.8 metric 60",
            "route add 192.0.4.0/24 via inet6 2001:db8::9 dev eth0",
            "route add 192.0.5.0/24 nexthop via 10.0.0.8 nexthop via 10.0.0.9",
            "route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink",
            "route add default via 10.0.0.9 src 10.0.0.77",
            "route add 192.0.2.7 dev eth0 table 77",
            "route add 2001:db8:1::/64 via 2001:db8::9",
            "route add 2001:db8:2::/64 nexthop via 2001:db8::8 nexthop via 2001:db8::9",
            "route add 2001:db8:3::/64 via 2001:db8:1::5 dev eth0 onlink table 77 expires 5000",
            "route add default via 2001:db8::9 metric 77 pref high",
            "neighbour add 10.0.0.8 lladdr 02:00:00:00:00:08 dev eth0 nud permanent",
            "neighbour add 2001:db8::8 lladdr 02:00:00:00:00:08 dev eth0 nud permanent",
            "neighbour add proxy 10.0.0.50 dev eth0",
        ] {
            server.ip(command);
        }
        let mut connections = ["10.0.0.1", "2001:db8::1"]
            .map(|address| Connection::new(&server, &client, ip(address)));
        connections.iter_mut().for_each(Connection::ping);
        let before = all(&server);
        let locker = server.run(|| Link::new("eth0", Unplug::Down).unwrap());
        for _ in 0..3 {
            let guard = locker.lock(&[connections[0].flow()], LEASE).unwrap();
            assert!(
                shown(&server, "link show dev eth0")
                    .join(" ")
                    .contains("state DOWN")
            );
            assert!(shown(&server, "-6 address show dev eth0").is_empty());
            assert!(!shown(&server, "route").join(" ").contains("default"));
            for connection in &mut connections {
                send(&mut connection.server, b's');
            }
            guard.unlock().unwrap();
            let differs = || {
                let after = all(&server);
                let only = |one: &[String], other: &[String]| -> Vec<String> {
                    one.iter()
                        .filter(|line| !other.contains(line))
                        .cloned()
                        .collect()
                };
                (only(&before, &after), only(&after, &before))
            };
            // Addresses can be used at once, without the second that duplicate address detection takes.
            let tentative = shown(&server, "-6 address show dev eth0 tentative");
            assert!(tentative.is_empty(), "{tentative:?}");
            // The kernel notices the carrier in a moment of its own.
            eventually("everything is as it was", || {
                let differs = differs();
                if differs != (Vec::new(), Vec::new()) {
                    println!("{differs:?}");
                    return None;
                }
                Some(())
            });
            for connection in &mut connections {
                expect(&mut connection.client, b's');
                connection.ping();
            }
        }
        let dad = server.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_dad"));
        assert_eq!(dad.unwrap().trim(), "1");
    });
}

#[test]
fn a_macvlan_goes_down_and_what_it_is_on_does_not() {
    isolated("a_macvlan_goes_down_and_what_it_is_on_does_not", || {
        let (host, inner, client) = (Host::new(), Host::new(), Host::new());
        link(&host, &client);
        host.ip(&format!(
            "link add link eth0 name mac0 netns {} type macvlan mode bridge",
            inner.path()
        ));
        inner.ip("address add 10.0.0.5/24 dev mac0");
        inner.ip("link set mac0 up");
        let mut mine = Connection::new(&inner, &client, ip("10.0.0.5"));
        let mut other = Connection::new(&host, &client, ip("10.0.0.1"));
        let locker = inner.run(|| Link::of("mac0").unwrap());
        let guard = locker.lock(&[mine.flow()], LEASE).unwrap();
        send(&mut mine.client, b'c');
        send(&mut mine.server, b's');
        other.ping();
        common::net::expect_nothing(&mine.server);
        common::net::expect_nothing(&mine.client);
        guard.unlock().unwrap();
        expect(&mut mine.server, b'c');
        expect(&mut mine.client, b's');
    });
}

#[test]
fn a_port_comes_back_with_its_settings() {
    isolated("a_port_comes_back_with_its_settings", || {
        let (server, client) = (Host::new(), Host::new());
        let switch = switch(&[(&server, 1), (&client, 9)]);
        switch.ip(
            "link set port1 type bridge_slave isolated on hairpin on cost 7 priority 9 flood off",
        );
        let station = || {
            let add = "fdb add 02:00:00:00:00:42 dev port1 master static";
            let added = Command::new("bridge").args(add.split(' ')).status();
            assert!(added.unwrap().success());
        };
        switch.run(station);
        let settings = || {
            let text = shown(&switch, "-d link show dev port1").join(" ");
            let words = [
                "isolated on",
                "hairpin on",
                "cost 7",
                "priority 9",
                "flood off",
            ];
            words.map(|word| text.contains(word))
        };
        assert_eq!(settings(), [true; 5]);
        let locker = switch.run(|| Link::of("port1").unwrap());
        let guard = locker.lock(&[flow()], LEASE).unwrap();
        assert!(
            !shown(&switch, "link show dev port1")
                .join(" ")
                .contains("master")
        );
        guard.unlock().unwrap();
        assert_eq!(settings(), [true; 5]);
        let stations = switch.run(|| Command::new("bridge").args(["fdb", "show"]).output());
        let stations = String::from_utf8(stations.unwrap().stdout).unwrap();
        let mine = stations
            .lines()
            .find(|line| line.starts_with("02:00:00:00:00:42"));
        assert!(
            mine.is_some_and(|line| line.contains("static")),
            "{stations}"
        );
    });
}

#[test]
fn what_cannot_be_unplugged_is_refused() {
    isolated("what_cannot_be_unplugged_is_refused", || {
        let (server, client) = (Host::new(), Host::new());
        let switch = switch(&[(&server, 1), (&client, 9)]);
        let refused = |host: &Host, device: &str, unplug, expected: &str| {
            let error = host.run(|| {
                let locker = Link::new(device, unplug).unwrap();
                let error = locker.lock(&[flow()], LEASE).map(drop).unwrap_err();
                assert_eq!(locker.list().unwrap(), []);
                error
            });
            let LockError::CannotUnplug {
                device: named,
                reason,
            } = &error
            else {
                panic!("{error}");
            };
            assert!(named == device && reason.contains(expected), "{error}");
        };
        refused(&server, "eth0", Unplug::Port, "not a port");
        refused(&server, "lo", Unplug::Down, "loopback");
        let filter = || {
            let set = "link set br0 type bridge vlan_filtering 1";
            Command::new("ip").args(set.split(' ')).output().unwrap()
        };
        if switch.run(filter).status.success() {
            refused(&switch, "port1", Unplug::Port, "VLAN");
        } else {
            println!("this kernel's bridges filter no VLANs: a port can always be unplugged");
            let locker = switch.run(|| Link::new("port1", Unplug::Port).unwrap());
            drop(locker.lock(&[flow()], LEASE).unwrap());
        }
        server.ip("link set eth0 down");
        refused(&server, "eth0", Unplug::Down, "is down");
        let unknown = server.run(|| Link::new("none0", Unplug::Down)).map(drop);
        assert!(matches!(unknown, Err(LockError::NoDevice(name)) if name == "none0"));
    });
}

#[test]
fn what_must_stay_reachable_is_not_cut_off() {
    isolated("what_must_stay_reachable_is_not_cut_off", || {
        let (server, client, other) = (Host::new(), Host::new(), Host::new());
        let switch = switch(&[(&server, 1), (&client, 9)]);
        server.ip(&format!(
            "link add eth1 type veth peer name eth1 netns {}",
            other.path()
        ));
        server.ip("address add 10.0.1.1/24 dev eth1");
        server.ip("link set eth1 up");
        server.ip("route add 192.0.2.0/24 via 10.0.0.9");
        server.ip("link add link eth0 name mac0 type macvlan");
        server.ip("address add 10.0.7.1/24 dev mac0");
        server.ip("link set mac0 up");
        let locker = server.run(|| Link::new("eth0", Unplug::Down).unwrap());
        for (address, expected) in [
            ("10.0.0.9", true),
            ("192.0.2.7", true),
            ("2001:db8::9", true),
            ("10.0.7.9", true),
            ("10.0.1.9", false),
            ("10.0.0.1", false),
            ("203.0.113.1", false),
        ] {
            assert_eq!(locker.cuts_off(ip(address)).unwrap(), expected, "{address}");
        }
        let locker = locker.keeps(ip("10.0.1.9")).keeps(ip("192.0.2.7"));
        let error = locker.lock(&[flow()], LEASE).map(drop).unwrap_err();
        assert!(
            matches!(&error, LockError::CutsOff { address, device }
                if *address == ip("192.0.2.7") && device == "eth0"),
            "{error}"
        );
        assert_eq!(locker.list().unwrap(), []);
        assert!(
            shown(&server, "link show dev eth0")
                .join(" ")
                .contains("state UP")
        );

        // A bridge knows which port a neighbour is behind.
        switch.ip("address add 10.0.0.20/24 dev br0");
        for address in ["10.0.0.1", "10.0.0.9"] {
            let socket = switch.run(|| std::net::UdpSocket::bind("10.0.0.20:0").unwrap());
            eventually("the neighbour is known", || {
                socket.send_to(b"x", (address, 9)).unwrap();
                let lines = shown(&switch, "neighbour show dev br0");
                let known = |line: &String| line.starts_with(address) && line.contains("lladdr");
                lines.iter().any(known).then_some(())
            });
        }
        let port = switch.run(|| Link::new("port1", Unplug::Port).unwrap());
        assert!(port.cuts_off(ip("10.0.0.1")).unwrap());
        assert!(!port.cuts_off(ip("10.0.0.9")).unwrap());
    });
}

#[test]
fn one_device_in_two_ways_is_refused_and_two_devices_are_not() {
    isolated(
        "one_device_in_two_ways_is_refused_and_two_devices_are_not",
        || {
            let (server, client) = (Host::new(), Host::new());
            let switch = switch(&[(&server, 1), (&client, 9)]);
            let open = |device: &str, unplug| switch.run(|| Link::new(device, unplug).unwrap());
            let port = open("port1", Unplug::Port);
            let guard = port.lock(&[flow()], LEASE).unwrap();
            let error = open("port1", Unplug::Down)
                .lock(&["10.0.0.1:81,10.0.0.9:1025".parse().unwrap()], LEASE)
                .map(drop);
            assert!(
                matches!(error, Err(LockError::CannotUnplug { .. })),
                "{error:?}"
            );
            let other = open("port9", Unplug::Port).lock(&[flow()], LEASE).unwrap();
            assert_eq!(switch.run(|| Link::list_all().unwrap()).len(), 2);
            port.force_unlock(&[flow()]).unwrap();
            assert!(
                shown(&switch, "link show dev port1")
                    .join(" ")
                    .contains("master")
            );
            assert!(
                !shown(&switch, "link show dev port9")
                    .join(" ")
                    .contains("master")
            );
            assert_eq!(switch.run(|| Link::list_all().unwrap()).len(), 1);
            other.unlock().unwrap();
            guard.unlock().unwrap();
            assert!(switch.run(|| Link::sweep_all().unwrap()).is_empty());
        },
    );
}

/// The number of a host's network namespace, which the kernel gives to a later one when this one has ended.
fn inode(host: &Host) -> u64 {
    let namespace = host.run(|| fs::metadata("/proc/thread-self/ns/net"));
    namespace.unwrap().ino()
}

/// The file that says what a host has unplugged, and the directory that it is in.
fn file_of(host: &Host) -> PathBuf {
    let start = format!("link-{}-", inode(host));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_default();
    let mut places = vec![
        PathBuf::from("/run/tcpmig"),
        PathBuf::from(runtime).join("tcpmig"),
    ];
    // `/tmp/tcpmig-` and the user's number.
    for entry in fs::read_dir(std::env::temp_dir()).unwrap() {
        places.push(entry.unwrap().path());
    }
    let mut files = places
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&start))
    };
    files.find(is_it).unwrap()
}

#[test]
fn what_a_namespace_left_that_has_ended_is_not_taken_for_this_one() {
    isolated(
        "what_a_namespace_left_that_has_ended_is_not_taken_for_this_one",
        || {
            let (one, other) = (Host::new(), Host::new());
            let (earlier, later) = (switch(&[(&one, 1)]), switch(&[(&other, 1)]));
            let open = |host: &Host, unplug| host.run(|| Link::new("port1", unplug).unwrap());
            let guard = open(&earlier, Unplug::Port).lock(&[flow()], LEASE).unwrap();
            let left = file_of(&earlier);
            // The same number and the same device, in another namespace: the kernel does this whenever one ends.
            let name = left.file_name().unwrap().to_str().unwrap();
            let number = |host| format!("link-{}-", inode(host));
            let name = name.replace(&number(&earlier), &number(&later));
            fs::copy(&left, left.with_file_name(name)).unwrap();

            assert!(later.run(|| Link::list_all().unwrap()).is_empty());
            assert!(later.run(|| Link::unplugged_all().unwrap()).is_empty());
            let before = shown(&later, "-d link show dev port1");
            let locker = open(&later, Unplug::Down);
            let own = locker.lock(&[flow()], LEASE).unwrap();
            assert_eq!(later.run(|| Link::list_all().unwrap()).len(), 1);
            own.unlock().unwrap();
            let up = shown(&later, "-d link show dev port1");
            assert_eq!(steady(&up), steady(&before));
            assert_eq!(earlier.run(|| Link::list_all().unwrap()).len(), 1);
            guard.unlock().unwrap();
        },
    );
}

/// Lines of a bridge's port without the state that it goes through, and the timers of it.
fn steady(lines: &[String]) -> Vec<String> {
    let passing = |line: &&String| !line.contains("bridge_slave");
    lines.iter().filter(passing).cloned().collect()
}

#[test]
fn a_device_that_somebody_plugged_in_is_unplugged_by_the_next_lock() {
    const NAME: &str = "a_device_that_somebody_plugged_in_is_unplugged_by_the_next_lock";
    isolated(NAME, || {
        let (server, client) = (Host::new(), Host::new());
        link(&server, &client);
        server.settle("eth0");
        server.ip("route add 192.0.2.0/24 via 10.0.0.9");
        let before = all(&server);
        let locker = server.run(|| Link::new("eth0", Unplug::Down).unwrap());
        let one = locker.lock(&[flow()], LEASE).unwrap();
        server.ip("link set eth0 up");
        let other = "10.0.0.1:81,10.0.0.9:1025".parse().unwrap();
        let two = locker.lock(&[other], LEASE).unwrap();
        let state = || shown(&server, "link show dev eth0").join(" ");
        assert!(state().contains("state DOWN"), "{}", state());
        one.unlock().unwrap();
        assert!(state().contains("state DOWN"), "{}", state());
        two.unlock().unwrap();
        assert_eq!(all(&server), before);
    });
}

#[test]
fn a_device_that_went_away_is_swept() {
    isolated("a_device_that_went_away_is_swept", || {
        let (server, client) = (Host::new(), Host::new());
        link(&server, &client);
        let locker = server.run(|| Link::new("eth0", Unplug::Down).unwrap());
        let guard = locker
            .lock(&[flow()], slowed(Duration::from_secs(1)))
            .unwrap();
        server.ip("link delete eth0");
        guard.detach();
        eventually("the lease ends", || {
            let _ = locker.sweep().unwrap();
            locker.list().unwrap().is_empty().then_some(())
        });
        // It may have ended since this was swept last.
        let _ = locker.sweep().unwrap();
        assert!(locker.sweep().unwrap().is_empty());
    });
}

#[test]
fn without_privileges_the_error_says_what_is_missing() {
    const NAME: &str = "without_privileges_the_error_says_what_is_missing";
    let set_up = || {
        common::net::ip("link add veth0 type veth peer name veth1");
        common::net::ip("link set veth0 up");
    };
    without_a_say(NAME, set_up, || {
        let locker = Link::new("veth0", Unplug::Down).unwrap();
        let error = locker.lock(&[flow()], LEASE).map(drop).unwrap_err();
        assert!(matches!(error, LockError::NoPermission { .. }), "{error}");
        assert_eq!(locker.list().unwrap(), []);
    });
}
