//! Connections that cannot be moved are refused before anything is done to them, and go on.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig::capture::{CaptureError, Plan};
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::set_option;
use tcpmig_sys::{Error, NotMigratable, sockopt};

use crate::net::{Family, Net, until};

const IPPROTO_TCP: i32 = 6;
const TCP_MD5SIG: i32 = 14;
const TCP_FASTOPEN: i32 = 23;
const TCP_ULP: i32 = 31;
const TCP_AO_ADD_KEY: i32 = 38;
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// The plan of a connection of host A.
fn plan(net: &Net, socket: &impl AsFd) -> Result<Plan, CaptureError> {
    net.a.run(|| Plan::read(socket.as_fd())).unwrap()
}

#[track_caller]
fn refuses(net: &Net, socket: &impl AsFd, because: NotMigratable) {
    let error = plan(net, socket).unwrap_err();
    assert!(error.is_not_migratable());
    let CaptureError::Socket(Error::NotMigratable(reason)) = error else {
        panic!("{error}");
    };
    assert_eq!(reason, because);
}

/// Bytes pass in both directions.
fn goes_on<'a>(mut one: &'a TcpStream, mut other: &'a TcpStream) {
    for _ in 0..2 {
        one.write_all(b"still here").unwrap();
        let mut got = [0; 10];
        other.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still here");
        std::mem::swap(&mut one, &mut other);
    }
}

/// `struct tcp_md5sig` with a key for segments from and to an address.
fn md5_key(with: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0; 216];
    match with {
        IpAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&2_u16.to_ne_bytes());
            bytes[4..8].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&10_u16.to_ne_bytes());
            bytes[8..24].copy_from_slice(&v6.octets());
        }
    }
    bytes[130..132].copy_from_slice(&6_u16.to_ne_bytes());
    bytes[136..142].copy_from_slice(b"secret");
    bytes
}

kernel_test!(md5_keys, || {
    let net = Net::new();
    for [service, client] in [["198.18.0.80", "198.18.0.9"], ["2001:2::80", "2001:2::9"]] {
        let (service, client): (IpAddr, IpAddr) =
            (service.parse().unwrap(), client.parse().unwrap());
        let bind = || TcpListener::bind((service, 0));
        let listener = net.a.run(bind).unwrap().unwrap();
        let at = listener.local_addr().unwrap();
        let sign =
            |fd: BorrowedFd<'_>, with| set_option(fd, IPPROTO_TCP, TCP_MD5SIG, &md5_key(with));
        if let Err(error) = sign(listener.as_fd(), client) {
            // A kernel without CONFIG_TCP_MD5SIG: nothing is signed, nothing refused.
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            continue;
        }
        let connect = || {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
            sign(socket.as_fd(), service).unwrap();
            socket.connect(&at.into()).unwrap();
            TcpStream::from(socket)
        };
        let peer = net.peer.run(connect).unwrap();
        let (server, _) = listener.accept().unwrap();
        refuses(&net, &server, NotMigratable::Md5);
        goes_on(&peer, &server);
        // One without keys beside it is not taken for it.
        let other = net.connect(if service.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        });
        plan(&net, &other.1).unwrap();
    }
});

kernel_test!(tcp_ao_keys, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    // `struct tcp_ao_add`: the address, the algorithm, and a key of 16 bytes with the identifiers 1 and 1.
    let mut key = vec![0_u8; 304];
    key[..2].copy_from_slice(&2_u16.to_ne_bytes());
    let added = set_option(server.as_fd(), IPPROTO_TCP, TCP_AO_ADD_KEY, &key);
    // Keys come before the connection, so this one has none in any kernel.
    added.unwrap_err();
    plan(&net, &server).unwrap();
    let fresh = net.a.run(|| Socket::new(Domain::IPV4, Type::STREAM, None));
    let fresh = fresh.unwrap().unwrap();
    match set_option(fresh.as_fd(), IPPROTO_TCP, TCP_AO_ADD_KEY, &key) {
        // A kernel without CONFIG_TCP_AO.
        Err(Error::Unsupported { .. }) => {}
        // One with it looks at what is in the struct.
        other => assert!(other.is_err(), "a key of nothing was taken"),
    }
    goes_on(&peer, &server);
});

kernel_test!(an_upper_layer, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    match set_option(server.as_fd(), IPPROTO_TCP, TCP_ULP, b"tls") {
        // Without keys it lets everything pass.
        Ok(()) => refuses(&net, &server, NotMigratable::UpperLayer),
        // A kernel without kTLS: none is attached, and the connection can be moved.
        Err(error) => {
            let without = nix::errno::Errno::ENOENT as i32;
            assert_eq!(error.errno(), Some(without), "{error}");
            assert_eq!(sockopt::upper_layer(server.as_fd()).unwrap(), None);
            plan(&net, &server).unwrap();
        }
    }
    goes_on(&peer, &server);
});

kernel_test!(a_multipath_connection, || {
    let net = Net::new();
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    let listener = net.a.run(socket).unwrap();
    let Ok(listener) = listener else {
        // A kernel without MPTCP has no such connection.
        let error = listener.unwrap_err();
        let without = nix::errno::Errno::EPROTONOSUPPORT as i32;
        assert_eq!(error.raw_os_error(), Some(without));
        return;
    };
    let at: SocketAddr = "198.18.0.80:7020".parse().unwrap();
    listener.bind(&at.into()).unwrap();
    listener.listen(1).unwrap();
    let connect = || {
        let socket = socket().unwrap();
        socket.connect(&at.into()).unwrap();
        TcpStream::from(socket)
    };
    let peer = net.peer.run(connect).unwrap();
    let server = TcpStream::from(listener.accept().unwrap().0);
    refuses(&net, &server, NotMigratable::Mptcp);
    goes_on(&peer, &server);
});

kernel_test!(a_socket_that_somebody_else_repairs, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V6);
    sockopt::set_repair(server.as_fd(), sockopt::Repair::On).unwrap();
    refuses(&net, &server, NotMigratable::InRepairMode);
    assert!(sockopt::repair(server.as_fd()).unwrap());
    sockopt::set_repair(server.as_fd(), sockopt::Repair::OffQuiet).unwrap();
    plan(&net, &server).unwrap();
    goes_on(&peer, &server);
});

kernel_test!(a_connection_accepted_before_its_handshake_is_done, || {
    let net = Net::new();
    // Without a cookie, at both ends.
    for host in [&net.a, &net.peer] {
        host.set("net/ipv4/tcp_fastopen", "519").unwrap();
    }
    let listener = net.a.run(|| TcpListener::bind("198.18.0.80:0")).unwrap();
    let listener = listener.unwrap();
    let at = listener.local_addr().unwrap();
    let waiting = 5_i32.to_ne_bytes();
    set_option(listener.as_fd(), IPPROTO_TCP, TCP_FASTOPEN, &waiting).unwrap();
    net.peer.cut(&["prerouting"]);
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let sent = socket.send_to_with_flags(b"early", &at.into(), MSG_FASTOPEN);
        assert_eq!(sent.unwrap(), 5);
        socket.set_nonblocking(false).unwrap();
        TcpStream::from(socket)
    };
    let peer = net.peer.run(connect).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    assert_eq!(tcp_info(server.as_fd()).unwrap().state, State::SynReceived);
    refuses(&net, &server, NotMigratable::FastOpen);
    net.peer.mend();
    let mut got = [0; 5];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
    until("the handshake is done", || {
        tcp_info(server.as_fd()).unwrap().state == State::Established
    });
    plan(&net, &server).unwrap();
    goes_on(&peer, &server);
});
