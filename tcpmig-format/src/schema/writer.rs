//! Where a payload is written to.

use std::io;

use crc32fast::Hasher;

use crate::secret_bytes::append;

/// A payload that grows, and its checksum.
///
/// Large pieces are copied and summed in steps that stay in the processor's nearest cache: reading them again from
/// memory would take a third as long as the copy.
pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    /// Of the bytes before `summed`, if there are any.
    hasher: Option<Hasher>,
    summed: usize,
}

const STEP: usize = 16 << 10;

impl<'a> Writer<'a> {
    /// Appends to `bytes`.
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self {
            summed: bytes.len(),
            bytes,
            hasher: None,
        }
    }

    /// The checksum of what was appended; none if that is little, which is faster to sum along with what precedes it than to
    /// combine with.
    pub(crate) fn finish(mut self) -> Option<Hasher> {
        if self.hasher.is_some() {
            self.sum();
        }
        self.hasher
    }

    fn write_large(&mut self, bytes: &[u8]) {
        self.sum();
        for step in bytes.chunks(STEP) {
            append(self.bytes, step);
            self.sum();
        }
    }

    fn sum(&mut self) {
        let hasher = self.hasher.get_or_insert_default();
        hasher.update(&self.bytes[self.summed..]);
        self.summed = self.bytes.len();
    }
}

impl io::Write for Writer<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < STEP {
            // Small pieces are summed together: each sum costs as much as some hundred bytes.
            append(self.bytes, bytes);
        } else {
            self.write_large(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
