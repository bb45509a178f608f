//! Who this host is.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::error::ConfigError;
use crate::private;

/// What errors call PEM text that did not come from a file.
pub(crate) const IN_MEMORY: &str = "the given PEM";

/// Who this host is: a certificate chain and its private key.
///
/// The host's name is a DNS name in the certificate. [`Debug`](fmt::Debug) shows no key.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    /// Keys for other purposes than TLS, derived from the private key.
    derived: Arc<dyn HkdfExpander>,
}

impl Identity {
    /// Reads the chain (the host's certificate first) and the private key (PKCS #8, SEC 1 or
    /// PKCS #1) from PEM files.
    ///
    /// # Errors
    /// A file that cannot be read, lacks its section, is damaged, or a key of another certificate. A file with the key that
    /// others can read or write, or whose owner is neither root nor the user of this process.
    pub fn from_pem_files(cert: &Path, key: &Path) -> Result<Self, ConfigError> {
        let (chain, origin) = (read(cert)?, cert.display().to_string());
        // Files that were given the wrong way round are told before one that is not a key is held against the rules for keys.
        certificates(&chain, &origin)?;
        let key_pem = read_key(key)?;
        Self::parse((&chain, &origin), (&key_pem, &key.display().to_string()))
    }

    /// Like [`from_pem_files`](Self::from_pem_files), from PEM text in memory.
    ///
    /// # Errors
    /// Like [`from_pem_files`](Self::from_pem_files), apart from reading.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, ConfigError> {
        Self::parse((cert, IN_MEMORY), (key, IN_MEMORY))
    }

    fn parse(cert: (&[u8], &str), key: (&[u8], &str)) -> Result<Self, ConfigError> {
        let chain = certificates(cert.0, cert.1)?;
        let (key_pem, key_origin) = key;
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| pem_error(&error, key_origin, "private key"))?;
        let derived = hkdf().extract_from_secret(Some(b"tcpmig"), key.secret_der());
        let certified =
            CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => ConfigError::KeyMismatch {
                    cert: cert.1.to_owned(),
                    key: key_origin.to_owned(),
                },
                rustls::Error::InvalidCertificate(_) => ConfigError::Certificate {
                    origin: cert.1.to_owned(),
                    reason: error.to_string(),
                },
                _ => ConfigError::Key {
                    origin: key_origin.to_owned(),
                    reason: error.to_string(),
                },
            })?;
        Ok(Self {
            certified: Arc::new(certified),
            derived: derived.into(),
        })
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// A key for `purpose` that stays the same when the process restarts.
    pub(crate) fn derive(&self, purpose: &str) -> OkmBlock {
        self.derived.expand_block(&[purpose.as_bytes()])
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificates", &self.certified.cert.len())
            .finish_non_exhaustive()
    }
}

/// The cryptography everything here uses, whatever the process has installed for others.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// HKDF and HMAC with SHA-256.
pub(crate) fn hkdf() -> &'static dyn rustls::crypto::tls13::Hkdf {
    rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .expect("a TLS 1.3 cipher suite")
        .hkdf_provider
}

fn read_key(path: &Path) -> Result<Vec<u8>, ConfigError> {
    private::read(path).map_err(|source| ConfigError::Read {
        origin: path.display().to_string(),
        source,
    })
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|source| ConfigError::Read {
        origin: path.display().to_string(),
        source,
    })
}

/// All certificates in `pem`, at least one.
pub(crate) fn certificates(
    pem: &[u8],
    origin: &str,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem_error(&error, origin, "certificate"))?;
    if chain.is_empty() {
        return Err(pem_error(&pem::Error::NoItemsFound, origin, "certificate"));
    }
    Ok(chain)
}

fn pem_error(error: &pem::Error, origin: &str, what: &'static str) -> ConfigError {
    let origin = origin.to_owned();
    match error {
        pem::Error::NoItemsFound => ConfigError::Missing { origin, what },
        other => ConfigError::Pem {
            origin,
            what,
            reason: other.to_string(),
        },
    }
}
