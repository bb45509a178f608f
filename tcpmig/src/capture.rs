//! From a live socket to an image.
//!
//! [`Plan::of`] reads what does not change, [`Frozen::freeze`] locks the packets and puts
//! the socket under repair, [`Frozen::capture`] reads the rest. Then the connection is kept
//! ([`Frozen::keep`]) or given up ([`Frozen::discard`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tcpmig_format::{
    AppImage, FlowError, FourTuple, Image, InvalidTcp, IpImage, SocketOptions, TcpImage,
};
use tcpmig_lock::{LockError, LockGuard, Locker, NextHop, Packet, Redirect};
use tcpmig_sys::deliver::Delivery;
use tcpmig_sys::frozen::{self, FrozenSocket, Marks};

use crate::restore::INJECT_MARK;
use crate::segments::{self, Taken};
use crate::{convert, options};

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
    /// The socket has an eBPF filter, which no call reads back.
    #[error("the socket has an eBPF filter (SO_ATTACH_BPF), which cannot be read back")]
    ExtendedFilter,
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
            Self::Socket(tcpmig_sys::Error::NotMigratable(_)) | Self::ExtendedFilter
        )
    }
}

/// What of a connection can be read while it lives: addresses and options.
///
/// Reading it before the freeze keeps it out of the time in which the connection stands still.
#[derive(Debug, Clone)]
pub struct Plan {
    ip: IpImage,
    socket: SocketOptions,
}

impl Plan {
    /// Reads addresses and options. The socket is not touched.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Socket`] with [`NotMigratable`](tcpmig_sys::NotMigratable) if it is not
    /// a TCP connection in a state that can be moved, or with the call that failed.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, CaptureError> {
        frozen::check(fd)?;
        frozen::check_keys(fd)?;
        Ok(Self {
            ip: options::ip(fd)?,
            socket: options::socket(fd)?,
        })
    }

    /// The connection's addresses and ports.
    #[must_use]
    pub fn flow(&self) -> FourTuple {
        self.ip.flow
    }
}

/// A connection that stands still: its packets are locked and its socket is under repair.
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
    read: Option<Marks>,
    /// All that was captured: the connection gets it if it is kept.
    captured: Vec<Packet>,
}

/// What keeps the packets away.
#[derive(Debug)]
enum Hold {
    Locked(LockGuard),
    Redirected(Redirect),
}

/// A connection that was not frozen: the reason, and the descriptor back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotFrozen {
    /// The descriptor, in use as before.
    pub fd: OwnedFd,
    /// Why.
    #[source]
    pub error: CaptureError,
}

