//! What makes connections movable.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::header::HeaderName;
use hyper::server::conn::http1;
use tcpmig_format::{Layer, LayerReader};

use super::connection::Times;
use super::head;
use super::notice::{Notice, Noticed, Tell};
#[cfg(feature = "http2")]
use super::request_body::RequestBody;
use super::resumable::Resumed;
#[cfg(feature = "http2")]
use super::service::BoxError;
use super::session::{ConnectionState, MakeState, Session, SessionError};
use super::session::{no_state, typed_state};
use super::websocket::{Handler, WebSocket};
use crate::session::{Carriers, Tcp};

/// Makes a service's connections movable.
///
/// The service is one of hyper's, for requests whose body is a [`RequestBody`](super::RequestBody); one of tower, like axum's
/// `Router`, becomes one by `hyper_util::service::TowerToHyperService`.
///
/// The connections are plain TCP, or what [`Movable::over`] is given.
pub struct Movable<S, K = Tcp> {
    pub(super) service: Arc<S>,
    pub(super) carriers: Arc<K>,
    pub(super) builder: http1::Builder,
    pub(super) make_state: MakeState,
    pub(super) times: Times,
    pub(super) websockets: Option<Handler>,
    #[cfg(feature = "http2")]
    pub(super) http2: Option<super::http2::Begin<S>>,
    resumes_if: Option<Arc<ResumesIf>>,
    pub(super) request_id: HeaderName,
    on_move: Option<Tell>,
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
            #[cfg(feature = "http2")]
            http2: self.http2.clone(),
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
            #[cfg(feature = "http2")]
            http2: None,
            resumes_if: None,
            request_id: HeaderName::from_static("x-request-id"),
            on_move: None,
        }
    }
}

impl<S, K> Movable<S, K> {
    /// The same for another service; whether that speaks HTTP/2 is to be said again.
    #[cfg(feature = "serve")]
    pub(super) fn serving<T>(&self, service: T) -> Movable<T, K> {
        Movable {
            service: Arc::new(service),
            carriers: self.carriers.clone(),
            builder: self.builder.clone(),
            make_state: self.make_state,
            times: self.times,
            websockets: self.websockets.clone(),
            #[cfg(feature = "http2")]
            http2: None,
            resumes_if: self.resumes_if.clone(),
            request_id: self.request_id.clone(),
            on_move: self.on_move.clone(),
        }
    }
}

#[cfg(feature = "http2")]
impl<S, B, K> Movable<S, K>
where
    S: hyper::service::Service<Request<RequestBody>, Response = hyper::Response<B>>
        + Send
        + Sync
        + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Takes HTTP/2 connections too: those whose client begins with its preface, by prior knowledge or, over TLS, by
    /// ALPN, if the carriers offer `h2`. hyper's default settings hold, and each stream is served in a task of its own.
    ///
    /// Without it a client that begins with HTTP/2 is refused, and so is a connection that comes from elsewhere and is one.
    #[must_use]
    pub fn with_http2(mut self) -> Self {
        self.http2 = Some(Arc::new(super::http2::begin));
        self
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
            #[cfg(feature = "http2")]
            http2: self.http2,
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
        #[cfg(feature = "http2")]
        if let Some(http2) = &session.http2 {
            http2.check(self.http2.is_some())?;
        }
        let resumes = |request: &[u8], resumed| {
            let request = head::parse(request)?;
            let Some(resumes_if) = &self.resumes_if else {
                return Ok(());
            };
            resumes_if(&request, &resumed).map_err(SessionError::NotResumed)
        };
        for middle in session.responses() {
            #[cfg(feature = "http2")]
            if let Some(uploaded) = &middle.upload {
                if let Some(resumed) = Resumed::of_upload(uploaded) {
                    resumes(&middle.request, resumed)?;
                }
                if !uploaded.has_response {
                    continue;
                }
            }
            resumes(&middle.request, Resumed::of(middle))?;
        }
        match &session.handed {
            Some(handed) => resumes(&handed.request, Resumed::of_socket(handed)),
            None => Ok(()),
        }
    }
}
