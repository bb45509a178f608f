//! The network of most tests: a peer and two hosts that can have its connection.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::path::{Cable, Path};
use super::{Host, Lab, PATIENCE};

/// What the server's socket and its packets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4 packets on a socket of IPv6.
    Mapped,
}

/// A peer and two hosts on a switch. Host A holds the addresses of a service, host B holds them silently.
///
/// Its methods panic where a test has to fail.
#[derive(Debug)]
pub struct World {
    /// `198.18.0.1` and `2001:2::1`, and the addresses of the service.
    pub a: Host,
    /// `198.18.0.2` and `2001:2::2`.
    pub b: Host,
    /// `198.18.0.9` and `2001:2::9`.
    pub peer: Host,
    _lab: Lab,
}

/// Why a world has no errors.
const MADE: &str = "a network of namespaces can be made";

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// The addresses of the service.
    pub const SERVICE: [&str; 2] = ["198.18.0.80", "2001:2::80"];

    /// A new one.
    ///
    /// # Panics
    ///
    /// If namespaces cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let world = Self::without_service_on_b();
        world.hold_service_on_b();
        world
    }

    /// A new one in which host B does not hold the service's addresses.
    ///
    /// # Panics
    ///
    /// If namespaces cannot be made.
    #[must_use]
    pub fn without_service_on_b() -> Self {
        Self::plugged(|lab, addresses| lab.host("peer", addresses).expect(MADE))
    }

    /// A new one with the peer at the other end of such a path.
    ///
    /// # Panics
    ///
    /// If namespaces or the path cannot be made.
    #[must_use]
    pub fn with_far_peer(path: &Path) -> (Self, Cable) {
        let mut cable = None;
        let world = Self::plugged(|lab, addresses| {
            let (peer, made) = lab.far_host("peer", addresses, path).expect(MADE);
            cable = Some(made);
            peer
        });
        world.hold_service_on_b();
        (world, cable.expect("the peer was plugged in"))
    }

    fn hold_service_on_b(&self) {
        let silent = ["198.18.0.80/32", "2001:2::80/128"];
        self.b.hold_silently(&silent).expect(MADE);
    }

    fn plugged(plug_peer: impl FnOnce(&mut Lab, &[&str]) -> Host) -> Self {
        let mut lab = Lab::new().expect(MADE);
        let peer = plug_peer(&mut lab, &["198.18.0.9/24", "2001:2::9/64"]);
        let mut host = |name: &str, last: &[&str]| {
            let both = |last: &&str| [format!("198.18.0.{last}/24"), format!("2001:2::{last}/64")];
            let addresses: Vec<String> = last.iter().flat_map(both).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            lab.host(name, &addresses).expect(MADE)
        };
        Self {
            peer,
            a: host("a", &["1", "80"]),
            b: host("b", &["2"]),
            _lab: lab,
        }
    }

    /// A connection from the peer to the service on host A: the peer's end and the server's.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn connect(&self, family: Family) -> (TcpStream, TcpStream) {
        self.connect_from(family, None)
    }

    /// Like [`connect`](Self::connect), but from this address of the peer.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn connect_from(&self, family: Family, from: Option<IpAddr>) -> (TcpStream, TcpStream) {
        let [v4, v6] = Self::SERVICE.map(|address| address.parse::<IpAddr>().expect("an address"));
        let (listen, to) = match family {
            Family::V4 => (v4, v4),
            Family::V6 => (v6, v6),
            Family::Mapped => (std::net::Ipv6Addr::UNSPECIFIED.into(), v4),
        };
        let listener = self.a.run(|| listen_on(listen)).expect("enter host A");
        let listener = listener.expect("listen on host A");
        let port = listener.local_addr().expect("its address").port();
        let to = SocketAddr::new(to, port);
        let peer = self.peer.run(|| connect(from, to)).expect("enter the peer");
        let peer = peer.expect("connect to host A");
        let (server, _) = listener.accept().expect("accept on host A");
        for stream in [&peer, &server] {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        }
        (peer, server)
    }

    /// Makes the peer send what it sends to the service to this host.
    ///
    /// # Panics
    ///
    /// If the host has no `eth0`.
    pub fn point_peer_at(&self, host: &Host) {
        let shown = super::ip(host.namespace(), "link show eth0\n").expect("a host has eth0");
        let mut words = shown
            .split_whitespace()
            .skip_while(|word| *word != "link/ether");
        let mac = words.nth(1).expect("eth0 has a hardware address");
        let line = |address| format!("neigh replace {address} lladdr {mac} dev eth0\n");
        self.peer
            .ip(&Self::SERVICE.map(line).concat())
            .expect("the peer takes neighbours");
    }

    /// Makes the peer send what it sends to the service to host B.
    pub fn point_peer_at_b(&self) {
        self.point_peer_at(&self.b);
    }
}

fn listen_on(address: IpAddr) -> std::io::Result<TcpListener> {
    let domain = if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(1)?;
    Ok(socket.into())
}

fn connect(from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}
