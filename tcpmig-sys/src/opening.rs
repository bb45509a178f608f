//! Connections that are being opened, in `SYN_SENT`.
//!
//! Their socket is opened again elsewhere with the initial sequence number that it had: for the peer the new SYN is the old
//! one sent again.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::diag;
use crate::error::{Error, NotMigratable, Result};
use crate::frozen::{self, Marks, Progress, Snapshot};
use crate::info::{Counters, State, counters, info};
use crate::mute::Mute;
use crate::rebuild::{BoundSocket, RestoringSocket, set_clock};
use crate::sockets;
use crate::sockopt::{self, Queue, Repair};
use crate::uapi::RepairWindow;

/// What the kernel waits before it sends a SYN again first (`TCP_TIMEOUT_INIT`).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);

/// More than the kernel errs about when its timer was set (`CONFIG_HZ`).
const EARLIER: Duration = Duration::from_millis(12);

/// More than a timer of a second comes late.
const LATE: Duration = Duration::from_millis(60);

/// Until then a clock that was set that much earlier is past the time that it stands for.
const PAST: Duration = Duration::from_millis(100);

/// Refuses a connection that has data in its SYN.
pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<()> {
    let counters = counters(fd)?;
    if counters.data_segs_out > 0 || counters.unacked > 1 {
        return Err(NotMigratable::FastOpen.into());
    }
    Ok(())
}

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
pub(crate) fn read(fd: BorrowedFd<'_>, marks: Marks, progress: Progress) -> Result<Snapshot> {
    let info = info(fd)?;
    let (negotiated, _) = frozen::negotiated(fd, &info)?;
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
        marks,
        send_queue: Vec::new(),
        unsent: 0,
        receive_queue: Vec::new(),
        window: RepairWindow::default(),
        negotiated,
        // Nothing is agreed on, but the SYN that was sent may have carried it.
        timestamp: Some((clock & !1, microseconds)),
        ended: None,
        progress,
    })
}

impl BoundSocket {
    /// `connect` with an old initial sequence number, whose SYN is sent into nothing: the lock has to stop it, as all
    /// that this host sends for the connection. The socket is then in `SYN_SENT` and under repair. After
    /// [`RestoringSocket::activate`] and within a second of this call the kernel sends the SYN again.
    ///
    /// `timestamp` is the clock of the timestamp option as in [`Snapshot::timestamp`]: what it showed shortly before the old
    /// SYN left. If the peer has answered that, it answers again and echoes its stamp, and an echo from before this
    /// call, or from a time that the clock has not reached, makes the kernel reset the peer's half of the handshake
    /// (`tcp_rcv_synsent_state_process`) and then open anew. So this waits until the clock is past it. The new SYN,
    /// a second later, has a later stamp, without which the peer would drop it. If the old SYN was sent several times, the
    /// clock is that of the first (before Linux 6.7 as far as the timeouts tell), and a peer that has answered can be reset; no application
    /// sees it.
    ///
    /// The scale of the windows, which the peer may know from the old SYN, is what this host chooses. Where
    /// `net.ipv4.tcp_rmem` differs, the peer counts with another: windows are too small, or it sends too much and again.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] as [`BoundSocket::connect`]; [`Error::NotAsAsked`] for the initial sequence number 0, with which
    /// the kernel takes one of its own. The socket is closed.
    pub fn open_again(
        self,
        remote: SocketAddr,
        initial: u32,
        timestamp: Option<(u32, bool)>,
    ) -> Result<RestoringSocket> {
        let socket = self.into_socket();
        let fd = socket.as_fd();
        let mute = Mute::before_connect(fd, &remote)?;
        sockopt::set_repair_queue(fd, Queue::Send)?;
        sockopt::set_queue_sequence(fd, initial)?;
        sockopt::set_repair_queue(fd, Queue::None)?;
        // With one that the kernel takes the place of, it also takes a sequence number after that one's.
        sockets::clear(&socket, remote);
        sockopt::set_repair(fd, Repair::OffQuiet)?;
        let connected = sockets::connect(&socket, remote);
        // Also after an error: dropping it is silent only under repair.
        sockopt::set_repair(fd, Repair::On)?;
        match connected {
            Err(error) if error.errno() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
            // It cannot be: the peer's answer is as far away as the lock.
            Ok(()) => {}
        }
        mute.connected(fd)?;
        let restoring = RestoringSocket::from_socket(socket, mute);
        let fd = restoring.as_fd();
        let marks = frozen::marks(fd)?;
        for (what, asked, got) in [
            (
                "the state",
                State::SynSent.to_string(),
                marks.state.to_string(),
            ),
            (
                "write_seq",
                initial.wrapping_add(1).to_string(),
                marks.write_seq.to_string(),
            ),
        ] {
            if asked != got {
                return Err(Error::NotAsAsked { what, asked, got });
            }
        }
        if let Some((value, microseconds)) = timestamp {
            set_clock(fd, value, microseconds)?;
            std::thread::sleep(PAST);
        }
        Ok(restoring)
    }
}
