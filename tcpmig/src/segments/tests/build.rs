//! Packets and images for the tests.

use std::net::IpAddr;

use tcpmig_format::{
    FourTuple, Negotiated, Octets, ReceiveSpace, SendSpace, Seq, SocketOptions, TcpParts, TcpState,
    Timestamps, Window, WindowScale,
};

use crate::segments::{Flags, PeerTimestamps, Segment};

pub(super) const ACK: Flags = Flags {
    ack: true,
    fin: false,
    syn: false,
    rst: false,
    urg: false,
};

/// The first octet expected, and the oldest not acknowledged. Both near the end of the numbers.
pub(super) const RCV: Seq = Seq::new(u32::MAX - 50);
pub(super) const SND: Seq = Seq::new(u32::MAX - 5);
pub(super) const RCV_WND: u32 = 1000;
pub(super) const SENT: &[u8] = b"0123456789";

/// An image with ten octets sent, five unsent and three to be read.
pub(super) fn parts() -> TcpParts {
    TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: SND,
            sent: Octets::from(SENT),
            unsent: Octets::from(&b"later"[..]),
        },
        receive: ReceiveSpace {
            rcv_nxt: RCV,
            queue: Octets::from(&b"old"[..]),
        },
        negotiated: Negotiated {
            mss_clamp: 1460,
            window_scale: Some(WindowScale { snd: 2, rcv: 7 }),
            sack: true,
            timestamps: None,
        },
        window: Window {
            snd_wl1: RCV - 1,
            snd_wnd: 4000,
            max_window: 4000,
            rcv_wnd: RCV_WND,
            rcv_wup: RCV,
        },
        socket: SocketOptions::default(),
        pending_error: None,
    }
}

/// The same, with timestamps.
pub(super) fn stamped() -> TcpParts {
    let mut parts = parts();
    parts.negotiated.timestamps = Some(Timestamps::default());
    parts
}

/// A segment with data so many octets after [`RCV`], which acknowledges nothing new and leaves the window as it is.
pub(super) fn data(after: u32, payload: &[u8]) -> Segment<'_> {
    Segment {
        seq: RCV + after,
        ack: SND,
        flags: ACK,
        window: 1000,
        timestamps: None,
        payload,
    }
}

/// A segment without data at [`RCV`] that acknowledges so many octets.
pub(super) fn ack(octets: u32) -> Segment<'static> {
    Segment {
        ack: SND + octets,
        ..data(0, b"")
    }
}

pub(super) fn with(segment: Segment<'_>, change: impl FnOnce(&mut Flags)) -> Segment<'_> {
    let mut flags = segment.flags;
    change(&mut flags);
    Segment { flags, ..segment }
}

pub(super) fn at(segment: Segment<'_>, value: u32) -> Segment<'_> {
    let timestamps = Some(PeerTimestamps { value, echo: 0 });
    Segment {
        timestamps,
        ..segment
    }
}

/// What a checksum field can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    Right,
    Partial,
    Zero,
}

fn ones_complement(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// The segment as TCP of `flow`'s peer would write it.
pub(super) fn tcp(flow: &FourTuple, segment: &Segment<'_>, options: &[u8], sum: Sum) -> Vec<u8> {
    let mut tcp = Vec::new();
    for port in [flow.remote().port(), flow.local().port()] {
        tcp.extend_from_slice(&port.to_be_bytes());
    }
    for number in [segment.seq, segment.ack] {
        tcp.extend_from_slice(&number.get().to_be_bytes());
    }
    let Flags {
        fin,
        syn,
        rst,
        ack,
        urg,
    } = segment.flags;
    let mut bits = 8;
    for (number, flag) in [(0, fin), (1, syn), (2, rst), (4, ack), (5, urg)] {
        bits |= u8::from(flag) << number;
    }
    assert_eq!(options.len() % 4, 0);
    tcp.extend_from_slice(&[5 + (options.len() / 4) as u8, 0]);
    let at = tcp.len() - 2;
    tcp[at] <<= 4;
    tcp[at + 1] = bits;
    tcp.extend_from_slice(&segment.window.to_be_bytes());
    tcp.extend_from_slice(&[0; 4]);
    tcp.extend_from_slice(options);
    tcp.extend_from_slice(segment.payload);
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let pseudo = [
        address(flow.remote().ip()),
        address(flow.local().ip()),
        vec![0, 6],
        (tcp.len() as u32).to_be_bytes().to_vec(),
    ]
    .concat();
    let checksum = match sum {
        Sum::Right => !ones_complement(&[&pseudo, &tcp]),
        Sum::Partial => ones_complement(&[&pseudo]),
        Sum::Zero => 0,
    };
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    tcp
}

/// The same behind an IP header. In IPv6, `extensions` (which begin with the kind of their first) are in between.
pub(super) fn packet(flow: &FourTuple, tcp: &[u8], extensions: Option<(u8, &[u8])>) -> Vec<u8> {
    let (kind, between) = extensions.unwrap_or((6, &[]));
    let mut packet = match (flow.remote().ip(), flow.local().ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = ((20 + tcp.len()) as u16).to_be_bytes();
            let mut header = vec![0x45, 0, total[0], total[1], 7, 7, 0x40, 0, 64, 6, 0, 0];
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = ((between.len() + tcp.len()) as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], kind, 64];
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header.extend_from_slice(between);
            header
        }
        _ => unreachable!("a flow is of one family"),
    };
    packet.extend_from_slice(tcp);
    packet
}
