//! From a live socket to an image.
//!
//! [`Plan::read`] reads what does not change, [`Frozen::freeze`] locks the packets and puts
//! the socket in repair mode, [`Frozen::capture`] reads the rest. Then the connection is kept
//! ([`Frozen::keep`]) or given up ([`Frozen::discard`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Weak;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tcpmig_format::{
    ConnectionImage, FlowError, FourTuple, Image, InvalidTcp, IpImage, Layer, SocketOptions,
    TcpImage,
};
use tcpmig_lock::conntrack::{self, Translation};
use tcpmig_lock::{LockError, LockGuard, Locker, NextHop, Packet};
use tcpmig_sys::info::State;
use tcpmig_sys::repair::{self, FrozenSocket, Progress};

#[cfg(feature = "driver")]
use crate::draft;
#[cfg(feature = "driver")]
use crate::hold::Holding;
use crate::hold::{Hold, Keep};
use crate::inject::{INJECT_MARK, deliver};
use crate::segments::{self, Taken};
use crate::{convert, options};

mod locked;

pub use locked::Locked;

/// Why a connection was not captured. It goes on where it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The connection cannot be moved, or a call on its socket failed.
    #[error(transparent)]
    Socket(#[from] tcpmig_sys::Error),
    /// Its addresses are not those of a connection between two hosts.
    #[error("addresses: {0}")]
    Flow(#[from] FlowError),
    /// Its packets could not be locked.
    #[error("lock: {0}")]
    Lock(#[from] LockError),
    /// The kernel's numbers contradict each other.
    #[error("the connection's numbers: {0}")]
    Invalid(#[from] InvalidTcp),
    /// This host rewrites the connection's packets. The peer knows other addresses, or other sequence numbers, than the
    /// socket has, and another host would not rewrite them in the same way.
    #[error("this host's connection tracking translates its packets ({0})")]
    Translated(Box<Translation>),
    /// Connection tracking could not be asked.
    #[error("connection tracking: {0}")]
    Conntrack(#[source] LockError),
    /// The socket has the mark [`INJECT_MARK`], which locks let pass: it could not be locked.
    #[error(
        "the socket has SO_MARK={INJECT_MARK:#x}, which is kept for what a restore injects and passes every lock"
    )]
    InjectMark,
    /// The peer reset the connection while its packets were locked.
    #[error("the peer reset the connection while its packets were locked")]
    Reset,
    /// The connection moved on after it was read.
    #[error("the connection moved on while it was locked (a packet passed the lock's beginning)")]
    MovedOn,
}

impl CaptureError {
    /// Whether the reason is in the connection itself, so that others can still be moved.
    #[must_use]
    pub fn is_not_migratable(&self) -> bool {
        matches!(
            self,
            Self::Socket(tcpmig_sys::Error::NotMigratable(_))
                | Self::InjectMark
                | Self::Translated(_)
        )
    }
}

/// What of a connection can be read while it lives: addresses and options.
///
/// Reading it before the freeze keeps it out of the time in which the connection stands still.
#[derive(Debug, Clone)]
pub struct Plan {
    known: Box<Known>,
}

/// It is large, and a plan passes through several hands.
#[derive(Debug, Clone)]
struct Known {
    ip: IpImage,
    socket: SocketOptions,
    ended: bool,
}

impl Plan {
    /// Reads addresses and options. The socket is not touched.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Socket`] with [`NotMigratable`](tcpmig_sys::NotMigratable) if it is not
    /// a TCP connection in a state that can be moved, or with the call that failed; [`CaptureError::Translated`] if this
    /// host rewrites its packets, as far as that can be seen (see [`conntrack`]).
    pub fn read(fd: BorrowedFd<'_>) -> Result<Self, CaptureError> {
        let info = repair::check(fd)?;
        let seen = tcpmig_sys::options::check_further(fd)?;
        let ip = options::ip(fd, &seen)?;
        if let Some(translation) =
            conntrack::translation_in(seen.namespace, &ip.flow).map_err(CaptureError::Conntrack)?
        {
            return Err(CaptureError::Translated(Box::new(translation)));
        }
        Ok(Self {
            known: Box::new(Known {
                ip,
                socket: options::socket(fd, &seen.told, seen.filter.as_deref())?,
                ended: info.state == State::Close,
            }),
        })
    }

    /// Whether the connection has ended (CLOSE). It has no packets, and its addresses and ports can be those of another
    /// connection by now: do not lock or steer them.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.known.ended
    }

    /// The connection's addresses and ports.
    #[must_use]
    pub fn flow(&self) -> FourTuple {
        self.known.ip.flow
    }

    /// What of its image is known, with the layers that run on it from the bottom up.
    #[cfg(feature = "driver")]
    pub(crate) fn draft(&self, layers: impl IntoIterator<Item = Layer>) -> Image {
        draft::new(self.known.ip.clone(), self.known.socket.clone(), layers)
    }
}

/// A connection that stands still: its packets are locked and its socket is in repair mode, and [mute](tcpmig_sys::repair::mute) also
/// when the lock has ended.
///
/// Dropping it keeps it: unlocked first, so that the probe at the end of repair can leave and
/// fetch what the peer acknowledged meanwhile, then thawed.
#[derive(Debug)]
#[must_use = "dropping keeps the connection here"]
pub struct Frozen {
    // Drop order: unlock, then thaw.
    hold: Hold,
    socket: FrozenSocket,
    plan: Plan,
    /// How far it had come when it was read.
    read: Option<Progress>,
    /// All that was captured: the connection gets it if it is kept.
    captured: Vec<Packet>,
}

/// A connection that was not frozen: the reason, and the descriptor back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotFrozen {
    /// The descriptor, in use as before.
    pub fd: OwnedFd,
    /// Why.
    #[source]
    pub error: CaptureError,
}

