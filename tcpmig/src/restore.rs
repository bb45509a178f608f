//! From an image to a live socket.
//!
//! [`Prepared::build`] locks the packets and rebuilds the connection in repair mode;
//! nothing of it can be seen from outside. [`Prepared::activate`] lets it live. Dropping a
//! [`Prepared`] takes it all back without a packet.

use std::mem::take;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tcpmig_format::{
    DecodeError, FourTuple, Image, IpImage, Layer, SecretBytes, SocketFamily, SocketOptions,
    Subject, TcpParts, TcpState,
};
use tcpmig_lock::conntrack::{Arrival, ConntrackError, Known};
use tcpmig_lock::{LockError, LockGuard, Locker, Packet, Unlocked};
use tcpmig_sys::info::State;
use tcpmig_sys::netns;
use tcpmig_sys::repair::{ClosedSocket, Numbers, QueueStart, RestoringSocket, write_unsent};

mod stand_in;
mod stood;

use crate::convert;
use crate::hold::hold_on;
pub use crate::inject::INJECT_MARK;
use crate::inject::deliver;
use crate::options::{self, Fresh, NotSet, Setter, Unsupported};
use crate::segments::{self, Taken};
#[cfg(feature = "driver")]
pub(crate) use stand_in::StandIn;
use stood::Stood;

