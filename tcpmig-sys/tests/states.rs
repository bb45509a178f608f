//! Connections that one end or both have closed, on the real kernel: how it counts a FIN, and how a rebuild gets there.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};

use support::{Family, Net, kernel_test, nft, pattern, until};
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::repair::{
    Clock, ClosedSocket, FrozenSocket, Numbers, QueueStart, RestoringSocket, Snapshot,
};
use tcpmig_sys::sockopt::Queue;
use tcpmig_sys::{Error, NotMigratable, fcntl, sockopt};

const MARK: u32 = 0x77;

fn reaches(socket: &impl AsFd, state: State) {
    until(&format!("{state}"), || {
        tcp_info(socket.as_fd()).unwrap().state == state
    });
}

/// Stops what comes in, or goes out, but for the injected.
fn cut(hook: &str) {
    nft(&format!(
        "table inet {hook} {{ chain c {{ type filter hook {hook} priority raw; meta mark != {MARK} meta l4proto tcp drop; }}; }}"
    ));
}

fn read(socket: &TcpStream) -> Snapshot {
    let frozen = FrozenSocket::freeze(socket.try_clone().unwrap().into()).unwrap();
    frozen.read().unwrap()
}

kernel_test!(a_fin_counts_one_in_sequence_numbers_and_lengths, || {
    let net = Net::new();

    // Received and read up to it.
    let (mut peer, mut server) = net.connect(Family::V4);
    peer.write_all(b"all").unwrap();
    server.read_exact(&mut [0; 3]).unwrap();
    let before = read(&server).numbers;
    peer.shutdown(Shutdown::Write).unwrap();
    reaches(&server, State::CloseWait);
    let after = read(&server);
    assert_eq!(after.numbers.rcv_nxt, before.rcv_nxt.wrapping_add(1));
    assert_eq!(after.numbers.write_seq, before.write_seq);
    assert_eq!(sockopt::receive_queue_len(server.as_fd()).unwrap(), 0);
    assert_eq!(server.read(&mut [0; 3]).unwrap(), 0);
    assert_eq!(read(&server).numbers, after.numbers);
    // A dropped freeze leaves the direction that is open open.
    server.write_all(b"back").unwrap();
    peer.read_exact(&mut [0; 4]).unwrap();

    // Received behind bytes.
    let (mut peer, server) = net.connect(Family::V4);
    let before = read(&server).numbers;
    peer.write_all(b"octets").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    reaches(&server, State::CloseWait);
    let after = read(&server);
    assert_eq!(after.numbers.rcv_nxt, before.rcv_nxt.wrapping_add(7));
    assert_eq!(after.receive_queue, b"octets");
    assert_eq!(sockopt::receive_queue_len(server.as_fd()).unwrap(), 6);

    // Sent and acknowledged.
    let (peer, server) = net.connect(Family::V4);
    let before = read(&server).numbers;
    server.shutdown(Shutdown::Write).unwrap();
    reaches(&server, State::FinWait2);
    let after = read(&server).numbers;
    assert_eq!(after.snd_una, before.snd_una.wrapping_add(1));
    assert_eq!(after.write_seq, after.snd_una);
    drop(peer);

    // Sent and not acknowledged, alone and behind bytes.
    let (_peer, server) = net.connect(Family::V4);
    let (_other, mut other) = net.connect(Family::V4);
    net.a.run(|| cut("prerouting")).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let after = read(&server);
    assert_eq!(after.numbers.state, State::FinWait1);
    assert_eq!(
        after.numbers.write_seq,
        after.numbers.snd_una.wrapping_add(1)
    );
    assert_eq!((after.send_queue.len(), after.unsent), (0, 0));
    assert_eq!(sockopt::send_queue_len(server.as_fd()).unwrap(), 1);
    let bytes = pattern(1, 100_000);
    other.write_all(&bytes).unwrap();
    other.shutdown(Shutdown::Write).unwrap();
    let unsent = || sockopt::unsent_len(other.as_fd()).unwrap() as usize;
    // The probe for a lost tail (RFC 8985) may send a segment between two looks.
    let (after, unsent) = loop {
        let (before, after) = (unsent(), read(&other));
        if before == unsent() {
            break (after, before);
        }
    };
    assert!(after.send_queue == bytes);
    assert_eq!(
        after.numbers.write_seq,
        after.numbers.snd_una.wrapping_add(100_001)
    );
    assert!(after.unsent > 0);
    assert_eq!(unsent, after.unsent + 1);

    // Not sent, alone.
    net.a.run(|| nft("flush ruleset")).unwrap();
    let (_peer, server) = net.connect(Family::V4);
    net.a.run(|| cut("output")).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let after = read(&server);
    assert_eq!(after.numbers.state, State::FinWait1);
    assert_eq!(sockopt::unsent_len(server.as_fd()).unwrap(), 1);
    assert_eq!((after.send_queue.len(), after.unsent), (0, 0));
});

const ADDRESSES: [[&str; 2]; 2] = [["198.18.0.80", "198.18.0.9"], ["2001:2::80", "2001:2::9"]];

/// A socket in ESTABLISHED in repair mode on the calling thread's host, with bytes in its queues.
///
/// Each has ports of its own: a process that another test starts can hold a closed descriptor for a moment.
fn established([local, remote]: [&str; 2]) -> RestoringSocket {
    static PORT: AtomicU16 = AtomicU16::new(1000);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let local = SocketAddr::new(local.parse().unwrap(), 80);
    let remote = SocketAddr::new(remote.parse().unwrap(), port);
    let start = QueueStart {
        snd_una: u32::MAX - 2,
        copied_seq: u32::MAX - 5,
    };
    let bound = ClosedSocket::open(local.is_ipv6()).unwrap().bind(local);
    let mut socket = bound.unwrap().connect(remote, start, 1460).unwrap();
    let negotiated = sockopt::Negotiated {
        mss_clamp: 1460,
        window_scale: Some(sockopt::Scales { snd: 7, rcv: 7 }),
        sack: true,
        timestamps: true,
    };
    socket
        .negotiated(
            &negotiated,
            Some(Clock {
                value: 1000,
                microseconds: false,
            }),
        )
        .unwrap();
    socket.fill_receive_queue(b"received").unwrap();
    socket.fill_send_queue(b"sent", 0).unwrap();
    socket
}

