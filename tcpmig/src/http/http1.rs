//! A connection while hyper has it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;

use super::connection::{About, Asked, ConnectionError, Ends, Times};
use super::cursor::Saved;
use super::gate::Gate;
use super::lent::{Home, Lent, Use};
use super::request_body::RequestBody;
use super::service::{BoxError, Watched};
use super::session::{Session, SessionError};
use super::shared::{Agreed, Handed, Incoming, Obstacle, Safe, Shared, Switched};
use super::websocket::{Link, Rest};

/// hyper's connection.
pub(super) struct Http<S, T>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    http: http1::UpgradeableConnection<TokioIo<Lent<T>>, Watched<S>>,
    home: Arc<Home<T>>,
    shared: Arc<Shared>,
}

/// How hyper's part of a connection ended.
pub(super) enum Left<S, T>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    /// It is over but for what the peer has not read.
    Over(Ending<T>),
    Drained(T, Session),
    /// It cannot be carried; it is closed.
    Spoiled(SessionError),
    Busy(Box<Http<S, T>>, Obstacle),
    /// hyper gave it away.
    Upgraded(Upgrade<T>),
}

/// A connection that hyper is done with.
pub(super) struct Ending<T> {
    gate: Gate<T>,
    error: Option<ConnectionError>,
}

/// A connection that is not HTTP any longer.
pub(super) struct Upgrade<T> {
    home: Arc<Home<T>>,
    /// Bytes that hyper read and that belong to the new protocol.
    pub(super) unread: Bytes,
    /// The head of its last request.
    pub(super) head: Vec<u8>,
    /// What its last response said.
    pub(super) switched: Option<Switched>,
}

