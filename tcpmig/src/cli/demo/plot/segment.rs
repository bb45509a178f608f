//! TCP segments, and where they are in the stream of the server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// The number of TCP among the protocols of IP.
const TCP: u8 = 6;

/// What is needed of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// The hardware address that sent it.
    pub(super) source: [u8; 6],
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    /// Bytes of data.
    length: u32,
}

impl Segment {
    /// Reads an Ethernet frame, of which only the headers need to be there.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let source = *frame.get(6..)?.first_chunk()?;
        let packet = frame.get(14..)?;
        let u16_at =
            |bytes: &[u8], at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let (from, to, header, total): (IpAddr, IpAddr, usize, u32) = match packet.first()? >> 4 {
            4 if *packet.get(9)? == TCP => {
                let address =
                    |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
                let header = usize::from(packet[0] & 15) * 4;
                let total = u16_at(packet, 2)?.into();
                (address(12)?.into(), address(16)?.into(), header, total)
            }
            6 if *packet.get(6)? == TCP => {
                let address =
                    |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
                let total = 40 + u32::from(u16_at(packet, 4)?);
                (address(8)?.into(), address(24)?.into(), 40, total)
            }
            _ => return None,
        };
        let tcp = packet.get(header..)?;
        let u32_at = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let headers = header as u32 + u32::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            source,
            from: (from, u16_at(tcp, 0)?).into(),
            to: (to, u16_at(tcp, 2)?).into(),
            sequence: u32_at(4)?,
            acknowledged: u32_at(8)?,
            flags: *tcp.get(13)?,
            length: total.checked_sub(headers)?,
        })
    }
}

/// Counts the bytes of the server's stream, whose sequence numbers begin anywhere and wrap.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The last place, and the sequence number there.
    last: Option<(u64, u32)>,
}

impl Order {
    /// From which byte to which a segment of the server goes, or up to which one the peer has acknowledged; none for a segment
    /// of something else.
    pub(super) fn place(&mut self, segment: &Segment, service: SocketAddr) -> Option<[u64; 2]> {
        if segment.flags & RST != 0 {
            return None;
        }
        if segment.from == service {
            if segment.flags & SYN != 0 {
                // The first byte has the number after that of the SYN.
                self.last = Some((0, segment.sequence.wrapping_add(1)));
                return Some([0, 0]);
            }
            let from = self.count(segment.sequence)?;
            return (segment.length > 0).then(|| [from, from + u64::from(segment.length)]);
        }
        if segment.to != service || segment.flags & ACK == 0 {
            return None;
        }
        let acknowledged = self.count(segment.acknowledged)?;
        // A FIN counts as one byte, which is none of the stream.
        let at = acknowledged.saturating_sub(u64::from(segment.flags & FIN));
        Some([at, at])
    }

    fn count(&mut self, number: u32) -> Option<u64> {
        let (place, last) = self.last?;
        // Forward or back by less than half of the numbers.
        let moved = number.wrapping_sub(last) as i32;
        let place = place.saturating_add_signed(moved.into());
        self.last = Some((place, number));
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of the server (or, with `back`, of the peer) with these numbers.
    fn frame(back: bool, flags: u8, sequence: u32, acknowledged: u32, length: u16) -> Vec<u8> {
        let mut frame = vec![0; 14 + 40];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        let ip = &mut frame[14..34];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(40 + length).to_be_bytes());
        ip[9] = TCP;
        let (at, other) = if back { (16, 12) } else { (12, 16) };
        ip[at..at + 4].copy_from_slice(&[10, 0, 0, 1]);
        ip[other..other + 4].copy_from_slice(&[10, 0, 0, 9]);
        let tcp = &mut frame[34..];
        let (at, other) = if back { (2, 0) } else { (0, 2) };
        tcp[at..at + 2].copy_from_slice(&80_u16.to_be_bytes());
        tcp[other..other + 2].copy_from_slice(&999_u16.to_be_bytes());
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        (tcp[12], tcp[13]) = (0x50, flags);
        frame
    }

    #[test]
    fn bytes_are_counted_over_the_end_of_the_numbers() {
        let service: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let mut order = Order::default();
        let first = u32::MAX - 1000;
        let mut place = |frame: Vec<u8>| {
            let segment = Segment::read(&frame).unwrap();
            assert_eq!(segment.source, [2, 0, 0, 0, 0, 7]);
            order.place(&segment, service)
        };
        assert_eq!(place(frame(false, ACK, first + 1, 0, 10)), None);
        assert_eq!(place(frame(false, SYN | ACK, first, 0, 0)), Some([0, 0]));
        let data = frame(false, ACK, first + 1, 0, 1400);
        assert_eq!(place(data), Some([0, 1400]));
        let next = first.wrapping_add(1401);
        let data = frame(false, ACK, next, 0, 1400);
        assert_eq!(place(data), Some([1400, 2800]));
        let acknowledgement = frame(true, ACK, 5, next, 0);
        assert_eq!(place(acknowledgement), Some([1400, 1400]));
        // Nothing but an acknowledgement, of the server.
        assert_eq!(place(frame(false, ACK, next, 0, 0)), None);
        assert_eq!(place(frame(false, RST, next, 0, 0)), None);
    }

    #[test]
    fn cut_and_foreign_frames_are_left_out() {
        let whole = frame(false, ACK, 1, 1, 5);
        for length in 0..whole.len() - 6 {
            assert_eq!(Segment::read(&whole[..length]), None, "{length}");
        }
        let mut udp = whole;
        udp[14 + 9] = 17;
        assert_eq!(Segment::read(&udp), None);
    }
}
