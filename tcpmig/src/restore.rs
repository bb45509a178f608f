//! From an image to a live socket.
//!
//! [`Prepared::build`] locks the packets and rebuilds the connection under repair;
//! nothing of it can be seen from outside. [`Prepared::activate`] lets it live. Dropping a
//! [`Prepared`] takes it all back without a packet.

use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tcpmig_format::{
    AppImage, FourTuple, Image, IpImage, Octets, SocketFamily, SocketOptions, TcpParts, TcpState,
};
use tcpmig_lock::{LockError, LockGuard, Locker, Packet};
use tcpmig_sys::info::State;
use tcpmig_sys::netns;
use tcpmig_sys::rebuild::{ClosedSocket, QueueStart, RestoringSocket, write_unsent};

use crate::convert;
use crate::options::{self, NotSet, Setter, Unsupported};
use crate::segments::{self, Taken};

/// The firewall mark of packets that a restore sends to this host in the peer's name.
///
/// A connection that the peer has closed, or whose closing the peer has acknowledged, is rebuilt with
/// segments of the peer, sent from this host to itself while its packets are locked. The locker has to let
/// this mark pass (`Nftables::new()?.exempt_mark(INJECT_MARK)`), and so has the packet filter of the
/// host.
pub const INJECT_MARK: u32 = 0x7463_706d;

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
    /// A state that cannot be restored.
    #[error("the image's state is {0}: there is no connection in it that can be restored")]
    State(TcpState),
    /// The peer reset the connection while it stood still.
    #[error("the peer reset the connection while it stood still")]
    Reset,
    /// The packets could not be locked, or not unlocked.
    #[error("lock: {0}")]
    Lock(#[from] LockError),
    /// This host cannot honour an option of the connection, and [`Unsupported::Refuse`] holds.
    #[error("{0}")]
    Option(#[from] NotSet),
    /// A call on the new socket failed.
    #[error(transparent)]
    Socket(#[from] tcpmig_sys::Error),
}

/// A connection that is rebuilt, locked and under repair.
#[derive(Debug)]
#[must_use = "dropping discards the connection without a packet"]
pub struct Prepared {
    // Drop order: the socket goes before its packets are unlocked. It is `None` only while it is
    // being rebuilt.
    socket: Option<RestoringSocket>,
    lock: LockGuard,
    ip: IpImage,
    tcp: TcpParts,
    app: Option<AppImage>,
    unsupported: Unsupported,
    not_set: Vec<NotSet>,
}

/// How often what arrives is merged before the connection lives. Each time takes as long as
/// rebuilding it, and what arrives after the last is sent again by the peer.
const MERGES: usize = 4;

/// A connection that lives on this host.
#[derive(Debug)]
pub struct Restored {
    /// Its socket.
    pub socket: OwnedFd,
    /// Its addresses and ports.
    pub flow: FourTuple,
    /// Octets that the application on the source had written and that were never sent: they
    /// are to be written before anything else. None if it had closed behind them: then they are in the socket. [`Restored::write`] writes what the send buffer takes.
    pub unwritten: Octets,
    /// The application's state.
    pub app: Option<AppImage>,
    /// Options that the connection had and does not have here: with [`Unsupported::Warn`] any, and in any
    /// case those that [`Restored::write`] could not set.
    pub not_set: Vec<NotSet>,
    options: SocketOptions,
}

impl Restored {
    /// Writes what of [`Restored::unwritten`] the send buffer takes without waiting, and sets
    /// what has to wait until then: the sizes of the buffers, `TCP_WINDOW_CLAMP`, `TCP_CORK`, `TCP_QUICKACK`,
    /// `SO_PEEK_OFF`, `O_NONBLOCK` and `FD_CLOEXEC`.
    ///
    /// The connection lives: what cannot be set is added to [`Restored::not_set`], whatever the policy. An
    /// error of the connection shows itself to the application, at its next call.
    pub fn write(&mut self) {
        let fd = self.socket.as_fd();
        let written = write_unsent(fd, &self.unwritten).unwrap_or(0);
        drop(self.unwritten.split_to(written));
        // The buffer grew for the queue.
        options::alive(fd, &self.options, &mut self.not_set);
    }
}

/// A connection that was not activated and is gone from this host: the reason, and what is left.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotActivated {
    /// Why.
    #[source]
    pub error: RestoreError,
    /// The lock of its packets, for as long as they may come here: one would draw an RST. `None` if it had ended
    /// already.
    pub lock: Option<LockGuard>,
}

impl Prepared {
    /// Locks the connection's packets for at most `lease` and rebuilds it on the calling
    /// thread's host.
    ///
    /// The connection's local address must be on this host, unless the image says freebind or
    /// transparent; in any state but ESTABLISHED and FIN-WAIT-1 also then. For those states the locker has to
    /// let [`INJECT_MARK`] pass, and the thread needs `CAP_NET_RAW`, as it does for FIN-WAIT-1.
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

    /// As [`Prepared::build`], with a choice of what happens to options that this host cannot
    /// honour ([`crate::options`]).
    ///
    /// # Errors
    ///
    /// As [`Prepared::build`].
    pub fn build_with(
        image: Image,
        locker: &dyn Locker,
        lease: Duration,
        unsupported: Unsupported,
    ) -> Result<Self, RestoreError> {
        if image.listen.is_some() {
            return Err(RestoreError::Listener);
        }
        let ip = image.ip.ok_or(RestoreError::Layer("IP"))?;
        let tcp = image.tcp.ok_or(RestoreError::Layer("TCP"))?.into_parts();
        convert::movable(tcp.state).ok_or(RestoreError::State(tcp.state))?;
        let lock = locker.lock(&[ip.flow], lease)?;
        let mut not_set = Vec::new();
        Ok(Self {
            socket: Some(rebuild(&ip, &tcp, unsupported, &mut not_set)?),
            lock,
            ip,
            tcp,
            app: image.app,
            unsupported,
            not_set,
        })
    }

    /// Its addresses and ports.
    #[must_use]
    pub fn flow(&self) -> FourTuple {
        self.ip.flow
    }

    /// Takes the connection back without a packet. Its packets stay locked as long as the guard:
    /// one that still comes here would draw an RST.
    pub fn discard(self) -> LockGuard {
        drop(self.socket);
        self.lock
    }

    /// Unlocks the packets, ends a redirect of them that this host still has, and switches
    /// repair off: the connection lives. [`Restored::write`] has to follow.
    ///
    /// What arrived here meanwhile, if the locker captures, becomes part of it first.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; the connection was discarded without a packet.
    pub fn activate(self) -> Result<Restored, RestoreError> {
        self.activate_with([]).map_err(|failed| failed.error)
    }

    /// As [`Prepared::activate`], with packets for the connection that arrived elsewhere, earlier:
    /// from their IP headers on, in the order of their arrival. They are not trusted: what is no
    /// segment that the connection would have taken changes nothing.
    ///
    /// # Errors
    ///
    /// [`NotActivated`]: the connection was discarded without a packet.
    pub fn activate_with<'a>(
        mut self,
        arrived: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Restored, Box<NotActivated>> {
        let socket = match self.take_in(arrived) {
            Ok(socket) => socket,
            Err(error) => {
                let lock = Some(self.discard());
                return Err(Box::new(NotActivated { error, lock }));
            }
        };
        let unlocked = |error| Box::new(NotActivated { error, lock: None });
        self.lock.release().map_err(|e| unlocked(e.into()))?;
        let options = self.tcp.socket;
        let socket = socket
            .activate(options.reuse_addr.unwrap_or(false))
            .map_err(|e| unlocked(e.into()))?;
        Ok(Restored {
            socket,
            flow: self.ip.flow,
            unwritten: if self.tcp.state.fin_sent() {
                Octets::default()
            } else {
                self.tcp.send.unsent
            },
            app: self.app,
            not_set: self.not_set,
            options,
        })
    }

    /// Makes what arrived part of the connection, and takes its socket.
    fn take_in<'a>(
        &mut self,
        arrived: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<RestoringSocket, RestoreError> {
        let mut changed = self.merge(arrived)?;
        for _ in 0..MERGES {
            let here = self.captured()?;
            changed |= self.merge(here.iter().map(|packet| &packet.octets[..]))?;
            if !std::mem::take(&mut changed) {
                break;
            }
            // The same four-tuple cannot be there twice.
            self.socket = None;
            self.not_set.clear();
            let (policy, not_set) = (self.unsupported, &mut self.not_set);
            self.socket = Some(rebuild(&self.ip, &self.tcp, policy, not_set)?);
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
            Err(LockError::Unsupported { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Merges packets into what the socket is rebuilt from; whether they changed anything.
    fn merge<'a>(
        &mut self,
        packets: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<bool, RestoreError> {
        match segments::take_in(&mut self.tcp, &self.ip.flow, packets) {
            Taken::Nothing => Ok(false),
            Taken::Changed => Ok(true),
            Taken::Reset => Err(RestoreError::Reset),
        }
    }
}

/// A socket under repair with all that the image holds.
fn rebuild(
    ip: &IpImage,
    tcp: &TcpParts,
    unsupported: Unsupported,
    not_set: &mut Vec<NotSet>,
) -> Result<RestoringSocket, RestoreError> {
    let state = convert::movable(tcp.state).ok_or(RestoreError::State(tcp.state))?;
    let mut socket = connect(ip, tcp, unsupported, not_set)?;
    fill(&mut socket, tcp, state)?;
    let mut set = Setter::new(socket.as_fd(), unsupported, not_set);
    options::connected(&mut set, ip, &tcp.socket)?;
    Ok(socket)
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
    ip: &IpImage,
    tcp: &TcpParts,
    unsupported: Unsupported,
    not_set: &mut Vec<NotSet>,
) -> Result<RestoringSocket, RestoreError> {
    let closed = ClosedSocket::open(ip.family != SocketFamily::Ipv4)?;
    let scope = match &ip.scope {
        Some(name) => netns::device_index(name)?,
        None => 0,
    };
    let mut set = Setter::new(closed.as_fd(), unsupported, not_set);
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

fn fill(socket: &mut RestoringSocket, tcp: &TcpParts, state: State) -> Result<(), RestoreError> {
    if state == State::SynSent {
        return Ok(());
    }
    let negotiated = convert::negotiated(&tcp.negotiated);
    socket.negotiated(&negotiated, convert::timestamp(&tcp.negotiated))?;
    let queue = &tcp.receive.queue;
    let fixed = tcp.socket.buffer_lock.unwrap_or(0) & RECEIVE_BUFFER_LOCKED != 0;
    match tcp.socket.receive_buffer {
        Some(buffer) if fixed => {
            socket.fill_measured_receive_queue(queue, buffer / 2, INJECT_MARK)?;
        }
        _ => socket.fill_receive_queue(queue)?,
    }
    if let Some(ended) = convert::ended(tcp) {
        socket.end(ended, INJECT_MARK)?;
        socket.verify(&convert::marks(tcp, state), &negotiated)?;
        return Ok(());
    }
    socket.fill_send_queue(&tcp.send.sent, tcp.send.unsent.len())?;
    socket.reach(state, convert::closed_behind(tcp), INJECT_MARK)?;
    socket.window(convert::window(tcp))?;
    socket.verify(&convert::marks(tcp, state), &negotiated)?;
    Ok(())
}

/// In `SO_BUF_LOCK`: the application set the size of the receive buffer.
const RECEIVE_BUFFER_LOCKED: u8 = 2;
