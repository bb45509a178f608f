//! Many connections at once.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use super::outgoing::Outgoing;
use super::source::{Connection, Destination, Ending, Mover, Outcome, Reason};
use super::unclaimed::{Delivery, Receiver, Unclaimed};

/// The moves of one call of [`Mover::move_all`], as they end.
///
/// They go on whether or not anybody asks for outcomes. Dropped, they go on as well, and what was not taken is among
/// [`Mover::unclaimed`]. Only [`Moves::cancel`] and [`Moves::stop`] end them early.
pub struct Moves {
    /// `None` in place of an outcome if its task panicked.
    outcomes: mpsc::UnboundedReceiver<Option<Outcome>>,
    /// How many of them did not come yet.
    left: usize,
    limits: Arc<Limits>,
    cancel: watch::Sender<bool>,
    unclaimed: Arc<Unclaimed>,
}

impl Moves {
    /// The next outcome, in the order in which the moves end; `None` when there are no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Outcome> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Ends all of them as [`Move::cancel`](super::Move::cancel) does. They still come out of [`Moves::next`].
    pub fn cancel(&self) {
        let _ = self.cancel.send(true);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        while let Some(outcome) = ready!(self.outcomes.poll_recv(cx)) {
            self.left -= 1;
            if outcome.is_some() {
                return Poll::Ready(outcome);
            }
        }
        Poll::Ready(None)
    }

    /// Freezes no more connections: those that are not frozen yet are kept ([`Reason::Stopped`]), those that are go
    /// to their end. All of them still come out of [`Moves::next`].
    pub fn stop(&self) {
        self.limits.stopped.store(true, Ordering::Relaxed);
    }
}

impl Stream for Moves {
    type Item = Outcome;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        self.poll(cx)
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        self.unclaimed.detach_all(&mut self.outcomes, self.left);
    }
}

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moves").finish_non_exhaustive()
    }
}

/// What the moves of one call share.
pub(super) struct Limits {
    frozen: Semaphore,
    /// In units of 1 KiB.
    bytes: Semaphore,
    all_bytes: u32,
    stopped: AtomicBool,
}

/// The right to be frozen.
pub(super) struct Turn<'a> {
    _frozen: SemaphorePermit<'a>,
    _bytes: SemaphorePermit<'a>,
}

impl Limits {
    fn new(mover: &Mover) -> Self {
        let all_bytes = u32::try_from(mover.options.bytes_in_flight >> 10).unwrap_or(u32::MAX);
        let all_bytes = all_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        Self {
            frozen: Semaphore::new(mover.options.in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            bytes: Semaphore::new(all_bytes as usize),
            all_bytes,
            stopped: AtomicBool::new(false),
        }
    }

    /// Waits until a connection with so many bytes in its queues may be frozen.
    pub(super) async fn turn(&self, bytes: u32) -> Result<Turn<'_>, Reason> {
        // One that is larger than all goes alone.
        let units = (bytes >> 10).saturating_add(1).min(self.all_bytes);
        // INVARIANT: the semaphores are never closed.
        let frozen = self.frozen.acquire().await.expect("it is open");
        let bytes = self.bytes.acquire_many(units).await.expect("it is open");
        self.check()?;
        Ok(Turn {
            _frozen: frozen,
            _bytes: bytes,
        })
    }

    pub(super) fn check(&self) -> Result<(), Reason> {
        if self.stopped.load(Ordering::Relaxed) {
            Err(Reason::Stopped)
        } else {
            Ok(())
        }
    }

    /// A target that is not there or does not answer is not asked to take the rest.
    fn look_at(&self, outcome: &Outcome) {
        let unreachable = match &outcome.ending {
            Ending::Moved | Ending::Lost(_) => false,
            Ending::Kept { reason, .. } => {
                matches!(
                    reason,
                    Reason::Link(_) | Reason::TooLate(_) | Reason::Version { .. }
                )
            }
            Ending::InDoubt(_) => true,
        };
        if unreachable {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }
}

pub(super) fn begin(mover: &Mover, connections: Vec<Connection>, to: &Destination) -> Moves {
    let (sender, outcomes) = mpsc::unbounded_channel();
    let (cancel, cancelled) = watch::channel(false);
    let limits = Arc::new(Limits::new(mover));
    let left = connections.len();
    let waiting = Waiting {
        mover: mover.clone(),
        to: Arc::new(to.clone()),
        connections: connections.into_iter(),
        cancelled,
        outcomes: sender,
    };
    let at_once = mover.options.in_flight.max(1).saturating_mul(AHEAD);
    let feeding = feed(waiting, limits.clone(), at_once);
    // What is logged of them is logged where their caller's is.
    tokio::spawn(feeding.in_current_span().with_current_subscriber());
    Moves {
        outcomes,
        left,
        limits,
        cancel,
        unclaimed: mover.unclaimed.clone(),
    }
}

/// How many connections are begun, in multiples of those that are frozen: they are planned, have an exchange and wait
/// for their send queues to become short.
const AHEAD: usize = 4;

/// Those that are not begun. What a move needs besides its connection is made when it begins: there may be very many.
struct Waiting {
    mover: Mover,
    to: Arc<Destination>,
    connections: std::vec::IntoIter<Connection>,
    cancelled: watch::Receiver<bool>,
    outcomes: mpsc::UnboundedSender<Option<Outcome>>,
}

impl Waiting {
    fn next(&mut self) -> Option<(Box<Outgoing>, Delivery)> {
        let connection = self.connections.next()?;
        let (mover, cancelled) = (self.mover.clone(), self.cancelled.clone());
        let receiver = Receiver::Many(self.outcomes.clone());
        let delivery = mover.unclaimed.delivery(receiver);
        let outgoing = Outgoing::new(mover, self.to.clone(), connection, cancelled);
        Some((outgoing, delivery))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Only when its runtime ended: then they are among the unclaimed.
        while self.next().is_some() {}
    }
}

async fn feed(mut waiting: Waiting, limits: Arc<Limits>, at_once: usize) {
    let mut tasks = JoinSet::new();
    while let Some((outgoing, delivery)) = waiting.next() {
        while tasks.len() >= at_once && tasks.join_next().await.is_some() {}
        let limits = limits.clone();
        let moving = async move {
            let outcome = outgoing.run(Some(&limits)).await;
            limits.look_at(&outcome);
            delivery.deliver(outcome);
        };
        tasks.spawn(moving.in_current_span().with_current_subscriber());
    }
    drop(waiting);
    while tasks.join_next().await.is_some() {}
}
