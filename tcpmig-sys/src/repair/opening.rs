//! Connections that are being opened, in `SYN_SENT`.
//!
//! Their socket is opened again elsewhere with the initial sequence number that it had: for the peer the new SYN is the old
//! one sent again.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::numbers::{Numbers, Progress};
use super::snapshot::{self, Clock, Snapshot};
use crate::error::Result;
use crate::info::{Counters, counters, tcp_info};
use crate::sockets::diag;
use crate::sockopt;
use crate::uapi::RepairWindow;

/// What the kernel waits before it sends a SYN again first (`TCP_TIMEOUT_INIT`).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);

/// More than the kernel errs about when its timer was set (`CONFIG_HZ`).
const EARLIER: Duration = Duration::from_millis(12);

/// More than a timer of a second comes late.
const LATE: Duration = Duration::from_millis(60);

/// The time between the first SYN and the last one, for kernels before 6.7, which do not count it: the sum of the timeouts,
/// of which the first ones may be of one length (`net.ipv4.tcp_syn_linear_timeouts`, Linux 6.5).
fn before_last(counters: &Counters) -> Duration {
    let linear = counters.retransmits.saturating_sub(counters.backoff);
    let doubled = 1_u32
        .checked_shl(counters.backoff.into())
        .unwrap_or(u32::MAX);
    FIRST_TIMEOUT.saturating_mul(u32::from(linear).saturating_add(doubled - 1))
}

/// What there is in `SYN_SENT`: a sequence number and a clock.
pub(super) fn read(fd: BorrowedFd<'_>, numbers: Numbers, progress: Progress) -> Result<Snapshot> {
    let info = tcp_info(fd)?;
    let (negotiated, _) = snapshot::negotiated(fd, &info)?;
    let microseconds = info.timestamps_in_microseconds;
    let rto = Duration::from_micros(info.rto.into());
    // First: what it takes to ask for the timer makes the result earlier, not later.
    let clock = sockopt::timestamp(fd)?;
    let counters = counters(fd)?;
    let repeated = before_last(&counters);
    let ago = match (counters.total_rto_time, diag::until_retransmission(fd)?) {
        (0, left) if !repeated.is_zero() => {
            repeated + rto.saturating_sub(left.unwrap_or_default()) + LATE
        }
        (0, Some(left)) => rto.saturating_sub(left) + EARLIER,
        (0, None) => Duration::ZERO,
        (since, _) => FIRST_TIMEOUT + Duration::from_millis(since.into()) + LATE,
    };
    let ticks = if microseconds {
        ago.as_micros()
    } else {
        ago.as_millis()
    };
    // The clock wraps.
    let clock = clock.wrapping_sub(ticks as u32);
    Ok(Snapshot {
        numbers,
        send_queue: Vec::new(),
        unsent: 0,
        receive_queue: Vec::new(),
        window: RepairWindow::default(),
        negotiated,
        // Nothing is agreed on, but the SYN that was sent may have carried it.
        timestamp: Some(Clock {
            value: clock & !1,
            microseconds,
        }),
        ended: None,
        progress,
    })
}
