//! Values of options, as Rust and as the kernel have them.

use crate::raw;

/// What the value of an option is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// On or off, an `int` for the kernel.
    Flag,
    /// `int`.
    Signed,
    /// `unsigned int`.
    Unsigned,
    /// `unsigned long` of 64 bits.
    Long,
}

mod sealed {
    /// Keeps [`Value`](super::Value) to the types of this module.
    pub trait Sealed {}
}
use sealed::Sealed;

/// The value of an option: a type of Rust, and what the kernel has for it.
#[allow(
    private_bounds,
    reason = "which types the kernel may fill is this crate's own business"
)]
pub trait Value: Copy + Sealed {
    /// What the kernel has.
    type Raw: raw::Plain;
    /// Which options have it.
    const KIND: Kind;
    /// From what the kernel has.
    #[doc(hidden)]
    fn cook(raw: Self::Raw) -> Self;
    /// To what the kernel has.
    #[doc(hidden)]
    fn raw(self) -> Self::Raw;
}

impl Sealed for bool {}
impl Value for bool {
    type Raw = i32;
    const KIND: Kind = Kind::Flag;
    fn cook(raw: i32) -> Self {
        raw != 0
    }
    fn raw(self) -> i32 {
        i32::from(self)
    }
}

impl Sealed for i32 {}
impl Value for i32 {
    type Raw = i32;
    const KIND: Kind = Kind::Signed;
    fn cook(raw: i32) -> Self {
        raw
    }
    fn raw(self) -> i32 {
        self
    }
}

impl Sealed for u32 {}
impl Value for u32 {
    type Raw = u32;
    const KIND: Kind = Kind::Unsigned;
    fn cook(raw: u32) -> Self {
        raw
    }
    fn raw(self) -> u32 {
        self
    }
}

impl Sealed for u64 {}
impl Value for u64 {
    type Raw = u64;
    const KIND: Kind = Kind::Long;
    fn cook(raw: u64) -> Self {
        raw
    }
    fn raw(self) -> u64 {
        self
    }
}
