//! One safe function per socket option.
//!
//! Every function is the one call that its first line names. None of them
//! changes anything besides. Reading needs no privilege; the options of repair
//! mode need `CAP_NET_ADMIN` in the user namespace that owns the socket's
//! network namespace.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::raw;

mod filter;
mod flow_label;
mod ip;
mod queue;
mod repair;
mod socket;
pub(crate) mod table;
mod tcp;
mod value;

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
pub use value::Value;

fn text(fd: BorrowedFd<'_>, level: i32, name: i32, call: &'static str) -> Result<String> {
    let mut buffer = [0_u8; 64];
    let len = raw::get_bytes(fd, level, name, call, &mut buffer)?.min(buffer.len());
    let bytes = &buffer[..len];
    let end = bytes.iter().position(|&c| c == 0).unwrap_or(len);
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
