//! Downloads that move because their service answers to `Range`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_RANGE, LAST_MODIFIED, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tower_layer::Layer;
use tower_service::Service;

use super::cursor::{Cursor, Followed, HasCursor, Resume};

/// Makes responses movable whose service answers to `Range`: files (tower-http's `ServeDir`), a proxy to such a server.
///
/// A response moves if it says `Accept-Ranges: bytes` or is itself a range, and has a length and a validator: a strong `ETag`,
/// or `Last-Modified`. Where it goes on, the service is asked for the range that is left. Only if it answers with exactly that
/// range and the same validator, the response goes on; a file that changed, or is not there, is refused before the
/// connection leaves its source. Every other response is left as it is.
///
/// Layers that change the body (compression) belong below this one, or their responses do not move.
#[derive(Debug, Clone, Copy, Default)]
pub struct RangeLayer;

impl<S> Layer<S> for RangeLayer {
    type Service = Ranged<S>;

    fn layer(&self, service: S) -> Ranged<S> {
        Ranged(service)
    }
}

/// The service of a [`RangeLayer`].
#[derive(Debug, Clone)]
pub struct Ranged<S>(S);

/// What is left of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    /// The next byte of the whole.
    next: u64,
    /// Behind the last byte that was asked for.
    end: u64,
    /// The name of a header, and what it said.
    validator: (String, String),
}

impl Cursor for Left {
    const KIND: &'static str = "tcpmig-range";
    const VERSION: u32 = 1;
}

impl<S, Q, B> Service<Request<Q>> for Ranged<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    type Response = Response<RangeBody<B>>;
    type Error = S::Error;
    type Future = Ranging<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Ranging<S::Future> {
        let is_get = request.method() == Method::GET;
        // That of another kind is for somebody below.
        let resume = Resume::<Left>::of(request.extensions()).ok();
        let resume = resume.filter(|_| is_get);
        let left = resume.as_ref().and_then(Resume::cursor);
        if let Some(left) = &left {
            let range = format!("bytes={}-{}", left.next, left.end.saturating_sub(1));
            // INVARIANT: a value of digits and signs.
            if let Ok(range) = HeaderValue::from_str(&range) {
                request.headers_mut().insert(RANGE, range);
            }
            // The peer's own condition held when the response began.
            request.headers_mut().remove(IF_RANGE);
        }
        Ranging {
            answer: self.0.call(request),
            resume,
            left,
        }
    }
}

pin_project! {
    /// The answer of a [`Ranged`].
    pub struct Ranging<F> {
        #[pin]
        answer: F,
        resume: Option<Resume<Left>>,
        left: Option<Left>,
    }
}

impl<F, B, E> Future for Ranging<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<RangeBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.answer.poll(cx))?;
        let Some(resume) = this.resume.take() else {
            return Poll::Ready(Ok(response.map(RangeBody::plain)));
        };
        if response.extensions().get::<HasCursor>().is_some() {
            // Somebody below knows more of it.
            return Poll::Ready(Ok(response.map(RangeBody::plain)));
        }
        let found = left(&response);
        Poll::Ready(Ok(match (this.left.take(), found) {
            (None, None) => response.map(RangeBody::plain),
            (None, Some(begin)) => movable(response, resume, begin),
            (Some(due), Some(found)) if due == found => movable(response, resume, found),
            // It says itself why not.
            (Some(_), _) if is_refusal(response.status()) => response.map(RangeBody::plain),
            (Some(due), found) => refused(&due, found.as_ref()),
        }))
    }
}

fn is_refusal(status: StatusCode) -> bool {
    !status.is_success() && status != StatusCode::RANGE_NOT_SATISFIABLE
}

/// What there is to send of a response, if what is left of it could be asked for.
fn left<B>(response: &Response<B>) -> Option<Left> {
    let headers = response.headers();
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let (next, end) = match response.status() {
        StatusCode::OK if text(ACCEPT_RANGES)?.eq_ignore_ascii_case("bytes") => {
            (0, text(CONTENT_LENGTH)?.parse().ok()?)
        }
        StatusCode::PARTIAL_CONTENT => {
            let range = text(CONTENT_RANGE)?.strip_prefix("bytes ")?;
            let (first, last) = range.split_once('/')?.0.split_once('-')?;
            (
                first.parse().ok()?,
                last.parse::<u64>().ok()?.checked_add(1)?,
            )
        }
        _ => return None,
    };
    let validator = validator(headers)?;
    Some(Left {
        next,
        end,
        validator,
    })
}

/// What changes when the file does. A weak tag may stay the same then.
fn validator(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |name: HeaderName| {
        let value = headers.get(&name)?.to_str().ok()?;
        Some((name.as_str().to_owned(), value.to_owned()))
    };
    let tag = text(ETAG).filter(|(_, tag)| tag.starts_with('"'));
    tag.or_else(|| text(LAST_MODIFIED))
}

fn movable<B: Body<Data = Bytes>>(
    response: Response<B>,
    resume: Resume<Left>,
    left: Left,
) -> Response<RangeBody<B>> {
    let at = resume.clone();
    at.set(left.clone());
    let counted = response.map(|body| Counted { body, at, left });
    resume.response(counted).map(|body| RangeBody {
        kind: Kind::Counted { body },
    })
}

/// Says why a download cannot go on.
fn refused<B>(due: &Left, found: Option<&Left>) -> Response<RangeBody<B>> {
    let Left {
        next,
        end,
        validator: (name, value),
    } = due;
    let found = match found {
        Some(Left { validator, .. }) if *validator != due.validator => {
            format!("it has {}: {}", validator.0, validator.1)
        }
        _ => "the service does not give that range".to_owned(),
    };
    let reason = format!("bytes {next} to {end} of what had {name}: {value} are not here: {found}");
    let body = RangeBody {
        kind: Kind::Refused {
            reason: Some(reason.into()),
        },
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::CONFLICT;
    response
}

pin_project! {
    /// Counts what was sent.
    struct Counted<B> {
        #[pin]
        body: B,
        at: Resume<Left>,
        left: Left,
    }
}

impl<B: Body<Data = Bytes>> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.left.next += data.remaining() as u64;
            this.at.set(this.left.clone());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The body of a response of [`Ranged`].
    pub struct RangeBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B> {
        Plain { #[pin] body: B },
        Counted { #[pin] body: Followed<Counted<B>> },
        Refused { reason: Option<Bytes> },
    }
}

impl<B> RangeBody<B> {
    fn plain(body: B) -> Self {
        Self {
            kind: Kind::Plain { body },
        }
    }
}

impl<B: Body<Data = Bytes>> Body for RangeBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProjection::Plain { body } => body.poll_frame(cx),
            KindProjection::Counted { body } => body.poll_frame(cx),
            KindProjection::Refused { reason } => {
                Poll::Ready(reason.take().map(|reason| Ok(Frame::data(reason))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Plain { body } => body.is_end_stream(),
            Kind::Counted { body } => body.is_end_stream(),
            Kind::Refused { reason } => reason.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Plain { body } => body.size_hint(),
            Kind::Counted { body } => body.size_hint(),
            Kind::Refused { reason } => {
                let len = reason.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(len as u64)
            }
        }
    }
}
