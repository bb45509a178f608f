//! The source's side: giving a connection away.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{AppImage, EncodeError, FourTuple, Image};
use tcpmig_lock::Locker;
use tcpmig_sys::sockopt;
use tcpmig_transport::{Endpoint, Exchange, TransportError};
use tokio::time::{sleep, timeout, timeout_at};
use tracing::debug;

use super::{Options, Report};
use crate::capture::{CaptureError, Frozen, NotFrozen, Plan};
use crate::handover::{
    Decoder, Fate, HandoverId, Message, MessageError, Source, SourceAction, SourceEvent,
};
use crate::steer::{Steer, SteerError, Steering};

/// Gives connections away.
#[derive(Clone)]
pub struct Mover {
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    options: Options,
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
        /// The application's state, as it was given.
        app: Option<AppImage>,
        /// Why.
        reason: Reason,
    },
    /// COMMIT was sent and nobody answers for it.
    InDoubt(Doubt),
}

impl Ending {
    /// The same as one word.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Self::Moved => Fate::Moved,
            Self::Kept { .. } => Fate::Kept,
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
    /// The system had no randomness for an identifier.
    #[error("getrandom: {0}")]
    Random(std::io::Error),
}

/// A connection of which nobody can say where it lives.
///
/// It is frozen and locked here. [`Doubt::ask`] asks the target again. Dropping it ends the
/// connection on this host without a packet, because thawing could make two owners; the lock stays until its lease
/// ends.
#[must_use = "dropping ends the connection on this host"]
pub struct Doubt {
    // `None` once it is settled.
    open: Option<Open>,
    mover: Mover,
    to: Destination,
}

struct Open {
    frozen: Frozen,
    machine: Source,
    id: HandoverId,
    app: Option<AppImage>,
}

impl Doubt {
    /// The handover that the target has to answer for.
    #[must_use]
    pub fn id(&self) -> Option<HandoverId> {
        self.open.as_ref().map(|open| open.id)
    }

    /// Asks the target again, for as long as [`Options::ask_for`].
    pub async fn ask(mut self) -> Ending {
        // INVARIANT: it is taken only here and on drop, and here `self` is consumed.
        let open = self.open.take().expect("a doubt is open until it is asked");
        let Open {
            frozen,
            machine,
            id,
            app,
        } = open;
        let mut run = Run::new(&self.mover, &self.to, frozen, machine, id, app, None);
        let ending = run.ask().await;
        run.finish(ending).await
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            // An error leaves the descriptor closed, which is as silent.
            let _ = open.frozen.discard();
        }
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubt").field("id", &self.id()).finish()
    }
}

impl Mover {
    /// Moves through this endpoint, with this locker.
    #[must_use]
    pub fn new(endpoint: Endpoint, locker: Arc<dyn Locker>, options: Options) -> Self {
        Self {
            endpoint,
            locker,
            options,
        }
    }

    /// Moves one connection, with its application's state, to another host.
    ///
    /// The application must have stopped using the socket. Whatever fails before COMMIT, the
    /// connection goes on here ([`Ending::Kept`]); after it nothing thaws without the
    /// target's word.
    ///
    /// Cancel-safe in this sense: dropping the future before COMMIT thaws the connection and
    /// closes this descriptor of it; afterwards it ends here without a packet.
    pub async fn move_out(
        &self,
        socket: OwnedFd,
        app: Option<AppImage>,
        to: &Destination,
    ) -> Outcome {
        let mut report = Report::default();
        let mut flow = None;
        let ending = match self.prepare(&socket, &mut flow, to).await {
            Ok((plan, steering, exchange, id)) => {
                report.settle_us = self.settle(&socket).await;
                self.hand_over(socket, app, plan, steering, exchange, id, to, &mut report)
                    .await
            }
            Err(reason) => Ending::Kept {
                socket,
                app,
                reason,
            },
        };
        Outcome {
            flow,
            ending,
            report,
        }
    }

