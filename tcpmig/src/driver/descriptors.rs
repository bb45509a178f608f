//! How many descriptors a target leaves to its application.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tcpmig_sys::process::descriptors;

use super::Options;
use super::mutex::lock;
use crate::handover::{Code, Refusal};

/// The descriptors that stay free.
pub(super) struct Reserve {
    descriptors: u64,
    raise_limit: bool,
    /// How many connections may still be taken without looking, and when that was found.
    found: Mutex<Option<(Instant, u64)>>,
}

/// For so long that counts: an application may open others.
const COUNTS_FOR: Duration = Duration::from_millis(10);

impl Reserve {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            descriptors: options.reserved_descriptors,
            raise_limit: options.raise_descriptors,
            found: Mutex::default(),
        }
    }

    /// Leaves the application the descriptors that it needs to go on: at the limit its own `accept` would fail, with
    /// EMFILE, for connections that arrive from here. Raises the limit first if the process may.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let mut found = lock(&self.found);
        if let Some((when, left)) = &mut *found
            && *left > 0
            && when.elapsed() < COUNTS_FOR
        {
            *left -= 1;
            return Ok(());
        }
        let spare = self.look()?;
        // Far from the end, so that what others open meanwhile does not matter.
        *found = Some((Instant::now(), spare / 8));
        Ok(())
    }

    /// How many are left beside the reserve.
    fn look(&self) -> Result<u64, Refusal> {
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
        Ok(room - reserved(limit))
    }
}
