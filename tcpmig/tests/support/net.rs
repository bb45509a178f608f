//! What these tests ask of a peer and two hosts on a switch.

use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};
use tcpmig_format::FourTuple;
use tcpmig_sys::lab::Host;

pub(crate) use tcpmig_sys::lab::{Family, World as Net};

/// Where the hosts take connections from each other.
pub(crate) const A: &str = "198.18.0.1:7077";
pub(crate) const B: &str = "198.18.0.2:7077";

/// A socket of the service on host A that is connecting to an address of the peer, which does not answer.
pub(crate) fn open_from_a(net: &Net, to: SocketAddr) -> Socket {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let from: SocketAddr = "198.18.0.80:0".parse().unwrap();
        socket.bind(&from.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&to.into()).unwrap_err();
        socket
    };
    net.a.run(connect).unwrap()
}

/// Bytes of the fixed header that says that the other end is gone.
pub(crate) const END: &str = "tcp flags & (fin | rst) != 0";

/// Like [`END`], of this connection only.
pub(crate) fn end_of(flow: FourTuple) -> String {
    format!("tcp sport {} {END}", flow.local().port())
}

/// The flow as the server's host sees it.
pub(crate) fn flow(server: &TcpStream) -> FourTuple {
    FourTuple::new(server.local_addr().unwrap(), server.peer_addr().unwrap()).unwrap()
}

/// A counter of `TcpExt` (`/proc/net/netstat`) on a host.
pub(crate) fn tcp_counter(host: &Host, counter: &str) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let text = host.run(read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.find(|(name, _)| *name == counter).unwrap();
    value.parse().unwrap()
}
