//! Frames (RFC 9113, section 4).

use bytes::{BufMut, BytesMut};

/// The length of a frame's head.
pub(super) const HEAD: usize = 9;
/// The largest payload of a frame that either end sends without having been asked to: `SETTINGS_MAX_FRAME_SIZE` as it begins.
pub(super) const MAX_PAYLOAD: usize = 1 << 14;
/// The largest window (section 6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

/// What a client begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// Codes of errors (section 7).
pub(super) const STREAM_CLOSED: u32 = 5;
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the payload.
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0 for the connection.
    pub(super) id: u32,
}

impl Head {
    pub(super) fn read(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, id @ ..] = bytes;
        Self {
            len: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            id: u32::from_be_bytes(id) & 0x7fff_ffff,
        }
    }

    /// That of the first frame, if it is there.
    pub(super) fn first(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|head| Self::read(*head))
    }

    /// The length of the frame.
    pub(super) fn whole(self) -> usize {
        HEAD + self.len
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether its length or its stream makes it an error, whatever it says (section 6).
    pub(super) fn is_malformed(self) -> bool {
        let is_of_connection = self.id == 0;
        match self.kind {
            DATA | HEADERS | PUSH_PROMISE | CONTINUATION => is_of_connection,
            PRIORITY => is_of_connection || self.len != 5,
            RST_STREAM => is_of_connection || self.len != 4,
            SETTINGS if self.has(ACK) => !is_of_connection || self.len != 0,
            SETTINGS => !is_of_connection || !self.len.is_multiple_of(6),
            PING => !is_of_connection || self.len != 8,
            GOAWAY => !is_of_connection || self.len < 8,
            WINDOW_UPDATE => self.len != 4,
            _ => false,
        }
    }

    /// The frame is the first one of a header block.
    pub(super) fn begins_block(self) -> bool {
        self.kind == HEADERS
    }
}

/// Appends a frame. The payload has to fit into one.
pub(super) fn put(into: &mut BytesMut, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    let head = Head {
        len: payload.len(),
        kind,
        flags,
        id,
    };
    put_raw(into, head, payload);
}

/// Appends the head of a frame and what is behind it: its payload, and that of the frames that belong to it.
pub(super) fn put_raw(into: &mut BytesMut, head: Head, rest: &[u8]) {
    debug_assert!(head.len < 1 << 24);
    into.reserve(HEAD + rest.len());
    into.put_uint(head.len as u64, 3);
    into.put_u8(head.kind);
    into.put_u8(head.flags);
    into.put_u32(head.id);
    into.put_slice(rest);
}

/// Appends a GOAWAY.
pub(super) fn put_goaway(into: &mut BytesMut, last: u32, code: u32, why: &[u8]) {
    let payload = [&last.to_be_bytes(), &code.to_be_bytes(), why].concat();
    put(into, GOAWAY, 0, 0, &payload);
}

/// Appends a `WINDOW_UPDATE`, if there is anything to update; as several if one cannot say it.
pub(super) fn put_window_update(into: &mut BytesMut, id: u32, mut increment: i64) {
    while increment > 0 {
        let some = increment.min(MAX_WINDOW);
        // INVARIANT: 31 bits.
        put(into, WINDOW_UPDATE, 0, id, &(some as u32).to_be_bytes());
        increment -= some;
    }
}

/// Appends a header block, in as many frames as it needs.
pub(super) fn put_block(into: &mut BytesMut, id: u32, ends: bool, block: &[u8]) {
    let (first, rest) = block.split_at(block.len().min(MAX_PAYLOAD));
    let last = |is_last: bool| if is_last { END_HEADERS } else { 0 };
    let flags = if ends { END_STREAM } else { 0 };
    put(into, HEADERS, flags | last(rest.is_empty()), id, first);
    let mut pieces = rest.chunks(MAX_PAYLOAD).peekable();
    while let Some(piece) = pieces.next() {
        put(into, CONTINUATION, last(pieces.peek().is_none()), id, piece);
    }
}

/// The part of a HEADERS frame's payload that is of the header block; `None` if it is malformed.
pub(super) fn fragment(head: Head, payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload;
    let mut padding = 0;
    if head.has(PADDED) {
        let (&first, behind) = rest.split_first()?;
        (padding, rest) = (usize::from(first), behind);
    }
    if head.has(PRIORITIZED) {
        rest = rest.get(5..)?;
    }
    rest.get(..rest.len().checked_sub(padding)?)
}

/// How much of a DATA frame's payload is data.
pub(super) fn unpadded(head: Head, payload: &[u8]) -> usize {
    let padding = payload.first().filter(|_| head.has(PADDED));
    let padding = padding.map_or(0, |&padding| 1 + usize::from(padding));
    payload.len().saturating_sub(padding)
}

/// A number of 31 bits, which a `WINDOW_UPDATE` is.
pub(super) fn increment(payload: &[u8]) -> Option<i64> {
    let number = u32::from_be_bytes(payload.try_into().ok()?);
    Some((number & 0x7fff_ffff).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_priority_are_not_of_the_block() {
        let head = |flags| Head {
            len: 0,
            kind: HEADERS,
            flags,
            id: 1,
        };
        assert_eq!(fragment(head(0), b"ab"), Some(&b"ab"[..]));
        assert_eq!(fragment(head(PADDED), b"\x01ab\0"), Some(&b"ab"[..]));
        assert_eq!(fragment(head(PRIORITIZED), b"12345ab"), Some(&b"ab"[..]));
        let both = head(PADDED | PRIORITIZED);
        assert_eq!(fragment(both, b"\x0212345ab\0\0"), Some(&b"ab"[..]));
        assert_eq!(fragment(both, b"\x0312345a\0"), None);
        assert_eq!(fragment(head(PADDED), b""), None);
    }

    #[test]
    fn a_large_block_is_cut_into_frames() {
        let block = vec![7; 2 * MAX_PAYLOAD + 1];
        let mut frames = BytesMut::new();
        put_block(&mut frames, 5, true, &block);
        let mut kinds = Vec::new();
        let mut rest = &frames[..];
        let mut got = Vec::new();
        while let Some(head) = Head::first(rest) {
            kinds.push((head.kind, head.flags));
            got.extend_from_slice(&rest[HEAD..head.whole()]);
            rest = &rest[head.whole()..];
        }
        let expected = [
            (HEADERS, END_STREAM),
            (CONTINUATION, 0),
            (CONTINUATION, END_HEADERS),
        ];
        assert_eq!(kinds, expected);
        assert!(got == block);
    }
}
