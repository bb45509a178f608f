//! Connections re-created that have ended, and the error of one put back that was taken to be read.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use socket2::Socket;

use super::closing::{Step, Tries};
use super::ended;
use super::numbers::read_numbers;
use super::rebuild::{BoundSocket, RestoringSocket};
use super::snapshot::{self, Ended, QueueStart};
use crate::ends::Ends;
use crate::error::{Error, Result};
use crate::info::{State, tcp_info};
use crate::raw;
use crate::sockopt;

/// The way from ESTABLISHED to the end.
fn steps(ended: Ended) -> &'static [Step] {
    use Step::{Fin, PeerAck, PeerFin, PeerReset};

    match ended.error {
        None => &[PeerFin(State::CloseWait), Fin, PeerAck(State::Close)],
        // A reset in CLOSE_WAIT makes EPIPE, in any other state ECONNRESET.
        Some(libc::EPIPE) => &[PeerFin(State::CloseWait), PeerReset],
        Some(_) if ended.after_fin => &[PeerFin(State::CloseWait), Fin, PeerReset],
        Some(_) => &[PeerReset],
    }
}

impl RestoringSocket {
    /// Ends the connection as one in CLOSE has ended, after the receive queue is filled.
    ///
    /// What the peer did is done again by segments in its name, as in [`RestoringSocket::enter_state`], which says what they
    /// need. The kernel makes two errors of them, ECONNRESET and EPIPE: any other becomes ECONNRESET.
    /// Nothing is sent at activation.
    ///
    /// # Errors
    ///
    /// Those of [`RestoringSocket::enter_state`].
    pub fn restore_closed(&mut self, ended: Ended, mark: u32) -> Result<()> {
        self.walk(steps(ended), &[], Tries::locked(mark))?;
        self.ended = true;
        Ok(())
    }
}

/// Lets a socket in repair mode end again as it had, after its error was taken.
///
/// If that fails, its error is ECONNABORTED and its bytes are lost: better than bytes that seem to be
/// all there were.
pub(super) fn put_back(fd: BorrowedFd<'_>, ended: Ended) -> Result<()> {
    if ended.error.is_none() {
        return Ok(());
    }
    let done = end_once_more(fd, ended);
    if done.is_err() {
        // In repair mode it leaves ECONNABORTED.
        raw::disconnect(fd)?;
    }
    done
}

fn end_once_more(fd: BorrowedFd<'_>, ended: Ended) -> Result<()> {
    let Ends { local, remote } = Ends::of(fd)?;
    let bytes = ended::unread(fd)?;
    let numbers = read_numbers(fd)?;
    let (mut negotiated, _) = snapshot::negotiated(fd, &tcp_info(fd)?)?;
    // The socket remembers the peer's last one, behind which the segments below would be.
    negotiated.timestamps = false;
    let twin = fd
        .try_clone_to_owned()
        .map_err(|e| Error::new("fcntl(F_DUPFD_CLOEXEC)", e))?;
    raw::disconnect(fd)?;
    // That was an error too.
    sockopt::take_error(fd)?;
    let bound = BoundSocket::reuse(Socket::from(twin), local)?;
    let end = numbers.rcv_nxt.wrapping_sub(u32::from(ended.after_fin));
    let start = QueueStart {
        // The last of its numbers is the FIN's, if there was one.
        snd_una: numbers.write_seq.wrapping_sub(1),
        copied_seq: end.wrapping_sub(bytes.len() as u32),
    };
    let mut socket = bound.connect(remote, start, negotiated.mss_clamp)?;
    // The packets may be unlocked already. Until it has ended it is mute: between two steps of a slow machine the timer of
    // a delayed acknowledgement may run out.
    let tries = Tries {
        mark: 0,
        quiet_first: true,
    };
    let made = socket
        .negotiated(&negotiated, None)
        .and_then(|()| socket.fill_receive_queue(&bytes))
        .and_then(|()| socket.walk(steps(ended), &[], tries));
    let unmuted = socket.unmute();
    made.map(drop).and(unmuted)?;
    socket.release();
    Ok(())
}

impl BoundSocket {
    /// A socket in repair mode that had a connection, with the local address that it had.
    fn reuse(socket: Socket, local: SocketAddr) -> Result<Self> {
        match socket.bind(&local.into()) {
            Ok(()) => {}
            // It was bound by its application, and is still.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let has = socket.local_addr().ok().and_then(|a| a.as_socket());
                if has != Some(local) {
                    return Err(Error::new("bind", error));
                }
            }
            Err(error) => return Err(Error::new("bind", error)),
        }
        Ok(Self::from_socket(socket, local))
    }
}
