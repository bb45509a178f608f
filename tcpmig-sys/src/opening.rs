//! Connections that are being opened, in `SYN_SENT`.
//!
//! Their socket is opened again elsewhere with the initial sequence number that it had: for the peer the new SYN is the old
//! one sent again.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::SockAddr;

use crate::error::{Error, NotMigratable, Result};
use crate::frozen::{self, Marks, Snapshot};
use crate::info::{State, counters, info};
use crate::rebuild::{BoundSocket, RestoringSocket};
use crate::sockopt::{self, Queue, Repair};
use crate::uapi::RepairWindow;

/// Refuses a connection that has data in its SYN.
pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<()> {
    let counters = counters(fd)?;
    if counters.data_segs_out > 0 || counters.unacked > 1 {
        return Err(NotMigratable::FastOpen.into());
    }
    Ok(())
}

/// What there is in `SYN_SENT`: a sequence number and a clock.
pub(crate) fn read(fd: BorrowedFd<'_>, marks: Marks) -> Result<Snapshot> {
    let (negotiated, _) = frozen::negotiated(fd)?;
    let microseconds = info(fd)?.timestamps_in_microseconds;
    Ok(Snapshot {
        marks,
        send_queue: Vec::new(),
        unsent: 0,
        receive_queue: Vec::new(),
        window: RepairWindow::default(),
        negotiated,
        // Nothing is agreed on, but the SYN that was sent may have carried it.
        timestamp: Some((sockopt::timestamp(fd)? & !1, microseconds)),
        ended: None,
    })
}

impl BoundSocket {
    /// `connect` with an old initial sequence number, whose SYN is sent into nothing: the lock has to stop it, as all
    /// that this host sends for the connection. The socket is then in `SYN_SENT` and under repair. After
    /// [`RestoringSocket::activate`] and within a second of this call the kernel sends the SYN again.
    ///
    /// `timestamp` is the clock of the timestamp option as in [`Snapshot::timestamp`]. It has to go on: a peer
    /// that has had a SYN drops one with an older stamp. `connect` takes a clock of its own, with which it
    /// judges the peer's echo of the first SYN: that this clock seems to lie 2^31 ticks or less before the echo has
    /// nothing to do with the order of time, so it takes the echo of any clock that is behind this one.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] as [`BoundSocket::connect`]; [`Error::NotAsAsked`] for the initial sequence number 0, with which
    /// the kernel takes one of its own. The socket is closed.
    pub fn open_again(
        self,
        remote: SocketAddr,
        initial: u32,
        timestamp: Option<(u32, bool)>,
    ) -> Result<RestoringSocket> {
        let socket = self.into_socket();
        let fd = socket.as_fd();
        sockopt::set_repair_queue(fd, Queue::Send)?;
        sockopt::set_queue_sequence(fd, initial)?;
        sockopt::set_repair_queue(fd, Queue::None)?;
        sockopt::set_repair(fd, Repair::OffQuiet)?;
        let connected = socket.connect(&SockAddr::from(remote));
        // Also after an error: dropping it is silent only under repair.
        sockopt::set_repair(fd, Repair::On)?;
        match connected {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(Error::new("connect", error)),
            // It cannot be: the peer's answer is as far away as the lock.
            Ok(()) => {}
        }
        let restoring = RestoringSocket::from_socket(socket);
        let fd = restoring.as_fd();
        let marks = frozen::marks(fd)?;
        for (what, asked, got) in [
            (
                "the state",
                State::SynSent.to_string(),
                marks.state.to_string(),
            ),
            (
                "write_seq",
                initial.wrapping_add(1).to_string(),
                marks.write_seq.to_string(),
            ),
        ] {
            if asked != got {
                return Err(Error::NotAsAsked { what, asked, got });
            }
        }
        if let Some((value, microseconds)) = timestamp {
            sockopt::set_timestamp(fd, value & !1 | u32::from(microseconds))?;
        }
        Ok(restoring)
    }
}
