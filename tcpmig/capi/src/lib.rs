//! libtcpmig: live TCP connections move between hosts, for C and C++.
//!
//! What it exports is declared and documented in `include/tcpmig.h`; the Rust items here are its other side, and not for programs in
//! Rust, which use the crate `tcpmig`. `README.md` says how it is installed.
//!
//! Every function is a border: a panic ends there, an error becomes a code and a message, and a pointer is looked at
//! before it is followed.

#![cfg_attr(
    not(all(feature = "agent", feature = "connection", feature = "upgrade")),
    allow(dead_code, reason = "each group uses its part of what they share")
)]

#[macro_use]
mod border;
#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "connection")]
mod connection;
mod flow;
mod layer;
#[cfg(any(feature = "agent", feature = "upgrade"))]
mod sessions;
mod sized;
#[cfg(feature = "upgrade")]
mod upgrade;

#[cfg(feature = "agent")]
pub use agent::*;
pub use border::{
    Code, tcpmig_code_name, tcpmig_last_errno, tcpmig_last_error, tcpmig_last_error_of,
    tcpmig_version,
};
#[cfg(feature = "connection")]
pub use connection::*;
pub use flow::{FLOW_TEXT, Flow, tcpmig_flow_of, tcpmig_flow_text};
pub use layer::LayerStruct;
#[cfg(any(feature = "agent", feature = "upgrade"))]
pub use sessions::*;
#[cfg(feature = "upgrade")]
pub use upgrade::*;
