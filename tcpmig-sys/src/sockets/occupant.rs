//! What has the addresses and ports of a connection that is to be here.

use std::fmt;
use std::time::Duration;

use crate::state::State;

/// A connection of this host, or what is left of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Occupant {
    /// Its state.
    pub state: State,
    /// Whether a process has its socket. None has that of a connection that is being accepted, or is closed.
    pub owned: bool,
    /// How long it stays at most, if the kernel tells: in `TIME_WAIT`, or where nobody waits for its end.
    pub stays: Option<Duration>,
    /// How the kernel calls it: its family and `struct inet_diag_sockid`.
    pub(crate) id: (u8, [u8; 48]),
}

impl Occupant {
    fn is_closed(&self) -> bool {
        use State::{Closing, FinWait1, FinWait2, LastAck};
        !self.owned && matches!(self.state, FinWait1 | FinWait2 | Closing | LastAck)
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SAME: &str = "a connection with these addresses and ports";
        match self.state {
            State::TimeWait => write!(f, "{SAME} has ended on this host and is in TIME_WAIT")?,
            State::SynReceived | State::NewSynReceived => {
                return write!(
                    f,
                    "the handshake of {SAME} is under way on this host (SYN_RECEIVED)"
                );
            }
            state if self.is_closed() => write!(
                f,
                "{SAME} is closed on this host, but the peer has not agreed yet ({state})"
            )?,
            state => return write!(f, "{SAME} lives here already, in {state}"),
        }
        match self.stays {
            Some(time) => write!(
                f,
                ", for another {} s: wait, or end it with `ss -K`",
                time.as_secs() + 1
            ),
            None => f.write_str(": wait, or end it with `ss -K`"),
        }
    }
}
