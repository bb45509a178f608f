//! Rebuilds on hosts whose packet filter keeps to connections that it knows.

use std::os::fd::AsFd;

use tcpmig::restore::Prepared;
use tcpmig_format::Image;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::Host;

use crate::net::{Family, Net};
use crate::scene::{Loss, Scene, activate, build, capture, locker};

const STATES: [State; 6] = [
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::LastAck,
    State::Closing,
];

/// What is not known is dropped before anything else is looked at, counted, and nothing else passes than what belongs to
/// a connection.
const STRICT: &str = "table inet fw { counter n { }; \
    chain in { type filter hook input priority filter; policy drop; ct state invalid counter name n drop; \
    ct state established,related accept; meta l4proto ipv6-icmp accept; meta l4proto tcp counter name n drop; }; \
    chain out { type filter hook output priority filter; policy drop; ct state invalid counter name n drop; \
    ct state established,related accept; meta l4proto ipv6-icmp accept; meta l4proto tcp counter name n drop; }; }";

/// The same on a host that connections are opened to.
fn strict_server(host: &Host) {
    let opened = "meta l4proto tcp ct state new accept; meta l4proto ipv6-icmp";
    host.nft(&STRICT.replacen("meta l4proto ipv6-icmp", opened, 1));
    picks_nothing_up(host);
}

/// As Debian's examples: invalid packets are dropped before what comes in on `lo` is let in.
const INVALID_FIRST: &str = "table inet fw { counter n { }; \
    chain in { type filter hook input priority filter; policy drop; ct state invalid counter name n drop; \
    ct state established,related accept; iif lo accept; meta l4proto ipv6-icmp accept; counter name n; }; }";

fn picks_nothing_up(host: &Host) {
    host.set("net/netfilter/nf_conntrack_tcp_loose", "0")
        .unwrap();
}

fn strict(host: &Host) {
    host.nft(STRICT);
    picks_nothing_up(host);
}

/// Moves a connection to host B, prepared like this, and lets both ends finish. Its filter has dropped nothing of it.
fn finishes(state: State, family: Family, queued: usize, prepare: impl FnOnce(&Net, &Image)) {
    let net = Net::new();
    let (image, ends) = Scene::new(&net, family, state, queued, Loss::Answers).leave_a(&net);
    prepare(&net, &image);
    let locker = net.b.run(locker).unwrap();
    let prepared = build(&net.b, &locker, image).unwrap();
    net.b.mend();
    ends.finish(&net, activate(prepared));
    assert_eq!(net.b.counted("fw"), 0, "{state} {family:?}");
}

fn in_every_state(queued: usize, prepare: impl Fn(&Net, &Image)) {
    for state in STATES {
        for family in [Family::V4, Family::V6] {
            println!("{state} {family:?}");
            finishes(state, family, queued, &prepare);
        }
    }
}

kernel_test!(invalid_packets_dropped_first, || {
    in_every_state(20_000, |net, _| {
        net.b.nft(INVALID_FIRST);
    });
});

kernel_test!(established_connections_only_both_ways, || {
    in_every_state(20_000, |net, _| {
        net.b.nft(STRICT);
    });
});

kernel_test!(no_connection_picked_up_in_the_middle, || {
    in_every_state(0, |net, _| strict(&net.b));
    finishes(State::CloseWait, Family::Mapped, 1000, |net, _| {
        strict(&net.b);
    });
});

/// What `conntrack -L` shows of the connection on a host.
fn shown(host: &Host, image: &Image) -> String {
    let flow = image.ip().unwrap().flow;
    let (local, remote) = (flow.local(), flow.remote());
    let family = if flow.is_ipv4() { "ipv4" } else { "ipv6" };
    let mut command = host.command("conntrack").unwrap();
    let output = command
        .args(["-L", "-p", "tcp", "-f", family])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ports = [local.port(), remote.port()].map(|port| format!("port={port} "));
    let mut lines = text.lines();
    let line = lines.find(|line| ports.iter().all(|port| line.contains(port)));
    line.unwrap_or_default().to_owned()
}

