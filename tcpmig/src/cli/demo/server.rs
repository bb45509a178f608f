//! The demo's web server: hyper, with connections that move in the middle of a response.

use std::convert::Infallible;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tcpmig::driver::{Arrived, Destination, Ending, Mover, Options, serve};
use tcpmig::http::{Drain, Drained, Driven, Gate, drive};
use tcpmig::steer::Redirected;
use tcpmig_format::{AppImage, Octets};
use tcpmig_transport::{Endpoint, Identity, TransportLimits, Trust};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::content::Content;
use super::messages::{Event, Setup};

const KIND: &str = "tcpmig-demo-http";
const VERSION: u32 = 1;

/// The server's own session state: what travels with the connection.
#[derive(Debug, Serialize, Deserialize)]
struct Session {
    /// The response in the middle, if there is one.
    response: Option<InMiddle>,
    /// Octets read and not used.
    unread: serde_bytes::ByteBuf,
    /// Octets of the response that wait to be written.
    unwritten: serde_bytes::ByteBuf,
}

/// A response that is in the middle.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct InMiddle {
    /// Which file.
    path: String,
    /// How far the body was given to hyper.
    position: u64,
    /// The content-length that was promised.
    total: u64,
}

impl Session {
    fn to_image(&self) -> anyhow::Result<AppImage> {
        Ok(AppImage {
            kind: KIND.to_owned(),
            version: VERSION,
            payload: Octets::from(rmp_serde::to_vec_named(self)?),
        })
    }

    fn from_image(image: &AppImage) -> anyhow::Result<Self> {
        anyhow::ensure!(
            image.kind == KIND && image.version == VERSION,
            "session state of kind {:?} version {} is not known here",
            image.kind,
            image.version
        );
        Ok(rmp_serde::from_slice(&image.payload)?)
    }
}

/// What one connection does now, shared between its service, its bodies and its task.
#[derive(Default)]
struct Now {
    response: Mutex<Option<InMiddle>>,
    /// Where the body stops for a move; `u64::MAX` for nowhere.
    stop_at: AtomicU64,
    stopped: tokio::sync::Notify,
}

impl Now {
    fn response(&self) -> MutexGuard<'_, Option<InMiddle>> {
        // A panic elsewhere leaves whole values only.
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rest of a file.
struct FileBody {
    content: Content,
    position: u64,
    now: Arc<Now>,
    drain: Drain,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.position >= self.content.size() {
            return Poll::Ready(None);
        }
        if self.drain.is_on() || self.position >= self.now.stop_at.load(Ordering::Relaxed) {
            // The connection's task drains it now, which ends this body.
            self.now.stopped.notify_one();
            return Poll::Pending;
        }
        let data = self.content.frame(self.position);
        self.position += data.len() as u64;
        if let Some(response) = &mut *self.now.response() {
            response.position = self.position;
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.position >= self.content.size()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.size() - self.position)
    }
}

/// Everything that the connections of one server share.
struct Server {
    content: Content,
    path: String,
    move_at: Vec<u64>,
    settle: Duration,
    mover: Mover,
    to: Destination,
}

/// Serves until standard input ends.
pub(crate) async fn run() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let setup = lines
        .next_line()
        .await?
        .context("no set-up on standard input")?;
    let setup: Setup = serde_json::from_str(&setup).context("set-up")?;
    let identity = Identity::from_pem(setup.certificate.as_bytes(), setup.key.as_bytes())?;
    let trust = Trust::from_pem(setup.authority.as_bytes())?.allow(&setup.other_name);
    let endpoint = Endpoint::bind(setup.own, &identity, &trust, TransportLimits::default())?;
    let locker = super::lock::open(&setup)?;
    let settle = Duration::from_millis(setup.settle_ms);
    let options = Options {
        settle,
        ..Options::default()
    };
    let steer = Redirected::new(setup.hop, options.redirect_lease)?;
    let server = Arc::new(Server {
        content: Content::new(setup.size),
        path: super::path(setup.size),
        move_at: setup.move_at,
        settle,
        mover: Mover::new(endpoint.clone(), locker.clone(), options.clone()),
        to: Destination {
            address: setup.other,
            name: setup.other_name,
            steer: Arc::new(steer),
        },
    });
    let listener = TcpListener::bind(setup.service)
        .await
        .with_context(|| format!("listen on {}", setup.service))?;
    let mut arrivals = serve(endpoint.clone(), locker, options);
    say(&Event::Ready)?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(connection(server.clone(), stream, None));
            }
            Some(arrived) = arrivals.next() => {
                tokio::spawn(arrive(server.clone(), arrived));
            }
            line = lines.next_line() => if !matches!(line, Ok(Some(_))) {
                endpoint.close("the demo is over").await;
                return Ok(());
            },
        }
    }
}

fn say(event: &Event) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    std::io::stdout().write_all(&line)?;
    Ok(std::io::stdout().flush()?)
}

