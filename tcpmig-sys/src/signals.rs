//! Signals held back while something must not be left half-done.

use std::marker::PhantomData;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::error::{Error, Result};

/// The signals that end a program from outside are held back on this thread; dropping lets them
/// through.
#[derive(Debug)]
#[must_use = "dropping lets the signals through"]
pub struct HeldBack {
    before: SigSet,
    // A mask belongs to a thread.
    _same_thread: PhantomData<*const ()>,
}

/// `pthread_sigmask`: holds SIGINT, SIGTERM, SIGHUP and SIGQUIT back on the calling thread, so that a
/// connection is not left frozen by a key press. In a program with several threads, hold them back
/// before the others are started.
///
/// # Errors
///
/// [`Error::Call`].
pub fn hold_back() -> Result<HeldBack> {
    let signals: SigSet = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]
    .into_iter()
    .collect();
    let before = signals
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(|e| Error::new("pthread_sigmask", e.into()))?;
    Ok(HeldBack {
        before,
        _same_thread: PhantomData,
    })
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // A mask that the kernel gave is one that it takes.
        let _ = self.before.thread_set_mask();
    }
}
