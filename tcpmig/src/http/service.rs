//! Around the application's service: what is in flight, and what is held back.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_EXTENSIONS,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode, Version};
use pin_project_lite::pin_project;

use super::connection::Known;
use super::cursor::{AnyCursor, HasCursor, Polling};
use super::head;
use super::resumable::{NotResumed, Resumed};
use super::shared::{
    Agreed, Carried, Framing, Incoming, Middle, Phase, Responding, Shared, Switched,
};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What all requests of a connection share.
pub(super) struct Common<S> {
    pub(super) service: Arc<S>,
    pub(super) shared: Arc<Shared>,
    pub(super) known: Known,
    /// How much of a request's body is carried.
    pub(super) bodies: usize,
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
        let common = self.common.clone();
        let mut resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        let (resumed, rest) = match resumed.take() {
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
        Answer {
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
            current.incoming = if ended {
                Incoming::Done
            } else {
                Incoming::Arriving
            };
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
            let watch = (!ended).then(|| Reading(self.shared.clone(), self.bodies));
            Request::from_parts(parts, RequestBody(Source::Hyper { body, watch }))
        };
        self.known.extend(request.extensions_mut());
        let _polling = Polling::service();
        Stage::Running(Box::pin(self.service.call(request)))
    }
}

/// The request of a response in the middle, for the service.
pub(super) fn again(
    mut parts: hyper::http::request::Parts,
    middle: &Middle,
    body: Bytes,
) -> Request<RequestBody> {
    if !body.is_empty() {
        parts.headers.insert(CONTENT_LENGTH, body.len().into());
    }
    parts.extensions.insert(Resumed::of(middle));
    Request::from_parts(parts, RequestBody(Source::Carried(body)))
}

/// Asks the service for the rest of a response in the middle before the connection comes.
pub(super) async fn ask<S, B>(
    service: &S,
    request: Request<RequestBody>,
) -> Result<Response<B>, NotResumed>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    let mut answer = {
        let _polling = Polling::service();
        Box::pin(service.call(request))
    };
    poll_fn(|cx| {
        let polling = Polling::service();
        let answered = ready!(answer.as_mut().poll(cx)).map_err(Into::into);
        drop(polling);
        Poll::Ready(rest(answered, cx))
    })
    .await
}

/// The rest of a response in the middle, if this is one.
fn rest<B: Body>(
    answered: Result<Response<B>, BoxError>,
    cx: &mut Context<'_>,
) -> Result<Response<B>, NotResumed> {
    match answered {
        Ok(response) if goes_on(&response) => Ok(response),
        Ok(response) => Err(NotResumed::Answered {
            status: response.status(),
            reason: beginning(response.into_body(), cx),
        }),
        Err(error) => Err(NotResumed::Failed(chain(&*error))),
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
                tracked(response, shared, None, switches, this.version)
            }));
        };
        match rest(answered, cx) {
            Ok(response) => {
                let rest = tracked(response, shared, Some(&middle), false, this.version);
                Poll::Ready(Ok(rest))
            }
            Err(refused) => {
                shared.current().not_resumed = Some(refused.clone());
                Poll::Ready(Err(refused.into()))
            }
        }
    }
}

/// Whether a response can be the rest of one in the middle.
fn goes_on<B>(response: &Response<B>) -> bool {
    response.extensions().get::<HasCursor>().is_some() && has_body(response.status())
}

/// How much of an answer's body tells its reason, in bytes.
const REASON: usize = 200;

