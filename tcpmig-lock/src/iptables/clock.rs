//! The clocks: one that only runs, by which leases are counted, and the wall clock, by which rules end.
//!
//! The kernel's match `time` knows the wall clock only. When that is set, a rule ends too early or too late. So each
//! handle that has locked waits for it to be set, and writes the rules again whose leases run, whoever made them;
//! every call that changes the rules does so, too.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::Shared;
use crate::lease;

/// One moment on both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Milliseconds since this host started, also while it slept.
    pub(super) running: u64,
    /// Milliseconds since 1970.
    pub(super) wall: u64,
}

impl Now {
    pub(super) fn read() -> Self {
        Self {
            running: lease::now(),
            wall: lease::milliseconds(clock_gettime(ClockId::Realtime)),
        }
    }

    /// The second of the wall clock in which it will be this late.
    pub(super) fn stop(self, running: u64) -> u64 {
        self.wall
            .saturating_add(running.saturating_sub(self.running))
            / 1000
    }
}

/// Tells when the wall clock is set.
pub(super) struct Watch {
    timer: OwnedFd,
    end: UnixStream,
    ended: UnixStream,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let (end, ended) = UnixStream::pair()?;
        end.set_nonblocking(true)?;
        let watch = Self { timer, end, ended };
        watch.arm()?;
        Ok(watch)
    }

    /// Asks to be told the next time.
    fn arm(&self) -> io::Result<()> {
        // Later than any clock is set to; what matters is that it is taken back when the clock is set.
        let never = Timespec {
            tv_sec: i64::MAX / 1_000_000_000,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: never,
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&self.timer, flags, &once)?;
        Ok(())
    }

    /// Waits until the clock is set; false if the handle ended.
    fn wait(&self) -> bool {
        loop {
            let mut fds = [
                PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ended.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(_) => return false,
            }
            let woken = fds[1].any().unwrap_or(true);
            if woken {
                let _ = (&self.ended).read(&mut [0; 8]);
                return false;
            }
            // ECANCELED says that it was set. Armed before the rules are looked at, so that nothing is missed.
            let _ = rustix::io::read(&self.timer, &mut [0; 8]);
            return self.arm().is_ok();
        }
    }

    pub(super) fn end(&self) {
        let _ = (&self.end).write(&[0]);
    }
}

/// Writes the rules again whenever the clock is set, on a thread of its own.
pub(super) fn spawn(watch: Arc<Watch>, shared: Weak<Shared>) -> io::Result<()> {
    let run = move || {
        while watch.wait() {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            shared.clock_was_set();
        }
    };
    let thread = std::thread::Builder::new().name("tcpmig-clock".to_owned());
    thread.spawn(run).map(drop)
}
