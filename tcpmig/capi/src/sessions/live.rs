//! A thread of the library.

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::border::{Code, Done, Failure, without_signals};

/// A thread on which things go on while the program does something else. It ends when this is dropped.
pub(crate) struct Live {
    runtime: Handle,
    /// Its end is that of the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn ended<E>(_: E) -> Failure {
    Failure::new(Code::Internal, "the thread of the library has ended")
}

impl Live {
    pub(crate) fn start(name: &str) -> Done<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build();
        let runtime = runtime.map_err(Failure::call("epoll_create"))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let live = move || {
            // Also if the other end was dropped.
            let _ = runtime.block_on(stopped);
            // What waits for another process is not waited for.
            runtime.shutdown_background();
        };
        let thread = without_signals(|| thread.spawn(live));
        Ok(Self {
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread.map_err(Failure::call("pthread_create"))?),
        })
    }

    /// Goes on by itself.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Waits for this.
    pub(crate) fn wait_for<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Done<T> {
        let (done, is_done) = mpsc::channel();
        self.spawn(async move {
            let _ = done.send(work.await);
        });
        is_done.recv().map_err(ended)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it ended with is of no use any more.
            let _ = thread.join();
        }
    }
}
