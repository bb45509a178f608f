//! Netlink messages and attributes as bytes.

/// Length of `nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `nlmsghdr` and the `nfgenmsg` behind it.
pub(crate) const NF_HEADER: usize = 20;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Appends the headers of a netfilter message; [`close_message`] fills in its length.
pub(crate) fn open_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    seq: u32,
    family: u8,
    resource: u16,
) -> usize {
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&seq.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    at
}

pub(crate) fn close_message(bytes: &mut [u8], at: usize) {
    let length = u32::try_from(bytes.len() - at).unwrap_or(u32::MAX);
    bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Adds flags to the message that begins at `at`.
pub(crate) fn add_flags(bytes: &mut [u8], at: usize, flags: u16) {
    let old = u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]);
    bytes[at + 6..at + 8].copy_from_slice(&(old | flags).to_ne_bytes());
}

/// Appends an attribute.
pub(crate) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let at = open(bytes, kind);
    bytes.extend_from_slice(value);
    close(bytes, at);
}

/// Appends a string attribute.
pub(crate) fn put_str(bytes: &mut Vec<u8>, kind: u16, value: &str) {
    let at = open(bytes, kind);
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(0);
    close(bytes, at);
}

/// Begins an attribute; [`close`] fills in its length.
pub(crate) fn open(bytes: &mut Vec<u8>, kind: u16) -> usize {
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    at
}

/// Begins an attribute that holds attributes.
pub(crate) fn open_nested(bytes: &mut Vec<u8>, kind: u16) -> usize {
    open(bytes, kind | NESTED)
}

pub(crate) fn close(bytes: &mut Vec<u8>, at: usize) {
    // Callers keep attributes below 64 KiB: see `element::per_message`.
    let length = u16::try_from(bytes.len() - at).unwrap_or(u16::MAX);
    bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(align(bytes.len()), 0);
}

/// The attributes in `bytes`; ends at the first that is damaged.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A message as received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// What follows `nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

/// The messages in one datagram; ends at the first that is damaged.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let half = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let length = usize::try_from(word(0)?).ok()?;
        let message = Message {
            kind: half(4)?,
            flags: half(6)?,
            seq: word(8)?,
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The error in the payload of an answer, 0 if it says that there was none.
pub(crate) fn errno(payload: &[u8]) -> i32 {
    payload.first_chunk().map_or(libc::EPROTO, |code| {
        i32::from_ne_bytes(*code).wrapping_neg()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut bytes = Vec::new();
        let message = open_message(&mut bytes, 7, 1, 99, 2, 10);
        let nest = open_nested(&mut bytes, 3);
        put(&mut bytes, 1, &[1, 2, 3]);
        put_str(&mut bytes, 2, "abc");
        close(&mut bytes, nest);
        close_message(&mut bytes, message);
        add_flags(&mut bytes, message, 4);

        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind, read[0].flags, read[0].seq), (7, 5, 99));
        let nest = attribute(&read[0].payload[4..], 3).unwrap();
        let inner: Vec<_> = attributes(nest).collect();
        assert_eq!(inner, [(1, &[1u8, 2, 3][..]), (2, &b"abc\0"[..])]);
    }

    #[test]
    fn damaged_lengths_end_the_reading() {
        for length in [0u16, 3, 9, 0xffff] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0]);
            assert_eq!(attributes(&bytes).count(), 0, "{length}");
        }
        for length in [0u32, 15, 21, u32::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.resize(20, 0);
            assert_eq!(messages(&bytes).count(), 0, "{length}");
        }
    }
}
