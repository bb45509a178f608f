//! How much of unfinished frames all exchanges of an endpoint hold together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::TransportError;

/// Shared by the exchanges.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let used = AtomicUsize::new(0);
        Arc::new(Self { limit, used })
    }
}

/// What one exchange has of it.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    pub(crate) fn of(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Holds so many bytes instead of those that it held.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), TransportError> {
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let limit = self.budget.limit;
            let take = |used: usize| used.checked_add(more).filter(|used| *used <= limit);
            let taken = self
                .budget
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            taken.map_err(|_| TransportError::TooMuch { limit })?;
        } else {
            let less = self.bytes - bytes;
            self.budget.used.fetch_sub(less, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