impl Frozen {
    /// Locks the connection's packets for at most `lease` and puts its socket into repair mode.
    ///
    /// The application must have stopped using the descriptor: its calls fail from now on.
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor; the connection goes on, unlocked.
    pub fn freeze(
        fd: OwnedFd,
        plan: Plan,
        locker: &dyn Locker,
        lease: Duration,
    ) -> Result<Self, NotFrozen> {
        match locker.lock(&[plan.flow()], lease) {
            Ok(lock) => Self::freeze_locked(fd, plan, lock, lease),
            Err(error) => Err(NotFrozen {
                fd,
                error: error.into(),
            }),
        }
    }

    /// Like [`Frozen::freeze`], but with packets that are locked already, for `lease` at a time.
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor; the connection goes on, unlocked.
    pub fn freeze_locked(
        fd: OwnedFd,
        plan: Plan,
        lock: LockGuard,
        lease: Duration,
    ) -> Result<Self, NotFrozen> {
        let hold = Hold::locked(lock, lease);
        match FrozenSocket::freeze(fd) {
            Ok(socket) => Ok(Self {
                hold,
                socket,
                plan,
                read: None,
                captured: Vec::new(),
            }),
            Err(repair::FreezeError { fd, error }) => Err(NotFrozen {
                fd,
                error: error.into(),
            }),
        }
    }

    /// The connection's addresses and ports.
    #[must_use]
    pub fn flow(&self) -> FourTuple {
        self.plan.flow()
    }

    /// Reads the connection, with the layers that run on it from the bottom up: `None`, `[tls, http]`.
    ///
    /// # Errors
    ///
    /// [`CaptureError`]; the connection stays frozen.
    pub fn capture(
        &mut self,
        layers: impl IntoIterator<Item = Layer>,
    ) -> Result<Image, CaptureError> {
        // Before its clock is read: what was missing here would be missing in the first round trip (`restore::Stood`).
        let taken = now();
        let tcp = self.read(self.plan.known.socket.clone())?;
        let mut image = Image::new(ConnectionImage::new(self.plan.known.ip.clone(), tcp));
        image.taken = taken;
        image.layers.extend(layers);
        Ok(image)
    }

    /// Reads what the [draft](Plan::draft) of the connection lacks.
    #[cfg(feature = "driver")]
    pub(crate) fn capture_rest(&mut self) -> Result<Image, CaptureError> {
        Ok(Image::new(self.read(SocketOptions::default())?))
    }

    fn read(&mut self, options: SocketOptions) -> Result<TcpImage, CaptureError> {
        let snapshot = self.socket.read()?;
        self.read = Some(snapshot.progress);
        Ok(convert::to_image(snapshot, options)?)
    }

    /// Adds to the image what arrived since the packets were locked, see [`Frozen::captured`]; also what was handed over
    /// before, so that an image that was [captured](Frozen::capture) again has all of it.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Lock`] as there, [`CaptureError::Reset`]; the connection stays frozen.
    pub fn merge_captured(&mut self, image: &mut Image) -> Result<(), CaptureError> {
        self.captured()?;
        let Some(connection) = image.connection_mut() else {
            return Ok(());
        };
        let Some(tcp) = connection.tcp.take() else {
            return Ok(());
        };
        let mut parts = tcp.into_parts();
        // Nothing of it was acknowledged, so a later image lacks it as the first did; what the image has is skipped.
        let bytes = self.captured.iter().map(|packet| &packet.bytes[..]);
        if segments::take_in(&mut parts, &self.flow(), bytes) == Taken::Reset {
            return Err(CaptureError::Reset);
        }
        connection.tcp = Some(TcpImage::new(parts)?);
        Ok(())
    }

