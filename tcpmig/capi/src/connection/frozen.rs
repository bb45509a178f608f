//! Taking a connection off this host.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use tcpmig::capture::{Frozen, NotFrozen, Plan};
use tcpmig_lock::{LockGuard, NextHop};

use super::image::ImageHandle;
use super::locker::{LockerHandle, lease};
use crate::border::{Done, Failure, enter, settle_many, without_signals};
use crate::flow::Flow;
use crate::layer::{self, LayerStruct};
use crate::sized::{self, given, number};

/// `struct tcpmig_frozen`.
#[derive(Debug)]
pub struct FrozenHandle(Frozen);

/// The descriptor is the caller's again.
fn give_back(not: NotFrozen) -> Failure {
    let _ = not.fd.into_raw_fd();
    not.error.into()
}

/// Freezes a connection that is locked. The descriptor is the caller's again if that fails.
fn freeze(fd: c_int, plan: Plan, lock: LockGuard, lease: Duration) -> Done<Box<FrozenHandle>> {
    // SAFETY: it is open, and the caller gives it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let frozen = Frozen::freeze_locked(fd, plan, lock, lease).map_err(give_back)?;
    Ok(Box::new(FrozenHandle(frozen)))
}

fn plan(fd: c_int) -> Done<Plan> {
    // SAFETY: the caller closes it after the call, if at all.
    let fd = unsafe { number(fd) }?;
    Ok(Plan::read(fd)?)
}

fn freeze_many(
    fds: &[c_int],
    locker: &LockerHandle,
    lease: Duration,
) -> Vec<Done<Box<FrozenHandle>>> {
    let plans: Vec<Done<Plan>> = fds.iter().copied().map(plan).collect();
    let flows: Vec<_> = plans.iter().flatten().map(Plan::flow).collect();
    let mut locks = LockGuard::lock_each(&*locker.locker, &flows, lease).into_iter();
    let each = |(fd, plan): (&c_int, Done<Plan>)| {
        let plan = plan?;
        // INVARIANT: there is one for each plan.
        let lock = locks.next().expect("a lock for each plan")?;
        freeze(*fd, plan, lock, lease)
    };
    fds.iter().zip(plans).map(each).collect()
}

exported! {
    /// `tcpmig_freeze`.
    fn tcpmig_freeze(
        fd: c_int,
        locker: Option<&LockerHandle>,
        lease_ms: u32,
        frozen: Option<&mut MaybeUninit<Option<Box<FrozenHandle>>>>,
    ) -> c_int {
        enter(|| {
            let (locker, frozen) = (given(locker, "locker")?, given(frozen, "frozen")?);
            let (plan, lease) = (plan(fd)?, lease(lease_ms));
            let handle = locker.quietly(|| {
                let lock = locker.locker.lock(&[plan.flow()], lease)?;
                freeze(fd, plan, lock, lease)
            })?;
            frozen.write(Some(handle));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_freeze_many`.
    fn tcpmig_freeze_many(
        fds: *const c_int,
        count: usize,
        locker: Option<&LockerHandle>,
        lease_ms: u32,
        frozen: *mut Option<Box<FrozenHandle>>,
        codes: *mut c_int,
    ) -> c_int {
        enter(|| {
            let locker = given(locker, "locker")?;
            // SAFETY: the arrays have so many elements.
            let fds = unsafe { sized::slice(fds, count, "fds") }?;
            // SAFETY: the same.
            let frozen = unsafe { sized::slice_mut(frozen, count, "frozen") }?;
            // SAFETY: the same.
            let codes = unsafe { sized::slice_mut(codes, count, "codes") }?;
            let mut sorted = fds.to_vec();
            sorted.sort_unstable();
            if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(Failure::invalid("fds names a descriptor twice"));
            }
            let results = locker.quietly(|| freeze_many(fds, locker, lease(lease_ms)));
            settle_many(results, |index, code, handle| {
                frozen[index].write(handle);
                codes[index].write(code as c_int);
            })
        })
    }
}

exported! {
    /// `tcpmig_capture`.
    fn tcpmig_capture(
        frozen: Option<&mut FrozenHandle>,
        layers: *const LayerStruct,
        count: usize,
        image: Option<&mut MaybeUninit<Option<Box<ImageHandle>>>>,
    ) -> c_int {
        enter(|| {
            let (frozen, image) = (given(frozen, "frozen")?, given(image, "image")?);
            // SAFETY: so many layers, as the header says.
            let layers = unsafe { layer::read(layers, count) }?;
            let mut captured = frozen.0.capture(layers)?;
            frozen.0.merge_captured(&mut captured)?;
            image.write(Some(Box::new(ImageHandle::of(captured)?)));
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_redirect`.
    fn tcpmig_redirect(
        frozen: Option<&mut FrozenHandle>,
        target: *const c_char,
        lease_ms: u32,
    ) -> c_int {
        enter(|| {
            let frozen = given(frozen, "frozen")?;
            // SAFETY: a string, as the header says.
            let target = unsafe { sized::text(target, "target") }?;
            let no_address = |_| Failure::invalid(format_args!("{target:?} is not an address"));
            let target: IpAddr = target.parse().map_err(no_address)?;
            let hop = NextHop::toward(target, frozen.0.flow().remote().ip())?;
            without_signals(|| frozen.0.redirect(&hop, lease(lease_ms)))?;
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_frozen_renew`.
    fn tcpmig_frozen_renew(frozen: Option<&mut FrozenHandle>) -> c_int {
        enter(|| Ok(given(frozen, "frozen")?.0.renew()?))
    }
}

exported! {
    /// `tcpmig_keep`.
    fn tcpmig_keep(frozen: Option<&mut Option<Box<FrozenHandle>>>) -> c_int {
        enter(|| {
            let frozen = given(frozen, "frozen")?.take();
            let kept = given(frozen, "*frozen")?.0.keep();
            // The descriptor is the caller's again.
            let _ = kept.map_err(give_back)?.into_raw_fd();
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_discard`.
    fn tcpmig_discard(frozen: Option<&mut Option<Box<FrozenHandle>>>) -> c_int {
        enter(|| {
            let frozen = given(frozen, "frozen")?;
            given(frozen.as_ref(), "*frozen")?.0.check_unchanged()?;
            let frozen = given(frozen.take(), "*frozen")?;
            Ok(frozen.0.discard()?)
        })
    }
}

exported! {
    /// `tcpmig_frozen_flow`.
    fn tcpmig_frozen_flow(
        frozen: Option<&FrozenHandle>,
        flow: Option<&mut MaybeUninit<Flow>>,
    ) -> c_int {
        enter(|| {
            let frozen = given(frozen, "frozen")?;
            given(flow, "flow")?.write(frozen.0.flow().into());
            Ok(())
        })
    }
}
