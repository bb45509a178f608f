//! Descriptors of other processes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::error::{Error, Result};

/// Duplicates the descriptor `fd` of process `pid` with `pidfd_getfd` (Linux 5.6).
///
/// Needs the right to trace that process (`PTRACE_MODE_ATTACH_REALCREDS`). The process
/// keeps its own descriptor and does not notice.
///
/// # Errors
///
/// [`Error::NoPermission`] if the process may not be traced; [`Error::Call`] with ESRCH if it
/// does not exist, EBADF if it has no such descriptor.
#[doc(alias = "pidfd_getfd")]
pub fn descriptor(pid: u32, fd: i32) -> Result<OwnedFd> {
    Process::open(pid)?.descriptor(fd)
}

/// A process, held so that its number cannot come to mean another one.
#[derive(Debug)]
pub struct Process {
    handle: OwnedFd,
    pid: u32,
}

impl Process {
    /// `pidfd_open` (Linux 5.3).
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with ESRCH if it does not exist.
    #[doc(alias = "pidfd_open")]
    pub fn open(pid: u32) -> Result<Self> {
        const CALL: &str = "pidfd_open";
        let no_such = || Error::new(CALL, std::io::Error::from_raw_os_error(libc::ESRCH));
        let number = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(no_such)?;
        rustix::process::pidfd_open(number, PidfdFlags::empty())
            .map(|handle| Self { handle, pid })
            .map_err(|e| Error::new(CALL, e.into()))
    }

    /// `pidfd_getfd`: a duplicate of its descriptor `fd`.
    ///
    /// # Errors
    ///
    /// Those of [`descriptor`].
    pub fn descriptor(&self, fd: i32) -> Result<OwnedFd> {
        rustix::process::pidfd_getfd(&self.handle, fd, PidfdGetfdFlags::empty()).map_err(|e| {
            let source = std::io::Error::from(e);
            match source.raw_os_error() {
                // Not the network capability that `Error::new` would name.
                Some(libc::EPERM) => Error::Call {
                    call: "pidfd_getfd (needs the right to trace the process)",
                    source,
                },
                _ => Error::new("pidfd_getfd", source),
            }
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}
