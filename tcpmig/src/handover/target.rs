//! The target's side of a handover.

use super::Fate;

/// The target of one handover.
///
/// Made when OFFER has arrived and building begins. Feed every event to
/// [`Target::handle`] and do what it answers. Keep it after the end, so that a COMMIT that
/// comes again gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Preparing,
    Prepared,
    Activating,
    Active,
    Aborted,
    Died,
}

/// What happened at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum TargetEvent {
    /// The connection is built, locked and under repair.
    Built,
    /// It could not be built, and nothing is left of it.
    NotBuilt,
    /// COMMIT arrived, over whatever link.
    Commit,
    /// ABORT arrived.
    Abort,
    /// The connection lives.
    Activated,
    /// It could not be activated and was discarded without a packet.
    NotActivated,
    /// In place of what ends a connection that was built (ABORT, the deadline, a failed activation): its numbers are
    /// not those that it was built with, so it has taken octets that the source does not have.
    MovedOn,
    /// The link to the source broke.
    LinkLost,
    /// COMMIT did not come in time.
    Deadline,
}

/// What the target has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetAction {
    /// Nothing.
    Wait,
    /// Send PREPARED.
    SayPrepared,
    /// Send REFUSED.
    SayRefused,
    /// Unlock and switch repair off, then report [`TargetEvent::Activated`] or
    /// [`TargetEvent::NotActivated`].
    Activate,
    /// Send ACTIVE; the first time, hand the connection to the application as well.
    SayActive,
    /// Send ABORTED.
    SayAborted,
    /// Send LOST.
    SayLost,
    /// Discard what was built, without a packet. Unlock only when ABORT arrives: until then the
    /// source may send the packets here.
    Discard,
}

impl Target {
    /// A handover whose OFFER has arrived.
    #[must_use]
    pub fn preparing() -> Self {
        Self {
            state: State::Preparing,
        }
    }

    /// A handover of a process that has ended since, which had not begun to activate the connection: what
    /// was built ended with it, without a packet.
    #[must_use]
    pub fn never_active() -> Self {
        Self {
            state: State::Aborted,
        }
    }

    /// A handover of a process that has ended since, which had begun to activate the connection.
    #[must_use]
    pub fn died() -> Self {
        Self { state: State::Died }
    }

    /// Where the connection is as far as the target knows: [`Fate::Moved`] here, or
    /// [`Fate::Kept`] by the source, or [`Fate::Lost`]; `None` while it is open.
    #[must_use]
    pub fn fate(&self) -> Option<Fate> {
        match self.state {
            State::Active => Some(Fate::Moved),
            State::Aborted => Some(Fate::Kept),
            State::Died => Some(Fate::Lost),
            _ => None,
        }
    }

    /// What to do about an event.
    pub fn handle(&mut self, event: TargetEvent) -> TargetAction {
        use TargetEvent as E;
        let (state, action) = match (self.state, event) {
            (State::Preparing, E::Built) => (State::Prepared, TargetAction::SayPrepared),
            (State::Preparing, E::NotBuilt) => (State::Aborted, TargetAction::SayRefused),
            (State::Preparing | State::Prepared, E::Abort | E::Deadline)
            | (State::Preparing, E::LinkLost) => (State::Aborted, TargetAction::Discard),
            // The source may have sent COMMIT into the broken link: it will ask again.
            (State::Prepared, E::LinkLost) => (State::Prepared, TargetAction::Wait),
            (State::Prepared, E::Commit) => (State::Activating, TargetAction::Activate),
            (State::Activating, E::Activated) => (State::Active, TargetAction::SayActive),
            // Nothing was sent for it yet: the source can still have it back.
            (State::Activating, E::NotActivated) => (State::Aborted, TargetAction::SayAborted),
            // Whoever gives it up compares first. The source must not go on with what it has.
            (State::Preparing | State::Prepared, E::MovedOn) => {
                (State::Died, TargetAction::Discard)
            }
            (State::Activating, E::MovedOn) => (State::Died, TargetAction::SayLost),
            (State::Active, E::Commit) => (State::Active, TargetAction::SayActive),
            (State::Died, E::Commit) => (State::Died, TargetAction::SayLost),
            (State::Aborted, E::Commit) => (State::Aborted, TargetAction::SayAborted),
            // Built after it was given up.
            (State::Aborted, E::Built) => (State::Aborted, TargetAction::Discard),
            (state, _) => (state, TargetAction::Wait),
        };
        self.state = state;
        action
    }
}
