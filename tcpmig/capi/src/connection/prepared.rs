//! Taking a connection in.

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::options::Unsupported;
use tcpmig::restore::{Activated, Prepared};
use tcpmig_format::SecretBytes;
use tcpmig_lock::{LockGuard, Locker};

use super::image::ImageHandle;
use super::locker::{LockerHandle, lease};
use crate::border::{Code, Done, Failure, answer, enter, settle_many, without_signals};
use crate::sized::{self, given};

/// `TCPMIG_LENIENT`.
pub const LENIENT: u32 = 1;

/// `struct tcpmig_prepared`.
pub struct PreparedHandle {
    what: What,
    locker: Arc<dyn Locker>,
    lease: Duration,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the handle around it is in a box of its own"
)]
enum What {
    Prepared(Prepared),
    /// It is gone from here, and its packets may still come.
    Gone(Option<LockGuard>),
}

/// `struct tcpmig_restored`.
#[derive(Debug)]
pub struct RestoredHandle {
    unwritten: SecretBytes,
    warnings: Vec<CString>,
}

fn policy(flags: u32) -> Done<Unsupported> {
    match flags {
        0 => Ok(Unsupported::Refuse),
        LENIENT => Ok(Unsupported::Warn),
        _ => Err(Failure::invalid("flags has a bit that does not exist")),
    }
}

fn build(
    image: &ImageHandle,
    lock: LockGuard,
    (locker, lease, policy): (&LockerHandle, Duration, Unsupported),
) -> Done<Box<PreparedHandle>> {
    let built = Prepared::build_locked(image.image.clone(), lock, lease, policy);
    let prepared = built.map_err(|not| not.error)?;
    Ok(Box::new(PreparedHandle {
        what: What::Prepared(prepared),
        locker: Arc::clone(&locker.locker),
        lease,
    }))
}

