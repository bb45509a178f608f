//! A live connection put under repair, to be read and then given up or kept.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::SockRef;

use std::sync::OnceLock;

use crate::ended::{self, Ended};
use crate::error::{Error, NotMigratable, Result};
use crate::info::{Info, State, info};
use crate::inject::Injector;
use crate::mute::{self, Mute, Timers};
use crate::netns::Namespace;
use crate::rebuild::QueueStart;
use crate::sockopt::{self, Negotiated, Queue, Repair};
use crate::uapi::RepairWindow;
use crate::wake::Wake;
use crate::{diag, opening, queue, raw};

/// A connection under repair that lives on here when this is dropped.
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
    pub(crate) ended: OnceLock<Ended>,
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

/// The numbers that show whether a frozen connection moved on, as the kernel has them: a FIN counts one
/// like an octet, ours in `write_seq` and, once acknowledged, in `snd_una`, the peer's in `rcv_nxt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The state.
    pub state: State,
    /// Oldest octet that the peer has not acknowledged.
    pub snd_una: u32,
    /// End of what the application wrote, and of the FIN behind it.
    pub write_seq: u32,
    /// Next octet expected from the peer.
    pub rcv_nxt: u32,
}

/// How far a connection has come: if two of them differ, it moved on in between.
///
/// Two calls tell it, where [`Marks`] take seven, so it is what a connection is compared by that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    state: State,
    acknowledged: u64,
    received: u64,
    /// Written and not acknowledged.
    waiting: u32,
}

impl Progress {
    /// Whether there was no connection any more (CLOSE).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == State::Close
    }

    fn of(fd: BorrowedFd<'_>, info: &Info) -> Result<Self> {
        Ok(Self {
            state: info.state,
            acknowledged: info.bytes_acked,
            received: info.bytes_received,
            waiting: sockopt::send_queue_len(fd)?,
        })
    }
}

/// What a frozen connection holds; sequence numbers as on the wire. The queues hold octets only: a FIN is
/// told by the state.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the connection stands.
    pub marks: Marks,
    /// Everything written and not acknowledged, from `snd_una` on.
    pub send_queue: Vec<u8>,
    /// How many octets at the end of `send_queue` were never sent.
    pub unsent: usize,
    /// Everything received and not read, up to `rcv_nxt` or the FIN before it.
    pub receive_queue: Vec<u8>,
    /// The windows.
    pub window: RepairWindow,
    /// What the handshake negotiated.
    pub negotiated: Negotiated,
    /// The timestamp clock, if the option is in use: its value with bit 0 cleared, and whether
    /// it counts microseconds (else milliseconds). In `SYN_SENT` what it showed shortly before the SYN was sent.
    pub timestamp: Option<(u32, bool)>,
    /// In CLOSE: how the connection ended.
    pub ended: Option<Ended>,
    /// How far it had come: what [`FrozenSocket::progress`] tells for as long as this is the whole of it.
    pub progress: Progress,
}

/// For the connection made again, on this host or another one.
impl Snapshot {
    /// Where its queues begin: for [`BoundSocket::connect`](crate::rebuild::BoundSocket::connect). Of a connection that neither end
    /// has closed: a FIN counts one in these numbers, and is in no queue.
    #[must_use]
    pub fn queue_start(&self) -> QueueStart {
        // A queue has at most 1 GiB.
        let waiting = self.receive_queue.len() as u32;
        QueueStart {
            snd_una: self.marks.snd_una,
            copied_seq: self.marks.rcv_nxt.wrapping_sub(waiting),
        }
    }

    /// The send queue: what was sent and not acknowledged, for
    /// [`fill_send_queue`](crate::rebuild::RestoringSocket::fill_send_queue), and what was never sent, for
    /// [`write_unsent`](crate::rebuild::write_unsent) after the activation.
    #[must_use]
    pub fn sent_and_unsent(&self) -> (&[u8], &[u8]) {
        let sent = self.send_queue.len().saturating_sub(self.unsent);
        self.send_queue.split_at(sent)
    }

    /// What [`verify`](crate::rebuild::RestoringSocket::verify) has to find once both queues are filled: nothing unsent is in
    /// the socket yet. For a connection that neither end has closed.
    #[must_use]
    pub fn rebuilt_marks(&self) -> Marks {
        let (sent, _) = self.sent_and_unsent();
        Marks {
            // A queue has at most 1 GiB.
            write_seq: self.marks.snd_una.wrapping_add(sent.len() as u32),
            ..self.marks
        }
    }
}

