//! What a target has to know after its process has died.
//!
//! The sockets of a process die with it, so nothing that was built or active lives on. What is left to say is
//! whether a connection had begun to live here: if not, the source may have it back; if so, it is lost. A journal
//! remembers that.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::handover::HandoverId;

/// How far a handover got at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Note {
    /// It is built, and nothing of it can be seen from outside.
    Prepared,
    /// From here on it may live.
    Activating,
    /// It was discarded and never lived.
    Aborted,
}

/// Where a target notes what it does, for the process after it.
pub trait Journal: Send + Sync {
    /// Notes a step before it is done (of [`Note::Aborted`]: after it). It has to outlive the process when this
    /// returns, and need not outlive the kernel; it is called while the connection stands still.
    ///
    /// # Errors
    ///
    /// What kept it from being noted: the step is then not done.
    fn note(&self, id: HandoverId, note: Note) -> io::Result<()>;

    /// The newest note of a process that ended before this one began; `None` if it may be missing.
    fn recall(&self, id: HandoverId) -> Option<Note>;
}

/// Notes nothing: a target that was started again answers for nothing that was before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nowhere;

impl Journal for Nowhere {
    fn note(&self, _: HandoverId, _: Note) -> io::Result<()> {
        Ok(())
    }

    fn recall(&self, _: HandoverId) -> Option<Note> {
        None
    }
}

/// A journal in a file, for one process at a time.
///
/// Nothing waits for the disk: what was written outlives the process in the kernel's memory. The file names the boot
/// of the kernel that it belongs to; after another boot all connections are gone, and so is what it says. 17 octets
/// are added for each note; the file is emptied by [`File::create_anew`] only, which an operator may do when no source
/// asks any more.
#[derive(Debug)]
pub struct File {
    file: Mutex<fs::File>,
    before: HashMap<HandoverId, Note>,
}

const RECORD: usize = 17;

impl File {
    /// Opens the journal of the processes before this one, or begins one.
    ///
    /// # Errors
    ///
    /// Those of the file, [`io::ErrorKind::InvalidData`] if it is another one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let head = head()?;
        let octets = match fs::read(path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let Some(records) = octets.strip_prefix(&head[..]) else {
            if octets.is_empty() || octets.starts_with(MAGIC) {
                return Self::create_anew(path);
            }
            let what = "it is not a journal of handovers";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        };
        let mut before = HashMap::new();
        let (records, torn) = records.as_chunks::<RECORD>();
        for record in records {
            // INVARIANT: a record has more octets than an identifier.
            let (id, note) = record.split_first_chunk().expect("it is long enough");
            let note = match note {
                b"p" => Note::Prepared,
                b"a" => Note::Activating,
                b"x" => Note::Aborted,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            before.insert(HandoverId::from_octets(*id), note);
        }
        let file = OpenOptions::new().append(true).open(path)?;
        // A note that was not written whole was not acted upon.
        file.set_len((octets.len() - torn.len()) as u64)?;
        Ok(Self {
            file: Mutex::new(file),
            before,
        })
    }

    /// Begins a journal in place of what is there.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub fn create_anew(path: &Path) -> io::Result<Self> {
        let mut open = OpenOptions::new();
        open.create(true).write(true).truncate(true).open(path)?;
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.write_all(&head()?)?;
        Ok(Self {
            file: Mutex::new(file),
            before: HashMap::new(),
        })
    }
}

const MAGIC: &[u8] = b"tcpmig handovers 1, boot ";

fn head() -> io::Result<Vec<u8>> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
    Ok([MAGIC, &boot].concat())
}

impl Journal for File {
    fn note(&self, id: HandoverId, note: Note) -> io::Result<()> {
        let mut record = [0; RECORD];
        record[..RECORD - 1].copy_from_slice(&id.octets());
        record[RECORD - 1] = match note {
            Note::Prepared => b'p',
            Note::Activating => b'a',
            Note::Aborted => b'x',
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&record)
    }

    fn recall(&self, id: HandoverId) -> Option<Note> {
        self.before.get(&id).copied()
    }
}
