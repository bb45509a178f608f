//! Images and segments for the tests.

use tcpmig_format::{
    Negotiated, ReceiveSpace, SecretBytes, SendSpace, Seq, SocketOptions, TcpParts, TcpState,
    Timestamps, Window, WindowScale,
};

pub(super) use crate::segments::build::{Sum, packet, tcp};
use crate::segments::{Flags, PeerTimestamps, Segment};

pub(super) const ACK: Flags = Flags {
    ack: true,
    fin: false,
    syn: false,
    rst: false,
    urg: false,
};

/// The first byte expected, and the oldest not acknowledged. Both near the end of the numbers.
pub(in crate::segments) const RCV: Seq = Seq::new(u32::MAX - 50);
pub(super) const SND: Seq = Seq::new(u32::MAX - 5);
pub(super) const RCV_WND: u32 = 1000;
pub(super) const SENT: &[u8] = b"0123456789";

/// An image with ten bytes sent, five unsent and three to be read.
pub(super) fn parts() -> TcpParts {
    TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: SND,
            sent: SecretBytes::from(SENT),
            unsent: SecretBytes::from(&b"later"[..]),
        },
        receive: ReceiveSpace {
            rcv_nxt: RCV,
            queue: SecretBytes::from(&b"old"[..]),
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

/// A segment with data so many bytes after [`RCV`], which acknowledges nothing new and leaves the window as it is.
pub(in crate::segments) fn data(after: u32, payload: &[u8]) -> Segment<'_> {
    Segment {
        seq: RCV + after,
        ack: SND,
        flags: ACK,
        window: 1000,
        timestamps: None,
        payload,
    }
}

/// A segment without data at [`RCV`] that acknowledges so many bytes.
pub(super) fn ack(bytes: u32) -> Segment<'static> {
    Segment {
        ack: SND + bytes,
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
