//! Connections that have ended, in CLOSE: unread octets, and an error that the application has not been told.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::closing::{Step, Tries};
use crate::error::{Error, NotMigratable, Result};
use crate::frozen::{self, FrozenSocket, Marks, Progress, Snapshot};
use crate::info::{State, counters, info};
use crate::inject::Injector;
use crate::rebuild::{BoundSocket, QueueStart, RestoringSocket};
use crate::sockets::Lookup;
use crate::sockopt::{self, Queue};
use crate::uapi::RepairWindow;
use crate::{queue, raw};

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

/// Refuses a socket in CLOSE that has had no connection, and one whose pending error could not be put back, because
/// another connection has its addresses and ports by now. The thread has to be in the network namespace of the socket.
pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<()> {
    let never = || Err(NotMigratable::State(State::Close).into());
    match peer_name(fd) {
        Ok(_) => {}
        Err(error) if error.errno() == Some(libc::ENOTCONN) => return never(),
        Err(error) => return Err(error),
    }
    // One that was refused, or never answered, has an address too.
    let counters = counters(fd)?;
    if !counters.options_agreed && counters.delivered == 0 && counters.segs_in < 2 {
        return never();
    }
    if has_error(fd)? {
        let (local, remote) = frozen::addresses(fd)?;
        if Lookup::new()?.find(local, remote)?.is_some() {
            return Err(NotMigratable::PortsInUse.into());
        }
    }
    Ok(())
}

/// Whether an error waits for the application. POLLHUP is none: `LAST_ACK` and CLOSING have it.
pub(crate) fn has_error(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).map_err(|e| Error::new("poll(POLLERR)", e.into()))?;
    let is_error = |events: PollFlags| events.contains(PollFlags::POLLERR);
    Ok(polled[0].revents().is_some_and(is_error))
}

/// `getsockopt(fd, SO_PEERNAME)`, which tells the address in every state, as long as the socket has one.
pub(crate) fn peer_name(fd: BorrowedFd<'_>) -> Result<SocketAddr> {
    const CALL: &str = "getsockopt(SO_PEERNAME)";
    // The kernel refuses a buffer that is longer than the address.
    let v6 = sockopt::domain(fd)? == libc::AF_INET6;
    let mut octets = [0_u8; 28];
    let len = if v6 { 28 } else { 16 };
    let got = raw::get_octets(
        fd,
        libc::SOL_SOCKET,
        libc::SO_PEERNAME,
        CALL,
        &mut octets[..len],
    )?;
    if got != len {
        return Err(Error::Length {
            call: CALL,
            got,
            expected: len,
        });
    }
    // `struct sockaddr_in` and `sockaddr_in6`: family, port, then address or flow information, address and scope.
    let port = u16::from_be_bytes([octets[2], octets[3]]);
    let word = |at: usize| [octets[at], octets[at + 1], octets[at + 2], octets[at + 3]];
    if !v6 {
        return Ok(SocketAddrV4::new(Ipv4Addr::from(word(4)), port).into());
    }
    let mut address = [0; 16];
    address.copy_from_slice(&octets[8..24]);
    let scope = u32::from_ne_bytes(word(24));
    Ok(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
}

impl FrozenSocket {
    /// As [`FrozenSocket::read`], in CLOSE.
    pub(crate) fn read_ended(&self, marks: Marks, progress: Progress) -> Result<Snapshot> {
        let fd = self.as_fd();
        let receive_queue = unread(fd)?;
        let ended = match self.ended.get() {
            Some(ended) => *ended,
            None => {
                let ended = take(fd)?;
                *self.ended.get_or_init(|| ended)
            }
        };
        let (negotiated, timestamp) = frozen::negotiated(fd, &info(fd)?)?;
        Ok(Snapshot {
            marks,
            send_queue: Vec::new(),
            unsent: 0,
            receive_queue,
            window: RepairWindow::default(),
            negotiated,
            timestamp,
            ended: Some(ended),
            progress,
        })
    }
}

fn unread(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    // Also if nothing is unread: what follows looks past it.
    queue::peek_from_start(fd)?;
    sockopt::set_repair_queue(fd, Queue::Receive)?;
    let readable = sockopt::receive_queue_len(fd)? as usize;
    let octets = queue::read(fd, "recv(receive queue)", readable);
    sockopt::set_repair_queue(fd, Queue::None)?;
    octets
}

/// Takes the pending error, if there is one: no call shows it and leaves it.
fn take(fd: BorrowedFd<'_>) -> Result<Ended> {
    let in_order = Ended {
        error: None,
        after_fin: true,
    };
    if !has_error(fd)? {
        return Ok(in_order);
    }
    // Not without the means to put it back.
    Injector::open(fd)?.check_local(0)?;
    let shown = look_past(fd)?;
    if let Shown::Taken(error) = shown {
        return Ok(Ended {
            error: Some(error),
            after_fin: false,
        });
    }
    let error = sockopt::take_error(fd)?.and_then(|error| error.raw_os_error());
    Ok(match error {
        // Something else was reported: the error queue, for instance.
        None => in_order,
        Some(error) => Ended {
            error: Some(error),
            after_fin: matches!(shown, Shown::End) || error == libc::EPIPE,
        },
    })
}

/// What an application would be told once it has read all octets.
enum Shown {
    /// The end: the peer had closed.
    End,
    /// The pending error, which was taken by looking.
    Taken(i32),
    /// The pending error, which is still there.
    Error,
}

/// Two counts of the receive queue differ by the FIN: `TCP_INQ` includes it, and is never 0 once there was one; `SIOCINQ`
/// leaves it out (`tcp_inq_hint` and `tcp_inq` of the kernel). A peek behind the octets would say it as well, but the offset
/// for it came with Linux 6.9.
fn look_past(fd: BorrowedFd<'_>) -> Result<Shown> {
    let asked = sockopt::inq(fd)?;
    sockopt::set_inq(fd, true)?;
    sockopt::set_repair_queue(fd, Queue::Receive)?;
    let with_fin = raw::peek_inq(fd);
    sockopt::set_repair_queue(fd, Queue::None)?;
    sockopt::set_inq(fd, asked)?;
    let without = sockopt::receive_queue_len(fd)?;
    match with_fin {
        Ok(Some(with_fin)) if with_fin.unsigned_abs() > without => Ok(Shown::End),
        Ok(_) => Ok(Shown::Error),
        Err(error) => match error.raw_os_error() {
            Some(number) => Ok(Shown::Taken(number)),
            None => Err(Error::new("recvmsg(MSG_PEEK)", error)),
        },
    }
}

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
    /// What the peer did is done again by segments in its name, as in [`RestoringSocket::reach`], which says what they
    /// need. The kernel makes two errors of them, ECONNRESET and EPIPE: any other becomes ECONNRESET.
    /// Nothing is sent at activation.
    ///
    /// # Errors
    ///
    /// As [`RestoringSocket::reach`].
    pub fn end(&mut self, ended: Ended, mark: u32) -> Result<()> {
        self.walk(steps(ended), &[], Tries::locked(mark))?;
        self.ended = true;
        Ok(())
    }
}

