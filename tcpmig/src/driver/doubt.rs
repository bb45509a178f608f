//! A handover that nobody answers for.

use std::fmt;
use std::sync::{Arc, Weak};

use super::journal::Decision;
use super::moving::{self, Move};
use super::outgoing::Outgoing;
use super::unclaimed::Unclaimed;
use crate::handover::HandoverId;

/// A connection of which nobody can say where it lives.
///
/// It is frozen and locked here, and stays so: its lock or redirect is renewed for as long as this is there, by a thread for
/// which nobody has to poll anything, and re-created if somebody removed it. [`InDoubt::ask`] asks the target again, [`InDoubt::settle`] takes the word of a person. Dropping it ends the
/// connection on this host without a packet, because thawing could make two owners; the lock or redirect stays
/// for one more lease, so that nothing answers its packets.
#[must_use = "dropping ends the connection on this host"]
pub struct InDoubt {
    // `None` once it is settled.
    open: Option<Box<Outgoing>>,
    // Weak: the doubt itself may be in it.
    unclaimed: Weak<Unclaimed>,
}

impl InDoubt {
    pub(super) fn new(mut open: Box<Outgoing>) -> Self {
        let unclaimed = Arc::downgrade(&open.mover.unclaimed);
        open.mover = open.mover.apart();
        Self {
            open: Some(open),
            unclaimed,
        }
    }

    /// The handover that the target has to answer for.
    #[must_use]
    pub fn id(&self) -> Option<HandoverId> {
        self.open.as_ref().map(|open| open.session.id())
    }

    /// Asks the target again, for as long as [`Options::ask_for`](super::Options::ask_for), and takes what a person
    /// has [decided](super::journal::decide) meanwhile. That goes on by itself, as [`Mover::move_out`](super::Mover::move_out) does;
    /// [`Move::cancel`] ends it early, in doubt.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn ask(self) -> Move {
        self.go_on(None)
    }

    /// Ends it by the word of a person who knows where the connection is, without the target's.
    ///
    /// **With [`Decision::Kept`] the connection may get two owners**: it is thawed here although the target may have it, and if it does, both
    /// answer its peer and corrupt both streams. Make sure that the target's process has ended, or that it never had it. It is told
    /// to give up what it has not activated, if it can be reached. With [`Decision::Moved`] and [`Decision::Lost`] the connection
    /// ends here without a packet; what redirects it stays for [`Decision::Moved`] only. If the target does not have it,
    /// nobody has.
    ///
    /// It goes on by itself, as [`InDoubt::ask`] does.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn settle(self, decision: Decision) -> Move {
        self.go_on(Some(decision))
    }

    fn go_on(mut self, decision: Option<Decision>) -> Move {
        // INVARIANT: it is taken only here and on drop, and here `self` is consumed.
        let mut open = self.open.take().expect("a doubt is open until it is asked");
        if let Some(unclaimed) = self.unclaimed.upgrade() {
            open.mover.unclaimed = unclaimed;
        }
        match decision {
            Some(decision) => open.settle(decision),
            None => open.ask(),
        }
        moving::go_on(open)
    }
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        if let Some(mut open) = self.open.take() {
            let worker = open.mover.worker.clone();
            let waits = open.mover.locker.features().waits;
            worker.leave(waits, move || open.give_away());
        }
    }
}

impl fmt::Debug for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InDoubt").field("id", &self.id()).finish()
    }
}
