//! The command as a person uses it: real processes, real peers, real namespaces.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod bad_images;
mod bench;
mod criu;
mod demo;
mod devices;
mod disks;
mod dump_restore;
mod held;
mod killed;
mod killed_restore;
mod listeners;
mod locks;
mod options;
mod support;
mod translated;
mod unprinted;
mod way_back;
mod which;
mod wrong_input;
