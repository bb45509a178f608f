//! What a person decides about a handover in doubt, while the process that has its socket lives.
//!
//! The journal belongs to that process, and so does the socket. So the decision waits in a file beside the journal, and the process
//! takes it the next time that it asks the target ([`InDoubt::ask`](crate::driver::InDoubt::ask)).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::file::{read, suffixed};
use super::{JournalError, Role};
use crate::handover::{Decision, HandoverId};

const WORDS: [(Decision, &str); 3] = [
    (Decision::Kept, "kept"),
    (Decision::Moved, "moved"),
    (Decision::Lost, "lost"),
];

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
    let path = place(journal, id);
    let laid = Laid::new(path)?;
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

/// The decision that waits beside the journal.
pub(super) fn decided(journal: &Path, id: HandoverId) -> Option<Decision> {
    let path = place(journal, id);
    let owner = fs::symlink_metadata(&path).ok()?.uid();
    // Whoever may not write the journal must not decide either, in a folder that others may write to.
    if owner != fs::metadata(journal).ok()?.uid() && owner != 0 {
        tracing::warn!(path = %path.display(), "a decision of somebody else is not taken");
        return None;
    }
    let text = fs::read_to_string(&path).ok()?;
    let known = WORDS.iter().find(|(_, word)| text.trim_end() == *word);
    known.map(|(decision, _)| *decision)
}

fn place(journal: &Path, id: HandoverId) -> PathBuf {
    suffixed(journal, &format!(".settle-{id}"))
}

/// The file; gone when this is.
struct Laid(PathBuf);

impl Laid {
    fn new(path: PathBuf) -> Result<Self, Undecided> {
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(source) => Err(Undecided::Io {
                call: "create",
                path,
                source,
            }),
        }
    }

    fn write(&self, decision: Decision) -> Result<(), Undecided> {
        // INVARIANT: each decision has a word.
        let (_, word) = WORDS
            .iter()
            .find(|(other, _)| *other == decision)
            .expect("it is listed");
        let file = OpenOptions::new().write(true).open(&self.0);
        file.and_then(|mut file| file.write_all(format!("{word}\n").as_bytes()))
            .map_err(|source| Undecided::Io {
                call: "write",
                path: self.0.clone(),
                source,
            })
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
