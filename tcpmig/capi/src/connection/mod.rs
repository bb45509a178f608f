//! One connection, or many: into an image and out of it.

mod frozen;
mod image;
mod locker;
mod own_lock;
mod prepared;
mod probe;

pub use frozen::{
    FrozenHandle, tcpmig_capture, tcpmig_discard, tcpmig_freeze, tcpmig_freeze_many,
    tcpmig_frozen_flow, tcpmig_frozen_renew, tcpmig_keep, tcpmig_redirect,
};
pub use image::{
    ImageHandle, tcpmig_image_bytes, tcpmig_image_decode, tcpmig_image_flow, tcpmig_image_free,
    tcpmig_image_layer, tcpmig_image_layers, tcpmig_image_read, tcpmig_image_write,
};
pub use locker::{LockerHandle, tcpmig_locker_custom, tcpmig_locker_free, tcpmig_locker_open};
pub use own_lock::{LOCK_EXEMPTS, LockOperations};
pub use prepared::{
    LENIENT, PreparedHandle, RestoredHandle, tcpmig_activate, tcpmig_prepare, tcpmig_prepare_many,
    tcpmig_prepared_free, tcpmig_prepared_renew, tcpmig_restored_free, tcpmig_restored_unwritten,
    tcpmig_restored_warning,
};
pub use probe::{Probe, tcpmig_probe};
pub use tcpmig::restore::INJECT_MARK;
