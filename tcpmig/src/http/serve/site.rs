//! Who this host is, and whom it gives connections to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fmt, fs, io};

use serde::Deserialize;
use tcpmig_lock::{LockError, Locker};
use tcpmig_transport::{ConfigError, Endpoint, TransportError, TransportLimits};

use crate::driver::policy::Policy;
use crate::driver::{Acceptor, Destination, Mover, Options};
use crate::hosts::{self, Credentials, Host};
use crate::steer::SteerError;

/// The variable that names the file of [`Site::from_env`].
const VARIABLE: &str = "TCPMIG_SITE";

/// Who this host is, whom it trusts, and how connections get to other hosts: what a server has to know beside its
/// application.
///
/// It comes from a TOML file ([`Site::from_file`], [`Site::from_env`]), or is built ([`Site::new`]). In the file, paths are
/// relative to it:
///
/// ```toml
/// listen = "192.0.2.1:4433"    # where other hosts reach this one, over UDP
/// certificate = "a.pem"        # with this host's name
/// key = "a.key"
/// authority = "ca.pem"         # it has signed the certificates of all hosts
///
/// [hosts."b.example"]          # one that may give connections, and take them
/// address = "192.0.2.2:4433"
/// steer = "redirect"           # this host forwards the packets; or "external": something else brings them there
/// ports = [80, 443]            # it may give connections of these ports only; of any, if this is missing
/// ```
#[derive(Clone)]
pub struct Site {
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    options: Options,
    policy: Policy,
    hosts: BTreeMap<String, Destination>,
}

/// Why there is no [`Site`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SiteError {
    /// The environment names no file.
    #[error("{VARIABLE} is not set: it names the file that describes this host")]
    NotSet,
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is in the file is not a site; where, and why.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        reason: String,
    },
    /// The certificate, the key or the authority cannot be used.
    #[error(transparent)]
    Identity(#[from] ConfigError),
    /// The endpoint cannot be opened.
    #[error(transparent)]
    Endpoint(#[from] TransportError),
    /// Packets cannot be locked.
    #[error("locks: {0}")]
    Lock(#[from] LockError),
    /// A host cannot be reached by its way of steering.
    #[error(transparent)]
    Steer(#[from] SteerError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
    #[serde(default)]
    hosts: BTreeMap<String, Host>,
}

impl Site {
    /// With the default [`Options`], the closed [`Policy::new`] and no other hosts.
    pub fn new(endpoint: Endpoint, locker: Arc<dyn Locker>) -> Self {
        Self {
            endpoint,
            locker,
            options: Options::default(),
            policy: Policy::new(),
            hosts: BTreeMap::new(),
        }
    }

    /// That of the file which the environment names in `TCPMIG_SITE`: [`Site::from_file`].
    ///
    /// # Errors
    ///
    /// [`SiteError`].
    pub fn from_env() -> Result<Self, SiteError> {
        let path = env::var_os(VARIABLE).ok_or(SiteError::NotSet)?;
        Self::from_file(path)
    }

    /// That of a file. Opens its endpoint, and sets nftables up in the network namespace of the calling thread; needs a
    /// tokio runtime and `CAP_NET_ADMIN`.
    ///
    /// # Errors
    ///
    /// [`SiteError`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, SiteError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| SiteError::Read {
            path: path.to_owned(),
            error,
        })?;
        let file: File = toml::from_str(&text).map_err(|error| SiteError::Parse {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let credentials = Credentials {
            certificate: file.certificate,
            key: file.key,
            authority: file.authority,
        };
        let (identity, trust) = credentials.beside(beside).read(&file.hosts)?;
        let limits = TransportLimits::default();
        let endpoint = Endpoint::bind(file.listen, &identity, &trust, limits)?;
        let mut site = Self::new(endpoint, Arc::new(crate::locker::nftables()?));
        let (destinations, policy) = hosts::known(&file.hosts, site.options.redirect_lease)?;
        site = destinations.into_iter().fold(site, Self::host);
        Ok(site.policy(policy))
    }

    /// With these time limits and conditions.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// With this policy on what is taken from whom.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// With a host that connections can go to, known by its name.
    #[must_use]
    pub fn host(mut self, host: Destination) -> Self {
        self.hosts.insert(host.name.clone(), host);
        self
    }

    /// The host of this name, if connections can go there.
    #[must_use]
    pub fn destination(&self, name: &str) -> Option<Destination> {
        self.hosts.get(name).cloned()
    }

    /// Gives connections away.
    #[must_use]
    pub fn mover(&self) -> Mover {
        Mover::new(
            self.endpoint.clone(),
            self.locker.clone(),
            self.options.clone(),
        )
    }

    /// Takes connections in.
    pub fn acceptor(&self) -> Acceptor {
        Acceptor::new(self.endpoint.clone(), self.locker.clone())
            .options(self.options.clone())
            .policy(self.policy.clone())
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("hosts", &self.hosts.keys())
            .finish_non_exhaustive()
    }
}
