//! What is left on the target of an earlier connection with the same addresses and ports.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig::restore::RestoreError;
use tcpmig_sys::Error;
use tcpmig_sys::info::State;
use tcpmig_sys::lab::Host;
use tcpmig_sys::sockets::{Lookup, Occupant};

use crate::scene::{activate, arrive, build, forget_locks, freeze, leave};
use crate::support::{Family, Net, both_ways, kernel_test, until};

const PORT: u16 = 7100;
const PEER_PORT: u16 = 40_000;

/// The ends of both connections, as they are on the wire.
fn ends(family: Family) -> (SocketAddr, SocketAddr) {
    let (service, peer) = match family {
        Family::V6 => ("2001:2::80", "2001:2::9"),
        Family::V4 | Family::Mapped => ("198.18.0.80", "198.18.0.9"),
    };
    let end = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    (end(service, PORT), end(peer, PEER_PORT))
}

/// The address for a socket of this family.
fn in_family(address: SocketAddr, family: Family) -> SocketAddr {
    match (family, address) {
        (Family::Mapped, SocketAddr::V4(v4)) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        _ => address,
    }
}

/// A socket that shares its port.
fn bound(host: &Host, at: SocketAddr) -> Socket {
    let bind = || {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP));
        let socket = socket.unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&at.into()).unwrap();
        socket
    };
    host.run(bind).unwrap()
}

fn listen(host: &Host, family: Family) -> TcpListener {
    let socket = bound(host, in_family(ends(family).0, family));
    socket.listen(8).unwrap();
    socket.into()
}

