//! The agent's configuration.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;
use tcpmig_sys::process::users::{self, Account};
use tcpmig_transport::ConfigError;

use crate::agent::DEFAULT_SOCKET;
use crate::driver::policy::Prefix;
use crate::hosts::{Credentials, Host};

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is in it is not a configuration; where, and why.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        reason: String,
    },
    /// A setting that only a new start changes was changed.
    #[error("{0} cannot be changed without a restart")]
    Fixed(&'static str),
    /// The certificate, the key or the authority cannot be used.
    #[error(transparent)]
    Identity(#[from] ConfigError),
    /// The endpoint cannot be opened.
    #[error(transparent)]
    Endpoint(#[from] tcpmig_transport::TransportError),
    /// Packets cannot be locked.
    #[error("locks: {0}")]
    Lock(#[from] tcpmig_lock::LockError),
    /// A host cannot be reached by its way of steering.
    #[error(transparent)]
    Steer(#[from] crate::steer::SteerError),
    /// The journal cannot be used, for instance because another agent does.
    #[error("journal: {0}")]
    Journal(#[from] crate::driver::journal::JournalError),
    /// A socket cannot be opened.
    #[error("{what}: {error}")]
    Socket {
        /// Which one.
        what: String,
        /// Why.
        error: io::Error,
    },
}

/// The file, relative paths resolved and names looked up.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    pub(super) credentials: Credentials,
    pub(super) hosts: BTreeMap<String, Host>,
    pub(super) socket: PathBuf,
    pub(super) socket_mode: u32,
    pub(super) socket_group: Option<u32>,
    pub(super) journal: PathBuf,
    pub(super) metrics: Option<Metrics>,
    pub(super) services: BTreeMap<String, Service>,
    admins: HashSet<u32>,
}

/// Where metrics are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Metrics {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What may be done for a service.
#[derive(Debug)]
pub(super) struct Service {
    users: HashSet<u32>,
    addresses: Vec<Prefix>,
    ports: Vec<u16>,
    to: Vec<String>,
    from: Vec<String>,
    pub(super) command: Option<ServiceCommand>,
}

/// What gets connections that no server is registered for.
#[derive(Debug, Clone)]
pub(super) struct ServiceCommand {
    pub(super) words: Vec<String>,
    pub(super) account: Account,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    listen: SocketAddr,
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
    socket: Option<PathBuf>,
    socket_mode: Option<String>,
    socket_group: Option<String>,
    journal: PathBuf,
    metrics: Option<String>,
    #[serde(default)]
    admins: Vec<User>,
    #[serde(default)]
    hosts: BTreeMap<String, Host>,
    #[serde(default)]
    services: BTreeMap<String, ServiceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceEntry {
    users: Vec<User>,
    #[serde(default)]
    addresses: Vec<String>,
    ports: Vec<u16>,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    from: Vec<String>,
    command: Option<Vec<String>>,
    command_user: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum User {
    Number(u32),
    Name(String),
}

impl User {
    fn number(&self) -> Result<u32, String> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Name(name) => users::user(name)
                .map_err(|error| error.to_string())?
                .ok_or_else(|| format!("there is no user {name:?}")),
        }
    }
}

fn numbers(users: &[User]) -> Result<HashSet<u32>, String> {
    users.iter().map(User::number).collect()
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, StartError> {
        let text = fs::read_to_string(path).map_err(|error| StartError::Read {
            path: path.to_owned(),
            error,
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let parsed = toml::from_str(&text).map_err(|error| error.to_string());
        let config = parsed.and_then(|file: File| Self::resolve(file, folder));
        config.map_err(|reason| StartError::Parse {
            path: path.to_owned(),
            reason,
        })
    }

    fn resolve(file: File, folder: &Path) -> Result<Self, String> {
        let credentials = Credentials {
            certificate: file.certificate,
            key: file.key,
            authority: file.authority,
        };
        let mut services = BTreeMap::new();
        for (name, entry) in file.services {
            let service = entry.resolve(&file.hosts);
            let service = service.map_err(|reason| format!("services.{name}: {reason}"))?;
            services.insert(name, service);
        }
        let mode = file.socket_mode.as_deref().unwrap_or("0600");
        let socket_mode = u32::from_str_radix(mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("socket_mode: {mode:?} is not a mode such as \"0660\""))?;
        let group = file.socket_group.as_deref().map(group).transpose()?;
        Ok(Self {
            name: file.name.unwrap_or_else(host_name),
            listen: file.listen,
            credentials: credentials.beside(folder),
            hosts: file.hosts,
            socket: folder.join(file.socket.unwrap_or_else(|| DEFAULT_SOCKET.into())),
            socket_mode,
            socket_group: group,
            journal: folder.join(file.journal),
            metrics: file.metrics.map(|at| metrics(&at, folder)).transpose()?,
            services,
            admins: numbers(&file.admins).map_err(|reason| format!("admins: {reason}"))?,
        })
    }

    /// Whether a user may ask for everything.
    pub(super) fn is_admin(&self, user: u32) -> bool {
        user == 0 || user == tcpmig_sys::process::passing::own_user() || self.admins.contains(&user)
    }

    /// Whether a user may talk to the agent at all.
    pub(super) fn is_known(&self, user: u32) -> bool {
        self.is_admin(user) || self.services.values().any(|one| one.users.contains(&user))
    }

    /// What cannot be changed while it runs.
    pub(super) fn check_fixed(&self, new: &Self) -> Result<(), StartError> {
        let fixed = [
            ("name", self.name == new.name),
            ("listen", self.listen == new.listen),
            ("socket", self.socket == new.socket),
            ("socket_mode", self.socket_mode == new.socket_mode),
            ("socket_group", self.socket_group == new.socket_group),
            ("journal", self.journal == new.journal),
            ("metrics", self.metrics == new.metrics),
        ];
        match fixed.into_iter().find(|(_, is_same)| !is_same) {
            Some((name, _)) => Err(StartError::Fixed(name)),
            None => Ok(()),
        }
    }
}

impl ServiceEntry {
    fn resolve(self, hosts: &BTreeMap<String, Host>) -> Result<Service, String> {
        let unknown = |name: &&String| !hosts.contains_key(*name);
        if let Some(name) = self.to.iter().chain(&self.from).find(unknown) {
            return Err(format!("there is no host {name:?}"));
        }
        let prefix = |text: &String| text.parse().map_err(|error| format!("{error}"));
        let command = match (self.command, self.command_user) {
            (None, None) => None,
            (Some(words), Some(user)) if !words.is_empty() => {
                let account = users::account(&user).map_err(|error| error.to_string())?;
                let account = account.ok_or_else(|| format!("there is no user {user:?}"))?;
                Some(ServiceCommand { words, account })
            }
            _ => return Err("a command and a command_user need each other".to_owned()),
        };
        Ok(Service {
            command,
            users: numbers(&self.users)?,
            addresses: self
                .addresses
                .iter()
                .map(prefix)
                .collect::<Result<_, _>>()?,
            ports: self.ports,
            to: self.to,
            from: self.from,
        })
    }
}

impl Service {
    /// Whether a user may serve it.
    pub(super) fn may_serve(&self, user: u32) -> bool {
        self.users.contains(&user)
    }

    /// Whether it may be on this address.
    pub(super) fn has_address(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_named = |prefix: &Prefix| prefix.contains(ip);
        self.ports.contains(&address.port())
            && (self.addresses.is_empty() || self.addresses.iter().any(is_named))
    }

    /// Whether it may be registered for this address; `0.0.0.0` stands for all that it may have.
    pub(super) fn may_listen(&self, address: SocketAddr) -> bool {
        if address.ip().is_unspecified() {
            self.ports.contains(&address.port())
        } else {
            self.has_address(address)
        }
    }

    pub(super) fn may_go_to(&self, host: &str) -> bool {
        self.to.iter().any(|name| name == host)
    }

    pub(super) fn may_come_from(&self, host: &str) -> bool {
        self.from.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

fn group(name: &str) -> Result<u32, String> {
    users::group(name)
        .map_err(|error| format!("socket_group: {error}"))?
        .ok_or_else(|| format!("socket_group: there is no group {name:?}"))
}

fn metrics(at: &str, folder: &Path) -> Result<Metrics, String> {
    if let Some(path) = at.strip_prefix("unix:") {
        return Ok(Metrics::Unix(folder.join(path)));
    }
    let address = at.parse().map_err(|_| {
        format!("metrics: {at:?} is neither ADDRESS:PORT nor unix:PATH, for example 127.0.0.1:9469")
    })?;
    Ok(Metrics::Tcp(address))
}

/// What the system calls this host.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"
        listen = "192.0.2.1:4433"
        certificate = "a.pem"
        key = "a.key"
        authority = "/etc/ca.pem"
        journal = "journal"
    "#;

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_named_is_denied() {
        let config = read(SMALLEST).unwrap();
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.socket_mode, 0o600);
        assert!(config.credentials.certificate.is_absolute());
        assert_eq!(config.credentials.authority, Path::new("/etc/ca.pem"));
        assert!(config.is_known(0) && !config.is_known(12_345));
    }

    #[test]
    fn a_service_is_for_its_users_addresses_and_hosts() {
        let config = read(&format!(
            r#"{SMALLEST}
            admins = ["root", 7]
            metrics = "unix:metrics.sock"
            [hosts."b.example"]
            address = "192.0.2.2:4433"
            steer = "external"
            [services.web]
            users = [12345]
            addresses = ["198.51.100.0/24"]
            ports = [80]
            to = ["b.example"]
            "#
        ))
        .unwrap();
        assert!(config.is_known(12_345) && !config.is_admin(12_345));
        assert!(config.is_admin(7));
        assert!(matches!(config.metrics, Some(Metrics::Unix(_))));
        let web = &config.services["web"];
        assert!(web.may_serve(12_345) && !web.may_serve(0));
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(web.has_address(at("198.51.100.9:80")));
        assert!(web.has_address(at("[::ffff:198.51.100.9]:80")));
        assert!(!web.has_address(at("198.51.100.9:81")));
        assert!(!web.has_address(at("198.51.101.9:80")));
        assert!(web.may_listen(at("0.0.0.0:80")) && !web.may_listen(at("[::]:81")));
        assert!(web.may_go_to("b.example") && !web.may_come_from("b.example"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases = [
            ("socket_mode = \"rw\"", "is not a mode"),
            ("metrics = \"here\"", "neither"),
            ("admins = [\"no such user\"]", "there is no user"),
            ("socket_group = \"no such group\"", "there is no group"),
            ("sockets = 1", "unknown field"),
            (
                "[services.web]\nusers = []\nports = [80]\nto = [\"c.example\"]",
                "services.web: there is no host \"c.example\"",
            ),
            (
                "[services.web]\nusers = []\nports = [80]\naddresses = [\"x\"]",
                "services.web: ",
            ),
            (
                "[services.web]\nusers = []\nports = [80]\ncommand = [\"cat\"]",
                "need each other",
            ),
        ];
        for (line, why) in cases {
            let error = read(&format!("{SMALLEST}\n{line}")).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