fn numbers(socket: &RestoringSocket) -> Numbers {
    let fd = socket.as_fd();
    let end = |queue| {
        sockopt::set_repair_queue(fd, queue).unwrap();
        sockopt::queue_sequence(fd).unwrap()
    };
    let (rcv_nxt, write_seq) = (end(Queue::Receive), end(Queue::Send));
    sockopt::set_repair_queue(fd, Queue::None).unwrap();
    Numbers {
        state: tcp_info(fd).unwrap().state,
        snd_una: write_seq.wrapping_sub(sockopt::send_queue_len(fd).unwrap()),
        write_seq,
        rcv_nxt,
    }
}

kernel_test!(every_state_is_reached_without_a_packet_on_the_wire, || {
    let net = Net::new();
    net.b.run(|| {
        cut("output");
        nft("table inet wire { counter n { }; chain c { type filter hook postrouting priority raw; oifname eth0 meta l4proto tcp counter name n; }; }");
    }).unwrap();
    let (una, end) = (u32::MAX - 2, 2_u32);
    for addresses in ADDRESSES {
        for (state, unsent, snd_una, write_seq, rcv_nxt) in [
            (State::Established, &b""[..], una, 1, end),
            (State::FinWait1, b"", una, 2, end),
            (State::FinWait1, b"unsent", una, 8, end),
            (State::FinWait2, b"", 2, 2, end),
            (State::CloseWait, b"", una, 1, end + 1),
            (State::LastAck, b"", una, 2, end + 1),
            (State::LastAck, b"unsent", una, 8, end + 1),
            (State::Closing, b"", una, 2, end + 1),
            (State::Closing, b"unsent", una, 8, end + 1),
        ] {
            let asked = Numbers {
                state,
                snd_una,
                write_seq,
                rcv_nxt,
            };
            let reached = || {
                let mut socket = established(addresses);
                socket.enter_state(state, unsent, MARK).unwrap();
                assert_eq!(numbers(&socket), asked);
                let waiting = sockopt::unsent_len(socket.as_fd()).unwrap() as usize;
                assert_eq!(waiting, unsent.len() + usize::from(!unsent.is_empty()));
                let negotiated = sockopt::Negotiated {
                    mss_clamp: 1460,
                    window_scale: Some(sockopt::Scales { snd: 7, rcv: 7 }),
                    sack: true,
                    timestamps: true,
                };
                socket.verify(&asked, &negotiated).unwrap();
                for wrong in [
                    Numbers {
                        state: State::SynSent,
                        ..asked
                    },
                    Numbers {
                        snd_una: snd_una ^ 1,
                        ..asked
                    },
                    Numbers {
                        write_seq: write_seq ^ 1,
                        ..asked
                    },
                    Numbers {
                        rcv_nxt: rcv_nxt ^ 1,
                        ..asked
                    },
                ] {
                    let error = socket.verify(&wrong, &negotiated).unwrap_err();
                    assert!(matches!(error, Error::NotAsAsked { .. }), "{error}");
                }
            };
            net.b.run(reached).unwrap();
        }
    }
    let counted = net.b.run(|| nft("list counter inet wire n")).unwrap();
    assert!(counted.contains("packets 0 "), "{counted}");
});

kernel_test!(a_state_without_a_connection_is_not_reached, || {
    let net = Net::new();
    net.b
        .run(|| {
            for state in [State::Listen, State::SynSent, State::TimeWait, State::Close] {
                let mut socket = established(ADDRESSES[0]);
                let error = socket.enter_state(state, b"", MARK).unwrap_err();
                let Error::NotMigratable(reason) = error else {
                    panic!("{error}");
                };
                assert_eq!(reason, NotMigratable::State(state));
            }
        })
        .unwrap();
});

kernel_test!(an_injected_segment_that_is_dropped_is_noticed, || {
    let net = Net::new();
    for hook in ["output", "prerouting", "input"] {
        let tried = || {
            nft(&format!(
                "table inet deny {{ chain c {{ type filter hook {hook} priority raw; meta l4proto tcp drop; }}; }}"
            ));
            for state in [State::CloseWait, State::FinWait2, State::Closing] {
                let mut socket = established(ADDRESSES[0]);
                let error = socket.enter_state(state, b"", MARK).unwrap_err();
                assert!(matches!(error, Error::NotDelivered { .. }), "{error}");
            }
            nft("delete table inet deny");
        };
        net.b.run(tried).unwrap();
    }
});

kernel_test!(a_shut_receiving_direction_shows, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    assert!(!fcntl::read_shut(server.as_fd()).unwrap());
    server.shutdown(Shutdown::Read).unwrap();
    assert!(fcntl::read_shut(server.as_fd()).unwrap());
    assert_eq!(tcp_info(server.as_fd()).unwrap().state, State::Established);
    // What the peer's FIN does to it looks the same to `poll`, and is told by the state.
    let (twin, server) = net.connect(Family::V4);
    twin.shutdown(Shutdown::Write).unwrap();
    reaches(&server, State::CloseWait);
    assert!(!fcntl::read_shut(server.as_fd()).unwrap());
    drop(peer);
});
