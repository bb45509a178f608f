//! Where a payload is written to.

use std::io;

use crc32fast::Hasher;

/// A payload that grows, and its checksum.
///
/// Large pieces are copied and summed in steps that stay in the processor's nearest cache: reading them again from
/// memory would take a third as long as the copy.
pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    /// Of the bytes before `summed`.
    hasher: Hasher,
    summed: usize,
}

const STEP: usize = 16 << 10;

impl<'a> Writer<'a> {
    /// Appends to `bytes`.
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self {
            summed: bytes.len(),
            bytes,
            hasher: Hasher::new(),
        }
    }

    /// The checksum of what was appended.
    pub(crate) fn finish(mut self) -> Hasher {
        self.sum();
        self.hasher
    }

    fn write_large(&mut self, bytes: &[u8]) {
        self.sum();
        for step in bytes.chunks(STEP) {
            self.bytes.extend_from_slice(step);
            self.sum();
        }
    }

    fn sum(&mut self) {
        self.hasher.update(&self.bytes[self.summed..]);
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
            self.bytes.extend_from_slice(bytes);
        } else {
            self.write_large(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
