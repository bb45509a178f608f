//! How many descriptors a target leaves to its application.

use tcpmig_sys::process::descriptors;

use super::Options;
use crate::handover::{Code, Refusal};

/// The descriptors that stay free.
pub(super) struct Reserve {
    descriptors: u64,
    raise_limit: bool,
}

impl Reserve {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            descriptors: options.reserved_descriptors,
            raise_limit: options.raise_descriptors,
        }
    }

    /// Leaves the application the descriptors that it needs to go on: at the limit its own `accept` would fail, with
    /// EMFILE, for connections that arrive from here. Raises the limit first if the process may.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let failed = |error: tcpmig_sys::Error| Refusal::other(format!("descriptors: {error}"));
        let (mut limit, hard) = descriptors::limit().map_err(failed)?;
        // A process with a low limit does not need so many itself.
        let reserved = |limit: u64| self.descriptors.min(limit / 4);
        let mut room = descriptors::room().map_err(failed)?;
        if room <= reserved(limit) && limit < hard && self.raise_limit {
            descriptors::raise_limit().map_err(failed)?;
            tracing::info!("RLIMIT_NOFILE was raised from {limit} to {hard}: {room} were left");
            (limit, room) = (hard, descriptors::room().map_err(failed)?);
        }
        if room <= reserved(limit) {
            let full = format!(
                "full: {room} descriptors are left of {limit} (RLIMIT_NOFILE), and the application keeps {}",
                reserved(limit)
            );
            return Err(Refusal::new(Code::Full, full));
        }
        Ok(())
    }
}
