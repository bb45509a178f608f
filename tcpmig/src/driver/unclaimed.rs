//! What becomes of a connection whose future was dropped.

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tcpmig_format::{FourTuple, Layer};

use super::source::{Ending, Mover, Outcome, Reason};
use super::{Connection, Report};

/// Outcomes that nobody waits for, for [`Mover::unclaimed`].
#[derive(Default)]
pub(super) struct Unclaimed(Mutex<Vec<Outcome>>);

impl Unclaimed {
    pub(super) fn put(&self, outcome: Outcome) {
        let mut outcomes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.push(outcome);
    }

    pub(super) fn take(&self) -> Vec<Outcome> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Unclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unclaimed")
    }
}

/// A connection that is to leave and still lives. Dropped, it goes back to its mover.
pub(super) struct Leaving {
    unclaimed: Arc<Unclaimed>,
    connection: Option<Connection>,
    pub(super) flow: Option<FourTuple>,
}

impl Leaving {
    pub(super) fn new(mover: &Mover, connection: Connection) -> Self {
        Self {
            unclaimed: mover.unclaimed.clone(),
            connection: Some(connection),
            flow: None,
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        // INVARIANT: it is taken only by `into_parts`, which takes `self`.
        &self.connection.as_ref().expect("it is still here").socket
    }

    /// From here on the caller answers for it.
    pub(super) fn into_parts(mut self) -> (OwnedFd, Vec<Layer>) {
        // INVARIANT: as above.
        let Connection { socket, layers } = self.connection.take().expect("it is still here");
        (socket, layers)
    }

    /// It stays for this reason.
    pub(super) fn kept(self, reason: Reason) -> Outcome {
        let flow = self.flow;
        let (socket, layers) = self.into_parts();
        Outcome {
            flow,
            ending: Ending::Kept {
                socket,
                layers,
                reason,
            },
            report: Report::default(),
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(Connection { socket, layers }) = self.connection.take() {
            self.unclaimed.put(Outcome {
                flow: self.flow,
                ending: Ending::Kept {
                    socket,
                    layers,
                    reason: Reason::Cancelled,
                },
                report: Report::default(),
            });
        }
    }
}

/// An outcome on its way to the one who waits. Dropped, it goes back to its mover.
pub(super) struct Claim {
    unclaimed: Arc<Unclaimed>,
    outcome: Option<Outcome>,
}

impl Claim {
    pub(super) fn new(mover: &Mover, outcome: Outcome) -> Self {
        Self {
            unclaimed: mover.unclaimed.clone(),
            outcome: Some(outcome),
        }
    }

    pub(super) fn take(mut self) -> Outcome {
        // INVARIANT: it is taken only here and on drop, and here `self` is consumed.
        self.outcome.take().expect("it was not claimed before")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            self.unclaimed.put(outcome);
        }
    }
}
