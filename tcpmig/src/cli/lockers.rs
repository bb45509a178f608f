//! Lockers by name.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use tcpmig::locker;
use tcpmig_lock::{LockError, Locker, NoLock};

/// How packets are kept away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LockerName {
    /// The kernel's packet filter
    Nftables,
    /// Not at all: you keep them away yourself
    None,
}

impl LockerName {
    /// The locker, in the network namespace of the calling thread.
    pub(crate) fn open(self) -> Result<Box<dyn Locker>, LockError> {
        Ok(match self {
            Self::Nftables => Box::new(locker::nftables()?),
            Self::None => Box::new(NoLock),
        })
    }
}

impl fmt::Display for LockerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::None => "none",
        })
    }
}

/// Seconds on the command line.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text
        .parse()
        .map_err(|_| "give whole seconds, 1 or more".to_owned())?;
    if seconds == 0 {
        return Err("a lease of 0 seconds locks nothing".to_owned());
    }
    Ok(Duration::from_secs(seconds.into()))
}
