//! Handovers between hosts whose packet filter lets nothing pass but connections that it knows.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tcpmig::driver::{Ending, Options};
use tcpmig_lock::conntrack::{Arrival, Known};
use tcpmig_sys::lab::Host;

use crate::support::{
    END, Family, Net, Site, both_ways, expect, flow, kept, kernel_test, numbered, until,
};

/// Drops and counts what is not known, and lets TCP connections and the link between the hosts be opened. `zone` is a
/// statement on what is seen first.
fn strict(host: &Host, zone: &str) {
    let first = |hook| format!("chain {hook}0 {{ type filter hook {hook} priority raw; {zone} }};");
    let rules = |opened: &str| {
        format!(
            "policy drop; ct state invalid counter name n drop; ct state established,related accept; \
             meta l4proto {{ icmp, ipv6-icmp, udp }} accept; {opened} meta l4proto tcp counter name n drop;"
        )
    };
    // What opens a connection is let in, but not out.
    let input = rules("tcp flags & (syn | ack) == syn ct state new accept;");
    host.nft(&format!(
        "table inet fw {{ counter n {{ }}; {} {} \
             chain i {{ type filter hook input priority filter; {input} }}; \
             chain o {{ type filter hook output priority filter; {} }}; }}",
        first("prerouting"),
        first("output"),
        rules("")
    ));
    host.set("net/netfilter/nf_conntrack_tcp_loose", "0")
        .unwrap();
}

/// How many packets its filter dropped.
fn dropped(host: &Host) -> u64 {
    let mut command = host.command("nft").unwrap();
    let output = command
        .args(["list", "counter", "inet", "fw", "n"])
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words.nth(1).expect("a counter").parse().unwrap()
}

fn moves(from: &Site, to: &Site, server: TcpStream) -> TcpStream {
    let outcome = from.move_out(server, None).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    TcpStream::from(to.arrival().socket)
}

kernel_test!(there_and_back_three_times, || {
    for zone in ["", "ct zone set 9;"] {
        for family in [Family::V4, Family::V6, Family::Mapped] {
            println!("{family:?} {zone}");
            let net = Net::new();
            strict(&net.a, zone);
            strict(&net.b, zone);
            let (peer, mut server) = net.connect(family);
            let ends = net.peer.count(END);
            let (a, b) = Site::pair(&net, &Options::default());
            a.serve();
            b.serve();
            for round in 0..3 {
                for (from, to) in [(&a, &b), (&b, &a)] {
                    // Under way in both directions while it moves.
                    let sent = numbered(round * 100_000, 50_000);
                    std::io::Write::write_all(&mut &server, &sent).unwrap();
                    std::io::Write::write_all(&mut &peer, &sent).unwrap();
                    server = moves(from, to, server);
                    server.set_nonblocking(false).unwrap();
                    expect(&server, &sent);
                    expect(&peer, &sent);
                    both_ways(&peer, &server);
                }
            }
            assert_eq!((dropped(&net.a), dropped(&net.b)), (0, 0));
            assert_eq!(ends.packets(), 0);
        }
    }
});

kernel_test!(a_target_that_translates_these_addresses, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    strict(&net.b, "");
    // Its packets would be sent to port 1.
    let line = format!(
        "-I -p tcp -t 300 -u SEEN_REPLY,ASSURED --state ESTABLISHED -s {} -d {} --sport {} --dport 1 -r {} -q {} --reply-port-src {} --reply-port-dst {}",
        flow.remote().ip(),
        flow.local().ip(),
        flow.remote().port(),
        flow.local().ip(),
        flow.remote().ip(),
        flow.local().port(),
        flow.remote().port(),
    );
    let mut conntrack = net.b.command("conntrack").unwrap();
    let output = conntrack.args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let outcome = a.move_out(server, None).wait();
    let (server, reason) = kept(outcome);
    assert!(reason.contains("translates packets with these"), "{reason}");
    both_ways(&peer, &server);

    // What is left of such a connection is not in the way.
    let mut conntrack = net.b.command("conntrack").unwrap();
    let update = line
        .replace("-I ", "-U ")
        .replace("ESTABLISHED", "TIME_WAIT");
    let output = conntrack.args(update.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let server = moves(&a, &b, server);
    server.set_nonblocking(false).unwrap();
    both_ways(&peer, &server);
});

