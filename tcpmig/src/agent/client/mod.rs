//! A server's end of the agent's socket.

mod actor;
mod drains;
mod way;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tcpmig_format::{FourTuple, Layer};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Status;
use super::link::LinkError;
use super::wire::Kind;
use crate::handover::Refusal;
use crate::session::Arrival;
use actor::{Actor, Command};

pub use drains::{Drain, Draining, Progress};
pub use way::{NotGiven, ServerWay};

/// Why the agent does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// It cannot be reached.
    #[error("the agent at {}: {source}", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It refuses.
    #[error("the agent refuses: {reason} ({code})")]
    Refused {
        /// One of the codes of AGENT.md.
        code: String,
        /// Why, for a person to read.
        reason: String,
    },
    /// It ended, or the link to it did, before it answered.
    #[error("the agent is gone")]
    Gone,
}

/// A service of a server, to be [registered](Client::register).
pub struct Service {
    name: String,
    addresses: Vec<SocketAddr>,
    sessions: Option<Vec<Kind>>,
    takes: Option<Arc<Accepts>>,
}

/// A connection that another host offers, before it leaves there.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Offer {
    /// Its addresses and ports, seen from this host.
    pub flow: FourTuple,
    /// The name of the host that offers it.
    pub from: Arc<str>,
    /// What runs on it, from the bottom up.
    pub layers: Vec<Layer>,
}

/// What was made ready for a connection: [`Arrival::ready`].
type Made = Box<dyn Any + Send>;
type Deciding = Pin<Box<dyn Future<Output = Result<Made, Refusal>> + Send>>;
pub(super) type Accepts = dyn Fn(Offer) -> Deciding + Send + Sync;

impl Service {
    /// A service by its name in the agent's configuration.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            addresses: Vec::new(),
            sessions: None,
            takes: None,
        }
    }

    /// It is served on this address; `0.0.0.0:80` is port 80 of all. Needs one at least.
    #[must_use]
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Connections with layers of this kind and these versions can go on here; of a session of two layers, name
    /// both. Without this each connection is asked about.
    #[must_use]
    pub fn session(mut self, kind: impl Into<String>, oldest: u32, newest: u32) -> Self {
        let kind = kind.into();
        self.sessions.get_or_insert_default().push(Kind {
            kind,
            oldest,
            newest,
        });
        self
    }

    /// It takes connections in: `accepts` is asked before one leaves its host, and what it makes ready comes with the connection as
    /// [`Arrival::ready`]. If that does not come after all, it is dropped. Nobody serves the connection meanwhile: the agent waits two
    /// seconds.
    #[must_use]
    pub fn takes<F, T>(mut self, accepts: impl Fn(Offer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        let accepts = move |offer| -> Deciding {
            let deciding = accepts(offer);
            Box::pin(async move { Ok(Box::new(deciding.await?) as Made) })
        };
        self.takes = Some(Arc::new(accepts));
        self
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// What the agent has for a service.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection moved here.
    Arrived(Arrival),
    /// The service is to give its connections away.
    Drain(Drain),
    /// Somebody wants one connection to move: give it if it is here and can.
    Wanted {
        /// The connection.
        flow: FourTuple,
        /// The host that it is to go to.
        to: String,
    },
}

/// What became of a connection that an admin wanted to move.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It lives on the other host; what that cost.
    Moved(BTreeMap<String, u64>),
    /// It goes on here.
    Kept(NotGiven),
    /// It is over.
    Lost(String),
    /// It lives on the other host or nowhere, and nobody answers for it. The agent goes on asking.
    InDoubt,
}

/// What the agent has for a service, one after another. Dropping it closes what arrives later, and refuses what is offered.
#[derive(Debug)]
pub struct Events(mpsc::UnboundedReceiver<Event>);

