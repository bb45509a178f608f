//! How connections begin, and go on.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;
use hyper::header::HeaderName;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Version};
use tcpmig_format::{Layer, LayerReader, SecretBytes};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::asking::{again, ask};
use super::connection::{About, Connection, Ends, Facts, Flow, Known, Stage};
use super::doing::Seen;
use super::gate::Gate;
use super::head;
use super::http1::Http;
use super::movable::Movable;
use super::notice;
use super::replay::{Begun, Replay, Replaying};
use super::request_body::RequestBody;
use super::service::{BoxError, Common, Resuming, Watched};
use super::session::{AnyState, Session, SessionError};
use super::shared::{Middle, Shared};
use super::websocket;
use crate::session::{Arrival, Carrier, Carriers, Parts};

/// What a server made ready for a connection before it came: its service's answer, if a response is in the middle.
pub struct Ready<R>(Made<R>);

enum Made<R> {
    Nothing,
    /// The rest of a response in the middle, and the state that its service has seen.
    Rest(Option<Arc<dyn AnyState>>, R),
    /// Those of an HTTP/2 connection, by their streams.
    #[cfg(feature = "http2")]
    Rests(Option<Arc<dyn AnyState>>, Vec<(u32, R)>),
    /// A [`Begun`] of the carrier's type, likewise.
    Handler(Option<Arc<dyn AnyState>>, Box<dyn Any + Send>),
}

impl<R> Ready<R> {
    fn is_in_response(&self) -> bool {
        match self.0 {
            Made::Rest(..) => true,
            #[cfg(feature = "http2")]
            Made::Rests(..) => true,
            _ => false,
        }
    }
}

