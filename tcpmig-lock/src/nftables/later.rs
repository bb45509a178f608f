//! What is due later than the call that caused it.

use std::time::Instant;

use tcpmig_format::FourTuple;

use crate::Event;

/// What is due later than the call that caused it.
#[derive(Default)]
pub(super) struct Later {
    /// Removed redirects that a packet may have put back in that moment, and when nothing can any more.
    pub(super) removed: Vec<(Instant, Vec<FourTuple>)>,
    /// Those that were looked for once, and when to look again: a processor may have stood still with such a packet.
    pub(super) put_back: Vec<(Instant, Vec<FourTuple>)>,
    /// Redirects that were made or prolonged, of which a packet may have made a double in that moment, and when to look.
    pub(super) made: Option<(Instant, Vec<FourTuple>)>,
    /// Those that were looked at once, and when to look again: a processor may have stood still with such a packet.
    pub(super) looked_at: Option<(Instant, Vec<FourTuple>)>,
    /// What was removed by others and could not be set up again so far: everything, or only rules.
    pub(super) damage: Option<Damage>,
    /// Whether that was said.
    pub(super) failed: bool,
    /// When to ask next how long redirects last.
    pub(super) look: Option<Instant>,
    /// Until when the thread sleeps; `None` if it does for as long as nobody wakes it.
    pub(super) sleeps: Option<Instant>,
    pub(super) events: Vec<Event>,
}

impl Later {
    /// Whether something that others removed is still to be set up again.
    pub(super) fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    /// Also the elements.
    pub(super) all: bool,
    pub(super) dormant: bool,
}
