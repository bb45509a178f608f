//! A connection while hyper has it, if it is HTTP/2.

mod service;
mod session;
mod streams;
mod wire;

use std::any::Any;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use super::connection::{About, Asked, Ends, Times};
use super::gate::Gate;
use super::http1::Ending;
use super::session::{Session, SessionError};
use super::shared::{Middle, Obstacle, Safe, Shared};
use crate::http2::{Connection, PREFACE, Unsettled};
use service::Start;
pub(super) use service::{Begin, Serving, begin};
pub use session::{HTTP2_KIND, HTTP2_VERSION};
pub(super) use session::{Multiplex, decode, encode, not_spoken};
pub(super) use streams::Streams;
use streams::Tasks;
use wire::Wire;

/// hyper's connection.
pub(super) struct Http2<T> {
    serving: Box<dyn Serving>,
    wire: Arc<Wire<T>>,
    streams: Arc<Streams>,
    tasks: Tasks,
    /// For the gate.
    shared: Arc<Shared>,
}

/// How hyper's part of a connection ended.
pub(super) enum Left<T> {
    /// It is over but for what the peer has not read.
    Over(Ending<T>),
    Gone,
    Drained(T, Session),
    /// It cannot be carried; it is closed.
    Spoiled(SessionError),
    Busy(Box<Http2<T>>, Obstacle),
}

/// What a drain came to.
enum Drain {
    Safe(Vec<(u32, Middle)>),
    Ended(hyper::Result<()>),
    Busy(Obstacle),
}

/// The answers that were asked for before a connection came.
pub(super) type Rests = HashMap<u32, Box<dyn Any>>;

/// Whether these bytes are those with which HTTP/2 begins; `None` if they may become so.
pub(super) fn is_preface(bytes: &[u8]) -> Option<bool> {
    let count = bytes.len().min(PREFACE.len());
    if bytes[..count] != PREFACE[..count] {
        return Some(false);
    }
    (count == PREFACE.len()).then_some(true)
}