/// Why a connection was not restored. Nothing of it is left on this host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The image lacks a layer that a connection needs.
    #[error("the image has no {0} layer: it is not the image of a connection")]
    Layer(&'static str),
    /// The image is that of a listener, which [`listener::restore`](crate::listener::restore) makes.
    #[error("the image is that of a listener, not of a connection")]
    Listener,
    /// The image says that the socket has the mark [`INJECT_MARK`], with which its packets would pass every lock.
    #[error(
        "SO_MARK={INJECT_MARK:#x} is kept for what a restore injects: a socket with it would pass every lock"
    )]
    InjectMark,
    /// The image cannot be read.
    #[error("image: {0}")]
    Image(#[from] DecodeError),
    /// A state that cannot be restored.
    #[error("the image's state is {0}: there is no connection in it that can be restored")]
    State(TcpState),
    /// The peer reset the connection while it stood still.
    #[error("the peer reset the connection while it stood still")]
    Reset,
    /// It took bytes before it lived, although it was locked and mute.
    #[error("{}", crate::handover::MOVED_ON)]
    MovedOn,
    /// The packets could not be locked, or not unlocked.
    #[error("lock: {0}")]
    Lock(#[from] LockError),
    /// This host's connection tracking would not let its packets pass.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// This host cannot honour an option of the connection, and [`Unsupported::Refuse`] holds.
    #[error("{0}")]
    Option(#[from] NotSet),
    /// A call on the new socket failed.
    #[error(transparent)]
    Socket(#[from] tcpmig_sys::Error),
}

/// A connection that is rebuilt, locked and in repair mode, and [mute](tcpmig_sys::repair::mute) also when the lock has ended.
#[derive(Debug)]
#[must_use = "dropping discards the connection without a packet"]
pub struct Prepared {
    // Drop order: the socket goes before its packets are unlocked. It is `None` only while it is
    // being rebuilt.
    socket: Option<RestoringSocket>,
    known: Known,
    lock: LockGuard,
    lease: Duration,
    /// The numbers that it was built with.
    built: Numbers,
    parts: Box<Parts>,
    unsupported: Unsupported,
    not_set: Vec<NotSet>,
    /// What was taken out of the image before it came here.
    left_out: Vec<NotSet>,
    /// Whether what arrived here has changed it since it was built, once that was looked at.
    merged: Option<Result<bool, RestoreError>>,
}

/// A [`Prepared`] connection that is not mute any more, while its lock ends.
struct Opened {
    socket: RestoringSocket,
    known: Known,
    built: Numbers,
    parts: Box<Parts>,
    not_set: Vec<NotSet>,
}

impl Opened {
    /// Its lock has ended, or could not be.
    fn finish(self, unlocked: Result<Unlocked, LockError>) -> Result<Activated, Box<NotActivated>> {
        let Self {
            socket,
            built,
            mut parts,
            ..
        } = self;
        // From here on the socket takes what is let in, and keeps it: first it may hear, then packets come.
        let unlocked = match unlocked {
            Ok(unlocked) => unlocked,
            Err(error) => {
                let moved_on = moved_on(&socket, &built);
                return Err(not_activated(error.into(), None, moved_on));
            }
        };
        let reuse_addr = parts.tcp.socket.reuse_addr.unwrap_or(false);
        let socket = socket.activate(reuse_addr).map_err(|failed| {
            let moved_on = moved_on(&failed.socket, &built);
            not_activated(failed.error.into(), None, moved_on)
        })?;
        self.known.keep();
        let flow = parts.ip.flow;
        let mut late = Late { flow, unlocked };
        late.deliver(socket.as_fd());
        let restored = Restored {
            socket,
            flow,
            unwritten: if parts.tcp.state.fin_sent() {
                SecretBytes::default()
            } else {
                take(&mut parts.tcp.send.unsent)
            },
            layers: take(&mut parts.layers),
            not_set: self.not_set,
        };
        Ok(Activated {
            restored,
            parts,
            late,
        })
    }
}

/// How often what arrives is merged before the connection lives. Each time takes as long as
/// rebuilding it, and what arrives after the last is sent again by the peer.
const MERGES: usize = 4;

/// For so long connection tracking is taken to know a connection that it was told of.
const KNOWN_FOR: Duration = Duration::from_millis(20);

/// A connection that lives on this host, and of which the first has still to be written: [`Activated::write`] gives its socket.
#[derive(Debug)]
#[must_use = "dropping closes the connection"]
pub struct Activated {
    restored: Restored,
    /// Of them, the options are left.
    parts: Box<Parts>,
    late: Late,
}

/// A connection that lives on this host.
#[derive(Debug)]
#[non_exhaustive]
pub struct Restored {
    /// Its socket.
    pub socket: OwnedFd,
    /// Its addresses and ports.
    pub flow: FourTuple,
    /// What the send buffer did not take of the bytes that the application on the source had written and that were never sent. The
    /// buffer is made large enough for all of them, so that this is nothing, unless the memory of the host's sockets is used up:
    /// then it is to be written before anything else.
    pub unwritten: SecretBytes,
    /// What ran on it, from the bottom up: each is the caller's to consume.
    pub layers: Vec<Layer>,
    /// Options that the connection had and does not have here: with [`Unsupported::Warn`] any, and in any
    /// case those that [`Activated::write`] could not set.
    pub not_set: Vec<NotSet>,
}

/// Packets that the lock dropped in its last moment: after the last look at what it had captured.
#[derive(Debug)]
struct Late {
    flow: FourTuple,
    unlocked: Unlocked,
}

impl Late {
    fn deliver(&mut self, fd: BorrowedFd<'_>) {
        // A locker that does not capture has none.
        let captured = self.unlocked.captured().unwrap_or_default();
        deliver(fd, &self.flow, &captured.packets);
    }
}

impl Activated {
    /// Writes what the application on the source had written and what was never sent, as far as the send buffer takes it without
    /// waiting ([`Restored::unwritten`] is the rest), and sets what has to wait until then: the sizes of the buffers, `TCP_WINDOW_CLAMP`, `TCP_CORK`, `TCP_QUICKACK`,
    /// `SO_PEEK_OFF`, `O_NONBLOCK` and `FD_CLOEXEC`.
    ///
    /// The connection lives: what cannot be set is added to [`Restored::not_set`], whatever the policy. An
    /// error of the connection shows itself to the application, at its next call.
    #[must_use = "dropping closes the connection"]
    pub fn write(self) -> Restored {
        let Self {
            mut restored,
            parts,
            mut late,
        } = self;
        let fd = restored.socket.as_fd();
        // What another processor was dropping when the lock ended is there by now.
        late.deliver(fd);
        let written = write_unsent(fd, &restored.unwritten).unwrap_or(0);
        drop(restored.unwritten.split_to(written));
        // The buffer grew for the queue.
        options::alive(fd, &parts.tcp.socket, &mut restored.not_set);
        restored
    }
}

/// For looking at it; what is written to it comes before what has to be the first.
impl AsFd for Activated {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.restored.socket.as_fd()
    }
}

/// A connection that was not activated and is gone from this host: the reason, and what is left.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotActivated {
    /// Why.
    #[source]
    pub error: RestoreError,
    /// The lock of its packets, for as long as they may come here: one would draw an RST. `None` if it had ended
    /// already.
    pub lock: Option<LockGuard>,
    /// Whether it had taken bytes by then, as [`Prepared::has_moved_on`]: the source must not go on with it.
    pub moved_on: bool,
}

/// A connection that was not rebuilt: the reason, and the lock that was to be its own. Dropping it unlocks.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotBuilt {
    /// Why.
    #[source]
    pub error: RestoreError,
    /// The lock of its packets.
    pub lock: LockGuard,
}

