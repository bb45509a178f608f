//! Bodies of the fuzz targets, so that the targets are one line each and these are compiled and
//! linted with the crate.

#[cfg(feature = "criu")]
pub use crate::criu::fuzz::{Dump, criu};
pub use crate::handover::fuzz::{Story, handover};
#[cfg(feature = "http2")]
pub use crate::http2::fuzz::{Frames, http2};
pub use crate::segments::fuzz::{Capture, segments};
#[cfg(feature = "tls")]
pub use crate::tls::fuzz::{Import, tls};

/// Runs something and returns the bytes that it had allocated at most at one time. Only who
/// installs the global allocator can tell.
pub type Peak = fn(&mut dyn FnMut()) -> u64;
