//! The file beside a journal in which a decision waits for the process that has the journal open.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::handover::{Decision, HandoverId};

const WORDS: [(Decision, &str); 3] = [
    (Decision::Kept, "kept"),
    (Decision::Moved, "moved"),
    (Decision::Lost, "lost"),
];

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

/// The path with this behind it.
pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

fn place(journal: &Path, id: HandoverId) -> PathBuf {
    suffixed(journal, &format!(".settle-{id}"))
}

/// Why it could not be laid there.
pub(super) struct NotLaid {
    pub(super) call: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

/// The file; gone when this is.
pub(super) struct Laid(PathBuf);

impl Laid {
    /// An empty one beside the journal, which says nothing yet.
    pub(super) fn new(journal: &Path, id: HandoverId) -> Result<Self, NotLaid> {
        let path = place(journal, id);
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(source) => Err(NotLaid {
                call: "create",
                path,
                source,
            }),
        }
    }

    pub(super) fn write(&self, decision: Decision) -> Result<(), NotLaid> {
        // INVARIANT: each decision has a word.
        let (_, word) = WORDS
            .iter()
            .find(|(other, _)| *other == decision)
            .expect("it is listed");
        let file = OpenOptions::new().write(true).open(&self.0);
        file.and_then(|mut file| file.write_all(format!("{word}\n").as_bytes()))
            .map_err(|source| NotLaid {
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
