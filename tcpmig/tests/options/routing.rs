//! Options that decide routing are there when the route is looked up.

use std::net::IpAddr;
use std::os::fd::AsFd;

use tcpmig::restore::RestoreError;
use tcpmig_sys::lab::Host;
use tcpmig_sys::sockopt;

use crate::scene::{arrive, build, leave, moves};
use crate::support::{END, Family, Net, both_ways, kernel_test};

const FAR: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];

/// The peer has an address behind itself, to which host A has a route.
fn with_far_peer() -> Net {
    let net = Net::new();
    net.peer
        .ip(&format!(
            "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad",
            FAR[0], FAR[1]
        ))
        .unwrap();
    net.a
        .ip(&format!(
            "route add {} via 198.18.0.9\nroute add {} via 2001:2::9",
            FAR[0], FAR[1]
        ))
        .unwrap();
    for device in ["all", "eth0"] {
        let setting = format!("net/ipv4/conf/{device}/rp_filter");
        net.b.set(&setting, "0").unwrap();
    }
    net
}

fn far(family: Family) -> IpAddr {
    FAR[usize::from(family == Family::V6)].parse().unwrap()
}

/// A route to the far peer in a table of its own, for packets that a rule selects.
fn route_by_rule(host: &Host, rule: &str) {
    for (family, far, via) in [("", FAR[0], "198.18.0.9"), ("-6 ", FAR[1], "2001:2::9")] {
        let lines = [
            ["rule add ", rule, " table 77"].concat(),
            format!("route add {far} via {via} table 77"),
        ];
        for line in lines {
            // `ip -batch` takes no options in its lines.
            let mut command = host.command("ip").unwrap();
            let done = command
                .args(family.split_whitespace())
                .args(line.split_whitespace())
                .output();
            let done = done.unwrap();
            assert!(
                done.status.success(),
                "{line}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
    }
}

kernel_test!(a_mark_decides_the_route, || {
    for family in [Family::V4, Family::V6] {
        let net = with_far_peer();
        route_by_rule(&net.b, "fwmark 0x77");
        let (peer, server) = net.connect_from(family, Some(far(family)));
        let ends = net.peer.count(END);
        sockopt::set_mark(server.as_fd(), 0x77).unwrap();
        let image = leave(&net.a, server);
        net.point_peer_at_b();

        let mut unmarked = image.clone();
        unmarked.ip_mut().unwrap().mark = None;
        match build(&net.b, unmarked) {
            Err(RestoreError::Socket(error)) => {
                assert!(error.to_string().contains("no route"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        let moved = arrive(&net.b, image);
        assert_eq!(sockopt::mark(moved.as_fd()).unwrap(), 0x77);
        both_ways(&peer, &moved);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
});

kernel_test!(a_type_of_service_decides_the_route, || {
    let net = with_far_peer();
    let mut rule = net.b.command("ip").unwrap();
    rule.args(["rule", "add", "tos", "0x10", "table", "77"]);
    assert!(rule.status().unwrap().success());
    let mut route = net.b.command("ip").unwrap();
    route.args(["route", "add", FAR[0], "via", "198.18.0.9", "table", "77"]);
    assert!(route.status().unwrap().success());
    let (peer, server) = net.connect_from(Family::V4, Some(far(Family::V4)));
    sockopt::set_tos(server.as_fd(), 0x10).unwrap();
    let image = leave(&net.a, server);
    net.point_peer_at_b();
    let mut plain = image.clone();
    plain.ip_mut().unwrap().tos = None;
    assert!(matches!(build(&net.b, plain), Err(RestoreError::Socket(_))));
    let moved = arrive(&net.b, image);
    both_ways(&peer, &moved);
});

kernel_test!(every_packet_has_the_header_fields, || {
    for (family, from, unlike) in [
        (
            Family::V4,
            "ip saddr 198.18.0.80",
            ["ip dscp != 0x12", "ip ttl != 44"],
        ),
        (
            Family::Mapped,
            "ip saddr 198.18.0.80",
            ["ip dscp != 0x12", "ip ttl != 44"],
        ),
        (
            Family::V6,
            "ip6 saddr 2001:2::80",
            ["ip6 dscp != 0x12", "ip6 hoplimit != 33"],
        ),
    ] {
        for unlike in unlike {
            let net = Net::new();
            let (peer, server) = net.connect(family);
            let fd = server.as_fd();
            if family == Family::V6 {
                sockopt::set_traffic_class(fd, 0x48).unwrap();
                sockopt::set_hop_limit(fd, 33).unwrap();
            } else {
                sockopt::set_tos(fd, 0x48).unwrap();
                sockopt::set_ttl(fd, 44).unwrap();
            }
            let image = leave(&net.a, server);
            net.point_peer_at_b();
            let others = net
                .peer
                .count(&format!("{from} tcp flags & psh != 0 {unlike}"));
            let moved = arrive(&net.b, image);
            both_ways(&peer, &moved);
            assert_eq!(others.packets(), 0, "{unlike}");
            // The counter counts what the socket sends.
            let fd = moved.as_fd();
            if family == Family::V6 {
                sockopt::set_traffic_class(fd, 0).unwrap();
                sockopt::set_hop_limit(fd, 64).unwrap();
            } else {
                sockopt::set_tos(fd, 0).unwrap();
                sockopt::set_ttl(fd, 64).unwrap();
            }
            both_ways(&peer, &moved);
            assert_ne!(others.packets(), 0, "{unlike}");
        }
    }
});

kernel_test!(a_bound_device_decides_the_route, || {
    for family in [Family::V4, Family::V6] {
        let net = with_far_peer();
        // A second device of host B, with the better route that leads nowhere.
        net.b
            .ip("link add dead type veth peer name end
                 link set dead up
                 link set end up
                 addr add 192.0.2.1/24 dev dead
                 addr add 2001:db8:ff::1/64 dev dead nodad")
            .unwrap();
        for (dead, alive) in [
            ("via 192.0.2.9 dev dead", "via 198.18.0.9 dev eth0"),
            ("via 2001:db8:ff::9 dev dead", "via 2001:2::9 dev eth0"),
        ] {
            let far = if dead.contains("db8") { FAR[1] } else { FAR[0] };
            net.b
                .ip(&format!(
                    "route add {far} {dead} metric 1\nroute add {far} {alive} metric 9"
                ))
                .unwrap();
        }
        let (peer, server) = net.connect_from(family, Some(far(family)));
        let ends = net.peer.count(END);
        sockopt::set_bound_device(server.as_fd(), "eth0").unwrap();
        let moved = moves(&net, server);
        let device = sockopt::bound_device(moved.as_fd()).unwrap();
        assert_eq!(device.as_deref(), Some("eth0"));
        both_ways(&peer, &moved);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
});

// One that moves: `tests/kernels/vrf.rs`.
kernel_test!(a_connection_of_a_vrf_is_refused_where_there_is_none, || {
    let net = Net::new();
    let (_peer, server) = net.connect(Family::V4);
    let mut image = leave(&net.a, server);
    image.ip_mut().unwrap().bound_device = Some("blue".to_owned());
    match build(&net.b, image) {
        Err(RestoreError::Option(option)) => assert_eq!(
            option.to_string(),
            "SO_BINDTODEVICE=blue: this host has no such device (ENODEV)"
        ),
        other => panic!("{other:?}"),
    }
});
