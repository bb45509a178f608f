//! Connection states.

use std::fmt;

/// The state of a connection (RFC 9293, section 3.3.2).
///
/// A FIN, sent or received, is told by the state alone: the sequence numbers
/// of an image never count it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TcpState {
    /// Open in both directions.
    Established,
    /// A SYN was sent, nothing has come back.
    SynSent,
    /// A SYN was received and answered, the answer is not acknowledged.
    SynRecv,
    /// This end has closed; its FIN is not acknowledged.
    FinWait1,
    /// This end has closed and the peer has acknowledged it.
    FinWait2,
    /// Both ends have closed; old segments are waited out.
    TimeWait,
    /// No connection: never opened, finished or reset.
    Close,
    /// The peer has closed.
    CloseWait,
    /// The peer has closed, then this end; its FIN is not acknowledged.
    LastAck,
    /// Waiting for connections.
    Listen,
    /// Both ends have closed at once; the FIN of this end is not acknowledged.
    Closing,
}

use TcpState::{
    Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv, SynSent,
    TimeWait,
};

impl TcpState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Established,
        SynSent,
        SynRecv,
        FinWait1,
        FinWait2,
        TimeWait,
        Close,
        CloseWait,
        LastAck,
        Listen,
        Closing,
    ];

    /// The number of the state in an image, which is the one Linux uses
    /// (`include/net/tcp_states.h`): 1 for `Established` to 11 for `Closing`.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8 + 1
    }

    /// The state with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }

    /// Whether both ends know each other's sequence numbers: every state from
    /// `Established` on, but not `Close`.
    #[must_use]
    pub const fn is_synchronized(self) -> bool {
        !matches!(self, Listen | SynSent | SynRecv | Close)
    }

    /// Whether this end has closed: a FIN follows the last byte that it sends.
    #[must_use]
    pub const fn fin_sent(self) -> bool {
        matches!(self, FinWait1 | FinWait2 | Closing | LastAck | TimeWait)
    }

    /// Whether the peer has closed: its FIN was received after the last byte.
    #[must_use]
    pub const fn fin_received(self) -> bool {
        matches!(self, CloseWait | LastAck | Closing | TimeWait)
    }

    /// The name in RFC 9293, which is how FORMAT.md writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Established => "ESTABLISHED",
            SynSent => "SYN-SENT",
            SynRecv => "SYN-RECEIVED",
            FinWait1 => "FIN-WAIT-1",
            FinWait2 => "FIN-WAIT-2",
            TimeWait => "TIME-WAIT",
            Close => "CLOSED",
            CloseWait => "CLOSE-WAIT",
            LastAck => "LAST-ACK",
            Listen => "LISTEN",
            Closing => "CLOSING",
        }
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_linux() {
        for (index, state) in TcpState::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state.number()), index + 1);
            assert_eq!(TcpState::from_number(state.number()), Some(state));
        }
        assert_eq!(Established.number(), 1);
        assert_eq!(Close.number(), 7);
        assert_eq!(Closing.number(), 11);
        assert_eq!(TcpState::from_number(0), None);
        assert_eq!(TcpState::from_number(12), None);
    }
}
