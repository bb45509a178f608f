//! The demo's server that is replaced: each version is a process of this program.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body::Body;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tcpmig::http::websocket::WebSocket;
use tcpmig::http::{
    ConnectionState, Movable, RequestBody, Resumable, Resumed, Server, SessionError,
};
use tcpmig::tls::Tls;
use tcpmig::upgrade::{Arrivals, Predecessor, Successor};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::frames::{self, Role};
use crate::cli::demo::content::Content;
use crate::cli::demo::tls::Web;

/// The first line that a version reads.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Where versions find each other.
    pub(super) socket: PathBuf,
    pub(super) web: Web,
    /// Bytes of the file.
    pub(super) size: u64,
}

/// The second line that it may read: what streams has come to its end.
pub(super) const ENOUGH: &str = "enough";

/// What a version tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// It accepts at this port.
    Ready { port: u16 },
    /// The next version takes over, and it has so many connections then.
    Replaced { connections: usize },
    /// It has nothing left. It has accepted so many.
    Ended { accepted: u64 },
}

fn say(event: &Event) -> anyhow::Result<()> {
    crate::cli::print::say!("{}", serde_json::to_string(event)?);
    Ok(())
}

/// How often an event comes.
const EVENTS: Duration = Duration::from_millis(5);

/// Serves until the next version has everything, or until standard input ends.
pub(in super::super) async fn run() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let setup = lines
        .next_line()
        .await?
        .context("no set-up on standard input")?;
    let setup: Setup = serde_json::from_str(&setup).context("set-up")?;
    let (enough, is_enough) = watch::channel(false);
    let site = Site {
        content: Content::new(setup.size),
        is_enough,
    };
    let movable = Movable::new(site)
        .with_state::<Count>()
        .with_websockets(chat)
        .settle(Duration::ZERO)
        .over(setup.web.carriers()?);
    let server = Server::new(movable.clone());
    let check = move |layers: &[_]| Ok(movable.check(layers)?);
    let (listener, mut arrivals) = match Successor::connect(&setup.socket, check).await? {
        None => (
            std::net::TcpListener::bind("127.0.0.1:0")?,
            Arrivals::none(),
        ),
        Some(mut successor) => {
            let listener = successor.listener("https").context("no listener")?;
            (listener, successor.ready().await?)
        }
    };
    let predecessor = Predecessor::bind(&setup.socket)?;
    let mut predecessor = predecessor.listener("https", &listener)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    say(&Event::Ready {
        port: listener.local_addr()?.port(),
    })?;
    let mut accepted = 0;
    let arrived = |arrival| serve(server.clone(), Incoming::Arrived(arrival));
    loop {
        tokio::select! {
            next = listener.accept() => {
                accepted += 1;
                serve(server.clone(), Incoming::Accepted(next?.0));
            }
            Some(arrival) = arrivals.next() => arrived(arrival),
            next = predecessor.next() => {
                say(&Event::Replaced { connections: server.count() })?;
                next.take_all(&server, &mut arrivals, arrived).await?;
                break;
            }
            line = lines.next_line() => match line? {
                Some(line) if line == ENOUGH => drop(enough.send(true)),
                _ => break,
            },
        }
    }
    drop(predecessor);
    if let Some(folder) = setup.socket.parent() {
        // The next version has its socket there, if there is one.
        let _ = std::fs::remove_dir(folder);
    }
    say(&Event::Ended { accepted })
}

enum Incoming {
    Accepted(tokio::net::TcpStream),
    Arrived(tcpmig::session::Arrival),
}

fn serve(server: Server<Site, Tls>, incoming: Incoming) {
    tokio::spawn(async move {
        let served = match incoming {
            Incoming::Accepted(stream) => {
                // Answers are short.
                let _ = stream.set_nodelay(true);
                server.serve(stream).await
            }
            Incoming::Arrived(arrival) => server.arrived(arrival).await,
        };
        match served {
            // wrk sees whether somebody listens, and hangs up.
            Ok(_) | Err(SessionError::Handshake(_)) => {}
            Err(error) => tracing::error!("a connection ended: {error}"),
        }
    });
}

