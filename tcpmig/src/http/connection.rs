//! Connections that can be drained.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::Request;
use hyper::service::Service;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::http1::{Http, Left};
use super::service::{BoxError, RequestBody, Watched};
use super::session::{AnyState, Session};
use super::shared::Obstacle;
use super::websocket::{At, Handler, Served};

/// How long things may take, how much may be carried.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) settle: Duration,
    pub(super) drain_within: Duration,
    pub(super) absorb: usize,
}

/// What a connection has whatever is spoken on it.
pub(super) struct About {
    pub(super) state: Option<Arc<dyn AnyState>>,
    pub(super) times: Times,
    pub(super) websockets: Option<Handler>,
}

/// A connection that can be drained: HTTP/1, and a WebSocket if it became one.
#[expect(
    private_bounds,
    reason = "what hyper asks of the service around the user's"
)]
pub struct Connection<S>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    pub(super) stage: Stage<S>,
    pub(super) about: About,
}

/// What is spoken on it.
pub(super) enum Stage<S>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    Http(Box<Http<S>>),
    WebSocket(Served),
}

/// A connection that stands at a safe point.
#[derive(Debug)]
pub struct Drained {
    /// The socket.
    pub stream: TcpStream,
    /// What moves with it.
    pub session: Session,
}

/// A connection that is not HTTP any longer: a response said 101 (Switching Protocols).
#[derive(Debug)]
pub struct Upgraded {
    /// The socket.
    pub stream: TcpStream,
    /// Octets that were read from it and belong to the new protocol.
    pub unread: Bytes,
    /// The extensions of that response: what the service wants to be known behind it.
    pub extensions: hyper::http::Extensions,
}

/// How a run of a connection ended.
pub enum Ended<C> {
    /// It is over.
    Closed,
    /// It was drained.
    Drained(Drained),
    /// It reached no safe point in time: run it on.
    Busy(C, Obstacle),
    /// It changed its protocol.
    Upgraded(Upgraded),
}

/// What a drain waits for; it stays ready.
pub(super) struct Asked<'a, F> {
    future: Pin<&'a mut F>,
    is_ready: bool,
}

impl<F: Future<Output = ()>> Asked<'_, F> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_ready {
            self.is_ready = self.future.as_mut().poll(cx).is_ready();
        }
        if self.is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<S, B> Connection<S>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Runs the connection until it is over or `asked` is ready, and then drains it.
    ///
    /// From then on no request is begun and resumable responses stand still at the end of a frame; the handler
    /// of a WebSocket is told to return. What hyper has written goes to the socket for as long as [`Movable::settle`]; what a
    /// slow peer has not made room for by then is carried.
    ///
    /// Cancelling it closes the connection.
    ///
    /// [`Movable::settle`]: super::Movable::settle
    ///
    /// # Errors
    ///
    /// hyper's; the connection is then closed.
    pub async fn run(self, asked: impl Future<Output = ()>) -> hyper::Result<Ended<Self>> {
        let Self { mut stage, about } = self;
        let mut asked = Asked {
            future: pin!(asked),
            is_ready: false,
        };
        loop {
            let begun = match stage {
                Stage::Http(http) => match http.run(&mut asked, &about).await? {
                    Left::Closed => return Ok(Ended::Closed),
                    Left::Drained(drained) => return Ok(Ended::Drained(drained)),
                    Left::Busy(http, obstacle) => {
                        let stage = Stage::Http(http);
                        return Ok(Ended::Busy(Self { stage, about }, obstacle));
                    }
                    Left::Switched {
                        upgraded,
                        head,
                        websocket,
                    } => {
                        let (Some(agreed), Some(handler)) = (websocket, &about.websockets) else {
                            return Ok(Ended::Upgraded(upgraded));
                        };
                        let at = At {
                            stream: upgraded.stream,
                            unread: &upgraded.unread,
                            unwritten: &[],
                            extended: agreed.extended,
                            resumed: false,
                        };
                        Served::begin(handler.clone(), at, head, about.state.clone())
                    }
                },
                Stage::WebSocket(served) => match serve(served, &mut asked, about.times).await {
                    WebSocketEnded::Busy(served, obstacle) => {
                        let stage = Stage::WebSocket(served);
                        return Ok(Ended::Busy(Self { stage, about }, obstacle));
                    }
                    WebSocketEnded::Returned(served, in_time) => {
                        let handler = served.handler();
                        match served.end().await {
                            Ok(None) => return Ok(Ended::Closed),
                            Ok(Some(drained)) if in_time => return Ok(Ended::Drained(drained)),
                            // The handler was told to return, and did when nobody waited for
                            // it any longer.
                            Ok(Some(Drained { stream, session })) => {
                                let at = At {
                                    stream,
                                    unread: &session.unread,
                                    unwritten: &session.unwritten,
                                    extended: false,
                                    resumed: true,
                                };
                                let head = session.websocket.unwrap_or_default();
                                Served::begin(handler, at, head, about.state.clone())
                            }
                            Err(error) => Err(error),
                        }
                    }
                },
            };
            stage = match begun {
                Ok(served) => Stage::WebSocket(served),
                Err(error) => {
                    tracing::warn!(%error, "a WebSocket is closed");
                    return Ok(Ended::Closed);
                }
            };
        }
    }
}

enum WebSocketEnded {
    Busy(Served, Obstacle),
    /// Its handler has returned: since it was told to, if this is set.
    Returned(Served, bool),
}

/// Runs a WebSocket's handler until it returns, or is asked to and does not.
async fn serve(
    mut served: Served,
    asked: &mut Asked<'_, impl Future<Output = ()>>,
    times: Times,
) -> WebSocketEnded {
    let returned = poll_fn(|cx| match served.poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => asked.poll(cx).map(|()| false),
    });
    if returned.await {
        return WebSocketEnded::Returned(served, false);
    }
    if let Err(obstacle) = served.drain(times.absorb) {
        return WebSocketEnded::Busy(served, obstacle);
    }
    let mut late = pin!(sleep(times.drain_within));
    let returned = poll_fn(|cx| match served.poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => late.as_mut().poll(cx).map(|()| false),
    });
    if returned.await {
        return WebSocketEnded::Returned(served, true);
    }
    let obstacle = served.undrain();
    WebSocketEnded::Busy(served, obstacle)
}
