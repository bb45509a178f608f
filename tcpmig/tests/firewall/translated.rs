//! Connections whose packets the host rewrites: refused by name, before anything is touched.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig::capture::{CaptureError, Plan};
use tcpmig::driver::{Ending, Options, Reason};
use tcpmig::listener::{self, Waiting};
use tcpmig_lock::conntrack::Translation;
use tcpmig_sys::lab::Host;

use crate::support::{Net, PATIENCE, Site, both_ways, flow, kernel_test};

const SERVICE_V6: &str = "2001:2::80";
const PORT: u16 = 8080;

fn listen(host: &Host, address: &str, port: u16) -> TcpListener {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    host.run(|| TcpListener::bind(address)).unwrap().unwrap()
}

fn connect(host: &Host, from: Option<&str>, to: &str, port: u16) -> TcpStream {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
        let socket = socket.unwrap();
        if let Some(from) = from {
            let from: IpAddr = from.parse().unwrap();
            socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        }
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        TcpStream::from(socket)
    };
    host.run(connect).unwrap()
}

fn planned(host: &Host, socket: &TcpStream) -> Result<Plan, CaptureError> {
    host.run(|| Plan::read(socket.as_fd())).unwrap()
}

/// The connection is refused for this, and goes on.
fn refused(host: &Host, socket: &TcpStream, other_end: &TcpStream) -> Translation {
    let error = planned(host, socket).expect_err("it is translated");
    assert!(error.is_not_migratable());
    let said = error.to_string();
    let CaptureError::Translated(translation) = error else {
        panic!("{error:?}");
    };
    assert!(said.contains(&translation.to_string()), "{said}");
    both_ways(socket, other_end);
    *translation
}

/// A connection from the peer to a service on host A, whose packets these rules rewrite.
fn arrives(rules: &str, service: &str, to_port: u16) -> (Net, TcpStream, TcpStream) {
    let net = Net::new();
    net.a.nft(rules);
    // `redirect` chooses another of the host's addresses.
    let any = if service == SERVICE_V6 {
        "::"
    } else {
        "0.0.0.0"
    };
    let listener = listen(&net.a, any, PORT);
    let peer = connect(&net.peer, None, service, to_port);
    let (server, _) = listener.accept().unwrap();
    (net, peer, server)
}

kernel_test!(what_is_sent_to_another_port, || {
    for service in ["198.18.0.80", SERVICE_V6] {
        let (net, peer, server) = arrives(
            "table inet nat { chain c { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }; }",
            service,
            80,
        );
        let translation = refused(&net.a, &server, &peer);
        assert_eq!(translation.from.1, peer.peer_addr().unwrap());
        assert_eq!(translation.to.1, server.local_addr().unwrap());
        assert!(translation.to_string().starts_with("DNAT: "));
    }
});

kernel_test!(what_is_sent_to_another_address, || {
    let net = Net::new();
    net.a.ip("addr add 198.18.0.81/24 dev eth0").unwrap();
    net.a.nft("table ip nat { chain c { type nat hook prerouting priority dstnat; ip daddr 198.18.0.81 tcp dport 8080 dnat to 198.18.0.80; }; }",
    );
    let listener = listen(&net.a, "198.18.0.80", PORT);
    let peer = connect(&net.peer, None, "198.18.0.81", PORT);
    let (server, _) = listener.accept().unwrap();
    let translation = refused(&net.a, &server, &peer);
    assert_eq!(translation.from.1, "198.18.0.81:8080".parse().unwrap());
});

kernel_test!(what_seems_to_come_from_another_address, || {
    let (net, peer, server) = arrives(
        "table ip nat { chain c { type nat hook input priority 100; tcp dport 8080 snat to 198.18.0.77; }; }",
        "198.18.0.80",
        PORT,
    );
    let seen = server.peer_addr().unwrap();
    assert_eq!(seen.ip(), "198.18.0.77".parse::<IpAddr>().unwrap());
    let translation = refused(&net.a, &server, &peer);
    assert_eq!(translation.from.0, peer.local_addr().unwrap());
    assert_eq!(translation.to.0, seen);
    assert!(translation.to_string().starts_with("SNAT: "));
});

kernel_test!(what_leaves_with_another_source, || {
    for rule in ["snat to 198.18.0.1", "masquerade to :20000-21000"] {
        let net = Net::new();
        net.a.nft(&format!(
                "table ip nat {{ chain c {{ type nat hook postrouting priority srcnat; tcp dport 8080 {rule}; }}; }}"
            ),
        );
        let listener = listen(&net.peer, "198.18.0.9", PORT);
        let client = connect(&net.a, Some("198.18.0.80"), "198.18.0.9", PORT);
        let (peer, from) = listener.accept().unwrap();
        let translation = refused(&net.a, &client, &peer);
        assert_eq!(translation.from.0, client.local_addr().unwrap());
        assert_eq!(translation.to.0, from);
    }
});

