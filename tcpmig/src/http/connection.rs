//! Connections that can be drained.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tcpmig_format::AppImage;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::gate::Gate;
use super::service::{BoxError, Common, RequestBody, Watched};
use super::session::{AnyState, ConnectionState, MakeState, Session, SessionError};
use super::session::{no_state, typed_state};
use super::shared::{Middle, Obstacle, Safe, Shared};
use crate::driver::Arrived;

/// Makes a service's connections movable.
///
/// The service is one of hyper's, for requests whose body is a [`RequestBody`]; one of tower, like axum's
/// `Router`, becomes one by `hyper_util::service::TowerToHyperService`.
pub struct Movable<S> {
    service: Arc<S>,
    builder: http1::Builder,
    make_state: MakeState,
    times: Times,
}

impl<S> Clone for Movable<S> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            builder: self.builder.clone(),
            make_state: self.make_state,
            times: self.times,
        }
    }
}

#[derive(Clone, Copy)]
struct Times {
    settle: Duration,
    drain_within: Duration,
    absorb: usize,
}

impl<S> Movable<S> {
    /// With hyper's default settings and no state of the application's.
    pub fn new(service: S) -> Self {
        Self {
            service: Arc::new(service),
            builder: http1::Builder::new(),
            make_state: no_state,
            times: Times {
                settle: Duration::from_millis(100),
                drain_within: Duration::from_secs(5),
                absorb: 1 << 20,
            },
        }
    }

    /// With these settings of hyper.
    #[must_use]
    pub fn with_http1(mut self, builder: http1::Builder) -> Self {
        self.builder = builder;
        self
    }

    /// Gives every connection a state of this type, which moves with it.
    #[must_use]
    pub fn with_state<T: ConnectionState>(mut self) -> Self {
        self.make_state = typed_state::<T>;
        self
    }

    /// How long a slow peer may take to fetch what hyper has written before the rest is carried; default
    /// 100 ms.
    #[must_use]
    pub fn settle(mut self, settle: Duration) -> Self {
        self.times.settle = settle;
        self
    }

    /// How long a drain waits for a safe point; default 5 s.
    #[must_use]
    pub fn drain_within(mut self, within: Duration) -> Self {
        self.times.drain_within = within;
        self
    }

    /// How many octets of a response that cannot be resumed may be carried, so that its end need not wait
    /// for a slow peer; default 1 MiB. What hyper itself holds is carried in any case.
    #[must_use]
    pub fn absorb(mut self, octets: usize) -> Self {
        self.times.absorb = octets.max(1);
        self
    }

    /// Whether this server can go on with the session of an image: give it to
    /// [`serve_if`](crate::driver::serve_if), and a connection that could not go on here is refused before it leaves
    /// its source.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn check(&self, app: Option<&AppImage>) -> Result<(), SessionError> {
        let session = Session::from_image(app.ok_or(SessionError::Missing)?)?;
        (self.make_state)(session.state.as_ref()).map(|_| ())
    }
}

impl<S, B> Movable<S>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// A connection that was accepted.
    ///
    /// # Errors
    ///
    /// None that can be expected: a new connection has a new state.
    pub fn connection(&self, stream: TcpStream) -> Result<Connection<S>, SessionError> {
        let shared = Shared::new();
        let gate = Gate::new(stream, shared.clone());
        let state = (self.make_state)(None)?;
        Ok(self.make(gate, shared, state, None))
    }

    /// A connection that was drained, here or elsewhere.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here; the stream is closed.
    pub fn resume(
        &self,
        stream: TcpStream,
        session: Session,
    ) -> Result<Connection<S>, SessionError> {
        let shared = Shared::new();
        let state = (self.make_state)(session.state.as_ref())?;
        let request = session.response.as_ref().map(|middle| &middle.request[..]);
        let gate = Gate::resume(
            stream,
            shared.clone(),
            request,
            &session.unread,
            &session.unwritten,
        );
        Ok(self.make(gate, shared, state, session.response))
    }

    /// A connection that moved to this host.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here: it is closed. [`Movable::check`] prevents that.
    pub fn resume_arrived(&self, arrived: Arrived) -> Result<Connection<S>, SessionError> {
        let app = arrived.app.as_ref().ok_or(SessionError::Missing)?;
        let mut session = Session::from_image(app)?;
        // What TCP could not take comes before what hyper had not written.
        session
            .unwritten
            .splice(0..0, arrived.unwritten.iter().copied());
        let stream = std::net::TcpStream::from(arrived.socket);
        stream.set_nonblocking(true)?;
        self.resume(TcpStream::from_std(stream)?, session)
    }

    fn make(
        &self,
        gate: Gate,
        shared: Arc<Shared>,
        state: Option<Arc<dyn AnyState>>,
        resumed: Option<Middle>,
    ) -> Connection<S> {
        let common = Common {
            service: self.service.clone(),
            shared: shared.clone(),
            state: state.clone(),
        };
        let service = Watched::new(common, resumed);
        Connection {
            http: self.builder.serve_connection(TokioIo::new(gate), service),
            shared,
            state,
            times: self.times,
        }
    }
}

