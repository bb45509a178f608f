//! Rebuilding a connection, step by step.
//!
//! The order is the kernel's and the types hold to it: [`ClosedSocket`] is a
//! socket in repair mode whose options still decide binding and routing,
//! [`BoundSocket`] has its local end, and [`RestoringSocket`] is connected and takes
//! queues, the FINs of either end ([`RestoringSocket::enter_state`]) and windows until
//! [`RestoringSocket::activate`]. Dropping any of them closes it without a packet.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::local_address;
use super::mute::Mute;
use super::numbers::{Numbers, Stood, read_numbers, read_numbers_in};
use super::probes::{Probes, Retransmit, end_repair};
use super::queue;
use super::snapshot::{Clock, QueueStart};
use super::timers::Timers;
use crate::ends::Ends;
use crate::error::{Error, Result};
use crate::info::{Info, State, tcp_info};
use crate::packet::inject::Injector;
use crate::sockets::diag::netns_cookie;
use crate::sockopt::{self, Negotiated, Queue, Repair};
use crate::uapi::RepairWindow;
use crate::{raw, seam, sockets};

/// The kernel refuses others for `TCP_MAXSEG` (its `TCP_MIN_MSS` and `MAX_TCP_WINDOW`).
const MAXSEG: std::ops::RangeInclusive<u32> = 88..=32767;

/// The largest window that can be told without scaling.
const LARGEST_UNSCALED: u32 = 0xffff;

/// How many of the oldest segments are sent again: as many as a new connection may send at once (RFC 6928).
const OLDEST: usize = 10;

/// How many of the newest: as many acknowledgements of them as tell that what is before them was lost (RFC 6675,
/// section 2).
const NEWEST: usize = 3;

/// A socket in repair mode in CLOSE, without addresses.
///
/// Set what decides binding and routing through [`crate::sockopt`] now: bound
/// device, mark, `IP_FREEBIND` or `IP_TRANSPARENT`, `IPV6_V6ONLY`.
#[derive(Debug)]
#[must_use = "dropping closes the socket"]
pub struct ClosedSocket {
    socket: Socket,
    namespace: Option<u64>,
}

/// A socket in repair mode with its local address.
#[derive(Debug)]
#[must_use = "dropping closes the socket"]
pub struct BoundSocket {
    socket: Socket,
    namespace: Option<u64>,
    local: SocketAddr,
}

/// A rebuilt connection in repair mode.
///
/// Dropped, it is taken back without a packet and at once, also if a child of this process that is being started
/// has the descriptor for a moment.
#[must_use = "dropping discards the connection without a packet"]
pub struct RestoringSocket {
    // `None` only at the end of `activate`, which takes it out.
    socket: Option<Socket>,
    namespace: Option<u64>,
    ends: Ends,
    /// Where its queues begin, as long as nothing was put into them.
    pub(super) empty: Option<QueueStart>,
    /// The windows that it was given last.
    window: Option<RepairWindow>,
    /// For the segments at activation that the kernel does not send by itself.
    pub(super) injector: Option<Injector>,
    /// What of the send queue is sent again at activation.
    pub(super) retransmit: Vec<Retransmit>,
    /// None once it may take part in the network.
    mute: Option<Mute>,
    timers: Option<Timers>,
    /// Where it stood when it was verified.
    verified: Option<Stood>,
    /// It is to be one that has ended.
    pub(super) ended: bool,
}

/// A failed [`RestoringSocket::activate`]: the reason, and the connection, which dropping discards without a packet.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ActivateError {
    /// The connection, in repair mode.
    pub socket: RestoringSocket,
    /// Why.
    #[source]
    pub error: Error,
}

