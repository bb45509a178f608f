//! A WebSocket whose handler got it by `hyper::upgrade` goes on: its request is played to the service again.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::Body;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::asking::{beginning, chain};
use super::connection::Known;
use super::cursor::{HasCursor, Polling};
use super::head;
use super::http1::Upgrade;
use super::lent::Home;
use super::request_body::RequestBody;
use super::response::agreed;
use super::resumable::{NotResumed, Resumed};
use super::service::BoxError;
use super::session::{Session, SessionError};
use super::shared::{Agreed, Handed, Switched};
use super::websocket::Link;

/// What hyper is given to read, so that it makes an [`OnUpgrade`]: nobody else can make one.
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// A connection of hyper's with nobody at its other end. It gives a WebSocket to whoever has its [`OnUpgrade`].
struct Donor<T> {
    hyper: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    give: oneshot::Sender<()>,
    home: Arc<Home<T>>,
}

/// Gives the one request's [`OnUpgrade`] away, and answers when it is told to.
struct Giver(Mutex<Option<(oneshot::Sender<OnUpgrade>, oneshot::Receiver<()>)>>);

impl Service<Request<hyper::body::Incoming>> for Giver {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<hyper::body::Incoming>) -> Self::Future {
        let given = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut response = Response::new(String::new());
        Box::pin(async move {
            if let Some((asks, given)) = given {
                // Who waits for it is called later.
                let _ = asks.send(hyper::upgrade::on(&mut request));
                let _ = given.await;
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            }
            Ok(response)
        })
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Donor<T> {
    fn new() -> Option<(Self, OnUpgrade)> {
        let home = Home::new();
        let (asks, mut on_upgrade) = oneshot::channel();
        let (give, given) = oneshot::channel();
        let giver = Giver(Mutex::new(Some((asks, given))));
        let io = TokioIo::new(home.lend_request(REQUEST));
        let hyper = http1::Builder::new()
            .serve_connection(io, giver)
            .with_upgrades();
        let mut donor = Self {
            hyper: Box::pin(hyper),
            give,
            home,
        };
        // It waits for nobody until it has called the service.
        if donor.poll().is_ready() {
            return None;
        }
        let on_upgrade = on_upgrade.try_recv().ok()?;
        Some((donor, on_upgrade))
    }

    fn poll(&mut self) -> Poll<hyper::Result<()>> {
        let _polling = self.home.hyper_is_polled();
        let mut cx = Context::from_waker(Waker::noop());
        self.hyper.as_mut().poll(&mut cx)
    }

    /// Gives this WebSocket away.
    fn give(mut self, link: Arc<Link<T>>) -> Option<Arc<Home<T>>> {
        self.home.put_link(link);
        let (give, _) = oneshot::channel();
        std::mem::replace(&mut self.give, give).send(()).ok()?;
        // Nor does it when it has the answer.
        match self.poll() {
            Poll::Ready(Ok(())) => Some(self.home),
            _ => None,
        }
    }
}

/// A service that is asked for the handler of a WebSocket.
pub(super) struct Replay<S: Service<Request<RequestBody>>, T> {
    answer: Pin<Box<S::Future>>,
    donor: Option<Donor<T>>,
    handed: Box<Handed>,
}

/// The handler of a WebSocket is there and waits for it.
pub(super) struct Begun<T> {
    donor: Donor<T>,
    request: Vec<u8>,
    agreed: Agreed,
}

// What it holds is in a box, or is not pinned.
impl<S: Service<Request<RequestBody>>, T> Unpin for Replay<S, T> {}

impl<S, B, T> Replay<S, T>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Plays the request of this WebSocket to the service.
    pub(super) fn begin(
        service: &S,
        known: &Known,
        handed: Box<Handed>,
    ) -> Result<Self, SessionError> {
        let (donor, on_upgrade) = Donor::new().ok_or(SessionError::Missing)?;
        let request = head::parse(&handed.request)?;
        let mut request = request.map(|()| RequestBody::carried(Bytes::new()));
        let extensions = request.extensions_mut();
        known.extend(extensions);
        extensions.insert(Resumed::of_socket(&handed));
        extensions.insert(on_upgrade);
        let _polling = Polling::service();
        Ok(Self {
            answer: Box::pin(service.call(request)),
            donor: Some(donor),
            handed,
        })
    }

    /// Ready when the service has answered; not to be called again then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Begun<T>, NotResumed>> {
        let polling = Polling::service();
        let answered = ready!(self.answer.as_mut().poll(cx)).map_err(Into::into);
        drop(polling);
        let response = match answered {
            Ok(response) => response,
            Err(error) => return Poll::Ready(Err(NotResumed::Failed(chain(&*error)))),
        };
        let cursor = response.extensions().get::<HasCursor>();
        let cursor = cursor.map(|cursor| cursor.0.clone());
        let is_taken = response.status() == StatusCode::SWITCHING_PROTOCOLS && cursor.is_some();
        let agreed = agreed(response.headers(), cursor).filter(|_| is_taken);
        let (Some(agreed), Some(donor)) = (agreed, self.donor.take()) else {
            return Poll::Ready(Err(NotResumed::NotTaken {
                status: response.status(),
                reason: beginning(response.into_body(), cx),
            }));
        };
        same_terms(&self.handed, &agreed, response.headers())?;
        Poll::Ready(Ok(Begun {
            donor,
            request: std::mem::take(&mut self.handed.request),
            agreed,
        }))
    }
}

/// The peer was told what the service says here.
fn same_terms(handed: &Handed, agreed: &Agreed, headers: &HeaderMap) -> Result<(), NotResumed> {
    let other = |here, there| Err(NotResumed::OtherTerms { here, there });
    if agreed.extended {
        let extensions = headers.get(hyper::header::SEC_WEBSOCKET_EXTENSIONS);
        let extensions = extensions.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let here = extensions.unwrap_or_default().into_owned();
        return other(here, "no extensions".to_owned());
    }
    if handed.protocol != agreed.protocol {
        let say = |protocol: &Option<Vec<u8>>| match protocol {
            Some(protocol) => format!("the protocol {:?}", String::from_utf8_lossy(protocol)),
            None => "no protocol".to_owned(),
        };
        return other(say(&agreed.protocol), say(&handed.protocol));
    }
    Ok(())
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Begun<T> {
    /// Gives the handler its WebSocket.
    pub(super) fn go(self, stream: T, unread: &[u8], unwritten: &[u8]) -> Option<Upgrade<T>> {
        let cursor = self.agreed.cursor.clone()?;
        let link = Link::of_handler(stream, unread, unwritten, cursor);
        let home = self.donor.give(link)?;
        let switched = Switched {
            extensions: hyper::http::Extensions::new(),
            websocket: Some(self.agreed),
        };
        Some(Upgrade::new(
            home,
            Bytes::new(),
            self.request,
            Some(switched),
        ))
    }
}

/// A WebSocket that waits until the service has been asked for its handler.
pub(super) struct Replaying<S: Service<Request<RequestBody>>, C> {
    pub(super) replay: Replay<S, C>,
    pub(super) stream: C,
    /// It can leave as it came.
    pub(super) session: Session,
}

impl<S, B, C> Replaying<S, C>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Asks the service for the handler of the WebSocket that this session is.
    pub(super) fn begin(
        service: &S,
        known: &Known,
        stream: C,
        session: Session,
    ) -> Result<Self, SessionError> {
        let handed = session.handed.clone().ok_or(SessionError::Missing)?;
        Ok(Self {
            replay: Replay::begin(service, known, handed)?,
            stream,
            session,
        })
    }
}
