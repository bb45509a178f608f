//! Services that take requests with hyper's own body, and no other.

use std::convert::Infallible;
use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use http_body::Body;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;

use super::request_body::RequestBody;

/// How much of a body waits between the two connections of hyper, in bytes.
const WAITS: usize = 64 << 10;

/// Makes a service of `Request<hyper::body::Incoming>` one of [`RequestBody`]: what
/// [`Movable::new`](super::Movable::new) and [`serve`](fn@super::serve) take.
///
/// It is a service of hyper and of tower alike, as far as the inner one is. A request without a body is passed on as it is. For one
/// with a body hyper is given that body again, in memory, because nobody else can make an [`Incoming`]: it costs a copy, and needs
/// a tokio runtime. Services that take any body (axum's, warp's) do without.
#[derive(Debug, Clone, Copy)]
pub struct TakesIncoming<S>(S);

impl<S> TakesIncoming<S> {
    /// Around such a service.
    pub fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S: Service<Request<Incoming>>> Service<Request<RequestBody>> for TakesIncoming<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<RequestBody>) -> S::Future {
        self.0.call(request.map(incoming))
    }
}

#[cfg(any(feature = "axum", feature = "serve"))]
impl<S> tower_service::Service<Request<RequestBody>> for TakesIncoming<S>
where
    S: tower_service::Service<Request<Incoming>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> S::Future {
        self.0.call(request.map(incoming))
    }
}

/// The same body, as hyper's.
fn incoming(body: RequestBody) -> Incoming {
    match body.into_hyper() {
        Ok(body) => body,
        Err(body) => again(body),
    }
}

/// Lets hyper read a body.
fn again(body: RequestBody) -> Incoming {
    let (mut ours, its) = duplex(WAITS);
    let (got, mut gets) = oneshot::channel();
    let getter = Getter(Mutex::new(Some(got)));
    let mut hyper = Box::pin(http1::Builder::new().serve_connection(TokioIo::new(its), getter));
    let length = body.size_hint().exact();
    let framing = match length {
        Some(length) => format!("content-length: {length}"),
        None => "transfer-encoding: chunked".to_owned(),
    };
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
    let mut cx = Context::from_waker(Waker::noop());
    // It fits in what may wait, so that it is written at once.
    let written = pin!(ours.write_all(head.as_bytes())).poll(&mut cx);
    debug_assert!(matches!(written, Poll::Ready(Ok(()))));
    // hyper calls its service when it has read a head, and waits for nobody until then.
    let polled = hyper.as_mut().poll(&mut cx);
    debug_assert!(polled.is_pending() || length == Some(0));
    // INVARIANT: its service has given the body away.
    let incoming = gets.try_recv().expect("hyper has called its service");
    if polled.is_pending() {
        tokio::spawn(async move {
            // Who has the body learns from it if it breaks off; if it was dropped, nobody wants the rest.
            let _ = tokio::join!(hyper, pass_on(body, ours, length.is_none()));
        });
    }
    incoming
}

/// Gives a request's body away, and answers: hyper goes on reading for as long as somebody wants the body.
struct Getter(Mutex<Option<oneshot::Sender<Incoming>>>);

impl Service<Request<Incoming>> for Getter {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let got = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(got) = got {
            // Who asked for it waits.
            let _ = got.send(request.into_body());
        }
        ready(Ok(Response::new(String::new())))
    }
}

