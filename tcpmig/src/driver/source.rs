//! The source's side: giving a connection away.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{EncodeError, FourTuple, Image, Layer};
use tcpmig_lock::{LockGuard, Locker, NoLock};
use tcpmig_sys::sockopt;
use tcpmig_transport::{Endpoint, Exchange, TransportError};
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::batch::{self, Limits, Moves};
use super::doubt::Doubt;
use super::journal::{About, Journal, Note, Nowhere, Role};
use super::keeper::Keeper;
use super::report::micros;
use super::run::Run;
use super::spans;
use super::unclaimed::{Claim, Leaving, Unclaimed};
use super::worker::Worker;
use super::{Options, Report};
use crate::capture::{CaptureError, Frozen, NotFrozen, Plan};
use crate::handover::{Fate, HandoverId, Message, MessageError, Source, VERSION};
use crate::steer::{Elsewhere, Steer, SteerError, Steering};

/// Gives connections away.
#[derive(Clone)]
pub struct Mover {
    endpoint: Endpoint,
    pub(super) locker: Arc<dyn Locker>,
    pub(super) options: Options,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) unclaimed: Arc<Unclaimed>,
    pub(super) worker: Worker,
    keeper: Arc<Keeper>,
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
pub struct Outcome {
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
    InDoubt(Box<Doubt>),
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
    Refused(String),
    /// The target had given it up when COMMIT came.
    #[error("the target had given it up: {0}")]
    Aborted(String),
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
    /// The future or stream of the move was dropped before COMMIT.
    #[error("nobody waited for the move any longer")]
    Cancelled,
    /// It was in doubt, and a person decided that it goes on here ([`Doubt::settle`]). The target may have it as well.
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
            locker,
            options,
            journal: Arc::new(Nowhere),
            unclaimed: Arc::default(),
        }
    }

    /// The same with a journal: if this process dies, the one after it can settle with
    /// [`Mover::resolve`] what was under way. A handover that cannot be noted is not begun, or given up before COMMIT.
    #[must_use]
    pub fn with_journal(self, journal: Arc<dyn Journal>) -> Self {
        Self { journal, ..self }
    }

    /// Moves one connection, with the layers that run on it from the bottom up, to another host.
    ///
    /// The application must have stopped using the socket. Whatever fails before COMMIT, the
    /// connection goes on here ([`Ending::Kept`]); after it nothing thaws without the
    /// target's word.
    ///
    /// Cancel-safe at every point: a connection whose future is dropped, even before it was polled, is among
    /// [`Mover::unclaimed`]. Before COMMIT it goes on here ([`Reason::Cancelled`]) and the target is told,
    /// afterwards it is in doubt.
    pub fn move_out(
        &self,
        socket: OwnedFd,
        layers: impl IntoIterator<Item = Layer>,
        to: &Destination,
    ) -> impl Future<Output = Outcome> + Send {
        let layers = layers.into_iter().collect();
        let leaving = Leaving::new(self, Connection { socket, layers });
        self.hand_over(leaving, to, None)
    }

    /// Moves many connections to another host, each with a fate of its own: one that cannot be moved stops no other.
    ///
    /// They are prepared, frozen, sent and rebuilt side by side on tasks of the current runtime, as many frozen at
    /// a time as [`Options::in_flight`] and [`Options::octets_in_flight`] say, so that none stands still for longer
    /// because there are many. A target that does not answer for one of them is not given those whose turn comes
    /// later ([`Reason::Stopped`]).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use = "dropping it cancels the moves"]
    pub fn move_all<C: Into<Connection>>(
        &self,
        connections: impl IntoIterator<Item = C>,
        to: &Destination,
    ) -> Moves {
        let connections = connections.into_iter().map(Into::into);
        let leaving = connections.map(|connection| Leaving::new(self, connection));
        batch::begin(self, leaving.collect(), to)
    }

    /// What became of connections whose future or stream was dropped, since the last call. Until they are taken,
    /// this mover and its clones keep their descriptors open.
    ///
    /// To bring such a connection back to life can take a moment, in which nobody waits for it; this does. A program that ends
    /// before asks here. Cancel-safe.
    #[must_use = "dropping it closes the connections"]
    pub async fn unclaimed(&self) -> Vec<Outcome> {
        self.worker.settled().await;
        self.unclaimed.take()
    }

    /// Whether what is done for each connection, locking it and noting it, can wait. If not it is done on the task that moves
    /// it, and no connection stands still for the sake of a change of threads.
    pub(super) fn waits(&self) -> bool {
        self.locker.abilities().waits || self.journal.waits()
    }

    /// The same with nothing unclaimed.
    pub(super) fn apart(&self) -> Self {
        Self {
            unclaimed: Arc::default(),
            ..self.clone()
        }
    }

    /// Notes where a connection is, once that is so. A handover in doubt stays open.
    pub(super) fn note_end(&self, id: HandoverId, fate: Fate) {
        let note = match fate {
            Fate::Kept => Note::Kept,
            Fate::Moved => Note::Moved,
            Fate::Lost => Note::Lost,
            Fate::InDoubt => return,
        };
        if let Err(error) = self.journal.note(id, note) {
            tracing::warn!(%id, ?note, "the journal does not have the end of a handover: {error}");
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

    /// Everything that takes time, while the connection still lives.
    async fn prepare(
        &self,
        leaving: &mut Leaving,
        to: &Destination,
    ) -> Result<(Plan, Box<dyn Steering>, Exchange), Reason> {
        let plan = Plan::of(leaving.socket().as_fd())?;
        leaving.flow = Some(plan.flow());
        self.keeper.start();
        self.worker.start();
        let flow = plan.flow();
        tracing::Span::current().record("flow", tracing::field::display(flow));
        // What has ended has no packets, and another connection may live with its addresses and ports.
        let steer: Arc<dyn Steer> = if plan.has_ended() {
            Arc::new(Elsewhere)
        } else {
            to.steer.clone()
        };
        let waits = to.steer.waits() || self.locker.abilities().waits;
        let locker = self.locker.clone();
        let planning = move || steer.plan(flow, &*locker);
        let steering = self.worker.call(waits, planning).await?;
        let exchange = self.open(to).await?;
        Ok((plan, steering, exchange))
    }

    /// Lets the peer fetch what waits in the send queue; how long that took.
    async fn settle(&self, socket: &OwnedFd) -> u64 {
        let begin = Instant::now();
        let little = self.options.settled_below;
        while begin.elapsed() < self.options.settle
            // A socket that cannot say will fail where the error can be told.
            && sockopt::send_queue_len(socket.as_fd()).is_ok_and(|octets| octets > little)
        {
            sleep(Duration::from_millis(1)).await;
        }
        micros(begin)
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
            let (hello, _) = Message::hello().encode();
            exchange.send(hello).await?;
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

    pub(super) async fn hand_over(
        &self,
        leaving: Leaving,
        to: &Destination,
        limits: Option<&Limits>,
    ) -> Outcome {
        let id = match HandoverId::random() {
            Ok(id) => id,
            Err(error) => return leaving.kept(Reason::Random(error)),
        };
        let handing_over = async {
            let outcome = self.hand_over_as(id, leaving, to, limits).await;
            match &outcome.ending {
                Ending::Moved => tracing::info!("the connection lives on the target"),
                Ending::Kept { reason, .. } => {
                    tracing::info!(%reason, "the connection goes on here");
                }
                Ending::Lost(reason) => tracing::warn!(reason, "the connection is lost"),
                // It was said when it came to that.
                Ending::InDoubt(_) => {}
            }
            outcome
        };
        handing_over.instrument(spans::source(id, &to.name)).await
    }

    async fn hand_over_as(
        &self,
        id: HandoverId,
        mut leaving: Leaving,
        to: &Destination,
        limits: Option<&Limits>,
    ) -> Outcome {
        if let Some(Err(reason)) = limits.map(Limits::check) {
            return leaving.kept(reason);
        }
        let (plan, steering, exchange) = match self.prepare(&mut leaving, to).await {
            Ok(prepared) => prepared,
            Err(reason) => return leaving.kept(reason),
        };
        let settle_us = self.settle(leaving.socket()).await;
        let _turn = match limits {
            Some(limits) => match limits.turn(queued(leaving.socket())).await {
                Ok(turn) => Some(turn),
                Err(reason) => return leaving.kept(reason),
            },
            None => None,
        };
        let taking = {
            let (mover, to) = (self.clone(), Arc::new(to.clone()));
            move || mover.take(id, leaving, plan, to, exchange)
        };
        let taken = match self.worker.call(self.waits(), taking).await {
            Ok(taken) => taken,
            Err(claim) => return claim.take(),
        };
        let Taken {
            mut run,
            image,
            flow,
            mut report,
            begin,
        } = taken;
        let decided = run.offer(image, steering, &mut report).await;
        report.blackout_us = micros(begin);
        if let Some(exchange) = &run.exchange {
            let stats = exchange.stats();
            report.frames_sent = stats.frames_sent;
            report.frames_received = stats.frames_received;
        }
        report.settle_us = settle_us;
        Outcome {
            flow: Some(flow),
            ending: run.finish(decided).await,
            report,
        }
    }

    /// Notes that the handover begins, locks and freezes the connection and reads it. All that is left of it is in what this
    /// answers, which looks after it when it is dropped.
    fn take(
        self,
        id: HandoverId,
        leaving: Leaving,
        plan: Plan,
        to: Arc<Destination>,
        exchange: Exchange,
    ) -> Result<Taken, Box<Claim>> {
        let flow = plan.flow();
        let about = About {
            role: Role::Source,
            flow,
            host: to.name.clone(),
            address: Some(to.address),
        };
        if let Err(error) = self.journal.begin(id, &about) {
            let kept = leaving.kept(Reason::Journal(error));
            return Err(Claim::new(&self, kept).into());
        }
        let begin = Instant::now();
        // Nothing waits for another host from here until `Run` answers for the connection.
        let locker: &dyn Locker = if plan.has_ended() {
            &NoLock
        } else {
            &*self.locker
        };
        let lock = match locker.lock(&[flow], self.options.lease) {
            Ok(lock) => lock,
            Err(error) => {
                self.note_end(id, Fate::Kept);
                let reason = CaptureError::from(error).into();
                return Err(Claim::new(&self, leaving.kept(reason)).into());
            }
        };
        let lock_us = micros(begin);
        let reading = Instant::now();
        let (socket, layers) = leaving.into_parts();
        let lock = (lock, self.options.lease);
        match read(socket, layers.clone(), plan, lock) {
            Ok((frozen, image, mut report)) => {
                report.read_us = micros(reading);
                report.lock_us = lock_us;
                self.keeper.keep(frozen.to_keep());
                let machine = Source::offered();
                let run = Run::new(self, to, frozen, machine, id, layers, Some(exchange));
                Ok(Taken {
                    run: Box::new(run),
                    image,
                    flow,
                    report,
                    begin,
                })
            }
            Err((socket, reason)) => {
                let kept = Outcome {
                    flow: Some(flow),
                    ending: Ending::Kept {
                        socket,
                        layers,
                        reason,
                    },
                    report: Report::default(),
                };
                let claim = Claim::new(&self, kept);
                self.note_end(id, Fate::Kept);
                Err(claim.into())
            }
        }
    }
}

/// A connection that stands still and was read.
struct Taken {
    run: Box<Run>,
    image: Bytes,
    flow: FourTuple,
    report: Report,
    begin: Instant,
}

/// Octets in the queues of a socket; one that cannot say will fail where the error can be told.
fn queued(socket: &OwnedFd) -> u32 {
    let waiting = sockopt::send_queue_len(socket.as_fd()).unwrap_or(0);
    waiting.saturating_add(sockopt::receive_queue_len(socket.as_fd()).unwrap_or(0))
}

/// Freezes a connection whose packets are locked, and reads it.
fn read(
    socket: OwnedFd,
    layers: Vec<Layer>,
    plan: Plan,
    (lock, lease): (LockGuard, Duration),
) -> Result<(Frozen, Bytes, Report), (OwnedFd, Reason)> {
    let mut frozen = Frozen::freeze_locked(socket, plan, lock, lease)
        .map_err(|NotFrozen { fd, error }| (fd, error.into()))?;
    let image = match frozen.capture(layers) {
        Ok(image) => image,
        Err(error) => return Err((thaw(frozen), error.into())),
    };
    match image.encode() {
        Ok(octets) => {
            let mut report = Report::default();
            describe(&image, octets.len(), &mut report);
            Ok((frozen, octets.into(), report))
        }
        Err(error) => Err((thaw(frozen), error.into())),
    }
}

fn describe(image: &Image, octets: usize, report: &mut Report) {
    report.image_octets = octets as u64;
    if let Some(tcp) = image.tcp() {
        report.send_queue_octets = (tcp.send().sent.len() + tcp.send().unsent.len()) as u64;
        report.receive_queue_octets = tcp.receive().queue.len() as u64;
    }
}

/// The connection goes on here.
pub(super) fn thaw(frozen: Frozen) -> OwnedFd {
    frozen.keep().unwrap_or_else(|NotFrozen { fd, error }| {
        // Why it is kept matters more than what went wrong on the way back.
        tracing::warn!("the connection is kept, but {error}");
        fd
    })
}
