//! Kernel values to image values and back.
//!
//! The only place where the two meet: `tcpmig-sys` knows no format and `tcpmig-format` no
//! kernel. A FIN counts one in the kernel's sequence numbers and in none of an image: every such
//! +1 and -1 is in [`to_image`], [`up_to`], [`received`], [`numbers`] and [`window`].

use tcpmig_format::{
    InvalidTcp, Negotiated, PendingError, ReceiveSpace, SecretBytes, SendSpace, Seq, SocketOptions,
    TcpImage, TcpParts, TcpState, TimestampUnit, Timestamps, Window, WindowScale,
};
use tcpmig_sys::info::State;
use tcpmig_sys::repair::{Clock, Ended, Numbers, RepairWindow, Snapshot};
use tcpmig_sys::sockopt;
use tcpmig_sys::sockopt::Scales;

/// The image of what was read from a frozen connection.
pub(crate) fn to_image(snapshot: Snapshot, socket: SocketOptions) -> Result<TcpImage, InvalidTcp> {
    // Both are parts of what was read, and nothing of it is copied.
    let mut unsent = SecretBytes::from(snapshot.send_queue);
    let sent = unsent.split_to(unsent.len() - snapshot.unsent);
    let negotiated = snapshot.negotiated;
    let state = state(snapshot.numbers.state);
    let fins = Fins::of(state, snapshot.ended);
    // Past this end's FIN where the peer has acknowledged it.
    let snd_una = Seq::new(snapshot.numbers.snd_una) - u32::from(fins.acknowledged);
    let (rcv_nxt, window) = received(fins, snapshot.numbers.rcv_nxt, &snapshot.window);
    TcpImage::new(TcpParts {
        state,
        send: SendSpace {
            snd_una,
            sent,
            unsent,
        },
        receive: ReceiveSpace {
            rcv_nxt,
            queue: SecretBytes::from(snapshot.receive_queue),
        },
        negotiated: Negotiated {
            // In CLOSE the kernel may have forgotten it.
            mss_clamp: negotiated.mss_clamp.max(1),
            window_scale: negotiated
                .window_scale
                .map(|Scales { snd, rcv }| WindowScale { snd, rcv }),
            sack: negotiated.sack,
            timestamps: snapshot.timestamp.map(|clock| Timestamps {
                value: clock.value,
                unit: if clock.microseconds {
                    TimestampUnit::Microseconds
                } else {
                    TimestampUnit::Milliseconds
                },
            }),
        },
        window,
        socket,
        pending_error: snapshot.ended.and_then(pending_error),
    })
}

/// Where the bytes end that this end has written, and where those end that the peer has sent, with the windows. For numbers
/// of a kernel that came in another way than by a [`Snapshot`].
#[cfg(feature = "criu")]
pub(crate) fn up_to(
    state: TcpState,
    write_seq: u32,
    rcv_nxt: u32,
    window: &RepairWindow,
) -> (Seq, Seq, Window) {
    let fins = Fins::of(state, None);
    let (rcv_nxt, window) = received(fins, rcv_nxt, window);
    (Seq::new(write_seq) - u32::from(fins.sent), rcv_nxt, window)
}

/// Where the peer's bytes end, and the windows. What was advertised or received with the peer's FIN or after it is past the bytes.
fn received(fins: Fins, rcv_nxt: u32, window: &RepairWindow) -> (Seq, Window) {
    let end = Seq::new(rcv_nxt);
    let bytes_end = end - u32::from(fins.received);
    let without_fin = |seq: u32| {
        let seq = Seq::new(seq);
        if seq == end { bytes_end } else { seq }
    };
    let window = Window {
        snd_wl1: without_fin(window.snd_wl1),
        snd_wnd: window.snd_wnd,
        max_window: window.max_window,
        rcv_wnd: window.rcv_wnd,
        rcv_wup: without_fin(window.rcv_wup),
    };
    (bytes_end, window)
}

/// Which FINs the kernel's sequence numbers count.
#[derive(Clone, Copy)]
struct Fins {
    /// This end's, in `write_seq`.
    sent: bool,
    /// This end's, in `snd_una`.
    acknowledged: bool,
    /// The peer's, in `rcv_nxt`.
    received: bool,
}

impl Fins {
    fn of(state: TcpState, ended: Option<Ended>) -> Self {
        let Some(ended) = ended else {
            return Self {
                sent: state.fin_sent(),
                acknowledged: matches!(state, TcpState::FinWait2 | TcpState::TimeWait),
                received: state.fin_received(),
            };
        };
        // As `RestoringSocket::restore_closed` leads there. Of a connection that ended in another way the numbers may be one less,
        // which nobody looks at any more.
        let in_order = ended.error.is_none();
        Self {
            sent: in_order || ended.after_fin && ended.error != Some(Ended::BROKEN_PIPE),
            acknowledged: in_order,
            received: in_order || ended.after_fin,
        }
    }
}