fn hardware_address(host: &Host) -> String {
    let mut show = host.command("ip").unwrap();
    let output = show.args(["-o", "link", "show", "eth0"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split_once("link/ether ").unwrap().1;
    mac.split_whitespace().next().unwrap().to_owned()
}

/// The peer's packets to the service go to this host from now on.
fn point_peer_at(net: &Net, host: &Host) {
    let mac = hardware_address(host);
    for address in ["198.18.0.80", "2001:2::80"] {
        let line = format!("neigh replace {address} lladdr {mac} dev eth0");
        net.peer.ip(&line).unwrap();
    }
}

fn connect(net: &Net, family: Family, from_port: u16) -> TcpStream {
    let (service, mut peer) = ends(family);
    peer.set_port(from_port);
    let socket = bound(&net.peer, peer);
    socket
        .connect_timeout(&service.into(), crate::support::PATIENCE)
        .unwrap();
    socket.into()
}

fn found(host: &Host, (local, remote): (SocketAddr, SocketAddr)) -> Option<Occupant> {
    let look = || Lookup::new().unwrap().occupant(local, remote).unwrap();
    host.run(look).unwrap()
}

/// Leaves a connection in `TIME_WAIT` on host B.
fn leave_in_time_wait(net: &Net, family: Family, from_port: u16) {
    point_peer_at(net, &net.b);
    let listener = listen(&net.b, family);
    let mut peer = connect(net, family, from_port);
    let (server, _) = listener.accept().unwrap();
    drop(server);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    drop(peer);
    let (service, mut remote) = ends(family);
    remote.set_port(from_port);
    until("the connection is in TIME_WAIT", || {
        let state = found(&net.b, (service, remote)).map(|found| found.state);
        state == Some(State::TimeWait)
    });
    until("the peer has forgotten it", || {
        found(&net.peer, (remote, service)).is_none()
    });
    close(listener);
    point_peer_at(net, &net.a);
}

/// Also if a child that another test starts has its descriptor for a moment.
fn close(listener: TcpListener) {
    let socket = Socket::from(listener);
    socket.shutdown(std::net::Shutdown::Read).unwrap();
}

/// The connection that is to move, from the same port of the peer.
fn opened(net: &Net, family: Family) -> (TcpStream, TcpStream) {
    let listener = listen(&net.a, family);
    let peer = connect(net, family, PEER_PORT);
    let server = listener.accept().unwrap().0;
    close(listener);
    (peer, server)
}

/// Restores a connection on host B, unless this kernel does not end what is in `TIME_WAIT` when it is told to.
fn gives_way_or_says_so(
    net: &Net,
    family: Family,
    image: tcpmig_format::Image,
) -> Option<TcpStream> {
    match build(&net.b, image) {
        Ok(prepared) => Some(TcpStream::from(activate(prepared).socket)),
        Err(error) => {
            let text = error.to_string();
            let words = "has ended on this host and is in TIME_WAIT, for another ";
            assert!(text.contains(words) && text.contains("ss -K"), "{text}");
            println!("not applicable: what is in TIME_WAIT cannot be ended: {family:?}");
            None
        }
    }
}

fn what_is_in_time_wait_gives_way(timestamps: &str, reuse: &str) {
    for (earlier, family) in [
        (Family::V4, Family::V4),
        (Family::V6, Family::V6),
        (Family::Mapped, Family::Mapped),
        (Family::Mapped, Family::V4),
        (Family::V4, Family::Mapped),
    ] {
        println!("{earlier:?} {family:?} {timestamps} {reuse}");
        let net = Net::new();
        net.b.set("net/ipv4/tcp_timestamps", timestamps).unwrap();
        net.b.set("net/ipv4/tcp_tw_reuse", reuse).unwrap();
        leave_in_time_wait(&net, earlier, PEER_PORT);
        let (peer, server) = opened(&net, family);
        let image = leave(&net.a, server);
        point_peer_at(&net, &net.b);
        if let Some(moved) = gives_way_or_says_so(&net, family, image) {
            both_ways(&peer, &moved);
        }
    }
}

kernel_test!(what_is_in_time_wait_with_timestamps_gives_way, || {
    for reuse in ["0", "1", "2"] {
        what_is_in_time_wait_gives_way("1", reuse);
    }
});

kernel_test!(what_is_in_time_wait_without_timestamps_gives_way, || {
    for reuse in ["0", "1"] {
        what_is_in_time_wait_gives_way("0", reuse);
    }
});

kernel_test!(what_is_in_time_wait_with_another_peer_stays, || {
    for timestamps in ["0", "1"] {
        let net = Net::new();
        net.b.set("net/ipv4/tcp_timestamps", timestamps).unwrap();
        leave_in_time_wait(&net, Family::V4, PEER_PORT + 1);
        let (peer, server) = opened(&net, Family::V4);
        let image = leave(&net.a, server);
        point_peer_at(&net, &net.b);
        let moved = arrive(&net.b, image);
        both_ways(&peer, &moved);
        let (service, mut other) = ends(Family::V4);
        other.set_port(PEER_PORT + 1);
        let other = found(&net.b, (service, other)).expect("it is there");
        assert_eq!(other.state, State::TimeWait);
        assert!(!other.owned);
        assert!(other.stays.unwrap().as_secs() <= 60);
    }
});

/// Something of host B has the four-tuple: the error says what, and the connection goes on at its source.
fn is_refused(net: &Net, family: Family, words: &[&str]) {
    let (peer, server) = opened(net, family);
    let (frozen, image) = freeze(&net.a, server);
    let before = found(&net.b, ends(family)).map(|found| found.state);
    assert_ne!(before, None, "it is there still");
    match build(&net.b, image) {
        Err(RestoreError::Socket(error @ Error::Occupied { .. })) => {
            let text = error.to_string();
            for words in words {
                assert!(text.contains(words), "{words:?} in {text:?}");
            }
        }
        other => panic!("{other:?}"),
    }
    // A look at a request whose timer runs just then can miss it.
    until("what was there is there", || {
        found(&net.b, ends(family)).map(|found| found.state) == before
    });
    let kept = net.a.run(|| frozen.keep().unwrap()).unwrap();
    both_ways(&peer, &TcpStream::from(kept));
}

kernel_test!(what_waits_for_the_peer_s_fin_is_named, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        let net = Net::new();
        // With timestamps the kernel lets another one take its place.
        net.b.set("net/ipv4/tcp_timestamps", "0").unwrap();
        point_peer_at(&net, &net.b);
        let listener = listen(&net.b, family);
        let peer = connect(&net, family, PEER_PORT);
        drop(listener.accept().unwrap());
        close(listener);
        until("the peer has acknowledged the FIN", || {
            found(&net.b, ends(family)).is_some_and(|found| found.state == State::FinWait2)
        });
        // Without a packet.
        drop(leave(&net.peer, peer));
        forget_locks(&net.peer);
        point_peer_at(&net, &net.a);
        let words = [
            "is closed on this host, but the peer has not agreed yet (FIN_WAIT2), for another ",
            " s: wait, or end it with `ss -K`",
        ];
        is_refused(&net, family, &words);
    }
});

