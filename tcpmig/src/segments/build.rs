//! Packets as a peer writes them, for tests and fuzz targets.

use std::net::IpAddr;

use tcpmig_format::FourTuple;

use super::{Flags, Segment};

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
