//! Servers without privileges, and agents that move their connections.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../http/app.rs"]
mod app;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../http/chat.rs"]
mod chat;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../command/support.rs"]
mod command;
mod drained;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../fleet/mod.rs"]
mod fleet;
mod hosts;
mod http;
mod killed;
mod misbehaving;
#[path = "../support/numbered.rs"]
mod numbered;
mod python;
mod rust;
mod traffic;
mod unmodified;
mod verbs;

/// What all of them use.
mod support {
    pub(crate) use crate::command::*;
    pub(crate) use crate::numbered::numbered;
    pub(crate) use tcpmig_sys::lab::PATIENCE;
}

/// The application has none here but its own.
fn more_routes() -> axum::Router {
    axum::Router::new()
}
