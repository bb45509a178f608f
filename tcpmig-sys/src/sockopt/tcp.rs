//! Options of the level `IPPROTO_TCP`, but for those of repair.

use std::os::fd::BorrowedFd;

use libc::IPPROTO_TCP;

use super::text;
#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;

/// `getsockopt(fd, TCP_CONGESTION)`: the name of the congestion control.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_CONGESTION")]
pub fn congestion(fd: BorrowedFd<'_>) -> Result<String> {
    text(
        fd,
        IPPROTO_TCP,
        libc::TCP_CONGESTION,
        "getsockopt(TCP_CONGESTION)",
    )
}

/// `setsockopt(fd, TCP_CONGESTION)`
///
/// # Errors
///
/// [`Error`] of the call: ENOENT if the kernel does not have it.
#[doc(alias = "TCP_CONGESTION")]
pub fn set_congestion(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_CONGESTION)";
    raw::set_slice(fd, IPPROTO_TCP, libc::TCP_CONGESTION, CALL, name.as_bytes())
}

/// `getsockopt(fd, TCP_ULP)`: the upper-layer protocol attached (`tls`, …).
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_ULP")]
pub fn upper_layer(fd: BorrowedFd<'_>) -> Result<Option<String>> {
    let name = text(fd, IPPROTO_TCP, libc::TCP_ULP, "getsockopt(TCP_ULP)")?;
    Ok((!name.is_empty()).then_some(name))
}
