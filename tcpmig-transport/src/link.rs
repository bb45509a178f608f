//! One connection, as its peer and all exchanges on it know it.

use std::net::SocketAddr;

use quinn::Connection;
use rustls::pki_types::CertificateDer;

use crate::limits::Role;

/// A connection whose other side has proved who it is. It stays open as long as one of these is there.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// By which the other side was authorised.
    pub(crate) name: String,
    /// An IPv4 address is never shown as IPv6.
    pub(crate) address: SocketAddr,
    /// What this side is.
    pub(crate) role: Role,
}

impl Link {
    pub(crate) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// The certificates that the other side has proved itself with, its own first.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        chain(&self.connection)
    }
}

pub(crate) fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast().ok())
        .map_or_else(Vec::new, |chain| *chain)
}
