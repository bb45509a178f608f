//! The descriptor table of this process.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use socket2::{Domain, Socket, Type};

use crate::error::{Error, Result};

/// Grows the descriptor table for `count` more descriptors.
///
/// The table doubles when it is full, and in a process with several threads each doubling waits
/// for an RCU grace period, up to 20 ms. Call this before a connection is frozen; it
/// duplicates one descriptor to a high number and closes it.
///
/// # Errors
///
/// [`Error::Call`] if the limit (`RLIMIT_NOFILE`) is lower.
pub fn reserve(count: u32) -> Result<()> {
    let any = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .map_err(|e| Error::new("socket", e))?;
    let highest = any.as_raw_fd() + i32::try_from(count).unwrap_or(i32::MAX / 2);
    let duplicate = fcntl(any.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(highest))
        .map_err(|e| Error::new("fcntl(F_DUPFD_CLOEXEC)", e.into()))?;
    nix::unistd::close(duplicate).map_err(|e| Error::new("close", e.into()))
}

/// How many more descriptors the process can open at least, as long as nobody else opens any: those
/// above the lowest number that is free. Gaps above that are not counted.
///
/// # Errors
///
/// [`Error::Call`]; not EMFILE, which is an answer: 0.
pub fn room() -> Result<u64> {
    /// Kept: a duplicate of it costs a tenth of a new one.
    static ANY: OnceLock<Socket> = OnceLock::new();
    let (limit, _) = limit()?;
    let duplicate = || match ANY.get() {
        Some(any) => any.try_clone(),
        None => {
            let any = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
            ANY.get_or_init(|| any).try_clone()
        }
    };
    // It gets the lowest number that is free.
    match duplicate() {
        Ok(any) => Ok(limit.saturating_sub(u64::from(any.as_raw_fd().unsigned_abs()))),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => Ok(0),
        Err(error) => Err(Error::new("fcntl(F_DUPFD_CLOEXEC)", error)),
    }
}

/// How many descriptors the process may have: `getrlimit(RLIMIT_NOFILE)`, soft and hard.
///
/// # Errors
///
/// [`Error::Call`].
pub fn limit() -> Result<(u64, u64)> {
    getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Error::new("getrlimit", e.into()))
}

/// Raises the soft limit to the hard one.
///
/// # Errors
///
/// [`Error::Call`].
pub fn raise_limit() -> Result<()> {
    let (_, hard) = limit()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| Error::new("setrlimit", e.into()))
}
