use proptest::prelude::*;
use tcpmig_format::FourTuple;

use super::build::{self, ACK, Sum, data, packet, tcp};
use crate::segments::{PeerTimestamps, Segment, SegmentError};

const NOPS_AND_TIMESTAMPS: &[u8] = &[1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6];
const SACK_AND_TIMESTAMPS: &[u8] = &[
    5, 10, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6, 0, 9, 9, 9,
];

fn flows() -> [FourTuple; 2] {
    [
        "10.0.0.1:80,10.0.0.9:51234".parse().unwrap(),
        "[2001:db8::1]:80,[2001:db8::9]:51234".parse().unwrap(),
    ]
}

#[test]
fn a_segment_reads_as_written() {
    for flow in flows() {
        for sum in [Sum::Right, Sum::Partial, Sum::Zero] {
            for options in [&[][..], NOPS_AND_TIMESTAMPS, SACK_AND_TIMESTAMPS] {
                for payload in [&b""[..], b"x", b"even", b"uneven!"] {
                    let timestamps =
                        (!options.is_empty()).then_some(PeerTimestamps { value: 5, echo: 6 });
                    let segment = Segment {
                        timestamps,
                        ..data(3, payload)
                    };
                    let mut bytes = packet(&flow, &tcp(&flow, &segment, options, sum), None);
                    assert_eq!(Segment::parse(&bytes, &flow), Ok(segment), "{sum:?}");
                    // What pads the packet on the link is not part of it.
                    bytes.extend_from_slice(&[0; 9]);
                    assert_eq!(Segment::parse(&bytes, &flow), Ok(segment));
                }
            }
        }
    }
}

/// Copies that NFLOG made on Linux 6.18 of packets from a virtual device, which leaves checksums to others.
#[test]
fn copies_of_the_kernel_read() {
    for (flow, hex, seq, ack, value) in [
        (
            "10.0.0.1:45793,10.0.0.9:57662",
            "450000393cfc40004006e9b90a0000090a000001e13eb2e1a97e8e6543f254ac8018003f14350000 \
             0101080a433cd4a27938cd6068656c6c6f",
            2_843_643_493,
            1_139_954_860,
            1_128_060_066,
        ),
        (
            "[2001:db8::1]:40769,[2001:db8::9]:39478",
            "600b138f0025064020010db800000000000000000000000920010db8000000000000000000000001 \
             9a369f4129e0ded49756cf8b801800405ba700000101080a278c4219df9c4b6968656c6c6f",
            702_602_964,
            2_539_048_843,
            663_503_385,
        ),
    ] {
        let hex: String = hex.split_whitespace().collect();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let segment = Segment::parse(&bytes, &flow.parse().unwrap()).unwrap();
        assert_eq!((segment.seq.get(), segment.ack.get()), (seq, ack));
        assert_eq!(segment.timestamps.unwrap().value, value);
        assert_eq!(segment.payload, b"hello");
        assert_eq!(segment.flags, ACK);
    }
}

#[test]
fn every_flag_reads_as_written() {
    let flow = flows()[0];
    for number in 0..5 {
        let segment = build::with(data(0, b""), |flags| match number {
            0 => flags.fin = true,
            1 => flags.syn = true,
            2 => flags.rst = true,
            3 => flags.urg = true,
            _ => flags.ack = false,
        });
        let bytes = packet(&flow, &tcp(&flow, &segment, &[], Sum::Right), None);
        assert_eq!(Segment::parse(&bytes, &flow), Ok(segment));
    }
}

#[test]
fn ipv6_extensions_are_skipped() {
    let flow = flows()[1];
    let segment = data(0, b"data");
    let tcp = tcp(&flow, &segment, &[], Sum::Right);
    let parse = |kind, extensions: &[u8]| {
        let bytes = packet(&flow, &tcp, Some((kind, extensions)));
        Segment::parse(&bytes, &flow).map(|segment| segment.payload.len())
    };
    let mut all = vec![60, 0, 0, 0, 0, 0, 0, 0];
    all.extend_from_slice(&[43, 1]);
    all.extend_from_slice(&[0; 14]);
    all.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(0, &all), Ok(4));
    assert_eq!(
        parse(43, &[6, 0, 0, 1, 0, 0, 0, 0]),
        Err(SegmentError::Routed(1))
    );
    assert_eq!(
        parse(44, &[6, 0, 0, 0, 0, 0, 0, 0]),
        Err(SegmentError::Fragment)
    );
    assert_eq!(parse(51, &[6, 1, 0, 0]), Err(SegmentError::Protocol(51)));
    assert_eq!(
        parse(60, &[6, 200, 0, 0]),
        Err(SegmentError::Length("extension header"))
    );
}

