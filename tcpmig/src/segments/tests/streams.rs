//! What holds for whatever arrives.

use proptest::collection::vec;
use proptest::prelude::*;
use tcpmig_format::TcpImage;

use super::build::{RCV, RCV_WND, SENT, SND, data, parts, with};
use crate::segments::{Flags, PeerTimestamps, Segment, merge};

/// Cuts of a stream, as the peer may send them: in any order, again, and cut otherwise.
fn cuts(length: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    let cut = (0..=length, 0..=length).prop_map(|(a, b)| (a.min(b), a.max(b)));
    vec(cut, 0..40)
}

fn segment(stream: &[u8], (from, to): (usize, usize)) -> Segment<'_> {
    let segment = data(from as u32, &stream[from..to]);
    with(segment, |flags| flags.fin = to == stream.len())
}

fn stream_and_cuts() -> impl Strategy<Value = (Vec<u8>, Vec<(usize, usize)>)> {
    vec(any::<u8>(), 1..1500).prop_flat_map(|stream| (Just(stream.clone()), cuts(stream.len())))
}

fn flags() -> impl Strategy<Value = Flags> {
    // Few of those that end everything.
    (
        any::<bool>(),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.95),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(fin, syn, rst, ack, urg)| Flags {
            fin,
            syn,
            rst,
            ack,
            urg,
        })
}

/// Numbers near those of the image, and sometimes any.
fn near() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..RCV_WND + 20,
        (0..50u32).prop_map(u32::wrapping_neg),
        any::<u32>()
    ]
}

proptest! {
    #[test]
    fn a_stream_is_merged_up_to_the_window_and_nothing_else(
        (stream, cuts) in stream_and_cuts(),
        step in 1..700usize,
    ) {
        let mut image = parts();
        let segments: Vec<_> = cuts.iter().map(|cut| segment(&stream, *cut)).collect();
        let first = merge(&mut image, &segments);
        let merged = &image.receive.queue[3..];
        prop_assert_eq!(merged, &stream[..merged.len()]);
        prop_assert_eq!(merged.len(), first.payload_bytes);
        prop_assert!(TcpImage::new(image.clone()).is_ok());

        let ordered: Vec<_> = (0..stream.len())
            .step_by(step)
            .map(|at| segment(&stream, (at, (at + step).min(stream.len()))))
            .collect();
        let second = merge(&mut image, &ordered);
        let whole = stream.len().min(RCV_WND as usize);
        prop_assert_eq!(&image.receive.queue[3..], &stream[..whole]);
        prop_assert_eq!(image.receive.rcv_nxt, RCV + whole as u32);
        prop_assert!(TcpImage::new(image).is_ok());
        prop_assert_eq!(first.fin || second.fin, stream.len() < RCV_WND as usize);
    }

    #[test]
    fn in_parts_or_at_once_the_same_stream_comes_out(
        (stream, cuts) in stream_and_cuts(),
        at: prop::sample::Index,
    ) {
        let mut segments: Vec<_> = cuts.iter().map(|cut| segment(&stream, *cut)).collect();
        // In order, so that nothing is lost between the calls.
        segments.sort_by_key(|segment| segment.seq.distance_from(RCV));
        let (mut once, mut twice) = (parts(), parts());
        merge(&mut once, &segments);
        let (before, after) = segments.split_at(at.index(segments.len() + 1));
        merge(&mut twice, before);
        merge(&mut twice, after);
        prop_assert_eq!(once.receive, twice.receive);
    }

    #[test]
    fn whatever_arrives_leaves_a_valid_image(
        bytes in vec(any::<u8>(), 60),
        segments in vec((near(), near(), flags(), any::<u16>(), any::<Option<u32>>(), 0..60usize), 0..60),
        scale in 0..=14u8,
        stamped: bool,
    ) {
        let mut image = parts();
        image.negotiated.window_scale = Some(tcpmig_format::WindowScale { snd: scale, rcv: 0 });
        image.window.snd_wnd = 100;
        image.window.max_window = 100;
        image.negotiated.timestamps = stamped.then(Default::default);
        let segments: Vec<_> = segments
            .iter()
            .map(|(seq, ack, flags, window, value, length)| Segment {
                seq: RCV + *seq,
                ack: SND + *ack,
                flags: *flags,
                window: *window,
                timestamps: value.map(|value| PeerTimestamps { value, echo: 0 }),
                payload: &bytes[..*length],
            })
            .collect();
        let before = image.clone();
        let merged = merge(&mut image, &segments);
        prop_assert!(TcpImage::new(image.clone()).is_ok());
        prop_assert!(merged.dropped_segments <= segments.len());
        prop_assert!(merged.payload_bytes <= RCV_WND as usize);
        prop_assert_eq!(image.receive.queue.len(), 3 + merged.payload_bytes);
        prop_assert_eq!(&*image.send.sent, &SENT[merged.acknowledged_bytes..]);
        prop_assert_eq!(image.send.snd_nxt(), before.send.snd_nxt());
        prop_assert_eq!(image.send.unsent, before.send.unsent);
    }
}
