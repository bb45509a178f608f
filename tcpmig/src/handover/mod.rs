//! Who owns a connection while it moves: the protocol of a handover.
//!
//! [`SourceSession`] is one handover of a host that gives a connection away, [`TargetSessions`] are all handovers of one that takes
//! connections. They have neither clock nor descriptor nor task: something else (the [`driver`](crate::driver)) tells them what
//! happened, does the [`SourceAction`]s and [`TargetAction`]s that they ask for, and hands in how each ended. All rules are
//! here: what is noted before which step, who is asked again and when, what is remembered for how long, who has a say.
//!
//! | source | message | target |
//! |---|---|---|
//! | describes it while it lives | OFFER (draft) → | agrees, locks |
//! | locks, freezes, reads | ← ACCEPTED or REFUSED | waits |
//! | steers, reads again | IMAGE → | rebuilds in repair |
//! | | COMMIT (packets) → | merges what arrived, activates |
//! | discards | ← ACTIVE or ABORTED | |
//!
//! **Before COMMIT is sent the source owns the connection, after it the target does.** Whatever
//! fails before, the source thaws and the connection goes on where it was. An
//! unanswered COMMIT is sent again over a new link, as often as it takes: the target answers it
//! with what it did. Nothing thaws on a time-out then, because two owners are worse
//! than none. For a large image PREPARED is waited for before COMMIT. A target that never saw COMMIT discards what it built at its
//! deadline, and answers a late COMMIT with ABORTED.
#![doc = ""]
#![doc = include_str!("../../PROTOCOL.md")]

#[cfg(feature = "arbitrary")]
pub(crate) mod fuzz;
mod message;
mod note;
mod refusal;
mod source;
mod target;
mod wire;

pub use message::{Decoder, HandoverId, Message, MessageError, OLDEST_VERSION, VERSION};
pub use note::{Decision, Note, Role};
pub use refusal::{Code, Refusal};
pub use source::{SourceAction, SourceConfig, SourceResult, SourceSession, Why};
pub use target::{
    Frame, Heard, Link, LinkError, Recalled, TargetAction, TargetConfig, TargetResult,
    TargetSessions,
};

/// Why what has taken bytes by itself is lost.
pub(crate) const MOVED_ON: &str =
    "it took bytes of the peer before it lived here, which its source does not have";

/// Where a connection is after a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It goes on at the source.
    Kept,
    /// It lives on the target.
    Moved,
    /// COMMIT was sent and the target has not answered for it: it lives on the target
    /// or nowhere. The source keeps it frozen and locked.
    InDoubt,
    /// It is gone.
    Lost,
}

#[cfg(test)]
mod tests;
