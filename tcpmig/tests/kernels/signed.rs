//! Segments signed with keys that the kernel does not hand out.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};
use tcpmig_sys::lab::set_option;
use tcpmig_sys::{Error, NotMigratable};

use crate::support::{Net, PATIENCE};
use crate::{feature_test, keeps, not_applicable};

const IPPROTO_TCP: i32 = 6;
const TCP_AO_ADD_KEY: i32 = 38;

/// `struct tcp_ao_add` of `linux/tcp.h`: one key for segments from and to an address.
fn ao_key(with: IpAddr) -> Vec<u8> {
    const KEY: &[u8] = b"a key of both ends";
    let mut bytes = vec![0_u8; 288];
    let (family, prefix) = match with {
        IpAddr::V4(v4) => {
            bytes[4..8].copy_from_slice(&v4.octets());
            (2_u16, 32)
        }
        IpAddr::V6(v6) => {
            bytes[8..24].copy_from_slice(&v6.octets());
            (10_u16, 128)
        }
    };
    bytes[..2].copy_from_slice(&family.to_ne_bytes());
    let algorithm = b"hmac(sha1)";
    bytes[128..128 + algorithm.len()].copy_from_slice(algorithm);
    bytes[202] = prefix;
    // Identifiers of the key for sending and receiving; the length of the key.
    (bytes[203], bytes[204]) = (7, 7);
    bytes[207] = KEY.len() as u8;
    bytes[208..208 + KEY.len()].copy_from_slice(KEY);
    bytes
}

feature_test!(tcp_ao_is_refused_by_name, || {
    for [service, client] in [["198.18.0.80", "198.18.0.9"], ["2001:2::80", "2001:2::9"]] {
        let (service, client): (IpAddr, IpAddr) =
            (service.parse().unwrap(), client.parse().unwrap());
        let net = Net::new();
        let signing = |with| {
            let socket = Socket::new(Domain::for_address((service, 0).into()), Type::STREAM, None);
            let socket = socket.unwrap();
            set_option(socket.as_fd(), IPPROTO_TCP, TCP_AO_ADD_KEY, &ao_key(with)).map(|()| socket)
        };
        let listener = match net.a.run(|| signing(client)).unwrap() {
            Ok(listener) => listener,
            Err(error @ Error::Unsupported { .. }) => return not_applicable("TCP-AO", error),
            Err(error) => panic!("{error}"),
        };
        listener
            .bind(&SocketAddr::new(service, 7079).into())
            .unwrap();
        listener.listen(1).unwrap();
        let connect = || {
            let socket = signing(service).unwrap();
            let to = SocketAddr::new(service, 7079);
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            TcpStream::from(socket)
        };
        let peer = net.peer.run(connect).unwrap();
        let server = TcpStream::from(listener.accept().unwrap().0);
        keeps(&net, &peer, server, NotMigratable::Ao);
    }
});