    /// Everything that takes time, while the connection still lives.
    async fn prepare(
        &self,
        socket: &OwnedFd,
        flow: &mut Option<FourTuple>,
        to: &Destination,
    ) -> Result<(Plan, Box<dyn Steering>, Exchange, HandoverId), Reason> {
        let id = HandoverId::random().map_err(Reason::Random)?;
        let plan = Plan::of(socket.as_fd())?;
        *flow = Some(plan.flow());
        let steering = to.steer.plan(plan.flow())?;
        let exchange = self.open(to).await?;
        Ok((plan, steering, exchange, id))
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

    async fn open(&self, to: &Destination) -> Result<Exchange, TransportError> {
        let peer = self.endpoint.connect(to.address, &to.name).await?;
        peer.open().await
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one handover")]
    async fn hand_over(
        &self,
        socket: OwnedFd,
        app: Option<AppImage>,
        plan: Plan,
        steering: Box<dyn Steering>,
        exchange: Exchange,
        id: HandoverId,
        to: &Destination,
        report: &mut Report,
    ) -> Ending {
        let flow = plan.flow();
        let begin = Instant::now();
        let lock = match self.locker.lock(&[flow], self.options.lease) {
            Ok(lock) => lock,
            Err(error) => {
                let reason = CaptureError::from(error).into();
                return Ending::Kept {
                    socket,
                    app,
                    reason,
                };
            }
        };
        report.lock_us = micros(begin);
        let reading = Instant::now();
        let mut frozen = match Frozen::freeze_locked(socket, plan, lock) {
            Ok(frozen) => frozen,
            Err(NotFrozen { fd, error }) => {
                let (socket, reason) = (fd, error.into());
                return Ending::Kept {
                    socket,
                    app,
                    reason,
                };
            }
        };
        let image = match frozen.capture(app.clone()) {
            Ok(image) => image,
            Err(error) => return keep(frozen, app, error.into()),
        };
        let octets = match image.encode() {
            Ok(octets) => octets,
            Err(error) => return keep(frozen, app, error.into()),
        };
        report.read_us = micros(reading);
        describe(&image, octets.len(), report);
        let machine = Source::offered();
        let mut run = Run::new(self, to, frozen, machine, id, app, Some(exchange));
        let ending = run.offer(octets.into(), steering, report).await;
        report.blackout_us = micros(begin);
        if let Some(exchange) = &run.exchange {
            let stats = exchange.stats();
            report.frames_sent = stats.frames_sent;
            report.frames_received = stats.frames_received;
        }
        run.finish(ending).await
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn describe(image: &Image, octets: usize, report: &mut Report) {
    report.image_octets = octets as u64;
    if let Some(tcp) = &image.tcp {
        report.send_queue_octets = (tcp.send().sent.len() + tcp.send().unsent.len()) as u64;
        report.receive_queue_octets = tcp.receive().queue.len() as u64;
    }
}

fn keep(frozen: Frozen, app: Option<AppImage>, reason: Reason) -> Ending {
    match frozen.keep() {
        Ok(socket) => Ending::Kept {
            socket,
            app,
            reason,
        },
        // The first reason matters more than what went wrong on the way back.
        Err(NotFrozen { fd, error }) => {
            tracing::warn!("the connection is kept, but {error}");
            Ending::Kept {
                socket: fd,
                app,
                reason,
            }
        }
    }
}

/// What the state machine decided in the end.
enum Decided {
    Moved,
    Keep(Reason),
    Doubt,
}

/// One handover under way.
struct Run<'a> {
    mover: &'a Mover,
    to: &'a Destination,
    // Taken out at the end; dropped with a committed machine it must not thaw.
    frozen: Option<Frozen>,
    machine: Source,
    id: HandoverId,
    app: Option<AppImage>,
    exchange: Option<Exchange>,
    decoder: Decoder,
    reason: Option<Reason>,
}

impl<'a> Run<'a> {
    fn new(
        mover: &'a Mover,
        to: &'a Destination,
        frozen: Frozen,
        machine: Source,
        id: HandoverId,
        app: Option<AppImage>,
        exchange: Option<Exchange>,
    ) -> Self {
        Self {
            mover,
            to,
            frozen: Some(frozen),
            machine,
            id,
            app,
            exchange,
            decoder: Decoder::default(),
            reason: None,
        }
    }

    async fn offer(
        &mut self,
        image: Bytes,
        steering: Box<dyn Steering>,
        report: &mut Report,
    ) -> Decided {
        let offering = Instant::now();
        let mut steering = Some(steering);
        let within = self.mover.options.prepared_within;
        let id = self.id;
        // A target that does not read stops the sending of a large image as well.
        let mut event = match timeout(within, self.send(Message::Offer { id, image })).await {
            Ok(Ok(())) => {
                let left = within.saturating_sub(offering.elapsed());
                self.receive(left, report).await
            }
            Ok(Err(event)) => event,
            Err(_) => SourceEvent::Deadline,
        };
        if event == SourceEvent::Deadline {
            self.reason = Some(Reason::TooLate(within));
        }
        loop {
            match self.machine.handle(event) {
                SourceAction::Confirm => {
                    report.transfer_us = micros(offering).saturating_sub(report.rebuild_us);
                    let steered = Instant::now();
                    event = self.confirm(steering.take());
                    report.steer_us = micros(steered);
                }
                SourceAction::Commit => {
                    let committing = Instant::now();
                    let decided = self.commit(report).await;
                    report.commit_us = micros(committing);
                    return decided;
                }
                SourceAction::Keep => return self.give_back(),
                // Before COMMIT the machine answers with nothing else.
                action => {
                    debug!(?action, "no action before COMMIT");
                    event = SourceEvent::LinkLost;
                }
            }
        }
    }

    /// Reads the connection's numbers again and steers its packets.
    fn confirm(&mut self, steering: Option<Box<dyn Steering>>) -> SourceEvent {
        let (Some(frozen), Some(steering)) = (&mut self.frozen, steering) else {
            return SourceEvent::NotConfirmed;
        };
        let confirmed = frozen
            .confirm()
            .map_err(Reason::from)
            .and_then(|()| steering.steer(frozen).map_err(Reason::from))
            // A packet can have passed the lock's beginning until now.
            .and_then(|()| frozen.confirm().map_err(Reason::from));
        match confirmed {
            Ok(()) => SourceEvent::Confirmed,
            Err(reason) => {
                self.reason = Some(reason);
                SourceEvent::NotConfirmed
            }
        }
    }

    /// Sends COMMIT, and again until it is answered or the time for asking is over.
    async fn commit(&mut self, report: &mut Report) -> Decided {
        let within = self.mover.options.answer_within;
        let id = self.id;
        let event = match self.send(Message::Commit { id }).await {
            Ok(()) => self.receive(within, report).await,
            Err(event) => event,
        };
        match self.decide(event) {
            Some(decided) => decided,
            None => self.ask().await,
        }
    }

    async fn ask(&mut self) -> Decided {
        let options = &self.mover.options;
        let until = Instant::now() + options.ask_for;
        let mut pause = Duration::from_millis(10);
        let mut unreported = Report::default();
        while Instant::now() < until {
            if let Some(frozen) = &mut self.frozen
                && let Err(error) = frozen.renew(options.lease)
            {
                tracing::warn!("the lock of a connection in doubt was not prolonged: {error}");
            }
            self.decoder = Decoder::default();
            let asked = match self.mover.open(self.to).await {
                Ok(exchange) => {
                    self.exchange = Some(exchange);
                    let id = self.id;
                    self.send(Message::Commit { id }).await
                }
                Err(error) => {
                    debug!(%error, "asking again failed");
                    Err(SourceEvent::LinkLost)
                }
            };
            let event = match asked {
                Ok(()) => self.receive(options.answer_within, &mut unreported).await,
                Err(event) => event,
            };
            if let Some(decided) = self.decide(event) {
                return decided;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        match self.decide(SourceEvent::GiveUp) {
            Some(decided) => decided,
            None => Decided::Doubt,
        }
    }

    /// `None` if the target has to be asked again.
    fn decide(&mut self, event: SourceEvent) -> Option<Decided> {
        match self.machine.handle(event) {
            SourceAction::Discard => Some(Decided::Moved),
            SourceAction::Keep => Some(self.give_back()),
            SourceAction::Doubt => Some(Decided::Doubt),
            _ => None,
        }
    }

    fn give_back(&mut self) -> Decided {
        Decided::Keep(self.reason.take().unwrap_or(Reason::Closed))
    }

    async fn finish(&mut self, decided: Decided) -> Ending {
        // INVARIANT: `finish` is called once, at the end of each path.
        let frozen = self.frozen.take().expect("a handover ends once");
        match decided {
            Decided::Moved => {
                if let Err(error) = frozen.discard() {
                    tracing::warn!("the moved connection was closed here, but {error}");
                }
                Ending::Moved
            }
            Decided::Keep(reason) => {
                let ending = keep(frozen, self.app.take(), reason);
                // Only now: the target unlocks, and answers packets that are still steered to it
                // with RST. It notices the end of the exchange as well.
                let id = self.id;
                let within = self.mover.options.answer_within;
                let _ = timeout(within, self.send(Message::Abort { id })).await;
                ending
            }
            Decided::Doubt => Ending::InDoubt(Doubt {
                open: Some(Open {
                    frozen,
                    machine: self.machine.clone(),
                    id: self.id,
                    app: self.app.take(),
                }),
                mover: self.mover.clone(),
                to: self.to.clone(),
            }),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), SourceEvent> {
        let Some(exchange) = &mut self.exchange else {
            return Err(SourceEvent::LinkLost);
        };
        let (first, second) = message.encode();
        for frame in [Some(first), second].into_iter().flatten() {
            if let Err(error) = exchange.send(frame).await {
                self.reason = Some(error.into());
                return Err(SourceEvent::LinkLost);
            }
        }
        Ok(())
    }

    async fn receive(&mut self, within: Duration, report: &mut Report) -> SourceEvent {
        let deadline = tokio::time::Instant::now() + within;
        let Some(exchange) = &mut self.exchange else {
            return SourceEvent::LinkLost;
        };
        loop {
            let frame = match timeout_at(deadline, exchange.recv()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => {
                    self.reason = Some(Reason::Closed);
                    return SourceEvent::LinkLost;
                }
                Ok(Err(error)) => {
                    self.reason = Some(error.into());
                    return SourceEvent::LinkLost;
                }
                Err(_) => {
                    self.reason = Some(Reason::TooLate(within));
                    return SourceEvent::Deadline;
                }
            };
            let message = match self.decoder.frame(frame) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(error) => {
                    self.reason = Some(error.into());
                    return SourceEvent::LinkLost;
                }
            };
            if message.id() != self.id {
                self.reason = Some(Reason::Unexpected("a message of another handover"));
                return SourceEvent::LinkLost;
            }
            // They answer COMMIT. Before it they are why the connection is kept, and after it no
            // reason is asked for.
            if matches!(message, Message::Active { .. } | Message::Unknown { .. }) {
                self.reason = Some(Reason::Unexpected(message.name()));
            }
            return match message {
                Message::Prepared { rebuild_us, .. } => {
                    report.rebuild_us = rebuild_us.into();
                    SourceEvent::Prepared
                }
                Message::Refused { reason, .. } => {
                    self.reason = Some(Reason::Refused(reason));
                    SourceEvent::Refused
                }
                Message::Active { activate_us, .. } => {
                    report.activate_us = activate_us.into();
                    SourceEvent::Active
                }
                Message::Aborted { reason, .. } => {
                    self.reason = Some(Reason::Aborted(reason));
                    SourceEvent::Aborted
                }
                Message::Unknown { .. } => SourceEvent::Unknown,
                other
                @ (Message::Offer { .. } | Message::Commit { .. } | Message::Abort { .. }) => {
                    self.reason = Some(Reason::Unexpected(other.name()));
                    SourceEvent::LinkLost
                }
            };
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // Only when the future is dropped half-way. Before COMMIT the frozen connection thaws by
        // itself; after it that could make two owners.
        if let Some(frozen) = self.frozen.take()
            && self.machine.has_committed()
        {
            let _ = frozen.discard();
        }
    }
}
