//! The thread that waits for what others do to the tables.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::monitor::Monitor;
use super::shared::Shared;

/// Starts the thread that looks whenever something happens, until the handle and its guards are gone.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<()> {
    let monitor = Arc::clone(&shared.monitor);
    let shared = Arc::downgrade(shared);
    std::thread::Builder::new()
        .name("tcpmig-watch".to_owned())
        .spawn(move || watch(&monitor, &shared))
        .map(drop)
}

fn watch(monitor: &Monitor, shared: &Weak<Shared>) {
    let mut next = Some(Instant::now());
    loop {
        monitor.wait(next.map(|next| next.saturating_duration_since(Instant::now())));
        // When the last other one that had it lets it go, it is woken up.
        let Some(shared) = shared.upgrade() else {
            return;
        };
        next = shared.look();
    }
}
