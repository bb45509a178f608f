//! Entries of the table of connection tracking, as netlink attributes.
//!
//! Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`, `nf_conntrack_common.h` and `nf_conntrack_tcp.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tcpmig_format::FourTuple;

use crate::netlink::wire;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
pub(super) const CTA_ID: u16 = 12;
pub(super) const CTA_ZONE: u16 = 18;
const CTA_SYNPROXY: u16 = 24;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;

/// Bits of `CTA_STATUS`.
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_CONFIRMED: u32 = 1 << 3;
pub(super) const IPS_SRC_NAT: u32 = 1 << 4;
pub(super) const IPS_DST_NAT: u32 = 1 << 5;
pub(super) const IPS_SEQ_ADJUST: u32 = 1 << 6;

/// Bits of `CTA_PROTOINFO_TCP_FLAGS_*`.
const WINDOW_SCALE: u8 = 1;
const SACK_PERMITTED: u8 = 2;
/// Sequence numbers are not held against the windows seen so far.
const BE_LIBERAL: u8 = 8;

/// A state of `enum tcp_conntrack`.
pub(super) struct State;

impl State {
    pub(super) const ESTABLISHED: u8 = 3;
}

/// The addresses and ports of packets in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// What the kernel says about one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of the packets of the end that opened the connection, as they come in.
    pub(super) original: Tuple,
    /// Of the packets that answer them, as they come in.
    pub(super) reply: Tuple,
    pub(super) status: u32,
    /// `SYNPROXY` stands between the two ends: it shifts sequence numbers and timestamps.
    pub(super) proxied: bool,
    /// As in `enum tcp_conntrack`.
    pub(super) state: Option<u8>,
    /// It takes any sequence number in both directions, as those that are made here, and none that packets make.
    pub(super) liberal: bool,
    /// Another entry of the same tuple has another one.
    pub(super) id: Option<u32>,
    /// How long it lives without a packet.
    pub(super) seconds: Option<u32>,
}

/// An entry to be made: established, with what comes in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct New {
    pub(super) original: Tuple,
    pub(super) zone: u16,
    /// The shift counts of the windows that the original direction and the other advertise.
    pub(super) scales: Option<[u8; 2]>,
    pub(super) sack: bool,
    pub(super) seconds: u32,
}

impl New {
    /// Appends its attributes.
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        self.original.put(bytes, CTA_TUPLE_ORIG);
        self.original.reversed().put(bytes, CTA_TUPLE_REPLY);
        if self.zone != 0 {
            wire::put(bytes, CTA_ZONE, &self.zone.to_be_bytes());
        }
        let status = IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED;
        wire::put(bytes, CTA_STATUS, &status.to_be_bytes());
        wire::put(bytes, CTA_TIMEOUT, &self.seconds.to_be_bytes());
        let scaled = if self.scales.is_some() {
            WINDOW_SCALE
        } else {
            0
        };
        let sack = if self.sack { SACK_PERMITTED } else { 0 };
        put_tcp(bytes, BE_LIBERAL | scaled | sack, self.scales);
    }
}

/// Appends what is particular to TCP: established, with these flags in both directions.
fn put_tcp(bytes: &mut Vec<u8>, flags: u8, scales: Option<[u8; 2]>) {
    let info = wire::open_nested(bytes, CTA_PROTOINFO);
    let tcp = wire::open_nested(bytes, CTA_PROTOINFO_TCP);
    wire::put(bytes, CTA_PROTOINFO_TCP_STATE, &[State::ESTABLISHED]);
    for direction in 0..2 {
        // The kind of the other direction follows. The mask says which flags change.
        let kind = CTA_PROTOINFO_TCP_FLAGS_ORIGINAL + direction;
        wire::put(bytes, kind, &[flags, flags]);
    }
    for (kind, scale) in (CTA_PROTOINFO_TCP_WSCALE_ORIGINAL..).zip(scales.into_iter().flatten()) {
        wire::put(bytes, kind, &[scale]);
    }
    wire::close(bytes, tcp);
    wire::close(bytes, info);
}

impl Tuple {
    /// Of what the socket with these addresses sends.
    pub(super) fn sent_by(flow: &FourTuple) -> Self {
        // The scope of a link-local address is not part of an entry.
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        Self {
            source: plain(flow.local()),
            destination: plain(flow.remote()),
        }
    }

