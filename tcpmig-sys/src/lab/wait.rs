//! Waiting in tests: for what has to happen, and with times as long as the machine is slow.

use std::time::{Duration, Instant};

/// How long anything may take that has to happen: longer than on any machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until a condition gives something.
///
/// # Panics
///
/// If it does not within [`PATIENCE`].
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    // What takes longer is looked for less often, so that the processors are left to those who make it happen.
    let pauses = [200; 20].into_iter().chain(std::iter::repeat(2000));
    for pause in pauses.map(Duration::from_micros) {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "did not happen: {what}");
        std::thread::sleep(pause);
    }
    unreachable!("the pauses have no end")
}

/// Waits until a condition holds.
///
/// # Panics
///
/// If it does not within [`PATIENCE`].
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}

/// A time of a test on a machine as slow as this one: as many times as long as the variable `TCPMIG_TEST_SLOWNESS` says.
///
/// For what has to end in a test (a lease, an answer that does not come), so that what comes before it is done by then. What
/// only has to happen some time has a deadline that is long for every machine.
#[must_use]
pub fn slowed(time: Duration) -> Duration {
    let slowness = std::env::var("TCPMIG_TEST_SLOWNESS").ok();
    time * slowness
        .and_then(|slowness| slowness.parse().ok())
        .unwrap_or(1)
}

/// Bytes that differ from place to place, others for each seed.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| byte()).collect()
}
