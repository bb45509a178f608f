//! What a process before this one left open as a source.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::Instrument;

use super::journal::{Note, Unfinished};
use super::outgoing::Outgoing;
use super::source::{Destination, Mover};
use super::spans;
use crate::handover::{Fate, Why};
use crate::steer::External;

/// What became of a handover that a process before this one had begun.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// The handover as the journal had it.
    pub open: Unfinished,
    /// Where its connection is: [`Fate::Moved`], [`Fate::Lost`], or still [`Fate::InDoubt`]. The socket of this host
    /// ended with its process, so none is kept.
    pub fate: Fate,
    /// Of one that is lost: the target never had it and never will. Whoever has a duplicate of its socket, frozen as it was left, may let
    /// it go on.
    pub never_left: bool,
    /// Why, for a person to read.
    pub reason: String,
}

impl Mover {
    /// Settles what processes before this one left open in the journal, with the targets; with the least wait if it is called before
    /// anything is moved.
    ///
    /// - A handover whose COMMIT cannot have been sent was the source's, and its connection ended with the process: it
    ///   is lost. The target is told, so that it discards what it built and unlocks at once.
    /// - For any other one COMMIT is sent again, without the packets that the process had captured, which the peer
    ///   repeats. A target that has built the connection takes it now, one that had taken it says so ([`Fate::Moved`]; what redirects
    ///   its packets stays for its lease), one that never had it or no longer has it says that ([`Fate::Lost`]).
    ///   A redirect of what is lost is ended, with this mover's locker.
    /// - A target that does not answer, or knows nothing of it, leaves it in doubt and in the journal: this may be called again.
    ///
    /// A target that does not answer is asked again, in all for as long as [`Options::ask_for`](super::Options::ask_for), and
    /// after that not for the rest. Cancel-safe: what was not settled is still open.
    pub async fn resolve(&self) -> Vec<Resolved> {
        let until = Instant::now() + self.options.ask_for;
        let mut silent = HashSet::new();
        let mut resolved = Vec::new();
        self.worker.start();
        let (journal, waits) = (self.journal.clone(), self.journal.waits());
        let left_open = self.worker.call(waits, move || journal.left_open()).await;
        for open in left_open {
            let span = spans::source(open.id, &open.about.host);
            let resolving = self.resolve_one(&open, &mut silent, until);
            let (fate, never_left, reason) = resolving.instrument(span).await;
            resolved.push(Resolved {
                open,
                fate,
                never_left,
                reason,
            });
        }
        resolved
    }

    async fn resolve_one(
        &self,
        Unfinished {
            id, about, note, ..
        }: &Unfinished,
        silent: &mut HashSet<SocketAddr>,
        until: Instant,
    ) -> (Fate, bool, String) {
        let to = Destination {
            // Whoever has none is not asked.
            address: about.address.unwrap_or_else(|| ([0, 0, 0, 0], 0).into()),
            name: about.host.clone(),
            steer: Arc::new(External),
        };
        let left = until.saturating_duration_since(Instant::now());
        let address = about.address;
        let mut orphan = Outgoing::orphaned(self.clone(), to, (*id, *note), about.flow, left);
        let unasked = match address {
            None => Some("the journal does not say where the target is"),
            Some(address) if silent.contains(&address) => Some("its target does not answer"),
            Some(_) => None,
        };
        if unasked.is_some() {
            orphan.ask_no_more();
        }
        orphan.end().await;
        if let Some(address) = address
            && !orphan.session.has_heard()
        {
            silent.insert(address);
        }
        // INVARIANT: it has just come to its end.
        let fate = orphan.session.ended().unwrap_or(Fate::InDoubt);
        let why = orphan.session.take_why();
        let never_committed = *note != Note::Committing || matches!(why, Why::Aborted(_));
        let never_left = fate == Fate::Lost && never_committed;
        let unasked = unasked.filter(|_| fate == Fate::InDoubt);
        let reason = unasked.map_or_else(|| why.to_string(), str::to_owned);
        (fate, never_left, reason)
    }
}
