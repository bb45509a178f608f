//! What makes connections movable.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::Request;
use hyper::header::HeaderName;
use hyper::server::conn::http1;
use hyper::service::Service;
use tcpmig_format::{Layer, LayerReader, Octets};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::asking::{again, ask};
use super::connection::{About, Connection, Ends, Facts, Flow, Known, Stage, Times};
use super::doing::Seen;
use super::gate::Gate;
use super::head;
use super::http1::Http;
use super::notice::{self, Notice, Noticed, Tell};
use super::replay::{Begun, Replay, Replaying};
use super::request_body::RequestBody;
use super::resumable::Resumed;
use super::service::{BoxError, Common, Resuming, Watched};
use super::session::{AnyState, ConnectionState, MakeState, Session, SessionError};
use super::session::{no_state, typed_state};
use super::shared::Shared;
use super::websocket::{self, Handler, WebSocket};
use crate::session::{Arrival, Carrier, Carriers, Parts, Tcp};

/// Makes a service's connections movable.
///
/// The service is one of hyper's, for requests whose body is a [`RequestBody`]; one of tower, like axum's
/// `Router`, becomes one by `hyper_util::service::TowerToHyperService`.
///
/// The connections are plain TCP, or what [`Movable::over`] is given.
pub struct Movable<S, K = Tcp> {
    service: Arc<S>,
    carriers: Arc<K>,
    builder: http1::Builder,
    make_state: MakeState,
    times: Times,
    websockets: Option<Handler>,
    resumes_if: Option<Arc<ResumesIf>>,
    request_id: HeaderName,
    on_move: Option<Tell>,
}

/// What a server made ready for a connection before it came: its service's answer, if a response is in the middle.
pub struct Ready<R>(Made<R>);

enum Made<R> {
    Nothing,
    /// The rest of a response in the middle, and the state that its service has seen.
    Rest(Option<Arc<dyn AnyState>>, R),
    /// A [`Begun`] of the carrier's type, likewise.
    Handler(Option<Arc<dyn AnyState>>, Box<dyn Any + Send>),
}

impl<R> fmt::Debug for Ready<R> {
    // The answer is the users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("in_response", &matches!(self.0, Made::Rest(..)))
            .field("is_websocket", &matches!(self.0, Made::Handler(..)))
            .finish()
    }
}

type ResumesIf = dyn Fn(&Request<()>, &Resumed) -> Result<(), String> + Send + Sync;

impl<S, K> Clone for Movable<S, K> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            carriers: self.carriers.clone(),
            builder: self.builder.clone(),
            make_state: self.make_state,
            times: self.times,
            websockets: self.websockets.clone(),
            resumes_if: self.resumes_if.clone(),
            request_id: self.request_id.clone(),
            on_move: self.on_move.clone(),
        }
    }
}

impl<S> Movable<S> {
    /// With hyper's default settings and no state of the application's.
    pub fn new(service: S) -> Self {
        Self {
            service: Arc::new(service),
            carriers: Arc::new(Tcp),
            builder: http1::Builder::new(),
            make_state: no_state,
            times: Times {
                settle: Duration::from_millis(100),
                drain_within: Duration::from_secs(5),
                absorb: 1 << 20,
                bodies: 1 << 20,
                answer_within: Duration::from_secs(2),
            },
            websockets: None,
            resumes_if: None,
            request_id: HeaderName::from_static("x-request-id"),
            on_move: None,
        }
    }
}

impl<S, K> Movable<S, K> {
    /// The same for another service.
    #[cfg(feature = "serve")]
    pub(super) fn serving<T>(&self, service: T) -> Movable<T, K> {
        Movable {
            service: Arc::new(service),
            carriers: self.carriers.clone(),
            builder: self.builder.clone(),
            make_state: self.make_state,
            times: self.times,
            websockets: self.websockets.clone(),
            resumes_if: self.resumes_if.clone(),
            request_id: self.request_id.clone(),
            on_move: self.on_move.clone(),
        }
    }
}

