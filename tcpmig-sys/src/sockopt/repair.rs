//! Repair mode and what can be read and set in it.

use std::os::fd::BorrowedFd;

use libc::IPPROTO_TCP;

#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;
use crate::uapi::{self, RepairOption, RepairWindow};

/// Whether a socket is in repair mode, and how to leave repair mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// `TCP_REPAIR_ON`.
    On,
    /// `TCP_REPAIR_OFF`: in ESTABLISHED one ACK at `snd_una - 1` goes out, which makes the
    /// peer answer with its own acknowledgement and window.
    Off,
    /// `TCP_REPAIR_OFF_NO_WP`: nothing is sent (Linux 4.19).
    OffQuiet,
}

/// The queue that the queue calls of repair mode act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// `TCP_NO_QUEUE`.
    None,
    /// `TCP_RECV_QUEUE`.
    Receive,
    /// `TCP_SEND_QUEUE`.
    Send,
}

/// `getsockopt(fd, TCP_REPAIR)`: whether the socket is in repair mode.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_REPAIR")]
pub fn repair(fd: BorrowedFd<'_>) -> Result<bool> {
    let value: i32 = raw::get(fd, IPPROTO_TCP, libc::TCP_REPAIR, "getsockopt(TCP_REPAIR)")?;
    Ok(value != 0)
}

/// `setsockopt(fd, TCP_REPAIR)`
///
/// Repair stops nothing in the kernel: data that arrives is queued and
/// acknowledged, timers transmit. `SO_REUSEADDR` is 0 after it, whatever it was.
///
/// # Errors
///
/// [`Error::NoPermission`] without `CAP_NET_ADMIN`, and for a listener;
/// [`Error::Unsupported`] for a multipath socket.
#[doc(alias = "TCP_REPAIR")]
pub fn set_repair(fd: BorrowedFd<'_>, repair: Repair) -> Result<()> {
    let value = match repair {
        Repair::On => uapi::TCP_REPAIR_ON,
        Repair::Off => uapi::TCP_REPAIR_OFF,
        Repair::OffQuiet => uapi::TCP_REPAIR_OFF_NO_WP,
    };
    raw::set(
        fd,
        IPPROTO_TCP,
        libc::TCP_REPAIR,
        "setsockopt(TCP_REPAIR)",
        value,
    )
}

/// `setsockopt(fd, TCP_REPAIR_QUEUE)`: selects the queue. Repair.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_REPAIR_QUEUE")]
pub fn set_repair_queue(fd: BorrowedFd<'_>, queue: Queue) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_REPAIR_QUEUE)";
    let value = match queue {
        Queue::None => uapi::TCP_NO_QUEUE,
        Queue::Receive => uapi::TCP_RECV_QUEUE,
        Queue::Send => uapi::TCP_SEND_QUEUE,
    };
    raw::set(fd, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, CALL, value)
}

/// `getsockopt(fd, TCP_REPAIR_WINDOW)`: the windows. Repair.
///
/// # Errors
///
/// [`Error`] of the call; [`Error::Length`] from a kernel with another layout.
#[doc(alias = "TCP_REPAIR_WINDOW")]
pub fn repair_window(fd: BorrowedFd<'_>) -> Result<RepairWindow> {
    const CALL: &str = "getsockopt(TCP_REPAIR_WINDOW)";
    raw::get(fd, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, CALL)
}

/// `setsockopt(fd, TCP_REPAIR_WINDOW)`: the windows. Repair.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL if `max_window` is below `snd_wnd`, `snd_wl1` after
/// `rcv_nxt + rcv_wnd`, or `rcv_wup` after `rcv_nxt`.
#[doc(alias = "TCP_REPAIR_WINDOW")]
pub fn set_repair_window(fd: BorrowedFd<'_>, window: RepairWindow) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_REPAIR_WINDOW)";
    raw::set(fd, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, CALL, window)
}

/// `setsockopt(fd, TCP_REPAIR_OPTIONS)`: what the handshake negotiated. Repair,
/// ESTABLISHED only.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_REPAIR_OPTIONS")]
pub fn set_repair_options(fd: BorrowedFd<'_>, negotiated: &Negotiated) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_REPAIR_OPTIONS)";
    let mut options = Vec::with_capacity(4);
    let mut push = |opt_code, opt_val| options.push(RepairOption { opt_code, opt_val });
    push(uapi::TCPOPT_MSS, u32::from(negotiated.mss_clamp));
    if let Some(Scales { snd, rcv }) = negotiated.window_scale {
        push(uapi::TCPOPT_WINDOW, u32::from(snd) | u32::from(rcv) << 16);
    }
    if negotiated.sack {
        push(uapi::TCPOPT_SACK_PERMITTED, 0);
    }
    if negotiated.timestamps {
        push(uapi::TCPOPT_TIMESTAMP, 0);
    }
    raw::set_slice(fd, IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, CALL, &options)
}

/// By how much windows are shifted (RFC 7323 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scales {
    /// Those of the peer.
    pub snd: u8,
    /// Those of this end.
    pub rcv: u8,
}

/// What the two ends agreed on in the handshake (RFC 9293 section 3.2, RFC 7323,
/// RFC 2018).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Largest segment that the peer takes, in bytes.
    pub mss_clamp: u16,
    /// The window scale option, if both use it.
    pub window_scale: Option<Scales>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// The timestamp option.
    pub timestamps: bool,
}
