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
    octets: usize,
}

impl Share {
    pub(crate) fn of(budget: Arc<Budget>) -> Self {
        Self { budget, octets: 0 }
    }

    /// Holds so many octets instead of those that it held.
    pub(crate) fn hold(&mut self, octets: usize) -> Result<(), TransportError> {
        if octets > self.octets {
            let more = octets - self.octets;
            let limit = self.budget.limit;
            let take = |used: usize| used.checked_add(more).filter(|used| *used <= limit);
            let taken = self
                .budget
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
            taken.map_err(|_| TransportError::TooMuch { limit })?;
        } else {
            let less = self.octets - octets;
            self.budget.used.fetch_sub(less, Ordering::Relaxed);
        }
        self.octets = octets;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.octets, Ordering::Relaxed);
    }
}
