//! The file that says what an unplugged device needs to be put back, and for whom it is unplugged.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tcpmig_format::FourTuple;

use super::Unplug;
use super::saved::Saved;
use crate::lease::Lease;
use crate::{LockError, Owner};

const HEAD: &str = "tcpmig link 1";

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) lease: Lease,
    pub(super) flows: Vec<FourTuple>,
}

/// A device that is unplugged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    /// The cookie of its network namespace.
    pub(super) namespace: u64,
    pub(super) device: String,
    pub(super) index: u32,
    pub(super) unplug: Unplug,
    pub(super) saved: Saved,
    pub(super) holds: Vec<Hold>,
}

/// Which start of this host it is.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The file of a device in a network namespace. A later namespace with the same inode has the same file: it is taken for
/// none ([`State::read`]) and written over.
pub(super) fn path(directory: &Path, namespace: u64, index: u32) -> PathBuf {
    directory.join(format!("link-{namespace}-{index}"))
}

/// The files of all devices in a network namespace.
pub(super) fn paths(directory: &Path, namespace: u64) -> Result<Vec<PathBuf>, LockError> {
    let prefix = format!("link-{namespace}-");
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let index = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            if index.is_some_and(|index| index.parse::<u32>().is_ok()) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    };
    list().map_err(LockError::file(directory))
}

impl State {
    /// Reads a file; none if there is none, or if it is of an earlier start of this host or of a network namespace that
    /// has ended (of another than this `namespace`, by its cookie).
    pub(super) fn read(path: &Path, namespace: u64) -> Result<Option<Self>, LockError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LockError::file(path)(error)),
        };
        let damaged = || LockError::file(path)(io::ErrorKind::InvalidData.into());
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(damaged());
        }
        if lines.next().and_then(|line| line.strip_prefix("boot ")) != Some(&boot()) {
            return Ok(None);
        }
        let of = lines
            .next()
            .and_then(|line| line.strip_prefix("namespace "));
        if of != Some(&namespace.to_string()) {
            return Ok(None);
        }
        Self::parse(lines, namespace).map(Some).ok_or_else(damaged)
    }

    fn parse<'a>(lines: impl Iterator<Item = &'a str>, namespace: u64) -> Option<Self> {
        let mut state = Self {
            namespace,
            device: String::new(),
            index: 0,
            unplug: Unplug::Down,
            saved: Saved::default(),
            holds: Vec::new(),
        };
        let mut ended = false;
        for line in lines {
            let (what, value) = line.split_once(' ').unwrap_or((line, ""));
            match what {
                "device" => value.clone_into(&mut state.device),
                "index" => state.index = value.parse().ok()?,
                "unplug" => state.unplug = Unplug::from_name(value)?,
                "accept_dad" => state.saved.accept_dad = Some(value.to_owned()),
                "message" => state.saved.decode(&from_hex(value)?).ok()?,
                "hold" => {
                    let words: Vec<&str> = value.split(' ').collect();
                    let [id, made, until, owner @ ..] = words.as_slice() else {
                        return None;
                    };
                    let lease = Lease {
                        id: (*id).to_owned(),
                        made: made.parse().ok()?,
                        until: until.parse().ok()?,
                        owner: Owner::from_words(owner)?,
                    };
                    let flows = Vec::new();
                    state.holds.push(Hold { lease, flows });
                }
                "flow" => state.holds.last_mut()?.flows.push(value.parse().ok()?),
                "end" => ended = true,
                _ => return None,
            }
        }
        ended.then_some(state)
    }

    fn text(&self) -> String {
        let Self {
            namespace,
            device,
            index,
            unplug,
            saved,
            holds,
        } = self;
        let mut text = format!(
            "{HEAD}\nboot {}\nnamespace {namespace}\ndevice {device}\nindex {index}\nunplug {}\n",
            boot(),
            unplug.name()
        );
        // Writing to a string does not fail.
        if let Some(dad) = &saved.accept_dad {
            let _ = writeln!(text, "accept_dad {dad}");
        }
        for message in saved.encode() {
            text.push_str("message ");
            for byte in message {
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        for Hold { lease, flows } in holds {
            let Lease {
                id, made, until, ..
            } = lease;
            let owner = lease.owner.words();
            let _ = writeln!(text, "hold {id} {made} {until} {owner}");
            for flow in flows {
                let _ = writeln!(text, "flow {flow}");
            }
        }
        text.push_str("end\n");
        text
    }

    /// Writes the file, in one step.
    pub(super) fn write(&self, path: &Path) -> Result<(), LockError> {
        let new = path.with_extension("new");
        fs::write(&new, self.text())
            .and_then(|()| fs::rename(&new, path))
            .map_err(LockError::file(path))
    }
}

/// Removes the file.
pub(super) fn remove(path: &Path) -> Result<(), LockError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LockError::file(path)(error)),
        _ => Ok(()),
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let bytes = pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok());
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_as_written() {
        let hold = |id: &str| Hold {
            lease: Lease {
                id: id.to_owned(),
                made: 1,
                until: 2,
                owner: Owner {
                    started: Some(777),
                    namespace: Some(4_026_531_836),
                    ..Owner::new(3, "curl".to_owned())
                },
            },
            flows: vec!["10.0.0.1:80,10.0.0.9:1025".parse().unwrap()],
        };
        let state = State {
            namespace: 4242,
            device: "eth0".to_owned(),
            index: 7,
            unplug: Unplug::Port,
            saved: Saved::default(),
            holds: vec![hold("a"), hold("b")],
        };
        let text = state.text();
        let lines = || text.lines().skip(3);
        assert_eq!(State::parse(lines(), 4242), Some(state));
        // A file that was cut is not taken for a whole one.
        let count = lines().count();
        assert_eq!(State::parse(lines().take(count - 1), 4242), None);
    }
}
