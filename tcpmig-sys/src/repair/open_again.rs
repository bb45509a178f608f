//! Connections that are being opened, re-created.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use super::mute::Mute;
use super::numbers::read_numbers;
use super::rebuild::{BoundSocket, RestoringSocket, set_clock};
use super::snapshot::Clock;
use crate::ends::Ends;
use crate::error::{Error, Result};
use crate::info::State;
use crate::sockets;
use crate::sockopt::{self, Queue, Repair};

/// Until then a clock that was set that much earlier is past the time that it stands for.
const PAST: Duration = Duration::from_millis(100);

impl BoundSocket {
    /// `connect` with an old initial sequence number, whose SYN is sent into nothing: the lock has to stop it, as all
    /// that this host sends for the connection. The socket is then in `SYN_SENT` and in repair mode. After
    /// [`RestoringSocket::activate`] and within a second of this call the kernel sends the SYN again.
    ///
    /// `timestamp` is the clock of the timestamp option as in [`Snapshot::timestamp`](crate::repair::Snapshot::timestamp): what it showed shortly before the old
    /// SYN left. If the peer has answered that, it answers again and echoes its stamp, and an echo from before this
    /// call, or from a time that the clock has not reached, makes the kernel reset the peer's half of the handshake
    /// (`tcp_rcv_synsent_state_process`) and then open anew. So this waits until the clock is past it. The new SYN,
    /// a second later, has a later stamp, without which the peer would drop it. If the old SYN was sent several times, the
    /// clock is that of the first (before Linux 6.7 as far as the timeouts tell), and a peer that has answered can be reset; no application
    /// sees it.
    ///
    /// The scale of the windows, which the peer may know from the old SYN, is what this host chooses. Where
    /// `net.ipv4.tcp_rmem` differs, the peer counts with another: windows are too small, or it sends too much and again.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] as [`BoundSocket::connect`]; [`Error::NotAsAsked`] for the initial sequence number 0, with which
    /// the kernel takes one of its own. The socket is closed.
    pub fn open_again(
        self,
        remote: SocketAddr,
        initial: u32,
        timestamp: Option<Clock>,
    ) -> Result<RestoringSocket> {
        let (socket, namespace, local) = self.into_parts();
        let fd = socket.as_fd();
        let mute = Mute::before_connect(fd, &remote)?;
        sockopt::set_repair_queue(fd, Queue::Send)?;
        sockopt::set_queue_sequence(fd, initial)?;
        sockopt::set_repair_queue(fd, Queue::None)?;
        // With one that the kernel takes the place of, it also takes a sequence number after that one's.
        sockets::clear(&socket, remote);
        sockopt::set_repair(fd, Repair::OffQuiet)?;
        let connected = sockets::connect(&socket, remote);
        // Also after an error: dropping it is silent only in repair mode.
        sockopt::set_repair(fd, Repair::On)?;
        match connected {
            Err(error) if error.errno() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
            // It cannot be: the peer's answer is as far away as the lock.
            Ok(()) => {}
        }
        mute.connected(fd)?;
        let restoring =
            RestoringSocket::from_socket(socket, namespace, Ends { local, remote }, mute);
        let fd = restoring.as_fd();
        let numbers = read_numbers(fd)?;
        for (what, asked, got) in [
            (
                "the state",
                State::SynSent.to_string(),
                numbers.state.to_string(),
            ),
            (
                "write_seq",
                initial.wrapping_add(1).to_string(),
                numbers.write_seq.to_string(),
            ),
        ] {
            if asked != got {
                return Err(Error::NotAsAsked { what, asked, got });
            }
        }
        if let Some(clock) = timestamp {
            set_clock(fd, clock)?;
            std::thread::sleep(PAST);
        }
        Ok(restoring)
    }
}
