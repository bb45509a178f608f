//! Where TLS records end.

use std::io::{self, Read};

/// The header of a record: its kind, its version and the length of the rest.
pub(super) const HEADER: usize = 5;
/// What every protected record of TLS 1.3 says that it is.
const APPLICATION_DATA: u8 = 23;

/// The beginning of a record of which the rest has not been read.
///
/// rustls reads from TCP and does not give back what it holds of a record that is cut. This has a copy of that.
#[derive(Default)]
pub(super) struct Cut(Vec<u8>);

impl Cut {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Follows what is read next. What is not a record is cut nowhere: rustls ends the session for it.
    fn follow(&mut self, mut read: &[u8]) {
        while !self.0.is_empty() {
            let whole = whole(&self.0).unwrap_or(HEADER);
            let (more, rest) = read.split_at(read.len().min(whole - self.0.len()));
            self.0.extend_from_slice(more);
            read = rest;
            match self::whole(&self.0) {
                // It is in memory that nobody needs while the connection is at rest.
                Some(whole) if self.0.len() == whole => self.0 = Vec::new(),
                _ if read.is_empty() => return,
                _ => {}
            }
        }
        while let Some(whole) = whole(read)
            && read.len() >= whole
        {
            read = &read[whole..];
        }
        self.0.extend_from_slice(read);
    }
}

/// The length of the record that begins here, if its header is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [_, _, _, high, low, ..] => Some(HEADER + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// So long is what a record protects, at most, for rustls to get it by itself. Longer than a key update with everything around it.
const SMALL: usize = 64;

/// A whole record that is small.
pub(super) type Small = ArrayVec<{ HEADER + SMALL }>;

/// What rustls was given at a time.
pub(super) enum Batch {
    /// A part of a record, or nothing.
    Part,
    /// The end of a record that is not small, and what follows up to one that is.
    Records,
    /// One that is.
    Small(Small),
}

impl Cut {
    /// What of these bytes rustls gets at a time: what it makes of a small record is seen only if that comes alone.
    fn batch(&self, read: &[u8]) -> (usize, Batch) {
        let (mut at, mut batch) = (0, Batch::Part);
        loop {
            let begun = if at == 0 { self.bytes() } else { &[] };
            let mut record = Small::default();
            record.extend(begun);
            record.extend(&read[at..]);
            let Some(whole) = whole(record.as_ref()) else {
                return (read.len(), batch);
            };
            // What is cut is not whole.
            let end = at + whole.saturating_sub(begun.len());
            if end > read.len() {
                return (read.len(), batch);
            }
            if record.as_ref()[0] == APPLICATION_DATA && whole <= HEADER + SMALL {
                return match batch {
                    Batch::Part => {
                        record.truncate(whole);
                        (end, Batch::Small(record))
                    }
                    batch => (at, batch),
                };
            }
            (at, batch) = (end, Batch::Records);
        }
    }
}

/// What rustls reads from, followed.
pub(super) struct Tap<'a> {
    pub(super) from: &'a mut dyn Read,
    pub(super) cut: &'a mut Cut,
    /// Whether rustls gets small records by themselves.
    pub(super) one_by_one: bool,
    /// What it got.
    pub(super) batch: Batch,
    /// What was read and is to come next.
    pub(super) held: Vec<u8>,
}

impl<'a> Tap<'a> {
    pub(super) fn new(from: &'a mut dyn Read, cut: &'a mut Cut, one_by_one: bool) -> Self {
        Self {
            from,
            cut,
            one_by_one,
            batch: Batch::Records,
            held: Vec::new(),
        }
    }
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.from.read(buffer)?;
        let mut given = len;
        if self.one_by_one {
            (given, self.batch) = self.cut.batch(&buffer[..len]);
        }
        self.cut.follow(&buffer[..given]);
        self.held.extend_from_slice(&buffer[given..len]);
        Ok(given)
    }
}

/// Bytes up to a number; more are left out.
#[derive(Clone, Copy)]
pub(super) struct ArrayVec<const MOST: usize> {
    bytes: [u8; MOST],
    len: usize,
}

impl<const MOST: usize> Default for ArrayVec<MOST> {
    fn default() -> Self {
        Self {
            bytes: [0; MOST],
            len: 0,
        }
    }
}

impl<const MOST: usize> ArrayVec<MOST> {
    fn extend(&mut self, more: &[u8]) {
        let len = more.len().min(MOST - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&more[..len]);
        self.len += len;
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl<const MOST: usize> AsRef<[u8]> for ArrayVec<MOST> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small record comes alone, wherever what is read ends.
    #[test]
    fn small_records_come_one_by_one() {
        let small = [&[23, 3, 3, 0, 18][..], &[1; 18]].concat();
        let large = [&[23, 3, 3, 1, 0][..], &[2; 256]].concat();
        let bytes = [&large[..], &large, &small, &small, &large, &small].concat();
        for piece in 1..=bytes.len() {
            let (mut cut, mut found, mut given) = (Cut::default(), 0, Vec::new());
            for chunk in bytes.chunks(piece) {
                let mut chunk = chunk.to_vec();
                while !chunk.is_empty() {
                    let mut from = &chunk[..];
                    let mut tap = Tap::new(&mut from, &mut cut, true);
                    let mut buffer = [0; 1000];
                    let len = tap.read(&mut buffer).unwrap();
                    assert!(len > 0);
                    given.extend_from_slice(&buffer[..len]);
                    if let Batch::Small(record) = tap.batch {
                        assert_eq!(record.as_ref(), small);
                        assert!(given.ends_with(&small));
                        found += 1;
                    }
                    chunk = std::mem::take(&mut tap.held);
                }
            }
            assert_eq!((found, given == bytes), (3, true), "{piece} bytes each");
        }
    }

    /// However the records come, what is left is the beginning of the last one.
    #[test]
    fn the_beginning_of_a_record_is_kept() {
        let records = [
            &[23, 3, 3, 0, 3, 1, 2, 3][..],
            &[22, 3, 3, 0, 0],
            &[23, 3, 3, 1, 1],
        ];
        let ends = [0, 8, 13];
        let bytes = [records.concat(), vec![7; 257]].concat();
        for piece in 1..=bytes.len() {
            let (mut cut, mut read) = (Cut::default(), 0);
            for chunk in bytes.chunks(piece) {
                cut.follow(chunk);
                read += chunk.len();
                let begin = ends.into_iter().rfind(|&end| end <= read).unwrap();
                let begin = if read == bytes.len() { read } else { begin };
                assert_eq!(
                    cut.bytes(),
                    &bytes[begin..read],
                    "{piece} bytes each, {read} in all"
                );
            }
        }
    }
}
