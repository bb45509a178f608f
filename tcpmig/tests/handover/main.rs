//! Connections handed over between two hosts, on the real kernel, with a peer that knows nothing of it.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod batch;
mod calls;
mod captured;
mod doubt;
mod ended;
mod hostile;
mod journal;
mod leases;
mod limits;
mod logging;
mod lost;
mod moves;
mod namespaces;
mod policy;
mod refused;
mod serving;
mod settled;
mod silence;
mod threads;
mod unmovable;
mod unprivileged;
mod vanishing;
