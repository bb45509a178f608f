//! A journal in a file.

use std::collections::HashMap;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use super::decision::{self, suffixed};
use super::record::{self, Record};
use super::{Decision, HandoverInfo, Journal, Note, Role, Unfinished};
use crate::handover::HandoverId;

/// Records in a file after which another one is begun.
const GENERATION: usize = 32 << 10;

/// A journal in a file, for one process at a time.
///
/// Nothing waits for the disk: what was written outlives the process in the kernel's memory. The file names the boot
/// of the kernel that it belongs to; after another boot all connections are gone, and so is what it says.
///
/// It does not grow for ever. After 32768 records (25 to about 150 bytes each) the file becomes `FILE.old`, in place of the one
/// before, and what is open goes on in a new one: so at least the last 10000 ended handovers are remembered. `FILE.new` and `FILE.link` are
/// there for a moment meanwhile; a process that dies at any time leaves a journal that is whole. `FILE.lock` keeps a second
/// process out, and stays. All of them are for their owner only.
#[derive(Debug)]
pub struct File {
    before: HashMap<HandoverId, Before>,
    state: Mutex<State>,
    paths: Paths,
    generation: usize,
    /// Held as long as it is open.
    _lock: fs::File,
}

#[derive(Debug)]
struct State {
    file: fs::File,
    /// Bytes in it that are whole records.
    len: u64,
    /// Whether a part of one may follow.
    torn: bool,
    records: usize,
    /// With how many records the next generation is begun.
    rotate_at: usize,
    /// What has no end, and whether a process before this one had it.
    open: HashMap<(Role, HandoverId), (Unfinished, bool)>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{call} {}: {source}", path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{} is in use by another process: each needs a journal of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a journal of handovers that this version can read", path.display())]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// A record is not as it was written. What the journal says of other handovers may still be read
    /// from its beginning; to go on without it, move the file away.
    #[error("{} is damaged at byte {at}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
    },
}

fn failed<'a>(call: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |source| JournalError::Io {
        call,
        path: path.to_owned(),
        source,
    }
}

#[derive(Debug)]
struct Paths {
    file: PathBuf,
    old: PathBuf,
    new: PathBuf,
    link: PathBuf,
    lock: PathBuf,
}

impl Paths {
    fn of(file: &Path) -> Self {
        let with = |suffix| suffixed(file, suffix);
        Self {
            file: file.to_owned(),
            old: with(".old"),
            new: with(".new"),
            link: with(".link"),
            lock: with(".lock"),
        }
    }
}

/// What is in one file.
enum Content {
    /// It is not there, empty, or of another boot.
    Nothing,
    Records {
        records: Vec<Record>,
        len: u64,
    },
}

fn content(path: &Path, head: &[u8]) -> Result<Content, JournalError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Content::Nothing),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let Some(rest) = bytes.strip_prefix(head) else {
        if head.starts_with(&bytes) || bytes.starts_with(record::MAGIC) {
            return Ok(Content::Nothing);
        }
        let path = path.to_owned();
        return Err(JournalError::NotAJournal { path });
    };
    match record::decode(rest) {
        Ok((records, len)) => Ok(Content::Records {
            records,
            len: (head.len() + len) as u64,
        }),
        Err(at) => Err(JournalError::Damaged {
            path: path.to_owned(),
            at: (head.len() + at) as u64,
        }),
    }
}

/// A handover as a target of a process before this one.
#[derive(Debug)]
struct Before {
    note: Note,
    /// The source, if the first note is still there.
    from: Option<Arc<str>>,
}

/// What records say, the newest last.
#[derive(Default)]
struct Told {
    open: HashMap<(Role, HandoverId), Unfinished>,
    targets: HashMap<HandoverId, Before>,
}

impl Told {
    fn take(&mut self, record: Record) {
        let (id, note, from) = match record {
            Record::Begun(begun) => {
                let (id, note) = (begun.id, begun.note);
                let from = Arc::from(&*begun.about.host);
                self.open.insert((note.role(), id), begun);
                (id, note, Some(from))
            }
            Record::Noted(id, note) => (id, note, None),
        };
        let role = note.role();
        if note.is_end() {
            self.open.remove(&(role, id));
        } else if let Some(open) = self.open.get_mut(&(role, id)) {
            open.note = note;
        }
        if role == Role::Target {
            let before = self.targets.entry(id);
            let before = before.or_insert(Before { note, from: None });
            before.note = note;
            before.from = from.or(before.from.take());
        }
    }