impl<S, K: Carriers> Movable<S, K> {
    /// The same over connections that get their carriers from these.
    #[must_use]
    pub fn over<L: Carriers>(self, carriers: L) -> Movable<S, L> {
        Movable {
            service: self.service,
            carriers: Arc::new(carriers),
            builder: self.builder,
            make_state: self.make_state,
            times: self.times,
            websockets: self.websockets,
            resumes_if: self.resumes_if,
            request_id: self.request_id,
            on_move: self.on_move,
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

    /// The header in which a response says the id of its request; default `x-request-id`. The request has it when it
    /// is played to the service where that response, or the WebSocket, goes on.
    #[must_use]
    pub fn request_id(mut self, name: HeaderName) -> Self {
        self.request_id = name;
        self
    }

    /// Tells this whenever a connection of a [`Server`](super::Server) has moved away, was to and goes on here, or came from elsewhere.
    /// It is called by the connection's task, which waits for it.
    #[must_use]
    pub fn on_move(mut self, tell: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.on_move = Some(Arc::new(tell));
        self
    }

    pub(super) fn tell(&self, what: Noticed, peer: SocketAddr, request: Option<String>) {
        if let Some(tell) = &self.on_move {
            tell(&Notice {
                what,
                peer,
                request,
            });
        }
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

    /// How many bytes of a response that cannot be resumed may be carried, so that its end need not wait
    /// for a slow peer; default 1 MiB. What hyper itself holds is carried in any case.
    #[must_use]
    pub fn absorb(mut self, bytes: usize) -> Self {
        self.times.absorb = bytes.max(1);
        self
    }

    /// How many bytes of a request's body may be carried with a response in the middle, so that the service can be asked again;
    /// default 1 MiB. The response to a larger one does not move.
    #[must_use]
    pub fn carry_bodies(mut self, bytes: usize) -> Self {
        self.times.bodies = bytes;
        self
    }

    /// How long the service may take to say how it goes on with a response in the middle, before the connection
    /// comes ([`Movable::get_ready`]); default 2 s.
    #[must_use]
    pub fn answer_within(mut self, within: Duration) -> Self {
        self.times.answer_within = within;
        self
    }

    /// Whether this server can go on with a connection of these layers, and consumes all of them: give it to
    /// [`accept_if`](crate::driver::Acceptor::accept_if), and a connection that could not go on here is refused before it leaves
    /// its source.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn check(&self, layers: &[Layer]) -> Result<(), SessionError> {
        let mut layers = LayerReader::new(layers);
        self.carriers
            .check(&mut layers)
            .map_err(SessionError::Carrier)?;
        let session = Session::read(layers)?;
        (self.make_state)(session.state.as_ref())?;
        if let Some(head) = &session.websocket {
            head::parse(head)?;
            if self.websockets.is_none() {
                return Err(SessionError::NoWebSockets);
            }
        }
        let (request, resumed) = match (&session.response, &session.handed) {
            (Some(middle), _) => (head::parse(&middle.request)?, Resumed::of(middle)),
            (None, Some(handed)) => (head::parse(&handed.request)?, Resumed::of_socket(handed)),
            (None, None) => return Ok(()),
        };
        if let Some(resumes_if) = &self.resumes_if {
            resumes_if(&request, &resumed).map_err(SessionError::NotResumed)?;
        }
        Ok(())
    }
}

impl<S, B, K> Movable<S, K>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
    K: Carriers,
{
    /// Like [`Movable::check`], but a service that has to go on with a response in the middle is asked for the rest of it now: give
    /// this to [`accept_async`](crate::driver::Acceptor::accept_async), and a connection with which it does not go on is refused
    /// before it leaves its source.
    ///
    /// There is no carrier yet, so the service is not told the [facts](crate::session::Carrier::facts) of one.
    ///
    /// The result is for [`Arrival::ready`], so that the service is not asked again when the connection is here. Dropping it
    /// drops the service's answer.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub async fn get_ready(&self, layers: &[Layer]) -> Result<Ready<S::Response>, SessionError> {
        self.check(layers)?;
        let mut layers = LayerReader::new(layers);
        self.carriers
            .check(&mut layers)
            .map_err(SessionError::Carrier)?;
        let session = Session::read(layers)?;
        let state = (self.make_state)(session.state.as_ref())?;
        let within = self.times.answer_within;
        let late = |_| SessionError::NoAnswer(within);
        if let Some(handed) = session.handed {
            let known = Known { state, facts: None };
            let mut replay = Replay::<S, K::Carrier>::begin(&self.service, &known, handed)?;
            let asked = poll_fn(|cx| replay.poll(cx));
            let begun = timeout(within, asked).await.map_err(late)??;
            return Ok(Ready(Made::Handler(known.state, Box::new(begun))));
        }
        let Some(middle) = session.response else {
            return Ok(Ready(Made::Nothing));
        };
        let (mut parts, ()) = head::parse(&middle.request)?.into_parts();
        if let Some(state) = &state {
            state.extend(&mut parts.extensions);
        }
        let body = Bytes::copy_from_slice(&middle.body);
        let asked = ask(&*self.service, again(parts, &middle, body));
        let rest = timeout(within, asked).await.map_err(late)??;
        Ok(Ready(Made::Rest(state, rest)))
    }

    /// The carrier of a connection that was accepted, for [`Movable::connection`]; plain TCP is its own.
    ///
    /// # Errors
    ///
    /// [`SessionError::Handshake`]; the connection is closed.
    pub async fn accept(&self, stream: TcpStream) -> Result<K::Carrier, SessionError> {
        let accepted = self.carriers.accept(stream).await;
        accepted.map_err(SessionError::Handshake)
    }

    /// A connection that was accepted.
    ///
    /// # Errors
    ///
    /// None that can be expected: a new connection has a new state.
    pub fn connection(
        &self,
        stream: K::Carrier,
    ) -> Result<Connection<S, K::Carrier>, SessionError> {
        let about = self.about_carrier((self.make_state)(None)?, &stream);
        let stage = Stage::Http(Box::new(self.begin_http(stream, &about)));
        Ok(self.at(stage, about))
    }

    /// A connection that was drained here and not taken apart.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here; the stream is closed.
    pub fn resume(
        &self,
        stream: K::Carrier,
        session: Session,
    ) -> Result<Connection<S, K::Carrier>, SessionError> {
        self.resume_with(stream, session, Ready(Made::Nothing))
    }

    fn resume_with(
        &self,
        stream: K::Carrier,
        session: Session,
        ready: Ready<S::Response>,
    ) -> Result<Connection<S, K::Carrier>, SessionError> {
        let came_with = notice::request(&session);
        let mut connection = self.resume_to(stream, session, ready)?;
        connection.came_with = came_with;
        Ok(connection)
    }

    fn resume_to(
        &self,
        stream: K::Carrier,
        session: Session,
        ready: Ready<S::Response>,
    ) -> Result<Connection<S, K::Carrier>, SessionError> {
        let (state, rest, handler) = match ready.0 {
            Made::Rest(state, rest) => (state, Some(rest), None),
            Made::Handler(state, begun) => (state, None, begun.downcast().ok()),
            Made::Nothing => ((self.make_state)(session.state.as_ref())?, None, None),
        };
        let about = self.about_carrier(state, &stream);
        if session.handed.is_some() {
            let stage = self.resume_handed(stream, session, &about, handler)?;
            return Ok(self.at(stage, about));
        }
        if let Some(head) = session.websocket {
            let handler = self.websockets.clone().ok_or(SessionError::NoWebSockets)?;
            let at = websocket::At {
                stream,
                unread: &session.unread,
                unwritten: &session.unwritten,
                extended: false,
                resumed: true,
            };
            let served = websocket::Served::begin(handler, at, head, &about)?;
            return Ok(self.at(Stage::WebSocket(served), about));
        }
        let stage = Stage::Http(Box::new(self.resume_http(stream, session, &about, rest)));
        Ok(self.at(stage, about))
    }

    /// A WebSocket that goes to a handler of the service: to this one, if the service was asked before.
    fn resume_handed(
        &self,
        stream: K::Carrier,
        session: Session,
        about: &About,
        handler: Option<Box<Begun<K::Carrier>>>,
    ) -> Result<Stage<S, K::Carrier>, SessionError> {
        let Some(begun) = handler else {
            let replaying = Replaying::begin(&*self.service, &about.known, stream, session)?;
            return Ok(Stage::Replaying(Box::new(replaying)));
        };
        let upgrade = begun.go(stream, &session.unread, &session.unwritten);
        Ok(Stage::Upgraded(upgrade.ok_or(SessionError::Missing)?))
    }

    fn at(&self, stage: Stage<S, K::Carrier>, about: About) -> Connection<S, K::Carrier> {
        Connection {
            stage,
            about,
            service: self.service.clone(),
            came_with: None,
            ends: Ends::never(),
        }
    }

    /// A connection that was taken apart here and goes on here, because its move was given up.
    ///
    /// # Errors
    ///
    /// Those of [`Movable::resume`].
    pub fn resume_parts(&self, parts: Parts) -> Result<Connection<S, K::Carrier>, SessionError> {
        self.rebuild(parts, Octets::new(), Ready(Made::Nothing))
    }

    /// A connection that moved to this host or process.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if it cannot go on here: it is closed. [`Movable::check`] prevents that.
    pub fn resume_arrived(
        &self,
        arrived: impl Into<Arrival>,
    ) -> Result<Connection<S, K::Carrier>, SessionError> {
        let Arrival {
            socket,
            layers,
            unwritten,
            ready,
            ..
        } = arrived.into();
        // What another service made ready is not for this one.
        let ready = ready.and_then(|ready| ready.downcast().ok());
        let ready = ready.map_or(Ready(Made::Nothing), |ready| *ready);
        self.rebuild(Parts { socket, layers }, unwritten, ready)
    }

    fn rebuild(
        &self,
        parts: Parts,
        unwritten: Octets,
        ready: Ready<S::Response>,
    ) -> Result<Connection<S, K::Carrier>, SessionError> {
        let mut layers = LayerReader::new(&parts.layers);
        let stream = std::net::TcpStream::from(parts.socket);
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        let rebuilt = self.carriers.rebuild(stream, unwritten, &mut layers);
        let rebuilt = rebuilt.map_err(SessionError::Carrier)?;
        let mut session = Session::read(layers)?;
        // What TCP could not take comes before what hyper had not written.
        session
            .unwritten
            .splice(0..0, rebuilt.unwritten.iter().copied());
        self.resume_with(rebuilt.carrier, session, ready)
    }

    fn about_carrier(&self, state: Option<Arc<dyn AnyState>>, stream: &K::Carrier) -> About {
        let facts = stream.facts().map(|facts| -> Facts {
            Arc::new(move |extensions| {
                extensions.insert(facts.clone());
            })
        });
        self.about(Known { state, facts }, Flow::of(stream.tcp()))
    }

    pub(super) fn about(&self, known: Known, flow: Flow) -> About {
        About {
            known,
            times: self.times,
            websockets: self.websockets.clone(),
            flow,
            seen: Seen::new(),
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
    pub(super) fn resume_http<T>(
        &self,
        stream: T,
        session: Session,
        about: &About,
        rest: Option<S::Response>,
    ) -> Http<S, T>
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
        let resumed = session.response.map(|middle| Resuming {
            middle: *middle,
            rest,
        });
        self.http(gate, shared, about, resumed)
    }

    fn http<T>(
        &self,
        gate: Gate<T>,
        shared: Arc<Shared>,
        about: &About,
        resumed: Option<Resuming<S::Response>>,
    ) -> Http<S, T>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let common = Common {
            service: self.service.clone(),
            shared: shared.clone(),
            known: about.known.clone(),
            bodies: about.times.bodies,
            request_id: self.request_id.clone(),
        };
        let service = Watched::new(common, resumed);
        Http::new(&self.builder, gate, service, shared)
    }
}
