//! What parts of a transport layer can go together.

use crate::{MAX_BYTES, Negotiated, PendingError, Seq, SocketOptions, TcpParts, TcpState, Window};

/// Why [`TcpParts`] contradict themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTcp {
    /// A queue is longer than any window can make it.
    #[error("{queue} queue: {len} bytes, more than {MAX_BYTES}")]
    QueueLength {
        /// Which queue: `send` (sent and unsent together) or `receive`.
        queue: &'static str,
        /// Its length.
        len: usize,
    },
    /// Bytes in a queue that is empty in this state.
    #[error("{queue} queue: {len} bytes, which cannot be in state {state}")]
    QueueInState {
        /// Which queue: `sent`, `unsent` or `receive`.
        queue: &'static str,
        /// Its length.
        len: usize,
        /// The state.
        state: TcpState,
    },
    /// The maximum segment size is 0.
    #[error("mss_clamp is 0")]
    MssClamp,
    /// A window scale is above 14, the limit of RFC 7323.
    #[error("window scale {0} is above 14")]
    WindowScale(u8),
    /// The peer's window is larger than 16 bits and its scale can say.
    #[error("{what} {value} is above {limit}, the most that the window scale allows")]
    WindowAboveScale {
        /// `snd_wnd` or `max_window`.
        what: &'static str,
        /// Its value, in bytes.
        value: u32,
        /// The most that the scale allows.
        limit: u32,
    },
    /// The receive window is above 1 GiB, the limit of RFC 7323.
    #[error("rcv_wnd {0} is above 1 GiB")]
    RcvWnd(u32),
    /// `max_window` is less than `snd_wnd`.
    #[error("max_window {max_window} is less than snd_wnd {snd_wnd}")]
    MaxWindow {
        /// The largest window there was.
        max_window: u32,
        /// The window now.
        snd_wnd: u32,
    },
    /// `rcv_wup` is after `rcv_nxt`.
    #[error("rcv_wup {rcv_wup} is after rcv_nxt {rcv_nxt}")]
    RcvWup {
        /// Where the window was advertised.
        rcv_wup: Seq,
        /// The next byte expected.
        rcv_nxt: Seq,
    },
    /// `snd_wl1` is after the end of the receive window.
    #[error("snd_wl1 {snd_wl1} is after rcv_nxt + rcv_wnd {limit}")]
    SndWl1 {
        /// The segment that changed the window.
        snd_wl1: Seq,
        /// `rcv_nxt + rcv_wnd`.
        limit: Seq,
    },
    /// An error waits for the application in a state in which the connection has not ended.
    #[error("a pending error, which cannot be in state {0}")]
    PendingErrorInState(TcpState),
    /// The number is that of no error.
    #[error("{0} is not the number of an error")]
    PendingErrno(u16),
    /// EPIPE is what a reset after the peer's FIN makes.
    #[error("pending EPIPE without a FIN of the peer")]
    PendingPipe,
    /// `buffer_lock` has bits other than 1 and 2.
    #[error("buffer_lock {0:#x} has unknown bits")]
    BufferLock(u8),
    /// A classic filter is empty or has more instructions than the kernel takes.
    #[error("the filter has {0} instructions, not 1 to 4096")]
    Filter(usize),
    /// The name of the congestion control is empty, longer than 15 bytes or
    /// not printable ASCII without spaces.
    #[error("{0:?} cannot be the name of a congestion control")]
    Congestion(String),
}

pub(crate) fn check(parts: &TcpParts) -> Result<(), InvalidTcp> {
    let lengths = Lengths {
        sent: parts.send.sent.len(),
        unsent: parts.send.unsent.len(),
        receive: parts.receive.queue.len(),
    };
    check_queues(parts.state, lengths)?;
    check_negotiated(&parts.negotiated)?;
    // Elsewhere the kernel's windows are left over or not yet set.
    if parts.state.is_synchronized() {
        check_window(&parts.window, &parts.negotiated, parts.receive.rcv_nxt)?;
    }
    check_pending(parts.state, parts.pending_error)?;
    check_socket(&parts.socket)
}