/// The parts of an image that can be restored. They are large, and stay where they are from the image to the end.
#[derive(Debug)]
struct Parts {
    ip: IpImage,
    tcp: TcpParts,
    layers: Vec<Layer>,
    stood: Stood,
}

impl Parts {
    fn of(image: Image) -> Result<Box<Self>, RestoreError> {
        let Subject::Connection(connection) = image.subject else {
            return Err(RestoreError::Listener);
        };
        let ip = connection.ip.ok_or(RestoreError::Layer("IP"))?;
        if ip.mark == Some(INJECT_MARK) {
            return Err(RestoreError::InjectMark);
        }
        let tcp = connection
            .tcp
            .ok_or(RestoreError::Layer("TCP"))?
            .into_parts();
        convert::movable(tcp.state).ok_or(RestoreError::State(tcp.state))?;
        Ok(Box::new(Self {
            ip,
            tcp,
            layers: image.layers,
            stood: Stood::since_taken(image.taken),
        }))
    }

    fn rebuild(
        &self,
        lease: Duration,
        unsupported: Unsupported,
        not_set: &mut Vec<NotSet>,
    ) -> Result<(Known, RestoringSocket, Numbers), RestoreError> {
        let closed = open(&self.ip)?;
        // Before it is rebuilt: the segments that close it pass the packet filter.
        let known = Known::make_in(closed.namespace(), arrival(&self.ip, &self.tcp), lease)?;
        let (socket, built) = rebuild(
            closed,
            (&self.ip, &self.tcp, &self.stood),
            unsupported,
            not_set,
        )?;
        Ok((known, socket, built))
    }
}

impl Prepared {
    /// Locks the connection's packets for at most `lease` and rebuilds it on the calling
    /// thread's host.
    ///
    /// The connection's local address must be on this host, unless the image says freebind or
    /// transparent; in any state but ESTABLISHED and FIN-WAIT-1 also then. For those states the locker has to
    /// let [`INJECT_MARK`] pass, and the thread needs `CAP_NET_RAW`, as it does for FIN-WAIT-1.
    ///
    /// Where this host tracks connections, it knows this one from now on, so that a packet filter that lets
    /// only established connections pass lets it pass ([`Known::make`]).
    ///
    /// Its timestamp clock goes on as if the connection had not stood still since [`Image::taken`], as far as the clocks of the two
    /// hosts agree on that.
    ///
    /// A connection in SYN-SENT needs none of that, but a locker that stops what this host sends
    /// ([`NoLock`](tcpmig_lock::NoLock) does not), and takes 100 ms.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; nothing is left behind.
    pub fn build(image: Image, locker: &dyn Locker, lease: Duration) -> Result<Self, RestoreError> {
        Self::build_with(image, locker, lease, Unsupported::Refuse)
    }

    /// Like [`Prepared::build`], but with a choice of what happens to options that this host cannot
    /// honour ([`crate::options`]).
    ///
    /// # Errors
    ///
    /// Those of [`Prepared::build`].
    pub fn build_with(
        image: Image,
        locker: &dyn Locker,
        lease: Duration,
        unsupported: Unsupported,
    ) -> Result<Self, RestoreError> {
        let parts = Parts::of(image)?;
        let lock = locker.lock(&[parts.ip.flow], lease)?;
        Self::build_parts(parts, lock, lease, unsupported).map_err(|not| not.error)
    }

