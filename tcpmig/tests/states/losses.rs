//! What does not move with a connection, and what becomes of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tcpmig_sys::sockopt;

use crate::net::{Family, Net, pattern, until};
use crate::scene::{activate, build, capture, locker};

/// Moves the server's end to host B.
fn moved(net: &Net, server: TcpStream) -> TcpStream {
    let locker_a = net.a.run(locker).unwrap();
    let (frozen, image) = net.a.run(|| capture(server.into(), &locker_a)).unwrap();
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    let locker_b = net.b.run(locker).unwrap();
    let prepared = build(&net.b, &locker_b, image).unwrap();
    net.point_peer_at_b();
    let server = TcpStream::from(activate(prepared));
    server.set_nonblocking(false).unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    server
}

kernel_test!(bytes_behind_a_gap_are_sent_again, || {
    for family in [Family::V4, Family::V6] {
        let net = Net::new();
        let (mut peer, server) = net.connect(family);
        peer.set_nodelay(true).unwrap();
        // The first of the segments is lost, however often it is sent: it alone has this length.
        let first = pattern(1, 1000);
        net.a.nft("table inet gap { counter n { }; chain c { type filter hook prerouting priority -310; iifname eth0 meta l4proto tcp meta length 1020-1079 counter name n drop; }; }",
        );
        peer.write_all(&first).unwrap();
        until("the first segment is lost", || net.a.counted("gap") > 0);
        let behind = pattern(2, 700);
        peer.write_all(&behind).unwrap();
        // The peer knows that what is behind the gap has arrived: it does not send that again by itself.
        until("what is behind the gap is acknowledged", || {
            sacked(&peer) > 0
        });
        assert_eq!(sockopt::receive_queue_len(server.as_fd()).unwrap(), 0);

        let began = Instant::now();
        let mut server = moved(&net, server);
        let mut got = vec![0; 1700];
        server.read_exact(&mut got).unwrap();
        println!("{family:?}: whole after {:?}", began.elapsed());
        assert!(got[..1000] == first && got[1000..] == behind);
        // Each byte once: what the peer writes next comes next.
        peer.write_all(b"next").unwrap();
        server.read_exact(&mut got[..4]).unwrap();
        assert_eq!(&got[..4], b"next");
        net.assert_no_reset();
    }
});

/// Segments that the other end has acknowledged behind a gap (`tcpi_sacked`).
fn sacked(stream: &TcpStream) -> u32 {
    tcpmig_sys::listener::accept_queue(stream.as_fd())
        .unwrap()
        .backlog
}

kernel_test!(urgent_bytes_under_way_become_ordinary_ones, || {
    let net = Net::new();
    let (mut peer, mut server) = net.connect(Family::V4);
    net.peer.cut(&["prerouting"]);
    server.write_all(b"ordinary ").unwrap();
    socket2::SockRef::from(&server)
        .send_out_of_band(b"urgent!")
        .unwrap();
    let mut server = {
        let moving = moved(&net, server);
        net.peer.mend();
        moving
    };
    server.write_all(b" more").unwrap();
    let mut got = [0; 21];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ordinary urgent! more");
    net.assert_no_reset();
});
