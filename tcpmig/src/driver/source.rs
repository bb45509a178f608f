//! The source's side: giving a connection away.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tcpmig_format::{EncodeError, FourTuple, Layer};
use tcpmig_lock::{LockError, LockGuard, Locker};
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::{Endpoint, Exchange, TransportError};
use tokio::time::timeout;

use super::batch::{self, Moves};
use super::doubt::InDoubt;
use super::journal::{Journal, NoJournal};
use super::keeper::Keeper;
use super::moving::{self, Move};
use super::together::{Locks, Redirects};
use super::unclaimed::Unclaimed;
use super::worker::Worker;
use super::{Options, Report};
use crate::capture::{CaptureError, Frozen};
use crate::handover::{Fate, HandoverId, Message, MessageError, Refusal, VERSION};
use crate::steer::{Steer, SteerError};

/// Gives connections away.
#[derive(Clone)]
pub struct Mover {
    endpoint: Endpoint,
    pub(super) locker: Arc<dyn Locker>,
    pub(super) options: Options,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) unclaimed: Arc<Unclaimed>,
    pub(super) worker: Worker,
    pub(super) together: Arc<SourceTogether>,
    keeper: Arc<Keeper>,
}

/// What handovers of a source do together.
pub(super) struct SourceTogether {
    pub(super) locks: Locks,
    pub(super) redirects: Redirects,
}

/// A connection that is to leave this host.
#[derive(Debug)]
pub struct Connection {
    /// Its socket, which the application has stopped using.
    pub socket: OwnedFd,
    /// What runs on it, from the bottom up.
    pub layers: Vec<Layer>,
}

impl<T: Into<OwnedFd>> From<T> for Connection {
    fn from(socket: T) -> Self {
        Self {
            socket: socket.into(),
            layers: Vec::new(),
        }
    }
}

/// A host that takes connections.
#[derive(Clone)]
pub struct Destination {
    /// Where it is reached.
    pub address: SocketAddr,
    /// The name that its certificate must carry.
    pub name: String,
    /// How the packets get there.
    pub steer: Arc<dyn Steer>,
}

/// How a handover ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Its name, which is the same in the logs and journals of both hosts.
    pub id: HandoverId,
    /// The connection, if it got as far as that.
    pub flow: Option<FourTuple>,
    /// Where it is.
    pub ending: Ending,
    /// What it cost.
    pub report: Report,
}

/// Where a connection is after [`Mover::move_out`].
#[derive(Debug)]
#[must_use]
pub enum Ending {
    /// It lives on the target.
    Moved,
    /// It goes on here.
    Kept {
        /// Its socket.
        socket: OwnedFd,
        /// Its layers, as they were given.
        layers: Vec<Layer>,
        /// Why.
        reason: Reason,
    },
    /// It is gone: it lived on the target and ended with the target's process, which says so.
    Lost(String),
    /// COMMIT was sent and nobody answers for it.
    InDoubt(Box<InDoubt>),
}

impl Ending {
    /// The same as one word.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::Moved => Fate::Moved,
            Self::Kept { .. } => Fate::Kept,
            Self::Lost(_) => Fate::Lost,
            Self::InDoubt(_) => Fate::InDoubt,
        }
    }
}

