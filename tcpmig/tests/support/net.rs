//! A peer and two hosts on a switch.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig_format::FourTuple;
use tcpmig_sys::lab::path::{Cable, Path};
use tcpmig_sys::lab::{Host, Lab};

use super::PATIENCE;

/// What the server's socket and its packets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    /// IPv4 packets on a socket of IPv6.
    Mapped,
}

/// Host A holds the service's addresses, host B holds them silently.
pub(crate) struct Net {
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) peer: Host,
    _lab: Lab,
}

const SERVICE: [&str; 2] = ["198.18.0.80", "2001:2::80"];

/// Where the hosts take connections from each other.
pub(crate) const A: &str = "198.18.0.1:7077";
pub(crate) const B: &str = "198.18.0.2:7077";

impl Net {
    pub(crate) fn new() -> Self {
        let net = Self::without_service_on_b();
        net.hold_service_on_b();
        net
    }

    pub(crate) fn without_service_on_b() -> Self {
        Self::plugged(|lab, addresses| lab.host("peer", addresses).unwrap())
    }

    /// As [`Net::new`], with a peer at the other end of such a path.
    pub(crate) fn with_far_peer(path: &Path) -> (Self, Cable) {
        let mut cable = None;
        let net = Self::plugged(|lab, addresses| {
            let (peer, made) = lab.far_host("peer", addresses, path).unwrap();
            cable = Some(made);
            peer
        });
        net.hold_service_on_b();
        (net, cable.expect("the peer was plugged in"))
    }

    fn hold_service_on_b(&self) {
        self.b
            .hold_silently(&["198.18.0.80/32", "2001:2::80/128"])
            .unwrap();
    }

    fn plugged(plug_peer: impl FnOnce(&mut Lab, &[&str]) -> Host) -> Self {
        let mut lab = Lab::new().expect("a network of namespaces can be made");
        let host = |lab: &mut Lab, name: &str, last: &[&str]| {
            let addresses: Vec<String> = last
                .iter()
                .flat_map(|last| [format!("198.18.0.{last}/24"), format!("2001:2::{last}/64")])
                .collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            lab.host(name, &addresses).unwrap()
        };
        Self {
            peer: plug_peer(&mut lab, &["198.18.0.9/24", "2001:2::9/64"]),
            a: host(&mut lab, "a", &["1", "80"]),
            b: host(&mut lab, "b", &["2"]),
            _lab: lab,
        }
    }

    /// A connection from the peer to the service on host A: the peer's end and the server's.
    pub(crate) fn connect(&self, family: Family) -> (TcpStream, TcpStream) {
        self.connect_from(family, None)
    }

    /// As [`Net::connect`], from this address of the peer.
    pub(crate) fn connect_from(
        &self,
        family: Family,
        from: Option<IpAddr>,
    ) -> (TcpStream, TcpStream) {
        let (v4, v6) = (SERVICE[0].parse().unwrap(), SERVICE[1].parse().unwrap());
        let (listen, to): (IpAddr, IpAddr) = match family {
            Family::V4 => (v4, v4),
            Family::V6 => (v6, v6),
            Family::Mapped => ("::".parse().unwrap(), v4),
        };
        let listener = self.a.run(|| listen_on(listen)).unwrap();
        let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
        let connect = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
            let socket = socket.unwrap();
            if let Some(from) = from {
                socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            }
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            TcpStream::from(socket)
        };
        let peer = self.peer.run(connect).unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&peer, &server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        (peer, server)
    }

    /// A socket of the service that is connecting to an address of the peer, which does not answer.
    pub(crate) fn open_from_a(&self, to: SocketAddr) -> Socket {
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let from: SocketAddr = "198.18.0.80:0".parse().unwrap();
            socket.bind(&from.into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&to.into()).unwrap_err();
            socket
        };
        self.a.run(connect).unwrap()
    }

    /// Makes the peer send what it sends to the service to host B.
    pub(crate) fn point_peer_at_b(&self) {
        let mut command = self.b.command("ip").unwrap();
        let output = command.args(["-o", "link", "show", "eth0"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let mac = text
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .expect("eth0 has a hardware address");
        for address in SERVICE {
            let line = format!("neigh replace {address} lladdr {mac} dev eth0");
            self.peer.ip(&line).unwrap();
        }
    }

    /// Counts what the peer gets from now on and matches (an expression of nftables).
    pub(crate) fn count_at_peer(&self, matching: &str) -> Counter<'_> {
        nft(
            &self.peer,
            &format!(
                "table inet count {{ }}; delete table inet count; table inet count {{ counter n {{ }}; chain i {{ type filter hook prerouting \
                 priority raw; {matching} counter name n; }}; }}"
            ),
        );
        Counter(&self.peer)
    }
}

/// Octets of the fixed header that says that the other end is gone.
pub(crate) const END: &str = "tcp flags & (fin | rst) != 0";

fn listen_on(address: IpAddr) -> TcpListener {
    let address = SocketAddr::new(address, 0);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .unwrap();
    socket.set_reuse_address(true).unwrap();
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.listen(1).unwrap();
    socket.into()
}

/// As [`END`], of this connection only.
pub(crate) fn end_of(flow: FourTuple) -> String {
    format!("tcp sport {} {END}", flow.local().port())
}

/// The flow as the server's host sees it.
pub(crate) fn flow(server: &TcpStream) -> FourTuple {
    FourTuple::new(server.local_addr().unwrap(), server.peer_addr().unwrap()).unwrap()
}

/// Packets that a host got.
pub(crate) struct Counter<'a>(&'a Host);

impl Counter<'_> {
    pub(crate) fn packets(&self) -> u64 {
        let output = self
            .0
            .command("nft")
            .unwrap()
            .args(["list", "counter", "inet", "count", "n"])
            .output()
            .expect("nft is installed");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.split_whitespace();
        let count = words
            .by_ref()
            .skip_while(|word| *word != "packets")
            .nth(1)
            .unwrap_or_else(|| panic!("no counter in {text:?}"));
        count.parse().unwrap()
    }
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

/// Runs nft on a host.
pub(crate) fn nft(host: &Host, rules: &str) {
    let mut child = host
        .command("nft")
        .unwrap()
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(rules.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "nft refused {rules}");
}