    fn of(paths: &Paths, head: &[u8]) -> Result<(Self, Option<(usize, u64)>), JournalError> {
        let mut told = Self::default();
        if let Content::Records { records, .. } = content(&paths.old, head)? {
            records.into_iter().for_each(|record| told.take(record));
        }
        let Content::Records { records, len } = content(&paths.file, head)? else {
            return Ok((told, None));
        };
        let count = records.len();
        records.into_iter().for_each(|record| told.take(record));
        Ok((told, Some((count, len))))
    }
}

/// A process that another one starts has its descriptors, and with them the lock, until it executes its program.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);

fn lock(path: &Path) -> Result<fs::File, JournalError> {
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(path).map_err(failed("open", path))?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begin.elapsed() < LET_GO_WITHIN => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        }
    }
}

/// What is open in a journal that a process may have in use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// Whether a process has it in use now.
    pub in_use: bool,
    /// What has no end, the oldest first.
    pub open: Vec<Unfinished>,
}

/// Reads a journal without changing it.
///
/// # Errors
///
/// [`JournalError`]; also for a file that is not there.
pub fn read(path: &Path) -> Result<Listing, JournalError> {
    fs::metadata(path).map_err(failed("read", path))?;
    let paths = Paths::of(path);
    let in_use = match fs::File::open(&paths.lock) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(failed("open", &paths.lock)(error)),
    };
    let head = record::head().map_err(failed("read the boot for", path))?;
    let (told, _) = Told::of(&paths, &head)?;
    let open = sorted(told.open.into_values());
    Ok(Listing { in_use, open })
}

fn sorted(open: impl Iterator<Item = Unfinished>) -> Vec<Unfinished> {
    let mut open: Vec<Unfinished> = open.collect();
    open.sort_by_key(|open| (open.since, open.id.bytes()));
    open
}

