//! What happens to locks between calls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::LockError;

/// Something that happened to what a handle holds while nobody called it, so that no call could report it.
///
/// [`Nftables::on_event`](crate::Nftables::on_event) and [`Iptables::on_event`](crate::Iptables::on_event) take who is to
/// be told: usually a log, because nothing is left to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Somebody removed the table or its rules, as firewalls do that are started again, and it was set up again with
    /// everything that this handle holds, for what was left of the leases. In between packets may have passed, and
    /// been answered; what arrived then was not captured.
    Restored {
        /// The name of the table.
        table: String,
        /// How many locks it has now of this handle.
        locks: usize,
        /// How many redirects.
        redirects: usize,
        /// From when the change was noticed to when all was in force again.
        took: Duration,
    },
    /// The same, and it could not be set up again. It is tried again as long as something is held.
    NotRestored {
        /// The name of the table.
        table: String,
        /// Why not.
        error: LockError,
    },
    /// The wall clock was set, by which the rules of [`Iptables`](crate::Iptables) end, and they were written again
    /// with the times of the new clock.
    ClockSet {
        /// How many locks of this handle that concerned.
        locks: usize,
    },
    /// Nobody watches the rules: what others do to them is not noticed.
    NotWatched {
        /// Why not.
        error: LockError,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restored {
                table,
                locks,
                redirects,
                took,
            } => write!(
                f,
                "somebody removed rules of the table {table}: {locks} locks and {redirects} redirects were set up again \
                 within {took:?}; packets may have passed in between"
            ),
            Self::NotRestored { table, error } => write!(
                f,
                "somebody removed rules of the table {table}, and they could not be set up again: {error}"
            ),
            Self::ClockSet { locks } => write!(
                f,
                "the clock was set: {locks} locks of iptables were written again with its times"
            ),
            Self::NotWatched { error } => {
                write!(f, "what others do to the rules is not noticed: {error}")
            }
        }
    }
}

type Tell = dyn Fn(&Event) + Send + Sync;

/// Who is told.
#[derive(Clone, Default)]
pub(crate) struct Listener(Option<Arc<Tell>>);

impl Listener {
    pub(crate) fn new(listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    /// Not while anything is locked that the listener may use.
    pub(crate) fn tell(&self, event: &Event) {
        if let Some(listener) = &self.0 {
            listener(event);
        }
    }
}
