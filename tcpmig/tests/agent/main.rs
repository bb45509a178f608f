//! Servers without privileges, and agents that move their connections.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod drained;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../fleet/mod.rs"]
mod fleet;
mod hosts;
mod killed;
mod misbehaving;
mod python;
mod rust;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../command/support.rs"]
mod support;
mod traffic;
mod unmodified;
mod verbs;
