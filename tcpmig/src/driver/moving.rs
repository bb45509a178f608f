//! One move under way, on a task of its own.

use std::fmt;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tcpmig_format::Layer;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use super::outcome::Outcome;
use super::outgoing::Outgoing;
use super::source::{Connection, Destination, Mover};
use super::unclaimed::{Receiver, Unclaimed};

impl Mover {
    /// Moves one connection, with the layers that run on it from the bottom up, to another host.
    ///
    /// The application must have stopped using the socket. Whatever fails before COMMIT, the
    /// connection goes on here ([`Ending::Kept`](super::Ending::Kept)); after it nothing thaws without the
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
        begin(self, connection, Arc::new(to.clone()))
    }
}

/// A move under way, or a question about one that is in doubt: a future of its [`Outcome`].
///
/// It goes on whether or not anybody polls this. Dropped, it goes on as well, and its outcome is among
/// [`Mover::unclaimed`]. Only [`Move::cancel`] ends it early.
#[must_use = "its outcome has the connection if that is kept"]
pub struct Move {
    outcome: oneshot::Receiver<Outcome>,
    task: JoinHandle<()>,
    cancel: watch::Sender<bool>,
    unclaimed: Arc<Unclaimed>,
}

impl Move {
    /// Ends it as soon as what is under way allows: before COMMIT the connection goes on here
    /// ([`Reason::Cancelled`](super::Reason::Cancelled)) and the target is told; afterwards it is in doubt. Either is its outcome, unless
    /// it had another one already.
    pub fn cancel(&self) {
        let _ = self.cancel.send(true);
    }
}

fn begin(mover: &Mover, connection: Connection, to: Arc<Destination>) -> Move {
    let (cancel, cancelled) = watch::channel(false);
    let outgoing = Outgoing::new(mover.clone(), to, connection, cancelled);
    on_its_own(&mover.unclaimed, cancel, outgoing.run(None))
}

/// Goes on with one that was in doubt.
pub(super) fn go_on(mut outgoing: Box<Outgoing>) -> Move {
    let (cancel, cancelled) = watch::channel(false);
    outgoing.cancelled_by(cancelled);
    let unclaimed = outgoing.mover.unclaimed.clone();
    on_its_own(&unclaimed, cancel, outgoing.go_on())
}

fn on_its_own(
    unclaimed: &Arc<Unclaimed>,
    cancel: watch::Sender<bool>,
    running: impl Future<Output = Outcome> + Send + 'static,
) -> Move {
    let (sender, outcome) = oneshot::channel();
    let delivery = unclaimed.delivery(Receiver::One(sender));
    let moving = async move { delivery.deliver(running.await) };
    // What it logs is logged where its caller's is.
    let task = tokio::spawn(moving.in_current_span().with_current_subscriber());
    Move {
        outcome,
        task,
        cancel,
        unclaimed: unclaimed.clone(),
    }
}

impl Future for Move {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        if let Ok(outcome) = ready!(Pin::new(&mut self.outcome).poll(cx)) {
            return Poll::Ready(outcome);
        }
        match ready!(Pin::new(&mut self.task).poll(cx)) {
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // Whatever there was of it is among the unclaimed.
            _ => panic!("the runtime of the move has ended"),
        }
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        self.unclaimed.detach(&mut self.outcome);
    }
}

impl fmt::Debug for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Move").finish_non_exhaustive()
    }
}
