//! The file that the demo's web servers serve: the same bytes on every host, without a disk.

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Bytes of one round of the pattern.
const ROUND: usize = 1 << 20;
/// Bytes of one frame of the body.
const FRAME: u64 = 1 << 16;
/// How far the pattern is turned from one frame to the next: any byte that is lost, repeated
/// or out of place changes the checksum.
const TURN: u64 = 4099;

/// The content of a file of a certain size.
#[derive(Clone)]
pub(crate) struct Content {
    // Twice the round, so that every slice of a frame is contiguous.
    pattern: Bytes,
    size: u64,
}

impl Content {
    pub(crate) fn new(size: u64) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let round: Vec<u8> = (0..ROUND)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        Self {
            pattern: [&round[..], &round[..]].concat().into(),
            size,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The bytes from `position` to the end of its frame, or of the file.
    pub(crate) fn frame(&self, position: u64) -> Bytes {
        let frame = position / FRAME;
        let end = ((frame + 1) * FRAME).min(self.size);
        let turned = (frame * TURN) % ROUND as u64 + position % FRAME;
        // INVARIANT: below twice the round, as `turned < ROUND + FRAME` and the rest fits a frame.
        let start = turned as usize;
        let len = end.saturating_sub(position) as usize;
        self.pattern.slice(start..start + len)
    }

    pub(crate) fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut position = 0;
        while position < self.size {
            let frame = self.frame(position);
            position += frame.len() as u64;
            hash.update(&frame);
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cut_anywhere_make_the_same_file() {
        let content = Content::new(3 * FRAME + 17);
        let mut whole = Vec::new();
        while (whole.len() as u64) < content.size() {
            whole.extend_from_slice(&content.frame(whole.len() as u64));
        }
        assert_eq!(whole.len() as u64, content.size());
        for position in [0, 1, FRAME - 1, FRAME, 2 * FRAME + 5, content.size() - 1] {
            let frame = content.frame(position);
            let at = position as usize;
            assert!(!frame.is_empty());
            assert!(whole[at..at + frame.len()] == frame[..]);
        }
        let hash: [u8; 32] = Sha256::digest(&whole).into();
        assert_eq!(content.sha256(), hash);
    }
}