    /// Like [`Prepared::build_with`], but with a lock that was made before, for example by
    /// [`Locker::take_over`]: of the image's connection and no other. `lease` is what [`Prepared::renew`] prolongs it by.
    ///
    /// # Errors
    ///
    /// [`NotBuilt`], which gives the lock back: [`LockGuard::give_back`] undoes a take-over.
    /// [`LockError::NotHeld`] if the lock is not that of the image's connection.
    pub fn build_locked(
        image: Image,
        lock: LockGuard,
        lease: Duration,
        unsupported: Unsupported,
    ) -> Result<Self, Box<NotBuilt>> {
        Self::build_of(Parts::of(image), lock, lease, unsupported)
    }

    /// The same of a connection that stands still since this moment at the earliest, whatever the image says.
    #[cfg(feature = "driver")]
    pub(crate) fn build_since(
        since: std::time::Instant,
        image: Image,
        lock: LockGuard,
        lease: Duration,
        unsupported: Unsupported,
    ) -> Result<Self, Box<NotBuilt>> {
        let parts = Parts::of(image).map(|mut parts| {
            parts.stood = Stood::since(since);
            parts
        });
        Self::build_of(parts, lock, lease, unsupported)
    }

    fn build_of(
        parts: Result<Box<Parts>, RestoreError>,
        lock: LockGuard,
        lease: Duration,
        unsupported: Unsupported,
    ) -> Result<Self, Box<NotBuilt>> {
        match parts {
            Ok(parts) if lock.flows() == [parts.ip.flow] => {
                Self::build_parts(parts, lock, lease, unsupported)
            }
            Ok(parts) => {
                let error = LockError::NotHeld(parts.ip.flow).into();
                Err(Box::new(NotBuilt { error, lock }))
            }
            Err(error) => Err(Box::new(NotBuilt { error, lock })),
        }
    }

    fn build_parts(
        parts: Box<Parts>,
        lock: LockGuard,
        lease: Duration,
        unsupported: Unsupported,
    ) -> Result<Self, Box<NotBuilt>> {
        let mut not_set = Vec::new();
        match parts.rebuild(lease, unsupported, &mut not_set) {
            Ok((known, socket, built)) => Ok(Self {
                socket: Some(socket),
                known,
                built,
                lock,
                lease,
                parts,
                unsupported,
                not_set,
                left_out: Vec::new(),
                merged: None,
            }),
            Err(error) => Err(Box::new(NotBuilt { error, lock })),
        }
    }

    /// Whether [`Prepared::activate`] would wait for nothing now, apart from the locker. Then it does not look again at what
    /// arrives here, so that it has to follow at once.
    pub(crate) fn get_ready(&mut self) -> bool {
        // It has to be built again, or is lost, and that waits for whoever does it.
        if matches!(self.merged, Some(Ok(true) | Err(_))) {
            return false;
        }
        // With a user timeout the peer is listened for first.
        if tcp_waits(self.parts.tcp.state, &self.parts.tcp.socket)
            || self.parts.tcp.socket.user_timeout.unwrap_or(0) != 0
        {
            return false;
        }
        let here = self.captured();
        let merged = here.and_then(|here| self.merge(here.iter().map(|packet| &packet.bytes[..])));
        let ready = matches!(merged, Ok(false));
        self.merged = Some(merged);
        ready
    }

