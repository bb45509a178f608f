//! What arrives while a connection stands still becomes part of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::locker;
use tcpmig::restore::Prepared;
use tcpmig_format::TcpState;
use tcpmig_sys::sockopt;

use crate::support::{Family, Net, both_ways, expect, kernel_test, tcp_counter, until};

const LEASE: Duration = Duration::from_secs(60);

/// A connection with bytes on their way in both directions while it is frozen, rebuilt on the same host.
fn becomes_part_of_it(family: Family) {
    let net = Net::new();
    let (mut peer, mut server) = net.connect(family);
    let locker = net.a.run(locker::nftables).unwrap().unwrap();
    server.write_all(b"answer").unwrap();
    let plan = Plan::read(server.as_fd()).unwrap();
    let flow = plan.flow();
    let mut frozen = Frozen::freeze(server.into(), plan, &locker, LEASE).unwrap();
    let mut image = frozen.capture(None).unwrap();
    peer.write_all(b"inside ").unwrap();
    peer.write_all(b"the lock").unwrap();
    until("both segments are captured", || {
        frozen.merge_captured(&mut image).unwrap();
        let tcp = image.tcp().unwrap();
        tcp.receive().queue.len() == 15
    });
    let tcp = image.tcp().unwrap();
    assert_eq!(&*tcp.receive().queue, b"inside the lock");
    assert!(tcp.send().sent.is_empty(), "the peer has acknowledged it");
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    locker.force_unlock(&[flow]).unwrap();

    let restored = net.a.run(|| {
        let prepared = Prepared::build(image, &locker, LEASE).unwrap();
        prepared.activate().unwrap().write()
    });
    let server = TcpStream::from(restored.unwrap().socket);
    server.set_nonblocking(false).unwrap();
    expect(&server, b"inside the lock");
    expect(&peer, b"answer");
    until("the peer's bytes are acknowledged", || {
        sockopt::send_queue_len(peer.as_fd()).unwrap() == 0
    });
    both_ways(&peer, &server);
}

kernel_test!(an_ipv4_connection_keeps_what_arrives, || {
    becomes_part_of_it(Family::V4);
});

kernel_test!(an_ipv6_connection_keeps_what_arrives, || {
    becomes_part_of_it(Family::V6);
});

kernel_test!(a_mapped_connection_keeps_what_arrives, || {
    becomes_part_of_it(Family::Mapped);
});

kernel_test!(a_reset_that_arrives_is_honoured, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let locker = net.a.run(locker::nftables).unwrap().unwrap();
    let plan = Plan::read(server.as_fd()).unwrap();
    let mut frozen = Frozen::freeze(server.into(), plan, &locker, LEASE).unwrap();
    let mut image = frozen.capture(None).unwrap();
    let linger = socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO));
    linger.unwrap();
    drop(peer);
    until("the reset is captured", || {
        frozen.merge_captured(&mut image).is_err()
    });
});

/// What arrives at a connection that is kept after all reaches its application; the end of the peer too.
fn reaches_what_is_kept(family: Family) {
    let net = Net::new();
    let (mut peer, server) = net.connect(family);
    let locker = net.a.run(locker::nftables).unwrap().unwrap();
    let freeze = |server: TcpStream| {
        let plan = Plan::read(server.as_fd()).unwrap();
        let mut frozen = Frozen::freeze(server.into(), plan, &locker, LEASE).unwrap();
        let image = frozen.capture(None).unwrap();
        (frozen, image)
    };
    let keep = |frozen: Frozen| {
        let kept = net.a.run(|| frozen.keep().unwrap()).unwrap();
        TcpStream::from(kept)
    };

    let (mut frozen, mut image) = freeze(server);
    peer.write_all(b"inside ").unwrap();
    peer.write_all(b"the lock").unwrap();
    until("both segments are captured", || {
        frozen.merge_captured(&mut image).unwrap();
        image.tcp().unwrap().receive().queue.len() == 15
    });
    let server = keep(frozen);
    expect(&server, b"inside the lock");
    both_ways(&peer, &server);
    assert_eq!(tcp_counter(&net.peer, "TCPTimeouts"), 0, "the peer waited");

    let (mut frozen, mut image) = freeze(server);
    peer.shutdown(Shutdown::Write).unwrap();
    until("the end is captured", || {
        frozen.merge_captured(&mut image).unwrap();
        image.tcp().unwrap().state() == TcpState::CloseWait
    });
    let server = keep(frozen);
    assert_eq!((&server).read(&mut [0; 1]).unwrap(), 0);
    (&server).write_all(b"still open").unwrap();
    expect(&peer, b"still open");

    let (mut frozen, _) = freeze(server);
    let linger = socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO));
    linger.unwrap();
    drop(peer);
    until("the reset is captured", || {
        !frozen.captured().unwrap().is_empty()
    });
    let server = keep(frozen);
    let error = (&server).write(b"?").unwrap_err();
    // What the kernel makes of a reset after the peer's end.
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

kernel_test!(an_ipv4_connection_that_is_kept_gets_what_arrived, || {
    reaches_what_is_kept(Family::V4);
});

kernel_test!(an_ipv6_connection_that_is_kept_gets_what_arrived, || {
    reaches_what_is_kept(Family::V6);
});

kernel_test!(a_mapped_connection_that_is_kept_gets_what_arrived, || {
    reaches_what_is_kept(Family::Mapped);
});
