//! Connections that can be drained.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::Request;
use hyper::service::Service;
use tokio::net::TcpStream;

use super::doing::{Activity, Seen};
use super::http1::{Ending, Http, Upgrade};
#[cfg(feature = "http2")]
use super::http2::Http2;
#[cfg(feature = "http2")]
use super::opening::Opening;
use super::replay::Replaying;
use super::request_body::RequestBody;
use super::resumable::NotResumed;
use super::seldom::Seldom;
use super::service::{BoxError, Watched};
use super::session::{AnyState, Session, SessionError};
use super::shared::Obstacle;
use super::stages::{self, Next};
use super::websocket::{Handler, Served};
use crate::session::{Carrier, Parts};

/// How long things may take, how much may be carried.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) settle: Duration,
    pub(super) drain_within: Duration,
    pub(super) absorb: usize,
    /// Of the bodies of requests.
    pub(super) bodies: usize,
    /// How long the service may take before a connection comes.
    pub(super) answer_within: Duration,
}

/// Puts what is known of a connection's carrier into the extensions of a request.
pub(super) type Facts = Arc<dyn Fn(&mut hyper::http::Extensions) + Send + Sync>;

/// What requests are told of their connection.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) state: Option<Arc<dyn AnyState>>,
    pub(super) facts: Option<Facts>,
}

/// What a connection has whatever is spoken on it.
pub(super) struct About {
    pub(super) known: Known,
    pub(super) times: Times,
    pub(super) websockets: Option<Handler>,
    /// For the log.
    pub(super) flow: Flow,
    /// For who asks.
    pub(super) seen: Seen,
}

impl Known {
    /// Tells a request.
    pub(super) fn extend(&self, extensions: &mut hyper::http::Extensions) {
        if let Some(state) = &self.state {
            state.extend(extensions);
        }
        if let Some(facts) = &self.facts {
            facts(extensions);
        }
    }
}

/// The two ends of a connection, as far as the kernel knows them.
#[derive(Clone, Copy)]
pub(super) struct Flow(Option<SocketAddr>, Option<SocketAddr>);

impl Flow {
    #[cfg(test)]
    pub(super) const UNKNOWN: Self = Self(None, None);

    pub(super) fn of(stream: &TcpStream) -> Self {
        Self(stream.local_addr().ok(), stream.peer_addr().ok())
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Some(local), Some(peer)) => write!(f, "{local} <-> {peer}"),
            _ => f.write_str("a connection that its peer has ended"),
        }
    }
}

/// Why HTTP failed, in hyper's words: the socket, the peer or the service. What caused it is its
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct HttpError(#[from] hyper::Error);

impl HttpError {
    /// The peer has ended in the middle of a message.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.0.is_incomplete_message()
    }

    /// What the peer sent is not HTTP.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.0.is_parse()
    }

    /// It took longer than it may.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.is_timeout()
    }

    /// The service, or the body of its response, failed.
    #[must_use]
    pub fn is_of_service(&self) -> bool {
        self.0.is_user()
    }
}

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The socket, the peer or the service failed.
    #[error(transparent)]
    Http(HttpError),
    /// The connection came with a response in the middle, and the service did not go on with it.
    #[error(transparent)]
    NotResumed(NotResumed),
}

/// A connection that can be drained: HTTP/1, and a WebSocket if it became one, or HTTP/2. It runs over a `C`.
#[expect(
    private_bounds,
    reason = "what hyper asks of the service around the user's"
)]
pub struct Connection<S, C = TcpStream>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    pub(super) stage: Stage<S, C>,
    pub(super) about: About,
    /// For a WebSocket whose handler has to begin again.
    pub(super) service: Arc<S>,
    /// The request that it is in the middle of, if it came so.
    pub(super) came_with: Option<String>,
    pub(super) ends: Ends,
}

/// When a connection has to end.
pub(super) struct Ends(Option<Seldom<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl Ends {
    pub(super) fn never() -> Self {
        Self(None)
    }

    /// Ready once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ends) = &mut self.0 else {
            return Poll::Pending;
        };
        ready!(Pin::new(ends).poll(cx));
        self.0 = None;
        Poll::Ready(())
    }
}

/// What is spoken on it.
pub(super) enum Stage<S, C>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    /// Whether it is HTTP/2 is not known.
    #[cfg(feature = "http2")]
    Opening(Box<Opening<S, C>>),
    Http(Box<Http<S, C>>),
    #[cfg(feature = "http2")]
    Http2(Box<Http2<C>>),
    /// A handler of the service has it, or nobody.
    Upgraded(Upgrade<C>),
    /// The service is asked for the handler of a WebSocket that goes on.
    Replaying(Box<Replaying<S, C>>),
    WebSocket(Served<C>),
    Ending(Ending<C>),
}

/// A connection that stands at a safe point.
///
/// It leaves as [`Drained::into_parts`], or goes on here by [`Movable::resume`](super::Movable::resume).
#[derive(Debug)]
pub struct Drained<C = TcpStream> {
    /// What the session runs over.
    pub stream: C,
    /// What moves with it.
    pub session: Session,
}