impl File {
    /// Opens the journal of the processes before this one, or begins one. Waits for up to a second until a process that has
    /// it open lets it go.
    ///
    /// # Errors
    ///
    /// [`JournalError`]: those of the files, one that another process has open, that is something else, or damaged. A
    /// last record that was not written whole is none: nobody acted upon it.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_with(path, GENERATION)
    }

    /// Like [`File::open`], but with another number of records after which a file is full.
    ///
    /// # Errors
    ///
    /// Those of [`File::open`].
    pub fn open_with(path: &Path, generation: usize) -> Result<Self, JournalError> {
        let paths = Paths::of(path);
        let lock = lock(&paths.lock).map_err(|error| match error {
            JournalError::InUse { .. } => JournalError::InUse {
                path: path.to_owned(),
            },
            other => other,
        })?;
        let head = record::head().map_err(failed("read the boot for", path))?;
        let (told, there) = Told::of(&paths, &head)?;
        let open = told.open.into_iter();
        let open = open.map(|(key, open)| (key, (open, true))).collect();
        let state = match there {
            Some((records, len)) => {
                let file = OpenOptions::new().append(true).open(path);
                let file = file.map_err(failed("open", path))?;
                file.set_len(len).map_err(failed("truncate", path))?;
                State {
                    file,
                    len,
                    torn: false,
                    records,
                    rotate_at: generation,
                    open,
                }
            }
            None => {
                let state = State::anew(&paths, generation, open);
                let state = state.map_err(failed("write", &paths.new))?;
                fs::rename(&paths.new, path).map_err(failed("rename", &paths.new))?;
                state
            }
        };
        Ok(Self {
            before: told.targets,
            state: Mutex::new(state),
            paths,
            generation,
            _lock: lock,
        })
    }

    /// Leaves a part of a record, as a disk that is full does.
    #[cfg(test)]
    pub(super) fn tear(&self) {
        let mut state = self.state();
        state.torn = true;
        state.file.write_all(&[0; 9]).expect("it is not full");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the next generation if this one is full.
    fn rotate(&self, state: &mut State) {
        if state.records < state.rotate_at {
            return;
        }
        let open = std::mem::take(&mut state.open);
        match State::anew(&self.paths, self.generation, open.clone()).and_then(|new| {
            // The journal is at its place all the time.
            remove(&self.paths.link)?;
            fs::hard_link(&self.paths.file, &self.paths.link)?;
            fs::rename(&self.paths.link, &self.paths.old)?;
            fs::rename(&self.paths.new, &self.paths.file)?;
            Ok(new)
        }) {
            Ok(new) => *state = new,
            Err(error) => {
                warn!(path = %self.paths.file.display(), "the journal goes on growing: {error}");
                state.open = open;
                state.rotate_at = state.records + self.generation / 4 + 1;
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl State {
    /// A file beside the journal with what is open.
    fn anew(
        paths: &Paths,
        generation: usize,
        open: HashMap<(Role, HandoverId), (Unfinished, bool)>,
    ) -> io::Result<Self> {
        remove(&paths.new)?;
        let mut bytes = record::head()?;
        for (open, _) in open.values() {
            let mut begun = open.clone();
            // What follows a first note is a note of its own.
            begun.note = first(begun.about.role);
            let later = Record::Noted(open.id, open.note);
            bytes.extend(Record::Begun(begun).encode());
            bytes.extend(later.encode());
        }
        let mut options = OpenOptions::new();
        let options = options.create_new(true).append(true).mode(0o600);
        let mut file = options.open(&paths.new)?;
        file.write_all(&bytes)?;
        let records = open.len() * 2;
        Ok(Self {
            file,
            len: bytes.len() as u64,
            torn: false,
            records,
            rotate_at: generation + records,
            open,
        })
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let bytes = record.encode();
        if self.torn {
            self.file.set_len(self.len)?;
        }
        self.torn = true;
        self.file.write_all(&bytes)?;
        self.torn = false;
        self.len += bytes.len() as u64;
        self.records += 1;
        Ok(())
    }
}

fn first(role: Role) -> Note {
    match role {
        Role::Source => Note::Offering,
        Role::Target => Note::Prepared,
    }
}

impl Journal for File {
    /// It waits for no disk as long as the kernel has memory for what is to be written. A busy host may have none, and the folder may
    /// be on another host.
    fn waits(&self) -> bool {
        true
    }

    fn begin(&self, id: HandoverId, about: &HandoverInfo) -> io::Result<()> {
        let open = Unfinished {
            id,
            about: about.clone(),
            note: first(about.role),
            since: SystemTime::now(),
            in_doubt_since: None,
        };
        let mut state = self.state();
        let record = Record::Begun(open);
        state.write(&record)?;
        if let Record::Begun(open) = record {
            state.open.insert((about.role, id), (open, false));
        }
        Ok(())
    }

    fn note(&self, id: HandoverId, note: Note) -> io::Result<()> {
        let mut state = self.state();
        state.write(&Record::Noted(id, note))?;
        let key = (note.role(), id);
        if note.is_end() {
            state.open.remove(&key);
        } else if let Some((open, _)) = state.open.get_mut(&key) {
            open.note = note;
        }
        if note.is_end() {
            // Not while the connection that it is about stands still.
            self.rotate(&mut state);
        }
        Ok(())
    }

    fn in_doubt(&self, id: HandoverId) -> io::Result<()> {
        let mut state = self.state();
        let key = (Role::Source, id);
        let mut open = match state.open.get(&key) {
            Some((open, _)) if open.in_doubt_since.is_none() => open.clone(),
            _ => return Ok(()),
        };
        open.in_doubt_since = Some(SystemTime::now());
        state.write(&Record::Begun(open.clone()))?;
        if let Some((known, _)) = state.open.get_mut(&key) {
            *known = open;
        }
        Ok(())
    }

    fn decided(&self, id: HandoverId) -> Option<Decision> {
        decision::decided(&self.paths.file, id)
    }

    fn lookup(&self, id: HandoverId) -> Option<Note> {
        self.before.get(&id).map(|before| before.note)
    }

    fn offered_by(&self, id: HandoverId) -> Option<String> {
        self.before.get(&id)?.from.as_deref().map(str::to_owned)
    }

    fn left_open(&self) -> Vec<Unfinished> {
        let state = self.state();
        let left = state
            .open
            .values()
            .filter(|(open, before)| *before && open.about.role == Role::Source);
        sorted(left.map(|(open, _)| open.clone()))
    }
}
