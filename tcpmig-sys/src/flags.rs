//! Flags of a descriptor.

use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Error, Result};

/// `fcntl(F_GETFL)`: whether calls on the descriptor return instead of waiting
/// (`O_NONBLOCK`, which all duplicates of a descriptor share).
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "O_NONBLOCK")]
pub fn non_blocking(fd: BorrowedFd<'_>) -> Result<bool> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::new("fcntl(F_GETFL)", e.into()))?;
    Ok(OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK))
}

/// `fcntl(F_SETFL)`: as [`non_blocking`].
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "O_NONBLOCK")]
pub fn set_non_blocking(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::new("fcntl(F_GETFL)", e.into()))?;
    let mut flags = OFlag::from_bits_truncate(flags);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(|e| Error::new("fcntl(F_SETFL)", e.into()))?;
    Ok(())
}
