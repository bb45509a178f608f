//! What any packets do to any image.

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use tcpmig_format::{
    FourTuple, Negotiated, ReceiveSpace, SecretBytes, SendSpace, Seq, SocketOptions, TcpImage,
    TcpParts, TcpState, Timestamps, WindowScale,
};

use super::build::{Sum, packet, tcp};
use super::{Flags, Merged, PeerTimestamps, Segment, SegmentError, Taken, merge, take_in, whole};
use crate::fuzz::Peak;

/// Packets of an input; bursts end there.
const MAX_PACKETS: usize = 16 << 10;

/// An image, and packets that arrived for it.
#[derive(Arbitrary, Debug)]
pub struct Capture<'a> {
    base: Base,
    /// The bytes that the peer has to send, over and over.
    stream: [u8; 16],
    packets: Vec<Captured<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Base {
    /// An established connection, in few bytes of input.
    Plain(Plain),
    Any(FourTuple, Box<TcpImage>),
}

#[derive(Arbitrary, Debug)]
struct Plain {
    ipv4: bool,
    rcv_nxt: u32,
    snd_una: u32,
    received: u8,
    sent: u8,
    window: Window,
    scale: Option<u8>,
    stamped: bool,
}

/// The receive window.
#[derive(Arbitrary, Debug)]
enum Window {
    Open(u16),
    Large,
    /// Data has come since it was advertised, of more bytes than it has.
    Closed(u16),
}

impl Base {
    fn take(&self) -> (FourTuple, TcpParts) {
        let plain = match self {
            Self::Any(flow, image) => return (*flow, image.parts().clone()),
            Self::Plain(plain) => plain,
        };
        let flow = if plain.ipv4 {
            "198.18.0.1:80,198.18.0.9:51234"
        } else {
            "[2001:db8::1]:80,[2001:db8::9]:51234"
        };
        let rcv_nxt = Seq::new(plain.rcv_nxt);
        let (rcv_wup, rcv_wnd) = match plain.window {
            Window::Open(wnd) => (rcv_nxt, wnd.into()),
            Window::Large => (rcv_nxt, 1 << 30),
            Window::Closed(wnd) => (rcv_nxt - u32::from(wnd), u32::from(wnd / 2)),
        };
        let scale = plain.scale.map(|scale| WindowScale {
            snd: scale % 15,
            rcv: 7,
        });
        let parts = TcpParts {
            state: TcpState::Established,
            pending_error: None,
            send: SendSpace {
                snd_una: Seq::new(plain.snd_una),
                sent: vec![b's'; plain.sent.into()].into(),
                unsent: SecretBytes::from(&b"unsent"[..]),
            },
            receive: ReceiveSpace {
                rcv_nxt,
                queue: vec![b'r'; plain.received.into()].into(),
            },
            negotiated: Negotiated {
                mss_clamp: 1460,
                window_scale: scale,
                sack: true,
                timestamps: plain.stamped.then(Timestamps::default),
            },
            window: tcpmig_format::Window {
                snd_wl1: rcv_nxt,
                snd_wnd: 1000,
                max_window: 60000,
                rcv_wnd,
                rcv_wup,
            },
            socket: SocketOptions::default(),
        };
        (flow.parse().expect("two ends"), parts)
    }
}

#[derive(Arbitrary, Debug)]
enum Captured<'a> {
    SecretBytes(&'a [u8]),
    Made(Made),
    /// The same with bits of a byte changed.
    Garbled(Made, u16, u8),
    /// Many that follow each other, each so many bytes after the one before.
    Burst {
        first: Made,
        count: u8,
        step: i8,
    },
}

/// A packet of the flow.
#[derive(Arbitrary, Debug, Clone)]
struct Made {
    seq: Near,
    ack: Near,
    flags: u8,
    window: u16,
    timestamps: Option<(u32, u32)>,
    length: u16,
    /// The bytes are not those of the stream.
    lie: bool,
    sum: Checksum,
    extensions: u8,
    /// Bytes behind the end of the packet, as Ethernet pads.
    padding: u8,
}

/// A sequence number.
#[derive(Arbitrary, Debug, Clone)]
enum Near {
    At,
    Close(i8),
    Off(i16),
    Any(u32),
}

#[derive(Arbitrary, Debug, Clone)]
enum Checksum {
    Right,
    Partial,
    Zero,
}

