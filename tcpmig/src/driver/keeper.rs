//! Renews what a host holds for connections that stand still, until they are settled.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tcpmig_lock::Locker;
use tracing::Span;

use crate::hold::Keep;

/// A thread that renews. Not a task: what holds a connection must go on when nobody polls anything, for instance while
/// an application decides what to do about a doubt, after its runtime has ended.
pub(super) struct Keeper(Arc<Shared>);

struct Shared {
    locker: Arc<dyn Locker>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// By the time at which it is renewed next, and a number of its own.
    due: BTreeMap<(Instant, u64), Kept>,
    last: u64,
    is_running: bool,
    is_over: bool,
}

struct Kept {
    what: Weak<dyn Keep>,
    /// The handover that it is of, for what is logged.
    of: Span,
}

impl Keeper {
    /// One that renews with this locker. It does nothing yet.
    pub(super) fn new(locker: Arc<dyn Locker>) -> Self {
        Self(Arc::new(Shared {
            locker,
            queue: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Begins, the first time, in the network namespace of the calling thread. Before a connection stands still: making a
    /// thread takes a moment.
    pub(super) fn start(&self) {
        let mut queue = self.0.queue();
        if queue.is_running {
            return;
        }
        let shared = self.0.clone();
        let thread = thread::Builder::new().name("tcpmig-keeper".to_owned());
        match thread.spawn(move || shared.run()) {
            Ok(_) => queue.is_running = true,
            Err(error) => {
                tracing::warn!("no lease is renewed, for want of a thread: {error}");
            }
        }
    }

    /// Renews it as soon as this much time has passed, and on until it is over.
    pub(super) fn keep(&self, (what, soon): (Weak<dyn Keep>, Duration)) {
        let of = Span::current();
        let mut queue = self.0.queue();
        if queue.push(Instant::now() + soon, Kept { what, of }) {
            self.0.changed.notify_one();
        }
    }
}

impl Queue {
    /// Whether it is the next.
    fn push(&mut self, when: Instant, what: Kept) -> bool {
        self.last += 1;
        let key = (when, self.last);
        let next = self
            .due
            .first_key_value()
            .is_none_or(|(first, _)| key < *first);
        self.due.insert(key, what);
        next
    }
}

impl Shared {
    /// A panic elsewhere left it as it was.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.queue();
        while !queue.is_over {
            let now = Instant::now();
            let due = queue.due.first_key_value().map(|((when, _), _)| *when);
            queue = match due {
                None => {
                    let woken = self.changed.wait(queue);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                Some(when) if when > now => {
                    let woken = self.changed.wait_timeout(queue, when - now);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let Some((_, kept)) = queue.due.pop_first() else {
                        continue;
                    };
                    // Renewing can take a while, and others begin meanwhile.
                    drop(queue);
                    let soon = kept.of.in_scope(|| {
                        let what = kept.what.upgrade();
                        what.and_then(|what| what.keep(&*self.locker))
                    });
                    let mut queue = self.queue();
                    if let Some(soon) = soon {
                        queue.push(Instant::now() + soon, kept);
                    }
                    queue
                }
            };
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.queue().is_over = true;
        self.0.changed.notify_one();
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}
