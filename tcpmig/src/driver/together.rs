//! What many handovers need at the same time, done in one go.
//!
//! When many connections move, messages about several of them come in one datagram, and their tasks run one after the other.
//! Each would tell the kernel of its own flow, which costs ten times what one flow more costs in a message about several.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;
use tcpmig_lock::{LockError, LockGuard, Locker, NextHop};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::mutex::lock;
use crate::hold::{self, Holding};

/// So many go together at most: each of them stands still until all are done.
const MOST: usize = 64;

/// So many turns the others take until they set an alarm, which costs more. The first one's turn comes before their second: a
/// runtime may call those that gave way in the reverse order.
const TURNS: usize = 3;

/// For so long the others wait for the first one's turn, which does not come if something blocks the thread that it is on.
const PATIENCE: Duration = Duration::from_millis(2);

/// Whoever was to do it has gone: nothing was done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// Tasks that wait for the same kind of work.
pub(super) struct Together<I, O>(Mutex<VecDeque<(I, oneshot::Sender<O>)>>);

impl<I, O> Default for Together<I, O> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<I, O> Together<I, O> {
    /// Has `work` done for this and whatever else the tasks bring that run before this one has its turn again. One of them does it, for
    /// all, and gives a result for each in their order.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub(super) async fn join(&self, item: I, work: impl Fn(Vec<I>) -> Vec<O>) -> Result<O, Gone> {
        let (answer, mut result) = oneshot::channel();
        let is_first = {
            let mut waiting = lock(&self.0);
            waiting.push_back((item, answer));
            waiting.len() == 1
        };
        if is_first {
            let abandoned = Abandoned(self);
            yield_now().await;
            self.work(&work);
            // Whoever came meanwhile has a turn of its own.
            std::mem::forget(abandoned);
        } else {
            for _ in 0..TURNS {
                yield_now().await;
                match result.try_recv() {
                    Ok(done) => return Ok(done),
                    Err(TryRecvError::Closed) => return Err(Gone),
                    Err(TryRecvError::Empty) => {}
                }
            }
            if let Ok(done) = timeout(PATIENCE, &mut result).await {
                return done.map_err(|_| Gone);
            }
            self.work(&work);
        }
        result.await.map_err(|_| Gone)
    }

    fn work(&self, work: impl Fn(Vec<I>) -> Vec<O>) {
        while let Some((items, answers)) = self.next() {
            for (answer, done) in answers.into_iter().zip(work(items)) {
                // Whoever does not wait any longer has no use for it: it is dropped.
                let _ = answer.send(done);
            }
        }
    }

    fn next(&self) -> Option<(Vec<I>, Vec<oneshot::Sender<O>>)> {
        let mut waiting = lock(&self.0);
        let most = waiting.len().min(MOST);
        (most > 0).then(|| waiting.drain(..most).unzip())
    }
}

/// Those who wait for a task that goes, or panics, are told.
struct Abandoned<'a, I, O>(&'a Together<I, O>);

impl<I, O> Drop for Abandoned<'_, I, O> {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut *lock(&self.0.0));
        drop(waiting);
    }
}

/// Redirects that many handovers of a source need together.
pub(super) type Redirects = Together<(Holding, NextHop, Duration), Result<(), LockError>>;

/// Redirects what these hold, those that go to the same hop in one step.
pub(super) fn redirect_each(
    mut all: Vec<(Holding, NextHop, Duration)>,
) -> Vec<Result<(), LockError>> {
    let mut results = Vec::with_capacity(all.len());
    // Those that go elsewhere come in between seldom, and cost a step more.
    while let Some((_, hop, lease)) = all.first().cloned() {
        let same = all
            .iter()
            .take_while(|(_, other, time)| *other == hop && *time == lease)
            .count();
        let holdings: Vec<_> = all.drain(..same).map(|(holding, ..)| holding).collect();
        results.extend(hold::redirect_each(&holdings, &hop, lease));
    }
    results
}

/// Locks the flows of many handovers together.
pub(super) struct Locks {
    locker: Arc<dyn Locker>,
    lease: Duration,
    waiting: Together<FourTuple, Locked>,
}

/// What became of a flow that was to be locked, since when it is, and how long that took.
pub(super) struct Locked {
    pub(super) guard: Result<LockGuard, LockError>,
    pub(super) since: Instant,
    pub(super) took: Duration,
}

impl Locks {
    pub(super) fn new(locker: Arc<dyn Locker>, lease: Duration) -> Self {
        Self {
            locker,
            lease,
            waiting: Together::default(),
        }
    }

    /// Whether it is worth to wait for others: the calls of this locker are made on the task that needs them, and several locks are
    /// as good as one.
    pub(super) fn help(&self) -> bool {
        let features = self.locker.features();
        features.splits && !features.waits
    }

    pub(super) async fn lock(&self, flow: FourTuple) -> Locked {
        let together = self.waiting.join(flow, |flows| self.lock_each(&flows));
        match together.await {
            Ok(locked) => locked,
            Err(_) => self.lock_now(flow),
        }
    }

    /// The same without others.
    pub(super) fn lock_now(&self, flow: FourTuple) -> Locked {
        let since = Instant::now();
        let guard = self.locker.lock(&[flow], self.lease);
        let took = since.elapsed();
        Locked { guard, since, took }
    }

    fn lock_each(&self, flows: &[FourTuple]) -> Vec<Locked> {
        let since = Instant::now();
        let guards = LockGuard::lock_each(&*self.locker, flows, self.lease);
        let took = since.elapsed();
        let locked = |guard| Locked { guard, since, took };
        guards.into_iter().map(locked).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn what_is_asked_at_the_same_time_is_done_in_one_go() {
        let together = Arc::new(Together::<u32, u32>::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let ask = |number: u32| {
            let (together, calls) = (together.clone(), calls.clone());
            tokio::spawn(async move {
                let work = |numbers: Vec<u32>| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    numbers.into_iter().map(|number| number * 2).collect()
                };
                together.join(number, work).await
            })
        };
        let asked: Vec<_> = (0..10).map(ask).collect();
        for (number, asked) in asked.into_iter().enumerate() {
            assert_eq!(asked.await.unwrap(), Ok(number as u32 * 2));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        // More than go together at a time.
        let asked: Vec<_> = (0..MOST as u32 + 1).map(ask).collect();
        for (number, asked) in asked.into_iter().enumerate() {
            assert_eq!(asked.await.unwrap(), Ok(number as u32 * 2));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn nobody_waits_for_a_task_that_does_not_run() {
        let together = Together::<(), ()>::default();
        let mut first = std::pin::pin!(together.join((), |all| all));
        // It has asked, and is not polled again.
        let begun = std::future::poll_fn(|cx| {
            let polled = first.as_mut().poll(cx);
            std::task::Poll::Ready(polled.is_pending())
        });
        assert!(begun.await);
        assert!(together.join((), |all| all).await.is_ok());
        assert!(first.await.is_ok());
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn who_waits_for_a_task_that_goes_is_told() {
        let together = Arc::new(Together::<(), ()>::default());
        let ask = || {
            let together = together.clone();
            tokio::spawn(async move { together.join((), |all| all).await })
        };
        let (first, second) = (ask(), ask());
        // Both have asked when this goes on, and nothing was done yet.
        tokio::task::yield_now().await;
        first.abort();
        assert!(second.await.unwrap().is_err());
        assert!(ask().await.unwrap().is_ok());
    }
}
