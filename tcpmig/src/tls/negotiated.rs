//! What client and server agreed on.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, CommonState, ProtocolVersion};

use super::layer::State;

/// What client and server agreed on, the same before and after a move. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Negotiated(Arc<Facts>);

#[derive(Debug)]
struct Facts {
    version: ProtocolVersion,
    suite: CipherSuite,
    server_name: Option<String>,
    alpn: Option<Vec<u8>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Negotiated {
    /// `None` before the handshake has come as far as that.
    pub(super) fn of(tls: &CommonState, server_name: Option<String>) -> Option<Self> {
        let certificates = tls.peer_certificates().unwrap_or_default();
        Some(Self(Arc::new(Facts {
            version: tls.protocol_version()?,
            suite: tls.negotiated_cipher_suite()?.suite(),
            server_name,
            alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
            certificates: certificates.to_vec(),
        })))
    }

    /// Of a session that is not rebuilt yet.
    pub(super) fn of_state(state: State) -> Self {
        let certificates = state.certificates.into_iter();
        Self(Arc::new(Facts {
            version: state.version.into(),
            suite: state.suite.into(),
            server_name: state.server_name,
            alpn: state.alpn,
            certificates: certificates.map(CertificateDer::from).collect(),
        }))
    }

    /// The version of TLS.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.0.version
    }

    /// The cipher suite.
    #[must_use]
    pub fn cipher_suite(&self) -> CipherSuite {
        self.0.suite
    }

    /// The name of the server that the client asked for.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.0.server_name.as_deref()
    }

    /// The protocol that runs over TLS, if client and server have both named it.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.alpn.as_deref()
    }

    /// The certificates of the other end, its own first, as they were verified when the handshake was made. A server
    /// has those of its client, if that has any.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }
}