kernel_test!(a_handshake_that_is_under_way_is_named, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        let net = Net::new();
        // The handshake is given up later than a slow test needs.
        net.b.set("net/ipv4/tcp_synack_retries", "12").unwrap();
        point_peer_at(&net, &net.b);
        let listener = listen(&net.b, family);
        // The peer hears nothing of host B, which would forget an answer that it had dropped itself.
        let mac = hardware_address(&net.b);
        net.peer.nft(&format!(
                "table inet deaf {{ chain c {{ type filter hook prerouting priority raw; ether saddr {mac} drop; }}; }}"
            ),
        );
        let (service, peer) = ends(family);
        let opening = bound(&net.peer, peer);
        opening.set_nonblocking(true).unwrap();
        net.peer
            .run(|| opening.connect(&service.into()).unwrap_err())
            .unwrap();
        until("its SYN has come", || {
            found(&net.b, (service, peer)).is_some()
        });
        // In SYN_SENT it ends without a packet.
        drop(opening);
        point_peer_at(&net, &net.a);
        let words = ["the handshake of a connection", "under way on this host"];
        is_refused(&net, family, &words);
        close(listener);
    }
});

kernel_test!(a_connection_that_lives_is_named, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        let net = Net::new();
        point_peer_at(&net, &net.b);
        let listener = listen(&net.b, family);
        let peer = connect(&net, family, PEER_PORT);
        let (_server, _) = listener.accept().unwrap();
        drop(leave(&net.peer, peer));
        forget_locks(&net.peer);
        point_peer_at(&net, &net.a);
        is_refused(&net, family, &["lives here already, in ESTABLISHED"]);
    }
});

kernel_test!(
    what_is_in_time_wait_gives_way_to_one_that_is_opening,
    || {
        for timestamps in ["0", "1"] {
            let net = Net::new();
            net.b.set("net/ipv4/tcp_timestamps", timestamps).unwrap();
            leave_in_time_wait(&net, Family::V4, PEER_PORT);
            let (service, peer) = ends(Family::V4);
            // The peer loses the SYN.
            net.peer.nft("table inet lost { chain c { type filter hook input priority raw; tcp flags syn drop; }; }",
            );
            let opening = bound(&net.a, service);
            opening.set_nonblocking(true).unwrap();
            net.a
                .run(|| opening.connect(&peer.into()).unwrap_err())
                .unwrap();
            let image = leave(&net.a, opening);
            point_peer_at(&net, &net.b);
            let listener = bound(&net.peer, peer);
            listener.listen(1).unwrap();
            let moved = match build(&net.b, image) {
                Ok(prepared) => TcpStream::from(activate(prepared).socket),
                Err(error) => {
                    assert!(error.to_string().contains("TIME_WAIT"), "{error}");
                    println!("not applicable: what is in TIME_WAIT cannot be ended");
                    continue;
                }
            };
            net.peer.nft("delete table inet lost");
            let (accepted, _) = TcpListener::from(listener).accept().unwrap();
            let moved_fd = moved.as_fd();
            until("it is open", || {
                tcpmig_sys::info::tcp_info(moved_fd).unwrap().state == State::Established
            });
            moved.set_nonblocking(false).unwrap();
            both_ways(&accepted, &moved);
        }
    }
);