/// Lines that `conntrack -L` shows of TCP.
fn shown(host: &Host) -> String {
    let mut command = host.command("conntrack").unwrap();
    let output = command.args(["-L", "-p", "tcp"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

kernel_test!(an_entry_that_is_removed_meanwhile_is_made_again, || {
    let net = Net::new();
    strict(&net.b, "");
    net.b
        .run(|| {
            let arrival = Arrival::new("198.18.0.80:80,198.18.0.9:50000".parse().unwrap());
            let any = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut known = Known::make(any.as_fd(), arrival, Duration::ZERO).unwrap();
            assert!(shown(&net.b).contains("ESTABLISHED src=198.18.0.9 dst=198.18.0.80 "));
            let mut flush = net.b.command("conntrack").unwrap();
            assert!(flush.arg("-F").output().unwrap().status.success());
            assert_eq!(shown(&net.b), "");
            known.check().unwrap();
            assert!(shown(&net.b).contains("dport=80 "));
            drop(known);
            assert_eq!(shown(&net.b), "");
        })
        .unwrap();
});

kernel_test!(an_entry_that_packets_have_made_since_stays, || {
    let net = Net::new();
    strict(&net.b, "");
    let listen = || {
        let arrival = Arrival::new("198.18.0.2:80,198.18.0.9:50000".parse().unwrap());
        let any = UdpSocket::bind("127.0.0.1:0").unwrap();
        let known = Known::make(any.as_fd(), arrival, Duration::ZERO).unwrap();
        let mut flush = net.b.command("conntrack").unwrap();
        assert!(flush.arg("-F").output().unwrap().status.success());
        (known, TcpListener::bind("198.18.0.2:80").unwrap())
    };
    let (known, listener) = net.b.run(listen).unwrap();
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let [from, to] = ["198.18.0.9:50000", "198.18.0.2:80"]
            .map(|address| address.parse::<SocketAddr>().unwrap());
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    };
    let _connected = net.peer.run(connect).unwrap();
    listener.accept().unwrap();
    net.b.run(|| drop(known)).unwrap();
    assert!(shown(&net.b).contains("dport=80 "));
});

kernel_test!(
    of_many_that_are_removed_meanwhile_each_is_made_again,
    || {
        let net = Net::new();
        strict(&net.b, "");
        net.b
            .run(|| {
                let any = UdpSocket::bind("127.0.0.1:0").unwrap();
                let mut all: Vec<Known> = (50000..50010)
                    .map(|port| {
                        let flow = format!("198.18.0.80:80,198.18.0.9:{port}");
                        let arrival = Arrival::new(flow.parse().unwrap());
                        Known::make(any.as_fd(), arrival, Duration::ZERO).unwrap()
                    })
                    .collect();
                // The first one that is found stands for those that were made later, for a few milliseconds.
                all[0].check().unwrap();
                let mut flush = net.b.command("conntrack").unwrap();
                assert!(flush.arg("-F").output().unwrap().status.success());
                std::thread::sleep(Duration::from_millis(50));
                for known in &mut all {
                    known.check().unwrap();
                }
                assert_eq!(shown(&net.b).lines().count(), all.len());
            })
            .unwrap();
    }
);

kernel_test!(who_opened_a_connection_is_told_by_its_ports, || {
    let net = Net::new();
    net.b
        .run(|| {
            for (flow, original) in [
                ("198.18.0.80:80,198.18.0.9:50000", "src=198.18.0.9 "),
                ("198.18.0.80:50000,198.18.0.9:80", "src=198.18.0.80 "),
                ("198.18.0.80:50000,198.18.0.9:50001", "src=198.18.0.9 "),
            ] {
                let arrival = Arrival::new(flow.parse().unwrap());
                let any = UdpSocket::bind("127.0.0.1:0").unwrap();
                let known = Known::make(any.as_fd(), arrival, Duration::ZERO).unwrap();
                let shown = shown(&net.b);
                let first = shown.split_whitespace().nth(4).unwrap();
                assert_eq!(format!("{first} "), original, "{shown}");
                drop(known);
            }
        })
        .unwrap();
});

kernel_test!(what_is_refused_leaves_no_entry, || {
    let net = Net::without_service_on_b();
    strict(&net.b, "");
    let (peer, server) = net.connect(Family::V4);
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let (server, _) = kept(a.move_out(server, None).wait());
    both_ways(&peer, &server);
    until("nothing is left", || shown(&net.b).is_empty());
});
