//! Whom this host believes and lets in.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use webpki::EndEntityCert;

use crate::error::{ConfigError, TransportError};
use crate::identity::{self, IN_MEMORY};

/// The certificates of an authority, or of several: by them both sides of a connection prove their
/// name.
#[derive(Debug, Clone)]
pub struct Authorities(Arc<RootCertStore>);

impl Authorities {
    /// Reads them from a PEM file.
    ///
    /// # Errors
    /// A file that cannot be read, has no certificate, or a damaged one.
    pub fn from_pem_file(ca: &Path) -> Result<Self, ConfigError> {
        Self::parse(&identity::read(ca)?, &ca.display().to_string())
    }

    /// Like [`from_pem_file`](Self::from_pem_file), from PEM text in memory.
    ///
    /// # Errors
    /// Like [`from_pem_file`](Self::from_pem_file), apart from reading.
    pub fn from_pem(ca: &[u8]) -> Result<Self, ConfigError> {
        Self::parse(ca, IN_MEMORY)
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
        Ok(Self(Arc::new(roots)))
    }
}

/// Whom this host believes, and whom of those it lets in.
///
/// It says who may *connect to* this host; whom this host connects to is named in
/// [`Endpoint::connect`](crate::Endpoint::connect). There is no default, because whoever is let in
/// can offer connections: [`only`](Self::only) the hosts that are named, or explicitly
/// [`anyone_signed_by`](Self::anyone_signed_by) an authority.
#[derive(Debug, Clone)]
pub struct Trust {
    authorities: Authorities,
    admitted: Admitted,
}

#[derive(Debug, Clone)]
enum Admitted {
    Named(Vec<String>),
    Anyone,
}

impl Trust {
    /// Lets in the hosts with one of these DNS names in a certificate of the authority; nobody, if
    /// there is none: then this host only connects to others.
    #[must_use]
    pub fn only(
        authorities: Authorities,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self {
            authorities,
            admitted: Admitted::Named(names),
        }
    }

    /// Lets in every host that has a certificate of the authority, whatever its name. Only for an
    /// authority that signs nothing but hosts which may all give each other connections.
    #[must_use]
    pub fn anyone_signed_by(authorities: Authorities) -> Self {
        Self {
            authorities,
            admitted: Admitted::Anyone,
        }
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.authorities.0)
    }

    /// A misspelt name would lock its host out silently: found when the endpoint is made.
    pub(crate) fn check_names(&self) -> Result<(), TransportError> {
        match &self.admitted {
            Admitted::Named(names) => names.iter().try_for_each(|name| dns_name(name).map(drop)),
            Admitted::Anyone => Ok(()),
        }
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
        let Admitted::Named(admitted) = &self.admitted else {
            return names().next().ok_or_else(Vec::new);
        };
        admitted
            .iter()
            .find(|name| {
                dns_name(name)
                    .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
            })
            .cloned()
            .ok_or_else(|| names().collect())
    }

    /// Whether the holder of `certificate` may still connect by this name, by which it did before.
    pub(crate) fn admits(&self, certificate: &CertificateDer<'_>, name: &str) -> bool {
        let carries = || {
            let parsed = EndEntityCert::try_from(certificate).ok();
            parsed
                .zip(dns_name(name).ok())
                .is_some_and(|(parsed, name)| {
                    parsed.verify_is_valid_for_subject_name(&name).is_ok()
                })
        };
        match &self.admitted {
            Admitted::Named(admitted) => {
                admitted
                    .iter()
                    .any(|known| known.eq_ignore_ascii_case(name))
                    && carries()
            }
            Admitted::Anyone => true,
        }
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
