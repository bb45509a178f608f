//! The file that says what an unplugged device needs to be put back, and for whom it is unplugged.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tcpmig_format::FourTuple;

use super::Unplug;
use super::saved::Saved;
use crate::{Entry, EntryKind, LockError, Owner};

const HEAD: &str = "tcpmig link 1";

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    /// No other is called so.
    pub(super) id: String,
    /// Milliseconds since this host started.
    pub(super) made: u64,
    pub(super) until: u64,
    pub(super) owner: Owner,
    pub(super) flows: Vec<FourTuple>,
}

impl Hold {
    /// Of one of its flows, at a moment in which its lease runs.
    pub(super) fn entry(&self, flow: FourTuple, now: u64) -> Entry {
        let ms = Duration::from_millis;
        // One step of the clock was added.
        let remaining = ms(self.until.saturating_sub(now).saturating_sub(10));
        let mut entry = Entry::new(flow, EntryKind::Lock, remaining).owned_by(&self.owner);
        entry.age = Some(ms(now.saturating_sub(self.made)));
        entry
    }
}

/// A device that is unplugged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
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

/// Milliseconds since this host started, in steps of ten.
pub(super) fn now() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let (seconds, hundredths) = text
        .split(' ')
        .next()
        .and_then(|uptime| uptime.split_once('.'))
        .unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    number(seconds) * 1000 + number(hundredths) * 10
}

/// The file of a device in a network namespace.
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
    /// Reads a file; none if there is none, or if it is of an earlier start of this host.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, LockError> {
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
        Self::parse(lines).map(Some).ok_or_else(damaged)
    }

    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut state = Self {
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
                    let [id, made, until, pid, name, start @ ..] = words.as_slice() else {
                        return None;
                    };
                    let mut owner = Owner::new(pid.parse().ok()?, (*name).to_owned());
                    if let [started, namespace] = start {
                        owner.started = Some(started.parse().ok()?);
                        owner.namespace = Some(namespace.parse().ok()?);
                    }
                    state.holds.push(Hold {
                        id: (*id).to_owned(),
                        made: made.parse().ok()?,
                        until: until.parse().ok()?,
                        owner,
                        flows: Vec::new(),
                    });
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
            device,
            index,
            unplug,
            saved,
            holds,
        } = self;
        let mut text = format!(
            "{HEAD}\nboot {}\ndevice {device}\nindex {index}\nunplug {}\n",
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
        for Hold {
            id,
            made,
            until,
            owner,
            flows,
        } in holds
        {
            let _ = write!(
                text,
                "hold {id} {made} {until} {} {}",
                owner.pid, owner.name
            );
            if let (Some(started), Some(namespace)) = (owner.started, owner.namespace) {
                let _ = write!(text, " {started} {namespace}");
            }
            text.push('\n');
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
            id: id.to_owned(),
            made: 1,
            until: 2,
            owner: Owner {
                started: Some(777),
                namespace: Some(4_026_531_836),
                ..Owner::new(3, "curl".to_owned())
            },
            flows: vec!["10.0.0.1:80,10.0.0.9:1025".parse().unwrap()],
        };
        let state = State {
            device: "eth0".to_owned(),
            index: 7,
            unplug: Unplug::Port,
            saved: Saved::default(),
            holds: vec![hold("a"), hold("b")],
        };
        let text = state.text();
        let lines = || text.lines().skip(2);
        assert_eq!(State::parse(lines()), Some(state));
        // A file that was cut is not taken for a whole one.
        let count = lines().count();
        assert_eq!(State::parse(lines().take(count - 1)), None);
    }
}
