//! Segments made by hand: what the peer once sent, injected into a connection that is rebuilt here.
//!
//! Needs `CAP_NET_RAW`. A segment to this host goes out through `OUTPUT` and comes in through
//! `PREROUTING` and `INPUT` on the loopback device with the peer's address as its source. Its route is the
//! one it left by, so reverse-path filters do not look at it; packet filters do.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::error::{Error, Result};
use crate::frozen::Marks;
use crate::{frozen, sockopt};

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What varies of a segment: ACK, and FIN or RST if asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    /// As in the header: scaled.
    pub(crate) window: u16,
    /// `TSval` and `TSecr`, where the option is in use.
    pub(crate) timestamp: Option<(u32, u32)>,
    pub(crate) ip: Ip,
}

/// What varies of an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip {
    /// Time to live or hop limit.
    pub(crate) hops: u8,
    /// Type of service or traffic class.
    pub(crate) class: u8,
}

impl Ip {
    /// Of a segment that came in from the peer.
    pub(crate) fn of_peer(hops: u8) -> Self {
        Self { hops, class: 0 }
    }
}

impl Segment {
    /// A segment of the peer, next in order.
    pub(crate) fn of_peer(marks: &Marks, ack: u32, timestamps: bool) -> Self {
        Self {
            seq: marks.rcv_nxt,
            ack,
            fin: false,
            rst: false,
            // Nothing may be sent in answer.
            window: 0,
            // Zero passes a rebuilt socket, which remembers no timestamp yet, and leaves it so: any other value
            // could be ahead of the peer's clock, whose segments would then be dropped as old (RFC 7323 section 5).
            timestamp: timestamps.then_some((0, 0)),
            ip: Ip::of_peer(255),
        }
    }
}

/// A raw socket that speaks for both ends of one connection.
#[derive(Debug)]
pub(crate) struct Injector {
    raw: Socket,
    local: SocketAddr,
    remote: SocketAddr,
    device: Option<String>,
    /// The firewall mark that `raw` has.
    mark: AtomicU32,
}

