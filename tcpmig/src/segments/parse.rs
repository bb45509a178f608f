//! From the bytes of a packet to a segment.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tcpmig_format::{FourTuple, Seq};

/// IP protocol numbers and IPv6 extension headers.
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// TCP options.
const END_OF_LIST: u8 = 0;
const NO_OPERATION: u8 = 1;
const TIMESTAMPS: u8 = 8;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;

/// Why a packet is not a segment of the flow. It counts as lost on the way: the peer sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The packet ends before what its headers announce. So do copies of the largest packets, of which the kernel
    /// copies 65 531 bytes.
    #[error("the packet ends inside its {0}")]
    Truncated(&'static str),
    /// A length in a header contradicts the others.
    #[error("the length of the {0} cannot be")]
    Length(&'static str),
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0}")]
    Version(u8),
    /// Part of a packet.
    #[error("a fragment")]
    Fragment,
    /// Not TCP, or behind an extension header that is not looked into.
    #[error("protocol {0}, not TCP")]
    Protocol(u8),
    /// It is on its way to another host (IPv6 routing header).
    #[error("it has {0} hops to go")]
    Routed(u8),
    /// Of another connection, or sent by this end.
    #[error("it is from {source_} to {destination}", source_ = .0.remote(), destination = .0.local())]
    OtherFlow(FourTuple),
    /// From or to an address that no connection has.
    #[error("it is from or to an address that no connection has")]
    NoFlow,
    /// The checksum is filled in and wrong.
    #[error("the checksum is wrong")]
    Checksum,
}

/// Control bits of a segment, by their names in RFC 9293, section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// No more data from the sender.
    pub fin: bool,
    /// Synchronize sequence numbers.
    pub syn: bool,
    /// Reset the connection.
    pub rst: bool,
    /// The acknowledgement number counts.
    pub ack: bool,
    /// The urgent pointer counts.
    pub urg: bool,
}

/// The timestamps option of a segment (RFC 7323), in ticks of clocks that only their owners know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerTimestamps {
    /// `TSval`: the sender's clock.
    pub value: u32,
    /// `TSecr`: what the sender last saw of the receiver's clock.
    pub echo: u32,
}

/// A segment that the peer sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The number of its first byte, or of the SYN.
    pub seq: Seq,
    /// The next byte that the peer expects. Counts if `flags.ack` is set.
    pub ack: Seq,
    /// The control bits.
    pub flags: Flags,
    /// The window as it is in the header, unscaled.
    pub window: u16,
    /// The timestamps option, if there is one.
    pub timestamps: Option<PeerTimestamps>,
    /// The data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// The segment in a packet that arrived for `flow`, as the host sees the flow. `bytes` begin with the IP header;
    /// what follows the packet's announced end is ignored.
    ///
    /// The TCP checksum must be right, or one of the values that it has as long as a device is still to fill it in:
    /// the sum of the pseudo-header alone, or 0. That of an IPv4 header is not looked at: a kernel that let the packet
    /// in has.
    ///
    /// # Errors
    ///
    /// [`SegmentError`].
    pub fn parse(bytes: &'a [u8], flow: &FourTuple) -> Result<Self, SegmentError> {
        let (source, destination, tcp) = network(bytes)?;
        let header = Header::read(tcp)?;
        let found = FourTuple::new(
            (destination, header.destination).into(),
            (source, header.source).into(),
        )
        .map_err(|_| SegmentError::NoFlow)?;
        if found != *flow {
            return Err(SegmentError::OtherFlow(found));
        }
        let pseudo = pseudo_header(source, destination, tcp.len());
        let stored = header.checksum;
        // A right checksum makes the sum of everything, itself included, all ones.
        if fold(pseudo + sum(tcp)) != u16::MAX && stored != fold(pseudo) && stored != 0 {
            return Err(SegmentError::Checksum);
        }
        let (options, payload) = tcp
            .split_at_checked(header.length)
            .and_then(|(header, payload)| Some((header.get(TCP_HEADER..)?, payload)))
            .ok_or(SegmentError::Length("TCP header"))?;
        Ok(Self {
            seq: header.seq,
            ack: header.ack,
            flags: header.flags,
            window: header.window,
            timestamps: timestamps(options)?,
            payload,
        })
    }
}

/// The whole segment, header and data, of a packet that [`Segment::parse`] takes, and the packet's time to live or hop
/// limit.
#[cfg(any(feature = "arbitrary", feature = "connection"))]
pub(crate) fn whole<'a>(bytes: &'a [u8], flow: &FourTuple) -> Result<(&'a [u8], u8), SegmentError> {
    Segment::parse(bytes, flow)?;
    let (source, _, tcp) = network(bytes)?;
    let at = if source.is_ipv4() { 8 } else { 7 };
    Ok((tcp, bytes.get(at).copied().unwrap_or(u8::MAX)))
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("seq", &self.seq)
            .field("ack", &self.ack)
            .field("flags", &self.flags)
            .field("window", &self.window)
            .field("timestamps", &self.timestamps)
            .field("payload", &self.payload.len())
            .finish()
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Source, destination and what IP carries.
fn network(bytes: &[u8]) -> Result<(IpAddr, IpAddr, &[u8]), SegmentError> {
    match bytes.first().map_or(0, |first| first >> 4) {
        4 => ipv4(bytes),
        6 => ipv6(bytes),
        version => Err(SegmentError::Version(version)),
    }
}

fn ipv4(bytes: &[u8]) -> Result<(IpAddr, IpAddr, &[u8]), SegmentError> {
    let header: [u8; IPV4_HEADER] = take(bytes, 0).ok_or(SegmentError::Truncated("IPv4 header"))?;
    let [
        first,
        _,
        total_high,
        total_low,
        _,
        _,
        fragment_high,
        fragment_low,
        _,
        protocol,
        ..,
    ] = header;
    let header_length = usize::from(first & 15) * 4;
    let total = usize::from(u16::from_be_bytes([total_high, total_low]));
    if header_length < IPV4_HEADER || total < header_length {
        return Err(SegmentError::Length("IPv4 packet"));
    }
    // The three upper bits are flags, of which "do not fragment" may be set.
    if u16::from_be_bytes([fragment_high, fragment_low]) & 0x3fff != 0 {
        return Err(SegmentError::Fragment);
    }
    if protocol != TCP {
        return Err(SegmentError::Protocol(protocol));
    }
    let carried = bytes
        .get(header_length..total)
        .ok_or(SegmentError::Truncated("IPv4 packet"))?;
    let address = |at| take::<4>(&header, at).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from);
    Ok((address(12).into(), address(16).into(), carried))
}

