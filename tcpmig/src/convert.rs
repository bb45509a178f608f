//! Kernel values to image values and back.
//!
//! The only place where the two meet: `tcpmig-sys` knows no format and `tcpmig-format` no
//! kernel. Only ESTABLISHED is converted, in which no FIN is counted in any sequence number.

use tcpmig_format::{
    InvalidTcp, Negotiated, Octets, ReceiveSpace, SendSpace, Seq, SocketOptions, TcpImage,
    TcpParts, TcpState, TimestampUnit, Timestamps, Window, WindowScale,
};
use tcpmig_sys::RepairWindow;
use tcpmig_sys::frozen::Snapshot;
use tcpmig_sys::sockopt;

/// The image of what was read from a frozen connection.
pub(crate) fn to_image(snapshot: Snapshot, socket: SocketOptions) -> Result<TcpImage, InvalidTcp> {
    let mut sent = snapshot.send_queue;
    let unsent = sent.split_off(sent.len() - snapshot.unsent);
    let negotiated = snapshot.negotiated;
    TcpImage::new(TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: Seq::new(snapshot.marks.snd_una),
            sent: Octets::from(sent),
            unsent: Octets::from(unsent),
        },
        receive: ReceiveSpace {
            rcv_nxt: Seq::new(snapshot.marks.rcv_nxt),
            queue: Octets::from(snapshot.receive_queue),
        },
        negotiated: Negotiated {
            mss_clamp: negotiated.mss_clamp,
            window_scale: negotiated
                .window_scale
                .map(|(snd, rcv)| WindowScale { snd, rcv }),
            sack: negotiated.sack,
            timestamps: snapshot.timestamp.map(|(value, microseconds)| Timestamps {
                value,
                unit: if microseconds {
                    TimestampUnit::Microseconds
                } else {
                    TimestampUnit::Milliseconds
                },
            }),
        },
        window: Window {
            snd_wl1: Seq::new(snapshot.window.snd_wl1),
            snd_wnd: snapshot.window.snd_wnd,
            max_window: snapshot.window.max_window,
            rcv_wnd: snapshot.window.rcv_wnd,
            rcv_wup: Seq::new(snapshot.window.rcv_wup),
        },
        socket,
    })
}

/// What the handshake negotiated, as the kernel takes it.
pub(crate) fn negotiated(image: &Negotiated) -> sockopt::Negotiated {
    sockopt::Negotiated {
        mss_clamp: image.mss_clamp,
        window_scale: image.window_scale.map(|scale| (scale.snd, scale.rcv)),
        sack: image.sack,
        timestamps: image.timestamps.is_some(),
    }
}

/// The timestamp clock, as the kernel takes it.
pub(crate) fn timestamp(image: &Negotiated) -> Option<(u32, bool)> {
    image
        .timestamps
        .map(|t| (t.value, t.unit == TimestampUnit::Microseconds))
}

/// The windows, as the kernel takes them.
pub(crate) fn window(image: &Window) -> RepairWindow {
    RepairWindow {
        snd_wl1: image.snd_wl1.get(),
        snd_wnd: image.snd_wnd,
        max_window: image.max_window,
        rcv_wnd: image.rcv_wnd,
        rcv_wup: image.rcv_wup.get(),
    }
}
