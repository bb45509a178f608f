//! A live connection put into repair mode, to be read and then given up or kept.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::check::{check, is_in_repair_mode};
use super::ended;
use super::ending;
use super::mute::{self, Mute};
use super::numbers::{Numbers, Progress, read_numbers};
use super::opening;
use super::probes::wake_up;
use super::snapshot::{Ended, Queues, Snapshot, negotiated};
use super::timers::Timers;
use super::waiting::refuse_urgent;
use crate::error::{Error, NotMigratable, Result};
use crate::info::{Info, State, tcp_info};
use crate::raw;
use crate::sockopt::{self, Repair};

/// A connection in repair mode that lives on here when this is dropped.
///
/// While it is frozen its application gets EPERM from `recv` and EINVAL from `send`, on
/// every duplicate of the descriptor, and it is [mute]: nothing arrives and nothing is
/// sent. A packet that was on its way through this host when it was frozen can still have
/// been taken, so whoever freezes a connection keeps its packets away first and compares
/// [`FrozenSocket::progress`] with that of the snapshot before giving it up.
///
/// [`FrozenSocket::thaw`] and dropping switch repair off with a probe, an old
/// ACK that makes the peer answer with its acknowledgement and window, and with segments that do the same where it would not
/// answer that.
/// [`FrozenSocket::discard`] ends the connection without a packet.
#[must_use = "dropping thaws the connection"]
pub struct FrozenSocket {
    // `None` only inside `thaw` and `discard`, which take it out.
    fd: Option<OwnedFd>,
    reuse_addr: i32,
    /// What was taken from a connection in CLOSE to be read.
    ended: OnceLock<Ended>,
    still: Still,
}

/// What keeps a frozen connection as it is; nothing of one that has ended.
#[derive(Debug, Default)]
struct Still {
    mute: Option<Mute>,
    timers: Option<Timers>,
}

impl Still {
    /// After an error the socket is as it was.
    fn stand(fd: BorrowedFd<'_>, info: &Info, reuse_addr: bool) -> Result<Self> {
        if info.state == State::Close {
            return Ok(Self::default());
        }
        let mute = Mute::socket(fd)?;
        match Timers::hold(fd, info, reuse_addr) {
            Ok(timers) => Ok(Self {
                mute: Some(mute),
                timers: Some(timers),
            }),
            Err(error) => {
                mute.lift(fd)?;
                Err(error)
            }
        }
    }

    /// Of a socket that has no connection any more.
    fn leave(mut self, fd: BorrowedFd<'_>) {
        let _ = self.unmute(fd);
        let _ = self.timers.map_or(Ok(()), |timers| timers.put_back(fd));
    }

    fn unmute(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.mute.take().map_or(Ok(()), |mute| mute.lift(fd))
    }
}

/// A failed [`FrozenSocket::freeze`]: the reason, and the descriptor back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct FreezeError {
    /// The descriptor, in use as before.
    pub fd: OwnedFd,
    /// Why.
    #[source]
    pub error: Error,
}