fn state(kernel: State) -> TcpState {
    match kernel {
        State::Established => TcpState::Established,
        State::SynSent => TcpState::SynSent,
        State::SynReceived | State::NewSynReceived => TcpState::SynRecv,
        State::FinWait1 => TcpState::FinWait1,
        State::FinWait2 => TcpState::FinWait2,
        State::TimeWait => TcpState::TimeWait,
        State::Close => TcpState::Close,
        State::CloseWait => TcpState::CloseWait,
        State::LastAck => TcpState::LastAck,
        State::Listen => TcpState::Listen,
        State::Closing => TcpState::Closing,
    }
}

/// The state that a connection can be rebuilt in, as the kernel has it.
pub(crate) fn movable(state: TcpState) -> Option<State> {
    Some(match state {
        TcpState::Established => State::Established,
        TcpState::FinWait1 => State::FinWait1,
        TcpState::FinWait2 => State::FinWait2,
        TcpState::CloseWait => State::CloseWait,
        TcpState::LastAck => State::LastAck,
        TcpState::Closing => State::Closing,
        TcpState::SynSent => State::SynSent,
        TcpState::Close => State::Close,
        _ => return None,
    })
}

/// Bytes that were never sent and go into the socket before it lives: those with a FIN behind them,
/// which the application does not send again. Others are written when it lives.
pub(crate) fn closed_behind(tcp: &TcpParts) -> &[u8] {
    if tcp.state.fin_sent() {
        &tcp.send.unsent
    } else {
        &[]
    }
}

/// What the kernel reads of the connection once it is rebuilt.
pub(crate) fn numbers(tcp: &TcpParts, state: State) -> Numbers {
    let fins = Fins::of(tcp.state, ended(tcp));
    let in_socket = tcp.send.sent.len() + closed_behind(tcp).len();
    Numbers {
        state,
        snd_una: (tcp.send.snd_una + u32::from(fins.acknowledged)).get(),
        // At most 1 GiB, as the image was checked.
        write_seq: (tcp.send.snd_una + in_socket as u32 + u32::from(fins.sent)).get(),
        rcv_nxt: (tcp.receive.rcv_nxt + u32::from(fins.received)).get(),
    }
}

/// What the handshake negotiated, as the kernel takes it.
pub(crate) fn negotiated(image: &Negotiated) -> sockopt::Negotiated {
    sockopt::Negotiated {
        mss_clamp: image.mss_clamp,
        window_scale: image.window_scale.map(|scale| Scales {
            snd: scale.snd,
            rcv: scale.rcv,
        }),
        sack: image.sack,
        timestamps: image.timestamps.is_some(),
    }
}

/// The timestamp clock, as the kernel takes it.
pub(crate) fn timestamp(image: &Negotiated) -> Option<Clock> {
    image.timestamps.map(|timestamps| Clock {
        value: timestamps.value,
        microseconds: timestamps.unit == TimestampUnit::Microseconds,
    })
}

/// The windows, as the kernel takes them.
pub(crate) fn window(tcp: &TcpParts) -> RepairWindow {
    let image = &tcp.window;
    // What was advertised at the end of the bytes was advertised with the acknowledgement of the FIN. `snd_wl1`
    // stays: one too low, it takes the window of the peer's next segment, whatever that is.
    let fin_advertised = tcp.state.fin_received() && image.rcv_wup == tcp.receive.rcv_nxt;
    RepairWindow {
        snd_wl1: image.snd_wl1.get(),
        snd_wnd: image.snd_wnd,
        max_window: image.max_window,
        rcv_wnd: image.rcv_wnd,
        rcv_wup: (image.rcv_wup + u32::from(fin_advertised)).get(),
    }
}

/// Errors by their numbers on this machine, which on some are not those of an image.
const NUMBERS: [(i32, u16); 2] = [
    (Ended::BROKEN_PIPE, PendingError::BROKEN_PIPE),
    (Ended::CONNECTION_RESET, PendingError::CONNECTION_RESET),
];

fn pending_error(ended: Ended) -> Option<PendingError> {
    let error = ended.error?;
    let known = NUMBERS.iter().find(|(here, _)| *here == error);
    let errno = known.map_or_else(|| u16::try_from(error).ok(), |(_, number)| Some(*number))?;
    Some(PendingError {
        errno,
        after_fin: ended.after_fin,
    })
}

/// How a connection in CLOSED ended, as the kernel has it.
pub(crate) fn ended(tcp: &TcpParts) -> Option<Ended> {
    let error = |pending: PendingError| {
        let known = NUMBERS.iter().find(|(_, number)| *number == pending.errno);
        known.map_or(i32::from(pending.errno), |(here, _)| *here)
    };
    (tcp.state == TcpState::Close).then(|| Ended {
        error: tcp.pending_error.map(error),
        after_fin: tcp.pending_error.is_none_or(|pending| pending.after_fin),
    })
}
