//! Streams of a model server that gives each of them once: this gateway reads them and keeps what no client has yet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::model::{DONE, Error, Events};
use super::moved::{self, Order};

/// How many events of a stream are kept that no client has: the model waits for room then.
const MOST: usize = 1000;

/// How long a stream is kept that nobody asks for.
const UNASKED: Duration = Duration::from_secs(60);

/// How long a stream may be on its way.
const ARRIVES: Duration = Duration::from_secs(10);

/// Which stream: who began to read it, and its number there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Id {
    pub(crate) origin: String,
    pub(crate) number: u64,
}

/// The streams that this gateway reads.
#[derive(Default)]
pub(crate) struct Kept {
    streams: Mutex<Streams>,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Streams {
    begun: u64,
    here: HashMap<Id, Arc<Stream>>,
}

/// A stream.
pub(crate) struct Stream {
    buffer: Mutex<Buffer>,
    /// An event came, or the end.
    came: Notify,
    /// Events are not needed any longer.
    room: Notify,
    asked: Notify,
    orders: mpsc::UnboundedSender<Order>,
}

/// What is kept of a stream.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Buffer {
    /// How many events there were before these.
    before: u64,
    events: VecDeque<String>,
    ended: bool,
    /// Another gateway reads it now.
    #[serde(skip)]
    moved: bool,
    /// How many wait for events.
    #[serde(skip)]
    asking: usize,
}

/// Events of a stream, behind those that were asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) events: Vec<String>,
    /// No others come.
    pub(crate) ended: bool,
}

/// Why there is no [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Another gateway has it.
    Moved,
    /// Nobody has it, or not all that was asked for.
    Gone,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves whole values only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// Reads a stream from now on, which begins.
    pub(crate) fn begin(self: &Arc<Self>, origin: &str, events: Events) -> Id {
        let mut streams = lock(&self.streams);
        streams.begun += 1;
        let id = Id {
            origin: origin.to_owned(),
            number: streams.begun,
        };
        drop(streams);
        self.go_on(id.clone(), Buffer::default(), events);
        id
    }

    /// Reads a stream from now on, of which this was kept elsewhere.
    pub(crate) fn go_on(self: &Arc<Self>, id: Id, buffer: Buffer, events: Events) {
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let stream = Arc::new(Stream {
            buffer: Mutex::new(buffer),
            came: Notify::new(),
            room: Notify::new(),
            asked: Notify::new(),
            orders,
        });
        let mut streams = lock(&self.streams);
        streams.here.insert(id.clone(), stream.clone());
        self.count.send_replace(streams.here.len());
        drop(streams);
        let kept = self.clone();
        tokio::spawn(async move {
            let mut here = Some(events);
            while let Some(mut events) = here.take() {
                tokio::select! {
                    () = stream.read(&mut events) => stream.unasked().await,
                    () = stream.unasked() => {}
                    Some(order) = ordered.recv() => here = moved::give(order, &id, &stream, events).await,
                }
            }
            kept.forget(&id);
        });
    }

    /// The events of a stream behind the first so many, which the client has: they are not needed again. Waits for one.
    pub(crate) async fn after(&self, id: &Id, has: u64) -> Result<Batch, Missing> {
        let stream = lock(&self.streams).here.get(id).cloned();
        let batch = stream.ok_or(Missing::Moved)?.after(has).await?;
        if batch.ended && batch.events.is_empty() {
            self.forget(id);
        }
        Ok(batch)
    }

    pub(crate) fn has(&self, id: &Id) -> bool {
        lock(&self.streams).here.contains_key(id)
    }

    /// Waits for a stream that is on its way.
    pub(crate) async fn arrives(&self, id: &Id) -> bool {
        let mut count = self.count.subscribe();
        timeout(ARRIVES, count.wait_for(|_| self.has(id)))
            .await
            .is_ok()
    }

    /// Those that are read here.
    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        lock(&self.streams).here.values().cloned().collect()
    }

    /// Ready when no stream is kept.
    pub(crate) async fn emptied(&self) {
        // It holds the sender.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    fn forget(&self, id: &Id) {
        let mut streams = lock(&self.streams);
        streams.here.remove(id);
        self.count.send_replace(streams.here.len());
    }
}

impl Stream {
    /// Gives it to another gateway, if it can.
    pub(crate) fn order(&self, order: Order) {
        // Whoever has ended drops the order.
        let _ = self.orders.send(order);
    }

    pub(crate) fn buffer(&self) -> Buffer {
        lock(&self.buffer).clone()
    }

    /// Another gateway reads it now.
    pub(crate) fn is_moved(&self) {
        lock(&self.buffer).moved = true;
        self.came.notify_waiters();
    }

    async fn read(&self, events: &mut Events) {
        loop {
            let room = self.room.notified();
            let (is_full, ended) = {
                let buffer = lock(&self.buffer);
                (buffer.events.len() >= MOST, buffer.ended)
            };
            if ended {
                return;
            }
            if is_full {
                room.await;
                continue;
            }
            let next = events.next().await;
            self.push(next.unwrap_or_else(|error| failed(&error)));
        }
    }

    /// An event came, which may be the last.
    pub(crate) fn push(&self, event: String) {
        let mut buffer = lock(&self.buffer);
        buffer.ended = event == DONE || event.starts_with(FAILED);
        buffer.events.push_back(event);
        drop(buffer);
        self.came.notify_waiters();
    }

    async fn after(&self, has: u64) -> Result<Batch, Missing> {
        let _asking = Asking::new(self);
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            // From now on, and not only when it is polled.
            came.as_mut().enable();
            {
                let mut buffer = lock(&self.buffer);
                if buffer.moved {
                    return Err(Missing::Moved);
                }
                let known = has.checked_sub(buffer.before).ok_or(Missing::Gone)?;
                let known = usize::try_from(known).map_err(|_| Missing::Gone)?;
                if known > buffer.events.len() {
                    return Err(Missing::Gone);
                }
                buffer.events.drain(..known);
                buffer.before = has;
                self.room.notify_one();
                if buffer.ended || !buffer.events.is_empty() {
                    return Ok(Batch {
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

const FAILED: &str = "{\"error\":";

/// What a client is told whose stream breaks off.
pub(crate) fn failed(error: &Error) -> String {
    json!({ "error": { "message": error.to_string() } }).to_string()
}