/// Lets a socket under repair end again as it had, after its error was taken.
///
/// If that fails, its error is ECONNABORTED and its octets are lost: better than octets that seem to be
/// all there were.
pub(crate) fn put_back(fd: BorrowedFd<'_>, ended: Ended) -> Result<()> {
    if ended.error.is_none() {
        return Ok(());
    }
    let done = again(fd, ended);
    if done.is_err() {
        // Under repair it leaves ECONNABORTED.
        raw::disconnect(fd)?;
    }
    done
}

fn again(fd: BorrowedFd<'_>, ended: Ended) -> Result<()> {
    let (local, remote) = frozen::addresses(fd)?;
    let octets = unread(fd)?;
    let marks = frozen::marks(fd)?;
    let (mut negotiated, _) = frozen::negotiated(fd, &info(fd)?)?;
    // The socket remembers the peer's last one, behind which the segments below would be.
    negotiated.timestamps = false;
    let twin = fd
        .try_clone_to_owned()
        .map_err(|e| Error::new("fcntl(F_DUPFD_CLOEXEC)", e))?;
    raw::disconnect(fd)?;
    // That was an error too.
    sockopt::take_error(fd)?;
    let bound = BoundSocket::again(Socket::from(twin), local)?;
    let end = marks.rcv_nxt.wrapping_sub(u32::from(ended.after_fin));
    let start = QueueStart {
        // The last of its numbers is the FIN's, if there was one.
        snd_una: marks.write_seq.wrapping_sub(1),
        copied_seq: end.wrapping_sub(octets.len() as u32),
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
        .and_then(|()| socket.fill_receive_queue(&octets))
        .and_then(|()| socket.walk(steps(ended), &[], tries));
    let unmuted = socket.unmute();
    made.map(drop).and(unmuted)?;
    socket.release();
    Ok(())
}

impl BoundSocket {
    /// A socket under repair that had a connection, with the local address that it had.
    fn again(socket: Socket, local: SocketAddr) -> Result<Self> {
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
        Ok(Self::from_socket(socket))
    }
}
