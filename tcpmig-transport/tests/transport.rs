//! Two hosts on the loopback: frames, who may connect, and what happens when one goes away.

#[path = "transport/authentication.rs"]
mod authentication;
#[path = "transport/flood.rs"]
mod flood;
#[path = "transport/flooded.rs"]
mod flooded;
#[path = "transport/frames.rs"]
mod frames;
#[path = "transport/hostile.rs"]
mod hostile;
#[path = "transport/keys.rs"]
mod keys;
#[path = "transport/lifetime.rs"]
mod lifetime;
#[path = "transport/reload.rs"]
mod reload;
#[path = "transport/setup.rs"]
mod setup;
#[path = "transport/support.rs"]
mod support;
