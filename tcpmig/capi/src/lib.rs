//! libtcpmig: live TCP connections move between hosts, for C and C++.
//!
//! What it exports is declared and documented in `include/tcpmig.h`; the Rust items here are its other side, and not for programs in
//! Rust, which use the crate `tcpmig`. `README.md` says how it is installed.
//!
//! Every function is a border: a panic ends there ([`border`]), an error becomes a code and a message, and a pointer is looked at
//! before it is followed.

#[macro_use]
mod border;
mod flow;
mod frozen;
mod image;
mod layer;
mod locker;
mod many;
mod own_lock;
mod prepared;
mod probe;
mod sized;

pub use border::{
    Code, tcpmig_code_name, tcpmig_last_errno, tcpmig_last_error, tcpmig_last_error_of,
    tcpmig_version,
};
pub use flow::{FLOW_TEXT, Flow, tcpmig_flow_text};
pub use frozen::{
    FrozenHandle, tcpmig_capture, tcpmig_discard, tcpmig_freeze, tcpmig_freeze_many,
    tcpmig_frozen_flow, tcpmig_frozen_renew, tcpmig_keep, tcpmig_redirect,
};
pub use image::{
    ImageHandle, tcpmig_image_bytes, tcpmig_image_decode, tcpmig_image_flow, tcpmig_image_free,
    tcpmig_image_layer, tcpmig_image_layers, tcpmig_image_read, tcpmig_image_write,
};
pub use layer::LayerStruct;
pub use locker::{LockerHandle, tcpmig_locker_custom, tcpmig_locker_free, tcpmig_locker_open};
pub use own_lock::{LOCK_EXEMPTS, LockOperations};
pub use prepared::{
    LENIENT, PreparedHandle, RestoredHandle, tcpmig_activate, tcpmig_prepare, tcpmig_prepare_many,
    tcpmig_prepared_free, tcpmig_prepared_renew, tcpmig_restored_free, tcpmig_restored_unwritten,
    tcpmig_restored_warning,
};
pub use probe::{Probe, tcpmig_probe};
pub use tcpmig::restore::INJECT_MARK;