exported! {
    /// `tcpmig_prepare`.
    fn tcpmig_prepare(
        image: Option<&ImageHandle>,
        locker: Option<&LockerHandle>,
        lease_ms: u32,
        flags: u32,
        prepared: Option<&mut MaybeUninit<Option<Box<PreparedHandle>>>>,
    ) -> c_int {
        enter(|| {
            let (image, locker) = (given(image, "image")?, given(locker, "locker")?);
            let prepared = given(prepared, "prepared")?;
            let (policy, lease) = (policy(flags)?, lease(lease_ms));
            let handle = locker.quietly(|| {
                let lock = locker.locker.lock(&[image.flow()], lease)?;
                build(image, lock, (locker, lease, policy))
            })?;
            prepared.write(Some(handle));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_prepare_many`.
    fn tcpmig_prepare_many(
        images: *const Option<&ImageHandle>,
        count: usize,
        locker: Option<&LockerHandle>,
        lease_ms: u32,
        flags: u32,
        prepared: *mut Option<Box<PreparedHandle>>,
        codes: *mut c_int,
    ) -> c_int {
        enter(|| {
            let locker = given(locker, "locker")?;
            let (policy, lease) = (policy(flags)?, lease(lease_ms));
            // SAFETY: the arrays have so many elements.
            let images = unsafe { sized::slice(images, count, "images") }?;
            // SAFETY: the same.
            let prepared = unsafe { sized::slice_mut(prepared, count, "prepared") }?;
            // SAFETY: the same.
            let codes = unsafe { sized::slice_mut(codes, count, "codes") }?;
            let there = |image: &Option<&_>| image.is_some();
            if !images.iter().all(there) {
                return Err(Failure::invalid("images has a NULL in it"));
            }
            let flows: Vec<_> = images.iter().flatten().map(|image| image.flow()).collect();
            let results = locker.quietly(|| {
                let locks = LockGuard::lock_each(&*locker.locker, &flows, lease);
                let each = |(image, lock): (&&ImageHandle, Result<LockGuard, _>)| {
                    build(image, lock?, (locker, lease, policy))
                };
                images.iter().flatten().zip(locks).map(each).collect()
            });
            settle_many(results, |index, code, handle| {
                prepared[index].write(handle);
                codes[index].write(code as c_int);
            })
        })
    }
}

exported! {
    /// `tcpmig_prepared_renew`.
    fn tcpmig_prepared_renew(prepared: Option<&mut PreparedHandle>) -> c_int {
        enter(|| {
            let prepared = given(prepared, "prepared")?;
            match &mut prepared.what {
                What::Prepared(held) => without_signals(|| held.renew(&*prepared.locker))?,
                What::Gone(Some(lock)) => lock.renew(prepared.lease)?,
                What::Gone(None) => {}
            }
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_activate`.
    fn tcpmig_activate(
        prepared: Option<&mut Option<Box<PreparedHandle>>>,
        fd: Option<&mut MaybeUninit<c_int>>,
        restored: Option<&mut MaybeUninit<Option<Box<RestoredHandle>>>>,
    ) -> c_int {
        enter(|| {
            let prepared = given(prepared, "prepared")?;
            let (fd, restored) = (given(fd, "fd")?, given(restored, "restored")?);
            let held = given(prepared.as_mut(), "*prepared")?;
            let gone = What::Gone(None);
            let alive = match std::mem::replace(&mut held.what, gone) {
                What::Prepared(what) => what.activate_with([]),
                What::Gone(lock) => {
                    held.what = What::Gone(lock);
                    return Err(Failure::invalid("the connection is gone: it was activated, in vain"));
                }
            };
            let alive = match alive {
                Ok(alive) => alive,
                Err(not) => {
                    held.what = What::Gone(not.lock);
                    let mut failure = Failure::from(not.error);
                    if not.moved_on {
                        failure.code = Code::MovedOn;
                    }
                    return Err(failure);
                }
            };
            *prepared = None;
            let (socket, handle) = living(alive);
            fd.write(socket);
            restored.write(Some(Box::new(handle)));
            Ok(())
        })
    }
}

/// The descriptor, which is the caller's from now on, and what is left to do.
fn living(activated: Activated) -> (c_int, RestoredHandle) {
    let alive = activated.write();
    // Names of options, values and messages have no NUL; one that had would be left out.
    let warnings = alive.not_set.iter();
    let warnings = warnings.filter_map(|not| CString::new(not.to_string()).ok());
    let handle = RestoredHandle {
        warnings: warnings.collect(),
        unwritten: alive.unwritten,
    };
    (alive.socket.into_raw_fd(), handle)
}

exported! {
    /// `tcpmig_prepared_free`.
    fn tcpmig_prepared_free(prepared: Option<&mut Option<Box<PreparedHandle>>>) {
        answer((), || drop(prepared.and_then(Option::take)));
    }
}

exported! {
    /// `tcpmig_restored_unwritten`.
    fn tcpmig_restored_unwritten(
        restored: Option<&RestoredHandle>,
        bytes: Option<&mut MaybeUninit<*const c_void>>,
        length: Option<&mut MaybeUninit<usize>>,
    ) -> c_int {
        enter(|| {
            let restored = given(restored, "restored")?;
            let (bytes, length) = (given(bytes, "bytes")?, given(length, "length")?);
            bytes.write(restored.unwritten.as_ptr().cast());
            length.write(restored.unwritten.len());
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_restored_warning`.
    fn tcpmig_restored_warning(restored: Option<&RestoredHandle>, index: usize) -> *const c_char {
        answer(ptr::null(), || {
            let warning = restored.and_then(|restored| restored.warnings.get(index));
            warning.map_or(ptr::null(), |warning| warning.as_ptr())
        })
    }
}

exported! {
    /// `tcpmig_restored_free`.
    fn tcpmig_restored_free(restored: Option<&mut Option<Box<RestoredHandle>>>) {
        answer((), || drop(restored.and_then(Option::take)));
    }
}
