//! Connecting a socket whose four-tuple may be taken.

use std::net::SocketAddr;

use socket2::{SockAddr, Socket};

use super::{Lookup, Occupant};
use crate::error::{Error, Result};
use crate::info::State;
use crate::seam;

/// `connect`, whose error says what has the four-tuple.
///
/// What is in `TIME_WAIT` gives way, as the kernel itself lets it if it had timestamps: the connection that is to be here lives
/// elsewhere with numbers of its own, so that the peer has forgotten the earlier one, and nothing waits for its end.
pub(crate) fn connect(socket: &Socket, remote: SocketAddr) -> Result<()> {
    let failed = |source| Error::new("connect", source);
    let connect = || {
        seam::announce("connect")?;
        socket.connect(&SockAddr::from(remote))
    };
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