/// The beginning of a body, as far as it is there: nobody waits for it.
fn beginning<B: Body>(body: B, cx: &mut Context<'_>) -> String {
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while bytes.len() < REASON
        && let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(cx)
    {
        if let Ok(data) = frame.into_data() {
            let most = REASON - bytes.len();
            bytes.put(data.take(most));
        }
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// An error and what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

/// Follows a response from now on; `resumed` is the one in the middle that it is the rest of.
fn tracked<B: Body>(
    response: Response<B>,
    shared: &Arc<Shared>,
    resumed: Option<&Middle>,
    switches: bool,
    version: Version,
) -> Response<Tracked<B>> {
    let (mut parts, body) = response.into_parts();
    let cursor = parts.extensions.remove::<HasCursor>().map(|c| c.0);
    let framing = match resumed {
        Some(middle) => {
            resume_headers(&mut parts.headers, middle);
            middle.framing
        }
        // Nobody asks for that of another body.
        None if cursor.is_none() => Framing::Close,
        None => framing(&parts.headers, &body, version),
    };
    let close = cursor.is_some() && says_close(&parts.headers);
    let mut current = shared.current();
    if cursor.is_none() {
        // It is not asked for again.
        current.body.overflow();
    }
    if switches {
        current.switched = Some(switched(&mut parts));
    }
    current.phase = Phase::Response(Responding {
        cursor: cursor.clone(),
        framing,
        close,
        passed: 0,
        changed: false,
    });
    drop(current);
    let body = Tracked {
        body,
        cursor,
        resumed: resumed.map(|middle| middle.framing),
        passed: 0,
        changed: false,
        shared: InFlight(shared.clone()),
    };
    Response::from_parts(parts, body)
}

fn switched(parts: &mut hyper::http::response::Parts) -> Switched {
    let says = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    Switched {
        extensions: std::mem::take(&mut parts.extensions),
        websocket: parts
            .headers
            .get(UPGRADE)
            .is_some_and(says)
            .then(|| Agreed {
                extended: parts.headers.contains_key(SEC_WEBSOCKET_EXTENSIONS),
            }),
    }
}

fn has_body(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

fn says_close(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        let tokens = value.to_str().unwrap_or_default().split(',');
        tokens
            .into_iter()
            .any(|token| token.trim().eq_ignore_ascii_case("close"))
    })
}

/// What hyper will make of a response.
fn framing<B: Body>(headers: &HeaderMap, body: &B, version: Version) -> Framing {
    if version != Version::HTTP_10 && headers.contains_key(TRANSFER_ENCODING) {
        return Framing::Chunked;
    }
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    match length.or(body.size_hint().exact()) {
        Some(length) => Framing::Length(length),
        None if version == Version::HTTP_10 => Framing::Close,
        None => Framing::Chunked,
    }
}

/// Lets hyper frame what is left of a body as it framed its beginning.
fn resume_headers(headers: &mut HeaderMap, middle: &Middle) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    let (name, value): (HeaderName, HeaderValue) = match middle.framing {
        Framing::Length(left) => (CONTENT_LENGTH, left.into()),
        Framing::Chunked => (TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        Framing::Close => (CONNECTION, HeaderValue::from_static("close")),
    };
    headers.insert(name, value);
    if middle.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Tells when a response is over.
struct InFlight(Arc<Shared>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.current().phase = Phase::Rest;
    }
}

pin_project! {
    /// A response's body on its way to hyper.
    pub(super) struct Tracked<B> {
        #[pin]
        body: B,
        // `None` if it cannot be resumed.
        cursor: Option<Arc<dyn AnyCursor>>,
        resumed: Option<Framing>,
        passed: u64,
        changed: bool,
        shared: InFlight,
    }
}

impl<B: Body> Body for Tracked<B>
where
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let Some(cursor) = this.cursor else {
            return this.body.poll_frame(cx).map_err(Into::into);
        };
        let shared = &this.shared.0;
        // What cannot be resumed after all has to come to its end.
        // What has no cursor goes on until it has one.
        let stands = !*this.changed && cursor.yielded() == *this.passed && cursor.is_set();
        if shared.is_draining() && stands {
            return Poll::Pending;
        }
        let frame = match ready!(this.body.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let error = error.into();
                if this.resumed.is_some() {
                    shared.current().not_resumed = Some(NotResumed::Failed(chain(&*error)));
                }
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                if let Some(Framing::Length(left)) = *this.resumed
                    && let missing @ 1.. = left.saturating_sub(*this.passed)
                {
                    let cause = format!("it ends {missing} bytes before the response does");
                    shared.current().not_resumed = Some(NotResumed::Failed(cause));
                }
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            *this.passed += data.remaining() as u64;
            // Once is for ever: that the numbers agree again means nothing then.
            *this.changed |= cursor.yielded() != *this.passed;
            if let Phase::Response(responding) = &mut shared.current().phase {
                responding.passed = *this.passed;
                responding.changed = *this.changed;
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self.resumed {
            Some(Framing::Length(left)) => self.passed >= left,
            _ => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.resumed {
            Some(Framing::Length(left)) => SizeHint::with_exact(left.saturating_sub(self.passed)),
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

/// Follows a request's body: keeps as much of it as can be carried, and tells when it is over.
#[derive(Debug)]
struct Reading(Arc<Shared>, usize);

impl Reading {
    fn read(&self, frame: &Frame<Bytes>) {
        let mut current = self.0.current();
        match frame.data_ref() {
            Some(data) => current.body.push(data, self.1),
            None => current.body.overflow(),
        }
    }

    fn is(&self, incoming: Incoming) {
        let mut current = self.0.current();
        current.incoming = incoming;
        current.changed();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut current = self.0.current();
        if current.incoming == Incoming::Arriving {
            current.incoming = Incoming::Dropped;
            current.changed();
        }
    }
}

/// The body of a request that came over a movable connection.
///
/// It is hyper's, or that of a request whose response is in the middle, which came with the connection.
#[derive(Debug)]
pub struct RequestBody(Source);

#[derive(Debug)]
enum Source {
    Hyper {
        body: hyper::body::Incoming,
        /// `None` if it was at its end from the beginning, or is now.
        watch: Option<Reading>,
    },
    Carried(Bytes),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (body, watch) = match &mut self.0 {
            Source::Hyper { body, watch } => (body, watch),
            Source::Carried(body) if body.is_empty() => return Poll::Ready(None),
            Source::Carried(body) => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(body)))));
            }
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if let (Some(watch), Some(Ok(frame))) = (&*watch, &frame) {
            watch.read(frame);
        }
        if (frame.is_none() || body.is_end_stream())
            && let Some(watch) = watch.take()
        {
            watch.is(Incoming::Done);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Hyper { body, .. } => body.is_end_stream(),
            Source::Carried(body) => body.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Hyper { body, .. } => body.size_hint(),
            Source::Carried(body) => SizeHint::with_exact(body.len() as u64),
        }
    }
}
