//! A locker whose functions are the caller's.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{offset_of, size_of};
use std::ptr;
use std::time::Duration;

use tcpmig_format::FourTuple;
use tcpmig_lock::{
    Entry, Features, LeaseEnd, LockBackend, LockError, LockGuard, Locker, NextHop, RedirectBackend,
    check_request,
};

use super::locker::milliseconds;
use crate::border::{Done, Failure};
use crate::flow::Flow;
use crate::sized::{Sized_, missing};

/// `TCPMIG_LOCK_EXEMPTS`.
pub const LOCK_EXEMPTS: u32 = 1;

type Lock = unsafe extern "C" fn(*mut c_void, *const Flow, usize, u32, *mut *mut c_void) -> c_int;
type Renew = unsafe extern "C" fn(*mut c_void, *mut c_void, u32) -> c_int;
type Unlock = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Leave = unsafe extern "C" fn(*mut c_void, *mut c_void);

/// `struct tcpmig_lock_operations`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct LockOperations {
    pub size: usize,
    pub flags: u32,
    pub lock: Option<Lock>,
    pub renew: Option<Renew>,
    pub unlock: Option<Unlock>,
    pub leave: Option<Leave>,
}

// SAFETY: numbers and functions, for which zero is none; the size is the first.
unsafe impl Sized_ for LockOperations {
    const OLDEST: usize = offset_of!(Self, leave) + size_of::<usize>();
}

/// All functions of a locker, and what they are called with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnLock {
    exempts: bool,
    lock: Lock,
    renew: Renew,
    unlock: Unlock,
    leave: Leave,
    context: *mut c_void,
}

// SAFETY: the context goes to the caller's functions only, on whichever thread the caller uses the handle.
unsafe impl Send for OwnLock {}
// SAFETY: nothing is done with it but what the caller's own threads ask for, and one handle is used by one at a time.
unsafe impl Sync for OwnLock {}

impl OwnLock {
    pub(crate) fn new(operations: LockOperations, context: *mut c_void) -> Done<Self> {
        if operations.flags & !LOCK_EXEMPTS != 0 {
            return Err(Failure::invalid("operations has flags that do not exist"));
        }
        let missing = |name: &str| missing(&format!("operations.{name}"));
        Ok(Self {
            exempts: operations.flags & LOCK_EXEMPTS != 0,
            lock: operations.lock.ok_or_else(|| missing("lock"))?,
            renew: operations.renew.ok_or_else(|| missing("renew"))?,
            unlock: operations.unlock.ok_or_else(|| missing("unlock"))?,
            leave: operations.leave.ok_or_else(|| missing("leave"))?,
            context,
        })
    }
}

const NAME: &str = "caller's own";

fn refused(call: &'static str, errno: c_int) -> LockError {
    LockError::Netlink {
        call,
        source: io::Error::from_raw_os_error(errno),
    }
}

impl Locker for OwnLock {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        let mut features = Features::default();
        features.lease = LeaseEnd::Sweep;
        features.exempts = self.exempts;
        features
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        check_request(flows, lease)?;
        let given: Vec<Flow> = flows.iter().copied().map(Flow::from).collect();
        let mut lock = ptr::null_mut();
        // SAFETY: the function of the caller, with what the header says.
        let errno = unsafe {
            (self.lock)(
                self.context,
                given.as_ptr(),
                given.len(),
                milliseconds(lease),
                &raw mut lock,
            )
        };
        match (errno, flows.first()) {
            (0, _) => {
                let held = Held {
                    own: *self,
                    lock: Some(lock),
                };
                Ok(LockGuard::new(flows.to_vec(), Box::new(held)))
            }
            (libc::EBUSY, Some(flow)) => Err(LockError::AlreadyLocked(*flow)),
            (errno, _) => Err(refused("lock of the caller", errno)),
        }
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        Ok(Vec::new())
    }
}

/// A lock of the caller's; `None` once it was ended.
struct Held {
    own: OwnLock,
    lock: Option<*mut c_void>,
}

// SAFETY: as for [`OwnLock`].
unsafe impl Send for Held {}
// SAFETY: as for [`OwnLock`].
unsafe impl Sync for Held {}

impl LockBackend for Held {
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        let (Some(lock), Some(flow)) = (self.lock, flows.first()) else {
            return Ok(());
        };
        // SAFETY: the function of the caller, with a lock that it made and that was not ended.
        match unsafe { (self.own.renew)(self.own.context, lock, milliseconds(lease)) } {
            0 => Ok(()),
            libc::ENOENT => Err(LockError::NotHeld(*flow)),
            errno => Err(refused("renew of the caller", errno)),
        }
    }

    fn unlock(&mut self, _flows: &[FourTuple]) -> Result<(), LockError> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        // SAFETY: the function of the caller, with a lock that it made, for the last time.
        match unsafe { (self.own.unlock)(self.own.context, lock) } {
            0 => Ok(()),
            errno => Err(refused("unlock of the caller", errno)),
        }
    }

    fn redirect(
        &mut self,
        _flows: &[FourTuple],
        _hop: &NextHop,
        _lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        Err(LockError::Unsupported {
            locker: NAME,
            operation: "redirect",
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            // SAFETY: the function of the caller, with a lock that it made, for the last time.
            unsafe { (self.own.leave)(self.own.context, lock) };
        }
    }
}
