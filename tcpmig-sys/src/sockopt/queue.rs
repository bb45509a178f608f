//! The lengths of the queues.

use std::os::fd::BorrowedFd;

#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;

/// `ioctl(fd, SIOCINQ)`: bytes that can be read, up to the urgent mark.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a listener.
#[doc(alias = "SIOCINQ")]
pub fn receive_queue_len(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(raw::ioctl_int(fd, libc::FIONREAD, "ioctl(SIOCINQ)")?.unsigned_abs())
}

/// `ioctl(fd, SIOCOUTQ)`: bytes written and not yet acknowledged, a FIN counted as one.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a listener.
#[doc(alias = "SIOCOUTQ")]
pub fn send_queue_len(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(raw::ioctl_int(fd, libc::TIOCOUTQ, "ioctl(SIOCOUTQ)")?.unsigned_abs())
}

/// `ioctl(fd, SIOCOUTQNSD)`: bytes written and not yet sent, a FIN counted as one.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a listener.
#[doc(alias = "SIOCOUTQNSD")]
pub fn unsent_len(fd: BorrowedFd<'_>) -> Result<u32> {
    const SIOCOUTQNSD: libc::c_ulong = 0x894B;
    Ok(raw::ioctl_int(fd, SIOCOUTQNSD, "ioctl(SIOCOUTQNSD)")?.unsigned_abs())
}
