//! One safe function per socket option.
//!
//! Every function is the one call that its first line names. None of them
//! changes anything besides. Reading needs no privilege; the options of repair
//! mode need `CAP_NET_ADMIN` in the user namespace that owns the socket's
//! network namespace.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::raw;
use table::Kind;

mod filter;
mod flow_label;
mod ip;
mod queue;
mod repair;
mod socket;
pub(crate) mod table;
mod tcp;

pub use filter::*;
pub use flow_label::*;
pub use ip::*;
pub use queue::*;
pub use repair::*;
pub use socket::*;
pub use table::ip::calls::*;
pub use table::ipv6::calls::*;
pub use table::socket::calls::*;
pub use table::tcp::calls::*;
pub use table::{get, set};
pub use tcp::*;

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

fn text(fd: BorrowedFd<'_>, level: i32, name: i32, call: &'static str) -> Result<String> {
    let mut buffer = [0_u8; 64];
    let len = raw::get_bytes(fd, level, name, call, &mut buffer)?.min(buffer.len());
    let bytes = &buffer[..len];
    let end = bytes.iter().position(|&c| c == 0).unwrap_or(len);
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
