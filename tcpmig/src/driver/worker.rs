//! Threads for calls that wait.

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use tcpmig_sys::netns::Namespace;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tracing::{Dispatch, Span, dispatcher};

/// How many calls wait side by side. More of them have their turn later.
const THREADS: usize = 64;

/// A job that lies for longer than this gets a thread of its own: short ones share a few threads.
const LIES: Duration = Duration::from_micros(500);

/// A thread with nothing to do ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// Does what can wait, so that no thread of a runtime waits.
///
/// A network namespace belongs to a thread, as do capabilities, and a thread inherits both from the one that makes it. So the
/// threads of a worker are made by one that does nothing else, and that one is made by [`Worker::start`], on a thread that is
/// where the connections are; or it goes to the namespace that it is [bound to](Worker::in_namespace). (Those of `spawn_blocking` are
/// made by whichever thread asks first.)
///
/// What has begun is done to its end, whoever stops waiting for it: a job owns what it works on. Dropping the worker
/// ends its threads once they have nothing more to do; nobody waits for them.
#[derive(Clone)]
pub(super) struct Worker(Arc<Owner>);

/// Of the threads: they end when this goes, which they themselves do not hold.
struct Owner(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The threads are in a namespace in which nobody who calls need be.
    is_elsewhere: bool,
    /// For threads that wait for a job.
    job: Condvar,
    /// For the thread that makes them.
    more: Condvar,
    /// A job is done.
    done: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Instant, Job)>,
    /// Number of the next job.
    next: u64,
    /// Those that are not done, by number, so that the oldest is known.
    open: BTreeSet<u64>,
    threads: usize,
    idle: usize,
    /// The thread that makes the others looks at nothing before it is woken.
    maker_sleeps: bool,
    is_running: bool,
    is_over: bool,
}

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The address of the worker that this thread is of.
    static WORKS_FOR: Cell<usize> = const { Cell::new(0) };
}

impl Worker {
    /// Has no threads before it is started.
    pub(super) fn new() -> Self {
        Self::with(false)
    }

    /// Has its threads in this network namespace, and everything is to be done there. It is started.
    pub(super) fn in_namespace(namespace: Namespace) -> Result<Self, tcpmig_sys::Error> {
        let worker = Self::with(true);
        let maker = worker.shared().clone();
        let (entered, has_entered) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name("tcpmig-threads".to_owned());
        let made = thread.spawn(move || {
            let is_there = namespace.enter_permanently();
            let may_go_on = is_there.is_ok();
            let _ = entered.send(is_there);
            if may_go_on {
                maker.make_threads();
            }
        });
        made.map_err(|source| tcpmig_sys::Error::Call {
            call: "clone",
            source,
        })?;
        // INVARIANT: it says so before it does anything else.
        has_entered.recv().expect("the thread has begun")?;
        worker.shared().state().is_running = true;
        Ok(worker)
    }

    /// Whether nothing about a connection is to be done on the threads of a runtime, because they need not be where it is.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.shared().is_elsewhere
    }

    fn with(is_elsewhere: bool) -> Self {
        Self(Arc::new(Owner(Arc::new(Shared {
            state: Mutex::default(),
            is_elsewhere,
            job: Condvar::new(),
            more: Condvar::new(),
            done: Notify::new(),
        }))))
    }

    /// Its threads are in the network namespace of the calling thread from the first time on. Before a connection stands still:
    /// making a thread takes a moment.
    pub(super) fn start(&self) {
        let shared = self.shared();
        let mut state = shared.state();
        if state.is_running {
            return;
        }
        let thread = thread::Builder::new().name("tcpmig-threads".to_owned());
        let maker = shared.clone();
        match thread.spawn(move || maker.make_threads()) {
            Ok(_) => state.is_running = true,
            Err(error) => {
                tracing::warn!("what waits holds up its runtime, for want of a thread: {error}");
            }
        }
    }

    /// Does a job; here and at once if it does not wait. The future waits for what comes of it.
    ///
    /// If the future is dropped the job is done all the same, and its result is dropped on a thread of the worker or with the
    /// future: that has to be enough for what is in it.
    pub(super) fn call<T: Send + 'static>(
        &self,
        waits: bool,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Call<T> {
        if self.is_here() || !(waits || self.is_elsewhere()) {
            return Call::Done(Some(job()));
        }
        let (sender, result) = oneshot::channel();
        self.push(move || {
            let result = catch_unwind(AssertUnwindSafe(job));
            // Nobody waits for it any longer: it is dropped here.
            drop(sender.send(result));
        });
        Call::Begun(result)
    }

    /// Does a job that nobody waits for; here and at once if it does not wait, or if this is a thread of a worker.
    pub(super) fn leave(&self, waits: bool, job: impl FnOnce() + Send + 'static) {
        if self.is_here() || !(waits || self.is_elsewhere()) {
            return job();
        }
        self.push(job);
    }

    /// Waits until all jobs are done that it has now.
    pub(super) async fn settled(&self) {
        let shared = self.shared();
        let until = shared.state().next;
        loop {
            let mut done = pin!(shared.done.notified());
            // From here on none is missed.
            done.as_mut().enable();
            let oldest = shared.state().open.first().copied();
            if oldest.is_none_or(|oldest| oldest >= until) {
                return;
            }
            done.await;
        }
    }

    fn push(&self, job: impl FnOnce() + Send + 'static) {
        self.start();
        let job = in_this_context(job);
        let shared = self.shared();
        let mut state = shared.state();
        if !state.is_running {
            drop(state);
            return job();
        }
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        state.waiting.push_back((number, Instant::now(), job));
        if state.idle > 0 {
            shared.job.notify_one();
        }
        // Threads that were woken for earlier jobs count as idle until they run.
        if state.maker_sleeps && state.waiting.len() > state.idle {
            shared.more.notify_one();
        }
    }

    /// Whether the calling thread is one of its own.
    fn is_here(&self) -> bool {
        WORKS_FOR.get() == Arc::as_ptr(self.shared()).addr()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

/// What comes of a job. The job itself is not in it: one of these is kept for each connection that is under way.
pub(super) enum Call<T> {
    Done(Option<T>),
    Begun(oneshot::Receiver<thread::Result<T>>),
}

/// The value is never pinned.
impl<T> Unpin for Call<T> {}

impl<T> Future for Call<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut *self {
            // INVARIANT: nobody polls a future again that was ready.
            Self::Done(value) => Poll::Ready(value.take().expect("it is polled once")),
            // INVARIANT: every job is done, and sends what comes of it.
            Self::Begun(result) => {
                match ready!(Pin::new(result).poll(cx)).expect("a job is done") {
                    Ok(value) => Poll::Ready(value),
                    Err(panic) => resume_unwind(panic),
                }
            }
        }
    }
}

