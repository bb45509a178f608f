//! What has the addresses and ports of a connection that is to be here.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockAddr, Socket};

use super::Lookup;
use crate::error::{Error, Result};
use crate::info::State;

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

/// `connect`, whose error says what has the four-tuple.
///
/// What is in `TIME_WAIT` gives way, as the kernel itself lets it if it had timestamps: the connection that is to be here lives
/// elsewhere with numbers of its own, so that the peer has forgotten the earlier one, and nothing waits for its end.
pub(crate) fn connect(socket: &Socket, remote: SocketAddr) -> Result<()> {
    let failed = |source| Error::new("connect", source);
    let connect = || socket.connect(&SockAddr::from(remote));
    let error = match connect() {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => error,
        other => return other.map_err(failed),
    };
    // What cannot be found out does not hide the error.
    let Ok((lookup, Some(occupant))) = occupant(socket, remote) else {
        return Err(failed(error));
    };
    if occupant.state == State::TimeWait && lookup.end(&occupant).is_ok() {
        return connect().map_err(failed);
    }
    Err(Error::Occupied { occupant })
}

/// Ends what is in `TIME_WAIT` with the four-tuple of a socket that is to be connected, as far as this kernel can.
pub(crate) fn clear(socket: &Socket, remote: SocketAddr) {
    if let Ok((lookup, Some(occupant))) = occupant(socket, remote)
        && occupant.state == State::TimeWait
    {
        // Not every kernel can: `connect` shows it.
        let _ = lookup.end(&occupant);
    }
}

fn occupant(socket: &Socket, remote: SocketAddr) -> Result<(Lookup, Option<Occupant>)> {
    let local = socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket());
    let lookup = Lookup::new()?;
    let found = match local {
        Some(local) => lookup.occupant(local, remote)?,
        None => None,
    };
    Ok((lookup, found))
}