impl ClosedSocket {
    /// `socket`, non-blocking and close-on-exec, put into repair mode.
    ///
    /// `v6` makes an `AF_INET6` socket, which IPv4-mapped connections have too.
    /// Needs `CAP_NET_ADMIN` in the user namespace that owns the network namespace
    /// of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::NoPermission`] without the capability, [`Error::Call`].
    pub fn open(v6: bool) -> Result<Self> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        seam::enter("socket")?;
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
            .map_err(|e| Error::new("socket", e))?;
        sockopt::set_repair(socket.as_fd(), Repair::On)?;
        let namespace = netns_cookie(socket.as_fd()).ok();
        Ok(Self { socket, namespace })
    }

    /// The number of its network namespace, which no other one ever gets: `getsockopt(fd, SO_NETNS_COOKIE)`. `None` before Linux
    /// 5.14.
    #[must_use]
    pub fn namespace(&self) -> Option<u64> {
        self.namespace
    }

    /// For a connection that negotiated no window scale.
    ///
    /// `connect` chooses a scale for our windows from what they may grow to, and `TCP_REPAIR_OPTIONS` cannot take
    /// it back: the peer would be told windows a thousand times too small. It chooses none if they
    /// cannot grow past what needs none, and a connection that is opened without scaling has the same bound.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn unscaled(&self) -> Result<()> {
        sockopt::set_window_clamp(self.as_fd(), LARGEST_UNSCALED)
    }

    /// `bind`, which in repair mode ignores conflicts with other sockets.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: EADDRNOTAVAIL if the address is not on this host; [`Error::NotUsable`] if it is not ready. Neither
    /// with `IP_FREEBIND` or `IP_TRANSPARENT`. The socket is closed.
    pub fn bind(self, local: SocketAddr) -> Result<BoundSocket> {
        let Self { socket, namespace } = self;
        local_address::bind(&socket, local)?;
        Ok(BoundSocket {
            socket,
            namespace,
            local,
        })
    }
}

impl BoundSocket {
    pub(super) fn from_socket(socket: Socket, local: SocketAddr) -> Self {
        let namespace = netns_cookie(socket.as_fd()).ok();
        Self {
            socket,
            namespace,
            local,
        }
    }

    pub(super) fn into_parts(self) -> (Socket, Option<u64>, SocketAddr) {
        (self.socket, self.namespace, self.local)
    }

    /// `connect`, which in repair mode sends nothing and leads straight to ESTABLISHED. The socket is
    /// [mute](crate::repair::mute) from here until it is activated.
    ///
    /// What is left in `TIME_WAIT` of an earlier connection with the same four-tuple gives way.
    ///
    /// `mss_clamp` makes the first segments as large as the connection allows.
    ///
    /// # Errors
    ///
    /// [`Error::Occupied`] if a connection with the same four-tuple is on this host; [`Error::Call`]: ENETUNREACH without a
    /// route. The socket is closed.
    pub fn connect(
        self,
        remote: SocketAddr,
        start: QueueStart,
        mss_clamp: u16,
    ) -> Result<RestoringSocket> {
        let (socket, namespace, local) = self.into_parts();
        let fd = socket.as_fd();
        let mute = Mute::before_connect(fd, &remote)?;
        let mss = u32::from(mss_clamp).clamp(*MAXSEG.start(), *MAXSEG.end());
        // Without it `snd_mss` stays at 524 until the path MTU changes.
        sockopt::set_max_segment(fd, mss)?;
        sockopt::set_repair_queue(fd, Queue::Send)?;
        sockopt::set_queue_sequence(fd, start.snd_una)?;
        sockopt::set_repair_queue(fd, Queue::Receive)?;
        sockopt::set_queue_sequence(fd, start.copied_seq)?;
        sockopt::set_repair_queue(fd, Queue::None)?;
        sockets::connect(&socket, remote)?;
        mute.connected(fd)?;
        sockopt::set_max_segment(fd, 0)?;
        let mut restoring =
            RestoringSocket::from_socket(socket, namespace, Ends { local, remote }, mute);
        restoring.empty = Some(start);
        Ok(restoring)
    }

