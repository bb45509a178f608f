//! The connections of a proxy to its backends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tcpmig_format::{LayerReader, SecretBytes};
use tokio::net::TcpStream;

use super::rebuild::Terms;
use super::session::Session;
use super::{HANDSHAKE_WITHIN, Negotiated, TlsStream};
use crate::handover::Refusal;

/// The TLS sessions of a client: those of a proxy with its backends.
///
/// They are taken apart by [`Carrier::into_parts`](crate::session::Carrier::into_parts), as those of servers are, with a layer of the kind
/// [`CLIENT_KIND`](super::CLIENT_KIND), and [`TlsClient::resume`] makes one of that again. The backend notices nothing.
///
/// Tickets that the backend sends after a move are not kept: they belong to a secret that rustls does not give out.
#[derive(Debug, Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    handshake_within: Duration,
}

impl TlsClient {
    /// With this configuration, and 10 seconds for a handshake.
    pub fn new(config: impl Into<Arc<ClientConfig>>) -> Self {
        Self {
            config: config.into(),
            handshake_within: HANDSHAKE_WITHIN,
        }
    }

    /// How long a server may take for its handshake.
    #[must_use]
    pub fn handshake_within(mut self, within: Duration) -> Self {
        self.handshake_within = within;
        self
    }

    /// Makes a handshake with the server of this name, which the configuration verifies. Nothing is sent before its end.
    ///
    /// # Errors
    ///
    /// The socket's, or the handshake's; the connection is closed.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        server: ServerName<'static>,
    ) -> io::Result<TlsStream<ClientConnection>> {
        let session = Session::connect(&self.config, server).map_err(io::Error::other);
        super::begin(tcp, session, self.handshake_within).await
    }

    /// Whether [`TlsClient::resume`] can go on with the lowest of these layers, which this consumes, and what was negotiated.
    ///
    /// # Errors
    ///
    /// Why not, for the source.
    pub fn check(&self, layers: &mut LayerReader<'_>) -> Result<Negotiated, Refusal> {
        super::check::<ClientConnection>(layers, &Terms::from(&*self.config))
    }

    /// A session that moved here or was kept, from its layer, which this consumes. `unwritten` is what TCP did not take: it goes
    /// to the server before all else.
    ///
    /// # Errors
    ///
    /// Why it cannot go on here; the connection is closed. [`TlsClient::check`] prevents that.
    pub fn resume(
        &self,
        tcp: TcpStream,
        unwritten: SecretBytes,
        layers: &mut LayerReader<'_>,
    ) -> Result<TlsStream<ClientConnection>, Refusal> {
        super::resume(tcp, unwritten, layers, &Terms::from(&*self.config))
    }
}
