//! What waits for the application besides bytes.

use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, NotMigratable, Result};
use crate::seam;

/// Whether an error waits for the application. POLLHUP is none: `LAST_ACK` and CLOSING have it.
pub(super) fn has_error(fd: BorrowedFd<'_>) -> Result<bool> {
    seam::enter("poll(POLLERR)")?;
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).map_err(|e| Error::new("poll(POLLERR)", e.into()))?;
    let is_error = |events: PollFlags| events.contains(PollFlags::POLLERR);
    Ok(polled[0].revents().is_some_and(is_error))
}

pub(super) fn refuse_urgent(fd: BorrowedFd<'_>) -> Result<()> {
    seam::enter("poll(POLLPRI)")?;
    let mut polled = [PollFd::new(fd, PollFlags::POLLPRI)];
    poll(&mut polled, PollTimeout::ZERO).map_err(|e| Error::new("poll(POLLPRI)", e.into()))?;
    match polled[0].revents() {
        Some(events) if events.contains(PollFlags::POLLPRI) => Err(NotMigratable::Urgent.into()),
        _ => Ok(()),
    }
}
