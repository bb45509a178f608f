//! What the threads of a worker do, with jobs that wait for each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};

use tokio::runtime::Builder;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// A job that comes back once the sender says so, and its sender.
fn held(worker: &Worker) -> (mpsc::Sender<()>, Arc<AtomicBool>) {
    let (open, opened) = mpsc::channel();
    let done = Arc::new(AtomicBool::new(false));
    let set = done.clone();
    worker.leave(true, move || {
        opened.recv_timeout(PATIENCE).expect("it is let go");
        set.store(true, Ordering::SeqCst);
    });
    (open, done)
}

#[test]
fn what_does_not_wait_is_done_here() {
    let worker = Worker::new();
    let here = thread::current().id();
    assert_eq!(
        block_on(worker.call(false, move || thread::current().id())),
        here
    );
    assert_ne!(
        block_on(worker.call(true, move || thread::current().id())),
        here
    );
}

#[test]
fn jobs_wait_side_by_side() {
    let worker = Worker::new();
    // Each waits for all the others.
    let barrier = Arc::new(Barrier::new(THREADS));
    block_on(async {
        let jobs: Vec<_> = (0..THREADS)
            .map(|_| {
                let (worker, barrier) = (worker.clone(), barrier.clone());
                tokio::spawn(
                    async move { worker.call(true, move || barrier.wait().is_leader()).await },
                )
            })
            .collect();
        for job in jobs {
            let done = tokio::time::timeout(PATIENCE, job).await;
            done.expect("all of them come back").expect("none panics");
        }
    });
    assert!(worker.shared().state().threads <= THREADS);
}

#[test]
fn more_jobs_than_threads_have_their_turn() {
    let worker = Worker::new();
    let held: Vec<_> = (0..THREADS + 8).map(|_| held(&worker)).collect();
    for (open, _) in &held {
        open.send(()).expect("it waits for it");
    }
    block_on(worker.settled());
    assert!(held.iter().all(|(_, done)| done.load(Ordering::SeqCst)));
    assert!(worker.shared().state().threads <= THREADS);
}

#[test]
fn a_panic_goes_to_whoever_waits() {
    let worker = Worker::new();
    let panicked = block_on(async {
        let worker = worker.clone();
        let job = tokio::spawn(async move { worker.call(true, || panic!("for a test")).await });
        job.await.expect_err("it panicked").into_panic()
    });
    assert_eq!(said(&panicked), "for a test");
    // One that nobody waits for ends no thread.
    worker.leave(true, || panic!("for a test"));
    assert_eq!(block_on(worker.call(true, || 7)), 7);
}

/// Says where it was dropped.
struct Dropped(mpsc::Sender<thread::ThreadId>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

#[test]
fn what_nobody_waits_for_is_done_and_dropped_aside() {
    let worker = Worker::new();
    let (sender, dropped) = mpsc::channel();
    let (open, opened) = mpsc::channel::<()>();
    block_on(async {
        let job = worker.call(true, move || {
            opened.recv_timeout(PATIENCE).expect("it is let go");
            Dropped(sender)
        });
        let waited = tokio::time::timeout(Duration::from_millis(20), job).await;
        assert!(waited.is_err());
        // It is under way, and somebody who asks waits for it.
        let settled = tokio::time::timeout(Duration::from_millis(20), worker.settled()).await;
        assert!(settled.is_err());
        open.send(()).expect("it waits for it");
        worker.settled().await;
    });
    let by = dropped
        .try_recv()
        .expect("it was dropped before it was done");
    assert_ne!(by, thread::current().id());
}

#[test]
fn its_threads_end_when_all_is_done() {
    let worker = Worker::new();
    let (open, done) = held(&worker);
    let shared = Arc::downgrade(worker.shared());
    drop(worker);
    assert!(!done.load(Ordering::SeqCst));
    open.send(()).expect("it waits for it");
    let deadline = Instant::now() + PATIENCE;
    while shared.strong_count() > 0 {
        assert!(Instant::now() < deadline, "its threads are still there");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(done.load(Ordering::SeqCst));
}

#[test]
fn a_worker_does_what_it_leaves_to_itself_at_once() {
    let worker = Worker::new();
    let again = worker.clone();
    let same = block_on(worker.call(true, move || {
        let (sender, got) = mpsc::channel();
        again.leave(true, move || {
            let _ = sender.send(thread::current().id());
        });
        got.try_recv() == Ok(thread::current().id())
    }));
    assert!(same);
}
