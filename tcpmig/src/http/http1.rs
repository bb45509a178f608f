//! A connection while hyper has it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http_body::Body;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::connection::{About, Asked, Drained, Times, Upgraded};
use super::gate::Gate;
use super::service::{BoxError, RequestBody, Watched};
use super::session::{Session, SessionError};
use super::shared::{Agreed, Obstacle, Safe, Shared};

/// hyper's connection.
pub(super) struct Http<S>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    pub(super) http: http1::Connection<TokioIo<Gate>, Watched<S>>,
    pub(super) shared: Arc<Shared>,
}

/// How hyper's part of a connection ended.
pub(super) enum Left<S>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    Closed,
    Drained(Drained),
    Busy(Box<Http<S>>, Obstacle),
    /// A response said 101.
    Switched {
        upgraded: Upgraded,
        /// The head of its request.
        head: Vec<u8>,
        websocket: Option<Agreed>,
    },
}

impl<S, B> Http<S>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Runs until the connection is over or it is asked to drain it, and then drains it.
    pub(super) async fn run(
        mut self: Box<Self>,
        asked: &mut Asked<'_, impl Future<Output = ()>>,
        about: &About,
    ) -> hyper::Result<Left<S>> {
        let over = poll_fn(|cx| {
            if let Poll::Ready(ended) = self.http.poll_without_shutdown(cx) {
                return Poll::Ready(ended.map(|()| true));
            }
            asked.poll(cx).map(|()| Ok(false))
        })
        .await?;
        if over {
            return Ok(self.end().await);
        }
        self.shared.set_draining(true);
        let drained = self.drain(about.times).await;
        self.shared.set_draining(false);
        self.shared.set_absorb(0);
        match drained? {
            Ok(safe) => Ok(match self.take(safe, about) {
                Ok(drained) => Left::Drained(drained),
                Err(error) => {
                    tracing::warn!(%error, "a drained connection is closed");
                    Left::Closed
                }
            }),
            Err(None) => Ok(self.end().await),
            Err(Some(obstacle)) => Ok(Left::Busy(self, obstacle)),
        }
    }

    /// Until a safe point; `None` if the connection ended before.
    async fn drain(&mut self, times: Times) -> hyper::Result<Result<Safe, Option<Obstacle>>> {
        let (shared, http) = (&self.shared, &mut self.http);
        let mut settle = pin!(sleep(times.settle));
        let mut late = pin!(sleep(times.drain_within));
        let mut settled = false;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = http.poll_without_shutdown(cx) {
                    return Poll::Ready(ended.map(|()| Err(None)));
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
                        if let Poll::Ready(ended) = http.poll_without_shutdown(cx) {
                            return Poll::Ready(ended.map(|()| Err(None)));
                        }
                        match shared.safe(cx) {
                            Ok(safe) => return Poll::Ready(Ok(Ok(safe))),
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
                    (Some(obstacle), Poll::Ready(())) => Poll::Ready(Ok(Err(Some(obstacle)))),
                    _ => Poll::Pending,
                };
            }
        })
        .await
    }

    /// Takes a connection at a safe point to pieces.
    fn take(self, safe: Safe, about: &About) -> Result<Drained, SessionError> {
        let state = about.state.as_ref().map(|state| state.store());
        let state = state.transpose()?;
        let parts = self.http.into_parts();
        let (stream, unread, unwritten) = parts.io.into_inner().into_parts();
        let (held, response) = match safe {
            Safe::Rest => (Vec::new(), None),
            Safe::Held(head) => (head, None),
            Safe::Middle(middle) => (Vec::new(), Some(middle)),
        };
        let session = Session {
            unread: [&held[..], &parts.read_buf, &unread].concat(),
            unwritten: unwritten.into(),
            response,
            websocket: None,
            state,
        };
        Ok(Drained { stream, session })
    }

    /// Ends the stream as hyper would have, or gives it to the next protocol.
    async fn end(self) -> Left<S> {
        let (switched, head) = {
            let mut current = self.shared.current();
            (current.switched.take(), std::mem::take(&mut current.head))
        };
        let parts = self.http.into_parts();
        let mut gate = parts.io.into_inner();
        let flushed = gate.flush().await;
        let (mut stream, unread, _) = gate.into_parts();
        if let (Some(switched), Ok(())) = (switched, flushed) {
            let upgraded = Upgraded {
                stream,
                unread: [&parts.read_buf[..], &unread].concat().into(),
                extensions: switched.extensions,
            };
            return Left::Switched {
                upgraded,
                head,
                websocket: switched.websocket,
            };
        }
        // The peer may have closed it first.
        let _ = stream.shutdown().await;
        Left::Closed
    }
}
