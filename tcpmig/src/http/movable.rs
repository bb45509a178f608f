//! What makes connections movable.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::Service;
use tcpmig_format::Layer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::connection::{About, Connection, Flow, Stage, Times};
use super::gate::Gate;
use super::head;
use super::http1::Http;
use super::resumable::Resumed;
use super::service::{BoxError, Common, RequestBody, Watched};
use super::session::{AnyState, ConnectionState, MakeState, Session, SessionError};
use super::session::{no_state, typed_state};
use super::shared::{Middle, Shared};
use super::websocket::{self, Handler, WebSocket};
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
    websockets: Option<Handler>,
    resumes_if: Option<Arc<ResumesIf>>,
}

type ResumesIf = dyn Fn(&Request<()>, &Resumed) -> Result<(), String> + Send + Sync;

impl<S> Clone for Movable<S> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            builder: self.builder.clone(),
            make_state: self.make_state,
            times: self.times,
            websockets: self.websockets.clone(),
            resumes_if: self.resumes_if.clone(),
        }
    }
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
            websockets: None,
            resumes_if: None,
        }
    }

    /// With these settings of hyper. `pipeline_flush` is switched off, because a response that hyper keeps back for
    /// the next one cannot be carried.
    #[must_use]
    pub fn with_http1(mut self, mut builder: http1::Builder) -> Self {
        builder.pipeline_flush(false);
        self.builder = builder;
        self
    }

    /// Gives every connection a state of this type, which moves with it.
    #[must_use]
    pub fn with_state<T: ConnectionState>(mut self) -> Self {
        self.make_state = typed_state::<T>;
        self
    }

    /// Gives connections that become WebSockets to this handler: see [`websocket`](super::websocket). Without one
    /// they end as [`Ended::Upgraded`](super::Ended::Upgraded).
    #[must_use]
    pub fn with_websockets<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(WebSocket) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.websockets = Some(Handler::new(handler));
        self
    }

    /// Takes a response in the middle only if this says that the service can go on with it: it gets the request
    /// and the cursor, as the service would. [`Movable::check`] asks it before the connection leaves its source, which
    /// keeps a response whose cursor or target is not known here.
    #[must_use]
    pub fn resumes_if<E: std::fmt::Display>(
        mut self,
        resumes: impl Fn(&Request<()>, &Resumed) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        let resumes = move |request: &_, resumed: &_| {
            resumes(request, resumed).map_err(|error| error.to_string())
        };
        self.resumes_if = Some(Arc::new(resumes));
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

    /// Whether this server can go on with the session of an image, which consumes all of its layers: give it to
    /// [`accept_if`](crate::driver::Acceptor::accept_if), and a connection that could not go on here is refused before it leaves
    /// its source.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn check(&self, layers: &[Layer]) -> Result<(), SessionError> {
        let session = Session::from_layers(layers)?;
        (self.make_state)(session.state.as_ref())?;
        if let Some(head) = &session.websocket {
            head::parse(head)?;
            if self.websockets.is_none() {
                return Err(SessionError::NoWebSockets);
            }
        }
        if let (Some(middle), Some(resumes_if)) = (&session.response, &self.resumes_if) {
            let request = head::parse(&middle.request)?;
            let resumed = Resumed(middle.cursor[..].into());
            resumes_if(&request, &resumed).map_err(SessionError::NotResumed)?;
        }
        Ok(())
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
        let about = self.about((self.make_state)(None)?, Flow::of(&stream));
        let stage = Stage::Http(Box::new(self.begin_http(stream, &about)));
        Ok(Connection { stage, about })
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
        let state = (self.make_state)(session.state.as_ref())?;
        let about = self.about(state, Flow::of(&stream));
        if let Some(head) = session.websocket {
            let handler = self.websockets.clone().ok_or(SessionError::NoWebSockets)?;
            let at = websocket::At {
                stream,
                unread: &session.unread,
                unwritten: &session.unwritten,
                extended: false,
                resumed: true,
            };
            let served = websocket::Served::begin(handler, at, head, about.state.clone())?;
            let stage = Stage::WebSocket(served);
            return Ok(Connection { stage, about });
        }
        let stage = Stage::Http(Box::new(self.resume_http(stream, session, &about)));
        Ok(Connection { stage, about })
    }

    /// A connection that moved to this host.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here: it is closed. [`Movable::check`] prevents that.
    pub fn resume_arrived(&self, arrived: Arrived) -> Result<Connection<S>, SessionError> {
        let mut session = Session::from_layers(&arrived.layers)?;
        // What TCP could not take comes before what hyper had not written.
        session
            .unwritten
            .splice(0..0, arrived.unwritten.iter().copied());
        let stream = std::net::TcpStream::from(arrived.socket);
        stream.set_nonblocking(true)?;
        self.resume(TcpStream::from_std(stream)?, session)
    }

    pub(super) fn about(&self, state: Option<Arc<dyn AnyState>>, flow: Flow) -> About {
        About {
            state,
            times: self.times,
            websockets: self.websockets.clone(),
            flow,
        }
    }

    /// hyper's part of a connection that was accepted, whatever it runs over.
    pub(super) fn begin_http<T>(&self, stream: T, about: &About) -> Http<S, T>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Shared::new();
        let gate = Gate::new(stream, shared.clone());
        self.http(gate, shared, about, None)
    }

    /// hyper's part of a connection that was drained.
    pub(super) fn resume_http<T>(&self, stream: T, session: Session, about: &About) -> Http<S, T>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Shared::new();
        let request = session.response.as_ref().map(|middle| &middle.request[..]);
        let gate = Gate::resume(
            stream,
            shared.clone(),
            request,
            &session.unread,
            &session.unwritten,
        );
        self.http(gate, shared, about, session.response)
    }

    fn http<T>(
        &self,
        gate: Gate<T>,
        shared: Arc<Shared>,
        about: &About,
        resumed: Option<Middle>,
    ) -> Http<S, T>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let common = Common {
            service: self.service.clone(),
            shared: shared.clone(),
            state: about.state.clone(),
        };
        let service = Watched::new(common, resumed);
        Http::new(&self.builder, gate, service, shared)
    }
}
