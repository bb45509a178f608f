//! The structs of this group.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

use libc::iovec;

use crate::flow::Flow;
use crate::layer::LayerStruct;
use crate::sized::Sized_;

/// `struct tcpmig_session`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct SessionStruct {
    pub size: usize,
    pub layers: *const LayerStruct,
    pub layer_count: usize,
    pub unprocessed: *const iovec,
    pub unprocessed_count: usize,
    pub unsent: *const iovec,
    pub unsent_count: usize,
}

// SAFETY: numbers and pointers only, and the size is the first.
unsafe impl Sized_ for SessionStruct {
    const OLDEST: usize = offset_of!(Self, unsent_count) + size_of::<usize>();
}

/// `enum tcpmig_event_kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the header says what each means")]
#[repr(u32)]
pub enum EventKind {
    None = 0,
    Drain = 1,
    Wanted = 2,
    Offer = 3,
    Withdrawn = 4,
    Arrived = 5,
    Moved = 6,
    Kept = 7,
    Lost = 8,
    Doubt = 9,
    Successor = 10,
    SuccessorGone = 11,
    Complete = 12,
}

impl EventKind {
    /// All of them, with their names in C.
    pub const NAMES: [(Self, &'static str); 13] = [
        (Self::None, "TCPMIG_EVENT_NONE"),
        (Self::Drain, "TCPMIG_EVENT_DRAIN"),
        (Self::Wanted, "TCPMIG_EVENT_WANTED"),
        (Self::Offer, "TCPMIG_EVENT_OFFER"),
        (Self::Withdrawn, "TCPMIG_EVENT_WITHDRAWN"),
        (Self::Arrived, "TCPMIG_EVENT_ARRIVED"),
        (Self::Moved, "TCPMIG_EVENT_MOVED"),
        (Self::Kept, "TCPMIG_EVENT_KEPT"),
        (Self::Lost, "TCPMIG_EVENT_LOST"),
        (Self::Doubt, "TCPMIG_EVENT_DOUBT"),
        (Self::Successor, "TCPMIG_EVENT_SUCCESSOR"),
        (Self::SuccessorGone, "TCPMIG_EVENT_SUCCESSOR_GONE"),
        (Self::Complete, "TCPMIG_EVENT_COMPLETE"),
    ];
}

/// `struct tcpmig_event`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct EventStruct {
    pub size: usize,
    pub id: u64,
    pub kind: u32,
    pub fd: i32,
    pub flow: Flow,
    pub service: *const c_char,
    pub host: *const c_char,
    pub hosts: *const *const c_char,
    pub host_count: usize,
    pub code: *const c_char,
    pub reason: *const c_char,
    pub layer_count: usize,
    pub unwritten: *const c_void,
    pub unwritten_length: usize,
    pub unprocessed: *const c_void,
    pub unprocessed_length: usize,
}

// SAFETY: numbers and pointers only, and the size is the first.
unsafe impl Sized_ for EventStruct {
    const OLDEST: usize = offset_of!(Self, unprocessed_length) + size_of::<usize>();
}
