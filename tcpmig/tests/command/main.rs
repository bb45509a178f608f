//! The command as a person uses it: real processes, real peers, real namespaces.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod demo;
mod dump_restore;
mod options;
mod support;
mod wrong_input;
