//! What a target has of one handover: a connection in the making, or what is left of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{FourTuple, Image};
use tcpmig_lock::{LockGuard, Locker};
use tracing::debug;

use super::arrival::Ready;
use super::mutex::try_lock;
use crate::hold::{Keep, every, hold_on, next};
use crate::options::NotSet;
use crate::restore::{Activated, Prepared, RestoreError, StandIn};

/// With whoever works on it.
pub(super) type SharedSlot = Arc<Mutex<Slot>>;

/// What this host has of one handover.
///
/// What is large is apart: whoever renews the lock remembers this for a while after the rest has gone.
pub(super) struct Slot {
    pub(super) from: Arc<str>,
    pub(super) flow: FourTuple,
    /// When it was examined: it lived still.
    pub(super) since: Instant,
    /// Examined, and waiting for the rest.
    pub(super) draft: Option<Box<Image>>,
    /// What was left out of it.
    pub(super) left_out: Vec<NotSet>,
    /// The whole, not built yet.
    pub(super) image: Option<Box<Result<Image, RestoreError>>>,
    /// What the application made ready for it.
    pub(super) ready: Option<Ready>,
    pub(super) prepared: Option<Box<Prepared>>,
    /// Lives, and the application does not have it yet.
    pub(super) activated: Option<Box<Activated>>,
    /// Of what is not built yet, or was discarded.
    pub(super) lock: Option<LockGuard>,
    /// Beside the lock of what is not built yet.
    pub(super) stand_in: Option<StandIn>,
    /// Of each lock.
    lease: Duration,
}

impl Slot {
    pub(super) fn new(
        from: Arc<str>,
        flow: FourTuple,
        draft: Image,
        left_out: Vec<NotSet>,
        lease: Duration,
    ) -> Self {
        Self {
            from,
            flow,
            since: Instant::now(),
            draft: Some(Box::new(draft)),
            left_out,
            image: None,
            ready: None,
            prepared: None,
            activated: None,
            lock: None,
            stand_in: None,
            lease,
        }
    }

    /// Whether it can be activated with these packets without waiting for anything, apart from the locker.
    pub(super) fn is_ready(&mut self, packets: &[Bytes]) -> bool {
        match &mut self.prepared {
            // Packets make it be built again, and the last of them may have closed it.
            Some(built) => packets.is_empty() && built.get_ready(),
            None => true,
        }
    }

    /// Whether what was built has taken bytes, which it must not: then nobody says that it never lived.
    pub(super) fn has_moved_on(&self) -> bool {
        let built = self.prepared.as_ref();
        built.is_some_and(|built| built.has_moved_on())
    }

    /// Silences this host for the connection that is to be built from the draft, beside the lock, whatever becomes of that.
    pub(super) fn stand_in(&mut self) {
        let draft = self.draft.as_ref();
        let made = draft.and_then(|draft| Some((draft.ip()?, draft.tcp()?)));
        let made = made.map(|(ip, tcp)| StandIn::new(ip, tcp.socket()));
        self.stand_in = match made {
            Some(Ok(made)) => Some(made),
            Some(Err(error)) => {
                // What is in the way says so when the connection is built.
                debug!(flow = %self.flow, "nothing but its lock keeps a connection silent until it is built: {error}");
                None
            }
            None => None,
        };
    }

    /// Whether this flow is accepted and does not live yet.
    pub(super) fn is_coming(&self, flow: FourTuple) -> bool {
        self.flow == flow && (self.stand_in.is_some() || self.prepared.is_some())
    }

    /// Ends its silence.
    pub(super) fn unlock(&mut self) {
        self.stand_in = None;
        self.lock = None;
    }

    pub(super) fn discard(&mut self) {
        if let Some(built) = self.prepared.take() {
            self.lock = Some(built.discard());
        }
    }
}

impl Keep for Mutex<Slot> {
    fn keep(&self, locker: &dyn Locker) -> Option<Duration> {
        let Some(mut slot) = try_lock(self) else {
            // It is being activated, or discarded.
            return Some(Duration::from_millis(50));
        };
        let Slot {
            prepared,
            lock,
            lease,
            ..
        } = &mut *slot;
        let renewed = match (prepared, lock) {
            (Some(built), _) => built.renew(locker),
            // Its source may redirect the packets to this host until it knows that they are its own.
            (None, Some(lock)) => hold_on(lock, *lease, locker),
            (None, None) => return None,
        };
        Some(next(&renewed, every(*lease)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.discard();
        if let Some(lock) = self.lock.take() {
            // Its packets may come here for a while; the lease ends the silence.
            lock.detach();
        }
    }
}