impl Events {
    /// The next; `None` when the [`Client`] is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// Speaks to the agent of this host, on a task of its own that ends when the last clone of this is dropped and nothing is under way.
///
/// If the agent ends, connections go on. This connects again as soon as there is one, registers again, and asks what became of the
/// connections that were being given.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
    gives: Arc<Semaphore>,
    host: Arc<str>,
}

impl Client {
    /// Connects to the agent at this socket ([`DEFAULT_SOCKET`](super::DEFAULT_SOCKET)). Needs a tokio runtime with input and output.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`], also if this user may not talk to it.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, AgentError> {
        let path = path.as_ref();
        let failed = |error: LinkError| AgentError::Unreachable {
            path: path.to_owned(),
            source: match error {
                LinkError::Closed => io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "it has nothing to say to this user",
                ),
                LinkError::Socket(tcpmig_sys::Error::Call { source, .. }) => source,
                other => io::Error::other(other.to_string()),
            },
        };
        let connected = actor::connect(path).await.map_err(failed)?;
        let (sender, commands) = mpsc::unbounded_channel();
        let gives = Arc::new(Semaphore::new(connected.gives));
        let host = connected.host.as_str().into();
        let actor = Actor::new(path.to_owned(), commands, sender.downgrade());
        tokio::spawn(actor.run(connected));
        Ok(Self {
            commands: sender,
            gives,
            host,
        })
    }

    /// The name of this host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Registers a service, for as long as this client and its clones live.
    ///
    /// # Errors
    ///
    /// [`AgentError::Refused`] if the agent's configuration does not allow it, [`AgentError::Gone`].
    pub async fn register(&self, service: Service) -> Result<Events, AgentError> {
        let (events, received) = mpsc::unbounded_channel();
        let register = |answer| Command::Register {
            service: Arc::new(service),
            events,
            answer,
        };
        self.ask(register).await?;
        Ok(Events(received))
    }

    /// The way by which connections of this service leave. It need not be registered here.
    #[must_use]
    pub fn way(&self, service: impl Into<String>) -> ServerWay {
        ServerWay::new(self.clone(), service.into())
    }

    /// What the agent does and knows.
    ///
    /// # Errors
    ///
    /// [`AgentError::Gone`].
    pub async fn status(&self) -> Result<Status, AgentError> {
        self.ask(|answer| Command::Status { answer }).await
    }

    /// Asks for a service, or for all, to be drained to these hosts, in turn. Only for admins of the agent.
    ///
    /// # Errors
    ///
    /// [`AgentError::Refused`], [`AgentError::Gone`].
    pub async fn drain(
        &self,
        service: Option<String>,
        to: Vec<String>,
    ) -> Result<Draining, AgentError> {
        let (progress, received) = mpsc::unbounded_channel();
        let drain = Command::Drain {
            service,
            to,
            progress,
        };
        self.commands.send(drain).map_err(|_| AgentError::Gone)?;
        Draining::begun(received).await
    }

    /// Moves a connection of this host. Without a socket the servers that are registered for its address are asked, and the one that
    /// has it gives it. With one it is of a process that knows nothing of this: that must stand still until it is done, and afterwards
    /// finds its descriptor closed unless the connection is kept. If this ends before, the move is cancelled. If the agent ends, the
    /// next one brings back what it had not committed; without one for ten seconds it is [in doubt](Fate::InDoubt). Only for admins of the agent.
    ///
    /// # Errors
    ///
    /// [`AgentError::Gone`] without a socket: what became of it is not known.
    pub async fn move_connection(
        &self,
        flow: FourTuple,
        to: impl Into<String>,
        socket: Option<OwnedFd>,
    ) -> Result<Fate, AgentError> {
        let to = to.into();
        let order = |answer| Command::Move {
            flow,
            to,
            socket,
            answer,
        };
        self.ask(order).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, AgentError>>) -> Command,
    ) -> Result<T, AgentError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(command(answer));
        sent.map_err(|_| AgentError::Gone)?;
        answered.await.unwrap_or(Err(AgentError::Gone))
    }
}
