//! The agent: the one program of a host that needs privileges.
//!
//! [`Agent::open`] reads a configuration in TOML:
//!
//! ```toml
//! listen = "192.0.2.1:4433"             # where other agents reach this one, over UDP
//! certificate = "a.pem"                 # with this host's name
//! key = "a.key"
//! authority = "ca.pem"                  # it has signed the certificates of all hosts
//! journal = "/var/lib/tcpmig/journal"   # what an agent after this one has to know
//! socket = "/run/tcpmig/agent.sock"     # where servers reach it
//! socket_mode = "0660"                  # "0600" if this is missing
//! socket_group = "tcpmig"
//! metrics = "127.0.0.1:9469"            # or "unix:PATH"; none if this is missing
//! admins = ["ops"]                      # who may drain and see everything, beside root
//!
//! [hosts."b.example"]                   # as in a site of `http::serve`
//! address = "192.0.2.2:4433"
//! steer = "redirect"
//!
//! [services.web]                        # what is not named is denied
//! users = ["www-data"]                  # whose processes serve it
//! addresses = ["198.51.100.80"]         # addresses and prefixes; any of this host if this is missing
//! ports = [443, 8080]
//! to = ["b.example"]                    # where its connections may go
//! from = ["b.example"]                  # where they may come from
//! command = ["/usr/bin/app", "--resume"] # gets connections without layers if no server is registered, as standard input and output
//! command_user = "www-data"
//! ```
//!
//! Each client has its own tasks, queues and limits, so that one that floods, hangs or dies holds nobody else up.

mod client;
mod commands;
mod config;
mod draining;
mod drains;
mod giving;
mod metrics;
mod recovering;
mod registry;
mod taking;
mod users;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tcpmig_lock::{EntryKind, Locker};
use tcpmig_sys::process::packets;
use tcpmig_transport::{Endpoint, TransportLimits};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep, timeout};

pub use config::StartError;

use super::Status;
use super::link::{LinkError, Ready};
use super::wire::MAX_PACKET;
use crate::driver::journal::{self, Journal, Unfinished};
use crate::driver::{Acceptor, Arrivals, Destination, Mover, Options, Resolved};
use crate::hosts;
use config::Config;
use draining::count;
use drains::Drains;
use giving::Given;
use metrics::{Door, Metrics, remove_socket};
use registry::{Registration, Registry};
use users::Users;

/// How often it is looked whether somebody has renewed the certificates.
const LOOKED: Duration = Duration::from_secs(30);
/// How many programs may be connected at a time.
const CLIENTS: usize = 1024;
/// How long nothing is accepted after an attempt to do so has failed.
const FAILED: Duration = Duration::from_millis(100);

/// The agent of this host, in the network namespace of the thread that opened it.
pub struct Agent {
    shared: Arc<Shared>,
    path: PathBuf,
    listener: Ready,
    arrivals: Arrivals,
    metrics: Option<Door>,
    clients: JoinSet<()>,
    /// The number of the last client.
    last: u64,
    /// When the files with the keys were changed, as they are used.
    keys_changed: Option<Vec<SystemTime>>,
}

