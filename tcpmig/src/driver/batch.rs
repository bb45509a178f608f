//! Many connections at once.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use super::outcome::{Ending, Outcome, Reason};
use super::outgoing::Outgoing;
use super::permits::Limits;
use super::source::{Connection, Destination, Mover};
use super::unclaimed::{Delivery, Receiver, Unclaimed};

impl Mover {
    /// Moves many connections to another host, each with a fate of its own: one that cannot be moved stops no other.
    ///
    /// They are prepared, frozen, sent and rebuilt side by side on tasks of the current runtime, as many frozen at
    /// a time as [`Options::in_flight`](super::Options::in_flight) and [`Options::bytes_in_flight`](super::Options::bytes_in_flight) say, so that none stands still for longer
    /// because there are many. A target that does not answer for one of them is not given those whose turn comes
    /// later ([`Reason::Stopped`](super::Reason::Stopped)).
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
        begin(self, connections.collect(), to)
    }
}

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

    /// Freezes no more connections: those that are not frozen yet are kept ([`Reason::Stopped`](super::Reason::Stopped)), those that are go
    /// to their end. All of them still come out of [`Moves::next`].
    pub fn stop(&self) {
        self.limits.stop();
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

fn begin(mover: &Mover, connections: Vec<Connection>, to: &Destination) -> Moves {
    let (sender, outcomes) = mpsc::unbounded_channel();
    let (cancel, cancelled) = watch::channel(false);
    let limits = Arc::new(Limits::new(&mover.options));
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
const AHEAD: usize = 2;

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
            // A target that is not there or does not answer is not asked to take the rest.
            if is_unreachable(&outcome.ending) {
                limits.stop();
            }
            delivery.deliver(outcome);
        };
        tasks.spawn(moving.in_current_span().with_current_subscriber());
    }
    drop(waiting);
    while tasks.join_next().await.is_some() {}
}

fn is_unreachable(ending: &Ending) -> bool {
    match ending {
        Ending::Moved | Ending::Lost(_) => false,
        Ending::Kept { reason, .. } => matches!(
            reason,
            Reason::Link(_) | Reason::TooLate(_) | Reason::Version { .. }
        ),
        Ending::InDoubt(_) => true,
    }
}