impl Near {
    fn of(&self, seq: Seq) -> Seq {
        match *self {
            Self::At => seq,
            // Of a negative number this is the same modulo 2^32.
            Self::Close(off) => seq + i32::from(off) as u32,
            Self::Off(off) => seq + i32::from(off) as u32,
            Self::Any(seq) => Seq::new(seq),
        }
    }
}

/// Parses packets and merges them into an image. The image stays valid, queues only grow at the
/// end or shrink at the front, and only by what a packet said.
pub fn segments(capture: &Capture<'_>, peak: Peak) {
    let (flow, parts) = capture.base.take();
    let flow = &flow;
    TcpImage::new(parts.clone()).expect("a valid image");
    let mut packets = Vec::new();
    for captured in &capture.packets {
        captured.write(&parts, flow, &capture.stream, &mut packets);
    }
    let mut segments = Vec::with_capacity(packets.len());
    for packet in &packets {
        segments.extend(parse(packet, flow).ok());
    }

    let mut after = parts.clone();
    let before = bytes(&parts) + segments.iter().map(|s| s.payload.len()).sum::<usize>();
    let mut merged = Merged::default();
    let allocated = peak(&mut || merged = merge(&mut after, &segments));
    let allowed = 4 * before + 128 * segments.len() + 1024;
    assert!(allocated <= allowed as u64, "{allocated} of {allowed}");
    check(&parts, &after, &segments, &merged);

    let mut taken_in = parts.clone();
    let taken = take_in(&mut taken_in, flow, packets.iter().map(Vec::as_slice));
    assert_eq!(taken == Taken::Reset, merged.reset);
    if taken == Taken::Nothing {
        assert_eq!(taken_in, parts);
    }
    if merged.fin && !merged.reset {
        after.state = TcpState::CloseWait;
    }
    assert_eq!(taken_in, after);
    TcpImage::new(taken_in).expect("a valid image stays valid");

    // Again, as after a COMMIT that was repeated.
    after.state = parts.state;
    let first = after.clone();
    let merged = merge(&mut after, &segments);
    check(&first, &after, &segments, &merged);
}

/// Bytes in the queues.
fn bytes(parts: &TcpParts) -> usize {
    parts.send.sent.len() + parts.send.unsent.len() + parts.receive.queue.len()
}

fn parse<'a>(bytes: &'a [u8], flow: &FourTuple) -> Result<Segment<'a>, SegmentError> {
    let parsed = Segment::parse(bytes, flow);
    match (&parsed, whole(bytes, flow)) {
        (Ok(segment), Ok((tcp, _))) => assert!(tcp.ends_with(segment.payload)),
        (Err(error), other) => assert_eq!(Some(*error), other.err()),
        (Ok(_), Err(error)) => panic!("parsed, and {error}"),
    }
    if let Err(error) = &parsed {
        let _ = error.to_string();
    }
    parsed
}