impl Frozen {
    /// Locks the connection's packets for at most `lease` and puts its socket under repair.
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
            Ok(lock) => Self::freeze_locked(fd, plan, lock),
            Err(error) => Err(NotFrozen {
                fd,
                error: error.into(),
            }),
        }
    }

    /// As [`Frozen::freeze`], with packets that are locked already.
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor; the connection goes on, unlocked.
    pub fn freeze_locked(fd: OwnedFd, plan: Plan, lock: LockGuard) -> Result<Self, NotFrozen> {
        match FrozenSocket::freeze(fd) {
            Ok(socket) => Ok(Self {
                hold: Hold::Locked(lock),
                socket,
                plan,
                read: None,
                captured: Vec::new(),
            }),
            Err(frozen::FreezeError { fd, error }) => Err(NotFrozen {
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

    /// Reads the connection, with the application's state if there is one.
    ///
    /// # Errors
    ///
    /// [`CaptureError`]; the connection stays frozen.
    pub fn capture(&mut self, app: Option<AppImage>) -> Result<Image, CaptureError> {
        let snapshot = self.socket.read()?;
        self.read = Some(snapshot.marks);
        Ok(Image {
            taken: now(),
            ip: Some(self.plan.ip.clone()),
            tcp: Some(convert::to_image(snapshot, self.plan.socket.clone())?),
            app,
            listen: None,
        })
    }

    /// Adds to the image what arrived since the packets were locked, see [`Frozen::captured`].
    ///
    /// # Errors
    ///
    /// [`CaptureError::Lock`] as there, [`CaptureError::Reset`]; the connection stays frozen.
    pub fn catch_up(&mut self, image: &mut Image) -> Result<(), CaptureError> {
        let packets = self.captured()?;
        let Some(tcp) = image.tcp.take() else {
            return Ok(());
        };
        let mut parts = tcp.into_parts();
        let octets = packets.iter().map(|packet| &packet.octets[..]);
        if segments::take_in(&mut parts, &self.flow(), octets) == Taken::Reset {
            return Err(CaptureError::Reset);
        }
        image.tcp = Some(TcpImage::new(parts)?);
        Ok(())
    }

    /// Makes sure that the connection did not move on since it was captured.
    ///
    /// # Errors
    ///
    /// [`CaptureError::MovedOn`] if it did, or was never captured: the image must not be used.
    pub fn confirm(&self) -> Result<(), CaptureError> {
        if self.read == Some(self.socket.marks()?) {
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
        if let Hold::Locked(lock) = &mut self.hold {
            self.hold = Hold::Redirected(lock.try_redirect(hop, lease)?);
        }
        Ok(())
    }

    /// What arrived for the connection since its packets were locked, if the locker captures: in the order
    /// of arrival, and only what was not handed over before. Once its packets are redirected no
    /// more arrive here.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the lock has ended meanwhile, and others as the locker documents.
    pub fn captured(&mut self) -> Result<Vec<Packet>, LockError> {
        let captured = match &mut self.hold {
            Hold::Locked(lock) => lock.captured(),
            Hold::Redirected(redirect) => redirect.captured(),
        };
        match captured {
            // What did not fit is as if it had been lost on the way: the peer sends it again.
            Ok(captured) => {
                self.captured.extend_from_slice(&captured.packets);
                Ok(captured.packets)
            }
            Err(LockError::Unsupported { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The connection goes on here, and gets what was captured for it, on the calling thread's host. What
    /// arrived in the moment between the last look and the end of the lock is lost, as are captured packets without
    /// `CAP_NET_RAW`: the peer sends them again. One in CLOSE ends here
    /// again as it had, see [`FrozenSocket::read`](tcpmig_sys::frozen::FrozenSocket::read).
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor, which may still be under repair, or whose packets
    /// stay locked until the lease ends.
    pub fn keep(mut self) -> Result<OwnedFd, NotFrozen> {
        // A lock that ended before has nothing more.
        let _ = self.captured();
        let flow = self.flow();
        let Self {
            hold,
            socket,
            plan,
            captured,
            ..
        } = self;
        let unlocked = match hold {
            Hold::Locked(lock) => lock.unlock(),
            Hold::Redirected(redirect) => redirect.end(),
        };
        let fd = socket
            .thaw()
            .map_err(|frozen::FreezeError { fd, error }| NotFrozen {
                fd,
                error: error.into(),
            })?;
        deliver(fd.as_fd(), &flow, &captured);
        if let Err(error) = options::kept(fd.as_fd(), &plan.socket) {
            return Err(NotFrozen {
                fd,
                error: error.into(),
            });
        }
        match unlocked {
            Ok(()) => Ok(fd),
            Err(error) => Err(NotFrozen {
                fd,
                error: error.into(),
            }),
        }
    }

    /// Ends the connection on this host without a packet.
    ///
    /// The lock or redirect stays until its lease ends, so that no late packet of the peer
    /// draws an RST from here.
    ///
    /// # Errors
    ///
    /// [`CaptureError::Socket`]; the descriptor is closed, just as silently.
    pub fn discard(self) -> Result<(), CaptureError> {
        let Self { hold, socket, .. } = self;
        let discarded = socket.discard();
        match hold {
            Hold::Locked(lock) => lock.leave(),
            Hold::Redirected(redirect) => redirect.leave(),
        }
        Ok(discarded?)
    }

    /// Prolongs the lock or redirect.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn renew(&mut self, lease: Duration) -> Result<(), LockError> {
        match &mut self.hold {
            Hold::Locked(lock) => lock.renew(lease),
            Hold::Redirected(redirect) => redirect.renew(lease),
        }
    }
}

/// The time for [`Image::taken`]; nothing if this host's clock is before 1970.
pub(crate) fn now() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_micros()).ok()
}

/// Failures cost the peer a retransmission, no more.
fn deliver(fd: BorrowedFd<'_>, flow: &FourTuple, packets: &[Packet]) {
    if packets.is_empty() {
        return;
    }
    let Ok(delivery) = Delivery::open(fd) else {
        return;
    };
    for packet in packets {
        if let Ok((segment, hops)) = segments::whole(&packet.octets, flow) {
            let _ = delivery.deliver(segment, hops, INJECT_MARK);
        }
    }
}

impl AsFd for Frozen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