    /// Like [`BoundSocket::connect`], but with numbers that mean nothing: a socket that is [mute](crate::repair::mute) in place of a
    /// connection that is still to come. It can [step aside](RestoringSocket::step_aside) for that, and is not to be activated.
    ///
    /// # Errors
    ///
    /// Those of [`BoundSocket::connect`].
    pub fn stand_in(self, remote: SocketAddr) -> Result<RestoringSocket> {
        let (socket, namespace, local) = self.into_parts();
        let fd = socket.as_fd();
        let mute = Mute::before_connect(fd, &remote)?;
        sockets::connect(&socket, remote)?;
        mute.connected(fd)?;
        let ends = Ends { local, remote };
        Ok(RestoringSocket::from_socket(socket, namespace, ends, mute))
    }
}

impl RestoringSocket {
    /// Lets another socket with the same four-tuple be connected on this host, which is to take this one's place:
    /// `setsockopt(fd, SO_BINDTODEVICE)`. The kernel tells sockets of one four-tuple apart by their devices.
    ///
    /// Until it is dropped this one, which is mute, still takes what comes in by `device`, so that nothing
    /// of it is answered with RST, also if no lock holds it back. It cannot be activated any more.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: EPERM without `CAP_NET_RAW` if it is bound to another device, ENODEV. It is as it was.
    pub fn step_aside(&self, device: &str) -> Result<()> {
        sockopt::set_bound_device(self.as_fd(), device)
    }

    pub(super) fn from_socket(
        socket: Socket,
        namespace: Option<u64>,
        ends: Ends,
        mute: Mute,
    ) -> Self {
        Self {
            socket: Some(socket),
            namespace,
            ends,
            empty: None,
            window: None,
            injector: None,
            retransmit: Vec::new(),
            mute: Some(mute),
            timers: None,
            verified: None,
            ended: false,
        }
    }

    /// For its ends as they were bound and connected, unless the kernel was left to choose one.
    pub(super) fn open_injector(&self) -> Result<Injector> {
        let local = self.ends.local;
        if local.ip().is_unspecified() || local.port() == 0 {
            return Injector::open(self.as_fd());
        }
        Injector::between(self.as_fd(), self.namespace, self.ends)
    }

    /// Does something for which segments with this firewall mark, which this host injects, are let in.
    pub(super) fn with_injected<T>(
        &self,
        mark: u32,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(mute) = &self.mute else {
            return work();
        };
        mute.let_in(self.as_fd(), mark)?;
        let done = work();
        mute.shut(self.as_fd())?;
        done
    }

