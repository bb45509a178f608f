//! The states of a connection.

use std::fmt;

/// The state of a connection (RFC 9293 section 3.3.2), with the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynReceived = 12,
}

impl State {
    /// The state with this number of the kernel's `include/net/tcp_states.h`.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynReceived,
            _ => return None,
        })
    }

    /// Whether a connection in this state can be rebuilt by
    /// [`RestoringSocket::enter_state`](crate::repair::RestoringSocket::enter_state): both ends know each other, and it has not ended.
    /// What is being opened (`SYN_SENT`) and what has ended (CLOSE) is rebuilt in other ways.
    #[must_use]
    pub fn is_movable(self) -> bool {
        use State::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
        matches!(
            self,
            Established | FinWait1 | FinWait2 | CloseWait | LastAck | Closing
        )
    }

    /// Whether this end has sent, or is about to send, a FIN that the peer has not acknowledged. It counts
    /// one in `write_seq`, `SIOCOUTQ` and, until it is sent, `SIOCOUTQNSD`.
    #[must_use]
    pub fn fin_unacknowledged(self) -> bool {
        matches!(self, Self::FinWait1 | Self::LastAck | Self::Closing)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynReceived | Self::NewSynReceived => "SYN_RECEIVED",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
        })
    }
}