impl Injector {
    /// For the connection of this socket, in the network namespace of the calling thread.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> Result<Self> {
        let (local, remote) = frozen::addresses(fd)?;
        let (local, remote) = (unmapped(local), unmapped(remote));
        let raw = Socket::new(
            Domain::for_address(local),
            Type::RAW.nonblocking(),
            // Sends headers as they are given, and receives nothing.
            Some(Protocol::from(libc::IPPROTO_RAW)),
        )
        .map_err(|source| privileged("socket(SOCK_RAW) (needs CAP_NET_RAW)", source))?;
        let device = sockopt::bound_device(fd)?;
        if let Some(device) = &device {
            sockopt::set_bound_device(raw.as_fd(), device)?;
        }
        Ok(Self {
            raw,
            local,
            remote,
            device,
            mark: AtomicU32::new(0),
        })
    }

    /// Whether the packets of the connection are of IPv4.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.remote.is_ipv4()
    }

    /// Sends a segment from the peer to this host, with a firewall mark that lets it pass a lock.
    ///
    /// That it was sent does not mean that it arrives.
    pub(crate) fn inject(&self, segment: &Segment, payload: &[u8], mark: u32) -> Result<()> {
        let tcp = tcp(self.remote, self.local, segment, payload);
        self.deliver(&tcp, segment.ip, mark)
    }

    /// As [`Injector::inject`], with a segment that exists; its checksum is filled in anew.
    pub(crate) fn forward(&self, tcp: &[u8], hops: u8, mark: u32) -> Result<()> {
        let mut tcp = tcp.to_vec();
        if tcp.len() < 20 {
            return Err(Error::Length {
                call: "TCP header",
                got: tcp.len(),
                expected: 20,
            });
        }
        fill_checksum(self.remote, self.local, &mut tcp);
        self.deliver(&tcp, Ip::of_peer(hops), mark)
    }

    fn deliver(&self, tcp: &[u8], ip: Ip, mark: u32) -> Result<()> {
        // Else it would leave for the host that has the address.
        self.check_local(mark)?;
        match self.transmit(self.remote, self.local, tcp, ip, mark) {
            // What a packet filter drops on its way out.
            Err(error) if error.errno() == Some(libc::EPERM) => Ok(()),
            other => other,
        }
    }

    /// Whether a segment with this firewall mark could be injected.
    ///
    /// [`Error::NotLocal`] if not.
    pub(crate) fn check_local(&self, mark: u32) -> Result<()> {
        if self.local_is_here(mark)? {
            return Ok(());
        }
        Err(Error::NotLocal {
            address: self.local.ip(),
        })
    }

    /// Sends a segment from this host to the peer, with the connection's own mark.
    pub(crate) fn send(&self, segment: &Segment, payload: &[u8], mark: u32) -> Result<()> {
        let tcp = tcp(self.local, self.remote, segment, payload);
        self.transmit(self.local, self.remote, &tcp, segment.ip, mark)
    }

    fn transmit(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        tcp: &[u8],
        ip: Ip,
        mark: u32,
    ) -> Result<()> {
        if self.mark.load(Ordering::Relaxed) != mark {
            sockopt::set_mark(self.raw.as_fd(), mark)?;
            self.mark.store(mark, Ordering::Relaxed);
        }
        let packet = packet(from, to, tcp, ip);
        let mut to = to;
        // In a raw socket's address the port is the protocol.
        to.set_port(0);
        self.raw
            .send_to(&packet, &SockAddr::from(to))
            .map_err(|source| privileged("sendto(SOCK_RAW)", source))?;
        Ok(())
    }

    /// Whether packets to the local address are delivered on this host.
    ///
    /// Then routing chooses the address itself as the source on the way to it, unless it is a secondary one (the
    /// kernel's `fib_add_ifaddr`). That can be bound, as can any address where `ip_nonlocal_bind` is set.
    fn local_is_here(&self, mark: u32) -> Result<bool> {
        let socket = Socket::new(
            Domain::for_address(self.local),
            Type::DGRAM,
            Some(Protocol::UDP),
        )
        .map_err(|e| Error::new("socket(SOCK_DGRAM)", e))?;
        sockopt::set_mark(socket.as_fd(), mark)?;
        if let Some(device) = &self.device {
            sockopt::set_bound_device(socket.as_fd(), device)?;
        }
        if socket.connect(&SockAddr::from(self.local)).is_err() {
            return Ok(false);
        }
        let source = socket
            .local_addr()
            .map_err(|e| Error::new("getsockname", e))?;
        if source
            .as_socket()
            .is_some_and(|source| source.ip() == self.local.ip())
        {
            return Ok(true);
        }
        let version = if self.local.is_ipv4() { "ipv4" } else { "ipv6" };
        let any = fs::read_to_string(format!("/proc/sys/net/{version}/ip_nonlocal_bind"));
        let only_local = any.is_ok_and(|value| value.trim() == "0");
        Ok(only_local && UdpSocket::bind((self.local.ip(), 0)).is_ok())
    }
}

/// A missing capability, which is not the one that [`Error::new`] names.
fn privileged(call: &'static str, source: io::Error) -> Error {
    Error::Call { call, source }
}

/// The address as it is on the wire.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
        v4 => v4,
    }
}

/// The whole packet, IP header first.
fn packet(from: SocketAddr, to: SocketAddr, tcp: &[u8], ip: Ip) -> Vec<u8> {
    // What does not fit is refused by the kernel, as a packet that is longer than it says.
    let length = tcp.len() as u16;
    let mut packet = Vec::with_capacity(40 + tcp.len());
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend_from_slice(&[0x45, ip.class]);
            packet.extend_from_slice(&length.wrapping_add(20).to_be_bytes());
            // The kernel sets the identification; no fragments.
            packet.extend_from_slice(&[0, 0, 0x40, 0]);
            packet.extend_from_slice(&[ip.hops, libc::IPPROTO_TCP as u8, 0, 0]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum);
        }
        (from, to) => {
            packet.extend_from_slice(&[0x60 | ip.class >> 4, ip.class << 4, 0, 0]);
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&[libc::IPPROTO_TCP as u8, ip.hops]);
            for address in [from, to] {
                packet.extend_from_slice(&octets(address));
            }
        }
    }
    packet.extend_from_slice(tcp);
    packet
}

