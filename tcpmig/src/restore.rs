//! From an image to a live socket.
//!
//! [`Prepared::build`] locks the packets and rebuilds the connection under repair;
//! nothing of it can be seen from outside. [`Prepared::activate`] lets it live. Dropping a
//! [`Prepared`] takes it all back without a packet.

use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tcpmig_format::{
    AppImage, FourTuple, Image, IpImage, Octets, SocketFamily, SocketOptions, TcpParts, TcpState,
};
use tcpmig_lock::{LockError, LockGuard, Locker, Packet};
use tcpmig_sys::info::State;
use tcpmig_sys::rebuild::{ClosedSocket, QueueStart, RestoringSocket, write_unsent};
use tcpmig_sys::{flags, netns, sockopt};

use crate::convert;
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
    options: SocketOptions,
}

impl Restored {
    /// Writes what of [`Restored::unwritten`] the send buffer takes without waiting, and sets
    /// what has to wait until then: the size of the buffer, `TCP_CORK` and `O_NONBLOCK`.
    ///
    /// An error of the connection shows itself to the application, at its next call.
    pub fn write(&mut self) {
        let fd = self.socket.as_fd();
        let written = write_unsent(fd, &self.unwritten).unwrap_or(0);
        drop(self.unwritten.split_to(written));
        // The buffer grew for the queue. Options that cannot be set do not end the connection.
        let _ = set_buffers(fd, &self.options);
        if self.options.cork == Some(true) {
            let _ = sockopt::set_cork(fd, true);
        }
        if self.options.non_blocking == Some(false) {
            let _ = flags::set_non_blocking(fd, false);
        }
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
    /// A connection in SYN-SENT needs none of that, but a locker that stops what this host sends
    /// ([`NoLock`](tcpmig_lock::NoLock) does not), and takes 100 ms.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; nothing is left behind.
    pub fn build(image: Image, locker: &dyn Locker, lease: Duration) -> Result<Self, RestoreError> {
        if image.listen.is_some() {
            return Err(RestoreError::Listener);
        }
        let ip = image.ip.ok_or(RestoreError::Layer("IP"))?;
        let tcp = image.tcp.ok_or(RestoreError::Layer("TCP"))?.into_parts();
        convert::movable(tcp.state).ok_or(RestoreError::State(tcp.state))?;
        let lock = locker.lock(&[ip.flow], lease)?;
        Ok(Self {
            socket: Some(rebuild(&ip, &tcp)?),
            lock,
            ip,
            tcp,
            app: image.app,
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
        self.activate_with([])
    }

    /// As [`Prepared::activate`], with packets for the connection that arrived elsewhere, earlier:
    /// from their IP headers on, in the order of their arrival. They are not trusted: what is no
    /// segment that the connection would have taken changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Prepared::activate`].
    pub fn activate_with<'a>(
        mut self,
        arrived: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Restored, RestoreError> {
        let mut changed = self.merge(arrived)?;
        for _ in 0..MERGES {
            let here = self.captured()?;
            changed |= self.merge(here.iter().map(|packet| &packet.octets[..]))?;
            if !std::mem::take(&mut changed) {
                break;
            }
            // The same four-tuple cannot be there twice.
            self.socket = None;
            self.socket = Some(rebuild(&self.ip, &self.tcp)?);
        }
        // INVARIANT: it was built before and each time that it was taken down.
        let socket = self
            .socket
            .take()
            .expect("a prepared connection has a socket");
        self.lock.release()?;
        let options = self.tcp.socket;
        let socket = socket.activate(options.reuse_addr.unwrap_or(false))?;
        Ok(Restored {
            socket,
            flow: self.ip.flow,
            unwritten: if self.tcp.state.fin_sent() {
                Octets::default()
            } else {
                self.tcp.send.unsent
            },
            app: self.app,
            options,
        })
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
fn rebuild(ip: &IpImage, tcp: &TcpParts) -> Result<RestoringSocket, RestoreError> {
    let state = convert::movable(tcp.state).ok_or(RestoreError::State(tcp.state))?;
    let mut socket = connect(ip, tcp)?;
    fill(&mut socket, tcp, state)?;
    set_options(socket.as_fd(), &tcp.socket)?;
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

fn connect(ip: &IpImage, tcp: &TcpParts) -> Result<RestoringSocket, RestoreError> {
    let v6 = ip.family != SocketFamily::Ipv4;
    let closed = ClosedSocket::open(v6)?;
    let fd = closed.as_fd();
    let scope = match &ip.scope {
        Some(name) => netns::device_index(name)?,
        None => 0,
    };
    if let Some(device) = &ip.bound_device {
        sockopt::set_bound_device(fd, device)?;
    }
    if let Some(mark) = ip.mark {
        sockopt::set_mark(fd, mark)?;
    }
    if let Some(ttl) = ip.ttl {
        sockopt::set_ttl(fd, i32::from(ttl))?;
    }
    if let Some(tos) = ip.tos {
        sockopt::set_tos(fd, i32::from(tos))?;
    }
    // After TOS, which changes the priority too.
    if let Some(priority) = ip.priority {
        sockopt::set_priority(fd, priority)?;
    }
    if v6 {
        if let Some(v6_only) = ip.v6_only {
            sockopt::set_v6_only(fd, v6_only)?;
        }
        if let Some(hop_limit) = ip.hop_limit {
            sockopt::set_hop_limit(fd, i32::from(hop_limit))?;
        }
        if let Some(traffic_class) = ip.traffic_class {
            sockopt::set_traffic_class(fd, i32::from(traffic_class))?;
        }
        sockopt::set_transparent_v6(fd, ip.transparent)?;
        sockopt::set_freebind_v6(fd, ip.freebind)?;
    } else {
        sockopt::set_transparent(fd, ip.transparent)?;
        sockopt::set_freebind(fd, ip.freebind)?;
    }
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

/// Everything that does not decide binding or routing, that repair mode keeps and that does not act on the queues.
pub(crate) fn set_options(fd: BorrowedFd<'_>, options: &SocketOptions) -> Result<(), RestoreError> {
    macro_rules! set {
        ($($value:expr => $set:ident;)*) => {
            $(if let Some(value) = $value {
                sockopt::$set(fd, value)?;
            })*
        };
    }
    set! {
        options.reuse_port => set_reuse_port;
        options.oob_inline => set_oob_inline;
        options.no_delay => set_no_delay;
        options.receive_low_water.filter(|&octets| octets != 1) => set_receive_low_water;
        options.user_timeout => set_user_timeout;
        options.not_sent_low_water => set_not_sent_low_water;
        options.linger2 => set_linger2;
        options.syn_count => set_syn_count;
        options.window_clamp => set_window_clamp;
    }
    if options.shut_read == Some(true) {
        flags::shut_read(fd)?;
    }
    if let Some(name) = &options.congestion {
        sockopt::set_congestion(fd, name)?;
    }
    if let Some(linger) = options.linger {
        sockopt::set_linger(fd, linger.on.then_some(linger.seconds))?;
    }
    if let Some(keep) = options.keep_alive {
        sockopt::set_keep_idle(fd, keep.idle)?;
        sockopt::set_keep_interval(fd, keep.interval)?;
        sockopt::set_keep_count(fd, keep.count)?;
        sockopt::set_keep_alive(fd, keep.on)?;
    }
    Ok(())
}

/// In `SO_BUF_LOCK`: the application set the size of the receive buffer.
const RECEIVE_BUFFER_LOCKED: u8 = 2;

/// Buffers as large as they were. One that tuned itself goes on doing so.
pub(crate) fn set_buffers(
    fd: BorrowedFd<'_>,
    options: &SocketOptions,
) -> Result<(), tcpmig_sys::Error> {
    // The kernel doubles what it is given.
    if let Some(octets) = options.send_buffer {
        sockopt::set_send_buffer(fd, octets / 2)?;
    }
    if let Some(octets) = options.receive_buffer {
        sockopt::set_receive_buffer(fd, octets / 2)?;
    }
    match sockopt::set_buffer_lock(fd, u32::from(options.buffer_lock.unwrap_or(0))) {
        Err(tcpmig_sys::Error::Unsupported { .. }) => Ok(()),
        other => other,
    }
}
