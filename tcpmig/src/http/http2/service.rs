//! The service that hyper's HTTP/2 sees.

use std::any::Any;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body::Body;
use hyper::header::HeaderName;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::super::connection::Known;
use super::super::request_body::RequestBody;
use super::super::response::Tracked;
use super::super::service::{Answer, BoxError, Common, Resuming};
use super::super::shared::Middle;
use super::streams::{Streams, Tasks};
use super::wire::{AnyWire, Io};

/// Begins hyper's part of a connection.
pub(in super::super) type Begin<S> = Arc<dyn Fn(Start<S>) -> Box<dyn Serving> + Send + Sync>;

/// What hyper's part of a connection begins with.
pub(in super::super) struct Start<S> {
    pub(super) service: Arc<S>,
    pub(super) known: Known,
    /// How much of a request's body is carried.
    pub(super) bodies: usize,
    /// The header that tells a request's id.
    pub(super) request_id: HeaderName,
    pub(super) wire: Arc<dyn AnyWire>,
    pub(super) streams: Arc<Streams>,
    pub(super) tasks: Tasks,
    /// The responses in the middle, and the rest of each, a response of the service's, if it was asked before.
    pub(super) resumed: HashMap<u32, (Middle, Option<Box<dyn Any>>)>,
}

/// hyper's connection, without its type.
pub(in super::super) trait Serving: Send {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>>;
    fn graceful_shutdown(&mut self);
}

type Hyper<S> = http2::Connection<TokioIo<Io>, Multiplexed<S>, Tasks>;

impl<S, B> Serving for Pin<Box<Hyper<S>>>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Future::poll(self.as_mut(), cx)
    }

    fn graceful_shutdown(&mut self) {
        self.as_mut().graceful_shutdown();
    }
}

pub(in super::super) fn begin<S, B>(start: Start<S>) -> Box<dyn Serving>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let resumed = start.resumed.into_iter().map(|(id, (middle, rest))| {
        // What another service answered is not for this one.
        let rest = rest.and_then(|rest| rest.downcast().ok()).map(|rest| *rest);
        (id, Resuming { middle, rest })
    });
    let io = TokioIo::new(Io(start.wire.clone()));
    let service = Multiplexed {
        service: start.service,
        known: start.known,
        bodies: start.bodies,
        request_id: start.request_id,
        wire: start.wire,
        streams: start.streams,
        resumed: Mutex::new(resumed.collect()),
    };
    let builder = http2::Builder::new(start.tasks);
    Box::new(Box::pin(builder.serve_connection(io, service)))
}

/// Gives the service each request with what is followed of its stream.
pub(super) struct Multiplexed<S: Service<Request<RequestBody>>> {
    service: Arc<S>,
    known: Known,
    bodies: usize,
    request_id: HeaderName,
    wire: Arc<dyn AnyWire>,
    streams: Arc<Streams>,
    resumed: Mutex<HashMap<u32, Resuming<S::Response>>>,
}

impl<S, B> Service<Request<hyper::body::Incoming>> for Multiplexed<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    type Response = Response<Tracked<B>>;
    type Error = BoxError;
    type Future = Answer<S>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Answer<S> {
        // None of a connection that cannot be followed, which does not move.
        let id = self.wire.take_request().unwrap_or(0);
        let mut resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        let resumed = resumed.remove(&id);
        let common = Common {
            service: self.service.clone(),
            shared: self.streams.begin(id),
            known: self.known.clone(),
            bodies: self.bodies,
            request_id: self.request_id.clone(),
        };
        Answer::begin(Arc::new(common), request, resumed)
    }
}
