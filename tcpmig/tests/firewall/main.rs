//! Connections on hosts whose packet filter tracks them, moved between two hosts on the real kernel.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod strict;
mod translated;
