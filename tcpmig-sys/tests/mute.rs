//! Connections that stand still take nothing in and send nothing, and nothing locks their packets here.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use support::{Family, Net, family, kernel_test, nft, pattern};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::slowed;
use tcpmig_sys::repair::{ClosedSocket, FrozenSocket, QueueStart, RestoringSocket, Snapshot, mute};
use tcpmig_sys::sockopt::{self, FilterInstruction};
use tcpmig_sys::{Error, NotMigratable};

/// Longer than several retransmission timers, and than keepalive and `TCP_USER_TIMEOUT` of a second.
const STILL: Duration = Duration::from_millis(3500);

/// A timer that had backed off for [`STILL`] takes longer.
const AT_ONCE: Duration = Duration::from_millis(900);

/// What arrives is lost.
const DROP: &str = "table inet t { chain i { type filter hook prerouting priority raw; meta l4proto tcp drop; }; }";

/// Counts at the peer what comes from the server.
struct Heard<'a>(&'a Net);

impl<'a> Heard<'a> {
    fn new(net: &'a Net, port: u16) -> Self {
        let count = format!(
            "table inet heard {{ counter n {{ }}; chain i {{ type filter hook prerouting priority raw; \
             tcp sport {port} counter name n; }}; }}"
        );
        net.peer.run(|| nft(&count)).unwrap();
        Self(net)
    }

    fn nothing(&self) {
        let counted = self
            .0
            .peer
            .run(|| nft("list counter inet heard n"))
            .unwrap();
        assert!(counted.contains("packets 0 "), "{counted}");
    }
}

/// An application that wants to know within a second that its peer is gone.
fn impatient(fd: impl AsFd) {
    let fd = fd.as_fd();
    sockopt::set_keep_alive(fd, true).unwrap();
    sockopt::set_keep_idle(fd, 1).unwrap();
    sockopt::set_keep_interval(fd, 1).unwrap();
    sockopt::set_keep_count(fd, 1).unwrap();
    sockopt::set_user_timeout(fd, 1000).unwrap();
}

fn is_impatient(fd: impl AsFd) {
    assert!(sockopt::keep_alive(fd.as_fd()).unwrap());
    assert_eq!(sockopt::user_timeout(fd.as_fd()).unwrap(), 1000);
}

/// A connection with bytes on their way in both directions that did not arrive.
struct Case {
    net: Net,
    peer: TcpStream,
    server: Option<OwnedFd>,
    up: Vec<u8>,
    down: Vec<u8>,
}

impl Case {
    fn new(family: Family) -> Self {
        let net = Net::new();
        let (mut peer, mut server) = net.connect(family);
        both_ways(&peer, &server);
        for host in [&net.a, &net.peer] {
            host.run(|| nft(DROP)).unwrap();
        }
        let (up, down) = (pattern(1, 5000), pattern(2, 5000));
        server.write_all(&down).unwrap();
        peer.write_all(&up).unwrap();
        Self {
            net,
            peer,
            server: Some(server.into()),
            up,
            down,
        }
    }

    fn port(&self) -> u16 {
        self.peer.peer_addr().unwrap().port()
    }

    /// No packet filter is left; the peer says more while nobody answers.
    fn stands_still(&mut self) {
        for host in [&self.net.a, &self.net.b, &self.net.peer] {
            host.run(|| nft("flush ruleset")).unwrap();
        }
        let heard = Heard::new(&self.net, self.port());
        let begin = Instant::now();
        while begin.elapsed() < STILL {
            let more = pattern(3, 100);
            self.peer.write_all(&more).unwrap();
            self.up.extend(more);
            std::thread::sleep(Duration::from_millis(100));
        }
        heard.nothing();
    }

