//! What the peer sees at the moment at which a rebuilt connection lives.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use support::{Family, Net, family, kernel_test, nft, pattern, until};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::repair::{ClosedSocket, FrozenSocket};
use tcpmig_sys::{Error, sockopt};

const DROP: &str = "type filter hook prerouting priority raw; meta l4proto tcp drop;";

/// The peer acknowledges the send queue between the end of the lock and activation: what is sent again then keeps its
/// place in the stream.
fn an_acknowledgement_that_comes_before(v6: bool) {
    let net = Net::new();
    let (mut peer, mut server) = net.connect(family(v6));
    let Ends { local, remote } = Ends::of(server.as_fd()).unwrap();
    let nft_on_a = |rules: String| net.a.run(|| nft(&rules)).unwrap();
    nft_on_a(format!("table inet t {{ chain i {{ {DROP} }}; }}"));
    let bytes = pattern(1, 14_480);
    server.write_all(&bytes).unwrap();
    let mut got = vec![0; bytes.len()];
    peer.read_exact(&mut got).unwrap();
    assert!(got == bytes);

    let frozen = FrozenSocket::freeze(server.into()).unwrap();
    let snapshot = frozen.read().unwrap();
    assert_eq!((&snapshot.send_queue, snapshot.unsent), (&bytes, 0));
    frozen.discard().unwrap();
    net.point_peer_at_b();
    let restored = net.b.run(|| {
        let start = snapshot.queue_start();
        let bound = ClosedSocket::open(v6).unwrap().bind(local).unwrap();
        let mss_clamp = snapshot.negotiated.mss_clamp;
        let mut socket = bound.connect(remote, start, mss_clamp).unwrap();
        let negotiated = &snapshot.negotiated;
        socket.negotiated(negotiated, snapshot.timestamp).unwrap();
        socket.fill_send_queue(&bytes, 0).unwrap();
        socket.enter_state(State::Established, &[], 0).unwrap();
        socket.window(snapshot.window).unwrap();
        // Nothing is locked: the moment between unlocking and the end of repair.
        socket.unmute().unwrap();
        peer.write_all(b"up").unwrap();
        until("the peer's acknowledgement has come", || {
            sockopt::send_queue_len(socket.as_fd()).unwrap() == 0
        });
        socket.activate(false).unwrap()
    });
    let mut server = TcpStream::from(restored.unwrap());
    server.set_nonblocking(false).unwrap();
    let mut got = [0; 2];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"up");
    server.write_all(b"new").unwrap();
    drop(server);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 3, "bytes that were sent before came again");
    assert_eq!(rest, b"new");
}

kernel_test!(an_ipv4_acknowledgement_that_comes_before_activation, || {
    an_acknowledgement_that_comes_before(false);
});

kernel_test!(an_ipv6_acknowledgement_that_comes_before_activation, || {
    an_acknowledgement_that_comes_before(true);
});

kernel_test!(a_connection_that_ended_meanwhile_is_not_activated, || {
    let net = Net::new();
    let (peer, mut server) = net.connect(Family::V4);
    let Ends { local, remote } = Ends::of(server.as_fd()).unwrap();
    net.a
        .run(|| nft(&format!("table inet t {{ chain i {{ {DROP} }}; }}")))
        .unwrap();
    let bytes = pattern(1, 1000);
    server.write_all(&bytes).unwrap();
    let frozen = FrozenSocket::freeze(server.into()).unwrap();
    let snapshot = frozen.read().unwrap();
    frozen.discard().unwrap();
    net.a
        .run(|| {
            let bound = ClosedSocket::open(false).unwrap().bind(local).unwrap();
            let mss_clamp = snapshot.negotiated.mss_clamp;
            let mut socket = bound
                .connect(remote, snapshot.queue_start(), mss_clamp)
                .unwrap();
            let negotiated = &snapshot.negotiated;
            socket.negotiated(negotiated, snapshot.timestamp).unwrap();
            // Its timers are not held.
            sockopt::set_user_timeout(socket.as_fd(), 1).unwrap();
            socket.fill_send_queue(&bytes, 0).unwrap();
            until("it is given up", || {
                tcp_info(socket.as_fd()).unwrap().state == State::Close
            });
            let failed = socket.activate(false).unwrap_err();
            assert!(matches!(failed.error, Error::Gone), "{failed}");
        })
        .unwrap();
    drop(peer);
});
