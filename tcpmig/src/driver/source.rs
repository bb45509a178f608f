//! The source's side: giving a connection away.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_format::{AppImage, EncodeError, FourTuple, Image};
use tcpmig_lock::Locker;
use tcpmig_sys::sockopt;
use tcpmig_transport::{Endpoint, Exchange, TransportError};
use tokio::time::sleep;

use super::doubt::Doubt;
use super::report::micros;
use super::run::Run;
use super::{Options, Report};
use crate::capture::{CaptureError, Frozen, NotFrozen, Plan};
use crate::handover::{Fate, HandoverId, MessageError, Source};
use crate::steer::{Steer, SteerError, Steering};

/// Gives connections away.
#[derive(Clone)]
pub struct Mover {
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    pub(super) options: Options,
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
    InDoubt(Box<Doubt>),
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

    pub(super) async fn open(&self, to: &Destination) -> Result<Exchange, TransportError> {
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

fn describe(image: &Image, octets: usize, report: &mut Report) {
    report.image_octets = octets as u64;
    if let Some(tcp) = &image.tcp {
        report.send_queue_octets = (tcp.send().sent.len() + tcp.send().unsent.len()) as u64;
        report.receive_queue_octets = tcp.receive().queue.len() as u64;
    }
}

pub(super) fn keep(frozen: Frozen, app: Option<AppImage>, reason: Reason) -> Ending {
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