    /// The numbers as the kernel has them. While the connection waits to be activated nothing changes them: it is mute.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn numbers(&self) -> Result<Numbers> {
        read_numbers(self.as_fd())
    }

    /// The last step before the connection waits for its activation, after the application's options were set: keepalive,
    /// `TCP_USER_TIMEOUT` and the number of SYNs do not end it meanwhile. Activation puts them back.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]; without XFRM (see [`mute`](crate::repair::mute)) [`Error::NotMigratable`] if the application's filter is
    /// locked.
    pub fn hold(&mut self) -> Result<()> {
        let fd = self.as_fd();
        let info = match &self.verified {
            // Its state was read a moment ago, and it is mute.
            Some(stood) => stood.info,
            None => tcp_info(fd)?,
        };
        if info.state != State::Close {
            self.timers = Some(Timers::hold(fd, &info, true)?);
        }
        if let Some(mut mute) = self.mute.take() {
            mute.optioned(self.as_fd())?;
            self.mute = Some(mute);
        }
        Ok(())
    }

    /// Lets the connection take part in the network again, still in repair mode, while its packets are locked: what
    /// arrives after the unlocking is taken then. [`RestoringSocket::activate`] does it otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn unmute(&mut self) -> Result<()> {
        match self.mute.take() {
            Some(mute) => {
                // Without bytes and without a FIN no timer has anything to send, and the application's keepalive is off.
                let is_idle = self.empty.is_some() && self.timers.is_some();
                let is_open = self.verified.as_ref().is_some_and(Stood::is_established);
                mute.lift_if_sent(self.as_fd(), !(is_idle && is_open))
            }
            None => Ok(()),
        }
    }

    /// What the handshake negotiated, and the timestamp clock as in
    /// [`Snapshot::timestamp`](crate::repair::Snapshot::timestamp). Without a window scale
    /// [`ClosedSocket::unscaled`] has to come first.
    ///
    /// # Errors
    ///
    /// [`Error::NotAsAsked`] if the clock counts microseconds and this kernel's does not (before Linux 6.7);
    /// [`Error::Call`].
    pub fn negotiated(&self, negotiated: &Negotiated, timestamp: Option<Clock>) -> Result<()> {
        let fd = self.as_fd();
        sockopt::set_repair_options(fd, negotiated)?;
        timestamp.map_or(Ok(()), |clock| set_clock(fd, clock))
    }

    /// Fills the receive queue; `rcv_nxt` moves on with it.
    ///
    /// The buffer grows as far as it has to.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the queue does not fit into the largest buffer that the
    /// process may have, [`Error::Call`].
    pub fn fill_receive_queue(&mut self, bytes: &[u8]) -> Result<()> {
        const CALL: &str = "send(receive queue)";
        if bytes.is_empty() {
            return Ok(());
        }
        self.empty = None;
        let fd = self.as_fd();
        sockopt::set_repair_queue(fd, Queue::Receive)?;
        let mut done = queue::append(fd, CALL, bytes)?;
        if done < bytes.len() {
            // The buffer may be smaller than what waits in it already.
            let waiting = sockopt::receive_queue_len(fd)? as usize;
            grow(
                fd,
                waiting + bytes.len() - done,
                sockopt::force_receive_buffer,
                sockopt::set_receive_buffer,
            )?;
            done += queue::append(fd, CALL, &bytes[done..])?;
        }
        sockopt::set_repair_queue(fd, Queue::None)?;
        check_complete(CALL, done, bytes.len())
    }

    /// Fills the send queue with bytes that were sent and not acknowledged.
    ///
    /// They count as sent: the kernel retransmits what the peer does not acknowledge. **Its timer runs from here on, in repair mode
    /// too**: the packets of the connection have to be locked before, and [`RestoringSocket::hold`] soon after keeps
    /// the connection from being given up meanwhile.
    ///
    /// Bytes that were never sent are written after activation. `reserve` is how many of
    /// those follow: the buffer grows for them as well.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the queue does not fit into the largest buffer that the
    /// process may have, [`Error::Call`].
    pub fn fill_send_queue(&mut self, bytes: &[u8], reserve: usize) -> Result<()> {
        const CALL: &str = "send(send queue)";
        let fd = self.as_fd();
        let wanted = bytes.len() + reserve;
        if wanted > 0 && wanted > sockopt::send_buffer(fd)? as usize / 2 {
            grow(
                fd,
                wanted,
                sockopt::force_send_buffer,
                sockopt::set_send_buffer,
            )?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.empty = None;
        let fd = self.as_fd();
        sockopt::set_repair_queue(fd, Queue::Send)?;
        let done = queue::append(fd, CALL, bytes)?;
        sockopt::set_repair_queue(fd, Queue::None)?;
        let info = tcp_info(fd)?;
        let snd_una = read_numbers_in(fd, info.state)?.snd_una;
        self.retransmit = retransmit(bytes, snd_una, &info);
        check_complete(CALL, done, bytes.len())
    }

    /// The windows, after both queues are filled.
    ///
    /// # Errors
    ///
    /// [`Error::Call`]: EINVAL as in [`sockopt::set_repair_window`].
    pub fn window(&mut self, window: RepairWindow) -> Result<()> {
        self.window = None;
        sockopt::set_repair_window(self.as_fd(), window)?;
        self.window = Some(window);
        Ok(())
    }

    /// Reads the connection back and compares it with what was asked for.
    ///
    /// The numbers are the kernel's: `write_seq` and `rcv_nxt` count a FIN that was sent or received.
    ///
    /// # Errors
    ///
    /// [`Error::NotAsAsked`] with the first value that differs.
    pub fn verify(&mut self, asked: &Numbers, negotiated: &Negotiated) -> Result<()> {
        let fd = self.as_fd();
        let info = tcp_info(fd)?;
        let got = self.stands_at(&info)?;
        if got.state != asked.state {
            return Err(differs("the state", asked.state, got.state));
        }
        for (what, asked, got) in [
            ("rcv_nxt", asked.rcv_nxt, got.rcv_nxt),
            ("write_seq", asked.write_seq, got.write_seq),
            ("snd_una", asked.snd_una, got.snd_una),
        ] {
            if asked != got {
                return Err(differs(what, asked, got));
            }
        }
        if info.window_scale != negotiated.window_scale {
            let (asked, got) = (negotiated.window_scale, info.window_scale);
            return Err(Error::NotAsAsked {
                what: "the window scale",
                asked: format!("{asked:?}"),
                got: format!("{got:?}"),
            });
        }
        if info.sack != negotiated.sack {
            return Err(differs("SACK", negotiated.sack, info.sack));
        }
        if info.timestamps != negotiated.timestamps {
            return Err(differs(
                "the timestamp option",
                negotiated.timestamps,
                info.timestamps,
            ));
        }
        self.verified = Some(Stood::at(got, info));
        Ok(())
    }

    /// Where it stands in the state that was read just before.
    fn stands_at(&self, info: &Info) -> Result<Numbers> {
        let nothing_came = info.bytes_received == 0 && info.bytes_acked == 0;
        match self.empty {
            // Nothing but bytes and FINs moves the numbers that were set in CLOSE.
            Some(start) if info.state == State::Established && nothing_came => Ok(Numbers {
                state: info.state,
                snd_una: start.snd_una,
                write_seq: start.snd_una,
                rcv_nxt: start.copied_seq,
            }),
            _ => read_numbers_in(self.as_fd(), info.state),
        }
    }

    /// Leaves the connection to the other descriptors of its socket, in repair mode still and not mute.
    pub(super) fn release(mut self) {
        self.socket = None;
    }

    /// Ends repair: the connection lives here.
    ///
    /// Unlock its packets first. A probe leaves, which the peer answers with its
    /// acknowledgement and window; after [`RestoringSocket::enter_state`] what was unsent is sent, and a
    /// FIN that counted as sent once more. `SO_REUSEADDR` becomes `reuse_addr`, which repair
    /// would otherwise clear.
    ///
    /// # Errors
    ///
    /// [`ActivateError`] with the connection as it is, in repair mode; with [`Error::Gone`] if it has ended meanwhile.
    pub fn activate(mut self, reuse_addr: bool) -> Result<OwnedFd, Box<ActivateError>> {
        if let Err(error) = self.begin(reuse_addr) {
            let socket = self;
            return Err(Box::new(ActivateError { socket, error }));
        }
        // INVARIANT: this method consumes `self`, so it is taken once.
        let socket = self.socket.take().expect("a restoring socket is there");
        Ok(socket.into())
    }

    fn begin(&mut self, reuse_addr: bool) -> Result<()> {
        // Nothing could reach it, so that a timer has run out. Later it is the peer that may end it, which is for the application.
        let is_mute = self.mute.is_some();
        if is_mute && !self.ended && tcp_info(self.as_fd())?.state == State::Close {
            return Err(Error::Gone);
        }
        self.unmute()?;
        let fd = self.as_fd();
        if let Some(injector) = &self.injector {
            let before = self.verified.as_ref().map(|stood| (stood, self.window));
            let probes = Probes::read(fd, injector, &self.retransmit, before)?;
            sockopt::set_repair(fd, Repair::OffQuiet)?;
            probes.run(fd, injector);
        } else {
            end_repair(fd)?;
        }
        // The connection lives from here on: an option that could not be set must not end it.
        let _ = sockopt::set_reuse_addr(fd, i32::from(reuse_addr));
        if let Some(timers) = &self.timers {
            let _ = timers.put_back(fd);
        }
        Ok(())
    }
}

