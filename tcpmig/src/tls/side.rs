//! The two ends of a TLS session.

use std::ops::DerefMut;

use rustls::client::ClientConnectionData;
use rustls::server::ServerConnectionData;
use rustls::{ClientConnection, ConnectionCommon, Error, ExtractedSecrets, ServerConnection};

use super::layer::{CLIENT_KIND, KIND};

/// A connection of rustls that is one end of a session.
pub(super) trait Side: DerefMut<Target = ConnectionCommon<Self::Data>> + Sized {
    type Data;
    /// What the layer of its sessions is called.
    const KIND: &'static str;
    const IS_CLIENT: bool;

    /// The end that this is.
    fn of(ends: (ClientConnection, ServerConnection)) -> Self;

    /// What this end writes with, and what it reads with, of what the client and the server write with.
    fn own_first<T>(client: T, server: T) -> (T, T);

    /// What the client and the server show each other for this end to know these certificates of the other one.
    fn shown(certificates: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>);

    /// The name that the client has asked for, where rustls knows it.
    fn server_name(&self) -> Option<&str>;

    /// Takes the keys and numbers in use out of it.
    fn extract(self) -> Result<ExtractedSecrets, Error>;
}

impl Side for ServerConnection {
    type Data = ServerConnectionData;
    const KIND: &'static str = KIND;
    const IS_CLIENT: bool = false;

    fn of((_, server): (ClientConnection, ServerConnection)) -> Self {
        server
    }

    fn own_first<T>(client: T, server: T) -> (T, T) {
        (server, client)
    }

    fn shown(certificates: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        (certificates.to_vec(), vec![vec![0]])
    }

    fn server_name(&self) -> Option<&str> {
        Self::server_name(self)
    }

    fn extract(self) -> Result<ExtractedSecrets, Error> {
        self.dangerous_extract_secrets()
    }
}

impl Side for ClientConnection {
    type Data = ClientConnectionData;
    const KIND: &'static str = CLIENT_KIND;
    const IS_CLIENT: bool = true;

    fn of((client, _): (ClientConnection, ServerConnection)) -> Self {
        client
    }

    fn own_first<T>(client: T, server: T) -> (T, T) {
        (client, server)
    }

    fn shown(certificates: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        (Vec::new(), certificates.to_vec())
    }

    fn server_name(&self) -> Option<&str> {
        None
    }

    fn extract(self) -> Result<ExtractedSecrets, Error> {
        self.dangerous_extract_secrets()
    }
}
