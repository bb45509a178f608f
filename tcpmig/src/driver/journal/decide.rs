//! What a person decides about a handover in doubt, while the process that has its socket lives.
//!
//! The journal belongs to that process, and so does the socket. So the decision waits in a file beside the journal, and the process
//! takes it the next time that it asks the target ([`InDoubt::ask`](crate::driver::InDoubt::ask)).

use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Role;
use super::decision::{Laid, NotLaid};
use super::file::{JournalError, read};
use crate::handover::{Decision, HandoverId};

/// Why a decision was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Undecided {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The decision cannot be laid beside the journal.
    #[error("{call} {}: {source}", path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is no such handover in doubt, or its process has not noted that it is.
    #[error("{0} is not a handover that a process which lives has in doubt")]
    NotInDoubt(HandoverId),
    /// The process has not taken it. It does so when it asks the target, with `InDoubt::ask`.
    #[error(
        "the process that has the connection did not take the decision within {0:?}: it is withdrawn"
    )]
    NotTaken(Duration),
}

/// Lays the decision beside the journal and waits until the process that has the journal open has carried it out. After an error it
/// is withdrawn, though the process may have taken it at that moment.
///
/// # Errors
///
/// [`Undecided`].
pub fn decide(
    journal: &Path,
    id: HandoverId,
    decision: Decision,
    within: Duration,
) -> Result<(), Undecided> {
    let is_open = || -> Result<Option<bool>, JournalError> {
        let listing = read(journal)?;
        let open = listing.open.iter();
        let mut mine = open.filter(|open| open.id == id && open.about.role == Role::Source);
        Ok(mine
            .next()
            .map(|open| listing.in_use && open.in_doubt_since.is_some()))
    };
    if is_open()? != Some(true) {
        return Err(Undecided::NotInDoubt(id));
    }
    let laid = Laid::new(journal, id)?;
    laid.write(decision)?;
    let begin = Instant::now();
    while is_open()?.is_some() {
        if begin.elapsed() >= within {
            return Err(Undecided::NotTaken(within));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl From<NotLaid> for Undecided {
    fn from(NotLaid { call, path, source }: NotLaid) -> Self {
        Self::Io { call, path, source }
    }
}
