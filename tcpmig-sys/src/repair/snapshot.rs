//! What a connection holds.

use std::fmt;
use std::os::fd::BorrowedFd;

use super::numbers::{Numbers, Progress};
use super::queue;
use crate::error::Result;
use crate::info::Info;
use crate::sockopt::{self, Negotiated, Queue};
use crate::uapi::RepairWindow;

/// What a frozen connection holds; sequence numbers as on the wire. The queues hold bytes only: a FIN is
/// told by the state.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Where the connection stands.
    pub numbers: Numbers,
    /// Everything written and not acknowledged, from `snd_una` on.
    pub send_queue: Vec<u8>,
    /// How many bytes at the end of `send_queue` were never sent.
    pub unsent: usize,
    /// Everything received and not read, up to `rcv_nxt` or the FIN before it.
    pub receive_queue: Vec<u8>,
    /// The windows.
    pub window: RepairWindow,
    /// What the handshake negotiated.
    pub negotiated: Negotiated,
    /// The timestamp clock, if the option is in use. In `SYN_SENT` what it showed shortly before the SYN was sent.
    pub timestamp: Option<Clock>,
    /// In CLOSE: how the connection ended.
    pub ended: Option<Ended>,
    /// How far it had come: what [`FrozenSocket::progress`](crate::repair::FrozenSocket::progress) tells for as long as this is the whole of it.
    pub progress: Progress,
}

/// The clock of the timestamp option (RFC 7323).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// What it shows, with bit 0 cleared.
    pub value: u32,
    /// Whether it counts microseconds (Linux 6.7), else milliseconds.
    pub microseconds: bool,
}

/// How a connection in CLOSE ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The error that its application has not been told yet (`SO_ERROR`).
    pub error: Option<i32>,
    /// The peer had closed before it: reading ends in order, and writing tells the error. Without an error
    /// it says nothing.
    pub after_fin: bool,
}

impl Ended {
    /// EPIPE: the peer closed, and then reset the connection.
    pub const BROKEN_PIPE: i32 = libc::EPIPE;
    /// ECONNRESET: the peer reset the connection.
    pub const CONNECTION_RESET: i32 = libc::ECONNRESET;
}

/// For the connection re-created, on this host or another one.
impl Snapshot {
    /// Where its queues begin: for [`BoundSocket::connect`](crate::repair::BoundSocket::connect). Of a connection that neither end
    /// has closed: a FIN counts one in these numbers, and is in no queue.
    #[must_use]
    pub fn queue_start(&self) -> QueueStart {
        // A queue has at most 1 GiB.
        let waiting = self.receive_queue.len() as u32;
        QueueStart {
            snd_una: self.numbers.snd_una,
            copied_seq: self.numbers.rcv_nxt.wrapping_sub(waiting),
        }
    }

    /// The send queue: what was sent and not acknowledged, for
    /// [`fill_send_queue`](crate::repair::RestoringSocket::fill_send_queue), and what was never sent, for
    /// [`write_unsent`](crate::repair::write_unsent) after the activation.
    #[must_use]
    pub fn sent_and_unsent(&self) -> (&[u8], &[u8]) {
        let sent = self.send_queue.len().saturating_sub(self.unsent);
        self.send_queue.split_at(sent)
    }

    /// What [`verify`](crate::repair::RestoringSocket::verify) has to find once both queues are filled: nothing unsent is in
    /// the socket yet. For a connection that neither end has closed.
    #[must_use]
    pub fn rebuilt_numbers(&self) -> Numbers {
        let (sent, _) = self.sent_and_unsent();
        Numbers {
            // A queue has at most 1 GiB.
            write_seq: self.numbers.snd_una.wrapping_add(sent.len() as u32),
            ..self.numbers
        }
    }
}

impl fmt::Debug for Snapshot {
    // The queues are the users' data: lengths only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("numbers", &self.numbers)
            .field("send_queue", &self.send_queue.len())
            .field("unsent", &self.unsent)
            .field("receive_queue", &self.receive_queue.len())
            .field("window", &self.window)
            .field("negotiated", &self.negotiated)
            .field("timestamp", &self.timestamp)
            .field("ended", &self.ended)
            .finish()
    }
}

/// Where the queues of a rebuilt connection begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueStart {
    /// Sequence number of the first byte of the send queue.
    pub snd_una: u32,
    /// Sequence number of the first byte of the receive queue.
    pub copied_seq: u32,
}

/// Both queues and where they stand.
pub(super) struct Queues {
    pub(super) numbers: Numbers,
    pub(super) receive: Vec<u8>,
    pub(super) send: Vec<u8>,
    /// How many bytes at the end of `send` were never sent.
    pub(super) unsent: usize,
}

impl Queues {
    /// `waiting` is what was written and not acknowledged.
    pub(super) fn read(fd: BorrowedFd<'_>, info: &Info, waiting: u32) -> Result<Self> {
        sockopt::set_repair_queue(fd, Queue::Receive)?;
        let rcv_nxt = sockopt::queue_sequence(fd)?;
        let readable = sockopt::receive_queue_len(fd)? as usize;
        let receive = queue::read(fd, "recv(receive queue)", readable)?;
        sockopt::set_repair_queue(fd, Queue::Send)?;
        let write_seq = sockopt::queue_sequence(fd)?;
        // The one place where lengths lose their FIN: it comes last, so what is unsent includes it.
        let fin = u32::from(info.state.fin_unacknowledged());
        let bytes = waiting.saturating_sub(fin) as usize;
        let send = queue::read(fd, "recv(send queue)", bytes)?;
        let unsent = if send.is_empty() {
            0
        } else {
            sockopt::unsent_len(fd)?.saturating_sub(fin) as usize
        };
        sockopt::set_repair_queue(fd, Queue::None)?;
        Ok(Self {
            numbers: Numbers {
                state: info.state,
                snd_una: write_seq.wrapping_sub(waiting),
                write_seq,
                rcv_nxt,
            },
            unsent: unsent.min(send.len()),
            receive,
            send,
        })
    }
}

/// What the handshake negotiated, and the timestamp clock.
pub(super) fn negotiated(fd: BorrowedFd<'_>, info: &Info) -> Result<(Negotiated, Option<Clock>)> {
    let timestamp = if info.timestamps {
        let value = sockopt::timestamp(fd)?;
        Some(Clock {
            value: value & !1,
            microseconds: info.timestamps_in_microseconds,
        })
    } else {
        None
    };
    let negotiated = Negotiated {
        mss_clamp: u16::try_from(sockopt::max_segment(fd)?).unwrap_or(u16::MAX),
        window_scale: info.window_scale,
        sack: info.sack,
        timestamps: info.timestamps,
    };
    Ok((negotiated, timestamp))
}
