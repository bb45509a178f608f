//! What an agent tells of itself.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::wire::texts;

/// What an agent does and knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The name of its host, from its certificate.
    pub host: String,
    /// Its version.
    pub version: String,
    /// The hosts that it knows.
    pub hosts: Vec<String>,
    /// The services that are registered; only one's own unless the asking user is an admin.
    pub services: Vec<Registered>,
    /// How many connections it moves at the moment.
    pub moving: u64,
    /// How many of them are in doubt.
    pub doubts: u64,
}

/// A process that serves a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Registered {
    /// The service.
    pub service: String,
    /// The process's user.
    pub user: u32,
    /// The process.
    pub process: u32,
    /// On which addresses it serves.
    #[serde(with = "texts")]
    pub addresses: Vec<SocketAddr>,
    /// Whether it takes connections in.
    pub takes: bool,
}