    pub(super) fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }

    /// Appends it as the attribute of this kind.
    pub(super) fn put(&self, bytes: &mut Vec<u8>, kind: u16) {
        let tuple = wire::open_nested(bytes, kind);
        let addresses = wire::open_nested(bytes, CTA_TUPLE_IP);
        for (at, address) in [self.source.ip(), self.destination.ip()].iter().enumerate() {
            // The destination's kind follows that of the source.
            match address {
                IpAddr::V4(v4) => wire::put(bytes, CTA_IP_V4_SRC + at as u16, &v4.octets()),
                IpAddr::V6(v6) => wire::put(bytes, CTA_IP_V6_SRC + at as u16, &v6.octets()),
            }
        }
        wire::close(bytes, addresses);
        let protocol = wire::open_nested(bytes, CTA_TUPLE_PROTO);
        wire::put(bytes, CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]);
        let ports = [self.source.port(), self.destination.port()];
        for (kind, port) in [CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT]
            .into_iter()
            .zip(ports)
        {
            wire::put(bytes, kind, &port.to_be_bytes());
        }
        wire::close(bytes, protocol);
        wire::close(bytes, tuple);
    }

    /// From the content of a tuple attribute; `None` if it is not one of TCP.
    fn read(bytes: &[u8]) -> Option<Self> {
        let addresses = wire::attribute(bytes, CTA_TUPLE_IP)?;
        let protocol = wire::attribute(bytes, CTA_TUPLE_PROTO)?;
        if wire::attribute(protocol, CTA_PROTO_NUM)? != [libc::IPPROTO_TCP as u8] {
            return None;
        }
        let address = |at: u16| {
            let v4 = wire::attribute(addresses, CTA_IP_V4_SRC + at);
            let v6 = || wire::attribute(addresses, CTA_IP_V6_SRC + at);
            if let Some(v4) = v4 {
                let octets: [u8; 4] = v4.try_into().ok()?;
                return Some(IpAddr::V4(Ipv4Addr::from(octets)));
            }
            let octets: [u8; 16] = v6()?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        };
        let port = |kind| half(wire::attribute(protocol, kind)?);
        Some(Self {
            source: SocketAddr::new(address(0)?, port(CTA_PROTO_SRC_PORT)?),
            destination: SocketAddr::new(address(1)?, port(CTA_PROTO_DST_PORT)?),
        })
    }
}

impl Entry {
    /// From the attributes of a message; `None` if it is not about TCP.
    pub(super) fn read(attributes: &[u8]) -> Option<Self> {
        let original = wire::attribute(attributes, CTA_TUPLE_ORIG)?;
        let reply = wire::attribute(attributes, CTA_TUPLE_REPLY)?;
        let tcp = wire::attribute(attributes, CTA_PROTOINFO)
            .and_then(|info| wire::attribute(info, CTA_PROTOINFO_TCP));
        Some(Self {
            original: Tuple::read(original)?,
            reply: Tuple::read(reply)?,
            status: wire::attribute(attributes, CTA_STATUS)
                .and_then(word)
                .unwrap_or(0),
            // Entries made by netlink have it too, with zeros.
            proxied: wire::attribute(attributes, CTA_SYNPROXY).is_some_and(|proxy| {
                wire::attributes(proxy).any(|(_, value)| value.iter().any(|&byte| byte != 0))
            }),
            state: tcp
                .and_then(|tcp| wire::attribute(tcp, CTA_PROTOINFO_TCP_STATE))
                .and_then(|state| state.first().copied()),
            liberal: tcp.is_some_and(|tcp| {
                (0..2).all(|direction| {
                    let kind = CTA_PROTOINFO_TCP_FLAGS_ORIGINAL + direction;
                    let flags = wire::attribute(tcp, kind).and_then(<[u8]>::first);
                    flags.is_some_and(|flags| flags & BE_LIBERAL != 0)
                })
            }),
            id: wire::attribute(attributes, CTA_ID).and_then(word),
            seconds: wire::attribute(attributes, CTA_TIMEOUT).and_then(word),
        })
    }

    /// Appends what makes it take any sequence number from now on, and live for some seconds at least.
    pub(super) fn put_loosened(&self, bytes: &mut Vec<u8>, seconds: u32) {
        self.original.put(bytes, CTA_TUPLE_ORIG);
        // One that was seen in one direction only would still be new for who opened the connection.
        let status = self.status | IPS_SEEN_REPLY | IPS_ASSURED;
        wire::put(bytes, CTA_STATUS, &status.to_be_bytes());
        if self.seconds.is_some_and(|left| left < seconds) {
            wire::put(bytes, CTA_TIMEOUT, &seconds.to_be_bytes());
        }
        put_tcp(bytes, BE_LIBERAL, None);
    }

    /// Whether packets of this tuple belong to it.
    pub(super) fn has(&self, tuple: &Tuple) -> bool {
        self.original == *tuple || self.reply == *tuple
    }
}

/// The zones of the original and of the reply direction, which rules can set apart, of an entry of any protocol.
pub(super) fn zones(attributes: &[u8]) -> [u16; 2] {
    let zone = |bytes, kind| wire::attribute(bytes, kind).and_then(half);
    let whole = zone(attributes, CTA_ZONE);
    [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].map(|kind| {
        let tuple = wire::attribute(attributes, kind);
        let own = tuple.and_then(|tuple| zone(tuple, CTA_TUPLE_ZONE));
        own.or(whole).unwrap_or(0)
    })
}

fn half(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_read_as_it_was_written() {
        for (source, destination) in [("10.0.0.1:80", "10.0.0.9:5000"), ("[::1]:80", "[::2]:1")] {
            let tuple = Tuple {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
            };
            let mut bytes = Vec::new();
            tuple.put(&mut bytes, CTA_TUPLE_ORIG);
            tuple.reversed().put(&mut bytes, CTA_TUPLE_REPLY);
            wire::put(&mut bytes, CTA_STATUS, &IPS_DST_NAT.to_be_bytes());
            wire::put(&mut bytes, CTA_ZONE, &7u16.to_be_bytes());
            let entry = Entry::read(&bytes).unwrap();
            assert_eq!(entry.original, tuple);
            assert!(entry.has(&tuple.reversed()));
            assert_eq!((entry.status, zones(&bytes)), (IPS_DST_NAT, [7, 7]));
            // An answer is not trusted to be whole.
            for len in 0..bytes.len() {
                let _ = Entry::read(&bytes[..len]);
            }
        }
    }
}