    /// Everything arrives once. This end goes on at once; the peer sends again what it had sent into nothing when its own
    /// timer runs out, because nobody captured it.
    fn goes_on(mut self, begin: Instant, mut server: TcpStream) {
        server.set_nonblocking(false).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut got = vec![0; self.down.len()];
        self.peer.read_exact(&mut got).unwrap();
        assert!(got == self.down, "the peer reads other bytes");
        let down = begin.elapsed();
        let mut got = vec![0; self.up.len()];
        server.read_exact(&mut got).unwrap();
        assert!(got == self.up, "the application reads other bytes");
        let up = begin.elapsed();
        println!("after {STILL:?}: down in {down:?}, up in {up:?}");
        assert!(
            down < slowed(AT_ONCE) && up < slowed(STILL * 3),
            "{down:?} {up:?}"
        );
        both_ways(&self.peer, &server);
        assert!(sockopt::take_error(server.as_fd()).unwrap().is_none());
    }
}

fn both_ways(a: &TcpStream, b: &TcpStream) {
    for (mut from, mut to) in [(a, b), (b, a)] {
        let sent = pattern(9, 1000);
        from.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        to.read_exact(&mut got).unwrap();
        assert!(got == sent);
    }
}

fn a_frozen_one(family: Family) {
    let mut case = Case::new(family);
    let server = case.server.take().unwrap();
    impatient(&server);
    let frozen = FrozenSocket::freeze(server).unwrap();
    let before = frozen.numbers().unwrap();
    case.stands_still();
    assert_eq!(frozen.numbers().unwrap(), before);
    let begin = Instant::now();
    let server = case.net.a.run(|| frozen.thaw().unwrap()).unwrap();
    is_impatient(&server);
    case.goes_on(begin, server.into());
}

kernel_test!(a_frozen_ipv4_connection_is_mute, || {
    a_frozen_one(Family::V4);
});
kernel_test!(a_frozen_ipv6_connection_is_mute, || {
    a_frozen_one(Family::V6);
});
kernel_test!(a_frozen_mapped_connection_is_mute, || {
    a_frozen_one(Family::Mapped);
});

/// A socket with the addresses and the beginnings of a snapshot, on the calling thread's host.
fn connected(snapshot: &Snapshot, Ends { local, remote }: Ends) -> Result<RestoringSocket, Error> {
    let closed = ClosedSocket::open(local.is_ipv6()).unwrap();
    let unread = snapshot.receive_queue.len() as u32;
    let start = QueueStart {
        snd_una: snapshot.numbers.snd_una,
        copied_seq: snapshot.numbers.rcv_nxt.wrapping_sub(unread),
    };
    let bound = closed.bind(local).unwrap();
    bound.connect(remote, start, snapshot.negotiated.mss_clamp)
}

/// Rebuilds a snapshot on the calling thread's host, impatient as it was.
fn rebuild(snapshot: &Snapshot, addresses: Ends, state: State) -> RestoringSocket {
    let mut socket = connected(snapshot, addresses).unwrap();
    socket
        .negotiated(&snapshot.negotiated, snapshot.timestamp)
        .unwrap();
    socket.fill_receive_queue(&snapshot.receive_queue).unwrap();
    assert_eq!(snapshot.unsent, 0);
    socket.fill_send_queue(&snapshot.send_queue, 0).unwrap();
    socket.enter_state(state, &[], MARK).unwrap();
    socket.window(snapshot.window).unwrap();
    impatient(&socket);
    socket.hold().unwrap();
    socket
}

const MARK: u32 = 0x77;

fn a_rebuilt_one(family: Family) {
    let mut case = Case::new(family);
    let server = case.server.take().unwrap();
    let addresses = Ends::of(server.as_fd()).unwrap();
    let frozen = FrozenSocket::freeze(server).unwrap();
    let snapshot = frozen.read().unwrap();
    frozen.discard().unwrap();
    case.net.point_peer_at_b();
    let socket = case
        .net
        .b
        .run(|| rebuild(&snapshot, addresses, State::Established))
        .unwrap();
    let before = socket.numbers().unwrap();
    case.stands_still();
    assert_eq!(socket.numbers().unwrap(), before);
    let begin = Instant::now();
    let server = case.net.b.run(|| socket.activate(false).unwrap()).unwrap();
    is_impatient(&server);
    case.goes_on(begin, server.into());
}

