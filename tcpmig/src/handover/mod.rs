//! Who owns a connection while it moves: the protocol of a handover.
//!
//! [`Source`] and [`Target`] are state machines without clock, descriptor or
//! task. Something else (the [`driver`](crate::driver)) feeds them what happened and
//! does what they answer, one action for each event.
//!
//! | source | message | target |
//! |---|---|---|
//! | locks, freezes, reads | OFFER (image) → | locks, rebuilds in repair |
//! | reads again, steers | ← PREPARED or REFUSED | waits |
//! | | COMMIT (packets) → | merges what arrived, activates |
//! | discards | ← ACTIVE or ABORTED | |
//!
//! **Before COMMIT is sent the source owns the connection, after it the target does.** Whatever
//! fails before, the source thaws and the connection goes on where it was. An
//! unanswered COMMIT is sent again over a new link, as often as it takes: the target answers it
//! with what it did. Nothing thaws on a time-out then, because two owners are worse
//! than none. A target that never saw COMMIT discards what it built at its
//! deadline, and answers a late COMMIT with ABORTED.
#![doc = ""]
#![doc = include_str!("../../PROTOCOL.md")]

#[cfg(feature = "arbitrary")]
pub(crate) mod fuzz;
mod message;
mod source;
mod target;
mod wire;

pub use message::{Decoder, HandoverId, Message, MessageError, OLDEST_VERSION, VERSION};
pub use source::{Source, SourceAction, SourceEvent};
pub use target::{Target, TargetAction, TargetEvent};

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
