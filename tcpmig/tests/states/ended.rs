//! Connections that have ended, with bytes that nobody has read and an error that nobody has been told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tcpmig::capture::{CaptureError, Frozen, Plan};
use tcpmig_format::{Image, Limits, PendingError};
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::sockopt;

use crate::net::{Family, Net, pattern, until};
use crate::scene::{LEASE, activate, build, capture, locker, without_clock};

/// How the connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By an RST.
    Reset,
    /// By an RST behind the peer's FIN.
    ResetAfterFin,
    /// By an RST behind the FINs of both ends.
    ResetAfterBoth,
    /// By an RST of which the application has been told.
    Told,
    /// By a FIN of each end.
    InOrder,
}

const ENDS: [End; 5] = [
    End::Reset,
    End::ResetAfterFin,
    End::ResetAfterBoth,
    End::Told,
    End::InOrder,
];

/// The server's end of a connection that has ended, with these bytes unread.
fn ended(net: &Net, family: Family, end: End, bytes: &[u8]) -> TcpStream {
    let (mut peer, server) = net.connect(family);
    peer.write_all(bytes).unwrap();
    until("the bytes arrive", || {
        sockopt::receive_queue_len(server.as_fd()).unwrap() as usize == bytes.len()
    });
    if matches!(end, End::ResetAfterFin | End::ResetAfterBoth | End::InOrder) {
        peer.shutdown(Shutdown::Write).unwrap();
        reaches(&server, State::CloseWait);
    }
    if end == End::ResetAfterBoth {
        // The peer does not hear of the FIN.
        net.peer.cut(&["prerouting"]);
    }
    if matches!(end, End::ResetAfterBoth | End::InOrder) {
        server.shutdown(Shutdown::Write).unwrap();
    }
    if end != End::InOrder {
        SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(peer);
    }
    reaches(&server, State::Close);
    if end == End::ResetAfterBoth {
        net.peer.mend();
    }
    if end == End::Told {
        let error = server.take_error().unwrap().unwrap();
        assert_eq!(
            error.raw_os_error(),
            Some(PendingError::CONNECTION_RESET.into())
        );
    }
    server
}

fn reaches(socket: &impl AsFd, state: State) {
    until(&format!("{state}"), || {
        tcp_info(socket.as_fd()).unwrap().state == state
    });
}

/// What an application learns of its connection.
#[derive(Debug, PartialEq, Eq)]
struct Learnt {
    bytes: usize,
    /// The errors of reading to the end, of writing then, and of reading again.
    reading: Option<i32>,
    writing: Option<i32>,
    reading_again: Option<i32>,
}

fn learn(mut stream: TcpStream, bytes: &[u8]) -> Learnt {
    stream.set_nonblocking(false).unwrap();
    let errno = |result: std::io::Result<usize>| result.err().and_then(|e| e.raw_os_error());
    let mut got = Vec::new();
    let reading = errno(stream.read_to_end(&mut got));
    assert!(got == bytes, "other bytes than were written");
    let writing = errno(stream.write(b"more"));
    assert!(writing.is_some(), "a connection that has ended took bytes");
    let reading_again = errno(stream.read(&mut [0; 8]));
    Learnt {
        bytes: got.len(),
        reading,
        writing,
        reading_again,
    }
}

/// Counts what the servers' hosts send from now on: at the peer a packet of before could still come in.
fn listen_in(net: &Net) {
    for host in [&net.a, &net.b] {
        host.nft("table inet heard { counter n { }; chain c { type filter hook postrouting priority 300; oifname != \"lo\" meta l4proto tcp counter name n; }; }",
        );
    }
}

/// How many packets that were.
fn heard(net: &Net) -> u64 {
    [&net.a, &net.b]
        .map(|host| host.counted("heard"))
        .iter()
        .sum()
}

