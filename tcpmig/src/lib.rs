//! Moves live TCP connections, and the sessions on them, between hosts.
#![forbid(unsafe_code)]

pub mod capture;
mod convert;
pub mod driver;
pub mod handover;
#[cfg(feature = "http")]
pub mod http;
pub mod restore;
pub mod segments;
pub mod steer;