impl<S, B, T> Http<S, T>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub(super) fn new(
        builder: &http1::Builder,
        gate: Gate<T>,
        service: Watched<S>,
        shared: Arc<Shared>,
    ) -> Self {
        let home = Home::new();
        let io = TokioIo::new(home.lend(gate, shared.clone()));
        let http = builder.serve_connection(io, service).with_upgrades();
        Self { http, home, shared }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Drives hyper. At its end hyper has written everything to the gate, as it would have to a
    /// socket, and not closed it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let was_dropped = self.shared.current().incoming == Incoming::Dropped;
        let polling = self.home.hyper_is_polled();
        let polled = Pin::new(&mut self.http).poll(cx);
        drop(polling);
        let mut current = self.shared.current();
        if was_dropped && current.incoming == Incoming::Dropped {
            // hyper looks at the request's body first.
            current.incoming = Incoming::Skipped;
        }
        polled
    }

    /// Runs until the connection is over or it is asked to drain it, and then drains it.
    pub(super) async fn run(
        mut self: Box<Self>,
        asked: &mut Asked<'_, impl Future<Output = ()>>,
        ends: &mut Ends,
        about: &About,
    ) -> Left<S, T> {
        let over = poll_fn(|cx| {
            if ends.poll(cx).is_ready() {
                Pin::new(&mut self.http).graceful_shutdown();
            }
            if let Poll::Ready(ended) = self.poll(cx) {
                return Poll::Ready(Some(ended));
            }
            asked.poll(cx).map(|()| None)
        });
        if let Some(ended) = over.await {
            return self.end(ended);
        }
        self.shared.set_draining(true);
        let drained = self.drain(about.times).await;
        self.shared.set_draining(false);
        self.shared.set_absorb(0);
        match drained {
            Drain::Safe(safe) => self.take(safe, about),
            Drain::Ended(ended) => self.end(ended),
            Drain::Busy(obstacle) => Left::Busy(self, obstacle),
        }
    }

    /// Until a safe point or the end.
    async fn drain(&mut self, times: Times) -> Drain {
        let shared = self.shared.clone();
        let mut settle = pin!(sleep(times.settle));
        let mut late = pin!(sleep(times.drain_within));
        let mut settled = false;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = self.poll(cx) {
                    return Poll::Ready(Drain::Ended(ended));
                }
                if shared.current().incoming == Incoming::Dropped {
                    // hyper has to know before the connection can be taken from it.
                    continue;
                }
                let safe = shared.safe(cx);
                if !settled && settle.as_mut().poll(cx).is_ready() {
                    settled = true;
                    if safe.is_err() {
                        // What cannot be resumed may end without the peer.
                        shared.set_absorb(times.absorb);
                        continue;
                    }
                }
                let obstacle = match safe {
                    Ok(_) if settled || !shared.waits() => {
                        // With every write taken at once, one more poll brings out the rest.
                        shared.set_absorb(usize::MAX);
                        if let Poll::Ready(ended) = self.poll(cx) {
                            return Poll::Ready(Drain::Ended(ended));
                        }
                        match shared.safe(cx) {
                            Ok(safe) => return Poll::Ready(Drain::Safe(safe)),
                            Err(obstacle) => {
                                shared.set_absorb(times.absorb);
                                Some(obstacle)
                            }
                        }
                    }
                    Ok(_) => None,
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

    /// Takes a connection at a safe point to pieces.
    fn take(self, safe: Safe, about: &About) -> Left<S, T> {
        let state = about.known.state.as_ref().map(|state| state.store());
        let state = match state.transpose() {
            Ok(state) => state,
            Err(error) => return Left::Spoiled(error),
        };
        let Self { http, home, shared } = self;
        let read = http.into_parts().map(|parts| parts.read_buf);
        // INVARIANT: hyper has it until it ends, and it has not ended.
        let (Some(read), Some(gate)) = (read, home.take()) else {
            return Left::Spoiled(SessionError::Missing);
        };
        let (stream, ahead, unwritten) = gate.into_parts();
        let inbound = shared.inbound();
        // Empty lines before a request are hyper's to skip.
        debug_assert!(inbound.kept().ends_with(&read) || matches!(safe, Safe::Held));
        let (read, response) = match safe {
            Safe::Rest => (&read[..], None),
            // Of a request that was held, hyper may have read more than it has in its buffer.
            Safe::Held => (inbound.kept(), None),
            Safe::Middle(middle) => (&read[..], Some(Box::new(middle))),
        };
        let session = Session {
            unwritten: unwritten.into(),
            response,
            state,
            ..Session::at_rest([read, &ahead].concat())
        };
        Left::Drained(stream, session)
    }

    /// Takes a connection that hyper is done with.
    fn end(self, ended: hyper::Result<()>) -> Left<S, T> {
        let Self { http, home, shared } = self;
        let is_upgraded = http.into_parts().is_none();
        let mut current = shared.current();
        let error = ended.err().map(|error| match current.not_resumed.take() {
            Some(cause) => ConnectionError::NotResumed(cause),
            None => ConnectionError::Http(error.into()),
        });
        if !is_upgraded && let Some(gate) = home.take() {
            return Left::Over(Ending { gate, error });
        }
        let unread = Bytes::copy_from_slice(shared.inbound().kept());
        let head = std::mem::take(&mut current.head);
        Left::Upgraded(Upgrade::new(home, unread, head, current.switched.take()))
    }
}

/// What a drain came to.
enum Drain {
    Safe(Safe),
    Ended(hyper::Result<()>),
    Busy(Obstacle),
}

impl<T: AsyncRead + AsyncWrite + Unpin> Ending<T> {
    pub(super) fn new(gate: Gate<T>) -> Self {
        Self { gate, error: None }
    }

    pub(super) fn error(&self) -> Option<&ConnectionError> {
        self.error.as_ref()
    }

    /// Ready when the peer has, or never will have, what was written, and the stream is closed.
    /// It can be called again if it was dropped before.
    pub(super) async fn run(&mut self) -> Option<ConnectionError> {
        // hyper leaves what it could not write behind when it fails; what it has written reaches the peer.
        if self.gate.flush().await.is_ok() && self.error.is_none() {
            // The peer may have closed it first.
            let _ = self.gate.shutdown().await;
        }
        self.error.take()
    }
}

impl<T> Upgrade<T> {
    pub(super) fn new(
        home: Arc<Home<T>>,
        unread: Bytes,
        head: Vec<u8>,
        switched: Option<Switched>,
    ) -> Self {
        Self {
            home,
            unread,
            head,
            switched,
        }
    }

    /// Whether a handler has it; who it is given to is known then.
    pub(super) fn is_claimed(&self) -> bool {
        !self.home.is_here()
    }

    fn agreed(&self) -> Option<&Agreed> {
        self.switched.as_ref()?.websocket.as_ref()
    }

    /// Whether a handler's WebSocket can move.
    pub(super) fn moves(&self) -> bool {
        self.agreed().is_some_and(|agreed| agreed.moves().is_some())
    }

    /// Ready when nobody has it.
    pub(super) fn poll_use(&self, cx: &Context<'_>) -> Poll<Use<T>> {
        self.home.poll_use(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Upgrade<T> {
    /// Writes what waits, without the handler.
    pub(super) fn flush(&self, cx: &mut Context<'_>) {
        if let Some(link) = self.home.link() {
            link.flush(cx);
        }
    }

    /// Tells the handler to return, as soon as it has the WebSocket. It may be called again and again.
    pub(super) fn drain(&self, absorb: usize) {
        if let Some(link) = self.home.link() {
            link.drain(absorb);
        }
    }

    /// The handler goes on. Why it did not return.
    pub(super) fn undrain(&self) -> Obstacle {
        if !self.moves() {
            let wanted = self.agreed().is_some_and(|agreed| agreed.cursor.is_some());
            // Without a cursor it would not move if it had none.
            return if wanted {
                Obstacle::Extensions
            } else {
                Obstacle::Upgraded
            };
        }
        let Some(link) = self.home.link() else {
            return Obstacle::Handler;
        };
        link.undrain();
        link.obstacle().unwrap_or(Obstacle::Handler)
    }

    /// Takes a WebSocket from its handler, which has dropped it.
    pub(super) fn take(self, link: &Link<T>, about: &About) -> Taken<T> {
        let has_to_end = !link.was_told() || link.obstacle().is_some();
        let Some(Rest {
            stream,
            unread,
            unwritten,
        }) = link.take()
        else {
            return Taken::Nothing;
        };
        let switched = self.switched.and_then(|switched| switched.websocket);
        let saved = match switched.as_ref().and_then(|agreed| agreed.moves()) {
            Some(cursor) if !has_to_end => cursor.save().ok(),
            _ => None,
        };
        let (Some(Saved { named, payload }), Some(agreed)) = (saved, switched) else {
            if link.obstacle() == Some(Obstacle::Writing) {
                tracing::warn!(flow = %about.flow, "the handler of a WebSocket left a frame partly written");
            }
            let gate = Gate::resume(stream, Shared::new(), None, &[], &unwritten);
            return Taken::Ends(Ending::new(gate));
        };
        let state = about.known.state.as_ref().map(|state| state.store());
        let state = match state.transpose() {
            Ok(state) => state,
            Err(error) => return Taken::Spoiled(error),
        };
        let session = Session {
            unwritten,
            handed: Some(Box::new(Handed {
                request: self.head,
                protocol: agreed.protocol,
                named,
                cursor: payload,
            })),
            state,
            ..Session::at_rest(unread)
        };
        Taken::Safe(stream, session)
    }
}

/// What is left of a WebSocket whose handler has dropped it.
pub(super) enum Taken<T> {
    /// It was told to.
    Safe(T, Session),
    /// The connection ends.
    Ends(Ending<T>),
    Spoiled(SessionError),
    Nothing,
}