/// It gives its place to another one, and there is none in which the host has no socket for the connection.
fn one_that_steps_aside(family: Family) {
    let mut case = Case::new(family);
    let server = case.server.take().unwrap();
    let addresses = Ends::of(server.as_fd()).unwrap();
    let frozen = FrozenSocket::freeze(server).unwrap();
    let snapshot = frozen.read().unwrap();
    frozen.discard().unwrap();
    case.net.point_peer_at_b();
    let build = || rebuild(&snapshot, addresses, State::Established);
    let first = case.net.b.run(build).unwrap();
    let second = case.net.b.run(|| connected(&snapshot, addresses));
    let error = second.unwrap().map(drop).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EADDRNOTAVAIL), "{error}");
    case.net
        .b
        .run(|| first.step_aside("eth0"))
        .unwrap()
        .unwrap();
    case.stands_still();
    let second = case.net.b.run(build).unwrap();
    drop(first);
    let begin = Instant::now();
    let server = case.net.b.run(|| second.activate(false).unwrap()).unwrap();
    case.goes_on(begin, server.into());
}

kernel_test!(a_rebuilt_ipv4_connection_steps_aside, || {
    one_that_steps_aside(Family::V4);
});
kernel_test!(a_rebuilt_ipv6_connection_steps_aside, || {
    one_that_steps_aside(Family::V6);
});
kernel_test!(a_rebuilt_mapped_connection_steps_aside, || {
    one_that_steps_aside(Family::Mapped);
});

kernel_test!(a_rebuilt_ipv4_connection_is_mute, || {
    a_rebuilt_one(Family::V4);
});
kernel_test!(a_rebuilt_ipv6_connection_is_mute, || {
    a_rebuilt_one(Family::V6);
});
kernel_test!(a_rebuilt_mapped_connection_is_mute, || {
    a_rebuilt_one(Family::Mapped);
});

/// Rebuilt with a segment of the peer that is injected while nothing else comes in, and nothing goes out.
fn a_half_closed_one(state: State) {
    let net = Net::new();
    let (mut peer, server) = net.connect(Family::V4);
    let addresses = Ends::of(server.as_fd()).unwrap();
    let server_fd = server.try_clone().unwrap();
    match state {
        State::CloseWait => peer.shutdown(Shutdown::Write).unwrap(),
        _ => server.shutdown(Shutdown::Write).unwrap(),
    }
    support::until("the FIN arrives", || {
        tcp_info(server_fd.as_fd()).unwrap().state == state
    });
    drop(server_fd);
    if state == State::CloseWait {
        // Sent again, its FIN would find nothing on host A.
        support::until("the FIN is acknowledged", || {
            tcp_info(peer.as_fd()).unwrap().state == State::FinWait2
        });
    }
    let frozen = FrozenSocket::freeze(server.into()).unwrap();
    let mut snapshot = frozen.read().unwrap();
    frozen.discard().unwrap();
    // `reach` counts the FINs.
    match state {
        State::CloseWait => snapshot.numbers.rcv_nxt = snapshot.numbers.rcv_nxt.wrapping_sub(1),
        _ => snapshot.numbers.snd_una = snapshot.numbers.snd_una.wrapping_sub(1),
    }
    let heard = Heard::new(&net, addresses.local.port());
    net.point_peer_at_b();
    let socket = net.b.run(|| rebuild(&snapshot, addresses, state)).unwrap();
    let before = socket.numbers().unwrap();
    assert_eq!(before.state, state);
    if state == State::FinWait2 {
        peer.write_all(b"up").unwrap();
    }
    std::thread::sleep(Duration::from_secs(2));
    heard.nothing();
    assert_eq!(socket.numbers().unwrap(), before);
    let server = net.b.run(|| socket.activate(false).unwrap()).unwrap();
    let mut server = TcpStream::from(server);
    server.set_nonblocking(false).unwrap();
    if state == State::FinWait2 {
        let mut got = [0; 2];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"up");
        assert_eq!(peer.read(&mut got).unwrap(), 0);
    } else {
        server.write_all(b"down").unwrap();
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"down");
        assert_eq!(server.read(&mut got).unwrap(), 0);
    }
}

kernel_test!(what_the_peer_closed_is_rebuilt_mute, || {
    a_half_closed_one(State::CloseWait);
});
kernel_test!(
    what_the_peer_acknowledged_the_end_of_is_rebuilt_mute,
    || {
        a_half_closed_one(State::FinWait2);
    }
);

