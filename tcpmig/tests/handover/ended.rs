//! A connection that has ended, and the next one with its addresses and ports.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tcpmig::driver::{Ending, Options};

use crate::support::{Net, PATIENCE, Site, both_ways, flow, kept, kernel_test, until};

const SERVICE: &str = "198.18.0.80:7000";

/// A connection from always the same port of the peer.
fn connect(net: &Net, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        let from: SocketAddr = "198.18.0.9:5555".parse().unwrap();
        socket.bind(&from.into()).unwrap();
        socket
            .connect(&SERVICE.parse::<SocketAddr>().unwrap().into())
            .unwrap();
        TcpStream::from(socket)
    };
    let peer = net.peer.run(connect).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&peer, &server] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (peer, server)
}

fn ended(peer: TcpStream, server: &TcpStream) {
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);
    until("it has ended", || server.peer_addr().is_err());
}

kernel_test!(
    one_that_has_ended_moves_and_the_next_one_is_not_silenced,
    || {
        let net = Net::new();
        let listener = net.a.run(|| TcpListener::bind(SERVICE)).unwrap().unwrap();
        let (a, b) = Site::pair(&net, &Options::default());
        b.serve();
        let (peer, mut server) = connect(&net, &listener);
        let flow = flow(&server);
        ended(peer, &server);
        server.read(&mut [0]).unwrap_err();
        let (next_peer, next) = connect(&net, &listener);
        both_ways(&next_peer, &next);
        let outcome = a.move_out(server, None).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        drop(b.arrival());
        assert_eq!(a.entries(flow), []);
        both_ways(&next_peer, &next);
    }
);

kernel_test!(one_is_refused_without_harm_whose_error_waits, || {
    let net = Net::new();
    let listener = net.a.run(|| TcpListener::bind(SERVICE)).unwrap().unwrap();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let (peer, server) = connect(&net, &listener);
    let flow = flow(&server);
    ended(peer, &server);
    let (next_peer, next) = connect(&net, &listener);
    let (mut server, reason) = kept(a.move_out(server, None).wait());
    assert!(reason.contains("another connection lives"), "{reason}");
    assert_eq!(a.entries(flow), []);
    both_ways(&next_peer, &next);
    let error = server.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
});
