//! The command as a person uses it: real processes, real peers, real namespaces.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod bad_images;
mod demo;
mod dump_restore;
mod listeners;
mod locks;
mod options;
mod support;
mod wrong_input;