#[test]
fn ipv4_options_are_skipped_and_fragments_refused() {
    let flow = flows()[0];
    let tcp = tcp(&flow, &data(0, b"data"), &[], Sum::Right);
    let plain = packet(&flow, &tcp, None);
    let mut options = plain.clone();
    options[0] = 0x46;
    options[3] += 4;
    options.splice(20..20, [1, 1, 1, 1]);
    assert_eq!(Segment::parse(&options, &flow).unwrap().payload, b"data");
    for (high, low) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
        let mut fragment = plain.clone();
        (fragment[6], fragment[7]) = (high, low);
        assert_eq!(
            Segment::parse(&fragment, &flow),
            Err(SegmentError::Fragment)
        );
    }
    let mut other = plain.clone();
    other[9] = 17;
    assert_eq!(
        Segment::parse(&other, &flow),
        Err(SegmentError::Protocol(17))
    );
}

#[test]
fn only_what_the_peer_sent_is_of_the_flow() {
    for flow in flows() {
        let segment = data(0, b"data");
        let own = flow.reversed();
        let bytes = packet(&own, &tcp(&own, &segment, &[], Sum::Right), None);
        assert_eq!(
            Segment::parse(&bytes, &flow),
            Err(SegmentError::OtherFlow(own))
        );
        let error = Segment::parse(&bytes, &flow).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("it is from {} to {}", flow.local(), flow.remote())
        );
        let other = flows().into_iter().find(|other| *other != flow).unwrap();
        assert!(Segment::parse(&bytes, &other).is_err());
    }
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    for flow in flows() {
        let segment = data(0, b"data");
        let tcp = tcp(&flow, &segment, NOPS_AND_TIMESTAMPS, Sum::Zero);
        let bytes = packet(&flow, &tcp, None);
        for length in 0..bytes.len() {
            assert!(Segment::parse(&bytes[..length], &flow).is_err(), "{length}");
        }
        for words in [0, 4, 10, 15] {
            let mut tcp = tcp.clone();
            tcp[12] = words << 4;
            let result = Segment::parse(&packet(&flow, &tcp, None), &flow).map(drop);
            assert_eq!(result, Err(SegmentError::Length("TCP header")), "{words}");
        }
        for length in [0, 1, 9, 11, 200] {
            let mut tcp = tcp.clone();
            tcp[23] = length;
            let result = Segment::parse(&packet(&flow, &tcp, None), &flow).map(drop);
            assert_eq!(result, Err(SegmentError::Length("TCP option")), "{length}");
        }
    }
}

#[test]
fn content_does_not_print() {
    let text = format!("{:?}", data(0, b"secret"));
    assert!(
        text.contains("payload: 6") && !text.contains("secret"),
        "{text}"
    );
}

proptest! {
    #[test]
    fn a_changed_byte_of_the_segment_is_found(
        v4: bool,
        payload in prop::collection::vec(any::<u8>(), 0..100),
        at: prop::sample::Index,
        flip in 1..=u8::MAX,
    ) {
        let flow = flows()[usize::from(v4)];
        let segment = Segment { flags: ACK, ..data(9, &payload) };
        let unfilled = tcp(&flow, &segment, NOPS_AND_TIMESTAMPS, Sum::Partial);
        let mut tcp = tcp(&flow, &segment, NOPS_AND_TIMESTAMPS, Sum::Right);
        let at = at.index(tcp.len());
        // In the field itself the other accepted values may come about.
        prop_assume!(!(16..18).contains(&at));
        // The two values of no number at all are one in such sums.
        prop_assume!(tcp[16..18] != [0, 0]);
        // The right sum of these bytes happens to be the one that a device would still fill in.
        prop_assume!(tcp[16..18] != unfilled[16..18]);
        tcp[at] ^= flip;
        prop_assert!(Segment::parse(&packet(&flow, &tcp, None), &flow).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, version in 0..3u8) {
        if let Some(first) = bytes.first_mut() {
            *first = [*first, 0x40 | *first & 15, 0x60][usize::from(version)];
        }
        for flow in flows() {
            let _ = Segment::parse(&bytes, &flow);
        }
    }

    /// Damage that the checksum does not hide.
    #[test]
    fn damaged_packets_never_panic(
        v4: bool,
        extension in prop::sample::select(&[0u8, 6, 43, 44, 60][..]),
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6),
        cut: prop::sample::Index,
    ) {
        let flow = flows()[usize::from(v4)];
        let tcp = tcp(&flow, &data(0, b"data"), SACK_AND_TIMESTAMPS, Sum::Zero);
        let mut bytes = packet(&flow, &tcp, Some((extension, &[6, 0, 0, 0, 0, 0, 0, 0])));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 2));
        if let Ok(segment) = Segment::parse(&bytes, &flow) {
            prop_assert!(segment.payload.len() <= bytes.len());
        }
    }
}