/// How many messages a WebSocket has had, in all versions together.
#[derive(Default, Serialize, Deserialize)]
struct Count {
    messages: u64,
}

impl ConnectionState for Count {
    const KIND: &'static str = "demo";
    const VERSION: u32 = 1;
}

/// Answers each message with its number.
async fn chat(socket: WebSocket) {
    let Some(count) = socket.state::<Count>() else {
        return;
    };
    let mut stream = socket.into_stream();
    // An error is the end of the connection, or of its life in this version.
    while let Ok(message) = frames::read(&mut stream).await {
        let Some(text) = message else {
            let _ = frames::write(&mut stream, Role::Server, None).await;
            return;
        };
        let number = {
            let mut count = count.lock();
            count.messages += 1;
            count.messages
        };
        let answer = format!("{number} {text}");
        if frames::write(&mut stream, Role::Server, Some(&answer))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// What it serves.
struct Site {
    content: Content,
    is_enough: watch::Receiver<bool>,
}

type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>;

impl Service<Request<RequestBody>> for Site {
    type Response = Response<BoxBody>;
    type Error = Infallible;
    type Future = Ready<Result<Response<BoxBody>, Infallible>>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        let path = request.uri().path();
        let response = if path == super::super::path(self.content.size()) {
            self.file(&request)
        } else if path == "/events" {
            self.events(&request)
        } else if path == "/chat" {
            chat_begins(&request)
        } else {
            Response::new(Box::pin("hello from the demo\n".to_owned()) as BoxBody)
        };
        ready(Ok(response))
    }
}

/// Where a response goes on: a byte of the file, the number of an event.
#[derive(Clone, Serialize, Deserialize)]
struct Place {
    at: u64,
}

/// A body that goes on from where the request says.
fn resumable<F>(
    request: &Request<RequestBody>,
    next: impl FnMut(Place) -> F + Send + 'static,
) -> Response<BoxBody>
where
    F: Future<Output = Result<Option<(Bytes, Place)>, Infallible>> + Send + 'static,
{
    let resumed = request.extensions().get::<Resumed>();
    match resumed.map_or(Ok(Place { at: 0 }), Resumed::cursor) {
        Ok(place) => Resumable::new(place, next)
            .response()
            .map(|body| Box::pin(body) as BoxBody),
        // Without a cursor the old version keeps it.
        Err(error) => Response::new(Box::pin(error.to_string())),
    }
}

impl Site {
    fn file(&self, request: &Request<RequestBody>) -> Response<BoxBody> {
        let content = self.content.clone();
        let size = content.size();
        let mut response = resumable(request, move |place: Place| {
            let data = content.frame(place.at);
            let at = place.at + data.len() as u64;
            ready(Ok((!data.is_empty()).then_some((data, Place { at }))))
        });
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
        response
    }

    /// Numbered events, until there are enough.
    fn events(&self, request: &Request<RequestBody>) -> Response<BoxBody> {
        let is_enough = self.is_enough.clone();
        let mut response = resumable(request, move |place: Place| {
            let is_enough = is_enough.clone();
            async move {
                tokio::time::sleep(EVENTS).await;
                let at = place.at + 1;
                let event = format!("id: {at}\ndata: this is event {at}\n\n");
                Ok((!*is_enough.borrow()).then_some((event.into(), Place { at })))
            }
        });
        let kind = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

fn chat_begins(request: &Request<RequestBody>) -> Response<BoxBody> {
    let mut response = Response::new(Box::pin(String::new()) as BoxBody);
    let key = request.headers().get("sec-websocket-key");
    let accept = key.map(|key| HeaderValue::try_from(frames::accept(key.as_bytes())));
    let Some(Ok(accept)) = accept else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert("sec-websocket-accept", accept);
    response
}