/// What all tasks of an agent share.
struct Shared {
    config: RwLock<Arc<Config>>,
    destinations: RwLock<HashMap<String, Destination>>,
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    mover: Mover,
    registry: Registry,
    users: Users,
    drains: Drains,
    given: Given,
    metrics: Arc<Metrics>,
    /// What an agent before this one had begun and not ended.
    left_open: std::sync::Mutex<Vec<Unfinished>>,
    /// What the targets say of that.
    earlier: Arc<Mutex<Vec<Resolved>>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// With the configuration in this file. Opens its sockets and its journal and sets nftables up, in the network namespace of
    /// the calling thread; needs a tokio runtime whose threads are in it, and `CAP_NET_ADMIN`.
    ///
    /// # Errors
    ///
    /// [`StartError`]. Another agent with the same journal goes on.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StartError> {
        let path = path.as_ref().to_owned();
        let config = Config::read(&path)?;
        let keys_changed = config.credentials.changed();
        let options = Options::default();
        let (destinations, policy) = hosts::known(&config.hosts, options.redirect_lease)?;
        let (identity, trust) = config.credentials.read(&config.hosts)?;
        if let Some(folder) = config.journal.parent() {
            // It says who is connected to whom. One that cannot be made is missed by the journal.
            let _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        }
        // First: one that is in use belongs to an agent that lives, whose sockets are its own.
        let journal: Arc<dyn Journal> = Arc::new(journal::File::open(&config.journal)?);
        let limits = TransportLimits::default();
        let endpoint = Endpoint::bind(config.listen, &identity, &trust, limits)?;
        let locker: Arc<dyn Locker> = Arc::new(crate::locker::nftables()?);
        let mover = Mover::new(endpoint.clone(), locker.clone(), options.clone())
            .with_journal(journal.clone());
        let left_open = journal.left_open();
        let listener = listen(&config)?;
        let metrics = config.metrics.as_ref().map(open_door).transpose()?;
        let shared = Arc::new(Shared {
            config: RwLock::new(Arc::new(config)),
            destinations: RwLock::new(by_name(destinations)),
            endpoint: endpoint.clone(),
            locker: locker.clone(),
            mover,
            registry: Registry::default(),
            users: Users::default(),
            drains: Drains::default(),
            given: Given::default(),
            metrics: Arc::new(Metrics::new()),
            left_open: left_open.into(),
            earlier: Arc::default(),
        });
        let asks = shared.clone();
        let arrivals = Acceptor::new(endpoint, locker)
            .options(options)
            .journal(journal)
            .policy(policy)
            .accept_async(move |offer| asks.clone().offer(offer))
            .serve();
        shared.clone().resolve_earlier();
        Ok(Self {
            shared,
            path,
            listener,
            arrivals,
            metrics,
            clients: JoinSet::new(),
            last: 0,
            keys_changed,
        })
    }

    /// Where servers reach it.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.shared.config().socket.clone()
    }

    /// Reads the configuration again, with the certificates. What is under way goes on; what is not allowed any more is refused from now on.
    ///
    /// # Errors
    ///
    /// [`StartError`]: everything is as it was.
    pub fn reload(&mut self) -> Result<(), StartError> {
        let reloaded = self.try_reload();
        self.shared.metrics.count_reload(reloaded.is_ok());
        reloaded
    }

    fn try_reload(&mut self) -> Result<(), StartError> {
        let config = Config::read(&self.path)?;
        let keys_changed = config.credentials.changed();
        self.shared.config().check_fixed(&config)?;
        let lease = Options::default().redirect_lease;
        let (destinations, policy) = hosts::known(&config.hosts, lease)?;
        let (identity, trust) = config.credentials.read(&config.hosts)?;
        self.shared.endpoint.reload(&identity, &trust)?;
        self.keys_changed = keys_changed;
        self.arrivals.set_policy(policy);
        self.shared.set(config, by_name(destinations));
        Ok(())
    }

    /// Serves, for ever. Cancel-safe: [`Agent::reload`] can be called in between.
    pub async fn run(&mut self) {
        if let Some(door) = self.metrics.take() {
            let shared = self.shared.clone();
            let metrics = shared.metrics.clone();
            tokio::spawn(door.serve(metrics, move || shared.look()));
        }
        let mut looks = interval_at(Instant::now() + LOOKED, LOOKED);
        loop {
            tokio::select! {
                _ = looks.tick() => self.renew_keys(),
                accepted = accept(&self.listener), if self.clients.len() < CLIENTS => match accepted {
                    Ok(socket) => {
                        self.last += 1;
                        let serving = client::serve(self.shared.clone(), socket, self.last);
                        self.clients.spawn(serving);
                    }
                    Err(error) => {
                        tracing::error!(%error, "nobody can connect");
                        sleep(FAILED).await;
                    }
                },
                Some(arrived) = self.arrivals.next() => self.shared.arrived(arrived),
                Some(_) = self.clients.join_next() => {}
            }
        }
    }

    /// Reads certificates again that somebody has renewed. What cannot be read yet, because its key is still to come, is tried again.
    fn renew_keys(&mut self) {
        let config = self.shared.config();
        let changed = config.credentials.changed();
        if changed.is_none() || changed == self.keys_changed {
            return;
        }
        let read = config.credentials.read(&config.hosts);
        let renewed = read
            .map_err(StartError::from)
            .and_then(|(identity, trust)| Ok(self.shared.endpoint.reload(&identity, &trust)?));
        self.shared.metrics.count_reload(renewed.is_ok());
        match renewed {
            Ok(()) => {
                self.keys_changed = changed;
                tracing::info!("the certificates were renewed");
            }
            Err(error) => tracing::warn!(%error, "the certificates are not renewed yet"),
        }
    }

    /// Lets what is under way come to its end, for so long at most. What is in doubt then is in the journal.
    pub async fn finish(self, within: Duration) {
        let _ = fs::remove_file(self.socket());
        let ended = async {
            while self.shared.given.count() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(within, ended).await.is_err() {
            let left = self.shared.given.count();
            tracing::warn!(left, "the agent ends while connections are under way");
        }
        self.shared.endpoint.close("the agent ends").await;
    }
}

fn by_name(destinations: Vec<Destination>) -> HashMap<String, Destination> {
    let named = destinations.into_iter().map(|to| (to.name.clone(), to));
    named.collect()
}

