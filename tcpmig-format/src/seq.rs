//! Sequence numbers.

use std::fmt;
use std::ops::{Add, Sub};

/// A TCP sequence number: a point on a circle of 2^32.
///
/// All arithmetic is modulo 2^32. There is no `Ord`, because no order of a
/// circle is total: [`before`](Seq::before) and its companions answer for
/// numbers less than 2^31 apart, as RFC 9293, section 3.4, and the kernel do.
///
/// ```
/// use tcpmig_format::Seq;
///
/// let last = Seq::new(u32::MAX);
/// assert_eq!(last + 1, Seq::new(0));
/// assert!(last.before(last + 1));
/// assert_eq!((last + 5).distance_from(last), 5);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(u32);

impl Seq {
    /// The sequence number of this value.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The value, in host byte order.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// How many bytes lie between `earlier` and this number, going forward.
    #[must_use]
    pub const fn distance_from(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether this number comes before `other`.
    ///
    /// Two numbers exactly 2^31 apart both come before each other.
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        self.distance_from(other).cast_signed() < 0
    }

    /// Whether this number is `other` or comes before it.
    #[must_use]
    pub const fn at_or_before(self, other: Self) -> bool {
        self.0 == other.0 || self.before(other)
    }

    /// Whether this number comes after `other`.
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// Whether this number is `other` or comes after it.
    #[must_use]
    pub const fn at_or_after(self, other: Self) -> bool {
        other.at_or_before(self)
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    fn sub(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }
}

impl From<u32> for Seq {
    fn from(value: u32) -> Self {
        Self(value)
    }
}

impl From<Seq> for u32 {
    fn from(seq: Seq) -> Self {
        seq.0
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seq({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_holds_across_the_wrap() {
        let high = Seq::new(0xffff_fff0);
        let low = Seq::new(0x10);
        assert!(high.before(low) && low.after(high));
        assert!(!low.before(high) && !high.after(low));
        assert!(high.at_or_before(high) && high.at_or_after(high));
        assert!(!high.before(high) && !high.after(high));
        assert_eq!(low.distance_from(high), 0x20);
    }

    proptest! {
        #[test]
        fn adding_moves_forward(start: u32, bytes in 1..1u32 << 31) {
            let (from, to) = (Seq::new(start), Seq::new(start) + bytes);
            prop_assert_eq!(to.distance_from(from), bytes);
            prop_assert_eq!(to - bytes, from);
            prop_assert!(from.before(to) && to.at_or_after(from));
            prop_assert!(!to.before(from));
        }
    }
}
