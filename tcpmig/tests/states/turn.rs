//! Only two tests of this program at once, however many threads they have.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// They count every packet, and some have timers: with more of them than processors one sees what is late and not what is wrong.
static FREE: Mutex<u32> = Mutex::new(2);
static FREED: Condvar = Condvar::new();

/// The turn of one test. It ends when this is dropped, also by a test that fails.
pub(crate) struct Turn(());

fn free() -> MutexGuard<'static, u32> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turn {
    /// Waits for it.
    pub(crate) fn take() -> Self {
        let mut free = FREED
            .wait_while(free(), |free| *free == 0)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *free() += 1;
        FREED.notify_one();
    }
}