/// What a connection is made of.
pub(super) struct Recipe<'a, S> {
    pub(super) begin: &'a Begin<S>,
    pub(super) service: &'a Arc<S>,
    pub(super) request_id: &'a hyper::header::HeaderName,
    pub(super) about: &'a About,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Http2<T> {
    /// One that begins with these bytes.
    pub(super) fn new<S>(recipe: &Recipe<'_, S>, stream: T, read: &[u8], unwritten: &[u8]) -> Self {
        let shared = Shared::new();
        let gate = Gate::resume(stream, shared.clone(), None, read, unwritten);
        Self::assemble(recipe, gate, shared, Connection::new(), HashMap::new())
    }

    /// One that was drained.
    pub(super) fn resume<S>(
        recipe: &Recipe<'_, S>,
        stream: T,
        multiplex: Multiplex,
        unwritten: &[u8],
        mut rests: Rests,
    ) -> Result<Self, SessionError> {
        let mut requests: HashMap<_, _> = multiplex.requests()?.into_iter().collect();
        let frames = Connection::resume(&multiplex.connection, |id| requests.remove(&id));
        let frames = frames.map_err(|error| SessionError::Request(error.to_string()))?;
        let shared = Shared::new();
        let gate = Gate::resume(stream, shared.clone(), None, &[], unwritten);
        let resumed = multiplex.responses.into_iter();
        let resumed = resumed
            .map(|(id, middle)| (id, (middle, rests.remove(&id))))
            .collect();
        Ok(Self::assemble(recipe, gate, shared, frames, resumed))
    }

    fn assemble<S>(
        recipe: &Recipe<'_, S>,
        gate: Gate<T>,
        shared: Arc<Shared>,
        frames: Connection,
        resumed: HashMap<u32, (Middle, Option<Box<dyn Any>>)>,
    ) -> Self {
        let wire = Wire::new(gate, frames);
        let streams = Arc::<Streams>::default();
        let tasks = Tasks::default();
        let serving = (recipe.begin)(Start {
            service: recipe.service.clone(),
            known: recipe.about.known.clone(),
            bodies: recipe.about.times.bodies,
            request_id: recipe.request_id.clone(),
            wire: wire.clone(),
            streams: streams.clone(),
            tasks: tasks.clone(),
            resumed,
        });
        Self {
            serving,
            wire,
            streams,
            tasks,
            shared,
        }
    }

    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// Drives hyper.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.tasks.reap();
        let mut before = None;
        loop {
            if let Poll::Ready(ended) = self.serving.poll(cx) {
                return Poll::Ready(ended);
            }
            // What it has said can be why there is more to read, of which nobody wakes it.
            let read = self.wire.with(|layer| {
                let has_more = !layer.frames.read().is_empty() || layer.frames.is_ended();
                has_more.then_some(layer.given)
            });
            let read = read.flatten();
            if read.is_none() || read == before {
                // It reads no more until it can write.
                return Poll::Pending;
            }
            before = read;
        }
    }

    /// Runs until the connection is over or it is asked to drain it, and then drains it.
    pub(super) async fn run(
        mut self: Box<Self>,
        asked: &mut Asked<'_, impl Future<Output = ()>>,
        ends: &mut Ends,
        about: &About,
    ) -> Left<T> {
        let over = poll_fn(|cx| {
            if ends.poll(cx).is_ready() {
                self.serving.graceful_shutdown();
            }
            if let Poll::Ready(ended) = self.poll(cx) {
                return Poll::Ready(Some(ended));
            }
            asked.poll(cx).map(|()| None)
        });
        if let Some(ended) = over.await {
            return self.end(ended, about);
        }
        self.set_draining(true);
        match self.drain(about.times).await {
            Drain::Safe(responses) => self.take(responses, about),
            Drain::Ended(ended) => self.end(ended, about),
            Drain::Busy(obstacle) => {
                self.set_draining(false);
                self.shared.set_absorb(0);
                Left::Busy(self, obstacle)
            }
        }
    }

    fn set_draining(&self, draining: bool) {
        self.streams.set_draining(draining);
        self.wire.with(|layer| layer.frames.drain(draining));
    }

    /// Until a safe point or the end.
    async fn drain(&mut self, times: Times) -> Drain {
        let mut settle = pin!(sleep(times.settle));
        let mut late = pin!(sleep(times.drain_within));
        let mut settled = false;
        let mut flooded = false;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = self.poll(cx) {
                    return Poll::Ready(Drain::Ended(ended));
                }
                settled = settled || settle.as_mut().poll(cx).is_ready();
                let obstacle = match self.safe(cx) {
                    Ok(responses) if flooded && self.is_quiet(&responses) => {
                        return Poll::Ready(Drain::Safe(responses));
                    }
                    Ok(_) if !flooded && (settled || !self.shared.waits()) => {
                        // Nothing more comes from the service: what hyper holds comes out, whatever the peer has room for.
                        flooded = true;
                        self.shared.set_absorb(usize::MAX);
                        self.wire.with(|layer| layer.frames.flood());
                        continue;
                    }
                    Ok(_) if !flooded => None,
                    Ok(_) => Some(Obstacle::Response),
                    Err(obstacle) => Some(obstacle),
                };
                return match (obstacle, late.as_mut().poll(cx)) {
                    (Some(obstacle), Poll::Ready(())) => Poll::Ready(Drain::Busy(obstacle)),
                    _ => Poll::Pending,
                };
            }
        })
        .await
    }

    /// The responses that are in the middle, if all else is done; else the task is woken when that may have changed without it.
    fn safe(&self, cx: &mut Context<'_>) -> Result<Vec<(u32, Middle)>, Obstacle> {
        let found = self.wire.with(|layer| {
            let open: Vec<_> = layer.frames.open().collect();
            let frames = &layer.frames;
            (open, frames.obstacle(), frames.awaits_bodies())
        });
        let (open, obstacle, awaits_bodies) = found.ok_or(Obstacle::Ending)?;
        if obstacle == Some(Unsettled::GoingAway) {
            return Err(Obstacle::Ending);
        }
        if obstacle == Some(Unsettled::Astray) {
            return Err(Obstacle::Frames);
        }
        let mut responses = Vec::new();
        for (id, sent) in open {
            let Some(shared) = self.streams.get(id) else {
                // hyper answers it itself, or it is on its way to the service.
                return Err(Obstacle::Service);
            };
            if shared.current().switched.is_some() {
                return Err(Obstacle::Upgraded);
            }
            // What has been pulled is carried; what comes from now on is carried as it came.
            let pulled = shared.pull(cx);
            if pulled.is_some() {
                self.wire.with(|layer| layer.frames.hold_body(id));
            }
            match shared.safe(cx)? {
                Safe::Middle(Middle {
                    upload: Some(upload),
                    ..
                }) if pulled != Some(sent.received)
                    || sent.has_request && !upload.has_ended
                    || !upload.has_response && sent.is_resumed =>
                {
                    return Err(Obstacle::Request);
                }
                Safe::Middle(middle) if sent.has_request || middle.upload.is_some() => {
                    responses.push((id, middle));
                }
                Safe::Middle(_) | Safe::Held => return Err(Obstacle::Request),
                // Its end is on its way.
                Safe::Rest => {}
            }
        }
        if awaits_bodies {
            // Of a stream that was answered before its request was whole.
            return Err(Obstacle::Request);
        }
        Ok(responses)
    }

    /// Whether everything that the service gave has come out of hyper.
    fn is_quiet(&self, responses: &[(u32, Middle)]) -> bool {
        let is_quiet = self.wire.with(|layer| {
            let mut left = responses.iter();
            let has_said = layer.frames.open().all(|(id, sent)| {
                let passed = self.streams.get(id).and_then(|shared| shared.passed());
                let next = left.next().filter(|(next, _)| *next == id);
                next.is_some_and(|(_, middle)| match middle.has_response() {
                    true => sent.has_head && passed == Some(sent.bytes),
                    false => !sent.has_head,
                })
            });
            has_said && layer.frames.obstacle().is_none() && layer.frames.unsent().is_empty()
        });
        is_quiet == Some(true)
    }

    /// Takes a connection at a safe point to pieces.
    fn take(self, responses: Vec<(u32, Middle)>, about: &About) -> Left<T> {
        let layer = self.wire.take();
        // What the service has begun is begun again where the connection goes on.
        self.tasks.abort();
        drop(self.serving);
        let state = about.known.state.as_ref().map(|state| state.store());
        let state = match state.transpose() {
            Ok(state) => state,
            Err(error) => return Left::Spoiled(error),
        };
        // INVARIANT: nobody else takes it.
        let Some(layer) = layer else {
            return Left::Spoiled(SessionError::Missing);
        };
        let (stream, ahead, unwritten) = layer.gate.into_parts();
        // INVARIANT: a safe point has no obstacle.
        let Ok(connection) = layer.frames.into_image(&ahead) else {
            return Left::Spoiled(SessionError::Missing);
        };
        let session = Session {
            unwritten: unwritten.into(),
            state,
            http2: Some(Box::new(Multiplex {
                connection,
                responses,
            })),
            ..Session::at_rest(Vec::new())
        };
        Left::Drained(stream, session)
    }

    /// Takes a connection that hyper is done with.
    fn end(self, ended: hyper::Result<()>, about: &About) -> Left<T> {
        self.tasks.detach();
        if let Err(error) = ended {
            tracing::debug!(flow = %about.flow, %error, "an HTTP/2 connection ended");
        }
        match self.wire.take() {
            Some(layer) => Left::Over(Ending::new(layer.gate)),
            None => Left::Gone,
        }
    }
}
