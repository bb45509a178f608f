//! Listeners re-created on another host, and what waits in them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig::capture::{Frozen, Plan};
use tcpmig::listener::{self, Captured, ListenerError, Waiting};
use tcpmig::restore::{Prepared, RestoreError};
use tcpmig_format::{Image, Limits};
use tcpmig_sys::listener::{
    accept_queue, defer_accept, fast_open, set_defer_accept, set_fast_open,
};
use tcpmig_sys::{Error, NotMigratable, sockopt};

use crate::net::{Net, pattern, until};
use crate::scene::{LEASE, activate, build, capture, locker};

/// A listener of the calling thread's host with this address, and nothing as it is by default.
fn peculiar(address: &str) -> OwnedFd {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .unwrap();
    let fd = socket.as_fd();
    socket.set_reuse_address(true).unwrap();
    sockopt::set_reuse_port(fd, true).unwrap();
    if address.is_ipv6() {
        sockopt::set_v6_only(fd, true).unwrap();
        sockopt::set_freebind_v6(fd, true).unwrap();
    } else {
        sockopt::set_freebind(fd, true).unwrap();
    }
    sockopt::set_mark(fd, 0x17).unwrap();
    sockopt::set_priority(fd, 5).unwrap();
    sockopt::set_no_delay(fd, true).unwrap();
    sockopt::set_keep_alive(fd, true).unwrap();
    sockopt::set_keep_idle(fd, 77).unwrap();
    sockopt::set_receive_buffer(fd, 50_000).unwrap();
    sockopt::set_user_timeout(fd, 12_345).unwrap();
    sockopt::set_bound_device(fd, "eth0").unwrap();
    set_defer_accept(fd, 7).unwrap();
    set_fast_open(fd, 5).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(37).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

fn plain(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap()
}

fn through_bytes(image: &Image) -> Image {
    Image::decode(&image.encode().unwrap(), &Limits::default()).unwrap()
}

/// Connections from the peer that wait to be accepted, which have written what they are.
fn wait_in(net: &Net, listener: &impl AsFd, to: SocketAddr, count: u32) -> Vec<TcpStream> {
    let connect = |number: u32| {
        let mut peer = net.peer.run(|| TcpStream::connect(to)).unwrap().unwrap();
        peer.write_all(&pattern(number.into(), 1000)).unwrap();
        peer
    };
    let peers = (0..count).map(connect).collect();
    until("the connections wait", || {
        accept_queue(listener.as_fd()).unwrap().waiting == count
    });
    peers
}

kernel_test!(a_listener_is_made_again_as_it_was, || {
    let net = Net::new();
    for (address, at) in [
        ("198.18.0.80:7001", "198.18.0.80:7001"),
        ("[2001:2::80]:7002", "[2001:2::80]:7002"),
        ("0.0.0.0:7003", "198.18.0.80:7003"),
        ("[::]:7004", "[2001:2::80]:7004"),
    ] {
        let old = net.a.run(|| peculiar(address)).unwrap();
        let captured = net
            .a
            .run(|| listener::capture(old.as_fd(), Waiting::Refuse));
        let image = through_bytes(&captured.unwrap().unwrap().image);
        let listen = image.listener().unwrap();
        assert_eq!(listen.local, address.parse().unwrap());
        assert_eq!(
            (listen.backlog, listen.defer_accept, listen.fast_open),
            (37, 7, 5)
        );
        let new = net.b.run(|| listener::restore(&image)).unwrap().unwrap();
        let fd = new.as_fd();
        assert_eq!(accept_queue(fd).unwrap().backlog, 37);
        assert_eq!(defer_accept(fd).unwrap(), 7);
        assert_eq!(fast_open(fd).unwrap(), 5);
        assert!(sockopt::reuse_port(fd).unwrap());
        assert_eq!(sockopt::reuse_addr(fd).unwrap(), 1);
        assert_eq!(sockopt::mark(fd).unwrap(), 0x17);
        assert_eq!(sockopt::keep_idle(fd).unwrap(), 77);
        assert_eq!(sockopt::receive_buffer(fd).unwrap(), 100_000);
        assert_eq!(sockopt::bound_device(fd).unwrap().as_deref(), Some("eth0"));
        if address.contains('[') {
            assert!(sockopt::v6_only(fd).unwrap());
        }
        // Everything else too: it reads the same.
        let again = net.b.run(|| listener::capture(fd, Waiting::Refuse));
        let mut again = again.unwrap().unwrap().image;
        again.taken = image.taken;
        assert_eq!(again, image);

        // It is one. The peer has to write first, or it is not woken for seven seconds.
        net.point_peer_at_b();
        let at: SocketAddr = at.parse().unwrap();
        let mut peer = net.peer.run(|| TcpStream::connect(at)).unwrap().unwrap();
        peer.write_all(b"hello").unwrap();
        let listener = TcpListener::from(new);
        listener.set_nonblocking(false).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut got = [0; 5];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        assert!(sockopt::no_delay(server.as_fd()).unwrap(), "inherited");
    }
});

kernel_test!(what_waits_is_refused_unless_told_otherwise, || {
    let net = Net::new();
    let listener = net.a.run(|| plain("198.18.0.80:0")).unwrap();
    let to = listener.local_addr().unwrap();
    let mut peers = wait_in(&net, &listener, to, 3);
    let error = listener::capture(listener.as_fd(), Waiting::default()).unwrap_err();
    assert!(matches!(error, ListenerError::Waits(3)), "{error}");
    assert!(error.to_string().contains("3 connections wait"), "{error}");

    // Left, they are there for whoever goes on with the listener.
    let Captured { accepted, .. } = listener::capture(listener.as_fd(), Waiting::Leave).unwrap();
    assert!(accepted.is_empty());
    assert_eq!(accept_queue(listener.as_fd()).unwrap().waiting, 3);
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"here").unwrap();
    let mut got = [0; 4];
    peers[0].read_exact(&mut got).unwrap();
    net.assert_no_reset();
});