    /// Makes what arrived so far part of the connection, so that nothing is left to rebuild, and gives its socket: for whoever
    /// is to have a duplicate of it when it lives. What arrives until [`Prepared::activate`] is not taken in, and the peer sends it again.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; it can only be [discarded](Prepared::discard).
    pub fn settle(&mut self) -> Result<BorrowedFd<'_>, RestoreError> {
        let socket = self.take_in([])?;
        self.merged = Some(Ok(false));
        let socket = &*self.socket.insert(socket);
        Ok(socket.as_fd())
    }

    /// Its addresses and ports.
    #[must_use]
    pub fn flow(&self) -> FourTuple {
        self.parts.ip.flow
    }

    /// Prolongs the lock by the lease that it was made with, and takes it again if it has ended.
    ///
    /// # Errors
    ///
    /// [`LockError`]: the connection is still mute.
    pub fn renew(&mut self, locker: &dyn Locker) -> Result<(), LockError> {
        hold_on(&mut self.lock, self.lease, locker)
    }

    /// Whether the connection has taken bytes since it was built, which it can only if it was not mute and its lock ended.
    /// Then nobody may have it back: the peer believes that they were received.
    #[must_use]
    pub fn has_moved_on(&self) -> bool {
        // There is none only while it is being built anew from what is known of it.
        let socket = self.socket.as_ref();
        socket.is_some_and(|socket| moved_on(socket, &self.built))
    }

    /// Options that the connection had and its image has not: they are reported with those that could
    /// not be set.
    pub(crate) fn leave_out(&mut self, options: Vec<NotSet>) {
        self.left_out = options;
    }

    /// Takes the connection back without a packet. Its packets stay locked as long as the guard:
    /// one that still comes here would draw an RST.
    pub fn discard(self) -> LockGuard {
        drop(self.socket);
        self.lock
    }

    /// Unlocks the packets, ends a redirect of them that this host still has, and switches
    /// repair off: the connection lives. [`Activated::write`] gives its socket.
    ///
    /// What arrived here meanwhile, if the locker captures, becomes part of it first.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; the connection was discarded without a packet.
    pub fn activate(self) -> Result<Activated, RestoreError> {
        self.activate_with([]).map_err(|failed| failed.error)
    }

    /// Like [`Prepared::activate`], but with packets for the connection that arrived elsewhere, earlier:
    /// from their IP headers on, in the order of their arrival. They are not trusted: what is no
    /// segment that the connection would have taken changes nothing.
    ///
    /// # Errors
    ///
    /// [`NotActivated`]: the connection was discarded without a packet.
    pub fn activate_with<'a>(
        self,
        arrived: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Activated, Box<NotActivated>> {
        let (opened, lock) = self.open(arrived)?;
        opened.finish(lock.released())
    }

    /// Like [`Prepared::activate_with`] for each of these, which are unlocked in one step if they can be.
    #[cfg(feature = "driver")]
    pub(crate) fn activate_each<'a, P: IntoIterator<Item = &'a [u8]>>(
        all: impl IntoIterator<Item = (Self, P)>,
    ) -> Vec<Result<Activated, Box<NotActivated>>> {
        let mut locks = Vec::new();
        let opened: Vec<Result<_, Box<NotActivated>>> = all
            .into_iter()
            .map(|(prepared, arrived)| {
                let (opened, lock) = prepared.open(arrived)?;
                locks.push(lock);
                Ok(opened)
            })
            .collect();
        let mut unlocked = LockGuard::release_each(locks).into_iter();
        opened
            .into_iter()
            .map(|opened| {
                let opened = opened?;
                // INVARIANT: each that was opened has a lock, in the same order.
                opened.finish(unlocked.next().expect("it was locked"))
            })
            .collect()
    }

    /// Lets it hear what its lock lets through, which has to end at once. Its lock comes with it.
    fn open<'a>(
        mut self,
        arrived: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Opened, LockGuard), Box<NotActivated>> {
        let mut socket = match self.take_in(arrived) {
            Ok(socket) => socket,
            Err(error) => {
                let moved_on = self.has_moved_on();
                let lock = Some(self.discard());
                return Err(not_activated(error, lock, moved_on));
            }
        };
        if let Err(error) = socket.unmute() {
            let moved_on = moved_on(&socket, &self.built);
            drop(socket);
            return Err(not_activated(error.into(), Some(self.lock), moved_on));
        }
        let opened = Opened {
            socket,
            known: self.known,
            built: self.built,
            parts: self.parts,
            not_set: self.left_out.into_iter().chain(self.not_set).collect(),
        };
        Ok((opened, self.lock))
    }

    /// Makes what arrived part of the connection, and takes its socket.
    fn take_in<'a>(
        &mut self,
        arrived: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<RestoringSocket, RestoreError> {
        // One that was made a moment ago can as well be removed a moment later.
        if self.known.age() > KNOWN_FOR {
            self.known.check()?;
        }
        let merged = self.merged.take();
        let is_ready = matches!(merged, Some(Ok(false)));
        let mut changed = merged.transpose()?.unwrap_or(false);
        changed |= self.merge(arrived)?;
        for _ in 0..MERGES {
            if is_ready && !changed {
                break;
            }
            let here = self.captured()?;
            changed |= self.merge(here.iter().map(|packet| &packet.bytes[..]))?;
            if !take(&mut changed) {
                break;
            }
            // What it has taken by itself would not be in the next one.
            if self.has_moved_on() {
                return Err(RestoreError::MovedOn);
            }
            let socket = self.socket.take();
            let before = socket.and_then(|socket| stand_in::step_aside(socket, &self.parts.ip));
            // What was injected for the first one may have closed it for connection tracking.
            self.known.renew()?;
            self.not_set.clear();
            let (policy, not_set) = (self.unsupported, &mut self.not_set);
            let closed = open(&self.parts.ip)?;
            let what = (&self.parts.ip, &self.parts.tcp, &self.parts.stood);
            let (socket, built) = rebuild(closed, what, policy, not_set)?;
            self.socket = Some(socket);
            self.built = built;
            drop(before);
        }
        // INVARIANT: it was built before and each time that it was taken down.
        Ok(self
            .socket
            .take()
            .expect("a prepared connection has a socket"))
    }

    fn captured(&mut self) -> Result<Vec<Packet>, RestoreError> {
        match self.lock.captured() {
            Ok(captured) => Ok(captured.packets),
            // What arrived after the end of a lock did not pass the socket, which is mute: the peer sends it again.
            Err(LockError::Unsupported { .. } | LockError::NotHeld(_)) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Merges packets into what the socket is rebuilt from; whether they changed anything.
    fn merge<'a>(
        &mut self,
        packets: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<bool, RestoreError> {
        match segments::take_in(&mut self.parts.tcp, &self.parts.ip.flow, packets) {
            Taken::Nothing => Ok(false),
            Taken::Changed => Ok(true),
            Taken::Reset => Err(RestoreError::Reset),
        }
    }
}

/// Whether to build this can wait, apart from the locker: for time to pass, or for what is sent in the peer's name to arrive.
pub(crate) fn waits(image: &Image) -> bool {
    let tcp = image.tcp();
    tcp.is_some_and(|tcp| tcp_waits(tcp.state(), tcp.socket()))
}

fn tcp_waits(state: TcpState, options: &SocketOptions) -> bool {
    state != TcpState::Established || measures(options)
}

/// Whether the last of the receive queue has to arrive as a segment: the application set the size of the buffer.
fn measures(options: &SocketOptions) -> bool {
    options.receive_buffer.is_some()
        && options.buffer_lock.unwrap_or(0) & RECEIVE_BUFFER_LOCKED != 0
}

/// What connection tracking on this host has to know.
fn arrival(ip: &IpImage, tcp: &TcpParts) -> Arrival {
    let mut arrival = Arrival::new(ip.flow);
    arrival.opening = tcp.state == TcpState::SynSent;
    arrival.sack = tcp.negotiated.sack;
    let scale = tcp.negotiated.window_scale;
    arrival.window_scale = scale.map(|scale| (scale.rcv, scale.snd));
    arrival
}

/// A socket that cannot say may have.
fn moved_on(socket: &RestoringSocket, built: &Numbers) -> bool {
    socket.numbers().ok().as_ref() != Some(built)
}

fn not_activated(
    error: RestoreError,
    lock: Option<LockGuard>,
    moved_on: bool,
) -> Box<NotActivated> {
    Box::new(NotActivated {
        error,
        lock,
        moved_on,
    })
}

/// A socket in repair mode, of the connection's family.
fn open(ip: &IpImage) -> Result<ClosedSocket, RestoreError> {
    Ok(ClosedSocket::open(ip.family != SocketFamily::Ipv4)?)
}

/// Gives it all that the image holds.
fn rebuild(
    closed: ClosedSocket,
    (ip, tcp, stood): (&IpImage, &TcpParts, &Stood),
    unsupported: Unsupported,
    not_set: &mut Vec<NotSet>,
) -> Result<(RestoringSocket, Numbers), RestoreError> {
    let state = convert::movable(tcp.state).ok_or(RestoreError::State(tcp.state))?;
    let fresh = options::fresh(closed.namespace(), ip.family);
    let mut socket = connect(closed, ip, tcp, (unsupported, fresh), not_set)?;
    fill(&mut socket, tcp, state, stood)?;
    let mut set = Setter::new(socket.as_fd(), unsupported, not_set).knowing(fresh);
    options::connected(&mut set, ip, &tcp.socket)?;
    socket.hold()?;
    let built = match state {
        // Nothing was verified of it.
        State::SynSent => socket.numbers()?,
        _ => convert::numbers(tcp, state),
    };
    Ok((socket, built))
}

/// The device of link-local addresses, 0 if it has none.
fn scope(ip: &IpImage) -> Result<u32, RestoreError> {
    match &ip.scope {
        Some(name) => Ok(netns::device_index(name)?),
        None => Ok(0),
    }
}

/// The address as the socket's family has it.
fn endpoint(address: SocketAddr, ip: &IpImage, scope: u32) -> SocketAddr {
    match (address, ip.family) {
        (SocketAddr::V4(v4), SocketFamily::Ipv4Mapped) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        (SocketAddr::V6(mut v6), _) if v6.ip().is_unicast_link_local() => {
            v6.set_scope_id(scope);
            v6.into()
        }
        (address, _) => address,
    }
}

fn connect(
    closed: ClosedSocket,
    ip: &IpImage,
    tcp: &TcpParts,
    (unsupported, fresh): (Unsupported, Option<Fresh>),
    not_set: &mut Vec<NotSet>,
) -> Result<RestoringSocket, RestoreError> {
    let scope = scope(ip)?;
    let mut set = Setter::new(closed.as_fd(), unsupported, not_set).knowing(fresh);
    let flow_label = options::before_bind(&mut set, ip, &tcp.socket)?;
    if tcp.negotiated.window_scale.is_none() {
        closed.unscaled()?;
    }
    let bound = closed.bind(endpoint(ip.flow.local(), ip, scope))?;
    let remote = endpoint(ip.flow.remote(), ip, scope);
    if tcp.state == TcpState::SynSent {
        let initial = (tcp.send.snd_una - 1).get();
        return Ok(bound.open_again(remote, initial, convert::timestamp(&tcp.negotiated))?);
    }
    let start = QueueStart {
        snd_una: tcp.send.snd_una.get(),
        copied_seq: tcp.receive.copied_seq().get(),
    };
    let mut remote = endpoint(ip.flow.remote(), ip, scope);
    if let (SocketAddr::V6(remote), Some(label)) = (&mut remote, flow_label) {
        // The kernel's `sin6_flowinfo` is in network byte order.
        remote.set_flowinfo(label.to_be());
    }
    Ok(bound.connect(remote, start, tcp.negotiated.mss_clamp)?)
}

fn fill(
    socket: &mut RestoringSocket,
    tcp: &TcpParts,
    state: State,
    stood: &Stood,
) -> Result<(), RestoreError> {
    if state == State::SynSent {
        return Ok(());
    }
    let negotiated = convert::negotiated(&tcp.negotiated);
    let clock = convert::timestamp(&tcp.negotiated).map(|clock| stood.advance(clock));
    socket.negotiated(&negotiated, clock)?;
    let queue = &tcp.receive.queue;
    match tcp.socket.receive_buffer {
        Some(buffer) if measures(&tcp.socket) => {
            socket.fill_measured_receive_queue(queue, buffer / 2, INJECT_MARK)?;
        }
        _ => socket.fill_receive_queue(queue)?,
    }
    if let Some(ended) = convert::ended(tcp) {
        socket.restore_closed(ended, INJECT_MARK)?;
        socket.verify(&convert::numbers(tcp, state), &negotiated)?;
        return Ok(());
    }
    socket.fill_send_queue(&tcp.send.sent, tcp.send.unsent.len())?;
    socket.enter_state(state, convert::closed_behind(tcp), INJECT_MARK)?;
    socket.window(convert::window(tcp))?;
    socket.verify(&convert::numbers(tcp, state), &negotiated)?;
    Ok(())
}

/// In `SO_BUF_LOCK`: the application set the size of the receive buffer.
const RECEIVE_BUFFER_LOCKED: u8 = 2;
