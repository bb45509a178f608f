//! Packets made by hand.

use std::net::{IpAddr, SocketAddr};

pub(crate) mod inject;

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
    pub(crate) fn of_peer(seq: u32, ack: u32, timestamps: bool) -> Self {
        Self {
            seq,
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
                packet.extend_from_slice(&bytes(address));
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
    let (source, destination) = (bytes(from.ip()), bytes(to.ip()));
    // The fields of the pseudo-header of IPv4 are shorter, which the sum does not show.
    let sum = checksum(&[&source, &destination, &length, &protocol, tcp]);
    tcp[16..18].copy_from_slice(&sum);
}

fn bytes(address: IpAddr) -> Vec<u8> {
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
}
