//! What segments do to an image.

use std::collections::BTreeMap;

use tcpmig_format::{MAX_BYTES, Seq, TcpParts, TcpState};

use super::{PeerTimestamps, Segment};

/// What [`merge()`] did, and what it saw and left to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Merged {
    /// Bytes appended to the receive queue.
    pub payload_bytes: usize,
    /// Bytes taken from the front of the send queue.
    pub acknowledged_bytes: usize,
    /// The peer has closed, and all it sent before is merged. The image is still ESTABLISHED, and its `rcv_nxt` is
    /// the number of the FIN.
    pub fin: bool,
    /// The peer has reset the connection: there is nothing left to move. What came before is merged.
    pub reset: bool,
    /// There is urgent data, which an image cannot hold. What came before is merged; this segment and what came
    /// after it is not.
    pub urgent: bool,
    /// Segments that were not acceptable or brought nothing new, and those whose data was left behind a gap. The peer
    /// sends again what it has to.
    pub dropped_segments: usize,
}

/// Does to the image of an established connection what the segments, in the order in which they arrived, would have
/// done to the connection: RFC 9293, section 3.10.7.4, with RFC 5961 for resets and acknowledgements and RFC 7323 for
/// old duplicates.
///
/// - Data is appended to the receive queue as far as it is in order and inside the window that was last advertised
///   (`rcv_wup + rcv_wnd`); `rcv_nxt` moves on, `rcv_wup` and `rcv_wnd` do not, because nothing was advertised. What
///   begins behind a gap waits for the other segments of the call, and is dropped if none fills the gap.
/// - Acknowledgements take bytes from `send.sent`, and `snd_una` moves on. One of something that was never sent makes
///   its segment count for nothing.
/// - `snd_wnd`, `max_window` and `snd_wl1` follow the newest segment. RFC 9293 tells the newest by the acknowledgement
///   of the last update too, SND.WL2, which neither kernel nor image keep: as in Linux, a segment also counts as
///   newer if it acknowledges something, or if its window is larger.
/// - An image holds no timestamp of the peer, so old duplicates are told by the segments of this call alone.
///
/// Segments that were merged before change nothing if they come again. A valid image stays valid. In any state but
/// ESTABLISHED nothing is merged.
pub fn merge(parts: &mut TcpParts, segments: &[Segment<'_>]) -> Merged {
    if parts.state != TcpState::Established {
        return Merged {
            dropped_segments: segments.len(),
            ..Merged::default()
        };
    }
    let mut merging = Merging::new(parts);
    for segment in segments {
        if !merging.take(segment) {
            merging.merged.dropped_segments += 1;
        }
    }
    merging.finish()
}

/// Data behind a gap.
struct Waiting<'a> {
    payload: &'a [u8],
    fin: bool,
}

struct Merging<'p, 'a> {
    parts: &'p mut TcpParts,
    /// `rcv_nxt` at the beginning, from which positions are counted.
    start: Seq,
    /// How far the window and the image's limits let data go, as a position.
    limit: u32,
    /// By position. Of two that begin at the same place the longer is kept.
    waiting: BTreeMap<u32, Waiting<'a>>,
    /// Trimmed from the send queue once, at the end.
    snd_una: Seq,
    snd_nxt: Seq,
    /// RFC 7323's TS.Recent, as far as this call knows it.
    ts_recent: Option<u32>,
    merged: Merged,
}

impl<'p, 'a> Merging<'p, 'a> {
    fn new(parts: &'p mut TcpParts) -> Self {
        let start = parts.receive.rcv_nxt;
        let edge = parts.window.rcv_wup + parts.window.rcv_wnd;
        let window = if edge.after(start) {
            edge.distance_from(start)
        } else {
            0
        };
        let room = MAX_BYTES.saturating_sub(parts.receive.queue.len());
        Self {
            start,
            limit: u32::try_from(room).map_or(window, |room| window.min(room)),
            waiting: BTreeMap::new(),
            snd_una: parts.send.snd_una,
            snd_nxt: parts.send.snd_nxt(),
            ts_recent: None,
            merged: Merged::default(),
            parts,
        }
    }

    /// How many bytes were merged, and so the position of `rcv_nxt`.
    fn position(&self) -> u32 {
        self.parts.receive.rcv_nxt.distance_from(self.start)
    }

    /// Does what a segment says; false if that is nothing.
    fn take(&mut self, segment: &Segment<'a>) -> bool {
        if self.merged.reset || self.merged.urgent {
            return false;
        }
        let flags = segment.flags;
        if self.merged.fin {
            // The FIN has a number of its own, which the image does not count. Nothing but a reset can follow it.
            self.merged.reset = flags.rst && segment.seq == self.parts.receive.rcv_nxt + 1;
            return self.merged.reset;
        }
        if flags.rst {
            // In the window but not at its beginning draws a challenge (RFC 5961, section 3.2), which waits until
            // the connection goes on.
            self.merged.reset = segment.seq == self.parts.receive.rcv_nxt;
            return self.merged.reset;
        }
        if !self.is_acceptable(segment) || self.is_old(segment.timestamps) {
            return false;
        }
        // A SYN draws a challenge too (RFC 5961, section 4.2).
        if flags.syn || !flags.ack || !self.is_plausible(segment.ack) {
            return false;
        }
        self.note_timestamp(segment);
        if flags.urg {
            self.merged.urgent = true;
            return true;
        }
        let acknowledged = self.acknowledge(segment);
        self.receive(segment) || acknowledged
    }