/// Bytes for the end of the send queue that were never sent: written when repair is off.
/// Returns how many the socket took without waiting.
///
/// # Errors
///
/// [`Error::Call`].
pub fn write_unsent(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    queue::append(fd, "send", bytes)
}

/// The segments that make the peer tell what of the send queue it has, or fill what it lacks.
///
/// The kernel alone is slow at it: it takes no round-trip time from what was written in repair mode (`TCPCB_REPAIRED`), so that its first
/// retransmission timer takes one to three seconds. It finds out by itself that all between the oldest and the newest
/// was lost once the newest are acknowledged selectively.
fn retransmit(bytes: &[u8], snd_una: u32, info: &Info) -> Vec<Retransmit> {
    let segment = (info.snd_mss as usize).max(1);
    let mut chunks = bytes.chunks(segment).enumerate();
    let mut chosen: Vec<_> = chunks.by_ref().take(OLDEST).collect();
    // In their order: another one would count as reordering.
    let between = chunks.len().saturating_sub(NEWEST);
    chosen.extend(chunks.skip(between));
    let segment = |(index, bytes): (usize, &[u8])| Retransmit {
        // A queue has at most 1 GiB.
        seq: snd_una.wrapping_add((index * segment) as u32),
        bytes: bytes.to_vec(),
    };
    chosen.into_iter().map(segment).collect()
}

