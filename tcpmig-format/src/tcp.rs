//! The transport layer of a connection.

use std::fmt;

use crate::{InvalidTcp, SecretBytes, Seq, SocketOptions, TcpState};

/// The transport layer of a connection, free of contradictions.
///
/// It is made from [`TcpParts`] by [`TcpImage::new`], read through the getters
/// and changed by taking the parts out and checking them again.
///
/// ```
/// use tcpmig_format::*;
///
/// let parts = TcpParts {
///     state: TcpState::Established,
///     send: SendSpace {
///         snd_una: Seq::new(1_000),
///         sent: SecretBytes::from(&b"on the way"[..]),
///         unsent: SecretBytes::from(&b"not yet"[..]),
///     },
///     receive: ReceiveSpace { rcv_nxt: Seq::new(77), ..ReceiveSpace::default() },
///     negotiated: Negotiated { mss_clamp: 1460, ..Negotiated::default() },
///     window: Window {
///         snd_wl1: Seq::new(77),
///         snd_wnd: 64_000,
///         max_window: 64_000,
///         rcv_wnd: 65_535,
///         rcv_wup: Seq::new(77),
///     },
///     socket: SocketOptions::default(),
///     pending_error: None,
/// };
/// let tcp = TcpImage::new(parts)?;
/// assert_eq!(tcp.send().snd_nxt(), Seq::new(1_010));
/// assert_eq!(tcp.send().write_seq(), Seq::new(1_017));
/// # Ok::<(), InvalidTcp>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpImage(TcpParts);

/// The parts of a [`TcpImage`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpParts {
    /// The state; the only place that tells of a SYN or FIN.
    pub state: TcpState,
    /// What this end sends.
    pub send: SendSpace,
    /// What this end receives.
    pub receive: ReceiveSpace,
    /// What both ends agreed on.
    pub negotiated: Negotiated,
    /// The windows.
    pub window: Window,
    /// The socket options.
    pub socket: SocketOptions,
    /// In CLOSED alone: how the connection broke, if the application has not been told yet. Without it the
    /// connection ended in order.
    pub pending_error: Option<PendingError>,
}

/// The error that the application gets at one of its next calls (`SO_ERROR`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingError {
    /// The error, with its number in Linux's `asm-generic/errno.h`: 104 is ECONNRESET, 32 EPIPE, 110 ETIMEDOUT.
    pub errno: u16,
    /// Whether the peer's FIN came before it: then reading ends in order and writing tells the error.
    pub after_fin: bool,
}

impl PendingError {
    /// The peer reset the connection (ECONNRESET).
    pub const CONNECTION_RESET: u16 = 104;
    /// The peer closed, and then reset the connection (EPIPE).
    pub const BROKEN_PIPE: u16 = 32;
}

/// Send sequence space: bytes from `snd_una` on that the peer has not
/// acknowledged or not been sent.
///
/// A SYN or FIN is not counted: `snd_una` is the number of a byte of data
/// (in SYN-SENT the initial sequence number plus 1), and in a state with a FIN
/// sent the FIN has the number [`write_seq`](SendSpace::write_seq).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SendSpace {
    /// The oldest byte that is not acknowledged.
    pub snd_una: Seq,
    /// Bytes sent and not acknowledged, the first one numbered `snd_una`.
    pub sent: SecretBytes,
    /// Bytes that the application has written and TCP has not sent.
    pub unsent: SecretBytes,
}

/// Receive sequence space: bytes up to `rcv_nxt` that are acknowledged to the
/// peer and not read by the application. A SYN or FIN is not counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReceiveSpace {
    /// The next byte expected.
    pub rcv_nxt: Seq,
    /// Bytes received in order and not read, the last one numbered `rcv_nxt` - 1.
    pub queue: SecretBytes,
}

/// What both ends agreed on when the connection was opened.
///
/// The default is a connection without TCP options: 536 bytes per segment
/// (RFC 9293, section 3.7.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Largest segment that the peer takes, in bytes, as repair mode reads it.
    pub mss_clamp: u16,
    /// Window scaling (RFC 7323), if both ends use it.
    pub window_scale: Option<WindowScale>,
    /// Whether selective acknowledgements (RFC 2018) are permitted.
    pub sack: bool,
    /// Timestamps (RFC 7323), if both ends use them.
    pub timestamps: Option<Timestamps>,
}

