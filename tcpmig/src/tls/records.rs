//! Where TLS records end.

use std::io::{self, Read};

/// The header of a record: its kind, its version and the length of the rest.
const HEADER: usize = 5;

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

/// What rustls reads from, followed.
pub(super) struct Tap<'a> {
    pub(super) from: &'a mut dyn Read,
    pub(super) cut: &'a mut Cut,
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.from.read(buffer)?;
        self.cut.follow(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
