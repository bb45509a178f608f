//! A service, as it is registered.

use std::ffi::c_char;
use std::mem::{offset_of, size_of};

use crate::sized::Sized_;

/// `TCPMIG_SERVICE_TAKES`.
pub const SERVICE_TAKES: u32 = 1;

/// `struct tcpmig_service`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct ServiceStruct {
    pub size: usize,
    pub name: *const c_char,
    pub addresses: *const *const c_char,
    pub address_count: usize,
    pub flags: u32,
}

// SAFETY: numbers and pointers only, and the size is the first.
unsafe impl Sized_ for ServiceStruct {
    const OLDEST: usize = offset_of!(Self, flags) + size_of::<u32>();
}