/// Leaves an entry of an earlier connection with the same addresses and ports.
fn leave_entry(host: &Host, image: &Image, opened_by_peer: bool, state: &str) {
    let flow = image.ip().unwrap().flow;
    let (from, to) = if opened_by_peer {
        (flow.remote(), flow.local())
    } else {
        (flow.local(), flow.remote())
    };
    let line = format!(
        "-I -p tcp -t 300 -u SEEN_REPLY,ASSURED --state {state} -s {} -d {} --sport {} --dport {}",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    );
    let mut command = host.command("conntrack").unwrap();
    let output = command.args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(shown(host, image).contains(state));
}

kernel_test!(entries_of_earlier_connections, || {
    for left in [
        "TIME_WAIT",
        "CLOSE",
        "LAST_ACK",
        "FIN_WAIT",
        "SYN_SENT",
        "ESTABLISHED",
    ] {
        for (state, by_peer) in [
            (State::Established, true),
            (State::CloseWait, false),
            (State::FinWait2, true),
            (State::LastAck, false),
        ] {
            println!("{left} {state}");
            finishes(state, Family::V4, 1000, |net, image| {
                strict(&net.b);
                leave_entry(&net.b, image, by_peer, left);
            });
        }
    }
    finishes(State::Closing, Family::V6, 1000, |net, image| {
        strict(&net.b);
        leave_entry(&net.b, image, true, "CLOSE");
    });
});

kernel_test!(there_and_back_between_strict_hosts, || {
    for state in STATES {
        for family in [Family::V4, Family::V6] {
            println!("{state} {family:?}");
            let net = Net::new();
            // The entry that host A has of it stays behind.
            strict_server(&net.a);
            strict(&net.b);
            let scene = Scene::new(&net, family, state, 1000, Loss::Answers);
            let (image, ends) = scene.leave_a(&net);
            let there = net.b.run(locker).unwrap();
            let server = activate(build(&net.b, &there, image).unwrap());
            assert_eq!(tcp_info(server.as_fd()).unwrap().state, state);
            let (frozen, image) = net.b.run(|| capture(server, &there)).unwrap();
            frozen.check_unchanged().unwrap();
            frozen.discard().unwrap();
            let back = net.a.run(locker).unwrap();
            // Host A kept the connection's packets away since it left. What the peer has still to acknowledge would draw an
            // RST between that lock and the next.
            net.peer.cut(&["output"]);
            tcpmig_lock::Nftables::force_unlock(&back, &[image.ip().unwrap().flow]).unwrap();
            net.point_peer_at(&net.a);
            let prepared = build(&net.a, &back, image).unwrap();
            net.peer.mend();
            ends.finish(&net, activate(prepared));
            assert_eq!(net.a.counted("fw"), 0, "{state} {family:?}");
        }
    }
});

fn prepared(state: State) -> (Net, Image, crate::scene::Ends, Prepared) {
    let net = Net::new();
    let (image, ends) = Scene::new(&net, Family::V4, state, 1000, Loss::Answers).leave_a(&net);
    strict(&net.b);
    let locker = net.b.run(locker).unwrap();
    let prepared = build(&net.b, &locker, image.clone()).unwrap();
    (net, image, ends, prepared)
}

kernel_test!(what_does_not_come_is_forgotten, || {
    for state in [State::Established, State::CloseWait] {
        let (net, image, ends, prepared) = prepared(state);
        assert!(!shown(&net.b, &image).is_empty());
        net.b.run(|| drop(prepared)).unwrap();
        assert_eq!(shown(&net.b, &image), "");
        // It can still come.
        let locker = net.b.run(locker).unwrap();
        let prepared = build(&net.b, &locker, image).unwrap();
        net.b.mend();
        ends.finish(&net, activate(prepared));
    }
});

kernel_test!(what_comes_lives_as_long_as_any, || {
    let (net, image, ends, prepared) = prepared(State::Established);
    let seconds = || -> u64 {
        let shown = shown(&net.b, &image);
        let words: Vec<&str> = shown.split_whitespace().collect();
        words[2].parse().unwrap()
    };
    assert!(seconds() <= 60, "{}", shown(&net.b, &image));
    net.b.mend();
    let server = activate(prepared);
    crate::net::until("its first packets are seen", || seconds() > 100_000);
    ends.finish(&net, server);
});
