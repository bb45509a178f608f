//! Byte buffers that keep their content to themselves.

use std::fmt;
use std::ops::{Deref, Range};

use bytes::Bytes;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The bytes of a queue or of an application.
///
/// They can be passwords and keys of other people: `Debug` prints only how
/// many there are, and the memory is zeroed when the buffer is dropped or
/// grows. `From<Vec<u8>>` takes the vector over without a copy; copies that
/// the caller made before are the caller's to wipe.
///
/// Parts of one buffer ([`SecretBytes::slice`], the queues that
/// [`Image::decode_shared`](crate::Image::decode_shared) finds) share its
/// memory, which is zeroed when the last of them is dropped.
///
/// ```
/// let bytes = tcpmig_format::SecretBytes::from(&b"secret"[..]);
/// assert_eq!(&bytes[..2], b"se");
/// assert_eq!(format!("{bytes:?}"), "SecretBytes(6)");
/// ```
#[derive(Clone)]
pub struct SecretBytes(Memory);

#[derive(Clone)]
enum Memory {
    Own(Wiped),
    /// Part of a [`Wiped`] that other parts belong to as well.
    Shared(Bytes),
}

/// Bytes that are zeroed on drop.
#[derive(Clone, Default)]
struct Wiped(Vec<u8>);

impl SecretBytes {
    /// No bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `bytes`. A part of a shared buffer is copied first.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        if let Memory::Shared(shared) = &self.0 {
            let mut own = Vec::with_capacity(shared.len() + bytes.len());
            own.extend_from_slice(shared);
            *self = own.into();
        }
        if let Memory::Own(Wiped(own)) = &mut self.0 {
            append(own, bytes);
        }
    }

    /// Takes the first `count` bytes out and returns them; no byte is copied.
    ///
    /// # Panics
    ///
    /// If there are fewer than `count`.
    pub fn split_to(&mut self, count: usize) -> Self {
        Self(Memory::Shared(self.share().split_to(count)))
    }

    /// Part of the bytes, in the same memory.
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

    /// The part that `bytes`, a slice of these bytes, is, in the same memory.
    pub(crate) fn part(&mut self, bytes: &[u8]) -> Self {
        Self(Memory::Shared(self.share().slice_ref(bytes)))
    }

    fn share(&mut self) -> &mut Bytes {
        if let Memory::Own(own) = &mut self.0 {
            self.0 = Memory::Shared(Bytes::from_owner(std::mem::take(own)));
        }
        match &mut self.0 {
            Memory::Shared(shared) => shared,
            // INVARIANT: replaced above.
            Memory::Own(_) => unreachable!("the bytes are shared"),
        }
    }
}

impl Default for SecretBytes {
    fn default() -> Self {
        Self(Memory::Own(Wiped::default()))
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for SecretBytes {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for SecretBytes {}

/// Appends `more` and leaves nothing behind in memory that is freed.
#[inline]
pub(crate) fn append(bytes: &mut Vec<u8>, more: &[u8]) {
    if more.len() > bytes.capacity() - bytes.len() {
        grow(bytes, more.len());
    }
    bytes.extend_from_slice(more);
}

/// Makes room; `Vec` would free the old allocation as it is.
#[cold]
fn grow(bytes: &mut Vec<u8>, more: usize) {
    let needed = bytes.len() + more;
    let mut grown = Vec::with_capacity(needed.max(bytes.len().saturating_mul(2)));
    grown.extend_from_slice(bytes);
    wipe(&mut std::mem::replace(bytes, grown));
}

/// Zeroes the whole allocation. As one slice it is filled at the speed of
/// memory; `Vec::zeroize` goes byte by byte, which takes ten times as long.
fn wipe(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.capacity(), 0);
    bytes.as_mut_slice().zeroize();
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

impl ZeroizeOnDrop for SecretBytes {}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Memory::Own(Wiped(bytes)))
    }
}

impl From<&[u8]> for SecretBytes {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

/// Without a copy if nobody else holds the memory of `bytes`. A copy that somebody else holds is not zeroed.
impl From<Bytes> for SecretBytes {
    fn from(bytes: Bytes) -> Self {
        Vec::from(bytes).into()
    }
}

/// The same memory, still zeroed when the last part of it is dropped.
impl From<SecretBytes> for Bytes {
    fn from(mut bytes: SecretBytes) -> Self {
        std::mem::take(bytes.share())
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Own(Wiped(own)) => own,
            Memory::Shared(shared) => shared,
        }
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_grow_and_split() {
        let mut bytes = SecretBytes::new();
        for part in [&b"one "[..], b"", b"two ", b"three"] {
            bytes.extend_from_slice(part);
        }
        assert_eq!(&*bytes.split_to(4), b"one ");
        assert_eq!(&*bytes, b"two three");
        assert_eq!(&*bytes.split_to(9), b"two three");
        assert!(bytes.is_empty());
        bytes.extend_from_slice(b"four");
        assert_eq!(&*bytes, b"four");
    }

    #[test]
    fn what_has_room_is_not_moved_and_what_has_none_is_moved_whole() {
        let mut bytes = Vec::with_capacity(8);
        append(&mut bytes, b"pass");
        let at = bytes.as_ptr();
        append(&mut bytes, b"word");
        assert_eq!((bytes.as_ptr(), &*bytes), (at, &b"password"[..]));
        append(&mut bytes, b"!");
        assert_eq!((bytes.capacity(), &*bytes), (16, &b"password!"[..]));
    }

    #[test]
    fn parts_share_their_memory() {
        let whole = SecretBytes::from(&b"one two three"[..]);
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
        assert_eq!(SecretBytes::from(bytes).as_ptr(), at);
    }

    #[test]
    fn wiping_covers_the_whole_allocation() {
        let mut bytes = Vec::with_capacity(100);
        bytes.extend_from_slice(b"password");
        let (at, capacity) = (bytes.as_ptr(), bytes.capacity());
        bytes.truncate(2);
        wipe(&mut bytes);
        assert_eq!(bytes, vec![0; capacity]);
        assert_eq!(bytes.as_ptr(), at, "not moved");
    }

    #[test]
    fn debug_shows_no_content() {
        let bytes = SecretBytes::from(b"password".to_vec());
        assert_eq!(
            format!("{bytes:?} {bytes:#?}"),
            "SecretBytes(8) SecretBytes(8)"
        );
    }
}
