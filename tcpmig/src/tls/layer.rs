//! What a TLS session is beside its socket, and how that is written.

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use tcpmig_format::{Layer, LayerReader, SecretBytes};

use super::keys::Direction;
use crate::handover::{Code, Refusal};

/// The kind of the layer of a server's session.
pub const KIND: &str = "tcpmig-tls";
/// That of a client's.
pub const CLIENT_KIND: &str = "tcpmig-tls-client";
/// The version of both.
pub const VERSION: u32 = 1;

/// One end of a TLS session at rest. It has the session's secrets: who reads it reads and writes the session, and two
/// who go on with it give the secrets away. It has no `Debug`.
#[derive(Default)]
pub(super) struct State {
    /// As on the wire: 0x0303 or 0x0304.
    pub(super) version: u16,
    pub(super) suite: u16,
    /// From the client to the server.
    pub(super) client: Direction,
    /// From the server to the client.
    pub(super) server: Direction,
    /// The exporter's secret of TLS 1.3.
    pub(super) exporter: SecretBytes,
    pub(super) server_name: Option<String>,
    pub(super) alpn: Option<Vec<u8>>,
    /// Those of the other end, in DER, its own first.
    pub(super) certificates: Vec<Vec<u8>>,
    /// Read from TCP, not decrypted: it can end in the middle of a record.
    pub(super) received: SecretBytes,
    /// Decrypted and not read.
    pub(super) unread: SecretBytes,
    /// Records that TCP has not taken: it can begin in the middle of one.
    pub(super) unwritten: SecretBytes,
    /// The client has said `close_notify`.
    pub(super) client_closed: bool,
    /// The server has.
    pub(super) server_closed: bool,
}

/// The layer's payload, in memory that others wipe.
#[derive(Serialize, Deserialize)]
struct Payload<'a> {
    version: u16,
    suite: u16,
    #[serde(borrow)]
    client_secret: &'a Bytes,
    client_next: u64,
    server_secret: &'a Bytes,
    server_next: u64,
    exporter: &'a Bytes,
    server_name: Option<&'a str>,
    #[serde(borrow)]
    alpn: Option<&'a Bytes>,
    #[serde(borrow)]
    certificates: Vec<&'a Bytes>,
    received: &'a Bytes,
    unread: &'a Bytes,
    unwritten: &'a Bytes,
    client_closed: bool,
    server_closed: bool,
}

impl State {
    pub(super) fn to_layer(&self, kind: &str) -> Layer {
        let payload = Payload {
            version: self.version,
            suite: self.suite,
            client_secret: Bytes::new(&self.client.secret),
            client_next: self.client.next,
            server_secret: Bytes::new(&self.server.secret),
            server_next: self.server.next,
            exporter: Bytes::new(&self.exporter),
            server_name: self.server_name.as_deref(),
            alpn: self.alpn.as_deref().map(Bytes::new),
            certificates: self
                .certificates
                .iter()
                .map(|der| Bytes::new(der))
                .collect(),
            received: Bytes::new(&self.received),
            unread: Bytes::new(&self.unread),
            unwritten: Bytes::new(&self.unwritten),
            client_closed: self.client_closed,
            server_closed: self.server_closed,
        };
        // Memory that grows leaves secrets behind where it was.
        let mut bytes = Vec::with_capacity(self.most_bytes());
        let begin = bytes.as_ptr();
        // INVARIANT: a vector takes everything, and no type above fails to be serialized.
        rmp_serde::encode::write_named(&mut bytes, &payload).expect("numbers and bytes");
        debug_assert_eq!(begin, bytes.as_ptr(), "it has grown");
        Layer::new(kind, VERSION, bytes)
    }

    /// More than the payload has.
    fn most_bytes(&self) -> usize {
        let buffers = [&self.received, &self.unread, &self.unwritten];
        let buffers: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let certificates = self.certificates.iter().map(|der| der.len() + 8);
        let texts = self.server_name.as_ref().map_or(0, String::len)
            + self.alpn.as_ref().map_or(0, Vec::len);
        // The names of the fields, the secrets and numbers.
        1024 + buffers + texts + certificates.sum::<usize>()
    }

    /// Consumes the layer of a TLS session, which is of this kind.
    ///
    /// # Errors
    ///
    /// The layer is another one, or cannot be decoded.
    pub(super) fn read(layers: &mut LayerReader<'_>, kind: &str) -> Result<Self, Refusal> {
        let Some(layer) = layers.next_of(kind) else {
            let reason = format!("the connection does not run over TLS: it has no layer {kind:?}");
            return Err(Refusal::new(Code::Session, reason));
        };
        if layer.version != VERSION {
            let reason =
                format!("the layer {layer} is not known here, which takes version {VERSION}");
            return Err(Refusal::new(Code::Session, reason));
        }
        let refused = |why: &dyn std::fmt::Display| {
            let reason = format!("the TLS session cannot be decoded: {why}");
            Refusal::new(Code::Image, reason)
        };
        let payload: Payload<'_> =
            rmp_serde::from_slice(&layer.payload).map_err(|error| refused(&error))?;
        let direction = |secret: &Bytes, next| Direction {
            secret: secret[..].into(),
            next,
        };
        let state = Self {
            version: payload.version,
            suite: payload.suite,
            client: direction(payload.client_secret, payload.client_next),
            server: direction(payload.server_secret, payload.server_next),
            exporter: payload.exporter[..].into(),
            server_name: payload.server_name.map(str::to_owned),
            alpn: payload.alpn.map(|alpn| alpn.to_vec()),
            certificates: payload
                .certificates
                .iter()
                .map(|der| der.to_vec())
                .collect(),
            received: payload.received[..].into(),
            unread: payload.unread[..].into(),
            unwritten: payload.unwritten[..].into(),
            client_closed: payload.client_closed,
            server_closed: payload.server_closed,
        };
        // Whoever writes this version writes it in one way: what is longer, or has something else in it, is damaged.
        if state.to_layer(kind).payload != layer.payload {
            return Err(refused(&"it is not as this version is written"));
        }
        Ok(state)
    }
}
