//! Addresses, and connections that are rebuilt before their address is there.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use tcpmig::restore::RestoreError;
use tcpmig_format::SocketFamily;
use tcpmig_sys::{Error, netns, sockopt};

use crate::scene::{activate, arrive, build, leave, moves};
use crate::support::{END, Family, Net, both_ways, kernel_test, until};

kernel_test!(addresses_are_the_same_in_the_socket_s_own_family, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        let net = Net::new();
        let (peer, server) = net.connect(family);
        let ends = net.peer.count(END);
        let local = server.local_addr().unwrap();
        let remote = server.peer_addr().unwrap();
        assert_eq!(local.is_ipv4(), family == Family::V4);
        let v6_only = |stream: &TcpStream| {
            (family != Family::V4).then(|| sockopt::v6_only(stream.as_fd()).unwrap())
        };
        let was = v6_only(&server);
        let moved = moves(&net, server);
        assert_eq!(moved.local_addr().unwrap(), local);
        assert_eq!(moved.peer_addr().unwrap(), remote);
        assert_eq!(v6_only(&moved), was);
        // A socket that is bound to an address of IPv6 has it on.
        assert_eq!(
            was,
            match family {
                Family::V4 => None,
                Family::V6 => Some(true),
                Family::Mapped => Some(false),
            }
        );
        both_ways(&peer, &moved);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
});

