//! Streams of a model server that gives each of them once: this gateway reads them and keeps what no client has yet.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::model::{Error, Events};

/// How many events of a stream are kept that no client has: the model waits for room then.
const MOST: usize = 1000;

/// How long a stream is kept that nobody asks for.
const UNASKED: Duration = Duration::from_secs(60);

/// The streams that this gateway reads.
#[derive(Default)]
pub(crate) struct Kept {
    streams: Mutex<HashMap<u64, Arc<Stream>>>,
    next: AtomicU64,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Stream {
    buffer: Mutex<Buffer>,
    /// An event came, or the end.
    came: Notify,
    /// Events are not needed any longer.
    room: Notify,
    asked: Notify,
}

#[derive(Default)]
struct Buffer {
    /// How many events there were before these.
    before: u64,
    events: VecDeque<String>,
    ended: bool,
    /// How many wait for events.
    asking: usize,
}

/// Events of a stream, behind those that were asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) events: Vec<String>,
    /// No others come.
    pub(crate) ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves whole values only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// Reads a stream from now on. Its number.
    pub(crate) fn begin(self: &Arc<Self>, events: Events) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream::default());
        let mut streams = lock(&self.streams);
        streams.insert(number, stream.clone());
        self.count.send_replace(streams.len());
        drop(streams);
        let kept = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stream.read(events) => stream.unasked().await,
                () = stream.unasked() => {}
            }
            kept.forget(number);
        });
        number
    }

    /// The events of a stream behind the first so many, which the client has: they are not needed again. Waits for one.
    /// `None` if there is no such stream, or too much of it is gone.
    pub(crate) async fn after(&self, number: u64, has: u64) -> Option<Batch> {
        let stream = lock(&self.streams).get(&number).cloned()?;
        let batch = stream.after(has).await?;
        if batch.ended && batch.events.is_empty() {
            self.forget(number);
        }
        Some(batch)
    }

    /// Ready when no stream is kept.
    pub(crate) async fn emptied(&self) {
        // It holds the sender.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    fn forget(&self, number: u64) {
        let mut streams = lock(&self.streams);
        streams.remove(&number);
        self.count.send_replace(streams.len());
    }
}

impl Stream {
    async fn read(&self, mut events: Events) {
        loop {
            let room = self.room.notified();
            if lock(&self.buffer).events.len() >= MOST {
                room.await;
                continue;
            }
            let next = events.next().await;
            let mut buffer = lock(&self.buffer);
            match next {
                Ok(Some(event)) => buffer.events.push_back(event),
                Ok(None) => buffer.ended = true,
                Err(error) => {
                    buffer.events.push_back(failed(&error));
                    buffer.ended = true;
                }
            }
            let ended = buffer.ended;
            drop(buffer);
            self.came.notify_waiters();
            if ended {
                return;
            }
        }
    }

    async fn after(&self, has: u64) -> Option<Batch> {
        let _asking = Asking::new(self);
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            // From now on, and not only when it is polled.
            came.as_mut().enable();
            {
                let mut buffer = lock(&self.buffer);
                let known = has.checked_sub(buffer.before)?;
                let known = usize::try_from(known).ok()?;
                if known > buffer.events.len() {
                    return None;
                }
                buffer.events.drain(..known);
                buffer.before = has;
                self.room.notify_one();
                if buffer.ended || !buffer.events.is_empty() {
                    return Some(Batch {
                        events: buffer.events.iter().cloned().collect(),
                        ended: buffer.ended,
                    });
                }
            }
            came.await;
        }
    }

    /// Ready when nobody has asked for a while.
    async fn unasked(&self) {
        loop {
            tokio::select! {
                () = self.asked.notified() => {}
                () = sleep(UNASKED) => {
                    if lock(&self.buffer).asking == 0 {
                        return;
                    }
                }
            }
        }
    }
}

/// Somebody waits for events.
struct Asking<'a>(&'a Stream);

impl<'a> Asking<'a> {
    fn new(stream: &'a Stream) -> Self {
        lock(&stream.buffer).asking += 1;
        stream.asked.notify_one();
        Self(stream)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        lock(&self.0.buffer).asking -= 1;
        self.0.asked.notify_one();
    }
}

/// What a client is told whose stream breaks off.
pub(crate) fn failed(error: &Error) -> String {
    json!({ "error": { "message": error.to_string() } }).to_string()
}
