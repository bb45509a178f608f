//! What becomes of moves that nobody waits for.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};

use super::outcome::Outcome;

/// Outcomes that nobody waits for, for [`Mover::unclaimed`](super::Mover::unclaimed).
#[derive(Default)]
pub(super) struct Unclaimed {
    state: Mutex<State>,
    /// A move has ended.
    ended: Notify,
}

#[derive(Default)]
struct State {
    outcomes: Vec<Outcome>,
    /// Moves that nobody waits for and that are under way.
    detached: usize,
}

/// Whoever waits for an outcome.
pub(super) enum Receiver {
    One(oneshot::Sender<Outcome>),
    /// `None` of a move whose task panicked.
    Many(mpsc::UnboundedSender<Option<Outcome>>),
}

/// The outcome of one move on its way. It reaches the one who waits, or is among the unclaimed.
pub(super) struct Delivery {
    unclaimed: Arc<Unclaimed>,
    to: Option<Receiver>,
}

impl Unclaimed {
    /// Without anybody who waited.
    pub(super) fn put(&self, outcome: Outcome) {
        self.state().outcomes.push(outcome);
    }

    /// All that there are.
    pub(super) fn take(&self) -> Vec<Outcome> {
        mem::take(&mut self.state().outcomes)
    }

    /// Waits until no more are on their way.
    pub(super) async fn settled(&self) {
        loop {
            // From here on no end is missed.
            let ended = self.ended.notified();
            if self.state().detached == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Nobody waits for this one any longer.
    pub(super) fn detach(&self, outcome: &mut oneshot::Receiver<Outcome>) {
        let mut state = self.state();
        match outcome.try_recv() {
            Ok(outcome) => state.outcomes.push(outcome),
            Err(oneshot::error::TryRecvError::Empty) => {
                outcome.close();
                state.detached += 1;
            }
            Err(oneshot::error::TryRecvError::Closed) => {}
        }
    }

    /// Nobody waits for these any longer, of which so many did not come yet.
    pub(super) fn detach_all(
        &self,
        outcomes: &mut mpsc::UnboundedReceiver<Option<Outcome>>,
        left: usize,
    ) {
        let mut state = self.state();
        outcomes.close();
        state.detached += left;
        while let Ok(outcome) = outcomes.try_recv() {
            state.detached -= 1;
            state.outcomes.extend(outcome);
        }
    }

    /// For a move that begins.
    pub(super) fn delivery(self: &Arc<Self>, to: Receiver) -> Delivery {
        Delivery {
            unclaimed: self.clone(),
            to: Some(to),
        }
    }

    // Whether somebody waits does not change while it is locked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Delivery {
    pub(super) fn deliver(mut self, outcome: Outcome) {
        self.end(Some(outcome));
    }

    fn end(&mut self, outcome: Option<Outcome>) {
        let Some(to) = self.to.take() else {
            return;
        };
        let mut state = self.unclaimed.state();
        let left = match to {
            Receiver::One(to) if to.is_closed() => outcome,
            Receiver::One(to) => {
                if let Some(outcome) = outcome {
                    let _ = to.send(outcome);
                }
                return;
            }
            Receiver::Many(to) => match to.send(outcome) {
                Ok(()) => return,
                Err(unsent) => unsent.0,
            },
        };
        state.detached -= 1;
        state.outcomes.extend(left);
        drop(state);
        self.unclaimed.ended.notify_waiters();
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Its task panicked, or its runtime has ended.
        self.end(None);
    }
}
