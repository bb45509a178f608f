//! An application with every kind of answer.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body as AnyBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, TRAILER, UPGRADE};
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::super::service::BoxError;
use super::super::{Resumable, Resumed};

pub(super) struct App;

type Answer = Result<Response<AnyBody>, BoxError>;

impl<B> Service<Request<B>> for App
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = Response<AnyBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        Box::pin(answer(request))
    }
}

async fn answer<B>(mut request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError> + Send,
{
    let resumed = request.extensions_mut().remove::<Resumed>();
    let path = match request.uri().path() {
        "" => "/switch/0".to_owned(),
        path => path.to_owned(),
    };
    let (path, number) = path.rsplit_once('/').unwrap_or((&path, ""));
    let number: u64 = number.parse().unwrap_or(0);
    let text = |text: String| Ok(Response::new(AnyBody::from(text)));
    match path {
        "/hello" => text(format!("hello {number}")),
        "/slow" => {
            sleep(Duration::from_millis(number)).await;
            text(format!("after {number} ms"))
        }
        "/upload" => {
            let (body, trailers) = read(request.into_body(), 0).await?;
            text(format!(
                "{} {trailers:?} {}",
                body.len(),
                body.escape_ascii()
            ))
        }
        "/slow-upload" => {
            let (body, _) = read(request.into_body(), number).await?;
            text(format!("{} {}", body.len(), body.escape_ascii()))
        }
        // No more of the request's body than so many bytes.
        "/exactly" => {
            let (mut body, mut seen) = (request.into_body(), 0);
            while seen < number {
                let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                let Some(frame) = frame else { break };
                let data = frame.map_err(Into::into)?.into_data();
                seen += data.map_or(0, |data| data.len() as u64);
            }
            text("enough".to_owned())
        }
        // Without a look at the request's body, which is as long as that of the answer.
        "/early" => Ok(Response::new(AnyBody::from(numbered(0, number)))),
        // The request's body lives on behind the response, and is dropped or read then.
        "/dropped-later" => {
            let body = request.into_body();
            tokio::spawn(async move {
                sleep(Duration::from_millis(number)).await;
                drop(body);
            });
            text("dropped later".to_owned())
        }
        "/read-later" => {
            let body = request.into_body();
            tokio::spawn(async move {
                sleep(Duration::from_millis(number)).await;
                let _ = read(body, 1).await;
            });
            text("read later".to_owned())
        }
        "/echo" => Ok(Response::new(AnyBody::new(request.into_body().map()))),
        "/pieces" => Ok(Response::new(AnyBody::new(Pieces::new(number)))),
        "/trailers" => {
            let mut response = Response::new(AnyBody::new(Pieces {
                trailers: true,
                ..Pieces::new(number)
            }));
            let names = HeaderValue::from_static("x-sum");
            response.headers_mut().insert(TRAILER, names);
            Ok(response)
        }
        "/fails" | "/fails-with-length" | "/short" => {
            let mut response = Response::new(AnyBody::new(Pieces {
                fails: path != "/short",
                ..Pieces::new(number)
            }));
            if path != "/fails" {
                let headers = response.headers_mut();
                headers.insert(CONTENT_LENGTH, (number * PIECE + 1).into());
            }
            Ok(response)
        }
        "/error" => {
            sleep(Duration::from_millis(number)).await;
            Err("the service fails".into())
        }
        "/status" => {
            let mut response = Response::new(AnyBody::empty());
            *response.status_mut() = StatusCode::from_u16(number as u16)?;
            Ok(response)
        }
        "/close" => {
            let mut response = Response::new(AnyBody::from("bye"));
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
            Ok(response)
        }
        "/file" | "/stream" | "/stream-close" => {
            let (size, from) = (number, resumed.map_or(Ok(0), |at| at.cursor::<u64>())?);
            let step = move |at: u64| async move {
                sleep(Duration::from_millis(at / PIECE % 3)).await;
                let len = PIECE.min(size - at);
                let bytes = Bytes::from(numbered(at, len));
                Ok::<_, BoxError>((len > 0).then_some((bytes, at + len)))
            };
            let mut response = Resumable::new(from, step).response();
            let headers = response.headers_mut();
            if path == "/file" {
                headers.insert(CONTENT_LENGTH, size.into());
            }
            if path == "/stream-close" {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(AnyBody::new))
        }
        "/switch" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let mut stream = TokioIo::new(upgraded);
                let mut bytes = [0; 7];
                while let Ok(len @ 1..) = stream.read(&mut bytes).await {
                    sleep(Duration::from_millis(number)).await;
                    stream.write_all(&bytes[..len]).await.unwrap();
                    stream.flush().await.unwrap();
                }
                stream.shutdown().await.unwrap();
            });
            let mut response = Response::new(AnyBody::empty());
            if request.method() != hyper::Method::CONNECT {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("echo"));
            }
            Ok(response)
        }
        "/nobody-switches" => {
            let mut response = Response::new(AnyBody::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            Ok(response)
        }
        _ => {
            let mut response = Response::new(AnyBody::from("not here"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            Ok(response)
        }
    }
}

/// Bytes that tell their place.
pub(super) fn numbered(from: u64, len: u64) -> Vec<u8> {
    (from..from + len)
        .map(|at| b"0123456789abcdef-"[(at / 16 % 17) as usize])
        .collect()
}

async fn read<B>(body: B, pause: u64) -> Result<(Vec<u8>, HeaderMap), BoxError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError> + Send,
{
    let mut body = body;
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        sleep(Duration::from_millis(pause)).await;
        match frame.map_err(Into::into)?.into_data() {
            Ok(data) => bytes.extend(data),
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok((bytes, trailers))
}

pub(super) const PIECE: u64 = 5000;

/// A body of pieces that cannot be resumed.
struct Pieces {
    left: u64,
    fails: bool,
    trailers: bool,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Pieces {
    fn new(left: u64) -> Self {
        Self {
            left,
            fails: false,
            trailers: false,
            pause: None,
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left % 2 == 1 {
            let pause = self
                .pause
                .get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(1))));
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if self.left == 0 {
            if std::mem::take(&mut self.trailers) {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from_static("17"));
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            return Poll::Ready(self.fails.then(|| Err("the body fails".into())));
        }
        self.left -= 1;
        let bytes = numbered(self.left * PIECE, PIECE);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }
}

/// A request's body as a response's.
struct Echo<B>(B);

trait Map: Sized {
    fn map(self) -> Echo<Self> {
        Echo(self)
    }
}

impl<B: Body> Map for B {}

impl<B> Body for Echo<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError> + Send,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
