//! Where a connection stands.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::info::{Info, State, tcp_info};
use crate::sockopt::{self, Queue};

/// The numbers that show whether a frozen connection moved on, as the kernel has them: a FIN counts one
/// like a byte, ours in `write_seq` and, once acknowledged, in `snd_una`, the peer's in `rcv_nxt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// The state.
    pub state: State,
    /// Oldest byte that the peer has not acknowledged.
    pub snd_una: u32,
    /// End of what the application wrote, and of the FIN behind it.
    pub write_seq: u32,
    /// Next byte expected from the peer.
    pub rcv_nxt: u32,
}

/// Where a connection stood, to tell later where it stands without asking for each number again.
#[derive(Debug)]
pub(super) struct Stood {
    numbers: Numbers,
    pub(super) info: Info,
}

impl Stood {
    pub(super) fn at(numbers: Numbers, info: Info) -> Self {
        Self { numbers, info }
    }

    /// Where it stands now, as long as it is in repair mode: nothing is written then.
    pub(super) fn now(&self, info: &Info) -> Numbers {
        // Sequence numbers wrap, and so do differences of them.
        let acknowledged = info.bytes_acked.wrapping_sub(self.info.bytes_acked) as u32;
        let received = info.bytes_received.wrapping_sub(self.info.bytes_received) as u32;
        Numbers {
            state: info.state,
            snd_una: self.numbers.snd_una.wrapping_add(acknowledged),
            write_seq: self.numbers.write_seq,
            rcv_nxt: self.numbers.rcv_nxt.wrapping_add(received),
        }
    }

    /// Whether neither end had closed.
    pub(super) fn is_established(&self) -> bool {
        self.numbers.state == State::Established
    }

    /// Whether it stands where it stood then.
    pub(super) fn is_still_there(&self, now: &Numbers) -> bool {
        self.numbers == *now
    }
}

/// How far a connection has come: if two of them differ, it moved on in between.
///
/// Two calls tell it, where [`Numbers`] take seven, so it is what a connection is compared by that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    state: State,
    acknowledged: u64,
    received: u64,
    /// Written and not acknowledged.
    pub(super) waiting: u32,
}

impl Progress {
    /// Whether there was no connection any more (CLOSE).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == State::Close
    }

    pub(super) fn of(fd: BorrowedFd<'_>, info: &Info) -> Result<Self> {
        Ok(Self {
            state: info.state,
            acknowledged: info.bytes_acked,
            received: info.bytes_received,
            waiting: sockopt::send_queue_len(fd)?,
        })
    }
}

pub(super) fn read_numbers(fd: BorrowedFd<'_>) -> Result<Numbers> {
    read_numbers_in(fd, tcp_info(fd)?.state)
}

/// The same in a state that was read just before.
pub(super) fn read_numbers_in(fd: BorrowedFd<'_>, state: State) -> Result<Numbers> {
    sockopt::set_repair_queue(fd, Queue::Receive)?;
    let rcv_nxt = sockopt::queue_sequence(fd)?;
    sockopt::set_repair_queue(fd, Queue::Send)?;
    let write_seq = sockopt::queue_sequence(fd)?;
    let unacknowledged = sockopt::send_queue_len(fd)?;
    sockopt::set_repair_queue(fd, Queue::None)?;
    Ok(Numbers {
        state,
        snd_una: write_seq.wrapping_sub(unacknowledged),
        write_seq,
        rcv_nxt,
    })
}
