//! Lockers.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::restore::INJECT_MARK;
use tcpmig_lock::{Backend, Locker};

use super::own_lock::{LockOperations, OwnLock};
use crate::border::{answer, enter, without_signals};
use crate::sized::{self, given};

/// `struct tcpmig_locker`.
pub struct LockerHandle {
    pub(crate) locker: Arc<dyn Locker>,
    starts_threads: bool,
}

impl LockerHandle {
    /// Does what this locker is asked for, and keeps signals from threads that it starts for it.
    pub(crate) fn quietly<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.starts_threads {
            without_signals(work)
        } else {
            work()
        }
    }
}

/// How much may wait in the kernel of what arrives for locked connections, in bytes.
const CAPTURED: usize = 8 << 20;

/// As C counts a lease. What is longer than 49 days is cut to that.
pub(crate) fn milliseconds(lease: Duration) -> u32 {
    u32::try_from(lease.as_millis()).unwrap_or(u32::MAX)
}

pub(crate) fn lease(milliseconds: u32) -> Duration {
    Duration::from_millis(milliseconds.into())
}

exported! {
    /// `tcpmig_locker_open`.
    fn tcpmig_locker_open(
        name: *const c_char,
        locker: Option<&mut MaybeUninit<Option<Box<LockerHandle>>>>,
    ) -> c_int {
        enter(|| {
            let locker = given(locker, "locker")?;
            // SAFETY: a string, as the header says.
            let backend: Backend = unsafe { sized::text(name, "name") }?.parse()?;
            let opened = without_signals(|| backend.open_capturing(INJECT_MARK, CAPTURED))?;
            locker.write(Some(Box::new(LockerHandle {
                locker: opened.into(),
                starts_threads: !matches!(backend, Backend::None),
            })));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_locker_custom`.
    fn tcpmig_locker_custom(
        operations: *const LockOperations,
        context: *mut c_void,
        locker: Option<&mut MaybeUninit<Option<Box<LockerHandle>>>>,
    ) -> c_int {
        enter(|| {
            let locker = given(locker, "locker")?;
            // SAFETY: it is as long as it says.
            let operations = unsafe { sized::read(operations, "operations") }?;
            let own = OwnLock::new(operations, context)?;
            locker.write(Some(Box::new(LockerHandle {
                locker: Arc::new(own),
                starts_threads: false,
            })));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_locker_free`.
    fn tcpmig_locker_free(locker: Option<&mut Option<Box<LockerHandle>>>) {
        answer((), || drop(locker.and_then(Option::take)));
    }
}
