//! One safe function per socket option.
//!
//! Every function is the one call that its first line names. None of them
//! changes anything besides. Reading needs no privilege; the options of repair
//! mode need `CAP_NET_ADMIN` in the user namespace that owns the socket's
//! network namespace.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::raw;

macro_rules! options {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $ty:ty as $raw:ty = $level:ident, $name:expr, $text:literal;)*) => {$(
        const _: () = crate::options::assert_known($text, $level, $name);

        #[doc = concat!("`getsockopt(fd, ", $text, ")`")]
        #[doc = ""]
        $(#[$doc])*
        #[doc = ""]
        #[doc = "# Errors"]
        #[doc = ""]
        #[doc = "[`Error`] of the call."]
        #[doc(alias = $text)]
        pub fn $get(fd: BorrowedFd<'_>) -> Result<$ty> {
            let value: $raw = raw::get(fd, $level, $name, concat!("getsockopt(", $text, ")"))?;
            Ok(<$ty as super::Cooked<$raw>>::cook(value))
        }

        #[doc = concat!("`setsockopt(fd, ", $text, ")`")]
        #[doc = ""]
        $(#[$doc])*
        #[doc = ""]
        #[doc = "# Errors"]
        #[doc = ""]
        #[doc = "[`Error`] of the call; the option is then as it was."]
        #[doc(alias = $text)]
        pub fn $set(fd: BorrowedFd<'_>, value: $ty) -> Result<()> {
            raw::set(fd, $level, $name, concat!("setsockopt(", $text, ")"), <$ty as super::Cooked<$raw>>::raw(value))
        }
    )*};
}

mod filter;
mod flow_label;
mod ip;
mod queue;
mod repair;
mod socket;
mod tcp;

pub use filter::*;
pub use flow_label::*;
pub use ip::*;
pub use queue::*;
pub use repair::*;
pub use socket::*;
pub use tcp::*;

/// The value of an option as its type of Rust and as the kernel's.
trait Cooked<R> {
    fn cook(raw: R) -> Self;
    fn raw(self) -> R;
}

impl Cooked<i32> for bool {
    fn cook(raw: i32) -> Self {
        raw != 0
    }
    fn raw(self) -> i32 {
        i32::from(self)
    }
}

impl Cooked<i32> for i32 {
    fn cook(raw: i32) -> Self {
        raw
    }
    fn raw(self) -> i32 {
        self
    }
}

impl Cooked<u32> for u32 {
    fn cook(raw: u32) -> Self {
        raw
    }
    fn raw(self) -> u32 {
        self
    }
}

impl Cooked<u64> for u64 {
    fn cook(raw: u64) -> Self {
        raw
    }
    fn raw(self) -> u64 {
        self
    }
}

fn text(fd: BorrowedFd<'_>, level: i32, name: i32, call: &'static str) -> Result<String> {
    let mut buffer = [0_u8; 64];
    let len = raw::get_octets(fd, level, name, call, &mut buffer)?.min(buffer.len());
    let octets = &buffer[..len];
    let end = octets.iter().position(|&c| c == 0).unwrap_or(len);
    Ok(String::from_utf8_lossy(&octets[..end]).into_owned())
}
