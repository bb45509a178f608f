//! Bytes of which each tells its place.

/// The bytes of a stream of numbers, from this position on: each one tells its place.
pub(crate) fn numbered(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64)
        .map(|at| (at / 4 + 1).to_be_bytes()[4 + (at % 4) as usize])
        .collect()
}
