//! Connections that the service is opening: the peer has not answered, or its answer was lost.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig::capture::Plan;
use tcpmig_format::{Image, Limits, TcpState};
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::Host;

use crate::net::{Family, Net, pattern, until};
use crate::scene::{activate, build, capture, locker, without_clock};

/// What is lost on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// The SYN.
    Syn,
    /// The peer's answer.
    SynAck,
}

fn state(socket: &impl AsFd) -> State {
    tcp_info(socket.as_fd()).unwrap().state
}

/// A listener at the peer, and a socket of host A that is connecting to it.
fn opening(net: &Net, family: Family) -> (TcpListener, OwnedFd) {
    let (from, to) = match family {
        Family::V4 | Family::Mapped => ("198.18.0.80:0", "198.18.0.9:0"),
        Family::V6 => ("[2001:2::80]:0", "[2001:2::9]:0"),
    };
    let listener = net.peer.run(|| TcpListener::bind(to)).unwrap().unwrap();
    let mut to = listener.local_addr().unwrap();
    let mut from: SocketAddr = from.parse().unwrap();
    if family == Family::Mapped {
        for address in [&mut to, &mut from] {
            let SocketAddr::V4(v4) = *address else {
                unreachable!("mapped addresses are IPv4");
            };
            *address = (v4.ip().to_ipv6_mapped(), v4.port()).into();
        }
    }
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
        let socket = socket.unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap_err();
        socket
    };
    (listener, net.a.run(connect).unwrap().into())
}

/// Whether a handshake is under way at a host.
fn answered(host: &Host) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        let path = format!("/proc/thread-self/net/{table}");
        let lines = host.run(|| std::fs::read_to_string(path)).unwrap();
        let lines = lines.unwrap();
        let mut lines = lines.lines().skip(1);
        lines.any(|line| line.split_whitespace().nth(3) == Some("03"))
    })
}

fn moves(family: Family, lost: Lost, prepare: impl FnOnce(&Net)) {
    moves_after(0, family, lost, prepare).assert_no_reset();
}

/// Moves it when its SYN has been sent again so many times.
fn moves_after(again: u32, family: Family, lost: Lost, prepare: impl FnOnce(&Net)) -> Net {
    let what = format!("{family:?} {lost:?}");
    println!("{what}");
    let net = Net::new();
    prepare(&net);
    let dropping = match lost {
        Lost::Syn => &net.peer,
        Lost::SynAck => &net.a,
    };
    dropping.cut(&["prerouting"]);
    let (listener, socket) = opening(&net, family);
    if lost == Lost::SynAck {
        until("the peer answers", || answered(&net.peer));
    }
    until("the SYN is sent again", || {
        tcp_info(socket.as_fd()).unwrap().total_retrans >= again
    });
    assert_eq!(state(&socket), State::SynSent);

    let locker_a = net.a.run(locker).unwrap();
    let (frozen, image) = net.a.run(|| capture(socket, &locker_a)).unwrap();
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    let image = Image::decode(&image.encode().unwrap(), &Limits::default()).unwrap();
    assert_eq!(image.tcp().unwrap().state(), TcpState::SynSent);

    net.b.cut(&["prerouting", "output"]);
    net.point_peer_at_b();
    dropping.mend();
    let locker_b = net.b.run(locker).unwrap();
    let socket = activate(build(&net.b, &locker_b, image.clone()).unwrap());
    assert_eq!(state(&socket), State::SynSent, "{what}");
    let (frozen, again) = net.b.run(|| capture(socket, &locker_b)).unwrap();
    assert_eq!(without_clock(&again), without_clock(&image), "{what}");
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    locker_b.force_unlock(&[again.ip().unwrap().flow]).unwrap();
    let prepared = build(&net.b, &locker_b, again).unwrap();
    net.b.mend();

    let began = Instant::now();
    let client = TcpStream::from(activate(prepared));
    until("the handshake is done", || {
        state(&client) == State::Established
    });
    // The kernel sends the SYN again after a second at most.
    println!("{what}: open {:?} after activation", began.elapsed());
    let (peer, from) = listener.accept().unwrap();
    let flow = image.ip().unwrap().flow;
    assert_eq!(from, flow.local(), "{what}");
    client.set_nonblocking(false).unwrap();
    exchange(&client, &peer);
    exchange(&peer, &client);
    net
}