fn check_pending(state: TcpState, pending: Option<PendingError>) -> Result<(), InvalidTcp> {
    /// `MAX_ERRNO` in the kernel.
    const LARGEST: u16 = 4095;
    let Some(PendingError { errno, after_fin }) = pending else {
        return Ok(());
    };
    if state != TcpState::Close {
        return Err(InvalidTcp::PendingErrorInState(state));
    }
    if !(1..=LARGEST).contains(&errno) {
        return Err(InvalidTcp::PendingErrno(errno));
    }
    if errno == PendingError::BROKEN_PIPE && !after_fin {
        return Err(InvalidTcp::PendingPipe);
    }
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Lengths {
    sent: usize,
    unsent: usize,
    receive: usize,
}

fn check_queues(state: TcpState, lengths: Lengths) -> Result<(), InvalidTcp> {
    use TcpState::{Close, FinWait2, Listen, SynRecv, SynSent, TimeWait};

    let Lengths {
        sent,
        unsent,
        receive,
    } = lengths;
    for (queue, len) in [("send", sent.saturating_add(unsent)), ("receive", receive)] {
        if len > MAX_BYTES {
            return Err(InvalidTcp::QueueLength { queue, len });
        }
    }
    let opening = matches!(state, Listen | SynSent | SynRecv);
    // In FIN-WAIT-2 and TIME-WAIT the peer has acknowledged the FIN and so all before it.
    // In CLOSED nothing is sent any more.
    let done = matches!(state, FinWait2 | TimeWait | Close);
    for (queue, len, empty) in [
        ("sent", sent, opening || done),
        // Only a fast open has bytes before the handshake, and it is not carried.
        ("unsent", unsent, matches!(state, Listen | SynSent) || done),
        ("receive", receive, opening),
    ] {
        if empty && len > 0 {
            return Err(InvalidTcp::QueueInState { queue, len, state });
        }
    }
    Ok(())
}

fn check_negotiated(negotiated: &Negotiated) -> Result<(), InvalidTcp> {
    if negotiated.mss_clamp == 0 {
        return Err(InvalidTcp::MssClamp);
    }
    let scale = negotiated.window_scale.unwrap_or_default();
    match scale.snd.max(scale.rcv) {
        0..=14 => Ok(()),
        scale => Err(InvalidTcp::WindowScale(scale)),
    }
}

fn check_window(window: &Window, negotiated: &Negotiated, rcv_nxt: Seq) -> Result<(), InvalidTcp> {
    let limit = 0xffff << negotiated.window_scale.unwrap_or_default().snd;
    for (what, value) in [
        ("snd_wnd", window.snd_wnd),
        ("max_window", window.max_window),
    ] {
        if value > limit {
            return Err(InvalidTcp::WindowAboveScale { what, value, limit });
        }
    }
    // Not held against the scale: the kernel rounds and autotunes rcv_wnd
    // beyond what it can advertise, and clips only the field in the segment.
    if window.rcv_wnd > 1 << 30 {
        return Err(InvalidTcp::RcvWnd(window.rcv_wnd));
    }
    // These three are EINVAL of TCP_REPAIR_WINDOW (tcp_repair_set_window).
    if window.max_window < window.snd_wnd {
        return Err(InvalidTcp::MaxWindow {
            max_window: window.max_window,
            snd_wnd: window.snd_wnd,
        });
    }
    if window.rcv_wup.after(rcv_nxt) {
        return Err(InvalidTcp::RcvWup {
            rcv_wup: window.rcv_wup,
            rcv_nxt,
        });
    }
    let limit = rcv_nxt + window.rcv_wnd;
    if window.snd_wl1.after(limit) {
        return Err(InvalidTcp::SndWl1 {
            snd_wl1: window.snd_wl1,
            limit,
        });
    }
    Ok(())
}

pub(crate) fn check_socket(socket: &SocketOptions) -> Result<(), InvalidTcp> {
    if let Some(bits) = socket.buffer_lock.filter(|bits| bits & !3 != 0) {
        return Err(InvalidTcp::BufferLock(bits));
    }
    // BPF_MAXINSNS in linux/bpf_common.h.
    if let Some(filter) = &socket.filter
        && !(1..=4096).contains(&filter.len())
    {
        return Err(InvalidTcp::Filter(filter.len()));
    }
    // TCP_CA_NAME_MAX is 16 with the terminating zero.
    let valid =
        |name: &str| (1..16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    match &socket.congestion {
        Some(name) if !valid(name) => Err(InvalidTcp::Congestion(name.clone())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
