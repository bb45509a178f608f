//! Asking a service to go on with what it began elsewhere.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes};
use http_body::Body;
use hyper::header::CONTENT_LENGTH;
use hyper::service::Service;
use hyper::{Request, Response};

use super::cursor::{HasCursor, Polling};
use super::request_body::RequestBody;
use super::response::has_body;
use super::resumable::{NotResumed, Resumed};
use super::service::BoxError;
use super::shared::Middle;

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
    Request::from_parts(parts, RequestBody::carried(body))
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
pub(super) fn rest<B: Body>(
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

/// Whether a response can be the rest of one in the middle.
fn goes_on<B>(response: &Response<B>) -> bool {
    response.extensions().get::<HasCursor>().is_some() && has_body(response.status())
}

/// How much of an answer's body tells its reason, in bytes.
const REASON: usize = 200;

/// The beginning of a body, as far as it is there: nobody waits for it.
pub(super) fn beginning<B: Body>(body: B, cx: &mut Context<'_>) -> String {
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
