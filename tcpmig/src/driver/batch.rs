//! Many connections at once.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;

use super::source::{Destination, Ending, Mover, Outcome, Reason};
use super::unclaimed::{Claim, Leaving};

/// The moves of one call of [`Mover::move_all`], as they end.
///
/// Dropping it cancels what is under way as dropping the future of [`Mover::move_out`] does: each connection
/// whose outcome was not taken is among [`Mover::unclaimed`], as soon as the runtime has dropped the tasks.
pub struct Moves {
    outcomes: mpsc::UnboundedReceiver<Claim>,
    limits: Arc<Limits>,
    _feeder: JoinSet<()>,
}

impl Moves {
    /// The next outcome, in the order in which the moves end; `None` when there are no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await.map(Claim::take)
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
        Poll::Ready(ready!(self.outcomes.poll_recv(cx)).map(Claim::take))
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
    octets: Semaphore,
    all_octets: u32,
    stopped: AtomicBool,
}

/// The right to be frozen.
pub(super) struct Turn<'a> {
    _frozen: SemaphorePermit<'a>,
    _octets: SemaphorePermit<'a>,
}

impl Limits {
    fn new(mover: &Mover) -> Self {
        let all_octets = u32::try_from(mover.options.octets_in_flight >> 10).unwrap_or(u32::MAX);
        let all_octets = all_octets.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        Self {
            frozen: Semaphore::new(mover.options.in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            octets: Semaphore::new(all_octets as usize),
            all_octets,
            stopped: AtomicBool::new(false),
        }
    }

    /// Waits until a connection with so many octets in its queues may be frozen.
    pub(super) async fn turn(&self, octets: u32) -> Result<Turn<'_>, Reason> {
        // One that is larger than all goes alone.
        let units = (octets >> 10).saturating_add(1).min(self.all_octets);
        // INVARIANT: the semaphores are never closed.
        let frozen = self.frozen.acquire().await.expect("it is open");
        let octets = self.octets.acquire_many(units).await.expect("it is open");
        self.check()?;
        Ok(Turn {
            _frozen: frozen,
            _octets: octets,
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

pub(super) fn begin(mover: &Mover, leaving: Vec<Leaving>, to: &Destination) -> Moves {
    let (sender, outcomes) = mpsc::unbounded_channel();
    let limits = Arc::new(Limits::new(mover));
    let mut feeder = JoinSet::new();
    feeder.spawn(feed(
        mover.clone(),
        leaving,
        Arc::new(to.clone()),
        limits.clone(),
        sender,
    ));
    Moves {
        outcomes,
        limits,
        _feeder: feeder,
    }
}

/// How many connections are begun, in multiples of those that are frozen: they are planned, have an exchange and wait
/// for their send queues to become short.
const AHEAD: usize = 4;

async fn feed(
    mover: Mover,
    leaving: Vec<Leaving>,
    to: Arc<Destination>,
    limits: Arc<Limits>,
    sender: mpsc::UnboundedSender<Claim>,
) {
    let begun = mover.options.in_flight.max(1).saturating_mul(AHEAD);
    let mut tasks = JoinSet::new();
    for leaving in leaving {
        while tasks.len() >= begun && tasks.join_next().await.is_some() {}
        let (mover, to, limits, sender) =
            (mover.clone(), to.clone(), limits.clone(), sender.clone());
        tasks.spawn(async move {
            let outcome = mover.hand_over(leaving, &to, Some(&limits)).await;
            limits.look_at(&outcome);
            // Whoever does not listen any more finds it among the unclaimed.
            let _ = sender.send(Claim::new(&mover, outcome));
        });
    }
    while tasks.join_next().await.is_some() {}
}