kernel_test!(both_ends_of_what_a_sidecar_takes, || {
    let net = Net::new();
    net.a.nft("table ip nat { chain c { type nat hook output priority -100; tcp dport 80 redirect to :8080; }; }",
    );
    let proxy = listen(&net.a, "127.0.0.1", PORT);
    let client = connect(&net.a, None, "198.18.0.9", 80);
    let (taken, _) = proxy.accept().unwrap();
    for (socket, other) in [(&client, &taken), (&taken, &client)] {
        let translation = refused(&net.a, socket, other);
        assert_eq!(translation.from.1, client.peer_addr().unwrap());
        assert_eq!(translation.to.1, taken.local_addr().unwrap());
    }
});

kernel_test!(a_handshake_made_by_synproxy, || {
    let net = Net::new();
    for (setting, value) in [
        ("net/netfilter/nf_conntrack_tcp_loose", "0"),
        ("net/ipv4/tcp_syncookies", "1"),
        ("net/ipv4/tcp_timestamps", "1"),
    ] {
        net.a.set(setting, value).unwrap();
    }
    net.a.nft("table ip proxy { chain raw { type filter hook prerouting priority raw; tcp dport 8080 tcp flags syn notrack; }; \
         chain in { type filter hook input priority filter; tcp dport 8080 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm; \
         ct state invalid drop; }; }",
    );
    let listener = listen(&net.a, "198.18.0.80", PORT);
    let peer = connect(&net.peer, None, "198.18.0.80", PORT);
    let (server, _) = listener.accept().unwrap();
    let translation = refused(&net.a, &server, &peer);
    assert_eq!(translation.from, translation.to);
    assert!(translation.proxied || translation.sequence_adjusted);
});

kernel_test!(zones_hide_nothing, || {
    for zone in ["ct zone set 7", "ct original zone set 7"] {
        let (net, peer, server) = arrives(
            &format!(
                "table ip nat {{ chain z {{ type filter hook prerouting priority raw; {zone}; }}; \
                 chain y {{ type filter hook output priority raw; {}; }}; \
                 chain c {{ type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }}; }}",
                if zone.contains("original") {
                    "accept"
                } else {
                    zone
                }
            ),
            "198.18.0.80",
            80,
        );
        for _ in 0..2 {
            refused(&net.a, &server, &peer);
        }
    }
});

kernel_test!(what_is_tracked_and_not_translated_moves, || {
    // With rules that translate others.
    for service in ["198.18.0.80", SERVICE_V6] {
        let (net, peer, server) = arrives(
            "table inet nat { chain c { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }; \
             chain p { type nat hook postrouting priority srcnat; tcp dport 80 masquerade; }; }",
            service,
            PORT,
        );
        let plan = planned(&net.a, &server).unwrap();
        assert_eq!(plan.flow(), flow(&server));
        both_ways(&peer, &server);
    }
});

kernel_test!(one_that_waits_in_a_listener, || {
    let net = Net::new();
    net.a.nft("table ip nat { chain c { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }; }",
    );
    let listener = listen(&net.a, "0.0.0.0", PORT);
    let peer = connect(&net.peer, None, "198.18.0.80", 80);
    let captured = net
        .a
        .run(|| listener::capture(listener.as_fd(), Waiting::Accept));
    let mut captured = captured.unwrap().unwrap();
    let server = TcpStream::from(captured.accepted.remove(0));
    refused(&net.a, &server, &peer);
});

kernel_test!(it_is_kept_before_the_target_hears_of_it, || {
    let (net, peer, server) = arrives(
        "table ip nat { chain c { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }; }",
        "198.18.0.80",
        80,
    );
    let (a, _b) = Site::pair(&net, &Options::default());
    // Nobody takes connections at the target: there it would fail otherwise.
    let outcome = a.move_out(server, None).wait();
    let Ending::Kept { socket, reason, .. } = outcome.ending else {
        panic!("{outcome:?}");
    };
    let Reason::Capture(CaptureError::Translated(_)) = reason else {
        panic!("{reason:?}");
    };
    both_ways(&peer, &TcpStream::from(socket));
});

kernel_test!(what_is_not_tracked_is_not_translated, || {
    let net = Net::new();
    // Another one is tracked, so that the table is looked through.
    net.a.nft("table inet t { chain c { type filter hook prerouting priority raw; tcp dport 8080 notrack; }; \
         chain o { type filter hook output priority raw; tcp sport 8080 notrack; }; \
         chain i { type filter hook input priority filter; ct state new accept; }; }",
    );
    let other = listen(&net.a, "198.18.0.80", 80);
    let _tracked = connect(&net.peer, None, "198.18.0.80", 80);
    let _accepted = other.accept().unwrap();
    let listener = listen(&net.a, "198.18.0.80", PORT);
    let _peer = connect(&net.peer, None, "198.18.0.80", PORT);
    let (server, _) = listener.accept().unwrap();
    for _ in 0..2 {
        assert_eq!(planned(&net.a, &server).unwrap().flow(), flow(&server));
    }
});