/// The TCP header (RFC 9293 section 3.1) and the data.
fn tcp(from: SocketAddr, to: SocketAddr, segment: &Segment, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(32 + payload.len());
    header.extend_from_slice(&from.port().to_be_bytes());
    header.extend_from_slice(&to.port().to_be_bytes());
    header.extend_from_slice(&segment.seq.to_be_bytes());
    header.extend_from_slice(&segment.ack.to_be_bytes());
    let words = if segment.timestamp.is_some() { 8 } else { 5 };
    let fin = if segment.fin { FIN } else { 0 };
    let rst = if segment.rst { RST } else { 0 };
    let flags = ACK | fin | rst;
    header.extend_from_slice(&[words << 4, flags]);
    header.extend_from_slice(&segment.window.to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    if let Some((value, echo)) = segment.timestamp {
        // Two no-operations to align it, kind 8, length 10 (RFC 7323 section 3.2).
        header.extend_from_slice(&[1, 1, 8, 10]);
        header.extend_from_slice(&value.to_be_bytes());
        header.extend_from_slice(&echo.to_be_bytes());
    }
    header.extend_from_slice(payload);
    fill_checksum(from, to, &mut header);
    header
}

/// Of a segment with a whole header.
fn fill_checksum(from: SocketAddr, to: SocketAddr, tcp: &mut [u8]) {
    tcp[16..18].fill(0);
    let length = (tcp.len() as u32).to_be_bytes();
    let protocol = [0, 0, 0, libc::IPPROTO_TCP as u8];
    let (source, destination) = (octets(from.ip()), octets(to.ip()));
    // The fields of the pseudo-header of IPv4 are shorter, which the sum does not show.
    let sum = checksum(&[&source, &destination, &length, &protocol, tcp]);
    tcp[16..18].copy_from_slice(&sum);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of parts of even length; the last may be odd.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum: u32 = parts
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Segment = Segment {
        seq: 0x0102_0304,
        ack: 0xfffe_fdfc,
        fin: true,
        rst: false,
        window: 0x1234,
        timestamp: Some((7, 9)),
        ip: Ip {
            hops: 64,
            class: 0xb8,
        },
    };

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // The example of its section 3.
        let sum = checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]);
        assert_eq!(sum, (!0xddf2_u16).to_be_bytes());
    }

    #[test]
    fn headers_sum_up_to_nothing() {
        for (from, to) in [
            ("10.0.0.1:1024", "192.0.2.255:65535"),
            ("[2001:db8::1]:1", "[fe80::ffff]:443"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for (timestamp, payload) in [(None, &b""[..]), (SEGMENT.timestamp, b"odd")] {
                let segment = Segment {
                    timestamp,
                    ..SEGMENT
                };
                let segment = tcp(from, to, &segment, payload);
                let packet = packet(from, to, &segment, SEGMENT.ip);
                let (ip, tcp) = packet.split_at(if from.is_ipv4() { 20 } else { 40 });
                let class =
                    u16::from_be_bytes([ip[0], ip[1]]) >> if from.is_ipv4() { 0 } else { 4 };
                assert_eq!(class & 0xff, 0xb8);
                if from.is_ipv4() {
                    assert_eq!(checksum(&[ip]), [0, 0]);
                    assert_eq!(ip[2..4], (packet.len() as u16).to_be_bytes());
                } else {
                    assert_eq!(ip[4..6], (tcp.len() as u16).to_be_bytes());
                }
                assert_eq!(usize::from(tcp[12] >> 4) * 4 + payload.len(), tcp.len());
                let addresses = &ip[ip.len() - if from.is_ipv4() { 8 } else { 32 }..];
                let length = (tcp.len() as u16).to_be_bytes();
                assert_eq!(checksum(&[addresses, &length, &[0, 6], tcp]), [0, 0]);
            }
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4_on_the_wire() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(unmapped(mapped), "192.0.2.1:80".parse().unwrap());
    }
}
