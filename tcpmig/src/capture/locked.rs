//! A connection that was captured and is used again, while its packets stay locked.

use std::os::fd::{AsFd, OwnedFd};

use tcpmig_lock::{LockError, Packet};
use tcpmig_sys::repair::{FreezeError, FrozenSocket, Progress};
use tcpmig_sys::sockopt;

use super::{Frozen, NotFrozen, Plan};
use crate::hold::Hold;
use crate::inject::deliver;

/// A connection whose packets are locked and whose socket is not frozen: its application may use it, and finds a
/// network that is silent.
///
/// For what takes time after a connection was captured, such as a disk. The application need not stand still for it, and if it fails the
/// application has noticed nothing but the silence. What it reads and writes meanwhile makes the image stale, which
/// [`Frozen::check_unchanged`] finds once the connection is [frozen again](Locked::freeze): then it is captured again. That comes to an end by itself,
/// because without packets a send queue only fills and a receive queue only empties.
///
/// Dropping it unlocks the packets, and the connection goes on.
#[derive(Debug)]
#[must_use = "dropping unlocks the connection"]
pub struct Locked {
    hold: Hold,
    fd: OwnedFd,
    plan: Plan,
    /// What the image was made from, and how much of it the application had not read.
    read: Option<(Progress, u32)>,
    captured: Vec<Packet>,
}

impl Frozen {
    /// Gives the socket back to its application while the packets stay locked or redirected.
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor, which may still be in repair mode; the packets are unlocked then.
    pub fn thaw_locked(self) -> Result<Locked, NotFrozen> {
        let Self {
            hold,
            socket,
            plan,
            read,
            captured,
        } = self;
        // SIOCINQ works in each state that can be captured but SYN-SENT, where nothing can have been received.
        let unread = sockopt::receive_queue_len(socket.as_fd()).unwrap_or(0);
        match socket.thaw() {
            Ok(fd) => Ok(Locked {
                hold,
                fd,
                plan,
                read: read.map(|progress| (progress, unread)),
                captured,
            }),
            Err(FreezeError { fd, error }) => Err(NotFrozen {
                fd,
                error: error.into(),
            }),
        }
    }
}

impl Locked {
    /// Prolongs the lock or redirect by the lease that it was made with.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn renew(&mut self) -> Result<(), LockError> {
        self.hold.renew()
    }

    /// Freezes the connection again. If it is not as it was captured, [`Frozen::check_unchanged`] says so.
    ///
    /// The application must have stopped using the descriptor.
    ///
    /// # Errors
    ///
    /// [`NotFrozen`] with the descriptor; the connection goes on, unlocked.
    pub fn freeze(self) -> Result<Frozen, NotFrozen> {
        let Self {
            hold,
            fd,
            plan,
            read,
            captured,
        } = self;
        let socket = FrozenSocket::freeze(fd).map_err(|FreezeError { fd, error }| NotFrozen {
            fd,
            error: error.into(),
        })?;
        let unread = sockopt::receive_queue_len(socket.as_fd()).unwrap_or(0);
        Ok(Frozen {
            hold,
            socket,
            plan,
            // Reading is not progress, but what the image has as unread changes.
            read: read.and_then(|(progress, before)| (before == unread).then_some(progress)),
            captured,
        })
    }

    /// Unlocks the packets: the connection goes on, and gets what was captured for it, as with [`Frozen::keep`].
    ///
    /// # Errors
    ///
    /// [`LockError`]: the packets then stay locked until the lease ends.
    pub fn keep(mut self) -> Result<OwnedFd, LockError> {
        let (late, ended) = self.hold.end();
        self.captured.extend(late);
        let unlocked = ended?;
        let flow = self.plan.flow();
        deliver(self.fd.as_fd(), &flow, &self.captured);
        if let Some(mut unlocked) = unlocked {
            // What another processor was dropping when the lock ended is there by now.
            let late = unlocked.captured().unwrap_or_default();
            deliver(self.fd.as_fd(), &flow, &late.packets);
        }
        Ok(self.fd)
    }
}
