//! A handover that nobody answers for.

use std::fmt;
use std::sync::{Arc, Weak};

use tcpmig_format::AppImage;

use super::run::Run;
use super::source::{Destination, Ending, Mover};
use super::unclaimed::Unclaimed;
use crate::capture::Frozen;
use crate::handover::{HandoverId, Source};

/// A connection of which nobody can say where it lives.
///
/// It is frozen and locked here. [`Doubt::ask`] asks the target again. Dropping it ends the
/// connection on this host without a packet, because thawing could make two owners; the lock stays until its lease
/// ends.
#[must_use = "dropping ends the connection on this host"]
pub struct Doubt {
    // `None` once it is settled.
    open: Option<Open>,
    mover: Mover,
    // Weak: the doubt itself may be in it.
    unclaimed: Weak<Unclaimed>,
    to: Destination,
}

/// What is open about it.
pub(super) struct Open {
    pub(super) frozen: Frozen,
    pub(super) machine: Source,
    pub(super) id: HandoverId,
    pub(super) app: Option<AppImage>,
}

impl Doubt {
    pub(super) fn new(open: Open, mover: &Mover, to: &Destination) -> Self {
        Self {
            open: Some(open),
            mover: mover.apart(),
            unclaimed: Arc::downgrade(&mover.unclaimed),
            to: to.clone(),
        }
    }

    /// The handover that the target has to answer for.
    #[must_use]
    pub fn id(&self) -> Option<HandoverId> {
        self.open.as_ref().map(|open| open.id)
    }

    /// Asks the target again, for as long as [`Options::ask_for`](super::Options::ask_for). Dropping the future
    /// puts the doubt among [`Mover::unclaimed`].
    pub async fn ask(mut self) -> Ending {
        // INVARIANT: it is taken only here and on drop, and here `self` is consumed.
        let open = self.open.take().expect("a doubt is open until it is asked");
        let Open {
            frozen,
            machine,
            id,
            app,
        } = open;
        if let Some(unclaimed) = self.unclaimed.upgrade() {
            self.mover.unclaimed = unclaimed;
        }
        let mut run = Run::new(&self.mover, &self.to, frozen, machine, id, app, None);
        let decided = run.ask().await;
        run.finish(decided).await
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            // An error leaves the descriptor closed, which is as silent.
            let _ = open.frozen.discard();
        }
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubt").field("id", &self.id()).finish()
    }
}