fn check(before: &TcpParts, after: &TcpParts, segments: &[Segment<'_>], merged: &Merged) {
    TcpImage::new(after.clone()).expect("a valid image stays valid");
    assert!(merged.dropped_segments <= segments.len());
    // What was to be sent.
    assert!(before.send.sent.ends_with(&after.send.sent));
    let acknowledged = before.send.sent.len() - after.send.sent.len();
    assert_eq!(merged.acknowledged_bytes, acknowledged);
    assert_eq!(after.send.snd_nxt(), before.send.snd_nxt());
    assert_eq!(after.send.unsent, before.send.unsent);
    // What was received.
    let new = after.receive.queue.strip_prefix(&before.receive.queue[..]);
    let new = new.expect("it only grows");
    assert_eq!(new.len(), merged.payload_bytes);
    let start = before.receive.rcv_nxt;
    assert_eq!(after.receive.rcv_nxt, start + new.len() as u32);
    assert_eq!(after.window.rcv_wup, before.window.rcv_wup);
    assert_eq!(after.window.rcv_wnd, before.window.rcv_wnd);
    let edge = before.window.rcv_wup + before.window.rcv_wnd;
    assert!(new.is_empty() || after.receive.rcv_nxt.at_or_before(edge));
    assert_eq!(after.negotiated, before.negotiated);
    assert_eq!(after.state, before.state);
    check_source(start, new, segments);
}

/// Each new byte is at its place in a segment. Those of one place can differ, if the peer lies.
fn check_source(start: Seq, new: &[u8], segments: &[Segment<'_>]) {
    let mut missing: BTreeMap<usize, u8> = new.iter().copied().enumerate().collect();
    for segment in segments {
        let known = start.distance_from(segment.seq) as usize;
        let (from, payload) = match segment.payload.get(known..) {
            Some(payload) if segment.seq.at_or_before(start) => (0, payload),
            _ => (segment.seq.distance_from(start) as usize, segment.payload),
        };
        let range = from..from.saturating_add(payload.len());
        let found: Vec<_> = missing
            .range(range)
            .filter(|(at, byte)| payload[**at - from] == **byte)
            .map(|(at, _)| *at)
            .collect();
        for at in found {
            missing.remove(&at);
        }
    }
    assert!(missing.is_empty(), "{} bytes of nowhere", missing.len());
}

impl Captured<'_> {
    fn write(
        &self,
        parts: &TcpParts,
        flow: &FourTuple,
        stream: &[u8; 16],
        packets: &mut Vec<Vec<u8>>,
    ) {
        let left = MAX_PACKETS.saturating_sub(packets.len());
        if left == 0 {
            return;
        }
        match self {
            Self::SecretBytes(bytes) => packets.push(bytes.to_vec()),
            Self::Made(made) => packets.push(made.packet(parts, flow, stream, 0)),
            Self::Garbled(made, at, mask) => {
                let mut packet = made.packet(parts, flow, stream, 0);
                let at = usize::from(*at) % packet.len();
                packet[at] ^= mask;
                packets.push(packet);
            }
            Self::Burst { first, count, step } => {
                let mut first = first.clone();
                first.length %= 64;
                // As many as there can be are slow, and so seldom.
                let count = match usize::from(*count) {
                    255 => left,
                    count => count.min(left),
                };
                let step = i32::from(*step) as u32;
                for number in 0..count as u32 {
                    let off = step.wrapping_mul(number);
                    packets.push(first.packet(parts, flow, stream, off));
                }
            }
        }
    }
}

impl Made {
    /// The packet, its data so many bytes later.
    fn packet(&self, parts: &TcpParts, flow: &FourTuple, stream: &[u8; 16], off: u32) -> Vec<u8> {
        let seq = self.seq.of(parts.receive.rcv_nxt) + off;
        let at = seq.distance_from(parts.receive.rcv_nxt);
        let byte = |n: u32| stream[(at.wrapping_add(n) % 16) as usize] ^ u8::from(self.lie);
        let payload: Vec<u8> = (0..u32::from(self.length % 8192)).map(byte).collect();
        let bit = |number: u8| self.flags & (1 << number) != 0;
        let segment = Segment {
            seq,
            ack: self.ack.of(parts.send.snd_una),
            flags: Flags {
                fin: bit(0),
                // Those that end everything are rarer.
                syn: bit(1) && bit(6),
                rst: bit(2) && bit(6),
                ack: !bit(4),
                urg: bit(5) && bit(6),
            },
            window: self.window,
            timestamps: self
                .timestamps
                .map(|(value, echo)| PeerTimestamps { value, echo }),
            payload: &payload,
        };
        let mut options = Vec::new();
        if let Some((value, echo)) = self.timestamps {
            options.extend([1, 1, 8, 10]);
            options.extend(value.to_be_bytes());
            options.extend(echo.to_be_bytes());
        }
        let sum = match self.sum {
            Checksum::Right => Sum::Right,
            Checksum::Partial => Sum::Partial,
            Checksum::Zero => Sum::Zero,
        };
        let tcp = tcp(flow, &segment, &options, sum);
        // An extension header without options to destinations, as often as it takes.
        let mut between = [60, 0, 1, 4, 0, 0, 0, 0].repeat(usize::from(self.extensions % 4));
        let kind = if between.is_empty() { 6 } else { 60 };
        if let Some(last) = between.len().checked_sub(8) {
            between[last] = 6;
        }
        let mut bytes = packet(flow, &tcp, Some((kind, &between)));
        bytes.resize(bytes.len() + usize::from(self.padding % 32), 0);
        assert_eq!(parse(&bytes, flow), Ok(segment));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::build::{RCV, data};
    use super::*;

    #[test]
    fn bytes_are_looked_for_at_their_place() {
        let segments = [data(0, b"ab"), data(1, b"xc")];
        check_source(RCV, b"abc", &segments);
        check_source(RCV, b"axc", &segments);
    }

    #[test]
    #[should_panic(expected = "1 bytes of nowhere")]
    fn bytes_of_elsewhere_are_noticed() {
        let segments = [data(0, b"abc")];
        check_source(RCV, b"abb", &segments);
    }
}
