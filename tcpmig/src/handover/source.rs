//! The source's side of a handover.

use super::Fate;

/// The source of one handover.
///
/// Made when the connection is frozen and OFFER is on its way. Feed every event to
/// [`Source::handle`] and do what it answers. [`Source::fate`] is set when there is nothing
/// left to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Offered,
    Confirming,
    Committed,
    Ended(Fate),
    /// As `Committed`, after the death of the process that had the connection; and whether it is in doubt.
    Orphaned {
        doubt: bool,
    },
}

/// What happened at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum SourceEvent {
    /// PREPARED arrived.
    Prepared,
    /// REFUSED arrived.
    Refused,
    /// ACTIVE arrived.
    Active,
    /// ABORTED arrived.
    Aborted,
    /// LOST arrived.
    Lost,
    /// UNKNOWN arrived.
    Unknown,
    /// The connection did not move on since it was read, and its packets go to the target.
    Confirmed,
    /// The connection moved on since it was read, or steering failed.
    NotConfirmed,
    /// The link to the target broke.
    LinkLost,
    /// No answer came in time.
    Deadline,
    /// The operator, or the caller's time limit, ends the asking.
    GiveUp,
}

/// What the source has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Nothing.
    Wait,
    /// Read the connection's numbers again and steer its packets to the target, then
    /// report [`SourceEvent::Confirmed`] or [`SourceEvent::NotConfirmed`].
    Confirm,
    /// Send COMMIT.
    Commit,
    /// Send COMMIT again over a new link.
    AskAgain,
    /// Undo the steering, unlock, thaw; then tell the target with ABORT if the link is there.
    Keep,
    /// End the connection here without a packet. After [`Source::orphaned`] there is nothing to end.
    Discard,
    /// Nobody has the connection: tell the target with ABORT, so that it unlocks.
    Release,
    /// Leave it frozen and locked and say so.
    Doubt,
}

impl Source {
    /// A handover whose OFFER is on its way.
    #[must_use]
    pub fn offered() -> Self {
        Self {
            state: State::Offered,
        }
    }

    /// A handover of a process that has ended since, which may have sent COMMIT: ask the target, as after
    /// [`SourceAction::AskAgain`]. The connection here ended with that process, without a packet.
    ///
    /// One that cannot have sent COMMIT was still the source's, and is lost: the target has to be told with ABORT.
    #[must_use]
    pub fn orphaned() -> Self {
        Self {
            state: State::Orphaned { doubt: false },
        }
    }

    /// Where the connection is, once that is settled; after [`Fate::InDoubt`] an
    /// answer can still settle it.
    #[must_use]
    pub fn fate(&self) -> Option<Fate> {
        match self.state {
            State::Ended(fate) => Some(fate),
            State::Orphaned { doubt: true } => Some(Fate::InDoubt),
            _ => None,
        }
    }

    /// Whether COMMIT has been sent: the connection is no longer the source's.
    #[must_use]
    pub fn has_committed(&self) -> bool {
        matches!(
            self.state,
            State::Committed
                | State::Orphaned { .. }
                | State::Ended(Fate::Moved | Fate::InDoubt | Fate::Lost)
        )
    }

    /// What to do about an event.
    pub fn handle(&mut self, event: SourceEvent) -> SourceAction {
        use SourceEvent as E;
        let (state, action) = match (self.state, event) {
            (State::Offered, E::Prepared) => (State::Confirming, SourceAction::Confirm),
            (State::Confirming, E::Confirmed) => (State::Committed, SourceAction::Commit),
            // Until COMMIT is sent the connection is the source's, whatever happens.
            (State::Offered | State::Confirming, _) => {
                (State::Ended(Fate::Kept), SourceAction::Keep)
            }

            (State::Committed | State::Ended(Fate::InDoubt), E::Active) => {
                (State::Ended(Fate::Moved), SourceAction::Discard)
            }
            (State::Committed | State::Ended(Fate::InDoubt), E::Lost) => {
                (State::Ended(Fate::Lost), SourceAction::Discard)
            }
            (State::Committed | State::Ended(Fate::InDoubt), E::Aborted) => {
                (State::Ended(Fate::Kept), SourceAction::Keep)
            }
            (State::Committed, E::LinkLost | E::Deadline) => {
                (State::Committed, SourceAction::AskAgain)
            }
            // A target that forgot may have been the owner before: not a reason to thaw.
            (State::Committed, E::Unknown | E::GiveUp) => {
                (State::Ended(Fate::InDoubt), SourceAction::Doubt)
            }
            (State::Committed, E::Prepared | E::Refused | E::Confirmed | E::NotConfirmed) => {
                (State::Committed, SourceAction::Wait)
            }

            (State::Orphaned { .. }, E::Active) => {
                (State::Ended(Fate::Moved), SourceAction::Discard)
            }
            (State::Orphaned { .. }, E::Lost) => (State::Ended(Fate::Lost), SourceAction::Discard),
            // Neither host has it any more.
            (State::Orphaned { .. }, E::Aborted) => {
                (State::Ended(Fate::Lost), SourceAction::Release)
            }
            (State::Orphaned { doubt: false }, E::LinkLost | E::Deadline) => {
                (self.state, SourceAction::AskAgain)
            }
            (State::Orphaned { doubt: false }, E::Unknown | E::GiveUp) => {
                (State::Orphaned { doubt: true }, SourceAction::Doubt)
            }
            (State::Orphaned { .. }, _) => (self.state, SourceAction::Wait),

            (State::Ended(fate), _) => (State::Ended(fate), SourceAction::Wait),
        };
        self.state = state;
        action
    }
}
