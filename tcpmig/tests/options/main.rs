//! Options and addresses of connections that move between two hosts, on the real kernel.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod carried;
mod extremes;
mod flow_labels;
mod newer;
mod policy;
mod ports;
mod remains;
mod routing;
mod scene;
mod table;
