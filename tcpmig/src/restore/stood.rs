//! How long a connection has stood still, for its timestamp clock.

use std::time::{Duration, Instant};

use tcpmig_sys::repair::Clock;

use crate::capture;

/// So far at most a clock is advanced, in its ticks. Half of the numbers are in the future of what the peer has seen
/// (RFC 7323 section 5); a clock that were set beyond would be in its past.
const MOST_TICKS: u32 = 1 << 30;

/// Since when a connection stands still.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stood {
    /// When it came here.
    since: Instant,
    /// For how long it had stood still by then.
    before: Duration,
}

impl Stood {
    /// Of an image that was taken at this time, in microseconds since 1970. The clocks of two hosts differ: one that says that it is
    /// still to come was taken just now.
    pub(super) fn since_taken(taken: Option<u64>) -> Self {
        let passed = taken
            .zip(capture::now())
            .and_then(|(taken, now)| now.checked_sub(taken));
        Self {
            since: Instant::now(),
            before: Duration::from_micros(passed.unwrap_or(0)),
        }
    }

    /// Of a connection that stands still since then at the earliest. What it went on for after that makes the first round trip seem longer
    /// than the path is, by so much; a shorter one would be taken for the path's for ten seconds.
    #[cfg(feature = "driver")]
    pub(super) fn since(since: Instant) -> Self {
        Self {
            since,
            before: Duration::ZERO,
        }
    }

    /// What the timestamp clock of the connection would show now, had it never stood still.
    ///
    /// The peer sends back what it was sent last, and this end takes the difference for a round trip. With a clock that had stood
    /// still, round trips would seem shorter than the path is by as long as that was.
    pub(super) fn advance(&self, clock: Clock) -> Clock {
        let stood = self.before + self.since.elapsed();
        let ticks = if clock.microseconds {
            stood.as_micros()
        } else {
            stood.as_millis()
        };
        let ticks = u32::try_from(ticks).unwrap_or(MOST_TICKS).min(MOST_TICKS);
        Clock {
            // It wraps.
            value: clock.value.wrapping_add(ticks),
            ..clock
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_advances_by_what_passed_and_never_into_the_past() {
        let now = capture::now().unwrap();
        let second = 1_000_000;
        for (taken, from, to) in [
            (Some(now - 2 * second), 2_000, 2_500),
            (Some(now + 3600 * second), 0, 500),
            (None, 0, 500),
            (Some(0), MOST_TICKS, MOST_TICKS),
        ] {
            for value in [0, 7, u32::MAX - 100] {
                let clock = Clock {
                    value,
                    microseconds: false,
                };
                let advanced = Stood::since_taken(taken).advance(clock);
                let ticks = advanced.value.wrapping_sub(value);
                assert!((from..=to).contains(&ticks), "{taken:?}: {ticks}");
                let clock = Clock {
                    value,
                    microseconds: true,
                };
                let advanced = Stood::since_taken(taken).advance(clock);
                let ticks = advanced.value.wrapping_sub(value);
                let most = (u64::from(to) * 1000).min(u64::from(MOST_TICKS));
                assert!(u64::from(ticks) <= most, "{taken:?}: {ticks}");
                assert!(advanced.microseconds);
            }
        }
    }
}
