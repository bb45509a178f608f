//! Lockers on the command line.

use std::fmt::Write;
use std::time::Duration;

use tcpmig_lock::Backend;

/// The names that `--lock` takes, for its help.
pub(crate) fn help() -> String {
    let mut text = "How the packets are kept away:\n".to_owned();
    for (name, what) in Backend::help() {
        // A string takes everything.
        let _ = write!(text, "\n{name:<16} {what}");
    }
    text
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