impl fmt::Debug for Snapshot {
    // The queues are the users' data: lengths only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("marks", &self.marks)
            .field("send_queue", &self.send_queue.len())
            .field("unsent", &self.unsent)
            .field("receive_queue", &self.receive_queue.len())
            .field("window", &self.window)
            .field("negotiated", &self.negotiated)
            .field("timestamp", &self.timestamp)
            .field("ended", &self.ended)
            .finish()
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

/// Refuses what is no plain TCP connection, or is in a state that cannot be moved, without touching it; else what `TCP_INFO`
/// says of it.
///
/// States that can be: those of [`State::is_movable`], `SYN_SENT`, and CLOSE if there was a connection. What this does not
/// see: MD5 keys and headers that every segment has ([`options::check`](crate::options::check)), and a BPF program that has the socket in a sockmap.
///
/// # Errors
///
/// [`Error::NotMigratable`] with the reason.
pub fn check(fd: BorrowedFd<'_>) -> Result<Info> {
    plain_tcp(fd)?;
    let info = info(fd)?;
    match info.state {
        state if state.is_movable() => {}
        State::SynSent => opening::check(fd)?,
        State::Close => ended::check(fd)?,
        State::Listen => return Err(NotMigratable::Listening.into()),
        State::SynReceived => return Err(NotMigratable::FastOpen.into()),
        state => return Err(NotMigratable::State(state).into()),
    }
    if sockopt::repair(fd)? {
        return Err(NotMigratable::UnderRepair.into());
    }
    if sockopt::upper_layer(fd)?.is_some() {
        return Err(NotMigratable::UpperLayer.into());
    }
    if diag::has_ao(fd)? {
        return Err(NotMigratable::Ao.into());
    }
    mute::check(fd)?;
    refuse_urgent(fd)?;
    Ok(info)
}

/// Whether a socket of TCP is under repair, whoever did that.
///
/// # Errors
///
/// [`Error::NotMigratable`] with [`NotMigratable::NotTcp`] for any other descriptor, [`Error::Call`].
pub fn is_under_repair(fd: BorrowedFd<'_>) -> Result<bool> {
    plain_tcp(fd)?;
    sockopt::repair(fd)
}

fn plain_tcp(fd: BorrowedFd<'_>) -> Result<()> {
    match sockopt::protocol(fd) {
        Ok(libc::IPPROTO_TCP) => Ok(()),
        Ok(libc::IPPROTO_MPTCP) => Err(NotMigratable::Mptcp.into()),
        Ok(_) => Err(NotMigratable::NotTcp.into()),
        Err(error) if error.errno() == Some(libc::ENOTSOCK) => Err(NotMigratable::NotTcp.into()),
        Err(error) => Err(error),
    }
}

fn refuse_urgent(fd: BorrowedFd<'_>) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(fd, PollFlags::POLLPRI)];
    poll(&mut polled, PollTimeout::ZERO).map_err(|e| Error::new("poll(POLLPRI)", e.into()))?;
    match polled[0].revents() {
        Some(events) if events.contains(PollFlags::POLLPRI) => Err(NotMigratable::Urgent.into()),
        _ => Ok(()),
    }
}

/// The local and the remote address of a TCP socket that is connected, that is being connected, or whose connection
/// has ended.
///
/// # Errors
///
/// [`Error::Call`] of `getsockname` or `getpeername`; ENOTCONN if there never was a connection.
pub fn addresses(fd: BorrowedFd<'_>) -> Result<(SocketAddr, SocketAddr)> {
    let socket = SockRef::from(&fd);
    let not_ip = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
    let local = socket
        .local_addr()
        .and_then(|a| a.as_socket().ok_or_else(not_ip))
        .map_err(|e| Error::new("getsockname", e))?;
    let remote = match socket.peer_addr() {
        // It tells no address in SYN_SENT and CLOSE.
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => ended::peer_name(fd)?,
        other => other
            .and_then(|a| a.as_socket().ok_or_else(not_ip))
            .map_err(|e| Error::new("getpeername", e))?,
    };
    Ok((local, remote))
}

impl FrozenSocket {
    /// Puts a connection under repair.
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
        match begin(fd.as_fd()) {
            Ok((reuse_addr, still)) => Ok(Self {
                fd: Some(fd),
                reuse_addr,
                ended: OnceLock::new(),
                still,
            }),
            Err(error) => Err(FreezeError { fd, error }),
        }
    }