/// Bytes from one end to the other, each once.
fn exchange(from: &TcpStream, to: &TcpStream) {
    use std::io::Read;
    let bytes = pattern(8, 2 << 20);
    let mut got = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut from = from;
            from.write_all(&bytes).unwrap();
        });
        to.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut to = to;
        to.read_exact(&mut got).unwrap();
    });
    assert!(got == bytes, "other bytes than were written");
}

kernel_test!(a_syn_that_was_lost_is_sent_from_the_target, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        moves(family, Lost::Syn, |_| {});
    }
});

kernel_test!(
    a_syn_that_was_answered_is_sent_again_from_the_target,
    || {
        for family in [Family::V4, Family::V6, Family::Mapped] {
            moves(family, Lost::SynAck, |_| {});
        }
    }
);

kernel_test!(
    a_syn_that_was_sent_twice_is_sent_again_from_the_target,
    || {
        moves_after(1, Family::V4, Lost::Syn, |_| {}).assert_no_reset();
        // The peer has answered both: its half of the handshake may be reset, and is done anew then.
        moves_after(1, Family::V6, Lost::SynAck, |_| {});
    }
);

kernel_test!(a_syn_without_timestamps_is_sent_again, || {
    moves(Family::V4, Lost::SynAck, |net| {
        for host in [&net.a, &net.b] {
            host.set("net/ipv4/tcp_timestamps", "0").unwrap();
        }
    });
});

kernel_test!(a_target_that_would_scale_its_windows_otherwise, || {
    // The peer counts with the scale of the first SYN: nothing is lost of it for good.
    for (a, b) in [
        ("4096 131072 33554432", "4096 131072 262144"),
        ("4096 131072 262144", "4096 131072 33554432"),
    ] {
        moves(Family::V4, Lost::SynAck, |net| {
            net.a.set("net/ipv4/tcp_rmem", a).unwrap();
            net.b.set("net/ipv4/tcp_rmem", b).unwrap();
        });
    }
});

kernel_test!(a_connection_that_is_being_opened_is_kept, || {
    let net = Net::new();
    net.peer.cut(&["prerouting"]);
    let (listener, socket) = opening(&net, Family::V4);
    let locker = net.a.run(locker).unwrap();
    let (frozen, _) = net.a.run(|| capture(socket, &locker)).unwrap();
    net.peer.mend();
    let client = TcpStream::from(net.a.run(|| frozen.keep()).unwrap().unwrap());
    until("the handshake is done", || {
        state(&client) == State::Established
    });
    let (peer, _) = listener.accept().unwrap();
    client.set_nonblocking(false).unwrap();
    exchange(&client, &peer);
});

kernel_test!(data_in_a_syn_is_refused, || {
    let net = Net::new();
    // Without a cookie, at both ends.
    for host in [&net.a, &net.peer] {
        host.set("net/ipv4/tcp_fastopen", "519").unwrap();
    }
    let listener = net.peer.run(|| TcpListener::bind("198.18.0.9:0")).unwrap();
    let listener = listener.unwrap();
    let to = listener.local_addr().unwrap();
    net.peer.cut(&["prerouting"]);
    net.a.nft("table inet sent { counter n { }; chain c { type filter hook output priority 0; tcp flags syn counter name n; }; }",
    );
    let send = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let flags = nix::sys::socket::MsgFlags::from_bits_retain(0x2000_0000);
        let flags = flags.bits() | nix::sys::socket::MsgFlags::MSG_DONTWAIT.bits();
        let sent = socket.send_to_with_flags(b"early", &to.into(), flags);
        (socket, sent)
    };
    let (socket, sent) = net.a.run(send).unwrap();
    // The bytes count as sent: they are in the SYN.
    assert_eq!(sent.unwrap(), 5);
    assert_eq!(state(&socket), State::SynSent);
    let refused = Plan::read(socket.as_fd()).unwrap_err();
    assert!(refused.is_not_migratable(), "{refused}");
    assert!(refused.to_string().contains("Fast Open"), "{refused}");
    assert!(net.a.counted("sent") > 0);
    // It goes on: the bytes arrive.
    net.peer.mend();
    let (mut peer, _) = listener.accept().unwrap();
    let mut got = [0; 5];
    std::io::Read::read_exact(&mut peer, &mut got).unwrap();
    assert_eq!(&got, b"early");
});
