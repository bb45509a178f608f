//! A small certificate authority for hosts that have no other.
//!
//! ```
//! # fn main() -> Result<(), tcpmig_transport::keys::KeysError> {
//! use tcpmig_transport::keys::Authority;
//!
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let dir = dir.path();
//! let authority = Authority::create("our cluster")?;
//! authority.write_to(dir)?; // ca.pem, ca.key
//! authority.issue("host-a.example")?.write_to(dir)?; // host-a.example.pem, host-a.example.key
//!
//! let later = Authority::load(dir)?;
//! later.issue("host-b.example")?.write_to(dir)?;
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;

use crate::private;
use rustls::pki_types::{CertificateDer, DnsName};
use thiserror::Error;
use webpki::EndEntityCert;

mod subject;
use subject::{common_name, read_common_name};

/// Longest common name in bytes (X.520).
const COMMON_NAME: usize = 64;
/// How long before now certificates become valid: hosts' clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);
/// How long an authority is valid: ten years.
const AUTHORITY: Duration = Duration::from_secs(3652 * 24 * 3600);
/// How long a host's certificate is valid: two years.
const HOST: Duration = Duration::from_secs(730 * 24 * 3600);

/// Why keys could not be made, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The name cannot be a DNS name in a certificate.
    #[error("{name:?} is not a DNS name that a host can have here")]
    Name {
        /// The name given.
        name: String,
    },
    /// The name cannot be an authority's.
    #[error("{name:?}: an authority's name has 1 to 64 bytes")]
    AuthorityName {
        /// The name given.
        name: String,
    },
    /// The key or the certificate could not be made.
    #[error("make certificate: {0}")]
    Make(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file exists already; nothing was changed in it.
    #[error("{}: exists already, not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{call} {}: {source}", path.display())]
    File {
        /// "read" or "write".
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The files are not an authority made by [`Authority`].
    #[error("{}: not an authority of tcpmig: {reason}", path.display())]
    NotAnAuthority {
        /// The certificate or key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn not_made(error: rcgen::Error) -> KeysError {
    KeysError::Make(error.into())
}

/// A certificate authority: its certificate, and the key that signs hosts' certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

/// A host's certificate and private key, as PEM.
#[non_exhaustive]
pub struct Issued {
    name: String,
    /// The certificate.
    pub cert_pem: String,
    /// The private key. Secret.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority called `name` (1 to 64 bytes), valid for ten years.
    ///
    /// # Errors
    /// [`KeysError::AuthorityName`], [`KeysError::Make`].
    pub fn create(name: &str) -> Result<Self, KeysError> {
        if name.is_empty() || name.len() > COMMON_NAME {
            return Err(KeysError::AuthorityName {
                name: name.to_owned(),
            });
        }
        let key = KeyPair::generate().map_err(not_made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        // It signs hosts' certificates, never those of further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        set_validity(&mut params, now - CLOCK_SKEW, now + AUTHORITY);
        let ca_pem = params.self_signed(&key).map_err(not_made)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            ca_pem,
        })
    }

    /// Reads the authority that [`write_to`](Self::write_to) wrote to `dir`.
    ///
    /// # Errors
    /// [`KeysError::File`], also for a key that others can read or write; [`KeysError::NotAnAuthority`] for a damaged file, a key of another
    /// certificate, or an authority that another tool gave a name of several parts.
    pub fn load(dir: &Path) -> Result<Self, KeysError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let ca_pem = read(&cert_path)?;
        let key_pem = read_key(&key_path)?;
        let refuse = |path: &Path, reason: String| KeysError::NotAnAuthority {
            path: path.to_owned(),
            reason,
        };
        let key = KeyPair::from_pem(&key_pem).map_err(|e| refuse(&key_path, e.to_string()))?;
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|error| refuse(&cert_path, error.to_string()))?;
        let cert =
            EndEntityCert::try_from(&der).map_err(|error| refuse(&cert_path, error.to_string()))?;
        if cert.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(refuse(
                &key_path,
                "not the key of its certificate".to_owned(),
            ));
        }
        let name = read_common_name(cert.subject()).ok_or_else(|| {
            refuse(
                &cert_path,
                "its subject is not a single common name".to_owned(),
            )
        })?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        Ok(Self {
            issuer: Issuer::new(params, key),
            ca_pem,
        })
    }

    /// The authority's certificate as PEM: what [`Trust`](crate::Trust) reads.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Makes a key and a certificate, valid from a day ago for two years, for the host with the
    /// DNS name `name`.
    ///
    /// # Errors
    /// [`KeysError::Name`], [`KeysError::Make`].
    pub fn issue(&self, name: &str) -> Result<Issued, KeysError> {
        let now = SystemTime::now();
        self.issue_for(name, now - CLOCK_SKEW, now + HOST)
    }

    /// Like [`issue`](Self::issue), valid between the given times.
    ///
    /// # Errors
    /// Those of [`issue`](Self::issue).
    pub fn issue_for(
        &self,
        name: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Issued, KeysError> {
        // A host called "ca" would have the authority's files.
        if DnsName::try_from(name).is_err() || name.eq_ignore_ascii_case("ca") {
            return Err(KeysError::Name {
                name: name.to_owned(),
            });
        }
        let key = KeyPair::generate().map_err(not_made)?;
        let mut params = CertificateParams::new([name.to_owned()]).map_err(not_made)?;
        params.distinguished_name = common_name(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        set_validity(&mut params, not_before, not_after);
        Ok(Issued {
            name: name.to_owned(),
            cert_pem: params
                .signed_by(&key, &self.issuer)
                .map_err(not_made)?
                .pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) to `dir`, which must exist.
    ///
    /// # Errors
    /// [`KeysError::Exists`], [`KeysError::File`].
    pub fn write_to(&self, dir: &Path) -> Result<(), KeysError> {
        write_pair(dir, "ca", &self.ca_pem, &self.issuer.key().serialize_pem())
    }
}

impl Issued {
    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes `NAME.pem` and `NAME.key` (mode 0600) to `dir`, which must exist.
    ///
    /// # Errors
    /// [`KeysError::Exists`], [`KeysError::File`].
    pub fn write_to(&self, dir: &Path) -> Result<(), KeysError> {
        write_pair(dir, &self.name, &self.cert_pem, &self.key_pem)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    };
    params.not_before = epoch + since(not_before);
    params.not_after = epoch + since(not_after);
}

fn read_key(path: &Path) -> Result<String, KeysError> {
    let read = private::read(path).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    });
    read.map_err(|source| KeysError::File {
        call: "read",
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, KeysError> {
    fs::read_to_string(path).map_err(|source| KeysError::File {
        call: "read",
        path: path.to_owned(),
        source,
    })
}

/// The key first: a certificate without its key looks like a host that is set up.
fn write_pair(dir: &Path, name: &str, cert_pem: &str, key_pem: &str) -> Result<(), KeysError> {
    let cert = dir.join(format!("{name}.pem"));
    if cert.exists() {
        return Err(KeysError::Exists { path: cert });
    }
    write_new(&dir.join(format!("{name}.key")), key_pem, 0o600)?;
    write_new(&cert, cert_pem, 0o644)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeysError::Exists {
                path: path.to_owned(),
            },
            _ => KeysError::File {
                call: "write",
                path: path.to_owned(),
                source,
            },
        })
}
