//! Frames on a stream of bytes, without any I/O.
//!
//! A frame is its length (`u32`, big endian) and its bytes. The length [`END`] stands for "no
//! more frames": a stream that ends without it was given up, which a plain end of stream could
//! not tell from a finished one.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::TransportError;

/// Bytes of the length prefix.
const PREFIX: usize = 4;
/// The length prefix that ends a direction of an exchange.
const END: u32 = u32::MAX;
/// Longest frame that a length prefix can announce.
const MAX_LEN: usize = END as usize - 1;
/// First allocation for a long frame; from there on capacity at most doubles what has arrived.
const FIRST_ALLOCATION: usize = 64 << 10;

/// The prefix of a frame of `len` bytes, if that is within `limit`.
pub(crate) fn prefix(len: usize, limit: usize) -> Result<Bytes, TransportError> {
    let limit = limit.min(MAX_LEN);
    match u32::try_from(len) {
        Ok(prefix) if len <= limit => Ok(Bytes::copy_from_slice(&prefix.to_be_bytes())),
        _ => Err(TransportError::FrameTooLong {
            len: len as u64,
            limit,
        }),
    }
}

/// The bytes that end a direction of an exchange.
pub(crate) fn end() -> Bytes {
    const BYTES: [u8; PREFIX] = END.to_be_bytes();
    Bytes::from_static(&BYTES)
}

/// What a [`Decoder`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A whole frame.
    Frame(Bytes),
    /// The other side finished.
    End,
}

/// Puts frames together from pieces of any size.
#[derive(Debug)]
pub(crate) struct Decoder {
    limit: usize,
    prefix: [u8; PREFIX],
    prefix_len: usize,
    /// Bytes that the frame at hand will have, once its prefix is complete.
    expected: Option<usize>,
    body: BytesMut,
}

