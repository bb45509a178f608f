//! The files of a CRIU image: two magic numbers, and messages with their lengths before them. All numbers are of 32 bits,
//! little endian.

use prost::Message;

use super::CriuError;
use super::messages::{FileEntry, TcpStreamEntry};

/// Begins every image of a process.
const COMMON: u32 = 0x5456_4319;
const TCP_STREAM: u32 = 0x5146_5506;
const FILES: u32 = 0x5630_3138;

/// How the two files are called in errors.
pub(super) const STREAM_FILE: &str = "tcp-stream image";
pub(super) const FILES_FILE: &str = "files image";

/// What a file of a CRIU image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// `tcp-stream-INODE.img`: the numbers and the queues of a connection.
    TcpStream,
    /// `files.img`: the open files of all processes, with the addresses and options of sockets.
    Files,
    /// Another one, which says nothing about connections.
    Other,
}

impl Kind {
    /// The longest beginning that [`Kind::of`] looks at, in bytes.
    pub const BEGINNING: usize = 8;

    /// What this is the beginning of. `None` if it is of no image of CRIU.
    ///
    /// ```
    /// use tcpmig::criu::Kind;
    ///
    /// assert_eq!(Kind::of(b"\x19\x43\x56\x54\x06\x55\x46\x51..."), Some(Kind::TcpStream));
    /// assert_eq!(Kind::of(b"tcpmig"), None);
    /// ```
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let common = number(&mut rest)?;
        let magic = number(&mut rest)?;
        (common == COMMON).then_some(match magic {
            TCP_STREAM => Self::TcpStream,
            FILES => Self::Files,
            _ => Self::Other,
        })
    }
}

/// The contents of `tcp-stream-INODE.img`: the message, what waits to be read, and what the peer has not acknowledged, with
/// what was not sent at its end.
pub(super) fn stream(bytes: &[u8]) -> Result<(TcpStreamEntry, &[u8], &[u8]), CriuError> {
    let file = STREAM_FILE;
    let mut rest = behind_magic(bytes, Kind::TcpStream, file)?;
    let entry: TcpStreamEntry = message(&mut rest, file)?;
    let mut queue = |length: Option<u32>, field| {
        let length = length.ok_or(CriuError::Missing { file, field })?;
        take(&mut rest, length).ok_or(CriuError::CutOff { file })
    };
    let unread = queue(entry.inq_len, "inq_len")?;
    let written = queue(entry.outq_len, "outq_len")?;
    if !rest.is_empty() {
        return Err(CriuError::Trailing {
            file,
            bytes: rest.len(),
        });
    }
    Ok((entry, unread, written))
}

/// The entries of `files.img`.
pub(super) fn files(
    bytes: &[u8],
) -> Result<impl Iterator<Item = Result<FileEntry, CriuError>>, CriuError> {
    let mut rest = behind_magic(bytes, Kind::Files, FILES_FILE)?;
    Ok(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = message(&mut rest, FILES_FILE);
        if entry.is_err() {
            // Nothing behind it can be found.
            rest = &[];
        }
        Some(entry)
    }))
}

fn behind_magic<'a>(
    bytes: &'a [u8],
    kind: Kind,
    file: &'static str,
) -> Result<&'a [u8], CriuError> {
    if Kind::of(bytes) != Some(kind) {
        return Err(CriuError::NotThat { file });
    }
    Ok(bytes.get(Kind::BEGINNING..).unwrap_or_default())
}

fn message<M: Message + Default>(rest: &mut &[u8], file: &'static str) -> Result<M, CriuError> {
    let bytes = number(rest)
        .and_then(|length| take(rest, length))
        .ok_or(CriuError::CutOff { file })?;
    M::decode(bytes).map_err(|error| CriuError::Malformed {
        file,
        reason: error.to_string(),
    })
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u32::from_le_bytes(*bytes))
}

fn take<'a>(rest: &mut &'a [u8], length: u32) -> Option<&'a [u8]> {
    let (bytes, behind) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = behind;
    Some(bytes)
}