/// With the runtime, the span and the subscriber of the thread that it comes from.
fn in_this_context(job: impl FnOnce() + Send + 'static) -> Job {
    let runtime = Handle::try_current().ok();
    let span = Span::current();
    let subscriber = dispatcher::get_default(Dispatch::clone);
    Box::new(move || {
        let _entered = runtime.as_ref().map(Handle::enter);
        dispatcher::with_default(&subscriber, || span.in_scope(job));
    })
}

impl Shared {
    /// A panic elsewhere left it as it was.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_threads(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            let Some((_, since, _)) = state.waiting.front() else {
                if state.is_over {
                    return;
                }
                state.maker_sleeps = true;
                let woken = self.more.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                state.maker_sleeps = false;
                continue;
            };
            let lies = since.elapsed();
            let wait = match (state.threads, LIES.checked_sub(lies)) {
                (0, _) | (_, None) if state.threads < THREADS => None,
                (_, Some(left)) => Some(left),
                // One of those that there are takes it some time.
                (_, None) => Some(IDLE),
            };
            let Some(wait) = wait else {
                state.threads += 1;
                drop(state);
                let made = self.make_thread();
                state = self.state();
                if let Err(error) = made {
                    state.threads -= 1;
                    if state.threads == 0 {
                        // Better one after the other than not at all.
                        drop(state);
                        tracing::warn!(
                            "calls that wait do so one after the other, for want of a thread: {error}"
                        );
                        self.do_next();
                        state = self.state();
                    }
                }
                // It takes the job, or finds it taken, before there is another one.
                let woken = self.more.wait_timeout(state, LIES);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            let woken = self.more.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn make_thread(self: &Arc<Self>) -> std::io::Result<()> {
        let shared = self.clone();
        let thread = thread::Builder::new().name("tcpmig-worker".to_owned());
        thread.spawn(move || shared.work()).map(drop)
    }

    fn work(&self) {
        loop {
            while self.do_next() {}
            let mut state = self.state();
            if state.waiting.is_empty() && !state.is_over {
                state.idle += 1;
                let woken = self.job.wait_timeout(state, IDLE);
                let (guard, waited) = woken.unwrap_or_else(PoisonError::into_inner);
                state = guard;
                state.idle -= 1;
                if !waited.timed_out() {
                    continue;
                }
            }
            if state.waiting.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// Whether there was one.
    fn do_next(&self) -> bool {
        let Some((number, _, job)) = self.state().waiting.pop_front() else {
            return false;
        };
        WORKS_FOR.set(std::ptr::from_ref(self).addr());
        if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
            tracing::error!("a call that nobody waits for panicked: {}", said(&panic));
        }
        self.state().open.remove(&number);
        self.done.notify_waiters();
        true
    }
}

fn said(panic: &Box<dyn Any + Send>) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a word")
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.job.notify_all();
        self.0.more.notify_one();
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}

#[cfg(test)]
mod tests;
