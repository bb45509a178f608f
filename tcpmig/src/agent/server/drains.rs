//! Which drain a server means when it says how many connections are left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::registry::Registration;

/// Drains by their numbers.
#[derive(Debug, Default)]
pub(super) struct Drains {
    last: AtomicU64,
    begun: Mutex<HashMap<u64, Weak<Registration>>>,
}

impl Drains {
    /// The number of one that begins.
    pub(super) fn begin(&self, of: &Arc<Registration>) -> u64 {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        // Those whose server is gone.
        begun.retain(|_, one| one.strong_count() > 0);
        begun.insert(id, Arc::downgrade(of));
        id
    }

    /// A server says how many connections are left.
    pub(super) fn left(&self, client: u64, id: u64, left: u64) {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let of = begun.get(&id).and_then(Weak::upgrade);
        if let Some(of) = of.filter(|of| of.client.number == client) {
            of.set_left(left);
        }
    }
}
