//! Options of the level `SOL_SOCKET`.

use std::os::fd::BorrowedFd;

use libc::SOL_SOCKET;

use super::text;
#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;

/// `getsockopt(fd, SO_ERROR)`: the pending error, which it clears.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_ERROR")]
pub fn take_error(fd: BorrowedFd<'_>) -> Result<Option<std::io::Error>> {
    let code: i32 = raw::get(fd, SOL_SOCKET, libc::SO_ERROR, "getsockopt(SO_ERROR)")?;
    Ok((code != 0).then(|| std::io::Error::from_raw_os_error(code)))
}

/// `getsockopt(fd, SO_DOMAIN)`: `AF_INET` or `AF_INET6`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_DOMAIN")]
pub fn domain(fd: BorrowedFd<'_>) -> Result<i32> {
    raw::get(fd, SOL_SOCKET, libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")
}

/// `getsockopt(fd, SO_PROTOCOL)`: `IPPROTO_TCP`, or `IPPROTO_MPTCP`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_PROTOCOL")]
pub fn protocol(fd: BorrowedFd<'_>) -> Result<i32> {
    raw::get(fd, SOL_SOCKET, libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")
}

/// `getsockopt(fd, SO_LINGER)`: the seconds, if lingering is on.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_LINGER")]
pub fn linger(fd: BorrowedFd<'_>) -> Result<Option<u32>> {
    let value: libc::linger = raw::get(fd, SOL_SOCKET, libc::SO_LINGER, "getsockopt(SO_LINGER)")?;
    Ok((value.l_onoff != 0).then_some(value.l_linger.cast_unsigned()))
}

/// `setsockopt(fd, SO_LINGER)`: the seconds, or off.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_LINGER")]
pub fn set_linger(fd: BorrowedFd<'_>, seconds: Option<u32>) -> Result<()> {
    let value = libc::linger {
        l_onoff: i32::from(seconds.is_some()),
        // The kernel takes it for a number without a sign.
        l_linger: seconds.unwrap_or(0).cast_signed(),
    };
    raw::set(
        fd,
        SOL_SOCKET,
        libc::SO_LINGER,
        "setsockopt(SO_LINGER)",
        value,
    )
}

const MICROSECONDS: u64 = 1_000_000;

fn timeout(fd: BorrowedFd<'_>, name: i32, call: &'static str) -> Result<u64> {
    let value: libc::timeval = raw::get(fd, SOL_SOCKET, name, call)?;
    let seconds = value.tv_sec.unsigned_abs().saturating_mul(MICROSECONDS);
    Ok(seconds.saturating_add(value.tv_usec.unsigned_abs()))
}

fn set_timeout(fd: BorrowedFd<'_>, name: i32, call: &'static str, microseconds: u64) -> Result<()> {
    let value = libc::timeval {
        tv_sec: (microseconds / MICROSECONDS) as _,
        tv_usec: (microseconds % MICROSECONDS) as _,
    };
    raw::set(fd, SOL_SOCKET, name, call, value)
}

/// `getsockopt(fd, SO_RCVTIMEO)`: how long a read waits, in microseconds; 0 is without end, and more than
/// 64 bits hold (584 000 years) is `u64::MAX`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_RCVTIMEO")]
pub fn receive_timeout(fd: BorrowedFd<'_>) -> Result<u64> {
    timeout(fd, libc::SO_RCVTIMEO, "getsockopt(SO_RCVTIMEO)")
}

/// `setsockopt(fd, SO_RCVTIMEO)`: as [`receive_timeout`]. The kernel rounds up to its tick.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_RCVTIMEO")]
pub fn set_receive_timeout(fd: BorrowedFd<'_>, microseconds: u64) -> Result<()> {
    const CALL: &str = "setsockopt(SO_RCVTIMEO)";
    set_timeout(fd, libc::SO_RCVTIMEO, CALL, microseconds)
}

/// `getsockopt(fd, SO_SNDTIMEO)`: how long a write waits, in microseconds; 0 is without end, and more than
/// 64 bits hold (584 000 years) is `u64::MAX`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_SNDTIMEO")]
pub fn send_timeout(fd: BorrowedFd<'_>) -> Result<u64> {
    timeout(fd, libc::SO_SNDTIMEO, "getsockopt(SO_SNDTIMEO)")
}

/// `setsockopt(fd, SO_SNDTIMEO)`: as [`send_timeout`]. The kernel rounds up to its tick.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_SNDTIMEO")]
pub fn set_send_timeout(fd: BorrowedFd<'_>, microseconds: u64) -> Result<()> {
    const CALL: &str = "setsockopt(SO_SNDTIMEO)";
    set_timeout(fd, libc::SO_SNDTIMEO, CALL, microseconds)
}

/// `setsockopt(fd, SO_RCVBUFFORCE)`: past the limit of `net.core.rmem_max`.
///
/// # Errors
///
/// [`Error`] of the call; it needs `CAP_NET_ADMIN` in the initial user namespace.
#[doc(alias = "SO_RCVBUFFORCE")]
pub fn force_receive_buffer(fd: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    const CALL: &str = "setsockopt(SO_RCVBUFFORCE)";
    raw::set(fd, SOL_SOCKET, libc::SO_RCVBUFFORCE, CALL, bytes)
}

/// `setsockopt(fd, SO_SNDBUFFORCE)`: past the limit of `net.core.wmem_max`.
///
/// # Errors
///
/// [`Error`] of the call; it needs `CAP_NET_ADMIN` in the initial user namespace.
#[doc(alias = "SO_SNDBUFFORCE")]
pub fn force_send_buffer(fd: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    const CALL: &str = "setsockopt(SO_SNDBUFFORCE)";
    raw::set(fd, SOL_SOCKET, libc::SO_SNDBUFFORCE, CALL, bytes)
}

/// `getsockopt(fd, SO_BINDTODEVICE)`: the device that the socket is bound to.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_BINDTODEVICE")]
pub fn bound_device(fd: BorrowedFd<'_>) -> Result<Option<String>> {
    const CALL: &str = "getsockopt(SO_BINDTODEVICE)";
    let name = text(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, CALL)?;
    Ok((!name.is_empty()).then_some(name))
}

/// `setsockopt(fd, SO_BINDTODEVICE)`
///
/// # Errors
///
/// [`Error`] of the call: ENODEV if there is no such device.
#[doc(alias = "SO_BINDTODEVICE")]
pub fn set_bound_device(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    const CALL: &str = "setsockopt(SO_BINDTODEVICE)";
    raw::set_slice(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, CALL, name.as_bytes())
}
