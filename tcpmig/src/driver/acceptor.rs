//! Takes connections in: the builder, and the loops that wait for hosts and their exchanges.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_core::Stream;
use tcpmig_lock::Locker;
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::{Endpoint, Peer, TransportError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::Options;
use super::arrival::{Accepts, AcceptsAsync, Arrived, Deciding, Offer, Offered, Ready, Terms};
use super::exchange::serve_exchange;
use super::journal::{Journal, NoJournal};
use super::policy::Policy;
use super::target::Host;
use super::worker::Worker;
use crate::handover::Refusal;

/// Connections as they arrive.
///
/// Dropping it stops taking them in: what waits for COMMIT is discarded, so that its source keeps it, and what has arrived and
/// was not taken from here is closed.
pub struct Arrivals {
    arrived: mpsc::UnboundedReceiver<Arrived>,
    host: Weak<Host>,
    _tasks: JoinSet<()>,
}

impl Arrivals {
    /// Judges by this policy what is offered from now on. What was agreed to before comes.
    pub fn set_policy(&self, policy: Policy) {
        if let Some(host) = self.host.upgrade() {
            host.set_policy(policy);
        }
    }

    /// The next connection; `None` when the endpoint is closed. Cancel-safe: a connection that arrives while nobody
    /// waits is there for the next call.
    pub async fn next(&mut self) -> Option<Arrived> {
        self.arrived.recv().await
    }
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrivals").finish_non_exhaustive()
    }
}

impl Stream for Arrivals {
    type Item = Arrived;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Arrived>> {
        self.arrived.poll_recv(cx)
    }
}

/// Takes connections in from the hosts that the endpoint trusts.
///
/// ```no_run
/// # async fn example(endpoint: tcpmig_transport::Endpoint) -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use tcpmig::driver::{Acceptor, journal};
/// use tcpmig::handover::{Code, Refusal};
///
/// let locker = Arc::new(tcpmig::locker::nftables()?);
/// let journal = journal::File::open("/var/lib/example/arrivals".as_ref())?;
/// let mut arrivals = Acceptor::new(endpoint, locker)
///     .journal(Arc::new(journal))
///     .accept_if(|offered| {
///         let refusal = |reason: String| Refusal::new(Code::Session, reason);
///         let mut layers = offered.read_layers();
///         let session = layers.next_of("example");
///         session.ok_or_else(|| refusal("it is not a session of the kind example".to_owned()))?;
///         layers.finish().map_err(|left| refusal(left.to_string()))
///     })
///     .serve();
/// while let Some(arrived) = arrivals.next().await {
///     println!("{} came from {}", arrived.flow, arrived.from);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is taken in before `serve`"]
pub struct Acceptor {
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    options: Options,
    journal: Arc<dyn Journal>,
    policy: Policy,
    accepts: Option<Box<Accepts>>,
    accepts_async: Option<Box<AcceptsAsync>>,
    worker: Worker,
}

impl Acceptor {
    /// With the default [`Options`], the closed [`Policy::new`], no journal, and nobody to ask about
    /// layers: what brings one is refused.
    pub fn new(endpoint: Endpoint, locker: Arc<dyn Locker>) -> Self {
        Self {
            endpoint,
            locker,
            options: Options::default(),
            journal: Arc::new(NoJournal),
            policy: Policy::new(),
            accepts: None,
            accepts_async: None,
            worker: Worker::new(),
        }
    }

    /// Builds connections in this network namespace, wherever the threads of the runtime are, as
    /// [`Mover::in_namespace`](super::Mover::in_namespace) moves them out of one. The locker has to be of it
    /// ([`Backend::open_in`](tcpmig_lock::Backend::open_in)); the endpoint can be in another one. The hook of [`Acceptor::accept_if`] is
    /// called on a thread that is there.
    ///
    /// # Errors
    ///
    /// If a thread cannot enter it, which needs `CAP_SYS_ADMIN` in the user namespaces that own it and the one it comes from.
    pub fn in_namespace(mut self, namespace: Namespace) -> Result<Self, tcpmig_sys::Error> {
        self.worker = Worker::in_namespace(namespace)?;
        Ok(self)
    }