async fn arrive(server: Arc<Server>, arrived: Arrived) {
    let resumed = arrived
        .app
        .as_ref()
        .context("the connection came without session state")
        .and_then(Session::from_image)
        .and_then(|mut session| {
            // What TCP could not take comes before what hyper had not written.
            let unwritten = [&arrived.unwritten[..], &session.unwritten[..]].concat();
            session.unwritten = unwritten.into();
            Ok((into_stream(arrived.socket)?, session))
        });
    match resumed {
        Ok((stream, session)) => connection(server, stream, Some(session)).await,
        Err(error) => tracing::error!("a connection arrived that cannot go on: {error:#}"),
    }
}

fn into_stream(socket: OwnedFd) -> std::io::Result<TcpStream> {
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Serves one connection, and moves it when its response reaches one of the positions.
async fn connection(server: Arc<Server>, stream: TcpStream, session: Option<Session>) {
    let mut next = Some((stream, session));
    let mut after = None;
    while let Some((stream, session)) = next.take() {
        let now = Arc::new(Now::default());
        let resumed = session.as_ref().and_then(|s| s.response.clone());
        let position = resumed.as_ref().map_or(0, |response| response.position);
        let stop_at = server
            .move_at
            .iter()
            .find(|&&at| at > after.unwrap_or(position));
        let stop_at = stop_at.copied().unwrap_or(u64::MAX);
        now.stop_at.store(stop_at, Ordering::Relaxed);
        match run_http(&server, &now, stream, session, resumed).await {
            Ok(Driven::Closed) => {}
            Ok(Driven::Drained(drained)) => {
                next = depart(&server, &now, drained).await;
                // A connection that was kept is not moved again at the same place.
                after = Some(stop_at);
            }
            Err(error) => tracing::debug!(%error, "a connection ended"),
        }
    }
}

async fn run_http(
    server: &Arc<Server>,
    now: &Arc<Now>,
    stream: TcpStream,
    session: Option<Session>,
    resumed: Option<InMiddle>,
) -> hyper::Result<Driven> {
    let gate = match session {
        None => Gate::new(stream),
        Some(session) => {
            let request = resumed
                .as_ref()
                .map(|r| format!("GET {} HTTP/1.1\r\nhost: resumed\r\n\r\n", r.path));
            let request = request.as_ref().map(String::as_bytes);
            Gate::resume(stream, request, &session.unread, &session.unwritten)
        }
    };
    let drain = gate.drain();
    let first = Mutex::new(resumed);
    let service = service_fn(|request: Request<Incoming>| {
        let resumed = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let response = respond(server, now, &drain, &request, resumed);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(gate), service);
    drive(connection, &drain, now.stopped.notified(), server.settle).await
}

fn respond(
    server: &Server,
    now: &Arc<Now>,
    drain: &Drain,
    request: &Request<Incoming>,
    resumed: Option<InMiddle>,
) -> Response<FileBody> {
    let found = request.uri().path() == server.path;
    let content = if found {
        server.content.clone()
    } else {
        Content::new(0)
    };
    let total = content.size();
    let position = resumed.map_or(0, |response| response.position);
    *now.response() = Some(InMiddle {
        path: request.uri().path().to_owned(),
        position,
        total,
    });
    let mut response = Response::new(FileBody {
        content,
        position,
        now: now.clone(),
        drain: drain.clone(),
    });
    if !found {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(total - position));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    response
}

/// Moves a drained connection; gives it back if it was kept.
async fn depart(
    server: &Server,
    now: &Now,
    drained: Drained,
) -> Option<(TcpStream, Option<Session>)> {
    let response = now.response().take();
    let position = response.as_ref().map_or(0, |response| response.position);
    let session = Session {
        response,
        unread: drained.unread.to_vec().into(),
        unwritten: drained.unwritten.to_vec().into(),
    };
    let app = match session.to_image() {
        Ok(app) => app,
        Err(error) => {
            tracing::error!("the session has no image: {error:#}");
            return Some((drained.stream, Some(session)));
        }
    };
    let socket: OwnedFd = match drained.stream.into_std() {
        Ok(stream) => stream.into(),
        Err(error) => {
            tracing::error!("the socket was not given back: {error}");
            return None;
        }
    };
    let outcome = server.mover.move_out(socket, Some(app), &server.to).await;
    let event = match outcome.ending {
        Ending::Moved => Event::Moved {
            position,
            report: outcome.report,
        },
        Ending::Lost(reason) => {
            tracing::error!("the connection was lost: {reason}");
            Event::InDoubt { position }
        }
        Ending::InDoubt(doubt) => {
            // Nothing is left to do here but to keep asking; the demo says so and ends.
            drop(doubt);
            Event::InDoubt { position }
        }
        Ending::Kept { socket, reason, .. } => {
            let event = Event::Kept {
                position,
                reason: reason.to_string(),
            };
            if let Err(error) = say(&event) {
                tracing::error!("{error:#}");
            }
            return match into_stream(socket) {
                Ok(stream) => Some((stream, Some(session))),
                Err(error) => {
                    tracing::error!("the kept socket cannot be used: {error}");
                    None
                }
            };
        }
    };
    if let Err(error) = say(&event) {
        tracing::error!("{error:#}");
    }
    None
}