    /// Makes sure that the connection did not move on since it was captured.
    ///
    /// # Errors
    ///
    /// [`CaptureError::MovedOn`] if it did, or was never captured: the image must not be used.
    pub fn check_unchanged(&self) -> Result<(), CaptureError> {
        if self.read == Some(self.socket.progress()?) {
            Ok(())
        } else {
            Err(CaptureError::MovedOn)
        }
    }

    /// Sends the connection's packets to the next hop from now on. Nothing is delivered or
    /// answered here in between.
    ///
    /// # Errors
    ///
    /// [`LockError`]; the connection stays frozen and locked.
    pub fn redirect(&mut self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        self.hold.redirect(hop, lease)
    }

    /// What arrived for the connection since its packets were locked, if the locker captures: in the order
    /// of arrival, and only what was not handed over before. Once its packets are redirected no
    /// more arrive here.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the lock has ended meanwhile, and others as the locker documents.
    pub fn captured(&mut self) -> Result<Vec<Packet>, LockError> {
        let packets = self.hold.captured()?;
        self.captured.extend_from_slice(&packets);
        Ok(packets)
    }

    /// The connection goes on here, and gets what was captured for it, on the calling thread's host. Without
    /// `CAP_NET_RAW` that is lost, and the peer sends it again. One in CLOSE ends here
    /// again as it had, see [`FrozenSocket::read`](tcpmig_sys::repair::FrozenSocket::read).
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor, which may still be in repair mode, or whose packets
    /// stay locked until the lease ends.
    pub fn keep(self) -> Result<OwnedFd, NotFrozen> {
        let flow = self.flow();
        let Self {
            hold,
            mut socket,
            plan,
            mut captured,
            ..
        } = self;
        // Before the lock ends, so that nothing that passes it is missed; if it fails, the thaw tries once more.
        let _ = socket.unmute();
        let (late, mut unlocked) = hold.end();
        captured.extend(late);
        let fd = socket
            .thaw()
            .map_err(|repair::FreezeError { fd, error }| NotFrozen {
                fd,
                error: error.into(),
            })?;
        if let Ok(Some(unlocked)) = &mut unlocked {
            // What another processor was dropping when the lock ended is there by now.
            captured.extend(unlocked.captured().unwrap_or_default().packets);
        }
        deliver(fd.as_fd(), &flow, &captured);
        if let Err(error) = options::kept(fd.as_fd(), &plan.known.socket) {
            return Err(NotFrozen {
                fd,
                error: error.into(),
            });
        }
        match unlocked {
            Ok(_) => Ok(fd),
            Err(error) => Err(NotFrozen {
                fd,
                error: error.into(),
            }),
        }
    }

    /// Ends the connection on this host without a packet.
    ///
    /// The lock or redirect stays until its lease ends, so that no late packet of the peer
    /// draws an RST from here. Of a connection that had ended when it was captured it ends now: nobody waits for its packets, and
    /// its ports may be used again.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Socket`]; the descriptor is closed, just as silently.
    pub fn discard(self) -> Result<(), CaptureError> {
        let Self {
            hold, socket, read, ..
        } = self;
        let ended = read.is_some_and(|read| read.has_ended());
        let discarded = socket.discard();
        if !ended {
            hold.detach();
        } else if let (_, Err(error)) = hold.end() {
            tracing::warn!(
                "the lock of a connection that had ended stays until its lease ends: {error}"
            );
        }
        Ok(discarded?)
    }

    /// For whoever redirects several in one step, which counts as [`Frozen::redirect`].
    #[cfg(feature = "driver")]
    pub(crate) fn holding(&self) -> Holding {
        self.hold.holding()
    }

    /// For whoever renews the lock or redirect until the connection is settled.
    pub(crate) fn to_keep(&self) -> (Weak<dyn Keep>, Duration) {
        self.hold.to_keep()
    }

    /// Keeps the packets here which are redirected, until they are redirected again by [`Frozen::resume`].
    #[cfg(feature = "driver")]
    pub(crate) fn suspend(
        &mut self,
        locker: &dyn Locker,
        lease: Duration,
    ) -> Result<(), LockError> {
        self.hold.suspend(locker, lease)
    }

    #[cfg(feature = "driver")]
    pub(crate) fn resume(&mut self) -> Result<(), LockError> {
        self.hold.resume()
    }

    /// Makes sure that the silence lasts for its lease, before nobody is left to renew it.
    pub(crate) fn make_sure(&mut self, locker: &dyn Locker) {
        self.hold.make_sure(locker);
    }

    /// Prolongs the lock or redirect by the lease that it was made with.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn renew(&mut self) -> Result<(), LockError> {
        self.hold.renew()
    }
}

/// The time for [`Image::taken`]; nothing if this host's clock is before 1970.
pub(crate) fn now() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_micros()).ok()
}

impl AsFd for Frozen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