kernel_test!(what_waits_is_accepted_and_moves, || {
    const COUNT: u32 = 5;
    let net = Net::new();
    let listener = net.a.run(|| plain("198.18.0.80:0")).unwrap();
    let to = listener.local_addr().unwrap();
    let peers = wait_in(&net, &listener, to, COUNT);
    let Captured {
        image, accepted, ..
    } = listener::capture(listener.as_fd(), Waiting::Accept).unwrap();
    assert_eq!(accepted.len(), COUNT as usize);
    assert_eq!(accept_queue(listener.as_fd()).unwrap().waiting, 0);
    assert!(!tcpmig_sys::fcntl::non_blocking(listener.as_fd()).unwrap());
    let new = net.b.run(|| listener::restore(&image)).unwrap().unwrap();

    let (locker_a, locker_b) = (net.a.run(locker).unwrap(), net.b.run(locker).unwrap());
    let move_it = |socket| {
        let (frozen, image) = net.a.run(|| capture(socket, &locker_a)).unwrap();
        frozen.check_unchanged().unwrap();
        frozen.discard().unwrap();
        build(&net.b, &locker_b, image).unwrap()
    };
    let prepared: Vec<Prepared> = accepted.into_iter().map(move_it).collect();
    drop(listener);
    net.point_peer_at_b();
    for (number, (prepared, mut peer)) in prepared.into_iter().zip(peers).enumerate() {
        let mut server = TcpStream::from(activate(prepared));
        server.set_nonblocking(false).unwrap();
        let mut got = vec![0; 1000];
        server.read_exact(&mut got).unwrap();
        assert!(got == pattern(number as u64, 1000));
        server.write_all(&got).unwrap();
        let mut back = vec![0; 1000];
        peer.read_exact(&mut back).unwrap();
        assert!(back == got);
    }
    // Who comes now finds the new listener.
    let peer = net.peer.run(|| TcpStream::connect(to)).unwrap().unwrap();
    let (_server, from) = TcpListener::from(new).accept().unwrap();
    assert_eq!(from, peer.local_addr().unwrap());
    net.assert_no_reset();
});

kernel_test!(
    a_listener_and_a_connection_are_not_taken_for_each_other,
    || {
        let net = Net::new();
        let listener = net.a.run(|| plain("198.18.0.80:0")).unwrap();
        let (peer, server) = net.connect(crate::net::Family::V4);
        let error = Plan::read(listener.as_fd()).unwrap_err();
        assert!(error.to_string().contains("is listening"), "{error}");
        let error = listener::capture(server.as_fd(), Waiting::Leave).unwrap_err();
        let ListenerError::Capture(error) = error else {
            panic!("{error}");
        };
        assert!(error.is_not_migratable());

        let of_listener = listener::capture(listener.as_fd(), Waiting::Leave).unwrap();
        let locker = net.a.run(locker).unwrap();
        let refused = Prepared::build(of_listener.image, &locker, LEASE).unwrap_err();
        assert!(matches!(refused, RestoreError::Listener), "{refused}");
        let plan = Plan::read(server.as_fd()).unwrap();
        let mut frozen = Frozen::freeze(server.into(), plan, &locker, LEASE).unwrap();
        let of_connection = frozen.capture(None).unwrap();
        let refused = listener::restore(&of_connection).unwrap_err();
        assert!(matches!(refused, RestoreError::Layer(_)), "{refused}");
        drop((frozen, peer));
    }
);

kernel_test!(a_host_that_cannot_have_the_listener_refuses_it, || {
    let net = Net::new();
    let listener = net.a.run(|| plain("198.18.0.80:7010")).unwrap();
    let image = listener::capture(listener.as_fd(), Waiting::Leave)
        .unwrap()
        .image;
    // The port is taken.
    let taken = net.b.run(|| plain("198.18.0.80:7010")).unwrap();
    let error = net
        .b
        .run(|| listener::restore(&image))
        .unwrap()
        .unwrap_err();
    let RestoreError::Socket(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.errno(), Some(nix::errno::Errno::EADDRINUSE as i32));
    drop(taken);
    // Fewer may wait there.
    net.b.set("net/core/somaxconn", "16").unwrap();
    let error = net
        .b
        .run(|| listener::restore(&image))
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, RestoreError::Socket(Error::NotAsAsked { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("somaxconn"), "{error}");
    net.b.set("net/core/somaxconn", "4096").unwrap();
    net.b.run(|| listener::restore(&image)).unwrap().unwrap();
});

kernel_test!(a_multipath_listener_is_refused, || {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    socket
        .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    socket.listen(1).unwrap();
    let error = listener::capture(socket.as_fd(), Waiting::Leave).unwrap_err();
    let expected = NotMigratable::Mptcp.to_string();
    assert!(error.to_string().contains(&expected), "{error}");
});