impl FrozenSocket {
    /// Puts a connection into repair mode.
    ///
    /// Lock its packets first. From here on the connection is mute. Needs `CAP_NET_ADMIN` in the user namespace that
    /// owns the socket's network namespace, and Linux 4.19.
    ///
    /// # Errors
    ///
    /// [`FreezeError`] with the descriptor, which goes on as before.
    pub fn freeze(fd: OwnedFd) -> Result<Self, FreezeError> {
        let begin = |fd: BorrowedFd<'_>| {
            let info = check(fd)?;
            let reuse_addr = sockopt::reuse_addr(fd)?;
            sockopt::set_repair(fd, Repair::On)?;
            // Before anything of the connection is read.
            let still = Still::stand(fd, &info, reuse_addr != 0).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = sockopt::set_repair(fd, Repair::OffQuiet);
                let _ = sockopt::set_reuse_addr(fd, reuse_addr);
            })?;
            Ok((reuse_addr, still))
        };
        let begun = begin(fd.as_fd());
        Self::of(fd, begun)
    }

    fn of(fd: OwnedFd, begun: Result<(i32, Still)>) -> Result<Self, FreezeError> {
        match begun {
            Ok((reuse_addr, still)) => Ok(Self {
                fd: Some(fd),
                reuse_addr,
                ended: OnceLock::new(),
                still,
            }),
            Err(error) => Err(FreezeError { fd, error }),
        }
    }

    /// Takes a connection that its holder left in repair mode, for instance because it was killed, to [thaw](Self::thaw) it.
    ///
    /// `SO_REUSEADDR`, keepalive and `TCP_USER_TIMEOUT` are put back as they were, the last up to three days (ten minutes with
    /// timestamps in microseconds), if this library froze it. Lost are a number of SYNs (`TCP_SYNCNT`), a pending error
    /// in CLOSE, and a filter on a kernel without XFRM. A socket that somebody else put into repair mode
    /// leaves it too.
    ///
    /// Make sure that its holder is gone: what it is doing with the socket would fail.
    ///
    /// # Errors
    ///
    /// [`FreezeError`] with the descriptor: [`NotMigratable::NotTcp`], [`Error::NotInRepairMode`], or a call that failed.
    pub fn left_behind(fd: OwnedFd) -> Result<Self, FreezeError> {
        let find = |fd: BorrowedFd<'_>| {
            if !is_in_repair_mode(fd)? {
                return Err(Error::NotInRepairMode);
            }
            let info = tcp_info(fd)?;
            let mut reuse_addr = 1;
            let mut still = Still::default();
            // One in CLOSE has nothing that could be sent, and no peer whose packets a policy is for.
            if info.state == State::Close {
                mute::lift(fd)?;
            } else {
                still.mute = Some(Mute::left(fd)?);
            }
            if let Some((timers, reuse)) = Timers::left(fd, &info)? {
                still.timers = Some(timers);
                reuse_addr = i32::from(reuse);
            }
            Ok((reuse_addr, still))
        };
        let found = find(fd.as_fd());
        Self::of(fd, found)
    }

    /// `SO_REUSEADDR` as it was before the freeze, which hides it.
    #[must_use]
    pub fn reuse_addr(&self) -> bool {
        self.reuse_addr != 0
    }

    /// Where the connection stands now.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]; the connection stays frozen.
    pub fn numbers(&self) -> Result<Numbers> {
        read_numbers(self.as_fd())
    }

    /// How far the connection has come: other than in the [`Snapshot`] if it moved on since.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]; the connection stays frozen.
    pub fn progress(&self) -> Result<Progress> {
        let fd = self.as_fd();
        Progress::of(fd, &tcp_info(fd)?)
    }

    /// Reads the whole connection.
    ///
    /// Takes as long as copying the queues (about 25 µs for 64 KiB) and 6 µs besides.
    ///
    /// In CLOSE the pending error can be read only by taking it: it is put back when the connection is thawed, by
    /// making it again on the same socket with an RST that is sent from this host to itself. That needs
    /// `CAP_NET_RAW` and the thread in the network namespace of the socket, and makes ECONNRESET of any error but
    /// ECONNRESET and EPIPE. If it fails in spite of that, for instance because the packet filter of this host drops
    /// the RST, the application gets ECONNABORTED in place of the unread bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotMigratable`] if urgent data waits or the state has become one that cannot be moved,
    /// [`Error::NotLocal`] in CLOSE if a pending error could not be put back,
    /// [`Error::Call`] otherwise; the connection stays frozen.
    pub fn read(&self) -> Result<Snapshot> {
        let fd = self.as_fd();
        loop {
            let info = tcp_info(fd)?;
            let progress = Progress::of(fd, &info)?;
            match info.state {
                state if state.is_movable() => {}
                State::SynSent => return opening::read(fd, read_numbers(fd)?, progress),
                State::Close => return ended::read(fd, read_numbers(fd)?, progress, &self.ended),
                state => return Err(NotMigratable::State(state).into()),
            }
            refuse_urgent(fd)?;
            let queues = Queues::read(fd, &info, progress.waiting)?;
            let window = sockopt::repair_window(fd)?;
            let (negotiated, timestamp) = negotiated(fd, &info)?;
            // A packet that passed the lock just before it closed can still have been
            // on its way through this host: then the parts do not belong together.
            if self.progress()? != progress {
                continue;
            }
            return Ok(Snapshot {
                numbers: queues.numbers,
                unsent: queues.unsent,
                send_queue: queues.send,
                receive_queue: queues.receive,
                window,
                negotiated,
                timestamp,
                ended: None,
                progress,
            });
        }
    }

    /// Lets the connection take part in the network again, still in repair mode, while its packets are locked: what arrives
    /// after the unlocking is taken then, and not missed until the peer sends it again. [`FrozenSocket::thaw`] does it otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn unmute(&mut self) -> Result<()> {
        let mut still = std::mem::take(&mut self.still);
        let lifted = still.unmute(self.as_fd());
        self.still = still;
        lifted
    }

    /// Ends repair: the connection goes on here.
    ///
    /// Unlock its packets first, or what asks the peer for its acknowledgement does not leave. Filter, keepalive and
    /// `TCP_USER_TIMEOUT` are as they were, also after an error. This end's retransmission timer may have backed off meanwhile: the
    /// peer is made to answer, and what was lost is sent again at once (a second segment for that needs `CAP_NET_RAW`
    /// and the thread in the socket's network namespace). The peer's own timer nobody can hurry, but what it sent
    /// meanwhile can be captured, and delivered after this ([`deliver`](crate::repair::Delivery)).
    ///
    /// # Errors
    ///
    /// [`FreezeError`] with the descriptor, which may still be in repair mode.
    pub fn thaw(mut self) -> Result<OwnedFd, FreezeError> {
        let thawed = self.end();
        let fd = self.take();
        match thawed {
            Ok(()) => Ok(fd),
            Err(error) => Err(FreezeError { fd, error }),
        }
    }

    /// Ends the connection on this host without a packet, for every duplicate of the
    /// descriptor.
    ///
    /// Afterwards a packet of the peer that reaches this host draws an RST: its
    /// packets have to be kept away or sent elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]; the descriptor is closed then too, which is as silent, but leaves
    /// the connection to whoever holds a duplicate.
    pub fn discard(mut self) -> Result<()> {
        let fd = self.take();
        raw::disconnect(fd.as_fd())?;
        // For whoever holds a duplicate: it is a socket without a connection now, and its calls say so.
        let _ = sockopt::set_repair(fd.as_fd(), Repair::OffQuiet);
        let still = std::mem::take(&mut self.still);
        still.leave(fd.as_fd());
        Ok(())
    }

    /// Takes back all that the freeze did. One failure stops none of the rest, but a connection that is mute stays in repair mode, where
    /// it can be [found](FrozenSocket::left_behind).
    fn end(&mut self) -> Result<()> {
        let mut still = std::mem::take(&mut self.still);
        let fd = self.as_fd();
        still.unmute(fd)?;
        let ended = self.ended.get().copied();
        let put_back = ended.map_or(Ok(()), |ended| ending::put_back(fd, ended));
        let thawed = wake_up(fd).and_then(|()| sockopt::set_reuse_addr(fd, self.reuse_addr));
        let timers = still.timers.map_or(Ok(()), |timers| timers.put_back(fd));
        thawed.and(put_back).and(timers)
    }

    fn take(&mut self) -> OwnedFd {
        // INVARIANT: both callers consume `self`, so it is taken once.
        self.fd.take().expect("a frozen socket has its descriptor")
    }
}

impl AsFd for FrozenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // INVARIANT: it is taken out only by methods that consume `self`.
        self.fd
            .as_ref()
            .expect("a frozen socket has its descriptor")
            .as_fd()
    }
}

impl fmt::Debug for FrozenSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenSocket")
            .field("fd", &self.fd)
            .finish()
    }
}

impl Drop for FrozenSocket {
    fn drop(&mut self) {
        if self.fd.is_some() {
            // Nothing is left to try: the descriptor closes silently if this failed.
            let _ = self.end();
        }
    }
}
