//! HTTP sessions that move under clients that know nothing of it: curl, python3, wrk.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod app;
mod downloads;
mod keep_alive;
mod refused;
mod requests;
mod scene;
