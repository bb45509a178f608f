//! Options of the level `IPPROTO_TCP`, but for those of repair.

use std::os::fd::BorrowedFd;

use libc::IPPROTO_TCP;

use super::text;
#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::{raw, uapi};

options! {
    /// Small segments go out at once.
    no_delay, set_no_delay: bool as i32 = IPPROTO_TCP, libc::TCP_NODELAY, "TCP_NODELAY";
    /// Segments below the MSS are held back.
    cork, set_cork: bool as i32 = IPPROTO_TCP, libc::TCP_CORK, "TCP_CORK";
    /// Idle time before keepalive probes, in seconds.
    keep_idle, set_keep_idle: u32 as u32 = IPPROTO_TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE";
    /// Time between keepalive probes, in seconds.
    keep_interval, set_keep_interval: u32 as u32 = IPPROTO_TCP, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL";
    /// Unanswered keepalive probes before the connection is dropped.
    keep_count, set_keep_count: u32 as u32 = IPPROTO_TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT";
    /// Time that sent data may stay unacknowledged, in milliseconds.
    user_timeout, set_user_timeout: u32 as u32 = IPPROTO_TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT";
    /// Time in `FIN_WAIT2` after the last descriptor is closed, in seconds.
    linger2, set_linger2: i32 as i32 = IPPROTO_TCP, libc::TCP_LINGER2, "TCP_LINGER2";
    /// Retransmissions of a SYN.
    syn_count, set_syn_count: u32 as u32 = IPPROTO_TCP, libc::TCP_SYNCNT, "TCP_SYNCNT";
    /// Bound on the advertised window, in octets; 0 for none.
    window_clamp, set_window_clamp: u32 as u32 = IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP";
    /// Unsent octets below which the socket is writable.
    not_sent_low_water, set_not_sent_low_water: u32 as u32 = IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT";
    /// How long a listener waits for data before it hands a connection out, in seconds.
    defer_accept, set_defer_accept: u32 as u32 = IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT";
    /// Retransmission timeouts of thin streams do not double.
    thin_linear_timeouts, set_thin_linear_timeouts: bool as i32 = IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS";
    /// Delay of outgoing packets, in microseconds (Linux 5.4).
    tx_delay, set_tx_delay: u32 as u32 = IPPROTO_TCP, uapi::TCP_TX_DELAY, "TCP_TX_DELAY";
    /// What is received has the octets that wait beside it (Linux 4.18).
    inq, set_inq: bool as i32 = IPPROTO_TCP, libc::TCP_INQ, "TCP_INQ";
    /// Acknowledgements are sent at once. The kernel changes it by itself.
    quick_ack, set_quick_ack: bool as i32 = IPPROTO_TCP, libc::TCP_QUICKACK, "TCP_QUICKACK";
    /// Longest retransmission timeout, in milliseconds (Linux 6.15).
    rto_max, set_rto_max: u32 as u32 = IPPROTO_TCP, uapi::TCP_RTO_MAX_MS, "TCP_RTO_MAX_MS";
    /// Shortest retransmission timeout, in microseconds (Linux 6.15).
    rto_min, set_rto_min: u32 as u32 = IPPROTO_TCP, uapi::TCP_RTO_MIN_US, "TCP_RTO_MIN_US";
    /// Longest delay of an acknowledgement, in microseconds (Linux 6.15).
    delayed_ack_max, set_delayed_ack_max: u32 as u32 = IPPROTO_TCP, uapi::TCP_DELACK_MAX_US, "TCP_DELACK_MAX_US";
    /// Maximum segment size; under repair it reads `mss_clamp`.
    max_segment, set_max_segment: u32 as u32 = IPPROTO_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG";
}

/// `getsockopt(fd, TCP_CONGESTION)`: the name of the congestion control.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_CONGESTION")]
pub fn congestion(fd: BorrowedFd<'_>) -> Result<String> {
    text(
        fd,
        IPPROTO_TCP,
        libc::TCP_CONGESTION,
        "getsockopt(TCP_CONGESTION)",
    )
}

/// `setsockopt(fd, TCP_CONGESTION)`
///
/// # Errors
///
/// [`Error`] of the call: ENOENT if the kernel does not have it.
#[doc(alias = "TCP_CONGESTION")]
pub fn set_congestion(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_CONGESTION)";
    raw::set_slice(fd, IPPROTO_TCP, libc::TCP_CONGESTION, CALL, name.as_bytes())
}

/// `getsockopt(fd, TCP_ULP)`: the upper-layer protocol attached (`tls`, …).
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_ULP")]
pub fn upper_layer(fd: BorrowedFd<'_>) -> Result<Option<String>> {
    let name = text(fd, IPPROTO_TCP, libc::TCP_ULP, "getsockopt(TCP_ULP)")?;
    Ok((!name.is_empty()).then_some(name))
}