/// An HTTP/1 connection that can be drained.
#[expect(
    private_bounds,
    reason = "what hyper asks of the service around the user's"
)]
pub struct Connection<S>
where
    S: Service<Request<RequestBody>>,
    Watched<S>: hyper::service::HttpService<hyper::body::Incoming>,
{
    http: http1::Connection<TokioIo<Gate>, Watched<S>>,
    shared: Arc<Shared>,
    state: Option<Arc<dyn AnyState>>,
    times: Times,
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

impl<S, B> Connection<S>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Runs the connection until it is over or `asked` is ready, and then drains it.
    ///
    /// From then on no request is begun and resumable responses stand still at the end of a frame. What hyper
    /// has written goes to the socket for as long as [`Movable::settle`]; what a slow peer has not
    /// made room for by then is carried.
    ///
    /// Cancelling it closes the connection.
    ///
    /// # Errors
    ///
    /// hyper's; the connection is then closed.
    pub async fn run(mut self, asked: impl Future<Output = ()>) -> hyper::Result<Ended<Self>> {
        let mut asked = pin!(asked);
        let over = poll_fn(|cx| {
            if let Poll::Ready(ended) = self.http.poll_without_shutdown(cx) {
                return Poll::Ready(ended.map(|()| true));
            }
            asked.as_mut().poll(cx).map(|()| Ok(false))
        })
        .await?;
        if over {
            return Ok(self.end().await);
        }
        self.shared.set_draining(true);
        let drained = self.drain().await;
        self.shared.set_draining(false);
        self.shared.set_absorb(0);
        match drained? {
            Ok(safe) => Ok(match self.take(safe) {
                Ok(drained) => Ended::Drained(drained),
                Err(error) => {
                    tracing::warn!(%error, "a drained connection is closed");
                    Ended::Closed
                }
            }),
            Err(None) => Ok(self.end().await),
            Err(Some(obstacle)) => Ok(Ended::Busy(self, obstacle)),
        }
    }

    /// Until a safe point; `None` if the connection ended before.
    async fn drain(&mut self) -> hyper::Result<Result<Safe, Option<Obstacle>>> {
        let (shared, http) = (&self.shared, &mut self.http);
        let mut settle = pin!(sleep(self.times.settle));
        let mut late = pin!(sleep(self.times.drain_within));
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
                        shared.set_absorb(self.times.absorb);
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
                                shared.set_absorb(self.times.absorb);
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
    fn take(self, safe: Safe) -> Result<Drained, SessionError> {
        let state = self.state.map(|state| state.store()).transpose()?;
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
            state,
        };
        Ok(Drained { stream, session })
    }

    /// Ends the stream as hyper would have, or gives it to the next protocol.
    async fn end(self) -> Ended<Self> {
        let upgraded = self.shared.current().upgraded.take();
        let parts = self.http.into_parts();
        let mut gate = parts.io.into_inner();
        let flushed = gate.flush().await;
        let (mut stream, unread, _) = gate.into_parts();
        if let (Some(extensions), Ok(())) = (upgraded, flushed) {
            let unread = [&parts.read_buf[..], &unread].concat().into();
            return Ended::Upgraded(Upgraded {
                stream,
                unread,
                extensions,
            });
        }
        // The peer may have closed it first.
        let _ = stream.shutdown().await;
        Ended::Closed
    }
}
