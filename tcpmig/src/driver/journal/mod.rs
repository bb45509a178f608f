//! What a host has to know about handovers after its process has died.
//!
//! The sockets of a process die with it, so nothing that it had lives on. What is left is to say the truth about it. A
//! target's journal tells whether a connection had begun to live there: if not, the source may have it back; if so, it is
//! lost. A source's journal tells which handovers have no end yet, and whether COMMIT can have been sent: those the
//! process after it settles with their targets ([`Mover::resolve`](super::Mover::resolve)).

mod decide;
mod decision;
mod file;
mod record;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::SystemTime;

use tcpmig_format::FourTuple;

pub use decide::{Undecided, decide};
pub use file::{File, JournalError, Listing, read};

pub use crate::handover::{Decision, Note, Role};

use crate::handover::HandoverId;

/// What a handover is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandoverInfo {
    /// What this host is in it.
    pub role: Role,
    /// The connection.
    pub flow: FourTuple,
    /// The name of the other host.
    pub host: String,
    /// Where a target is reached.
    pub address: Option<SocketAddr>,
}

impl HandoverInfo {
    /// A handover in which this host has this role; `address` is where a target is reached.
    pub fn new(
        role: Role,
        flow: FourTuple,
        host: impl Into<String>,
        address: Option<SocketAddr>,
    ) -> Self {
        Self {
            role,
            flow,
            host: host.into(),
            address,
        }
    }
}

/// A handover that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// Its name.
    pub id: HandoverId,
    /// What it is about.
    pub about: HandoverInfo,
    /// The newest note of it.
    pub note: Note,
    /// When it was begun, by the clock on the wall.
    pub since: SystemTime,
    /// Since when nobody answers for it, if its process has said so. That it was noted is not what makes a handover be in
    /// doubt: any that is [`Note::Committing`] and whose process has died is.
    pub in_doubt_since: Option<SystemTime>,
}

impl Unfinished {
    /// One that was begun `since` then and of which this is the newest note. Its process has not said that it is in doubt.
    #[must_use]
    pub fn new(id: HandoverId, about: HandoverInfo, note: Note, since: SystemTime) -> Self {
        Self {
            id,
            about,
            note,
            since,
            in_doubt_since: None,
        }
    }
}

/// Where a host notes what it does, for the process after it.
///
/// A note has to outlive the process when the call returns, and need not outlive the kernel, because no connection does.
/// [`Journal::note`] is called while a connection stands still and must not wait for a disk. If it does all the same,
/// only the connection that it is about waits with it.
pub trait Journal: Send + Sync {
    /// Whether a call can wait, for a disk or a lock that others hold. Then the calls come from a thread on which nothing else of the
    /// program runs, else from the task that moves the connection. True unless it is implemented. [`Journal::lookup`] and
    /// [`Journal::offered_by`] come from that task in any case: they are about what was there in the beginning.
    fn waits(&self) -> bool {
        true
    }

    /// Notes that a handover begins: [`Note::Offering`] of a source, [`Note::Prepared`] of a target. The connection
    /// of a source goes on meanwhile.
    ///
    /// # Errors
    ///
    /// What kept it from being noted: the handover is then not begun.
    fn begin(&self, id: HandoverId, about: &HandoverInfo) -> io::Result<()>;

    /// Notes a later step before it is done, an end after it.
    ///
    /// # Errors
    ///
    /// What kept it from being noted: the step is then not done. An end is reached all the same.
    fn note(&self, id: HandoverId, note: Note) -> io::Result<()>;

    /// Notes that nobody answers for a handover that is [`Note::Committing`], for people who look at the journal while this
    /// process lives. Nothing depends on it. Notes nothing unless it is implemented.
    ///
    /// # Errors
    ///
    /// What kept it from being noted.
    fn in_doubt(&self, id: HandoverId) -> io::Result<()> {
        let _ = id;
        Ok(())
    }

    /// What a person has [decided](decide) about a handover in doubt, from outside of this process. Nothing unless it
    /// is implemented.
    fn decided(&self, id: HandoverId) -> Option<Decision> {
        let _ = id;
        None
    }

    /// The newest note as a target of a process that ended before this one began; `None` if it may be missing.
    fn lookup(&self, id: HandoverId) -> Option<Note>;

    /// The host that offered the handover which [`Journal::lookup`] knows; `None` if the journal cannot tell, because
    /// its first note is gone.
    fn offered_by(&self, id: HandoverId) -> Option<String> {
        let _ = id;
        None
    }

    /// What processes before this one had begun as a source and not brought to an end, as far as nobody has noted an
    /// end since; the oldest first.
    fn left_open(&self) -> Vec<Unfinished>;
}

/// Notes nothing: a host that was started again answers for nothing that was before.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn waits(&self) -> bool {
        false
    }

    fn begin(&self, _: HandoverId, _: &HandoverInfo) -> io::Result<()> {
        Ok(())
    }

    fn note(&self, _: HandoverId, _: Note) -> io::Result<()> {
        Ok(())
    }

    fn lookup(&self, _: HandoverId) -> Option<Note> {
        None
    }

    fn left_open(&self) -> Vec<Unfinished> {
        Vec::new()
    }
}