/// Gives host B's `eth0` another index and keeps its name: a bridge over the device.
fn renumber(net: &Net) {
    net.b
        .ip("link set eth0 down
             link set eth0 name port
             link add eth0 type bridge
             link set port master eth0
             link set port up
             link set eth0 up
             addr add 198.18.0.2/24 dev eth0
             addr add 2001:2::2/64 dev eth0 nodad")
        .unwrap();
    for device in ["port", "eth0"] {
        net.b.wait_for(device).unwrap();
    }
}

fn index(net: &tcpmig_sys::lab::Host) -> u32 {
    net.run(|| netns::device_index("eth0")).unwrap().unwrap()
}

/// A connection to a link-local address of host A.
pub(crate) fn link_local(net: &Net) -> (TcpStream, TcpStream) {
    let service: Ipv6Addr = "fe80::80".parse().unwrap();
    net.a.ip("addr add fe80::80/64 dev eth0 nodad").unwrap();
    let on = |address, port, index| SocketAddr::from(SocketAddrV6::new(address, port, 0, index));
    let listener = net
        .a
        .run(|| TcpListener::bind(on(service, 0, index(&net.a))).unwrap())
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = net
        .peer
        .run(|| TcpStream::connect(on(service, port, index(&net.peer))).unwrap())
        .unwrap();
    let (server, _) = listener.accept().unwrap();
    (peer, server)
}

pub(crate) fn take_link_local_to_b(net: &Net) {
    net.a.ip("addr del fe80::80/64 dev eth0").unwrap();
    net.b.ip("addr add fe80::80/64 dev eth0 nodad").unwrap();
    let show = net
        .b
        .command("ip")
        .unwrap()
        .args(["-o", "link", "show", "eth0"])
        .output();
    let text = String::from_utf8(show.unwrap().stdout).unwrap();
    let mac = text.split_once("link/ether ").unwrap().1;
    let mac = mac.split_whitespace().next().unwrap();
    let line = format!("neigh replace fe80::80 lladdr {mac} dev eth0");
    net.peer.ip(&line).unwrap();
}

kernel_test!(a_link_local_connection_finds_its_interface_by_name, || {
    let net = Net::new();
    renumber(&net);
    assert_ne!(index(&net.a), index(&net.b));
    let (peer, server) = link_local(&net);
    let ends = net.peer.count(END);
    let image = leave(&net.a, server);
    let ip = image.ip().unwrap();
    assert_eq!(ip.family, SocketFamily::Ipv6);
    assert_eq!(ip.scope.as_deref(), Some("eth0"));
    take_link_local_to_b(&net);
    let moved = arrive(&net.b, image);
    let SocketAddr::V6(local) = moved.local_addr().unwrap() else {
        panic!("an address of IPv6");
    };
    assert_eq!(local.scope_id(), index(&net.b));
    both_ways(&peer, &moved);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

/// Sets an option, builds the connection where its address is not, brings the address and lets it live.
fn built_before_its_address(
    family: Family,
    set: fn(BorrowedFd<'_>, bool) -> Result<(), Error>,
    read: fn(BorrowedFd<'_>) -> [bool; 2],
) {
    let net = Net::without_service_on_b();
    let (peer, server) = net.connect(family);
    let ends = net.peer.count(END);
    assert_eq!(read(server.as_fd()), [false, false]);
    set(server.as_fd(), true).unwrap();
    let were = read(server.as_fd());
    let image = leave(&net.a, server);
    let prepared = build(&net.b, image).unwrap();
    net.b
        .hold_silently(&["198.18.0.80/32", "2001:2::80/128"])
        .unwrap();
    net.point_peer_at_b();
    let restored = activate(prepared);
    assert!(restored.not_set.is_empty());
    let moved = TcpStream::from(restored.socket);
    assert_eq!(read(moved.as_fd()), were);
    both_ways(&peer, &moved);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
}

fn v4_flags(fd: BorrowedFd<'_>) -> [bool; 2] {
    [
        sockopt::freebind(fd).unwrap(),
        sockopt::transparent(fd).unwrap(),
    ]
}

fn v6_flags(fd: BorrowedFd<'_>) -> [bool; 2] {
    [
        sockopt::freebind_v6(fd).unwrap(),
        sockopt::transparent_v6(fd).unwrap(),
    ]
}

kernel_test!(a_freebind_connection_is_built_before_its_address, || {
    built_before_its_address(Family::V4, sockopt::set_freebind, v4_flags);
    built_before_its_address(Family::V6, sockopt::set_freebind_v6, v6_flags);
    built_before_its_address(Family::Mapped, sockopt::set_freebind_v6, v6_flags);
});

kernel_test!(a_transparent_connection_is_built_before_its_address, || {
    built_before_its_address(Family::V4, sockopt::set_transparent, v4_flags);
    built_before_its_address(Family::V6, sockopt::set_transparent_v6, v6_flags);
    built_before_its_address(Family::Mapped, sockopt::set_transparent_v6, v6_flags);
});

kernel_test!(another_connection_waits_for_its_address, || {
    for family in [Family::V4, Family::V6] {
        let net = Net::without_service_on_b();
        let (peer, server) = net.connect(family);
        let image = leave(&net.a, server);
        match build(&net.b, image.clone()) {
            Err(RestoreError::Socket(error)) => {
                let text = error.to_string();
                assert!(
                    text.contains("bind") && text.contains("not on this host"),
                    "{text}"
                );
            }
            other => panic!("{other:?}"),
        }
        net.b
            .hold_silently(&["198.18.0.80/32", "2001:2::80/128"])
            .unwrap();
        net.point_peer_at_b();
        let moved = arrive(&net.b, image);
        let flags = if family == Family::V4 {
            v4_flags
        } else {
            v6_flags
        };
        assert_eq!(flags(moved.as_fd()), [false, false]);
        both_ways(&peer, &moved);
    }
});

/// Adds the address of the service on host B, where duplicates are looked for once a second, for longer than a test.
fn add_on_b(net: &Net, words: &str) {
    for (setting, value) in [
        ("all/accept_dad", "1"),
        ("eth0/accept_dad", "1"),
        ("eth0/optimistic_dad", "0"),
        ("eth0/dad_transmits", "1000"),
    ] {
        net.b
            .set(&format!("net/ipv6/conf/{setting}"), value)
            .unwrap();
    }
    net.b
        .ip(&format!("addr add 2001:2::80/128 dev eth0 {words}"))
        .unwrap();
}

fn add_anew_on_b(net: &Net) {
    net.b.nft("delete table inet deaf");
    net.b
        .ip("addr del 2001:2::80/128 dev eth0\naddr add 2001:2::80/128 dev eth0 nodad")
        .unwrap();
}

/// The image of a connection to an address that host B has from now on, with these words for `ip addr add`.
fn with_address_on_b(words: &str, rules: Option<&str>) -> (Net, TcpStream, tcpmig_format::Image) {
    let net = Net::without_service_on_b();
    let (peer, server) = net.connect(Family::V6);
    let image = leave(&net.a, server);
    if let Some(rules) = rules {
        net.b.nft(rules);
    }
    add_on_b(&net, words);
    (net, peer, image)
}

/// Host A has the address too, and would say so.
const DEAF: &str = "table inet deaf { chain c { type filter hook input priority raw; icmpv6 type nd-neighbor-advert drop; }; }";

#[track_caller]
fn assert_not_usable(built: Result<tcpmig::restore::Prepared, RestoreError>, words: &str) {
    match built {
        Err(RestoreError::Socket(error @ Error::NotUsable { .. })) => {
            let text = error.to_string();
            assert!(text.contains("2001:2::80 is on eth0"), "{text}");
            assert!(text.contains(words), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

kernel_test!(an_address_that_is_tentative_is_named, || {
    let (net, peer, image) = with_address_on_b("", Some(DEAF));
    let built = build(&net.b, image.clone());
    assert_not_usable(built, "duplicate address detection is under way");
    // As the hint says.
    add_anew_on_b(&net);
    net.point_peer_at_b();
    both_ways(&peer, &arrive(&net.b, image));
});

kernel_test!(an_address_that_another_host_has_is_named, || {
    let (net, _peer, image) = with_address_on_b("", None);
    until("host A says that it has it", || {
        let mut show = net.b.command("ip").unwrap();
        let shown = show.args(["-6", "addr", "show", "dadfailed"]).output();
        String::from_utf8(shown.unwrap().stdout)
            .unwrap()
            .contains("2001:2::80")
    });
    let built = build(&net.b, image);
    assert_not_usable(built, "another host of the link has it (dadfailed)");
});

kernel_test!(a_deprecated_address_serves, || {
    let (net, peer, image) = with_address_on_b("nodad preferred_lft 0", None);
    net.point_peer_at_b();
    both_ways(&peer, &arrive(&net.b, image));
});

kernel_test!(
    a_freebind_connection_is_built_while_its_address_is_tentative,
    || {
        let net = Net::without_service_on_b();
        let (peer, server) = net.connect(Family::V6);
        sockopt::set_freebind_v6(server.as_fd(), true).unwrap();
        let image = leave(&net.a, server);
        net.b.nft(DEAF);
        add_on_b(&net, "");
        let prepared = build(&net.b, image).unwrap();
        add_anew_on_b(&net);
        net.point_peer_at_b();
        both_ways(&peer, &TcpStream::from(activate(prepared).socket));
    }
);
