//! Who this host is and which others it knows, as the files of a server and of an agent have it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tcpmig_transport::{Authorities, ConfigError, Identity, Trust};

use crate::driver::Destination;
use crate::driver::policy::{Policy, Rules};
use crate::steer::{External, Redirected, Steer, SteerError};

/// A host that may give connections, and take them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Host {
    address: SocketAddr,
    steer: How,
    /// Where a redirect goes, if not to the address.
    via: Option<IpAddr>,
    /// Connections of which ports it may give; of any, if this is missing.
    ports: Option<Vec<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Redirect,
    External,
}

impl Host {
    /// What is taken from it.
    fn rules(&self) -> Rules {
        let ports = self.ports.iter().flatten();
        ports.fold(Rules::new(), |rules, &port| rules.ports(port..=port))
    }

    /// The same as a place that connections go to, from the network namespace of the calling thread.
    fn destination(&self, name: &str, lease: Duration) -> Result<Destination, SteerError> {
        let via = self.via.unwrap_or(self.address.ip());
        let steer: Arc<dyn Steer> = match self.steer {
            How::Redirect => Arc::new(Redirected::new(via, lease)?),
            How::External => Arc::new(External),
        };
        Ok(Destination {
            address: self.address,
            name: name.to_owned(),
            steer,
        })
    }
}

/// All hosts, as places that connections go to and by what is taken from them. A redirect lasts for `lease`.
pub(crate) fn known(
    hosts: &BTreeMap<String, Host>,
    lease: Duration,
) -> Result<(Vec<Destination>, Policy), SteerError> {
    let (mut destinations, mut policy) = (Vec::new(), Policy::new());
    for (name, host) in hosts {
        policy = policy.host(name, host.rules());
        destinations.push(host.destination(name, lease)?);
    }
    Ok((destinations, policy))
}

/// What this host proves itself by, and by what it knows others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) authority: PathBuf,
}

impl Credentials {
    /// Reads the files, and lets those hosts in.
    pub(crate) fn read(
        &self,
        hosts: &BTreeMap<String, Host>,
    ) -> Result<(Identity, Trust), ConfigError> {
        let identity = Identity::from_pem_files(&self.certificate, &self.key)?;
        let authorities = Authorities::from_pem_file(&self.authority)?;
        Ok((identity, Trust::only(authorities, hosts.keys())))
    }

    /// When the files were changed; nothing while one of them is missing.
    #[cfg(feature = "agent")]
    pub(crate) fn changed(&self) -> Option<Vec<std::time::SystemTime>> {
        let files = [&self.certificate, &self.key, &self.authority];
        let changed = |path: &&PathBuf| std::fs::metadata(path).ok()?.modified().ok();
        files.iter().map(changed).collect()
    }

    /// Relative paths are relative to this folder.
    pub(crate) fn beside(self, folder: &Path) -> Self {
        Self {
            certificate: folder.join(self.certificate),
            key: folder.join(self.key),
            authority: folder.join(self.authority),
        }
    }
}
