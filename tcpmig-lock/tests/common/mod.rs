//! Private networks for the tests.
#![allow(dead_code)] // Each test binary uses its own part.

pub(crate) mod capture;
pub(crate) mod isolate;
pub(crate) mod net;

use std::time::{Duration, Instant};

pub(crate) use isolate::isolated;

/// Waits until `condition` gives something, for at most ten seconds.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
