//! Processes that have a connection: who they are, their descriptors, and what they do meanwhile.

pub mod descriptors;
pub mod exec;
pub mod following;
pub mod owners;
pub mod packets;
pub mod passing;
pub mod pause;
pub mod signals;
pub mod take;
pub mod users;

/// `clock_gettime(CLOCK_MONOTONIC)`: the time since some moment, which is the same one for all processes until the next boot.
#[must_use]
pub fn monotonic() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // INVARIANT: it begins at 0, and has less than a second of nanoseconds.
    std::time::Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
