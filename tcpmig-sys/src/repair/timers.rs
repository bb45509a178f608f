//! The settings by which a connection would end itself while it stands still.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::info::{Info, State, counters};
use crate::sockopt;

/// The settings by which a connection would end itself, as the application has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timers {
    keep_alive: bool,
    user_timeout: u32,
    syn_count: Option<u32>,
}

/// From where `TCP_USER_TIMEOUT` is out of reach, and by how much it may be more, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct OutOfReach {
    from: u32,
    most: u32,
}

/// Twelve days.
const IN_MILLISECONDS: OutOfReach = OutOfReach {
    from: 1 << 30,
    most: (1 << 30) - 1,
};

/// Half an hour, where the kernel multiplies it to microseconds of 32 bits (`retransmits_timed_out`).
const IN_MICROSECONDS: OutOfReach = OutOfReach {
    from: 30 * 60 * 1000,
    most: 40 * 60 * 1000 - 1,
};

impl OutOfReach {
    fn of(info: &Info) -> Self {
        if info.timestamps_in_microseconds {
            IN_MICROSECONDS
        } else {
            IN_MILLISECONDS
        }
    }

    /// A time-out that tells what has to be put back, to whoever finds the socket without its holder: the time-out that
    /// the application had, as far as there is room for it, and two switches.
    fn telling(self, before: Before) -> u32 {
        let switches = u32::from(before.reuse_addr) << 1 | u32::from(before.keep_alive);
        self.from + (before.user_timeout.min(self.most >> 2) << 2 | switches)
    }

    /// `None` of a time-out that is the application's.
    fn told(self, timeout: u32) -> Option<Before> {
        let told = timeout
            .checked_sub(self.from)
            .filter(|told| *told <= self.most)?;
        Some(Before {
            keep_alive: told & 1 != 0,
            reuse_addr: told & 2 != 0,
            user_timeout: told >> 2,
        })
    }
}

/// What a frozen socket does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Before {
    keep_alive: bool,
    reuse_addr: bool,
    user_timeout: u32,
}

/// `MAX_TCP_SYNCNT`.
const MOST_SYNS: u32 = 127;

/// How long a connection that had retransmitted in vain may take until its peer is heard again.
const HEARD: Duration = Duration::from_millis(250);

impl Timers {
    /// Nothing but the peer ends the connection from here on.
    ///
    /// After an error they are as they were. What they were, and `reuse_addr`, can be [found](Timers::left) in the socket.
    pub(crate) fn hold(fd: BorrowedFd<'_>, info: &Info, reuse_addr: bool) -> Result<Self> {
        let syn_sent = info.state == State::SynSent;
        let timers = Self {
            keep_alive: sockopt::keep_alive(fd)?,
            user_timeout: sockopt::user_timeout(fd)?,
            syn_count: syn_sent.then(|| sockopt::syn_count(fd)).transpose()?,
        };
        let held = timers.set_out_of_reach(fd, info, reuse_addr);
        if held.is_err() {
            let _ = timers.set(fd);
        }
        held.map(|()| timers)
    }

    fn set_out_of_reach(&self, fd: BorrowedFd<'_>, info: &Info, reuse_addr: bool) -> Result<()> {
        if self.keep_alive {
            sockopt::set_keep_alive(fd, false)?;
        }
        if self.syn_count.is_some() {
            sockopt::set_syn_count(fd, MOST_SYNS)?;
        }
        let before = Before {
            keep_alive: self.keep_alive,
            reuse_addr,
            user_timeout: self.user_timeout,
        };
        sockopt::set_user_timeout(fd, OutOfReach::of(info).telling(before))
    }

    /// Those of a socket whose holder left it frozen, and its `SO_REUSEADDR`. `None` if it was not frozen by this.
    pub(crate) fn left(fd: BorrowedFd<'_>, info: &Info) -> Result<Option<(Self, bool)>> {
        let told = OutOfReach::of(info).told(sockopt::user_timeout(fd)?);
        Ok(told.map(|before| {
            let timers = Self {
                keep_alive: before.keep_alive,
                user_timeout: before.user_timeout,
                syn_count: None,
            };
            (timers, before.reuse_addr)
        }))
    }

    fn set(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let timeout = sockopt::set_user_timeout(fd, self.user_timeout);
        let count = self
            .syn_count
            .map_or(Ok(()), |count| sockopt::set_syn_count(fd, count));
        let keep_alive = if self.keep_alive {
            sockopt::set_keep_alive(fd, true)
        } else {
            Ok(())
        };
        timeout.and(count).and(keep_alive)
    }

    /// They are the application's again, in a connection that lives.
    ///
    /// What waited for an acknowledgement meanwhile has waited for longer than `TCP_USER_TIMEOUT` allows: the next
    /// retransmission timer would end the connection. So the peer, which was asked just now, is listened for first.
    pub(crate) fn put_back(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let begin = Instant::now();
        while self.user_timeout != 0
            && begin.elapsed() < HEARD
            && counters(fd).is_ok_and(|counters| counters.retransmits > 0)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.set(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_tells_what_there_was() {
        for reach in [IN_MILLISECONDS, IN_MICROSECONDS] {
            for bits in 0..4 {
                for user_timeout in [0, 1, 30_000, 599_999, 600_000, u32::MAX] {
                    let before = Before {
                        keep_alive: bits & 1 != 0,
                        reuse_addr: bits & 2 != 0,
                        user_timeout,
                    };
                    let timeout = reach.telling(before);
                    assert!(timeout >= reach.from && timeout <= i32::MAX as u32);
                    let told = reach.told(timeout).unwrap();
                    let user_timeout = user_timeout.min(reach.most >> 2);
                    assert_eq!(
                        told,
                        Before {
                            user_timeout,
                            ..before
                        }
                    );
                }
            }
            assert_eq!(reach.told(0), None);
            assert_eq!(reach.told(reach.from - 1), None);
            assert_eq!(reach.told(reach.from + reach.most + 1), None);
        }
        // A socket of microseconds overflows beyond this.
        let most = IN_MICROSECONDS.from + IN_MICROSECONDS.most;
        assert!(u64::from(most) * 1000 <= u64::from(u32::MAX));
    }
}
