//! Connections handed over between two hosts, on the real kernel, with a peer that knows nothing of it.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod batch;
mod captured;
mod doubt;
mod journal;
mod limits;
mod lost;
mod moves;
mod refused;
mod serving;
mod unmovable;
mod unprivileged;
mod vanishing;