fn ipv6(bytes: &[u8]) -> Result<(IpAddr, IpAddr, &[u8]), SegmentError> {
    let header: [u8; IPV6_HEADER] = take(bytes, 0).ok_or(SegmentError::Truncated("IPv6 header"))?;
    let [_, _, _, _, length_high, length_low, mut next, ..] = header;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let mut rest = bytes
        .get(IPV6_HEADER..IPV6_HEADER + length)
        .ok_or(SegmentError::Truncated("IPv6 packet"))?;
    while next != TCP {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {}
            FRAGMENT => return Err(SegmentError::Fragment),
            protocol => return Err(SegmentError::Protocol(protocol)),
        }
        let [after, units, _, hops] =
            take(rest, 0).ok_or(SegmentError::Length("extension header"))?;
        if next == ROUTING && hops != 0 {
            return Err(SegmentError::Routed(hops));
        }
        rest = rest
            .get((usize::from(units) + 1) * 8..)
            .ok_or(SegmentError::Length("extension header"))?;
        next = after;
    }
    let address = |at| take::<16>(&header, at).map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from);
    Ok((address(8).into(), address(24).into(), rest))
}

/// The fixed part of a TCP header.
struct Header {
    source: u16,
    destination: u16,
    seq: Seq,
    ack: Seq,
    /// Of the whole header, in bytes.
    length: usize,
    flags: Flags,
    window: u16,
    checksum: u16,
}

impl Header {
    fn read(tcp: &[u8]) -> Result<Self, SegmentError> {
        let header: [u8; TCP_HEADER] = take(tcp, 0).ok_or(SegmentError::Length("TCP header"))?;
        let [
            s0,
            s1,
            d0,
            d1,
            q0,
            q1,
            q2,
            q3,
            a0,
            a1,
            a2,
            a3,
            offset,
            bits,
            w0,
            w1,
            c0,
            c1,
            _,
            _,
        ] = header;
        let bit = |number: u8| bits & (1 << number) != 0;
        Ok(Self {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
            seq: Seq::new(u32::from_be_bytes([q0, q1, q2, q3])),
            ack: Seq::new(u32::from_be_bytes([a0, a1, a2, a3])),
            length: usize::from(offset >> 4) * 4,
            flags: Flags {
                fin: bit(0),
                syn: bit(1),
                rst: bit(2),
                ack: bit(4),
                urg: bit(5),
            },
            window: u16::from_be_bytes([w0, w1]),
            checksum: u16::from_be_bytes([c0, c1]),
        })
    }
}

fn timestamps(mut options: &[u8]) -> Result<Option<PeerTimestamps>, SegmentError> {
    const BROKEN: SegmentError = SegmentError::Length("TCP option");
    loop {
        match *options {
            [] | [END_OF_LIST, ..] => return Ok(None),
            [NO_OPERATION, ref rest @ ..] => options = rest,
            [kind, length, ..] => {
                let option = options.get(..usize::from(length)).ok_or(BROKEN)?;
                match (kind, option) {
                    (TIMESTAMPS, &[_, _, v0, v1, v2, v3, e0, e1, e2, e3]) => {
                        return Ok(Some(PeerTimestamps {
                            value: u32::from_be_bytes([v0, v1, v2, v3]),
                            echo: u32::from_be_bytes([e0, e1, e2, e3]),
                        }));
                    }
                    (TIMESTAMPS, _) | (_, [] | [_]) => return Err(BROKEN),
                    _ => {}
                }
                options = options.get(usize::from(length)..).unwrap_or_default();
            }
            [_] => return Err(BROKEN),
        }
    }
}

/// The sum of 16-bit words that a checksum is made of, not yet folded.
fn sum(bytes: &[u8]) -> u64 {
    // Words of 32 bits give the same sum once it is folded, because 2^16 is 1 in it.
    let words = bytes.chunks_exact(4);
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(words.remainder()) {
        *to = *from;
    }
    let word = |word: &[u8]| u64::from(u32::from_be_bytes(take(word, 0).unwrap_or_default()));
    words.map(word).sum::<u64>() + word(&last)
}

fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum >> 16) + (sum & u64::from(u16::MAX));
    }
    sum as u16
}

fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u64 {
    let address = |address| match address {
        IpAddr::V4(address) => sum(&Ipv4Addr::octets(&address)),
        IpAddr::V6(address) => sum(&Ipv6Addr::octets(&address)),
    };
    address(source) + address(destination) + u64::from(TCP) + length as u64
}
