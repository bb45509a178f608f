//! The streams of a connection that the service has, and the tasks that serve them.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

use super::super::shared::Shared;

/// What the service has of each stream.
#[derive(Default)]
pub(in super::super) struct Streams(Mutex<State>);

#[derive(Default)]
struct State {
    /// By their numbers, which grow: a new one is the last, but for those that go on behind a move.
    open: Vec<(u32, Arc<Shared>)>,
    is_draining: bool,
    /// When there are so many, those that are over are looked for.
    prune_at: usize,
}

/// No fewer are looked through.
const PRUNE: usize = 32;

impl State {
    /// Where a stream is, or belongs.
    fn find(&self, id: u32) -> Result<usize, usize> {
        self.open.binary_search_by_key(&id, |(id, _)| *id)
    }
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service is given a stream's request.
    pub(super) fn begin(&self, id: u32) -> Arc<Shared> {
        let shared = Shared::new();
        let mut state = self.lock();
        shared.set_draining(state.is_draining);
        if state.open.len() >= state.prune_at {
            // Whoever serves it has it too.
            state
                .open
                .retain(|(_, shared)| Arc::strong_count(shared) > 1);
            state.prune_at = PRUNE.max(2 * state.open.len());
        }
        let begun = (id, shared.clone());
        match state.find(id) {
            Ok(at) => state.open[at] = begun,
            Err(at) => state.open.insert(at, begun),
        }
        shared
    }

    pub(super) fn get(&self, id: u32) -> Option<Arc<Shared>> {
        let state = self.lock();
        let at = state.find(id).ok()?;
        Some(state.open[at].1.clone())
    }

    /// From now on resumable bodies stand still, or go on.
    pub(super) fn set_draining(&self, draining: bool) {
        let mut state = self.lock();
        state.is_draining = draining;
        for (_, shared) in &state.open {
            shared.set_draining(draining);
        }
    }

    /// The stream that has been open for longest, of those that the service has something to do for.
    pub(in super::super) fn oldest(&self) -> Option<Arc<Shared>> {
        let state = self.lock();
        let mut all = state.open.iter().map(|(_, shared)| shared);
        all.find(|shared| shared.is_busy()).cloned()
    }
}

/// Runs the futures of a connection's streams as hyper wants it, each in a task of its own.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<Running>>);

#[derive(Default)]
struct Running(Vec<AbortHandle>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Running> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets those that are done: as long as there is a handle, a task has its memory.
    pub(super) fn reap(&self) {
        self.lock().0.retain(|task| !task.is_finished());
    }

    /// They end by themselves when their streams do.
    pub(super) fn detach(&self) {
        self.lock().0.clear();
    }

    /// Ends them, whatever they do.
    pub(super) fn abort(&self) {
        self.lock().abort();
    }
}

impl Running {
    fn abort(&mut self) {
        for task in self.0.drain(..) {
            task.abort();
        }
    }
}

/// Those that were not detached end with their connection.
impl Drop for Running {
    fn drop(&mut self) {
        self.abort();
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let task = tokio::spawn(future).abort_handle();
        self.lock().0.push(task);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use hyper::rt::Executor;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn tasks_that_are_done_are_forgotten_and_others_end_with_their_connection() {
        let tasks = Tasks::default();
        let (done, is_done) = oneshot::channel();
        tasks.execute(async move { done.send(()).unwrap() });
        let (runs, ended) = oneshot::channel::<()>();
        tasks.execute(async move {
            let _runs = runs;
            pending::<()>().await;
        });
        is_done.await.unwrap();
        tokio::task::yield_now().await;
        tasks.reap();
        assert_eq!(tasks.lock().0.len(), 1);
        drop(tasks);
        assert!(ended.await.is_err());
    }
}
