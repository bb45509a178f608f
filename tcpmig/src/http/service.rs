//! Around the application's service: what is in flight, and what is held back.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::Body;
#[cfg(feature = "http2")]
use hyper::header::CONTENT_LENGTH;
use hyper::header::HeaderName;
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode, Version};

use super::asking::{again, rest};
use super::connection::Known;
use super::cursor::{HasCursor, Polling};
use super::head;
use super::request_body::{Reading, RequestBody};
use super::response::{Tracked, tracked};
#[cfg(feature = "http2")]
use super::resumable::Resumed;
use super::shared::{Carried, Incoming, Middle, Phase, Shared};
#[cfg(feature = "http2")]
use super::upload::{Followed, HasUpload, Progress, Uploaded};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What all requests of a connection share.
pub(super) struct Common<S> {
    pub(super) service: Arc<S>,
    pub(super) shared: Arc<Shared>,
    pub(super) known: Known,
    /// How much of a request's body is carried.
    pub(super) bodies: usize,
    /// The header that tells a request's id.
    pub(super) request_id: HeaderName,
}

/// The service that hyper sees.
pub(super) struct Watched<S: Service<Request<RequestBody>>> {
    common: Arc<Common<S>>,
    /// The first request is that of a response in the middle.
    resumed: Mutex<Option<Resuming<S::Response>>>,
}

/// A response in the middle, and the rest of it if the service was asked before.
pub(super) struct Resuming<R> {
    pub(super) middle: Middle,
    pub(super) rest: Option<R>,
}

impl<S: Service<Request<RequestBody>>> Watched<S> {
    pub(super) fn new(common: Common<S>, resumed: Option<Resuming<S::Response>>) -> Self {
        Self {
            common: Arc::new(common),
            resumed: Mutex::new(resumed),
        }
    }
}

impl<S, B> Service<Request<hyper::body::Incoming>> for Watched<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    type Response = Response<Tracked<B>>;
    type Error = BoxError;
    type Future = Answer<S>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Answer<S> {
        let mut resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        Answer::begin(self.common.clone(), request, resumed.take())
    }
}

impl<S: Service<Request<RequestBody>>> Answer<S> {
    pub(super) fn begin(
        common: Arc<Common<S>>,
        request: Request<hyper::body::Incoming>,
        resumed: Option<Resuming<S::Response>>,
    ) -> Self {
        let (resumed, rest) = match resumed {
            Some(Resuming { middle, rest }) => (Some(middle), rest),
            None => (None, None),
        };
        let shared = &common.shared;
        let version = request.version();
        let method = request.method().clone();
        // A request that is resumed was begun before. One whose bytes are not at hand cannot be carried: then
        // it is served here.
        let holds = resumed.is_none() && shared.is_draining() && shared.inbound().has_request();
        let stage = if holds {
            let mut current = shared.current();
            current.phase = Phase::Held;
            current.incoming = Incoming::Done;
            drop(current);
            Stage::Held(Some(Box::new(request)))
        } else {
            common.begin(request, resumed.as_ref(), rest)
        };
        // What has not begun elsewhere begins here.
        let resumed = resumed.filter(Middle::has_response);
        Self {
            stage,
            resumed,
            version,
            method,
            common,
        }
    }
}

impl<S: Service<Request<RequestBody>>> Common<S> {
    /// Lets the service begin with a request.
    fn begin(
        &self,
        request: Request<hyper::body::Incoming>,
        resumed: Option<&Middle>,
        rest: Option<S::Response>,
    ) -> Stage<S::Future, S::Response> {
        let (parts, body) = request.into_parts();
        let ended = body.is_end_stream();
        let is_ambiguous = self.shared.inbound().begun(body.size_hint().exact());
        {
            let mut current = self.shared.current();
            head::write(&mut current.head, &parts);
            current.body = Carried::default();
            current.closes = is_ambiguous;
            current.phase = Phase::Service;
            current.since = Instant::now();
            current.incoming = if ended {
                Incoming::Done
            } else {
                Incoming::Arriving
            };
        }
        #[cfg(feature = "http2")]
        let uploaded = resumed.and_then(|middle| Some((middle, middle.upload.as_deref()?)));
        #[cfg(feature = "http2")]
        if uploaded.is_some() || resumed.is_none() && !ended && parts.version == Version::HTTP_2 {
            let mut request = self.followed(parts, body, uploaded);
            self.known.extend(request.extensions_mut());
            let _polling = Polling::service();
            return Stage::Running(Box::pin(self.service.call(request)));
        }
        let mut request = if let Some(middle) = resumed {
            // The gate has played its head to hyper; its body is not hyper's to read again.
            let body = Bytes::copy_from_slice(&middle.body);
            self.shared.current().body = Carried::new(body.clone());
            if let Some(rest) = rest {
                return Stage::Answered(Some(rest));
            }
            again(parts, middle, body)
        } else {
            let watch = (!ended).then(|| Reading::new(self.shared.clone(), self.bodies));
            Request::from_parts(parts, RequestBody::of_hyper(body, watch))
        };
        self.known.extend(request.extensions_mut());
        let _polling = Polling::service();
        Stage::Running(Box::pin(self.service.call(request)))
    }
}

