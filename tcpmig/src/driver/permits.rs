//! How many connections of one batch stand still at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Options;

/// What the moves of one call share.
pub(super) struct Limits {
    frozen: Semaphore,
    /// In units of 1 KiB.
    bytes: Semaphore,
    all_bytes: u32,
    stopped: AtomicBool,
}

/// The batch was stopped.
pub(super) struct Stopped;

/// The right to be frozen, until it is dropped.
pub(super) struct Permit<'a> {
    _frozen: SemaphorePermit<'a>,
    _bytes: SemaphorePermit<'a>,
}

impl Limits {
    pub(super) fn new(options: &Options) -> Self {
        let all_bytes = u32::try_from(options.bytes_in_flight >> 10).unwrap_or(u32::MAX);
        let all_bytes = all_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        Self {
            frozen: Semaphore::new(options.in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            bytes: Semaphore::new(all_bytes as usize),
            all_bytes,
            stopped: AtomicBool::new(false),
        }
    }

    /// Waits until a connection with so many bytes in its queues may be frozen.
    pub(super) async fn permit(&self, bytes: u32) -> Result<Permit<'_>, Stopped> {
        // One that is larger than all goes alone.
        let units = (bytes >> 10).saturating_add(1).min(self.all_bytes);
        // INVARIANT: the semaphores are never closed.
        let frozen = self.frozen.acquire().await.expect("it is open");
        let bytes = self.bytes.acquire_many(units).await.expect("it is open");
        self.check()?;
        Ok(Permit {
            _frozen: frozen,
            _bytes: bytes,
        })
    }

    /// Freezes no more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.stopped.load(Ordering::Relaxed) {
            Err(Stopped)
        } else {
            Ok(())
        }
    }
}
