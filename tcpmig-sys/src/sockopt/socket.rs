//! Options of the level `SOL_SOCKET`.

use std::os::fd::BorrowedFd;

use libc::SOL_SOCKET;

use super::text;
#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::{raw, uapi};

options! {
    /// Local addresses may be bound again. In repair mode it reads 2, and 0 after
    /// it: read it before, set it after.
    reuse_addr, set_reuse_addr: i32 as i32 = SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR";
    /// Several sockets share the port.
    reuse_port, set_reuse_port: bool as i32 = SOL_SOCKET, libc::SO_REUSEPORT, "SO_REUSEPORT";
    /// Keepalive probes are sent.
    keep_alive, set_keep_alive: bool as i32 = SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE";
    /// Urgent data stays in the stream.
    oob_inline, set_oob_inline: bool as i32 = SOL_SOCKET, libc::SO_OOBINLINE, "SO_OOBINLINE";
    /// Priority of outgoing packets.
    priority, set_priority: u32 as u32 = SOL_SOCKET, libc::SO_PRIORITY, "SO_PRIORITY";
    /// Firewall mark of outgoing packets. Setting it needs a privilege.
    mark, set_mark: u32 as u32 = SOL_SOCKET, libc::SO_MARK, "SO_MARK";
    /// Receive buffer in octets, as the kernel accounts (twice what was asked for).
    receive_buffer, set_receive_buffer: u32 as u32 = SOL_SOCKET, libc::SO_RCVBUF, "SO_RCVBUF";
    /// Send buffer in octets, as the kernel accounts (twice what was asked for).
    send_buffer, set_send_buffer: u32 as u32 = SOL_SOCKET, libc::SO_SNDBUF, "SO_SNDBUF";
    /// Which buffer sizes are locked against autotuning: bit 0 send, bit 1 receive
    /// (Linux 5.14).
    buffer_lock, set_buffer_lock: u32 as u32 = SOL_SOCKET, uapi::SO_BUF_LOCK, "SO_BUF_LOCK";
    /// Octets that make the socket readable.
    receive_low_water, set_receive_low_water: u32 as u32 = SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT";
    /// Offset that `recv(MSG_PEEK)` starts at; -1 for none. TCP has it from Linux 6.9 on, over IPv6 from 6.11.
    peek_offset, set_peek_offset: i32 as i32 = SOL_SOCKET, libc::SO_PEEK_OFF, "SO_PEEK_OFF";
    /// Packets go to neighbours only, by no route.
    dont_route, set_dont_route: bool as i32 = SOL_SOCKET, libc::SO_DONTROUTE, "SO_DONTROUTE";
    /// How long a reader polls the device, in microseconds. A longer time than before needs
    /// `CAP_NET_ADMIN`.
    busy_poll, set_busy_poll: u32 as u32 = SOL_SOCKET, libc::SO_BUSY_POLL, "SO_BUSY_POLL";
    /// Polling is preferred to interrupts (Linux 5.11). Switching it on needs `CAP_NET_ADMIN`.
    prefer_busy_poll, set_prefer_busy_poll: bool as i32 = SOL_SOCKET, uapi::SO_PREFER_BUSY_POLL, "SO_PREFER_BUSY_POLL";
    /// `MSG_ZEROCOPY` may be used.
    zero_copy, set_zero_copy: bool as i32 = SOL_SOCKET, uapi::SO_ZEROCOPY, "SO_ZEROCOPY";
    /// `select` and `poll` report the error queue as an exception too.
    select_error_queue, set_select_error_queue: bool as i32 = SOL_SOCKET, uapi::SO_SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE";
    /// Upper bound on what is sent, in octets per second; all bits set for none.
    max_pacing_rate, set_max_pacing_rate: u64 as u64 = SOL_SOCKET, uapi::SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE";
    /// The CPU that handled the last packet of the connection. What is set lasts until the next packet.
    incoming_cpu, set_incoming_cpu: i32 as i32 = SOL_SOCKET, uapi::SO_INCOMING_CPU, "SO_INCOMING_CPU";
    /// The classic filter cannot be changed any more. It cannot be switched off.
    lock_filter, set_lock_filter: bool as i32 = SOL_SOCKET, uapi::SO_LOCK_FILTER, "SO_LOCK_FILTER";
    /// What is received has a timestamp in microseconds beside it.
    timestamps, set_timestamps: bool as i32 = SOL_SOCKET, libc::SO_TIMESTAMP, "SO_TIMESTAMP";
    /// As [`timestamps`], in nanoseconds.
    timestamps_ns, set_timestamps_ns: bool as i32 = SOL_SOCKET, libc::SO_TIMESTAMPNS, "SO_TIMESTAMPNS";
    /// As [`timestamps`], with seconds of 64 bits everywhere (Linux 5.1).
    timestamps_new, set_timestamps_new: bool as i32 = SOL_SOCKET, libc::SO_TIMESTAMP_NEW, "SO_TIMESTAMP_NEW";
    /// As [`timestamps_ns`], with seconds of 64 bits everywhere (Linux 5.1).
    timestamps_ns_new, set_timestamps_ns_new: bool as i32 = SOL_SOCKET, libc::SO_TIMESTAMPNS_NEW, "SO_TIMESTAMPNS_NEW";
    /// Which timestamps of packets are made and reported: flags of `linux/net_tstamp.h`.
    timestamping, set_timestamping: u32 as u32 = SOL_SOCKET, libc::SO_TIMESTAMPING, "SO_TIMESTAMPING";
    /// As [`timestamping`], with seconds of 64 bits everywhere (Linux 5.1).
    timestamping_new, set_timestamping_new: u32 as u32 = SOL_SOCKET, libc::SO_TIMESTAMPING_NEW, "SO_TIMESTAMPING_NEW";
    /// The flow's hash, which chooses among paths, changes at a timeout (Linux 5.18).
    tx_rehash, set_tx_rehash: bool as i32 = SOL_SOCKET, uapi::SO_TXREHASH, "SO_TXREHASH";
}

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
pub fn force_receive_buffer(fd: BorrowedFd<'_>, octets: u32) -> Result<()> {
    const CALL: &str = "setsockopt(SO_RCVBUFFORCE)";
    raw::set(fd, SOL_SOCKET, libc::SO_RCVBUFFORCE, CALL, octets)
}

/// `setsockopt(fd, SO_SNDBUFFORCE)`: past the limit of `net.core.wmem_max`.
///
/// # Errors
///
/// [`Error`] of the call; it needs `CAP_NET_ADMIN` in the initial user namespace.
#[doc(alias = "SO_SNDBUFFORCE")]
pub fn force_send_buffer(fd: BorrowedFd<'_>, octets: u32) -> Result<()> {
    const CALL: &str = "setsockopt(SO_SNDBUFFORCE)";
    raw::set(fd, SOL_SOCKET, libc::SO_SNDBUFFORCE, CALL, octets)
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