kernel_test!(a_connection_that_is_being_opened_is_mute, || {
    let net = Net::new();
    let closed =
        "table inet t { chain i { type filter hook prerouting priority raw; tcp dport 9 drop; }; }";
    net.peer.run(|| nft(closed)).unwrap();
    let count = "table inet heard { counter n { }; chain i { type filter hook prerouting priority -400; \
                 tcp dport 9 counter name n; }; }";
    net.peer.run(|| nft(count)).unwrap();
    let heard = || {
        let counted = net.peer.run(|| nft("list counter inet heard n"));
        let counted = counted.unwrap();
        let mut words = counted
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse::<u32>().unwrap()
    };
    let opening = net
        .a
        .run(|| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let nobody: SocketAddr = "198.18.0.9:9".parse().unwrap();
            socket.connect(&nobody.into()).unwrap_err();
            socket
        })
        .unwrap();
    // On a slow machine it may have been sent again by now.
    support::until("the SYN arrives", || heard() >= 1);
    sockopt::set_syn_count(opening.as_fd(), 1).unwrap();
    let frozen = FrozenSocket::freeze(opening.into()).unwrap();
    let sent = heard();
    std::thread::sleep(STILL);
    assert_eq!(heard(), sent, "a SYN was sent");
    assert_eq!(frozen.numbers().unwrap().state, State::SynSent);
    let opening = net.a.run(|| frozen.thaw().unwrap()).unwrap();
    assert_eq!(sockopt::syn_count(opening.as_fd()).unwrap(), 1);
});

/// A filter that takes everything.
fn own_filter() -> [FilterInstruction; 1] {
    [FilterInstruction {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: u32::MAX,
    }]
}

kernel_test!(the_filter_of_an_application_stays, || {
    let net = Net::new();
    for without in [false, true] {
        for own in [false, true] {
            mute::without_policies(without);
            let (mut peer, server) = net.connect(Family::V4);
            if own {
                sockopt::attach_filter(server.as_fd(), own_filter()).unwrap();
            }
            let frozen = FrozenSocket::freeze(server.into()).unwrap();
            let before = frozen.numbers().unwrap();
            peer.write_all(b"not yet").unwrap();
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(frozen.numbers().unwrap(), before);
            let waiting = sockopt::send_queue_len(peer.as_fd()).unwrap();
            assert_eq!(waiting, 7, "it was acknowledged");
            let server = net.a.run(|| frozen.thaw().unwrap()).unwrap();
            let filter = sockopt::filter(server.as_fd()).unwrap();
            assert_eq!(filter.is_some(), own);
            assert!(filter.is_none_or(|filter| filter == own_filter()));
            let mut server = TcpStream::from(server);
            let mut got = [0; 7];
            server.read_exact(&mut got).unwrap();
            both_ways(&peer, &server);
        }
    }
    mute::without_policies(false);
});

kernel_test!(a_locked_filter_needs_policies, || {
    let net = Net::new();
    let (mut peer, server) = net.connect(Family::V4);
    sockopt::attach_filter(server.as_fd(), own_filter()).unwrap();
    sockopt::set_lock_filter(server.as_fd(), true).unwrap();
    mute::without_policies(true);
    let refused = FrozenSocket::freeze(server.into()).unwrap_err();
    mute::without_policies(false);
    assert!(
        matches!(
            refused.error,
            Error::NotMigratable(NotMigratable::FilterLocked)
        ),
        "{refused}"
    );
    assert!(!sockopt::repair(refused.fd.as_fd()).unwrap());
    let frozen = FrozenSocket::freeze(refused.fd).unwrap();
    peer.write_all(b"not yet").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sockopt::send_queue_len(peer.as_fd()).unwrap(), 7);
    let server = net.a.run(|| frozen.thaw().unwrap()).unwrap();
    assert!(sockopt::lock_filter(server.as_fd()).unwrap());
    let mut server = TcpStream::from(server);
    let mut got = [0; 7];
    server.read_exact(&mut got).unwrap();
    both_ways(&peer, &server);
});

