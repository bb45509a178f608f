//! Bytes of which each tells its place.

/// The bytes of a stream of numbers, from this position on: each one tells its place.
pub(crate) fn numbered(from: u64, len: usize) -> Vec<u8> {
    // A number at a time: without optimization, byte by byte is what tests of downloads would spend most of their time on.
    let before = (from % 4) as usize;
    let end = before + len;
    let mut bytes = Vec::with_capacity(end + 4);
    let mut number = (from / 4 + 1) as u32;
    while bytes.len() < end {
        bytes.extend_from_slice(&number.to_be_bytes());
        number = number.wrapping_add(1);
    }
    bytes.truncate(end);
    bytes.drain(..before);
    bytes
}
