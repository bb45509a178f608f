//! A connection moves while its peer sends and receives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tcpmig::driver::{Arrived, Ending, Options, Outcome};
use tcpmig_format::{FourTuple, Layer, SecretBytes};
use tcpmig_lock::{Entry, EntryKind};
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::sockopt;

use crate::support::{
    END, Family, Net, PATIENCE, Site, both_ways, end_of, expect, flow, kept, kernel_test, numbered,
    open_from_a, until,
};

/// How far a server has come, which is its session: bytes read and bytes written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    up: u64,
    down: u64,
}

impl Session {
    /// Two layers, as of a session over TLS.
    fn to_layers(self) -> [Layer; 2] {
        let numbers = [self.up.to_be_bytes(), self.down.to_be_bytes()].concat();
        let below = Layer::new("tests.below", 1, SecretBytes::new());
        [below, Layer::new("tests", 7, numbers)]
    }

    /// Reads some bytes of what the peer sends, and writes some.
    fn work(&mut self, mut stream: &TcpStream) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        expect(stream, &numbered(self.up, 20_000));
        self.up += 20_000;
        let down = numbered(self.down, 90_000);
        stream.write_all(&down).unwrap();
        self.down += down.len() as u64;
    }

    /// Takes the connection on.
    fn resume(self, arrived: Arrived) -> TcpStream {
        assert_eq!(arrived.layers, self.to_layers());
        let mut stream = TcpStream::from(arrived.socket);
        stream.write_all(&arrived.unwritten).unwrap();
        stream
    }
}

/// Writes numbered bytes until it is told to stop; how many.
fn upload(mut peer: TcpStream, stop: &AtomicBool) -> u64 {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let bytes = numbered(written, 4096);
        peer.write_all(&bytes).expect("the peer's connection lives");
        written += bytes.len() as u64;
    }
    written
}

/// Reads until the end of the stream and looks at every byte; how many.
fn download(mut peer: TcpStream) -> u64 {
    let mut read = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = peer.read(&mut buffer).expect("the peer's connection lives");
        if count == 0 {
            return read;
        }
        assert!(buffer[..count] == numbered(read, count), "after {read}");
        read += count as u64;
    }
}

fn moves(family: Family, times: u32) {
    let net = Net::new();
    let mut options = Options::default();
    options.settle = Duration::ZERO;
    let (a, b) = Site::pair(&net, &options);
    a.serve();
    b.serve();
    let (peer, mut server) = net.connect(family);
    let flow = flow(&server);
    let ends = net.peer.count(END);

    let stop = Arc::new(AtomicBool::new(false));
    let uploading = thread::spawn({
        let (peer, stop) = (peer.try_clone().unwrap(), stop.clone());
        move || upload(peer, &stop)
    });
    let downloading = thread::spawn({
        let peer = peer.try_clone().unwrap();
        move || download(peer)
    });

    let mut session = Session { up: 0, down: 0 };
    for hop in 0..times {
        session.work(&server);
        let (from, to) = if hop % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let outcome = from.move_out(server, session.to_layers()).wait();
        assert_eq!(outcome.flow, Some(flow));
        assert!(
            matches!(outcome.ending, Ending::Moved),
            "move {hop}: {outcome:?}"
        );
        let arrived = to.arrival();
        assert_eq!(arrived.flow, flow);
        assert_eq!(arrived.from, if hop % 2 == 0 { "host-a" } else { "host-b" });
        server = session.resume(arrived);
        only_redirected(from, to, flow);
    }
    session.work(&server);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");

    stop.store(true, Ordering::Relaxed);
    // The peer's last bytes wait for room until they are read here.
    let mut last = server.try_clone().unwrap();
    let rest = thread::spawn(move || {
        let mut read = session.up;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = last.read(&mut buffer).unwrap();
            if count == 0 {
                return read;
            }
            assert!(buffer[..count] == numbered(read, count), "after {read}");
            read += count as u64;
        }
    });
    let uploaded = uploading.join().unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest.join().unwrap(), uploaded);
    server.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(downloading.join().unwrap(), session.down);
}

/// Nothing is left of a move but the redirect at the host that it left.
fn only_redirected(from: &Site, to: &Site, flow: FourTuple) {
    assert_eq!(to.entries(flow), [], "at the target");
    let entries = from.entries(flow);
    assert!(
        matches!(&entries[..], [Entry { kind: EntryKind::Redirect { device, .. }, .. }] if device == "eth0"),
        "at the source: {entries:?}"
    );
}

kernel_test!(
    a_connection_moves_20_times_back_and_forth_with_data_both_ways,
    || {
        moves(Family::V4, 20);
    }
);

kernel_test!(an_ipv6_connection_moves_20_times_back_and_forth, || {
    moves(Family::V6, 20);
});

kernel_test!(an_ipv4_connection_of_a_dual_stack_socket_moves, || {
    moves(Family::Mapped, 4);
});