kernel_test!(a_socket_whose_connection_was_discarded_can_be_used, || {
    let net = Net::new();
    let (_peer, server) = net.connect(Family::V4);
    let twin = server.try_clone().unwrap();
    impatient(&twin);
    FrozenSocket::freeze(server.into())
        .unwrap()
        .discard()
        .unwrap();
    is_impatient(&twin);
    let listener = net
        .peer
        .run(|| TcpListener::bind("198.18.0.9:0").unwrap())
        .unwrap();
    let to = listener.local_addr().unwrap();
    let socket = socket2::Socket::from(OwnedFd::from(twin));
    socket.connect(&to.into()).unwrap();
    let (other, _) = listener.accept().unwrap();
    both_ways(&TcpStream::from(socket), &other);
});

kernel_test!(what_a_closed_end_could_not_send_leaves_no_error, || {
    let net = Net::new();
    for v6 in [false, true] {
        let (peer, server) = net.connect(family(v6));
        peer.shutdown(Shutdown::Write).unwrap();
        let reaches = |state| {
            support::until("the state", || {
                tcp_info(server.as_fd()).unwrap().state == state
            });
        };
        reaches(State::CloseWait);
        // Its FIN is lost, and sent again and again.
        net.peer.run(|| nft(DROP)).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        reaches(State::LastAck);
        let frozen = FrozenSocket::freeze(server.into()).unwrap();
        std::thread::sleep(STILL);
        let server = TcpStream::from(frozen.thaw().unwrap());
        let error = server.take_error().unwrap();
        assert!(error.is_none(), "{error:?}");
        net.peer.run(|| nft("delete table inet t")).unwrap();
        support::until("the peer acknowledges it", || {
            tcp_info(server.as_fd()).unwrap().state == State::Close
        });
    }
});

kernel_test!(what_a_dead_holder_left_mute_is_lifted, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let twin = server.try_clone().unwrap();
    // It does what the end of its process would: nothing.
    std::mem::forget(FrozenSocket::freeze(server.into()).unwrap());
    sockopt::set_repair(twin.as_fd(), sockopt::Repair::OffQuiet).unwrap();
    twin.set_nonblocking(true).unwrap();
    (&peer).write_all(b"?").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let waits = (&twin).read(&mut [0; 1]).unwrap_err();
    assert_eq!(waits.kind(), ErrorKind::WouldBlock);
    twin.set_nonblocking(false).unwrap();
    mute::lift(twin.as_fd()).unwrap();
    (&twin).read_exact(&mut [0; 1]).unwrap();
    both_ways(&peer, &twin);
});

fn one_that_a_dead_holder_left(family: Family) {
    let mut case = Case::new(family);
    let server = case.server.take().unwrap();
    impatient(&server);
    sockopt::set_reuse_addr(server.as_fd(), 1).unwrap();
    assert!(matches!(
        FrozenSocket::left_behind(server.try_clone().unwrap())
            .unwrap_err()
            .error,
        Error::NotInRepairMode
    ));
    let before = Ends::of(server.as_fd()).unwrap();
    let twin = server.try_clone().unwrap();
    std::mem::forget(FrozenSocket::freeze(twin).unwrap());
    case.stands_still();
    let begin = Instant::now();
    let thawed = case.net.a.run(|| {
        let left = FrozenSocket::left_behind(server.try_clone().unwrap()).unwrap();
        left.thaw().unwrap()
    });
    assert_eq!(Ends::of(thawed.unwrap().as_fd()).unwrap(), before);
    is_impatient(&server);
    assert_eq!(sockopt::reuse_addr(server.as_fd()).unwrap(), 1);
    case.goes_on(begin, server.into());
}

kernel_test!(what_a_dead_holder_left_frozen_is_thawed_with_ipv4, || {
    one_that_a_dead_holder_left(Family::V4);
});
kernel_test!(what_a_dead_holder_left_frozen_is_thawed_with_ipv6, || {
    one_that_a_dead_holder_left(Family::V6);
});
kernel_test!(what_a_dead_holder_left_frozen_is_thawed_mapped, || {
    one_that_a_dead_holder_left(Family::Mapped);
});
