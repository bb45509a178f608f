//! Whether a connection can be moved.

use std::ffi::c_int;
use std::mem::{offset_of, size_of};

use tcpmig::capture::Plan;
use tcpmig_sys::{info, sockopt};

use crate::border::enter;
use crate::flow::Flow;
use crate::sized::{self, Sized_, number};

/// `struct tcpmig_probe`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct Probe {
    pub size: usize,
    pub flow: Flow,
    pub state: u32,
    pub unread: u32,
    pub unacked: u32,
    pub unsent: u32,
}

// SAFETY: numbers only, and the size is the first.
unsafe impl Sized_ for Probe {
    const OLDEST: usize = offset_of!(Self, unsent) + size_of::<u32>();
}

exported! {
    /// `tcpmig_probe`.
    fn tcpmig_probe(fd: c_int, probe: *mut Probe) -> c_int {
        enter(|| {
            // SAFETY: the caller closes it after the call, if at all.
            let fd = unsafe { number(fd) }?;
            let plan = Plan::read(fd)?;
            if probe.is_null() {
                return Ok(());
            }
            let found = Probe {
                size: size_of::<Probe>(),
                flow: plan.flow().into(),
                state: info::tcp_info(fd)?.state as u32,
                // Neither is known of a connection that is being opened or has ended, which has none on their way.
                unread: sockopt::receive_queue_len(fd).unwrap_or(0),
                unacked: sockopt::send_queue_len(fd).unwrap_or(0),
                unsent: sockopt::unsent_len(fd).unwrap_or(0),
            };
            // SAFETY: it is as long as it says.
            unsafe { sized::write(probe, &found, "probe") }
        })
    }
}