kernel_test!(options_are_as_they_were_whatever_a_new_socket_has, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    // As on host A, and then otherwise.
    for [keep_idle, fin_timeout, discover] in [["7200", "60", "0"], ["1234", "33", "1"]] {
        net.b.set("net/ipv4/tcp_keepalive_time", keep_idle).unwrap();
        net.b.set("net/ipv4/tcp_fin_timeout", fin_timeout).unwrap();
        net.b.set("net/ipv4/ip_no_pmtu_disc", discover).unwrap();
        // What was seen of sockets before is forgotten by then.
        thread::sleep(Duration::from_millis(300));
        for family in [Family::V4, Family::V6] {
            let (_peer, server) = net.connect(family);
            let options = |fd: BorrowedFd<'_>| {
                (
                    sockopt::keep_idle(fd).unwrap(),
                    sockopt::linger2(fd).unwrap(),
                    sockopt::syn_count(fd).unwrap(),
                    sockopt::congestion(fd).unwrap(),
                    (family == Family::V4).then(|| sockopt::mtu_discover(fd).unwrap()),
                )
            };
            let before = options(server.as_fd());
            let outcome = a.move_out(server, None).wait();
            assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
            assert_eq!(options(b.arrival().socket.as_fd()), before);
        }
    }
});

kernel_test!(many_connections_move_at_once_over_one_link, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let ends = net.peer.count(END);
    let mut peers = Vec::new();
    let mut moving = Vec::new();
    for number in 0..20_u64 {
        let (mut peer, server) = net.connect(Family::V4);
        peer.write_all(&numbered(number, 100)).unwrap();
        let flow = flow(&server);
        peers.push((flow, number, peer));
        moving.push(a.move_out(OwnedFd::from(server), None));
    }
    for outcome in moving {
        assert!(matches!(outcome.wait().ending, Ending::Moved));
    }
    let arrived: Vec<Arrived> = peers.iter().map(|_| b.arrival()).collect();
    let servers: Vec<(FourTuple, TcpStream)> = arrived
        .into_iter()
        .map(|arrived| (arrived.flow, arrived.socket.into()))
        .collect();
    for (flow, server) in &servers {
        let (_, number, peer) = peers.iter().find(|peer| peer.0 == *flow).unwrap();
        expect(server, &numbered(*number, 100));
        both_ways(peer, server);
    }
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

kernel_test!(
    a_connection_that_the_peer_has_reset_moves_with_its_error,
    || {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &Options::default());
        b.serve();
        let (mut peer, server) = net.connect(Family::V4);
        peer.write_all(b"last words").unwrap();
        until("the bytes arrive", || {
            sockopt::receive_queue_len(server.as_fd()).unwrap() == 10
        });
        let linger = socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO));
        linger.unwrap();
        drop(peer);
        until("the RST arrives", || {
            tcp_info(server.as_fd()).unwrap().state == State::Close
        });
        let outcome = a.move_out(server, None).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        let mut server = TcpStream::from(b.arrival().socket);
        let mut got = Vec::new();
        let error = server.read_to_end(&mut got).unwrap_err();
        assert_eq!(got, b"last words");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
);

kernel_test!(a_connection_that_is_being_opened_moves, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let bind = || TcpListener::bind("198.18.0.9:0").unwrap();
    let listener = net.peer.run(bind).unwrap();
    let to = listener.local_addr().unwrap();
    net.peer.nft("table inet deaf { chain c { type filter hook prerouting priority -310; meta l4proto tcp drop; }; }",
    );
    let opening = open_from_a(&net, to);
    assert_eq!(tcp_info(opening.as_fd()).unwrap().state, State::SynSent);
    let outcome = a.move_out(opening, None).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    let arrived = b.arrival();
    net.peer.nft("delete table inet deaf");
    // The peer's answer goes to the source, and from there to the target.
    let server = TcpStream::from(arrived.socket);
    until("the connection is open", || {
        tcp_info(server.as_fd()).unwrap().state == State::Established
    });
    server.set_nonblocking(false).unwrap();
    let (peer, from) = listener.accept().unwrap();
    assert_eq!(from, arrived.flow.local());
    both_ways(&peer, &server);
});

kernel_test!(a_connection_in_two_moves_at_once_goes_in_one, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let ends = net.peer.count(&end_of(flow));
    let again = server.try_clone().unwrap();
    let outcomes = a.call(|here| async move {
        let (mover, to) = (here.mover(), here.other());
        let first = mover.move_out(server.into(), None, &to);
        let second = mover.move_out(again.into(), None, &to);
        let (first, second) = tokio::join!(first, second);
        [first, second]
    });
    let (moved, others): (Vec<Outcome>, Vec<Outcome>) = outcomes
        .into_iter()
        .partition(|outcome| matches!(outcome.ending, Ending::Moved));
    assert_eq!(moved.len(), 1, "{moved:?} and {others:?}");
    for outcome in others {
        let (_, reason) = kept(outcome);
        assert!(reason.contains("locked"), "{reason}");
    }
    let arrived = b.arrival().socket.into();
    both_ways(&peer, &arrived);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});
