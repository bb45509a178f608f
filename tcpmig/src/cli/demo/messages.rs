//! What the demo and its web servers say to each other: a line of JSON each.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tcpmig::driver::Report;

use super::lock::Lock;
use super::tls::Web;

/// The first line that a server reads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The server's name, which its certificate carries.
    pub(crate) name: String,
    /// Where it serves HTTP.
    pub(crate) service: SocketAddr,
    /// Where it takes connections from the other server.
    pub(crate) own: SocketAddr,
    /// The other server.
    pub(crate) other: SocketAddr,
    /// Where its host is on the switch: the packets of what moved are sent there.
    pub(crate) hop: IpAddr,
    /// How packets are kept away.
    pub(crate) lock: Lock,
    /// The namespace of the switch, and the port of it that this host is plugged into.
    pub(crate) switch: String,
    pub(crate) port: String,
    /// The other server's name.
    pub(crate) other_name: String,
    /// Its certificate, its key and the authority, as PEM.
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) authority: String,
    /// How it speaks TLS, if it does.
    pub(crate) web: Option<Web>,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// How long a connection may go on before it is frozen until little of it has to be carried.
    pub(crate) settle_ms: u64,
    /// Where in the body to move the connection.
    pub(crate) move_at: Vec<u64>,
}

/// What a server tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// It listens.
    Ready,
    /// A connection moved to the other server.
    Moved {
        /// Bytes of the body that were written so far.
        position: u64,
        /// What it cost.
        report: Report,
        /// When this was known, in microseconds of the clock since 1970.
        at_us: u64,
    },
    /// A connection was not moved and goes on here.
    Kept { position: u64, reason: String },
    /// A connection of which nobody can say where it lives.
    InDoubt { position: u64 },
}
