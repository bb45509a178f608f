//! What the peer has taken back before anybody has read it.

use std::collections::BTreeSet;

use super::frame::{HEAD, HEADERS, Head, PREFACE, RST_STREAM};

/// Looks through what arrives, before it is processed, for streams that are reset.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Of a head that is not whole.
    begun: Vec<u8>,
    /// What of the frame before has not come.
    left: usize,
    /// The last stream that was opened.
    opened: u32,
    /// Those that were opened and are reset by a frame that was not processed.
    reset: BTreeSet<u32>,
}

impl Ahead {
    /// Of a connection that begins with its preface.
    pub(super) fn new() -> Self {
        Self {
            left: PREFACE.len(),
            ..Self::default()
        }
    }

    /// Of one that goes on between two frames, and has opened streams up to this one.
    pub(super) fn behind(opened: u32) -> Self {
        Self {
            opened,
            ..Self::default()
        }
    }

    /// This has arrived; streams up to `last` have been processed.
    pub(super) fn look(&mut self, mut bytes: &[u8], last: u32) {
        loop {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let head = if self.begun.is_empty() && bytes.len() >= HEAD {
                let head = Head::first(bytes);
                bytes = &bytes[HEAD..];
                head
            } else {
                let some = bytes.len().min(HEAD - self.begun.len());
                self.begun.extend_from_slice(&bytes[..some]);
                bytes = &bytes[some..];
                Head::first(&self.begun)
            };
            let Some(head) = head else {
                return;
            };
            self.begun.clear();
            self.left = head.len;
            match head.kind {
                // The server is to see it.
                _ if head.is_malformed() => {}
                HEADERS => self.opened = self.opened.max(head.id),
                RST_STREAM if head.id > last && head.id <= self.opened => {
                    self.reset.insert(head.id);
                }
                _ => {}
            }
        }
    }

    /// How many streams were reset before they were processed.
    pub(super) fn count(&self) -> usize {
        self.reset.len()
    }

    /// Whether the stream is reset by something that has arrived.
    pub(super) fn is_reset(&self, id: u32) -> bool {
        self.reset.contains(&id)
    }

    /// The frame that resets the stream has been processed.
    pub(super) fn forget(&mut self, id: u32) {
        self.reset.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::frame::{DATA, put};
    use super::*;

    #[test]
    fn what_is_reset_is_found_wherever_it_is_cut() {
        let mut all = BytesMut::from(PREFACE);
        for (kind, id) in [
            (HEADERS, 1),
            (RST_STREAM, 1),
            (HEADERS, 3),
            // What is in a frame is not one.
            (DATA, 3),
            (HEADERS, 7),
            (RST_STREAM, 7),
            // Not opened.
            (RST_STREAM, 9),
        ] {
            let payload: &[u8] = match kind {
                RST_STREAM => &[0; 4],
                _ => &[0, 0, 4, RST_STREAM, 0, 0, 0, 0, 3],
            };
            put(&mut all, kind, 0, id, payload);
        }
        // Too long.
        put(&mut all, RST_STREAM, 0, 3, &[0; 5]);
        for cut in 0..all.len() {
            let mut ahead = Ahead::new();
            ahead.look(&all[..cut], 0);
            ahead.look(&all[cut..], 0);
            let reset: Vec<_> = (0..10).filter(|&id| ahead.is_reset(id)).collect();
            assert_eq!(reset, [1, 7], "cut at {cut}");
            ahead.forget(1);
            assert_eq!(ahead.count(), 1);
            ahead.forget(7);
            assert_eq!(ahead.count(), 0);
        }
    }
}