fn open_door(at: &config::Metrics) -> Result<Door, StartError> {
    Door::open(at).map_err(|error| StartError::Socket {
        what: format!("metrics at {at:?}"),
        error,
    })
}

fn listen(config: &Config) -> Result<Ready, StartError> {
    let path = &config.socket;
    let open = || -> io::Result<Ready> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        remove_socket(path)?;
        let socket = packets::listen_at(path, MAX_PACKET).map_err(io::Error::other)?;
        // Nobody can have connected in between: who may is asked for by user all the same.
        fs::set_permissions(path, Permissions::from_mode(config.socket_mode))?;
        if config.socket_group.is_some() {
            std::os::unix::fs::chown(path, None, config.socket_group)?;
        }
        Ready::new(socket).map_err(io::Error::other)
    };
    open().map_err(|error| StartError::Socket {
        what: path.display().to_string(),
        error,
    })
}

async fn accept(listener: &Ready) -> Result<OwnedFd, LinkError> {
    let accept = |socket: &UnixStream| packets::accept(socket, MAX_PACKET);
    listener.when(Interest::READABLE, accept).await
}

impl Shared {
    fn config(&self) -> Arc<Config> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        config.clone()
    }

    fn destination(&self, name: &str) -> Option<Destination> {
        let destinations = self.destinations.read();
        let destinations = destinations.unwrap_or_else(PoisonError::into_inner);
        destinations.get(name).cloned()
    }

    fn set(&self, config: Config, destinations: HashMap<String, Destination>) {
        let config = Arc::new(config);
        let current = config.clone();
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        let mut known = self
            .destinations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *known = destinations;
        drop(known);
        self.registry
            .retain(|one| is_allowed(&current, one).is_ok());
    }

    fn register(&self, registration: Registration) -> Result<(), (&'static str, String)> {
        is_allowed(&self.config(), &registration)?;
        self.registry.add(registration);
        Ok(())
    }

    fn status(&self, user: u32) -> Status {
        let config = self.config();
        let mut status = Status {
            host: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hosts: config.hosts.keys().cloned().collect(),
            services: Vec::new(),
            moving: self.metrics.moving.get().unsigned_abs(),
            doubts: self.metrics.doubts.get().unsigned_abs(),
        };
        let of = (!config.is_admin(user)).then_some(user);
        self.registry.fill(&mut status, of);
        status
    }

    /// What the metrics have to say of this moment.
    fn look(&self) {
        let mut sessions: Vec<(Arc<str>, u64)> = Vec::new();
        for one in self.registry.all() {
            if sessions.iter().all(|(service, _)| *service != one.service) {
                let of_it = self.registry.all();
                let of_it: Vec<_> = of_it
                    .iter()
                    .filter(|other| other.service == one.service)
                    .collect();
                let count = count(|local| of_it.iter().any(|one| one.has(local)));
                sessions.push((one.service.clone(), count));
            }
        }
        let held = self.locker.list().unwrap_or_default();
        let redirects = held
            .iter()
            .filter(|entry| matches!(entry.kind, EntryKind::Redirect { .. }));
        let redirects = redirects.count() as u64;
        let locks = held.len() as u64 - redirects;
        self.metrics
            .set_now(&sessions, [("lock", locks), ("redirect", redirects)]);
    }

    /// Settles with the targets what an agent before this one had begun.
    fn resolve_earlier(self: Arc<Self>) {
        let left = self.left_open.lock();
        if left.unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
        // Before anybody can ask.
        let Ok(mut earlier) = self.earlier.clone().try_lock_owned() else {
            return;
        };
        tokio::spawn(async move {
            *earlier = self.mover.resolve().await;
            for resolved in &*earlier {
                let (id, flow) = (resolved.open.id, resolved.open.about.flow);
                tracing::info!(%id, %flow, fate = ?resolved.fate, reason = resolved.reason, "what an earlier agent had begun");
            }
        });
    }
}

/// Whether the configuration allows a registration.
fn is_allowed(config: &Config, one: &Registration) -> Result<(), (&'static str, String)> {
    let user = one.client.user;
    let service = config.services.get(&*one.service);
    let Some(service) = service.filter(|service| service.may_serve(user)) else {
        let reason = format!("user {user} does not serve {:?}", one.service);
        return Err(("denied", reason));
    };
    if one.addresses.is_empty() {
        return Err(("invalid", "it is registered for no address".to_owned()));
    }
    match one
        .addresses
        .iter()
        .find(|address| !service.may_listen(**address))
    {
        None => Ok(()),
        Some(address) => Err((
            "denied",
            format!("{address} is not of the service {:?}", one.service),
        )),
    }
}
