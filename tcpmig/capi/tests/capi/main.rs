//! The library as programs in C, C++ and Python see it: installed into a folder, compiled against, run on the real kernel.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod abi;
mod agents;
mod built;
mod moved;
mod nginx;
mod pages;
mod programs;
mod scripts;
mod signatures;
mod upgrades;
