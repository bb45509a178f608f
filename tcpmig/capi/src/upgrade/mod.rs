//! Upgrade in place.

mod handle;

pub use handle::{
    UpgradeHandle, tcpmig_upgrade_begin, tcpmig_upgrade_fd, tcpmig_upgrade_finish,
    tcpmig_upgrade_free, tcpmig_upgrade_give, tcpmig_upgrade_layer, tcpmig_upgrade_listener,
    tcpmig_upgrade_next_event, tcpmig_upgrade_pass, tcpmig_upgrade_ready, tcpmig_upgrade_refuse,
    tcpmig_upgrade_take,
};
