//! What of the rules for redirects is set up.

use std::collections::{HashMap, HashSet};

use super::lease_class::Class;

/// What of the rules for redirects this handle has set up, as far as it knows.
#[derive(Default)]
pub(super) struct Frame {
    /// The chains that all devices share.
    pub(super) ready: bool,
    /// By their index. A device that was renamed keeps its chains; one that comes again with the name of one that went
    /// needs them anew: Linux 6.12 leaves the chain of a device that went as it is, without a hook.
    pub(super) hooked: HashMap<u32, String>,
    pub(super) classes: HashSet<Class>,
    /// Devices may have come or gone since.
    pub(super) stale: bool,
}

impl Frame {
    /// Somebody removed what was set up, or it has to be otherwise.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether this handle has redirected.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn has(&self, device: &str) -> bool {
        self.hooked.values().any(|name| name == device)
    }
}
