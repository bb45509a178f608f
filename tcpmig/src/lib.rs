//! Moves live TCP connections, and the sessions on them, between hosts.
#![forbid(unsafe_code)]

pub mod handover;
