//! TLS 1.3 for both sides: always mutual, never resumed, never early data.

use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use crate::error::TransportError;
use crate::identity::{Identity, provider};
use crate::trust::Trust;

/// The protocol both sides must name, and the welcome of the accepting side.
pub(crate) const PROTOCOL: &[u8] = b"tcpmig/1";

/// Who is believed as a client: it must prove itself.
pub(crate) fn clients(trust: &Trust) -> Result<Arc<dyn ClientCertVerifier>, TransportError> {
    WebPkiClientVerifier::builder_with_provider(trust.roots(), provider())
        .build()
        .map_err(tls_error)
}

/// How connections are accepted.
pub(crate) fn accepting(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<QuicServerConfig>, TransportError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // A resumed session would skip the certificates, early data can be replayed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(
        QuicServerConfig::try_from(config).map_err(tls_error)?,
    ))
}

/// How connections are made. One connector may make any number.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    identity: Identity,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Connector {
    pub(crate) fn new(identity: &Identity, trust: &Trust) -> Result<Self, TransportError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(trust.roots(), provider())
            .build()
            .map_err(tls_error)?;
        Ok(Self {
            identity: identity.clone(),
            verifier,
        })
    }

    pub(crate) fn verifier(&self) -> &WebPkiServerVerifier {
        &self.verifier
    }

    /// The settings for one connection, and where its verdict on the server's certificate will be.
    pub(crate) fn connecting(&self) -> Result<(Arc<QuicClientConfig>, Verdict), TransportError> {
        let verdict = Verdict::default();
        let verifier = RecordingVerifier {
            inner: Arc::clone(&self.verifier),
            verdict: verdict.clone(),
        };
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.identity.certified())));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        let config = QuicClientConfig::try_from(config).map_err(tls_error)?;
        Ok((Arc::new(config), verdict))
    }
}

/// Why a server's certificate was refused: QUIC passes on only an alert number and a text, which
/// do not tell a wrong name from other faults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict(Arc<Mutex<Option<CertificateError>>>);

impl Verdict {
    pub(crate) fn take(&self) -> Option<CertificateError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn record(&self, error: &CertificateError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
    }
}

/// Leaves every decision to rustls and remembers why one was negative.
#[derive(Debug)]
struct RecordingVerifier {
    inner: Arc<WebPkiServerVerifier>,
    verdict: Verdict,
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .inspect_err(|error| {
                if let rustls::Error::InvalidCertificate(error) = error {
                    self.verdict.record(error);
                }
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn tls_error(error: impl std::fmt::Display) -> TransportError {
    TransportError::Tls(error.to_string())
}
