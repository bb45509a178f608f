//! Body of the fuzz target of frames, so that the target is one line and this is compiled and
//! linted with the crate.

use arbitrary::Arbitrary;
use bytes::Bytes;

use crate::error::TransportError;
use crate::frame::{Decoder, Event, end, prefix};

/// Runs something and returns the bytes that it had allocated at most at one time. Only who
/// installs the global allocator can tell.
pub type Peak = fn(&mut dyn FnMut()) -> u64;

/// What decoding allocates at most, apart from its input and what that pays for: the first
/// allocation for a frame, and the list of frames.
const ALLOCATION: u64 = 72 << 10;

/// A stream of bytes and how it arrives.
#[derive(Arbitrary, Debug)]
pub struct Stream<'a> {
    /// Longest frame that the receiver takes.
    limit: u32,
    /// Lengths of the pieces, over and over.
    cuts: Vec<u16>,
    /// Whether `bytes` are frames as they are: each begins with its length, of 8 bits here.
    framed: bool,
    bytes: &'a [u8],
}

/// What came out of a stream.
#[derive(PartialEq, Debug)]
struct Decoded {
    frames: Vec<Bytes>,
    /// How it ended: in order, or with the error.
    end: Result<(), String>,
    /// Bytes behind the end.
    left: usize,
}

/// Decodes a stream in pieces, and as a whole: the same comes out, no frame is longer than the
/// limit, and memory follows what arrived. What was framed here comes out as it went in.
pub fn frames(stream: &Stream<'_>, peak: Peak) {
    let limit = stream.limit as usize;
    let mut sent = Vec::new();
    let wire = if stream.framed {
        Bytes::from(encode(stream.bytes, limit, &mut sent))
    } else {
        Bytes::copy_from_slice(stream.bytes)
    };
    let whole = decode(&wire, &[], limit, peak);
    let pieces = decode(&wire, &stream.cuts, limit, peak);
    assert_eq!(whole, pieces);
    assert!(whole.frames.iter().all(|frame| frame.len() <= limit));
    if stream.framed {
        assert_eq!(whole.frames, sent);
        assert_eq!((whole.end, whole.left), (Ok(()), 0));
    } else if whole.end.is_ok() {
        let len: usize = whole.frames.iter().map(|frame| 4 + frame.len()).sum();
        assert_eq!(len + 4 + whole.left, wire.len());
    }
}

/// The bytes cut to frames and encoded; those that the limit forbids are left out.
fn encode(mut bytes: &[u8], limit: usize, sent: &mut Vec<Bytes>) -> Vec<u8> {
    let mut wire = Vec::new();
    while let Some((len, rest)) = bytes.split_first() {
        let (frame, rest) = rest.split_at(rest.len().min((*len).into()));
        bytes = rest;
        match prefix(frame.len(), limit) {
            Ok(prefix) => {
                wire.extend_from_slice(&prefix);
                wire.extend_from_slice(frame);
                sent.push(Bytes::copy_from_slice(frame));
            }
            Err(error) => {
                assert!(matches!(error, TransportError::FrameTooLong { .. }));
                assert!(frame.len() > limit);
            }
        }
    }
    wire.extend_from_slice(&end());
    wire
}

fn decode(wire: &Bytes, cuts: &[u16], limit: usize, peak: Peak) -> Decoded {
    let mut decoded = None;
    let allocated = peak(&mut || decoded = Some(feed(wire, cuts, limit)));
    // Room for a frame at most doubles what has arrived of it, and a frame keeps what it has;
    // so does the list, of four words for each.
    let list = 2 * 32 * (wire.len() as u64 / 4);
    assert!(
        allocated <= 3 * wire.len() as u64 + list + ALLOCATION,
        "{allocated} bytes were allocated for {}",
        wire.len()
    );
    decoded.expect("it ran")
}

/// Feeds a decoder as an exchange does, until the stream ends or cannot go on.
fn feed(wire: &Bytes, cuts: &[u16], limit: usize) -> Decoded {
    let mut decoder = Decoder::new(limit);
    let mut frames = Vec::new();
    let mut cuts = cuts.iter().cycle();
    let mut rest = wire.clone();
    while !rest.is_empty() {
        let len = cuts.next().map_or(rest.len(), |cut| (*cut).max(1).into());
        let mut piece = rest.split_to(len.min(rest.len()));
        while !piece.is_empty() {
            let end = match decoder.feed(&mut piece) {
                Ok(None) => {
                    assert!(piece.is_empty(), "it takes what there is");
                    continue;
                }
                Ok(Some(Event::Frame(frame))) => {
                    frames.push(frame);
                    continue;
                }
                Ok(Some(Event::End)) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            let left = piece.len() + rest.len();
            return Decoded { frames, end, left };
        }
    }
    let end = Err(decoder.end_of_stream().to_string());
    Decoded {
        frames,
        end,
        left: 0,
    }
}