/// Raises a buffer for `bytes` of payload: past the limit if the process may, else
/// as far as the limit.
fn grow(
    fd: BorrowedFd<'_>,
    bytes: usize,
    force: fn(BorrowedFd<'_>, u32) -> Result<()>,
    set: fn(BorrowedFd<'_>, u32) -> Result<()>,
) -> Result<()> {
    // The kernel doubles it for its own accounting; small segments need more.
    let wanted = u32::try_from(bytes.saturating_mul(2))
        .unwrap_or(1 << 30)
        .min(1 << 30);
    match force(fd, wanted) {
        Err(Error::NoPermission { .. }) => set(fd, wanted),
        other => other,
    }
}

pub(super) fn check_complete(call: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Length {
        call,
        got,
        expected,
    })
}

/// Sets the timestamp clock, and fails if it does not count in this unit: a kernel before 6.7 takes the bit that says
/// microseconds for a part of the value, and would measure round trips of a thousand times their length.
pub(crate) fn set_clock(fd: BorrowedFd<'_>, clock: Clock) -> Result<()> {
    let Clock {
        value,
        microseconds,
    } = clock;
    sockopt::set_timestamp(fd, value & !1 | u32::from(microseconds))?;
    if microseconds && !tcp_info(fd)?.timestamps_in_microseconds {
        return Err(differs(
            "the unit of timestamps (microseconds need Linux 6.7)",
            "microseconds",
            "milliseconds",
        ));
    }
    Ok(())
}

fn differs(what: &'static str, asked: impl fmt::Display, got: impl fmt::Display) -> Error {
    Error::NotAsAsked {
        what,
        asked: asked.to_string(),
        got: got.to_string(),
    }
}

impl AsFd for ClosedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for RestoringSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // INVARIANT: it is taken out only by a method that consumes `self`.
        let socket = self.socket.as_ref().expect("a restoring socket is there");
        socket.as_fd()
    }
}

impl Drop for RestoringSocket {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // Closing it is as silent, if this was the last descriptor.
            let _ = raw::disconnect(socket.as_fd());
        }
    }
}

impl fmt::Debug for RestoringSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoringSocket")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