    /// Takes a connection that its holder left under repair, for instance because it was killed, to [thaw](Self::thaw) it.
    ///
    /// `SO_REUSEADDR`, keepalive and `TCP_USER_TIMEOUT` are put back as they were, the last up to three days (ten minutes with
    /// timestamps in microseconds), if this library froze it. Lost are a number of SYNs (`TCP_SYNCNT`), a pending error
    /// in CLOSE, and a filter on a kernel without XFRM. A socket that somebody else put under repair
    /// leaves it too.
    ///
    /// Make sure that its holder is gone: what it is doing with the socket would fail.
    ///
    /// # Errors
    ///
    /// [`FreezeError`] with the descriptor: [`NotMigratable::NotTcp`], [`Error::NotUnderRepair`], or a call that failed.
    pub fn left_behind(fd: OwnedFd) -> Result<Self, FreezeError> {
        let find = |fd: BorrowedFd<'_>| {
            if !is_under_repair(fd)? {
                return Err(Error::NotUnderRepair);
            }
            let info = info(fd)?;
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
        match find(fd.as_fd()) {
            Ok((reuse_addr, still)) => Ok(Self {
                fd: Some(fd),
                reuse_addr,
                ended: OnceLock::new(),
                still,
            }),
            Err(error) => Err(FreezeError { fd, error }),
        }
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
    pub fn marks(&self) -> Result<Marks> {
        marks(self.as_fd())
    }

    /// How far the connection has come: other than in the [`Snapshot`] if it moved on since.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]; the connection stays frozen.
    pub fn progress(&self) -> Result<Progress> {
        let fd = self.as_fd();
        Progress::of(fd, &info(fd)?)
    }

    /// Reads the whole connection.
    ///
    /// Takes as long as copying the queues (about 25 µs for 64 KiB) and 6 µs besides.
    ///
    /// In CLOSE the pending error can be read only by taking it: it is put back when the connection is thawed, by
    /// making it again on the same socket with an RST that is sent from this host to itself. That needs
    /// `CAP_NET_RAW` and the thread in the network namespace of the socket, and makes ECONNRESET of any error but
    /// ECONNRESET and EPIPE. If it fails in spite of that, for instance because the packet filter of this host drops
    /// the RST, the application gets ECONNABORTED in place of the unread octets.
    ///
    /// # Errors
    ///
    /// [`Error::NotMigratable`] if urgent data waits or the state has become one that cannot be moved,
    /// [`Error::NotLocal`] in CLOSE if a pending error could not be put back,
    /// [`Error::Call`] otherwise; the connection stays frozen.
    pub fn read(&self) -> Result<Snapshot> {
        let fd = self.as_fd();
        loop {
            let info = info(fd)?;
            let progress = Progress::of(fd, &info)?;
            match info.state {
                state if state.is_movable() => {}
                State::SynSent => return opening::read(fd, marks(fd)?, progress),
                State::Close => return self.read_ended(marks(fd)?, progress),
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
                marks: queues.marks,
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
    /// meanwhile can be captured, and delivered after this ([`deliver`](crate::deliver)).
    ///
    /// # Errors
    ///
    /// [`FreezeError`] with the descriptor, which may still be under repair.
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

    /// Takes back all that the freeze did. One failure stops none of the rest.
    fn end(&mut self) -> Result<()> {
        let mut still = std::mem::take(&mut self.still);
        let fd = self.as_fd();
        let unmuted = still.unmute(fd);
        let ended = self.ended.get().copied();
        let put_back = ended.map_or(Ok(()), |ended| ended::put_back(fd, ended));
        let thawed = wake_up(fd).and_then(|()| sockopt::set_reuse_addr(fd, self.reuse_addr));
        let timers = still.timers.map_or(Ok(()), |timers| timers.put_back(fd));
        unmuted.and(thawed).and(put_back).and(timers)
    }

    fn take(&mut self) -> OwnedFd {
        // INVARIANT: both callers consume `self`, so it is taken once.
        self.fd.take().expect("a frozen socket has its descriptor")
    }
}

/// Both queues and where they stand.
struct Queues {
    marks: Marks,
    receive: Vec<u8>,
    send: Vec<u8>,
    /// How many octets at the end of `send` were never sent.
    unsent: usize,
}

impl Queues {
    /// `waiting` is what was written and not acknowledged.
    fn read(fd: BorrowedFd<'_>, info: &Info, waiting: u32) -> Result<Self> {
        sockopt::set_repair_queue(fd, Queue::Receive)?;
        let rcv_nxt = sockopt::queue_sequence(fd)?;
        let readable = sockopt::receive_queue_len(fd)? as usize;
        let receive = queue::read(fd, "recv(receive queue)", readable)?;
        sockopt::set_repair_queue(fd, Queue::Send)?;
        let write_seq = sockopt::queue_sequence(fd)?;
        // The one place where lengths lose their FIN: it comes last, so what is unsent includes it.
        let fin = u32::from(info.state.fin_unacknowledged());
        let octets = waiting.saturating_sub(fin) as usize;
        let send = queue::read(fd, "recv(send queue)", octets)?;
        let unsent = if send.is_empty() {
            0
        } else {
            sockopt::unsent_len(fd)?.saturating_sub(fin) as usize
        };
        sockopt::set_repair_queue(fd, Queue::None)?;
        Ok(Self {
            marks: Marks {
                state: info.state,
                snd_una: write_seq.wrapping_sub(waiting),
                write_seq,
                rcv_nxt,
            },
            unsent: unsent.min(send.len()),
            receive,
            send,
        })
    }
}

pub(crate) fn marks(fd: BorrowedFd<'_>) -> Result<Marks> {
    marks_in(fd, info(fd)?.state)
}

/// The same in a state that was read just before.
pub(crate) fn marks_in(fd: BorrowedFd<'_>, state: State) -> Result<Marks> {
    sockopt::set_repair_queue(fd, Queue::Receive)?;
    let rcv_nxt = sockopt::queue_sequence(fd)?;
    sockopt::set_repair_queue(fd, Queue::Send)?;
    let write_seq = sockopt::queue_sequence(fd)?;
    let unacknowledged = sockopt::send_queue_len(fd)?;
    sockopt::set_repair_queue(fd, Queue::None)?;
    Ok(Marks {
        state,
        snd_una: write_seq.wrapping_sub(unacknowledged),
        write_seq,
        rcv_nxt,
    })
}

/// Ends repair with the kernel's own probe.
///
/// The kernel counts the window in it as advertised, which the peer does not take: were that so, a peer that waits
/// for a closed window to open would not be told. So it is forgotten again.
pub(crate) fn end_repair(fd: BorrowedFd<'_>) -> Result<()> {
    if info(fd)?.state != State::Established {
        // No probe leaves.
        return sockopt::set_repair(fd, Repair::Off);
    }
    let window = sockopt::repair_window(fd)?;
    sockopt::set_repair(fd, Repair::Off)?;
    // The connection lives: without this the peer may have to wait for its timer, no more.
    if sockopt::set_repair(fd, Repair::On).is_ok() {
        let _ = sockopt::set_repair_window(fd, window);
        return sockopt::set_repair(fd, Repair::OffQuiet);
    }
    Ok(())
}

/// What the handshake negotiated, and the timestamp clock.
pub(crate) fn negotiated(
    fd: BorrowedFd<'_>,
    info: &Info,
) -> Result<(Negotiated, Option<(u32, bool)>)> {
    let timestamp = if info.timestamps {
        let value = sockopt::timestamp(fd)?;
        Some((value & !1, info.timestamps_in_microseconds))
    } else {
        None
    };
    let negotiated = Negotiated {
        mss_clamp: u16::try_from(sockopt::max_segment(fd)?).unwrap_or(u16::MAX),
        window_scale: info.window_scale,
        sack: info.sack,
        timestamps: info.timestamps,
    };
    Ok((negotiated, timestamp))
}

/// Ends repair, and makes the connection go on at once: it may have stood still for long, and its retransmission timer has
/// backed off. What makes the kernel send again what was lost is the peer's next acknowledgement.
fn wake_up(fd: BorrowedFd<'_>) -> Result<()> {
    let wakes = info(fd)?.state.is_movable()
        && Namespace::of_socket(fd).is_ok_and(|own| own.is_current().unwrap_or(false));
    let waker = wakes
        .then(|| {
            let injector = Injector::open(fd)?;
            let wake = Wake::read(fd, &injector, &[])?;
            Ok::<_, Error>((injector, wake))
        })
        .and_then(Result::ok);
    end_repair(fd)?;
    if let Some((injector, wake)) = waker {
        wake.run(fd, &injector);
    }
    Ok(())
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
