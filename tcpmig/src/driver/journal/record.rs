//! The bytes of a journal.
//!
//! A head with the boot of the kernel, then records: the length of the rest and its complement (`u16` each, big endian),
//! the CRC-32 of the rest, and the rest: a letter for the note, the handover, and of a first note what it is about.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tcpmig_format::FourTuple;

use super::{HandoverInfo, Note, Unfinished};
use crate::handover::HandoverId;

pub(super) const MAGIC: &[u8] = b"tcpmig handovers 2, boot ";

/// Bytes before those that a record's length counts.
const HEAD: usize = 8;

/// What a journal of this boot begins with.
pub(super) fn head() -> io::Result<Vec<u8>> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id")?;
    Ok([MAGIC, &boot].concat())
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Begun(Unfinished),
    Noted(HandoverId, Note),
}

/// What a record says of its handover, with names so that fields can be added.
#[derive(Serialize, Deserialize)]
struct Begin {
    local: SocketAddr,
    remote: SocketAddr,
    host: String,
    address: Option<SocketAddr>,
    /// Seconds since 1970.
    since: u64,
    /// As `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_doubt_since: Option<u64>,
}

const LETTERS: [(Note, u8); 9] = [
    (Note::Offering, b'o'),
    (Note::Committing, b'c'),
    (Note::Kept, b'k'),
    (Note::Moved, b'm'),
    (Note::Lost, b'l'),
    (Note::Prepared, b'p'),
    (Note::Activating, b'a'),
    (Note::Active, b'v'),
    (Note::Aborted, b'x'),
];

impl Record {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (id, note) = match self {
            Self::Begun(open) => (open.id, open.note),
            Self::Noted(id, note) => (*id, *note),
        };
        let mut bytes = vec![0; HEAD];
        let letter = LETTERS.iter().find(|(other, _)| *other == note);
        // INVARIANT: every note has a letter.
        bytes.push(letter.expect("a note has a letter").1);
        bytes.extend(id.bytes());
        if let Self::Begun(open) = self {
            let about = &open.about;
            let begin = Begin {
                local: about.flow.local(),
                remote: about.flow.remote(),
                host: about.host.clone(),
                address: about.address,
                since: seconds(open.since),
                in_doubt_since: open.in_doubt_since.map(seconds),
            };
            // INVARIANT: addresses, strings and integers always have an encoding, and a `Vec` takes it.
            bytes.extend(rmp_serde::to_vec_named(&begin).expect("it can be encoded"));
        }
        let rest = &bytes[HEAD..];
        // INVARIANT: the name of a host has at most 253 bytes, the rest not more than that.
        let len = u16::try_from(rest.len()).expect("a record is short");
        let crc = crc32fast::hash(rest);
        bytes[..2].copy_from_slice(&len.to_be_bytes());
        bytes[2..4].copy_from_slice(&(!len).to_be_bytes());
        bytes[4..HEAD].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn decode(rest: &[u8]) -> Option<Self> {
        let (&letter, rest) = rest.split_first()?;
        let (note, _) = *LETTERS.iter().find(|(_, other)| *other == letter)?;
        let (id, rest) = rest.split_first_chunk()?;
        let id = HandoverId::from_bytes(*id);
        if rest.is_empty() {
            return Some(Self::Noted(id, note));
        }
        let begin: Begin = rmp_serde::from_slice(rest).ok()?;
        let about = HandoverInfo {
            role: note.role(),
            flow: FourTuple::new(begin.local, begin.remote).ok()?,
            host: begin.host,
            address: begin.address,
        };
        let in_doubt_since = match begin.in_doubt_since {
            Some(since) => Some(time(since)?),
            None => None,
        };
        Some(Self::Begun(Unfinished {
            id,
            about,
            note,
            since: time(begin.since)?,
            in_doubt_since,
        }))
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn time(seconds: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The records at the front of `bytes`, and how many bytes they have. What follows was not written whole.
///
/// # Errors
///
/// Where the first record begins that is not as it was written.
pub(super) fn decode(bytes: &[u8]) -> Result<(Vec<Record>, usize), usize> {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<HEAD>() {
        let len = u16::from_be_bytes([head[0], head[1]]);
        if len != !u16::from_be_bytes([head[2], head[3]]) {
            return Err(at);
        }
        let Some(rest) = rest.get(..len.into()) else {
            break;
        };
        if crc32fast::hash(rest).to_be_bytes() != head[4..] {
            return Err(at);
        }
        records.push(Record::decode(rest).ok_or(at)?);
        at += HEAD + rest.len();
    }
    Ok((records, at))
}
