//! Byte buffers that keep their content to themselves.

use std::fmt;
use std::ops::{Deref, Range};

use bytes::Bytes;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The octets of a queue or of an application.
///
/// They can be passwords and keys of other people: `Debug` prints only how
/// many there are, and the memory is zeroed when the buffer is dropped or
/// grows. `From<Vec<u8>>` takes the vector over without a copy; copies that
/// the caller made before are the caller's to wipe.
///
/// Parts of one buffer ([`Octets::slice`], the queues that
/// [`Image::decode_shared`](crate::Image::decode_shared) finds) share its
/// memory, which is zeroed when the last of them is dropped.
///
/// ```
/// let octets = tcpmig_format::Octets::from(&b"secret"[..]);
/// assert_eq!(&octets[..2], b"se");
/// assert_eq!(format!("{octets:?}"), "Octets(6)");
/// ```
#[derive(Clone)]
pub struct Octets(Memory);

#[derive(Clone)]
enum Memory {
    Own(Wiped),
    /// Part of a [`Wiped`] that other parts belong to as well.
    Shared(Bytes),
}

/// Octets that are zeroed on drop.
#[derive(Clone, Default)]
struct Wiped(Vec<u8>);

impl Octets {
    /// No octets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `octets`. A part of a shared buffer is copied first.
    pub fn extend_from_slice(&mut self, octets: &[u8]) {
        let needed = self.len() + octets.len();
        if let Memory::Own(Wiped(own)) = &mut self.0
            && needed <= own.capacity()
        {
            own.extend_from_slice(octets);
            return;
        }
        // Vec would free the old allocation as it is; dropping Octets zeroes it.
        let mut grown = Vec::with_capacity(needed.max(self.len().saturating_mul(2)));
        grown.extend_from_slice(self);
        grown.extend_from_slice(octets);
        *self = grown.into();
    }

    /// Takes the first `count` octets out and returns them; no octet is copied.
    ///
    /// # Panics
    ///
    /// If there are fewer than `count`.
    pub fn split_to(&mut self, count: usize) -> Self {
        Self(Memory::Shared(self.share().split_to(count)))
    }

    /// Part of the octets, in the same memory.
    ///
    /// # Panics
    ///
    /// If the range is not within them.
    #[must_use]
    pub fn slice(mut self, range: Range<usize>) -> Self {
        Self(Memory::Shared(self.share().slice(range)))
    }

    /// Another handle to the same memory.
    pub(crate) fn clone_shared(&mut self) -> Self {
        Self(Memory::Shared(self.share().clone()))
    }

    /// The part that `octets`, a slice of these octets, is, in the same memory.
    pub(crate) fn part(&mut self, octets: &[u8]) -> Self {
        Self(Memory::Shared(self.share().slice_ref(octets)))
    }

    fn share(&mut self) -> &mut Bytes {
        if let Memory::Own(own) = &mut self.0 {
            self.0 = Memory::Shared(Bytes::from_owner(std::mem::take(own)));
        }
        match &mut self.0 {
            Memory::Shared(shared) => shared,
            // INVARIANT: replaced above.
            Memory::Own(_) => unreachable!("the octets are shared"),
        }
    }
}

impl Default for Octets {
    fn default() -> Self {
        Self(Memory::Own(Wiped::default()))
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Octets {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Octets {}

/// Zeroes the whole allocation. As one slice it is filled at the speed of
/// memory; `Vec::zeroize` goes octet by octet, which takes ten times as long.
fn wipe(octets: &mut Vec<u8>) {
    octets.resize(octets.capacity(), 0);
    octets.as_mut_slice().zeroize();
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl ZeroizeOnDrop for Octets {}

impl From<Vec<u8>> for Octets {
    fn from(octets: Vec<u8>) -> Self {
        Self(Memory::Own(Wiped(octets)))
    }
}

impl From<&[u8]> for Octets {
    fn from(octets: &[u8]) -> Self {
        octets.to_vec().into()
    }
}

/// Without a copy if nobody else holds the memory of `octets`. A copy that somebody else holds is not zeroed.
impl From<Bytes> for Octets {
    fn from(octets: Bytes) -> Self {
        Vec::from(octets).into()
    }
}

/// The same memory, still zeroed when the last part of it is dropped.
impl From<Octets> for Bytes {
    fn from(mut octets: Octets) -> Self {
        std::mem::take(octets.share())
    }
}

impl Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Own(Wiped(own)) => own,
            Memory::Shared(shared) => shared,
        }
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
        octets.extend_from_slice(b"four");
        assert_eq!(&*octets, b"four");
    }

    #[test]
    fn parts_share_their_memory() {
        let whole = Octets::from(&b"one two three"[..]);
        let at = whole.as_ptr();
        let mut part = whole.slice(4..13);
        assert_eq!(&*part, b"two three");
        assert_eq!(part.as_ptr(), at.wrapping_add(4));
        let front = part.split_to(3);
        assert_eq!((&*front, &*part), (&b"two"[..], &b" three"[..]));
        assert_eq!(part.as_ptr(), at.wrapping_add(7));
        part.extend_from_slice(b"!");
        assert_eq!((&*front, &*part), (&b"two"[..], &b" three!"[..]));
    }

    #[test]
    fn bytes_that_nobody_else_holds_are_taken_over() {
        let bytes = Bytes::from(b"password".to_vec());
        let at = bytes.as_ptr();
        assert_eq!(Octets::from(bytes).as_ptr(), at);
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
