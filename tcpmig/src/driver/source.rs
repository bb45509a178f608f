//! The source's side: giving a connection away.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tcpmig_format::{FourTuple, Layer};
use tcpmig_lock::{LockError, LockGuard, Locker};
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::{Endpoint, Exchange, TransportError};
use tokio::time::timeout;

use super::Options;
use super::journal::{Journal, NoJournal};
use super::keeper::Keeper;
use super::outcome::Outcome;
use super::together::{Locks, Redirects};
use super::unclaimed::Unclaimed;
use super::worker::Worker;
use crate::capture::Frozen;
use crate::handover::{HandoverId, Message};
use crate::steer::Steer;

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
