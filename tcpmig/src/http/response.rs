//! Responses on their way to hyper.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::response::Parts;
use hyper::{Response, StatusCode, Version};
use pin_project_lite::pin_project;

use super::asking::chain;
use super::cursor::{AnyCursor, HasCursor, Marked};
use super::resumable::NotResumed;
use super::service::BoxError;
use super::shared::{Agreed, Framing, Middle, Phase, Responding, Shared, Switched};

/// Follows a response from now on; `resumed` is the one in the middle that it is the rest of.
pub(super) fn tracked<B: Body>(
    response: Response<B>,
    shared: &Arc<Shared>,
    resumed: Option<&Middle>,
    switches: bool,
    version: Version,
) -> Response<Tracked<B>> {
    let (mut parts, body) = response.into_parts();
    let mut cursor = parts.extensions.remove::<HasCursor>().map(|c| c.0);
    // The cursor of a response without a body is that of what begins behind it.
    let switched = switches.then(|| switched(&mut parts, cursor.take()));
    let marked = parts.extensions.remove::<Marked>();
    let changed = marked.is_some() && parts.headers.contains_key(CONTENT_ENCODING);
    let framing = match resumed {
        Some(middle) => {
            resume_headers(&mut parts.headers, middle, version);
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
    if let Some(switched) = switched {
        let agreed = switched.websocket.as_ref();
        current.socket = agreed.and_then(Agreed::moves).cloned();
        current.switched = Some(switched);
    }
    current.phase = Phase::Response(Responding {
        cursor: cursor.clone(),
        framing,
        close,
        passed: 0,
        changed,
    });
    current.is_polled = false;
    current.has_ended = false;
    current.changed();
    drop(current);
    let body = Tracked {
        body,
        cursor,
        resumed: resumed.map(|middle| middle.framing),
        passed: 0,
        changed,
        marked,
        shared: InFlight(shared.clone()),
    };
    Response::from_parts(parts, body)
}

fn switched(parts: &mut Parts, cursor: Option<Arc<dyn AnyCursor>>) -> Switched {
    Switched {
        extensions: std::mem::take(&mut parts.extensions),
        websocket: agreed(&parts.headers, cursor),
    }
}

/// What a response that says 101 agrees to, if that is a WebSocket.
pub(super) fn agreed(headers: &HeaderMap, cursor: Option<Arc<dyn AnyCursor>>) -> Option<Agreed> {
    let protocol = headers.get(UPGRADE)?.as_bytes();
    protocol.eq_ignore_ascii_case(b"websocket").then(|| Agreed {
        extended: headers.contains_key(SEC_WEBSOCKET_EXTENSIONS),
        protocol: headers
            .get(SEC_WEBSOCKET_PROTOCOL)
            .map(|protocol| protocol.as_bytes().to_vec()),
        cursor,
    })
}

pub(super) fn has_body(status: StatusCode) -> bool {
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
fn resume_headers(headers: &mut HeaderMap, middle: &Middle, version: Version) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    if version == Version::HTTP_2 {
        // Its frames say where it ends.
        return;
    }
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

/// A body has been polled, and what it gave is known.
struct Polled<'a> {
    shared: &'a Shared,
    /// It gave data, or nothing yet.
    goes_on: bool,
}

impl Drop for Polled<'_> {
    fn drop(&mut self) {
        let mut current = self.shared.current();
        current.is_polled = false;
        current.has_ended = !self.goes_on;
        current.changed();
    }
}

/// Tells when a response is over.
struct InFlight(Arc<Shared>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut current = self.0.current();
        current.phase = Phase::Rest;
        current.since = Instant::now();
        current.changed();
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
        // Whoever made the body does not count it.
        marked: Option<Marked>,
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
        {
            // A drain that begins now sees that something may come.
            let mut current = shared.current();
            if shared.is_draining() && stands {
                current.standing = Some(cx.waker().clone());
                return Poll::Pending;
            }
            current.is_polled = true;
        }
        let polled = match this.marked {
            Some(marked) => marked.poll(this.body, cx),
            None => this.body.poll_frame(cx),
        };
        let mut after = Polled {
            shared,
            goes_on: polled.is_pending(),
        };
        let frame = match ready!(polled) {
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
            after.goes_on = true;
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::Request;
    use hyper::header::HeaderValue;
    use hyper::service::Service;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    use super::*;
    use crate::http::{Ended, Movable, Obstacle, RequestBody, Resume};

    type Endless = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

    /// Answers without an end, with a body that it only marks; with these headers.
    #[derive(Clone)]
    struct Marks(HeaderMap);

    impl Service<Request<RequestBody>> for Marks {
        type Response = Response<Endless>;
        type Error = BoxError;
        type Future = Ready<Result<Self::Response, BoxError>>;

        fn call(&self, request: Request<RequestBody>) -> Self::Future {
            let resume = match Resume::<u64>::of(request.extensions()) {
                Ok(resume) => resume,
                Err(error) => return ready(Err(error.into())),
            };
            let pieces = resume.unfold(0, async |number: u64| {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let piece = Frame::data(format!("{number}\n").into());
                Some((Ok(piece), number + 1))
            });
            let mut response = Response::new(StreamBody::new(pieces.boxed()));
            *response.headers_mut() = self.0.clone();
            resume.mark(&mut response);
            ready(Ok(response))
        }
    }

    /// Drains a connection in the middle of such a response.
    async fn drained(headers: HeaderMap) -> Result<(), Obstacle> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let mut client = client.unwrap();
        let movable = Movable::new(Marks(headers)).drain_within(Duration::from_millis(50));
        let connection = movable.connection(server.unwrap().0).unwrap();
        let (ask, asked) = oneshot::channel::<()>();
        let running = connection.run(async {
            let _ = asked.await;
        });
        let asking = async {
            let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
            client.write_all(request).await.unwrap();
            let mut got = Vec::new();
            while !got.windows(3).any(|end| end == b"\n9\n") {
                assert!(client.read_buf(&mut got).await.unwrap() > 0);
            }
            ask.send(()).unwrap();
            // It is read on, so that nothing waits for it.
            let _ = client.read_to_end(&mut got).await;
        };
        tokio::select! {
            ended = running => match ended.unwrap() {
                Ended::Drained(drained) => {
                    assert!(drained.session.is_in_response());
                    Ok(())
                }
                Ended::Busy(_, obstacle) => Err(obstacle),
                _ => panic!("it was to be drained"),
            },
            () = asking => panic!("it ends"),
        }
    }

    #[tokio::test]
    async fn a_marked_response_moves_unless_it_is_encoded() {
        assert_eq!(drained(HeaderMap::new()).await, Ok(()));
        let gzip = HeaderValue::from_static("gzip");
        let encoded = HeaderMap::from_iter([(CONTENT_ENCODING, gzip)]);
        assert_eq!(drained(encoded).await, Err(Obstacle::Changed));
    }
}
