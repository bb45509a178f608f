//! One test for each rule.

use tcpmig_format::{SecretBytes, Seq, TcpImage, TcpParts, TcpState};

use super::build::*;
use crate::segments::{Merged, Segment, merge};

/// Merges, and makes sure that the image is still one.
fn merged(parts: &mut TcpParts, segments: &[Segment<'_>]) -> Merged {
    let before = parts.receive.queue.len();
    let merged = merge(parts, segments);
    TcpImage::new(parts.clone()).unwrap();
    assert_eq!(parts.receive.queue.len(), before + merged.payload_bytes);
    merged
}

fn queue(parts: &TcpParts) -> &str {
    std::str::from_utf8(&parts.receive.queue).unwrap()
}

#[test]
fn data_in_order_is_appended_and_only_rcv_nxt_moves() {
    let mut parts = parts();
    let window = parts.window;
    let merged = merged(&mut parts, &[data(0, b"new"), data(3, b"er")]);
    assert_eq!(queue(&parts), "oldnewer");
    assert_eq!(parts.receive.rcv_nxt, RCV + 5);
    assert_eq!(parts.window.rcv_wup, window.rcv_wup);
    assert_eq!(parts.window.rcv_wnd, window.rcv_wnd);
    assert_eq!(merged.payload_bytes, 5);
    assert_eq!(merged.dropped_segments, 0);
}

#[test]
fn data_that_overlaps_what_is_there_is_trimmed() {
    let mut parts = parts();
    let overlapping = Segment {
        seq: RCV - 3,
        ..data(0, b"oldnew")
    };
    merged(&mut parts, &[overlapping, data(1, b"ew"), data(1, b"ewer")]);
    assert_eq!(queue(&parts), "oldnewer");
}

#[test]
fn duplicates_change_nothing() {
    let mut once = parts();
    let segments = [data(0, b"new"), ack(4)];
    merged(&mut once, &segments);
    let mut twice = once.clone();
    let again = merged(&mut twice, &segments);
    assert_eq!(twice, once);
    assert_eq!(again.dropped_segments, 2);
    assert_eq!((again.payload_bytes, again.acknowledged_bytes), (0, 0));
}

#[test]
fn a_gap_is_filled_by_a_later_segment() {
    // Of two that begin at one place the longer counts, whichever comes first.
    for [first, second] in [["two", "tw"], ["tw", "two"]] {
        let mut parts = parts();
        let segments = [
            data(5, b"three"),
            data(2, first.as_bytes()),
            data(2, second.as_bytes()),
            data(0, b"on"),
        ];
        let merged = merged(&mut parts, &segments);
        assert_eq!(queue(&parts), "oldontwothree");
        assert_eq!(merged.dropped_segments, 1);
    }
}

#[test]
fn data_behind_a_gap_is_left_to_the_peer() {
    let mut parts = parts();
    let merged = merged(&mut parts, &[data(0, b"one"), data(4, b"three")]);
    assert_eq!(queue(&parts), "oldone");
    assert_eq!(parts.receive.rcv_nxt, RCV + 3);
    assert_eq!(merged.dropped_segments, 1);
}

#[test]
fn nothing_goes_beyond_the_advertised_edge() {
    let bytes = vec![b'x'; 2000];
    let mut parts = parts();
    // Advertised ten bytes before the last that came.
    parts.window.rcv_wup = RCV - 10;
    let edge = RCV_WND - 10;
    let beyond = data(edge, b"beyond");
    let first = merged(&mut parts, &[beyond, data(0, &bytes), beyond]);
    assert_eq!(first.payload_bytes, edge as usize);
    assert_eq!(first.dropped_segments, 1);
    assert_eq!(parts.receive.rcv_nxt, RCV + edge);
    let again = merged(&mut parts, &[beyond, data(0, &bytes)]);
    assert_eq!(again.payload_bytes, 0);
}

#[test]
fn a_closed_window_takes_acknowledgements_and_no_data() {
    let mut parts = parts();
    parts.window.rcv_wnd = 0;
    let probe = Segment {
        ack: SND + 4,
        ..data(0, b"x")
    };
    let fin = with(data(0, b""), |flags| flags.fin = true);
    let merged = merged(&mut parts, &[probe, fin]);
    assert_eq!((merged.payload_bytes, merged.acknowledged_bytes), (0, 4));
    assert!(!merged.fin);
}

#[test]
fn acknowledgements_trim_what_was_sent() {
    let mut parts = parts();
    let merged = merged(&mut parts, &[ack(7), ack(3), ack(9)]);
    assert_eq!(parts.send.snd_una, SND + 9);
    assert_eq!(&*parts.send.sent, &SENT[9..]);
    assert_eq!(&*parts.send.unsent, b"later");
    assert_eq!(merged.acknowledged_bytes, 9);
}

#[test]
fn an_acknowledgement_of_the_unsent_voids_its_segment() {
    let mut parts = parts();
    let before = parts.clone();
    let ahead = Segment {
        ack: SND + SENT.len() as u32 + 1,
        ..data(0, b"new")
    };
    let merged = merged(&mut parts, &[ahead]);
    assert_eq!(parts, before);
    assert_eq!(merged.dropped_segments, 1);
}

#[test]
fn an_acknowledgement_older_than_any_window_voids_its_segment() {
    let mut parts = parts();
    let old = |bytes| Segment {
        ack: SND - bytes,
        ..data(0, b"new")
    };
    let limit = parts.window.max_window;
    assert_eq!(merged(&mut parts, &[old(limit + 1)]).payload_bytes, 0);
    // An old one is not a reason to refuse the data.
    let window = parts.window;
    assert_eq!(merged(&mut parts, &[old(limit)]).payload_bytes, 3);
    assert_eq!(parts.window, window);
}

#[test]
fn segments_without_an_acknowledgement_or_with_a_syn_are_dropped() {
    let mut parts = parts();
    let before = parts.clone();
    let none = with(data(0, b"new"), |flags| flags.ack = false);
    let syn = with(data(0, b"new"), |flags| flags.syn = true);
    assert_eq!(merged(&mut parts, &[none, syn]).dropped_segments, 2);
    assert_eq!(parts, before);
}

#[test]
fn the_send_window_follows_the_newest_segment() {
    let wide = |segment, window| Segment { window, ..segment };
    // Scaled; the largest is remembered.
    let mut image = parts();
    merged(&mut image, &[wide(ack(1), 5000), wide(ack(2), 10)]);
    assert_eq!(
        (image.window.snd_wnd, image.window.max_window),
        (40, 20_000)
    );
    assert_eq!(image.window.snd_wl1, RCV);
    // Newer data, then older data with another window.
    let mut image = parts();
    let segments = [wide(data(3, b"new"), 20), wide(data(0, b"one"), 30)];
    merged(&mut image, &segments);
    assert_eq!((image.window.snd_wnd, image.window.snd_wl1), (80, RCV + 3));
    // Neither newer data nor a newer acknowledgement: only a larger window counts.
    let mut image = parts();
    merged(&mut image, &[wide(ack(0), 3), wide(ack(0), 2)]);
    assert_eq!(image.window.snd_wnd, 12);
    merged(&mut image, &[wide(ack(0), 4)]);
    assert_eq!(image.window.snd_wnd, 16);
}

#[test]
fn a_fin_in_order_is_reported_and_ends_the_data() {
    let mut parts = parts();
    let fin = with(data(0, b"end"), |flags| flags.fin = true);
    let merged = merged(&mut parts, &[fin, data(3, b"more"), data(4, b"more")]);
    assert!(merged.fin && !merged.reset);
    assert_eq!(queue(&parts), "oldend");
    assert_eq!(parts.receive.rcv_nxt, RCV + 3);
    assert_eq!(parts.state, TcpState::Established);
    assert_eq!(merged.dropped_segments, 2);
}

#[test]
fn a_fin_behind_a_gap_or_the_window_is_not_seen() {
    let bytes = vec![b'x'; RCV_WND as usize];
    let fin = |segment| with(segment, |flags| flags.fin = true);
    for segment in [
        fin(data(1, b"end")),
        fin(data(0, &bytes)),
        fin(data(RCV_WND, b"")),
    ] {
        assert!(!merged(&mut parts(), &[segment]).fin);
    }
    assert!(merged(&mut parts(), &[fin(data(0, &bytes[1..]))]).fin);
    // Of a number that data had before.
    let old = Segment {
        seq: RCV - 3,
        ..fin(data(0, b"o"))
    };
    assert!(!merged(&mut parts(), &[old]).fin);
    // Once the gap is filled it is.
    let merged = merged(&mut parts(), &[fin(data(1, b"end")), data(0, b"x")]);
    assert!(merged.fin);
    assert_eq!(merged.payload_bytes, 4);
}

#[test]
fn a_reset_counts_at_rcv_nxt_only() {
    let reset = |after| with(data(after, b""), |flags| flags.rst = true);
    for after in [1, RCV_WND - 1, RCV_WND, u32::MAX] {
        let mut parts = parts();
        let merged = merged(&mut parts, &[reset(after), data(0, b"new")]);
        assert!(!merged.reset, "{after}");
        assert_eq!((merged.payload_bytes, merged.dropped_segments), (3, 1));
    }
    let mut parts = parts();
    let merged = merged(&mut parts, &[data(0, b"new"), reset(3), data(3, b"er")]);
    assert!(merged.reset);
    assert_eq!(queue(&parts), "oldnew");
    // After a FIN, whose number is its own.
    let fin = with(data(0, b"end"), |flags| flags.fin = true);
    assert!(merge(&mut super::build::parts(), &[fin, reset(4)]).reset);
    assert!(!merge(&mut super::build::parts(), &[fin, reset(3)]).reset);
}

#[test]
fn urgent_data_stops_the_merging_before_it() {
    let mut parts = parts();
    let urgent = with(data(3, b"!"), |flags| flags.urg = true);
    let merged = merged(&mut parts, &[data(0, b"new"), urgent, data(4, b"er")]);
    assert!(merged.urgent);
    assert_eq!(queue(&parts), "oldnew");
    // One that nobody of this connection can have sent does not.
    let forged = Segment {
        ack: SND - 1_000_000,
        ..urgent
    };
    assert!(!merge(&mut super::build::parts(), &[forged]).urgent);
}

#[test]
fn old_duplicates_are_told_by_their_timestamps() {
    let mut parts = stamped();
    let segments = [
        at(data(0, b"one"), 100),
        at(data(3, b"old"), 99),
        at(data(3, b"two"), 101),
    ];
    let merged = merged(&mut parts, &segments);
    assert_eq!(queue(&parts), "oldonetwo");
    assert_eq!(merged.dropped_segments, 1);
}

#[test]
fn what_was_sent_before_others_that_came_first_is_no_old_duplicate() {
    let mut parts = stamped();
    let segments = [
        at(data(3, b"two"), u32::MAX),
        at(data(0, b"one"), u32::MAX - 1),
    ];
    merged(&mut parts, &segments);
    assert_eq!(queue(&parts), "oldonetwo");
    // The clock wraps.
    merged(&mut parts, &[at(data(6, b"three"), 2)]);
    assert_eq!(queue(&parts), "oldonetwothree");
}

#[test]
fn segments_without_the_agreed_timestamps_are_dropped() {
    let mut parts = stamped();
    assert_eq!(merged(&mut parts, &[data(0, b"new")]).payload_bytes, 0);
    // But a reset needs none.
    let reset = with(data(0, b""), |flags| flags.rst = true);
    assert!(merged(&mut parts, &[reset]).reset);
}

#[test]
fn other_states_are_left_alone() {
    for state in TcpState::ALL {
        let mut parts = parts();
        parts.state = state;
        let before = parts.clone();
        let merged = merge(&mut parts, &[data(0, b"new"), ack(4)]);
        if state != TcpState::Established {
            assert_eq!(parts, before, "{state}");
            assert_eq!(merged.dropped_segments, 2);
        }
    }
}

#[test]
fn a_retracted_or_absurd_window_takes_nothing() {
    let mut parts = parts();
    parts.window.rcv_wup = RCV - 3000;
    assert_eq!(merged(&mut parts, &[data(0, b"new")]).payload_bytes, 0);
    parts.window.rcv_wnd = u32::MAX;
    parts.window.rcv_wup = Seq::new(0);
    parts.send.sent = SecretBytes::new();
    // Not valid, and still no reason to panic.
    merge(&mut parts, &[data(0, b"new"), ack(5), data(9, b"x")]);
}
