//! Flags of a descriptor, and of the socket behind it.

use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::error::{Error, Result};
use crate::info::{State, tcp_info};
use crate::seam;

/// `fcntl(F_GETFL)`: whether calls on the descriptor return instead of waiting
/// (`O_NONBLOCK`, which all duplicates of a descriptor share).
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "O_NONBLOCK")]
pub fn non_blocking(fd: BorrowedFd<'_>) -> Result<bool> {
    seam::enter("fcntl(F_GETFL)")?;
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
    seam::enter("fcntl(F_GETFL)")?;
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::new("fcntl(F_GETFL)", e.into()))?;
    let mut flags = OFlag::from_bits_truncate(flags);
    flags.set(OFlag::O_NONBLOCK, on);
    seam::enter("fcntl(F_SETFL)")?;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(|e| Error::new("fcntl(F_SETFL)", e.into()))?;
    Ok(())
}

/// `fcntl(F_GETFD)`: whether the descriptor is closed when its process becomes another program
/// (`FD_CLOEXEC`, which each duplicate of a descriptor has for itself).
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "FD_CLOEXEC")]
pub fn close_on_exec(fd: BorrowedFd<'_>) -> Result<bool> {
    seam::enter("fcntl(F_GETFD)")?;
    let flags = fcntl(fd, FcntlArg::F_GETFD).map_err(|e| Error::new("fcntl(F_GETFD)", e.into()))?;
    Ok(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC))
}

/// `fcntl(F_SETFD)`: as [`close_on_exec`].
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "FD_CLOEXEC")]
pub fn set_close_on_exec(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flags = if on {
        FdFlag::FD_CLOEXEC
    } else {
        FdFlag::empty()
    };
    seam::enter("fcntl(F_SETFD)")?;
    fcntl(fd, FcntlArg::F_SETFD(flags)).map_err(|e| Error::new("fcntl(F_SETFD)", e.into()))?;
    Ok(())
}

/// `poll(POLLRDHUP)`: whether the application has shut the receiving direction of a connection that the peer
/// has not closed.
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "SHUT_RD")]
pub fn read_shut(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut polled = [PollFd::new(
        fd,
        PollFlags::from_bits_retain(libc::POLLRDHUP),
    )];
    seam::enter("poll(POLLRDHUP)")?;
    poll(&mut polled, PollTimeout::ZERO).map_err(|e| Error::new("poll(POLLRDHUP)", e.into()))?;
    // `nix` has no name for the flag, and `revents` is nothing if there are unknown ones.
    let shut = polled[0].revents() != Some(PollFlags::empty());
    // After `poll`: a FIN that arrives in between would look like it.
    Ok(shut
        && matches!(
            tcp_info(fd)?.state,
            State::Established | State::FinWait1 | State::FinWait2
        ))
}

/// `shutdown(fd, SHUT_RD)`: the application reads nothing that comes from now on. Nothing is sent.
///
/// # Errors
///
/// [`Error::Call`]: ENOTCONN without a connection.
#[doc(alias = "SHUT_RD")]
pub fn shut_read(fd: BorrowedFd<'_>) -> Result<()> {
    SockRef::from(&fd)
        .shutdown(std::net::Shutdown::Read)
        .map_err(|e| Error::new("shutdown(SHUT_RD)", e))
}