/// Shift counts of the windows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WindowScale {
    /// Applied to windows that the peer advertises.
    pub snd: u8,
    /// Applied to windows that this end advertises.
    pub rcv: u8,
}

/// The timestamp clock of this end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timestamps {
    /// What the clock of the connection showed when the image was taken.
    pub value: u32,
    /// How long a tick of the clock is.
    pub unit: TimestampUnit,
}

/// Length of a tick of a timestamp clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum TimestampUnit {
    /// One millisecond.
    #[default]
    Milliseconds,
    /// One microsecond (`TCPI_OPT_USEC_TS`).
    Microseconds,
}

impl TimestampUnit {
    /// Every unit.
    pub const ALL: [Self; 2] = [Self::Milliseconds, Self::Microseconds];

    /// Its name in an image: `ms` or `us`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "us",
        }
    }

    /// The unit with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.name() == name)
    }
}

/// Its name in an image.
impl fmt::Display for TimestampUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The windows, in bytes, unscaled, by their names in the kernel
/// (`struct tcp_repair_window`).
///
/// Like all sequence numbers of an image they do not count a FIN: where the
/// peer's FIN was received, `rcv_wup` and `snd_wl1` can be one less than the
/// kernel reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Sequence number of the segment that last changed `snd_wnd`.
    pub snd_wl1: Seq,
    /// What the peer is ready to receive, from `snd_una` on.
    pub snd_wnd: u32,
    /// The largest `snd_wnd` there was.
    pub max_window: u32,
    /// What this end last advertised, from `rcv_wup` on.
    pub rcv_wnd: u32,
    /// `rcv_nxt` when the window was last advertised.
    pub rcv_wup: Seq,
}

/// Length of a queue as a distance of sequence numbers. Checked queues are at
/// most [`MAX_BYTES`](crate::MAX_BYTES) long; before the check the
/// conversion wraps, as sequence numbers do.
const fn length(queue: usize) -> u32 {
    queue as u32
}

impl SendSpace {
    /// The next byte to send.
    #[must_use]
    pub fn snd_nxt(&self) -> Seq {
        self.snd_una + length(self.sent.len())
    }

    /// The next byte that the application writes.
    #[must_use]
    pub fn write_seq(&self) -> Seq {
        self.snd_nxt() + length(self.unsent.len())
    }
}

impl ReceiveSpace {
    /// The next byte that the application reads.
    #[must_use]
    pub fn copied_seq(&self) -> Seq {
        self.rcv_nxt - length(self.queue.len())
    }
}

impl Default for Negotiated {
    fn default() -> Self {
        Self {
            mss_clamp: 536,
            window_scale: None,
            sack: false,
            timestamps: None,
        }
    }
}

impl TcpImage {
    /// The transport layer of these parts.
    ///
    /// # Errors
    ///
    /// [`InvalidTcp`], the first contradiction found.
    pub fn new(parts: TcpParts) -> Result<Self, InvalidTcp> {
        crate::check::check(&parts)?;
        Ok(Self(parts))
    }

    /// All parts.
    #[must_use]
    pub fn parts(&self) -> &TcpParts {
        &self.0
    }

    /// All parts, to be changed and checked again.
    #[must_use]
    pub fn into_parts(self) -> TcpParts {
        self.0
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> TcpState {
        self.0.state
    }

    /// What this end sends.
    #[must_use]
    pub fn send(&self) -> &SendSpace {
        &self.0.send
    }

    /// What this end receives.
    #[must_use]
    pub fn receive(&self) -> &ReceiveSpace {
        &self.0.receive
    }

    /// What both ends agreed on.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.0.negotiated
    }

    /// The windows.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.0.window
    }

    /// The socket options.
    #[must_use]
    pub fn socket(&self) -> &SocketOptions {
        &self.0.socket
    }

    /// How a connection in CLOSED broke.
    #[must_use]
    pub fn pending_error(&self) -> Option<PendingError> {
        self.0.pending_error
    }
}