fn moves(family: Family, end: End, bytes: &[u8]) {
    let what = format!("{family:?} {end:?} {}", bytes.len());
    let net = Net::new();
    // What the application would have learnt.
    let expected = learn(ended(&net, family, end, bytes), bytes);
    let server = ended(&net, family, end, bytes);
    listen_in(&net);

    let locker_a = net.a.run(locker).unwrap();
    let (frozen, image) = net.a.run(|| capture(server.into(), &locker_a)).unwrap();
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    let image = Image::decode(&image.encode().unwrap(), &Limits::default()).unwrap();
    let pending = |errno, after_fin| Some(PendingError { errno, after_fin });
    let tcp = image.tcp().unwrap();
    assert_eq!(&tcp.receive().queue[..], bytes, "{what}");
    assert_eq!(
        tcp.pending_error(),
        match end {
            End::Reset => pending(PendingError::CONNECTION_RESET, false),
            End::ResetAfterFin => pending(PendingError::BROKEN_PIPE, true),
            End::ResetAfterBoth => pending(PendingError::CONNECTION_RESET, true),
            End::Told | End::InOrder => None,
        },
        "{what}"
    );

    let locker_b = net.b.run(locker).unwrap();
    let socket = activate(build(&net.b, &locker_b, image.clone()).unwrap());
    assert_eq!(
        tcp_info(socket.as_fd()).unwrap().state,
        State::Close,
        "{what}"
    );
    // Read again and kept: the error that reading took is back.
    let (frozen, again) = net.b.run(|| capture(socket, &locker_b)).unwrap();
    assert_eq!(without_clock(&again), without_clock(&image), "{what}");
    let socket = net.b.run(|| frozen.keep()).unwrap().unwrap();
    assert_eq!(learn(socket.into(), bytes), expected, "{what}");
    assert_eq!(heard(&net), 0, "{what}");
}

kernel_test!(what_has_ended_moves, || {
    for end in ENDS {
        for family in [Family::V4, Family::V6, Family::Mapped] {
            moves(family, end, &pattern(9, 3000));
        }
        moves(Family::V4, end, b"");
        moves(Family::V6, end, &pattern(3, 200_000));
    }
});

kernel_test!(what_has_ended_and_is_kept_tells_its_error, || {
    for end in ENDS {
        let net = Net::new();
        let bytes = pattern(5, 1000);
        let expected = learn(ended(&net, Family::V4, end, &bytes), &bytes);
        let server = ended(&net, Family::V4, end, &bytes);
        listen_in(&net);
        // An application keeps its own descriptor, as under `tcpmig dump --keep`.
        let twin = server.try_clone().unwrap();
        let locker = net.a.run(locker).unwrap();
        let (frozen, _) = net.a.run(|| capture(server.into(), &locker)).unwrap();
        // Dropped instead of kept.
        net.a.run(|| drop(frozen)).unwrap();
        assert_eq!(learn(twin, &bytes), expected, "{end:?}");
        assert_eq!(heard(&net), 0);
    }
});

kernel_test!(an_error_that_could_not_be_put_back_is_not_taken, || {
    let net = Net::new();
    let bytes = pattern(6, 1000);
    let expected = learn(ended(&net, Family::V4, End::Reset, &bytes), &bytes);
    let server = ended(&net, Family::V4, End::Reset, &bytes);
    let twin = server.try_clone().unwrap();
    let locker = net.a.run(locker).unwrap();
    net.a.ip("addr del 198.18.0.80/24 dev eth0\n").unwrap();
    let refused = net
        .a
        .run(|| {
            let plan = Plan::read(server.as_fd()).unwrap();
            let mut frozen = Frozen::freeze(server.into(), plan, &locker, LEASE).unwrap();
            frozen.capture(None).unwrap_err()
        })
        .unwrap();
    assert!(
        matches!(
            refused,
            CaptureError::Socket(tcpmig_sys::Error::NotLocal { .. })
        ),
        "{refused}"
    );
    assert_eq!(learn(twin, &bytes), expected);
});

kernel_test!(an_error_that_no_segment_makes_becomes_a_reset, || {
    let net = Net::new();
    let (mut peer, mut server) = net.connect(Family::V4);
    peer.write_all(b"unread").unwrap();
    until("the bytes arrive", || {
        sockopt::receive_queue_len(server.as_fd()).unwrap() == 6
    });
    // The peer does not answer any more, and the server loses patience.
    net.peer.cut(&["prerouting"]);
    sockopt::set_user_timeout(server.as_fd(), 50).unwrap();
    server.write_all(b"answer").unwrap();
    reaches(&server, State::Close);
    let locker_a = net.a.run(locker).unwrap();
    let (frozen, image) = net.a.run(|| capture(server.into(), &locker_a)).unwrap();
    frozen.discard().unwrap();
    let pending = image.tcp().unwrap().pending_error().unwrap();
    assert_eq!(i32::from(pending.errno), Errno::ETIMEDOUT as i32);
    let locker_b = net.b.run(locker).unwrap();
    let socket = activate(build(&net.b, &locker_b, image).unwrap());
    let learnt = learn(socket.into(), b"unread");
    assert_eq!(learnt.reading, Some(Errno::ECONNRESET as i32));
});
