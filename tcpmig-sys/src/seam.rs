//! What every call on a connection's socket passes before it goes to the kernel: here tests let one of them fail, and
//! count them (`lab::calls`).

use crate::error::{Error, Result};

/// Announces a call. An error is one that the call has to give without having been made.
#[cfg(not(feature = "lab"))]
#[inline(always)]
pub(crate) fn announce(_call: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "lab")]
pub(crate) use crate::lab::calls::announce;

/// Like [`announce`], but for who gives errors of this crate.
#[inline(always)]
pub(crate) fn enter(call: &'static str) -> Result<()> {
    announce(call).map_err(|error| Error::new(call, error))
}
