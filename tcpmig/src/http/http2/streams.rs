//! The streams of a connection that the service has, and the tasks that serve them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::super::shared::Shared;

/// What the service has of each stream.
#[derive(Default)]
pub(in super::super) struct Streams(Mutex<State>);

#[derive(Default)]
struct State {
    open: BTreeMap<u32, Arc<Shared>>,
    is_draining: bool,
    /// When there are so many, those that are over are looked for.
    prune_at: usize,
}

/// No fewer are looked through.
const PRUNE: usize = 32;

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
            state.open.retain(|_, shared| Arc::strong_count(shared) > 1);
            state.prune_at = PRUNE.max(2 * state.open.len());
        }
        state.open.insert(id, shared.clone());
        shared
    }

    pub(super) fn get(&self, id: u32) -> Option<Arc<Shared>> {
        self.lock().open.get(&id).cloned()
    }

    /// From now on resumable bodies stand still, or go on.
    pub(super) fn set_draining(&self, draining: bool) {
        let mut state = self.lock();
        state.is_draining = draining;
        for shared in state.open.values() {
            shared.set_draining(draining);
        }
    }

    /// The stream that has been open for longest, of those that the service has something to do for.
    pub(in super::super) fn oldest(&self) -> Option<Arc<Shared>> {
        let state = self.lock();
        let mut busy = state.open.values().filter(|shared| shared.is_busy());
        busy.next().cloned()
    }
}

/// Runs the futures of a connection's streams as hyper wants it, each in a task of its own.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        // A panic elsewhere leaves whole values only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets those that are done.
    pub(super) fn reap(&self) {
        let mut tasks = self.lock();
        while tasks.try_join_next().is_some() {}
    }

    /// They end by themselves when their streams do.
    pub(super) fn detach(&self) {
        self.lock().detach_all();
    }

    /// Ends them, whatever they do.
    pub(super) fn abort(&self) {
        self.lock().abort_all();
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.lock().spawn(future);
    }
}