impl Decoder {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(MAX_LEN),
            prefix: [0; PREFIX],
            prefix_len: 0,
            expected: None,
            body: BytesMut::new(),
        }
    }

    /// Takes bytes off the front of `piece` until a frame is complete or `piece` is empty.
    pub(crate) fn feed(&mut self, piece: &mut Bytes) -> Result<Option<Event>, TransportError> {
        let expected = match self.expected {
            Some(expected) => expected,
            None => match self.feed_prefix(piece)? {
                None => return Ok(None),
                Some(END) => return Ok(Some(Event::End)),
                Some(len) => len as usize,
            },
        };
        let take = piece.len().min(expected - self.body.len());
        if self.body.capacity() - self.body.len() < take {
            self.reserve(expected, take);
        }
        self.body.extend_from_slice(&piece[..take]);
        piece.advance(take);
        if self.body.len() < expected {
            return Ok(None);
        }
        self.expected = None;
        Ok(Some(Event::Frame(std::mem::take(&mut self.body).freeze())))
    }

    /// Bytes of an unfinished frame that are here.
    pub(crate) fn unfinished(&self) -> usize {
        self.prefix_len + self.body.len()
    }

    /// Whether a frame has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.prefix_len > 0 || self.expected.is_some()
    }

    /// Judges the end of the stream, which is always wrong before [`Event::End`].
    pub(crate) fn end_of_stream(&self) -> TransportError {
        match self.expected {
            Some(expected) => TransportError::Truncated {
                got: self.body.len(),
                expected,
            },
            None if self.prefix_len > 0 => TransportError::Truncated {
                got: self.prefix_len,
                expected: PREFIX,
            },
            None => TransportError::Abandoned,
        }
    }

    /// Takes the length prefix; the announced length is checked before anything is allocated.
    fn feed_prefix(&mut self, piece: &mut Bytes) -> Result<Option<u32>, TransportError> {
        let take = piece.len().min(PREFIX - self.prefix_len);
        self.prefix[self.prefix_len..self.prefix_len + take].copy_from_slice(&piece[..take]);
        self.prefix_len += take;
        piece.advance(take);
        if self.prefix_len < PREFIX {
            return Ok(None);
        }
        self.prefix_len = 0;
        let announced = u32::from_be_bytes(self.prefix);
        if announced == END {
            return Ok(Some(END));
        }
        let len = announced as usize;
        if len > self.limit {
            return Err(TransportError::FrameTooLong {
                len: len as u64,
                limit: self.limit,
            });
        }
        self.expected = Some(len);
        Ok(Some(announced))
    }

    /// Makes room for `take` more bytes, in steps that bytes which have arrived pay for.
    fn reserve(&mut self, expected: usize, take: usize) {
        let step = take.max(self.body.len()).max(FIRST_ALLOCATION);
        self.body.reserve(step.min(expected - self.body.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Vec<u8>], limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            out.extend_from_slice(&prefix(frame.len(), limit).expect("within the limit"));
            out.extend_from_slice(frame);
        }
        out.extend_from_slice(&end());
        out
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..20),
            cuts in proptest::collection::vec(1usize..2000, 1..50),
        ) {
            let wire = Bytes::from(encode(&frames, 3000));
            let mut decoder = Decoder::new(3000);
            let (mut got, mut ended, mut at) = (Vec::new(), false, 0);
            for cut in cuts.iter().cycle() {
                if at == wire.len() { break }
                let mut piece = wire.slice(at..wire.len().min(at + cut));
                at += piece.len();
                while !piece.is_empty() {
                    prop_assert!(!ended);
                    match decoder.feed(&mut piece).expect("valid") {
                        Some(Event::Frame(frame)) => got.push(frame.to_vec()),
                        Some(Event::End) => ended = true,
                        None => prop_assert!(piece.is_empty()),
                    }
                }
            }
            prop_assert!(ended);
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::new(100);
            let mut piece = Bytes::from(bytes);
            while !piece.is_empty() {
                match decoder.feed(&mut piece) {
                    Ok(Some(Event::Frame(frame))) => prop_assert!(frame.len() <= 100),
                    Ok(_) => {}
                    Err(error) => {
                        let too_long = matches!(error, TransportError::FrameTooLong { .. });
                        prop_assert!(too_long);
                        break;
                    }
                }
                prop_assert!(decoder.body.capacity() <= 200);
            }
        }
    }

    #[test]
    fn announced_length_over_the_limit_allocates_nothing() {
        let mut decoder = Decoder::new(10);
        let mut piece = Bytes::from_static(&[0, 0, 0, 11, 1]);
        assert!(matches!(
            decoder.feed(&mut piece),
            Err(TransportError::FrameTooLong { len: 11, limit: 10 })
        ));
        assert_eq!(decoder.body.capacity(), 0);
    }

    #[test]
    fn memory_follows_what_arrived() {
        let mut decoder = Decoder::new(1 << 30);
        let mut piece = Bytes::from((1u32 << 30).to_be_bytes().to_vec());
        assert_eq!(decoder.feed(&mut piece).expect("in limit"), None);
        assert_eq!(decoder.body.capacity(), 0);
        for _ in 0..1000 {
            let mut piece = Bytes::from(vec![0; 1000]);
            assert_eq!(decoder.feed(&mut piece).expect("in limit"), None);
            assert!(decoder.body.capacity() <= 2 * decoder.body.len() + FIRST_ALLOCATION);
        }
    }

    #[test]
    fn end_of_stream_names_the_cause() {
        let mut decoder = Decoder::new(10);
        assert!(matches!(decoder.end_of_stream(), TransportError::Abandoned));
        let _ = decoder.feed(&mut Bytes::from_static(&[0, 0]));
        assert!(matches!(
            decoder.end_of_stream(),
            TransportError::Truncated {
                got: 2,
                expected: 4
            }
        ));
        let _ = decoder.feed(&mut Bytes::from_static(&[0, 5, 9]));
        assert!(matches!(
            decoder.end_of_stream(),
            TransportError::Truncated {
                got: 1,
                expected: 5
            }
        ));
    }

    #[test]
    fn longest_frame_leaves_room_for_the_end_mark() {
        assert!(prefix(MAX_LEN, usize::MAX).is_ok());
        assert!(prefix(MAX_LEN + 1, usize::MAX).is_err());
    }
}
