//! Whom this host believes.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use webpki::EndEntityCert;

use crate::error::{ConfigError, TransportError};
use crate::identity::{self, IN_MEMORY};

/// Whom this host believes: a certificate authority, and the names that may connect.
///
/// Both sides of a connection prove their name by a certificate of this authority. The names
/// given to [`allow`](Self::allow) limit who may *connect to* this host; whom this host connects
/// to is named in [`Endpoint::connect`](crate::Endpoint::connect).
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    allowed: Vec<String>,
}

impl Trust {
    /// Reads the certificates of the authority, or of several, from a PEM file.
    ///
    /// # Errors
    /// A file that cannot be read, has no certificate, or a damaged one.
    pub fn from_pem_file(ca: &Path) -> Result<Self, ConfigError> {
        Self::parse(&identity::read(ca)?, &ca.display().to_string())
    }

    /// Like [`from_pem_file`](Self::from_pem_file), from PEM text in memory.
    ///
    /// # Errors
    /// As [`from_pem_file`](Self::from_pem_file), apart from reading.
    pub fn from_pem(ca: &[u8]) -> Result<Self, ConfigError> {
        Self::parse(ca, IN_MEMORY)
    }

    /// Lets the host with the DNS name `name` in its certificate connect. As long as none is
    /// named, every certificate of the authority may.
    #[must_use]
    pub fn allow(mut self, name: impl Into<String>) -> Self {
        self.allowed.push(name.into());
        self
    }

    fn parse(pem: &[u8], origin: &str) -> Result<Self, ConfigError> {
        let mut roots = RootCertStore::empty();
        for certificate in identity::certificates(pem, origin)? {
            roots
                .add(certificate)
                .map_err(|error| ConfigError::Certificate {
                    origin: origin.to_owned(),
                    reason: error.to_string(),
                })?;
        }
        Ok(Self {
            roots: Arc::new(roots),
            allowed: Vec::new(),
        })
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// A misspelt name would lock its host out silently: found when the endpoint is made.
    pub(crate) fn check_names(&self) -> Result<(), TransportError> {
        self.allowed
            .iter()
            .try_for_each(|name| dns_name(name).map(drop))
    }

    /// The name by which the holder of `certificate`, which TLS has verified, may connect; or the
    /// names it carries, none of which may.
    pub(crate) fn authorise(
        &self,
        certificate: &CertificateDer<'_>,
    ) -> Result<String, Vec<String>> {
        let Ok(parsed) = EndEntityCert::try_from(certificate) else {
            return Err(Vec::new());
        };
        let names = || parsed.valid_dns_names().map(str::to_owned);
        if self.allowed.is_empty() {
            return names().next().ok_or_else(Vec::new);
        }
        self.allowed
            .iter()
            .find(|name| {
                dns_name(name)
                    .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
            })
            .cloned()
            .ok_or_else(|| names().collect())
    }
}

/// `name` as the DNS name that a certificate can be checked for.
pub(crate) fn dns_name(name: &str) -> Result<ServerName<'_>, TransportError> {
    DnsName::try_from(name)
        .map(ServerName::DnsName)
        .map_err(|_| TransportError::InvalidName {
            name: name.to_owned(),
        })
}