/// Writes a body, in chunks if its length is not known.
async fn pass_on(body: RequestBody, mut to: DuplexStream, is_chunked: bool) -> io::Result<()> {
    let mut body = pin!(body);
    let mut trailers = HeaderMap::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map_err(io::Error::other)?.into_data() {
            Ok(data) if is_chunked && !data.is_empty() => {
                let size = format!("{:x}\r\n", data.len());
                to.write_all(size.as_bytes()).await?;
                to.write_all(&data).await?;
                to.write_all(b"\r\n").await?;
            }
            Ok(data) => to.write_all(&data).await?,
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    if is_chunked {
        let mut end = b"0\r\n".to_vec();
        for (name, value) in &trailers {
            let line = [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"];
            end.extend_from_slice(&line.concat());
        }
        end.extend_from_slice(b"\r\n");
        to.write_all(&end).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::Pin;
    use std::time::Duration;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::http::service::BoxError;
    use crate::http::{Ended, Movable, Resume};

    type Boxed = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

    /// Says how long the body is and how its trailers are; for `/drip` again and again, from a cursor; for `/ignore` without
    /// reading it.
    async fn measure(request: Request<Incoming>) -> Result<Response<Boxed>, BoxError> {
        let path = request.uri().path().to_owned();
        let resume = Resume::<u64>::of(request.extensions())?;
        if path == "/ignore" {
            return Ok(Response::new(text("ignored")));
        }
        let hint = request.body().size_hint().exact();
        let body = request.into_body().collect().await?;
        let trailers = format!("{:?}", body.trailers().map(HeaderMap::len));
        let bytes = body.to_bytes();
        let said = format!("{} bytes, {hint:?}, {trailers}\n", bytes.len());
        if path != "/drip" {
            return Ok(Response::new(text(&said)));
        }
        let lines = resume.unfold(0, move |number| {
            let line = format!("{number}: {said}");
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Ok(Frame::data(line.into())), number + 1))
            }
        });
        let response = Response::new(StreamBody::new(lines));
        Ok(resume.response(response).map(BodyExt::boxed_unsync))
    }

    fn text(text: &str) -> Boxed {
        let text = text.to_owned();
        BodyExt::boxed_unsync(text.map_err(|never| match never {}))
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    async fn until(client: &mut TcpStream, end: &str) -> String {
        let mut got = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&got).contains(end) {
                assert!(
                    client.read_buf(&mut got).await.unwrap() > 0,
                    "{end} does not come"
                );
            }
        };
        timeout(Duration::from_secs(30), reading).await.unwrap();
        String::from_utf8(got).unwrap()
    }

    #[tokio::test]
    async fn bodies_are_whole_and_come_along() {
        let movable = Movable::new(TakesIncoming::new(service_fn(measure)));
        let (mut client, server) = pair().await;
        let connection = movable.connection(server).unwrap();
        let (ask, asked) = oneshot::channel::<()>();
        let running = async {
            let asked = async {
                let _ = asked.await;
            };
            let ended = connection.run(asked).await.unwrap();
            let Ended::Drained(drained) = ended else {
                panic!("it was to be drained");
            };
            let on = movable.resume(drained.stream, drained.session).unwrap();
            let _ = on.run(pending()).await;
        };
        let talking = async {
            let head = "host: x\r\n";
            let sized = format!("POST / HTTP/1.1\r\n{head}content-length: 3000000\r\n\r\n");
            client.write_all(sized.as_bytes()).await.unwrap();
            client.write_all(&vec![7; 3_000_000]).await.unwrap();
            until(&mut client, "3000000 bytes, Some(3000000), None\n").await;
            let none = format!("GET / HTTP/1.1\r\n{head}\r\n");
            client.write_all(none.as_bytes()).await.unwrap();
            until(&mut client, "0 bytes, Some(0), None\n").await;
            let chunks = "3\r\nabc\r\n4\r\ndefg\r\n0\r\n";
            let chunked = format!("POST / HTTP/1.1\r\n{head}transfer-encoding: chunked\r\n");
            let request = format!("{chunked}trailer: a\r\n\r\n{chunks}a: b\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            until(&mut client, "7 bytes, None, Some(1)\n").await;
            let ignored = sized
                .replace("POST /", "POST /ignore")
                .replace("3000000", "9");
            client.write_all(ignored.as_bytes()).await.unwrap();
            client.write_all(b"123456789").await.unwrap();
            until(&mut client, "ignored").await;
            // Behind a body that is read, or not, the connection goes on.
            let drip = sized
                .replace("POST /", "POST /drip")
                .replace("3000000", "5");
            client.write_all(drip.as_bytes()).await.unwrap();
            client.write_all(b"12345").await.unwrap();
            let mut got = until(&mut client, "20: 5 bytes, Some(5), None\n").await;
            ask.send(()).unwrap();
            got += &until(&mut client, "100: 5 bytes, Some(5), None\n").await;
            for number in 0..100 {
                let line = format!("\n{number}: 5 bytes");
                assert_eq!(got.matches(&line).count(), 1, "{number}");
            }
        };
        let talking: Pin<Box<dyn Future<Output = ()>>> = Box::pin(talking);
        tokio::select! {
            () = running => panic!("it ends"),
            () = talking => {}
        }
    }
}