/// Why a connection was kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It could not be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Its packets could not be steered to the target.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// The link to the target failed before COMMIT.
    #[error("link to the target: {0}")]
    Link(#[from] TransportError),
    /// The target closed the exchange before COMMIT.
    #[error("the target closed the exchange without an answer")]
    Closed,
    /// The target sent something else than the protocol allows.
    #[error("the target does not follow the protocol: {0}")]
    Protocol(#[from] MessageError),
    /// The target sent a message that does not fit.
    #[error("the target does not follow the protocol: {0} was not expected")]
    Unexpected(&'static str),
    /// The image could not be encoded.
    #[error("image: {0}")]
    Encode(#[from] EncodeError),
    /// The target refused the connection.
    #[error("the target refused it: {0}")]
    Refused(Refusal),
    /// The target could not build it, or had given it up when COMMIT came.
    #[error("the target gave it up: {0}")]
    Aborted(Refusal),
    /// PREPARED did not come in time.
    #[error("the target did not prepare it within {0:?}")]
    TooLate(Duration),
    /// The target speaks other versions of the protocol.
    #[error("the target speaks versions {oldest} to {newest} of the protocol, this host {VERSION}")]
    Version {
        /// The oldest that it speaks.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
    /// The move was cancelled before COMMIT, by [`Move::cancel`] or because its runtime ended.
    #[error("the move was cancelled")]
    Cancelled,
    /// It was in doubt, and a person decided that it goes on here ([`InDoubt::settle`]). The target may have it as well.
    #[error("it was in doubt, and it was settled by hand that it goes on here")]
    Settled,
    /// It was part of a batch that was stopped before its turn, by [`Moves::stop`] or because the target did not
    /// answer for another one.
    #[error("the batch was stopped before its turn")]
    Stopped,
    /// The handover could not be noted.
    #[error("journal: {0}")]
    Journal(std::io::Error),
    /// The system had no randomness for an identifier.
    #[error("getrandom: {0}")]
    Random(std::io::Error),
}

impl Mover {
    /// Moves through this endpoint, with this locker.
    #[must_use]
    pub fn new(endpoint: Endpoint, locker: Arc<dyn Locker>, options: Options) -> Self {
        Self {
            endpoint,
            keeper: Arc::new(Keeper::new(locker.clone())),
            worker: Worker::new(),
            together: Arc::new(SourceTogether {
                locks: Locks::new(locker.clone(), options.lease),
                redirects: Redirects::default(),
            }),
            locker,
            options,
            journal: Arc::new(NoJournal),
            unclaimed: Arc::default(),
        }
    }

    /// The same with a journal: if this process dies, the one after it can settle with
    /// [`Mover::resolve`] what was under way. A handover that cannot be noted is not begun, or given up before COMMIT.
    #[must_use]
    pub fn with_journal(self, journal: Arc<dyn Journal>) -> Self {
        Self { journal, ..self }
    }

    /// Does everything about connections in this network namespace, wherever the threads of the runtime are: so one process moves
    /// connections of several, with a mover for each. The endpoint can be in another one.
    ///
    /// What the mover is given has to be of that namespace: the locker
    /// ([`Backend::open_in`](tcpmig_lock::Backend::open_in)), and how a [`Destination`] is steered to
    /// ([`Redirected::new`](crate::steer::Redirected::new) on a thread that is there).
    ///
    /// # Errors
    ///
    /// If a thread cannot enter it, which needs `CAP_SYS_ADMIN` in the user namespaces that own it and the one it comes from.
    pub fn in_namespace(self, namespace: Namespace) -> Result<Self, tcpmig_sys::Error> {
        let worker = Worker::in_namespace(namespace)?;
        Ok(Self { worker, ..self })
    }

    /// Moves one connection, with the layers that run on it from the bottom up, to another host.
    ///
    /// The application must have stopped using the socket. Whatever fails before COMMIT, the
    /// connection goes on here ([`Ending::Kept`]); after it nothing thaws without the
    /// target's word.
    ///
    /// It goes on by itself, on a task of the current runtime: whoever does not want to wait for it drops what this returns, and
    /// finds the outcome among [`Mover::unclaimed`]; [`Move::cancel`] ends it early.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn move_out(
        &self,
        socket: OwnedFd,
        layers: impl IntoIterator<Item = Layer>,
        to: &Destination,
    ) -> Move {
        let layers = layers.into_iter().collect();
        let connection = Connection { socket, layers };
        moving::begin(self, connection, Arc::new(to.clone()))
    }

    /// Moves many connections to another host, each with a fate of its own: one that cannot be moved stops no other.
    ///
    /// They are prepared, frozen, sent and rebuilt side by side on tasks of the current runtime, as many frozen at
    /// a time as [`Options::in_flight`] and [`Options::bytes_in_flight`] say, so that none stands still for longer
    /// because there are many. A target that does not answer for one of them is not given those whose turn comes
    /// later ([`Reason::Stopped`]).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn move_all<C: Into<Connection>>(
        &self,
        connections: impl IntoIterator<Item = C>,
        to: &Destination,
    ) -> Moves {
        let connections = connections.into_iter().map(Into::into);
        batch::begin(self, connections.collect(), to)
    }

    /// What became of moves that nobody waits for any longer, since the last call: it waits for those that are under way. Until they
    /// are taken, this mover and its clones keep their descriptors open. A program that ends before asks here. Cancel-safe.
    #[must_use = "dropping it closes the connections"]
    pub async fn unclaimed(&self) -> Vec<Outcome> {
        self.unclaimed.settled().await;
        self.worker.settled().await;
        self.unclaimed.take()
    }

    /// Whether what is done for each connection, locking it and noting it, can wait. If not it is done on the task that moves
    /// it, and no connection stands still for the sake of a change of threads.
    pub(super) fn waits(&self) -> bool {
        self.locker.features().waits || self.journal.waits() || self.worker.is_elsewhere()
    }

    /// The same with nothing unclaimed.
    pub(super) fn apart(&self) -> Self {
        Self {
            unclaimed: Arc::default(),
            ..self.clone()
        }
    }

    /// Tells whoever reads the log or the journal that nobody answers for a handover.
    pub(super) fn say_in_doubt(
        &self,
        id: HandoverId,
        flow: FourTuple,
        host: &str,
        address: Option<SocketAddr>,
    ) {
        tracing::warn!(
            %id, %flow, target = host, address = ?address,
            "a handover is in doubt: COMMIT was sent, and the target does not say whether it has the connection. Nothing of it leaves this \
             host as long as the doubt is kept. Bring the target back or the link to it, and ask again; or find out which host has the connection, \
             and settle it by hand (tcpmig locks --journal FILE --settle ID kept|moved|lost)"
        );
        if let Err(error) = self.journal.in_doubt(id) {
            tracing::warn!(%id, "the journal does not have that a handover is in doubt: {error}");
        }
    }

    /// Renews what silences a connection, until it is settled.
    pub(super) fn keep_silent(&self, frozen: &Frozen) {
        self.keeper.keep(frozen.to_keep());
    }

    /// Ends the redirect of a connection that is lost: another one of the same addresses would be sent to the target. The
    /// lock of a process that died ends with its lease, which is short.
    pub(super) fn end_redirect(&self, flow: FourTuple) {
        if let Err(error) = self.locker.end_redirects(&[flow]) {
            tracing::debug!(%flow, %error, "what the process that died left is left to its lease");
        }
    }

    /// Ends the redirect that a process left which has died. One that was made since, for another handover of the same connection,
    /// goes on.
    pub(super) fn end_left(&self, flow: FourTuple) {
        let ended = match self.locker.redirects(&flow) {
            Ok(false) => return,
            Ok(true) => self.locker.take_over(&[flow], self.options.lease),
            Err(error) => Err(error),
        };
        match ended.and_then(LockGuard::release) {
            Err(LockError::Unsupported { .. }) => self.end_redirect(flow),
            Err(error) => {
                tracing::debug!(%flow, %error, "what the process that died left is left to its lease");
            }
            Ok(()) => {}
        }
    }

    /// Begins what a connection that stands still needs. Before it does: making a thread takes a moment.
    pub(super) fn start(&self) {
        self.keeper.start();
        self.worker.start();
    }

    pub(super) async fn open(&self, to: &Destination) -> Result<Exchange, TransportError> {
        self.open_at(to.address, &to.name).await
    }

    pub(super) async fn open_at(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> Result<Exchange, TransportError> {
        let peer = self.endpoint.connect(address, name).await?;
        let opening = async {
            let mut exchange = peer.open().await?;
            // It leaves with the first message.
            let (hello, _) = Message::hello().encode();
            exchange.queue(hello)?;
            Ok(exchange)
        };
        let within = self.options.prepared_within;
        timeout(within, opening).await.unwrap_or_else(|_| {
            Err(TransportError::Unreachable {
                peer: address,
                reason: format!("it took no exchange within {within:?}"),
            })
        })
    }
}