#[cfg(feature = "http2")]
impl<S> Common<S> {
    /// A request whose handler may say how far it has come with its body, or has come so far elsewhere.
    fn followed(
        &self,
        mut parts: hyper::http::request::Parts,
        body: hyper::body::Incoming,
        uploaded: Option<(&Middle, &Uploaded)>,
    ) -> Request<RequestBody> {
        let mut length = body.size_hint().exact();
        let mut came = None;
        if let Some((middle, uploaded)) = uploaded {
            length = uploaded.length;
            came = Resumed::of_upload(uploaded);
            if let Some(length) = length {
                // That of the whole, which the service was told before.
                parts.headers.insert(CONTENT_LENGTH, length.into());
            }
            if uploaded.has_response {
                parts.extensions.insert(Resumed::of(middle));
            }
        }
        let shared = self.shared.clone();
        {
            let mut current = shared.current();
            let uploaded = uploaded.map(|(_, uploaded)| uploaded);
            current.upload = Progress::begin(body, uploaded, length, self.bodies);
            current.incoming = Incoming::Arriving;
        }
        parts.extensions.insert(HasUpload {
            shared: shared.clone(),
            came,
        });
        Request::from_parts(parts, RequestBody::followed(Followed(shared)))
    }
}

/// A request's answer.
pub(super) struct Answer<S: Service<Request<RequestBody>>> {
    stage: Stage<S::Future, S::Response>,
    resumed: Option<Middle>,
    version: Version,
    method: Method,
    common: Arc<Common<S>>,
}

enum Stage<F, R> {
    /// The service has not seen it, because the connection is being drained.
    Held(Option<Box<Request<hyper::body::Incoming>>>),
    /// In a box, because hyper is polled without being pinned.
    Running(Pin<Box<F>>),
    /// It was asked before the connection came.
    Answered(Option<R>),
}

// What it holds is in a box, or is moved out.
impl<S: Service<Request<RequestBody>>> Unpin for Answer<S> {}

impl<S, B> Future for Answer<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    type Output = Result<Response<Tracked<B>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let shared = &this.common.shared;
        if let Stage::Held(request) = &mut this.stage {
            if shared.is_draining() {
                return Poll::Pending;
            }
            let Some(request) = request.take() else {
                return Poll::Pending;
            };
            this.stage = this.common.begin(*request, None, None);
        }
        let answered = match &mut this.stage {
            Stage::Running(future) => {
                let polling = Polling::service();
                let answered = ready!(future.as_mut().poll(cx)).map_err(Into::into);
                drop(polling);
                answered
            }
            Stage::Answered(Some(_)) => {
                let Stage::Answered(Some(rest)) =
                    std::mem::replace(&mut this.stage, Stage::Answered(None))
                else {
                    return Poll::Pending;
                };
                Ok(rest)
            }
            Stage::Answered(None) | Stage::Held(_) => return Poll::Pending,
        };
        let Some(middle) = this.resumed.take() else {
            let switches = |status: StatusCode| {
                status == StatusCode::SWITCHING_PROTOCOLS
                    || this.method == Method::CONNECT && status.is_success()
            };
            return Poll::Ready(answered.map(|response| {
                let switches = switches(response.status());
                keep_id(&response, &this.common);
                tracked(response, shared, None, switches, this.version)
            }));
        };
        match rest(answered, cx) {
            Ok(response) => {
                let rest = tracked(response, shared, Some(&middle), false, this.version);
                Poll::Ready(Ok(rest))
            }
            Err(refused) => {
                if this.version == Version::HTTP_2 {
                    // Its stream is reset, and the connection goes on: nobody else says so.
                    tracing::warn!(cause = %refused, "a response in the middle is reset after a move");
                }
                shared.current().not_resumed = Some(refused.clone());
                Poll::Ready(Err(refused.into()))
            }
        }
    }
}

/// The id that a request has got here is its own where its response goes on.
fn keep_id<S, B>(response: &Response<B>, common: &Common<S>) {
    if response.extensions().get::<HasCursor>().is_none() {
        return;
    }
    if let Some(id) = response.headers().get(&common.request_id) {
        head::add(&mut common.shared.current().head, &common.request_id, id);
    }
}