    /// How long things may take, and how much at a time.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Where to note what becomes of handovers: if this process dies, the one after it can say of
    /// each whether the connection died with it or never lived here.
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = journal;
        self
    }

    /// What is taken from whom, instead of what the closed default allows.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Asks the application before anything of a connection is built: it says why it does not take
    /// it. The source gets the code and the words, and keeps the connection. Who says yes has to go on with every
    /// layer: one that nobody here consumes is to be refused by its name ([`Offered::read_layers`]).
    ///
    /// It is called on the task that serves the source, whose other messages wait for it: it must
    /// not block.
    pub fn accept_if(
        mut self,
        accepts: impl Fn(&Offered<'_>) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Self {
        self.accepts = Some(Box::new(accepts));
        self
    }

    /// Like [`Acceptor::accept_if`], but the application may wait for something, and what it makes ready for the connection comes
    /// with it as [`Arrived::ready`]. If the connection does not come after all, that is dropped. With both hooks, this one is
    /// asked last.
    ///
    /// The connection lives meanwhile, and its source waits for [`Options::prepared_within`]. A decision is dropped in its middle if the
    /// endpoint is closed.
    pub fn accept_async<F, T>(
        mut self,
        accepts: impl Fn(Offer) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        let accepts = move |offer| -> Deciding {
            let deciding = accepts(offer);
            Box::pin(async move { Ok(Box::new(deciding.await?) as Ready) })
        };
        self.accepts_async = Some(Box::new(accepts));
        self
    }

    /// Begins.
    ///
    /// Runs on the current tokio runtime until the [`Arrivals`] are dropped or the endpoint is
    /// closed.
    #[must_use = "dropping the arrivals ends it"]
    pub fn serve(self) -> Arrivals {
        let (sender, arrived) = mpsc::unbounded_channel();
        let terms = Terms {
            options: self.options,
            policy: self.policy,
            accepts: self.accepts,
            accepts_async: self.accepts_async,
        };
        let host = Host::new(self.locker, terms, self.journal, (self.worker, sender));
        let mut tasks = JoinSet::new();
        let host = Arc::new(host);
        tasks.spawn(Host::keep_time(Arc::downgrade(&host)));
        let weak = Arc::downgrade(&host);
        tasks.spawn(accept(self.endpoint, host));
        Arrivals {
            arrived,
            host: weak,
            _tasks: tasks,
        }
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Acceptor");
        shown
            .field("options", &self.options)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

async fn accept(endpoint: Endpoint, host: Arc<Host>) {
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            peer = endpoint.accept() => match peer {
                Some(Ok(peer)) => {
                    info!(peer = peer.name(), address = %peer.address(), "a host connected");
                    peers.spawn(exchanges(peer, host.clone()));
                }
                // Anybody can begin handshakes and not end them. The endpoint reports how many did.
                Some(Err(error @ TransportError::HandshakeTimeout { .. })) => {
                    debug!(%error, "a host was turned away");
                }
                Some(Err(error)) => warn!(%error, "a host was turned away"),
                None => return,
            },
            Some(_) = peers.join_next() => {}
        }
    }
}

async fn exchanges(peer: Peer, host: Arc<Host>) {
    let mut open = JoinSet::new();
    let from: Arc<str> = peer.name().into();
    loop {
        tokio::select! {
            exchange = peer.accept() => match exchange {
                Some(Ok(exchange)) => match host.exchange() {
                    Some(place) => {
                        open.spawn(serve_exchange(exchange, place, host.clone(), from.clone()));
                    }
                    // Dropped: the source learns that it was abandoned, and keeps the connection.
                    None => warn!(from = &*from, "full: an exchange was turned away"),
                },
                Some(Err(error)) => {
                    debug!(%error, "the link to a host ended");
                    break;
                }
                None => break,
            },
            Some(_) = open.join_next() => {}
        }
    }
    // What is still in the pipe of an ended link gets its end as well.
    while open.join_next().await.is_some() {}
}