impl<R> fmt::Debug for Ready<R> {
    // The answer is the users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("in_response", &self.is_in_response())
            .field("is_websocket", &matches!(self.0, Made::Handler(..)))
            .finish()
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
    /// The result is for [`Arrival::ready`], so that the service is not asked again when the connection is here. Dropping it
    /// drops the service's answer.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub async fn get_ready(&self, layers: &[Layer]) -> Result<Ready<S::Response>, SessionError> {
        self.check(layers)?;
        let mut layers = LayerReader::new(layers);
        let facts = self.carriers.check(&mut layers);
        let facts = facts.map_err(SessionError::Carrier)?;
        let session = Session::read(layers)?;
        let state = (self.make_state)(session.state.as_ref())?;
        let known = Known {
            state,
            facts: facts.map(self::facts),
        };
        let within = self.times.answer_within;
        let late = |_| SessionError::NoAnswer(within);
        if let Some(handed) = session.handed {
            let mut replay = Replay::<S, K::Carrier>::begin(&self.service, &known, handed)?;
            let asked = poll_fn(|cx| replay.poll(cx));
            let begun = timeout(within, asked).await.map_err(late)??;
            return Ok(Ready(Made::Handler(known.state, Box::new(begun))));
        }
        #[cfg(feature = "http2")]
        if let Some(http2) = &session.http2 {
            let all = async {
                let mut rests = Vec::with_capacity(http2.responses.len());
                for (id, middle) in &http2.responses {
                    if middle.upload.is_some() {
                        // It cannot answer before it has the body.
                        continue;
                    }
                    let request = resumed_request(middle, Some(Version::HTTP_2), &known)?;
                    rests.push((*id, ask(&*self.service, request).await?));
                }
                Ok::<_, SessionError>(rests)
            };
            let rests = timeout(within, all).await.map_err(late)??;
            return Ok(Ready(Made::Rests(known.state, rests)));
        }
        let Some(middle) = session.response else {
            return Ok(Ready(Made::Nothing));
        };
        let asked = ask(&*self.service, resumed_request(&middle, None, &known)?);
        let rest = timeout(within, asked).await.map_err(late)??;
        Ok(Ready(Made::Rest(known.state, rest)))
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
        let session = Session::at_rest(Vec::new());
        let stage = self.first_stage(stream, session, &about, None);
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
            #[cfg(feature = "http2")]
            Made::Rests(state, rests) => {
                let about = self.about_carrier(state, &stream);
                let stage = self.resume_http2(stream, session, &about, rests)?;
                return Ok(self.at(stage, about));
            }
            Made::Nothing => ((self.make_state)(session.state.as_ref())?, None, None),
        };
        let about = self.about_carrier(state, &stream);
        #[cfg(feature = "http2")]
        if session.http2.is_some() {
            let stage = self.resume_http2(stream, session, &about, Vec::new())?;
            return Ok(self.at(stage, about));
        }
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
        let stage = self.first_stage(stream, session, &about, rest);
        Ok(self.at(stage, about))
    }

    /// A connection that speaks HTTP/1, or may yet speak HTTP/2 if that is spoken here.
    fn first_stage(
        &self,
        stream: K::Carrier,
        session: Session,
        about: &About,
        rest: Option<S::Response>,
    ) -> Stage<S, K::Carrier> {
        #[cfg(feature = "http2")]
        if let Some(begin) = &self.http2
            && super::opening::may_be_http2(&session)
        {
            let builder = (self.builder.clone(), self.request_id.clone());
            let opening = super::opening::Opening::new(stream, session, begin.clone(), builder);
            return Stage::Opening(Box::new(opening));
        }
        Stage::Http(Box::new(self.resume_http(stream, session, about, rest)))
    }

    #[cfg(feature = "http2")]
    fn resume_http2(
        &self,
        stream: K::Carrier,
        session: Session,
        about: &About,
        rests: Vec<(u32, S::Response)>,
    ) -> Result<Stage<S, K::Carrier>, SessionError> {
        use super::http2::{Http2, Recipe, Rests};
        let multiplex = session.http2.ok_or(SessionError::Missing)?;
        let Some(begin) = &self.http2 else {
            return Err(super::http2::not_spoken());
        };
        let recipe = Recipe {
            begin,
            service: &self.service,
            request_id: &self.request_id,
            about,
        };
        let rests: Rests = rests
            .into_iter()
            .map(|(id, rest)| (id, Box::new(rest) as Box<dyn Any>))
            .collect();
        let http = Http2::resume(&recipe, stream, *multiplex, &session.unwritten, rests)?;
        Ok(Stage::Http2(Box::new(http)))
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
        self.rebuild(parts, SecretBytes::new(), Ready(Made::Nothing))
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
        unwritten: SecretBytes,
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
        let facts = stream.facts().map(facts);
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
    #[cfg(test)]
    pub(super) fn begin_http<T>(&self, stream: T, about: &About) -> Http<S, T>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.resume_http(stream, Session::at_rest(Vec::new()), about, None)
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
        let maker = Maker {
            builder: &self.builder,
            service: &self.service,
            request_id: &self.request_id,
        };
        maker.resume(stream, session, about, rest)
    }
}

/// Makes hyper's part of HTTP/1 connections.
pub(super) struct Maker<'a, S> {
    pub(super) builder: &'a http1::Builder,
    pub(super) service: &'a Arc<S>,
    pub(super) request_id: &'a HeaderName,
}

impl<S, B> Maker<'_, S>
where
    S: Service<Request<RequestBody>, Response = hyper::Response<B>>,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    pub(super) fn resume<T>(
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
        Http::new(self.builder, gate, service, shared)
    }
}

/// The request of a response in the middle, for the service; of this version, or the one that it says itself.
fn resumed_request(
    middle: &Middle,
    version: Option<Version>,
    known: &Known,
) -> Result<Request<RequestBody>, SessionError> {
    let (mut parts, ()) = head::parse(&middle.request)?.into_parts();
    parts.version = version.unwrap_or(parts.version);
    known.extend(&mut parts.extensions);
    let body = Bytes::copy_from_slice(&middle.body);
    Ok(again(parts, middle, body))
}

/// Tells requests what is known of their connection's carrier.
fn facts<T: Clone + Send + Sync + 'static>(facts: T) -> Facts {
    Arc::new(move |extensions| {
        extensions.insert(facts.clone());
    })
}
