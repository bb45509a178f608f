//! The demo over TLS.

use std::sync::Arc;

use anyhow::Context as _;
use clap::ValueEnum;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use serde::{Deserialize, Serialize};
use tcpmig::tls::Tls;
use tcpmig_transport::keys::Authority;

/// The name by which curl knows both web servers.
pub(crate) const NAME: &str = "demo.example";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Version {
    #[value(name = "1.2")]
    V12,
    #[value(name = "1.3")]
    V13,
}

/// How a web server speaks TLS. It has the server's private key.
#[derive(Serialize, Deserialize)]
pub(crate) struct Web {
    version: Version,
    /// It speaks HTTP/2 as well.
    http2: bool,
    /// As PEM, like the key.
    certificate: String,
    key: String,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Web")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Web {
    /// With a certificate of its own.
    pub(crate) fn new(
        version: Version,
        http2: bool,
        authority: &Authority,
    ) -> anyhow::Result<Self> {
        let issued = authority.issue(NAME)?;
        Ok(Self {
            version,
            http2,
            certificate: issued.cert_pem.clone(),
            key: issued.key_pem.clone(),
        })
    }

    pub(crate) fn carriers(&self) -> anyhow::Result<Tls> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let version = match self.version {
            Version::V12 => &TLS12,
            Version::V13 => &TLS13,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.context("certificate")?],
                key.context("key")?,
            )?;
        if self.http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(Tls::new(config))
    }
}
