//! Options of the levels `IPPROTO_IP` and `IPPROTO_IPV6`.

use std::os::fd::BorrowedFd;

use libc::IPPROTO_IP;

#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;

/// `getsockopt(fd, IP_OPTIONS)`: the options in the header of IPv4 packets, at most 40 bytes.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "IP_OPTIONS")]
pub fn ip_options(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    const CALL: &str = "getsockopt(IP_OPTIONS)";
    let mut bytes = [0_u8; 40];
    let len = raw::get_bytes(fd, IPPROTO_IP, libc::IP_OPTIONS, CALL, &mut bytes)?;
    Ok(bytes[..len.min(bytes.len())].to_vec())
}

/// `setsockopt(fd, IP_OPTIONS)`: as [`ip_options`].
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for options that the kernel does not understand.
#[doc(alias = "IP_OPTIONS")]
pub fn set_ip_options(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    const CALL: &str = "setsockopt(IP_OPTIONS)";
    raw::set_slice(fd, IPPROTO_IP, libc::IP_OPTIONS, CALL, bytes)
}
