//! Many connections on one port, beside listeners.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig_sys::lab::Host;
use tcpmig_sys::sockopt;

use crate::scene::{arrive, leave};
use crate::support::{END, Family, Net, both_ways, kernel_test};

/// How a listener shares its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reuse {
    Address,
    Port,
}

fn listen(host: &Host, at: SocketAddr, reuse: Reuse) -> std::io::Result<TcpListener> {
    host.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        match reuse {
            Reuse::Address => socket.set_reuse_address(true)?,
            Reuse::Port => sockopt::set_reuse_port(socket.as_fd(), true).unwrap(),
        }
        socket.bind(&at.into())?;
        socket.listen(64)?;
        Ok(socket.into())
    })
    .unwrap()
}

/// Ends a listener at once, also if a child that another test starts has its descriptor for a moment.
fn close(listener: TcpListener) {
    let socket = Socket::from(listener);
    socket.shutdown(std::net::Shutdown::Read).unwrap();
}

fn accept(net: &Net, listener: &TcpListener, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let at = listener.local_addr().unwrap();
    let one = |_| {
        let peer = net.peer.run(|| TcpStream::connect(at)).unwrap().unwrap();
        (peer, listener.accept().unwrap().0)
    };
    (0..count).map(one).collect()
}

/// Moves twenty connections to host B, where there is a listener or not; then listeners on both hosts are closed
/// and opened anew.
fn moves_beside_listeners(family: Family, reuse: Reuse, listening_on_b: bool) {
    let what = format!("{family:?} {reuse:?} {listening_on_b}");
    let net = Net::new();
    let at = match family {
        Family::V6 => "[2001:2::80]:7000",
        _ => "198.18.0.80:7000",
    };
    let at: SocketAddr = at.parse().unwrap();
    let listener = listen(&net.a, at, reuse).unwrap();
    let on_b = listening_on_b.then(|| listen(&net.b, at, reuse).unwrap());
    let connections = accept(&net, &listener, 20);
    let ends = net.peer.count(END);
    let flags = |stream: &TcpStream| {
        let fd = stream.as_fd();
        (
            sockopt::reuse_addr(fd).unwrap(),
            sockopt::reuse_port(fd).unwrap(),
        )
    };
    let were = flags(&connections[0].1);
    let expected = match reuse {
        Reuse::Address => (1, false),
        Reuse::Port => (0, true),
    };
    assert_eq!(were, expected, "{what}");

    let (peers, servers): (Vec<_>, Vec<_>) = connections.into_iter().unzip();
    let images: Vec<_> = servers.into_iter().map(|one| leave(&net.a, one)).collect();
    net.point_peer_at_b();
    let moved: Vec<_> = images.into_iter().map(|one| arrive(&net.b, one)).collect();
    for (peer, server) in peers.iter().zip(&moved) {
        assert_eq!(flags(server), were, "{what}");
        both_ways(peer, server);
    }

    if let Some(on_b) = on_b {
        close(on_b);
    }
    let again = listen(&net.b, at, reuse).unwrap_or_else(|error| panic!("{what} on B: {error}"));
    let new = accept(&net, &again, 2);
    for (peer, server) in &new {
        assert_eq!(flags(server), were, "{what}");
        both_ways(peer, server);
    }
    close(listener);
    let again = listen(&net.a, at, reuse);
    again.unwrap_or_else(|error| panic!("{what} on A: {error}"));
    for (peer, server) in peers.iter().zip(&moved) {
        both_ways(peer, server);
    }
    assert_eq!(ends.packets(), 0, "{what}: RST or FIN at the peer");
}

kernel_test!(
    many_connections_of_a_port_move_to_a_host_that_listens,
    || {
        moves_beside_listeners(Family::V4, Reuse::Address, true);
        moves_beside_listeners(Family::V6, Reuse::Port, true);
    }
);

kernel_test!(
    many_connections_of_a_port_move_to_a_host_that_does_not_listen,
    || {
        moves_beside_listeners(Family::V6, Reuse::Address, false);
        moves_beside_listeners(Family::V4, Reuse::Port, false);
    }
);

kernel_test!(
    a_port_that_was_not_shared_is_not_shared_after_a_move,
    || {
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        sockopt::set_reuse_addr(server.as_fd(), 0).unwrap();
        let at = server.local_addr().unwrap();
        let image = leave(&net.a, server);
        net.point_peer_at_b();
        let moved = arrive(&net.b, image);
        assert_eq!(sockopt::reuse_addr(moved.as_fd()).unwrap(), 0);
        let refused = listen(&net.b, at, Reuse::Address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
        both_ways(&peer, &moved);
    }
);
