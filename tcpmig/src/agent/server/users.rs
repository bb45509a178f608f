//! What the programs of one user may take together, so that they leave something to others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::agent::wire::Budget;

/// How many programs of one user may be connected.
const CLIENTS: usize = 256;
/// How many bytes in pieces they may have sent and not completed.
const PIECES: usize = 256 << 20;

/// A user, as long as one of its programs is connected.
#[derive(Debug)]
pub(super) struct User {
    clients: AtomicUsize,
    pub(super) pieces: Arc<Budget>,
}

/// The permit of a connected program.
#[derive(Debug)]
pub(super) struct Permit(Arc<User>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Permit {
    pub(super) fn user(&self) -> &User {
        &self.0
    }
}

/// All users that are connected.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<HashMap<u32, Weak<User>>>);

impl Users {
    /// A permit for one more program of this user; none if it has too many.
    pub(super) fn enter(&self, user: u32) -> Option<Permit> {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, user| user.strong_count() > 0);
        let known = users.get(&user).and_then(Weak::upgrade);
        let known = known.unwrap_or_else(|| {
            let new = Arc::new(User {
                clients: AtomicUsize::new(0),
                pieces: Arc::new(Budget::new(PIECES)),
            });
            users.insert(user, Arc::downgrade(&new));
            new
        });
        let before = known.clients.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(known);
        (before < CLIENTS).then_some(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_permits_and_another_one_its_own() {
        let users = Users::default();
        let mut permits: Vec<Permit> = (0..CLIENTS).map(|_| users.enter(7).unwrap()).collect();
        assert!(users.enter(7).is_none());
        assert!(users.enter(8).is_some());
        permits.pop();
        assert!(users.enter(7).is_some());
    }
}