    /// Whether some of the segment, or its number if it has no data, is in the receive window. A segment that begins
    /// at `rcv_nxt` is looked at also when the window is closed, because of its acknowledgement.
    fn is_acceptable(&self, segment: &Segment<'_>) -> bool {
        let next = self.parts.receive.rcv_nxt;
        if segment.seq == next {
            return true;
        }
        let edge = self.start + self.limit;
        // In a u32, because no packet is longer; a FIN takes a number.
        let length = segment.payload.len() as u32 + u32::from(segment.flags.fin);
        segment.seq.before(edge)
            && if length == 0 {
                segment.seq.after(next)
            } else {
                (segment.seq + length).after(next)
            }
    }

    /// Whether the segment is an old duplicate (RFC 7323, section 5.3), or lacks the timestamps that were agreed on
    /// (section 3.2).
    fn is_old(&self, timestamps: Option<PeerTimestamps>) -> bool {
        if self.parts.negotiated.timestamps.is_none() {
            return false;
        }
        let Some(timestamps) = timestamps else {
            return true;
        };
        // Timestamps are compared as sequence numbers are.
        self.ts_recent
            .is_some_and(|recent| Seq::new(timestamps.value).before(Seq::new(recent)))
    }

    /// Notes the timestamp of a segment that is not before the last one noted and begins where the last
    /// acknowledgement that was sent ended (RFC 7323, section 4.3): others may have been sent later than what fills a
    /// gap before them.
    fn note_timestamp(&mut self, segment: &Segment<'_>) {
        if segment.seq.at_or_before(self.parts.window.rcv_wup) {
            let value = segment.timestamps.map(|timestamps| timestamps.value);
            self.ts_recent = value.or(self.ts_recent);
        }
    }

    /// Whether a peer of this connection can acknowledge so far: not what was never sent, and not what is older than
    /// its largest window (RFC 5961, section 5.2).
    fn is_plausible(&self, ack: Seq) -> bool {
        let oldest = self.snd_una - self.parts.window.max_window;
        ack.at_or_after(oldest) && ack.at_or_before(self.snd_nxt)
    }

    fn acknowledge(&mut self, segment: &Segment<'_>) -> bool {
        if segment.ack.before(self.snd_una) {
            return false;
        }
        let window = &mut self.parts.window;
        let scale = self.parts.negotiated.window_scale.unwrap_or_default().snd;
        // An image that is not valid may have a larger one.
        let snd_wnd = u32::from(segment.window) << scale.min(14);
        let advances = segment.ack.after(self.snd_una);
        let larger = segment.seq == window.snd_wl1 && snd_wnd > window.snd_wnd;
        let updates = advances || segment.seq.after(window.snd_wl1) || larger;
        if updates {
            window.snd_wnd = snd_wnd;
            window.max_window = window.max_window.max(snd_wnd);
            window.snd_wl1 = segment.seq;
        }
        self.snd_una = segment.ack;
        updates
    }

    /// Takes data and FIN; false if all of it is known or has to wait.
    fn receive(&mut self, segment: &Segment<'a>) -> bool {
        let Segment { seq, payload, .. } = *segment;
        let fin = segment.flags.fin;
        if payload.is_empty() && !fin {
            return false;
        }
        if seq.after(self.parts.receive.rcv_nxt) {
            self.wait(seq.distance_from(self.start), Waiting { payload, fin });
            // Counted as dropped at the end, if it still waits.
            return true;
        }
        let taken = self.append(seq, payload, fin);
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= self.parts.receive.rcv_nxt.distance_from(self.start)
        {
            let (position, Waiting { payload, fin }) = first.remove_entry();
            if !self.append(self.start + position, payload, fin) {
                self.merged.dropped_segments += 1;
            }
        }
        taken
    }

    fn wait(&mut self, position: u32, new: Waiting<'a>) {
        let length = |waiting: &Waiting<'_>| waiting.payload.len() + usize::from(waiting.fin);
        match self.waiting.get(&position) {
            Some(old) if length(old) >= length(&new) => self.merged.dropped_segments += 1,
            old => {
                self.merged.dropped_segments += usize::from(old.is_some());
                self.waiting.insert(position, new);
            }
        }
    }

    /// Appends what is new of data that begins at or before `rcv_nxt`.
    fn append(&mut self, seq: Seq, payload: &[u8], fin: bool) -> bool {
        if self.merged.fin {
            return false;
        }
        let known = self.parts.receive.rcv_nxt.distance_from(seq) as usize;
        let Some(new) = payload.get(known..) else {
            // A FIN at a number that data had before.
            return false;
        };
        let room = (self.limit - self.position()) as usize;
        let fitting = new.get(..room).unwrap_or(new);
        self.parts.receive.queue.extend_from_slice(fitting);
        self.parts.receive.rcv_nxt = self.parts.receive.rcv_nxt + fitting.len() as u32;
        self.merged.payload_bytes += fitting.len();
        self.merged.fin = fin && new.len() < room;
        !fitting.is_empty() || self.merged.fin
    }

    fn finish(mut self) -> Merged {
        let send = &mut self.parts.send;
        let acknowledged = self.snd_una.distance_from(send.snd_una) as usize;
        // `split_to` wipes what it takes when that is dropped.
        drop(send.sent.split_to(acknowledged));
        send.snd_una = self.snd_una;
        self.merged.acknowledged_bytes = acknowledged;
        self.merged.dropped_segments += self.waiting.len();
        self.merged
    }
}