impl<C: Carrier> Drained<C> {
    /// Takes it apart: a socket, and the layers that run on it with the session on top.
    /// [`Movable::resume_parts`](super::Movable::resume_parts) and, after a move,
    /// [`Movable::resume_arrived`](super::Movable::resume_arrived) put it together again.
    ///
    /// # Errors
    ///
    /// [`SessionError::Encode`], [`SessionError::Socket`], [`SessionError::Unmovable`]; the connection is closed. Ask
    /// [`Carrier::check`] before, and [`Movable::resume`](super::Movable::resume) a connection that cannot move.
    pub fn into_parts(self) -> Result<Parts, SessionError> {
        self.stream.check().map_err(SessionError::Unmovable)?;
        let layer = self.session.to_layer()?;
        let mut parts = self.stream.into_parts()?;
        parts.layers.push(layer);
        Ok(parts)
    }
}

/// A connection that is not HTTP any longer: a response said 101 (Switching Protocols), or 200 to CONNECT, and no
/// handler has taken it by `hyper::upgrade`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Upgraded<C = TcpStream> {
    /// What it runs over.
    pub stream: C,
    /// Bytes that were read from it and belong to the new protocol.
    pub unread: Bytes,
    /// The extensions of that response: what the service wants to be known behind it.
    pub extensions: hyper::http::Extensions,
}

/// How a run of a connection `N` over a `C` ended.
pub enum Ended<N, C = TcpStream> {
    /// It is over.
    Closed,
    /// It was drained.
    Drained(Drained<C>),
    /// It reached no safe point in time: run it on.
    Busy(N, Obstacle),
    /// It changed its protocol.
    Upgraded(Upgraded<C>),
}

/// What a drain waits for; it stays ready.
pub(super) struct Asked<'a, F> {
    future: Seldom<Pin<&'a mut F>>,
    is_ready: bool,
}

impl<'a, F: Future<Output = ()>> Asked<'a, F> {
    pub(super) fn new(future: Pin<&'a mut F>) -> Self {
        Self {
            future: Seldom::new(future),
            is_ready: false,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_ready {
            self.is_ready = Pin::new(&mut self.future).poll(cx).is_ready();
        }
        if self.is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<S, B, C> Connection<S, C>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    C: Carrier,
{
    /// When `ends` is ready, the connection ends as by graceful shutdown of hyper: at once if it is idle, or behind the response
    /// that it is in. A WebSocket, and what a handler has upgraded, goes on.
    #[must_use]
    pub fn ending_when(mut self, ends: impl Future<Output = ()> + Send + 'static) -> Self {
        self.ends = Ends(Some(Seldom::new(Box::pin(ends))));
        self
    }

    /// The method and target of the request that it is in the middle of, if it came so.
    pub(super) fn came_with(&self) -> Option<String> {
        self.came_with.clone()
    }

    /// Says there what it is doing.
    pub(super) fn seen_by(mut self, seen: &Seen) -> Self {
        self.about.seen = seen.clone();
        self
    }

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
    /// [`ConnectionError`]; the connection is then closed, when the peer has read what was written before.
    pub async fn run(
        self,
        asked: impl Future<Output = ()>,
    ) -> Result<Ended<Self, C>, ConnectionError> {
        let Self {
            mut stage,
            about,
            service,
            mut ends,
            came_with: _,
        } = self;
        let asked = pin!(asked);
        let mut asked = Asked::new(asked);
        loop {
            match &stage {
                #[cfg(feature = "http2")]
                Stage::Opening(_) => about.seen.is(Activity::Idle, None),
                #[cfg(feature = "http2")]
                Stage::Http2(http) => about.seen.is_http2(http.streams()),
                Stage::Http(http) => about.seen.is_http(http.shared()),
                Stage::Upgraded(upgrade) => about.seen.is(Activity::Upgraded, Some(&upgrade.head)),
                Stage::Replaying(replaying) => {
                    let handed = replaying.session.handed.as_ref();
                    let head = handed.map(|handed| &handed.request[..]);
                    about.seen.is(Activity::Service, head);
                }
                Stage::WebSocket(served) => about.seen.is(Activity::Upgraded, Some(served.head())),
                Stage::Ending(_) => about.seen.is(Activity::Ending, None),
            }
            let next = match stage {
                #[cfg(feature = "http2")]
                Stage::Opening(opening) => {
                    opening.run(&mut asked, &mut ends, &about, &service).await
                }
                #[cfg(feature = "http2")]
                Stage::Http2(http) => stages::http2(http, &mut asked, &mut ends, &about).await,
                Stage::Http(http) => stages::http(*http, &mut asked, &mut ends, &about).await,
                Stage::Upgraded(upgrade) => {
                    stages::upgraded(upgrade, &mut asked, &about, &*service).await
                }
                Stage::Replaying(replaying) => {
                    stages::replaying(replaying, &mut asked, &about).await?
                }
                Stage::WebSocket(served) => stages::websocket(served, &mut asked, &about).await,
                Stage::Ending(ending) => stages::ending(ending, &mut asked, about.times).await?,
            };
            stage = match next {
                Next::Stage(stage) => stage,
                Next::Busy(stage, obstacle) => {
                    let connection = Self {
                        stage,
                        about,
                        service,
                        ends,
                        came_with: None,
                    };
                    return Ok(Ended::Busy(connection, obstacle));
                }
                Next::Closed => return Ok(Ended::Closed),
                Next::Drained(drained) => return Ok(Ended::Drained(drained)),
                Next::Upgraded(upgraded) => return Ok(Ended::Upgraded(upgraded)),
            };
        }
    }
}
