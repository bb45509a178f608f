//! The demo's web server: hyper, with connections that move in the middle of a response.

use std::convert::Infallible;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tcpmig::driver::policy::{Policy, Rules};
use tcpmig::driver::{Acceptor, Arrived, Destination, Ending, Mover, Options};
use tcpmig::http::{Connection, Drained, Ended, Movable, RequestBody, Resumable, Resumed};
use tcpmig::steer::Redirected;
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::content::Content;
use super::messages::{Event, Setup};

/// Where the body of a download goes on.
#[derive(Clone, Serialize, Deserialize)]
struct Place {
    position: u64,
}

/// What one connection does now, shared between its bodies and its task.
#[derive(Default)]
struct Now {
    /// Octets of the body that hyper took.
    position: AtomicU64,
    /// Where the body stops for a move; `u64::MAX` for nowhere.
    stop_at: AtomicU64,
    stopped: Notify,
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
    let authorities = Authorities::from_pem(setup.authority.as_bytes())?;
    let trust = Trust::only(authorities, [&setup.other_name]);
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
    let check = server.movable(&Arc::default());
    let port = setup.service.port();
    let service = Rules::new()
        .local(setup.service.ip().into())
        .ports(port..=port);
    let mut arrivals = Acceptor::new(endpoint.clone(), locker)
        .options(options)
        .policy(Policy::new().others(service))
        .accept_if(move |offered| Ok(check.check(offered.layers)?))
        .serve();
    say(&Event::Ready)?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(accept(server.clone(), stream));
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
    let now = Arc::new(Now::default());
    match server.movable(&now).resume_arrived(arrived) {
        Ok(resumed) => connection(server, now, resumed).await,
        Err(error) => tracing::error!("a connection arrived that cannot go on: {error:#}"),
    }
}

async fn accept(server: Arc<Server>, stream: TcpStream) {
    let now = Arc::new(Now::default());
    match server.movable(&now).connection(stream) {
        Ok(accepted) => connection(server, now, accepted).await,
        Err(error) => tracing::error!("a connection cannot be served: {error:#}"),
    }
}

impl Server {
    /// Makes one connection movable.
    fn movable(self: &Arc<Self>, now: &Arc<Now>) -> Movable<FileService> {
        now.stop_at.store(self.stop_after(0), Ordering::Relaxed);
        Movable::new(FileService {
            server: self.clone(),
            now: now.clone(),
        })
        .settle(self.settle)
    }

    fn stop_after(&self, position: u64) -> u64 {
        let next = self.move_at.iter().find(|&&at| at > position);
        next.copied().unwrap_or(u64::MAX)
    }
}

/// Serves one connection, and moves it when its response reaches one of the positions.
async fn connection(server: Arc<Server>, now: Arc<Now>, first: Connection<FileService>) {
    let mut next = Some(first);
    while let Some(connection) = next.take() {
        match connection.run(now.stopped.notified()).await {
            Ok(Ended::Drained(drained)) => {
                let stopped_at = now.stop_at.load(Ordering::Relaxed);
                next = depart(&server, &now, drained).await;
                // A connection that was kept is not moved again at the same place.
                let stop_at = server.stop_after(stopped_at);
                now.stop_at.store(stop_at, Ordering::Relaxed);
            }
            Ok(Ended::Busy(connection, _)) => next = Some(connection),
            Ok(Ended::Closed | Ended::Upgraded(_)) => {}
            Err(error) => tracing::debug!(%error, "a connection ended"),
        }
    }
}

/// Serves the file.
struct FileService {
    server: Arc<Server>,
    now: Arc<Now>,
}

impl Service<Request<RequestBody>> for FileService {
    type Response = Response<BoxBody>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<BoxBody>, Infallible>>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        std::future::ready(Ok(self.respond(&request)))
    }
}

type BoxBody = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible> + Send>>;

impl FileService {
    fn respond(&self, request: &Request<RequestBody>) -> Response<BoxBody> {
        let found = request.uri().path() == self.server.path;
        let content = if found {
            self.server.content.clone()
        } else {
            Content::new(0)
        };
        let resumed = request.extensions().get::<Resumed>();
        let place = resumed.map_or(Ok(Place { position: 0 }), Resumed::cursor);
        let Ok(place) = place else {
            // Without a cursor the connection is closed.
            return Response::new(Box::pin(String::new()));
        };
        self.now.position.store(place.position, Ordering::Relaxed);
        if resumed.is_some() {
            let stop_at = self.server.stop_after(place.position);
            self.now.stop_at.store(stop_at, Ordering::Relaxed);
        }
        let total = content.size();
        let now = self.now.clone();
        let body = Resumable::new(place, move |place: Place| {
            let (now, content) = (now.clone(), content.clone());
            async move { Ok(now.next(&content, place.position).await) }
        });
        let mut response = body.response().map(|body| Box::pin(body) as BoxBody);
        if !found {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(total));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        response
    }
}

impl Now {
    async fn next(&self, content: &Content, position: u64) -> Option<(Bytes, Place)> {
        self.position.store(position, Ordering::Relaxed);
        if position >= content.size() {
            return None;
        }
        if position >= self.stop_at.load(Ordering::Relaxed) {
            // The connection's task drains it now, which ends this body.
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
        let data = content.frame(position);
        let position = position + data.len() as u64;
        self.position.store(position, Ordering::Relaxed);
        Some((data, Place { position }))
    }
}

/// Moves a drained connection; gives it back if it was kept.
async fn depart(
    server: &Arc<Server>,
    now: &Arc<Now>,
    drained: Drained,
) -> Option<Connection<FileService>> {
    let position = now.position.load(Ordering::Relaxed);
    let session = drained.session;
    let layer = match session.to_layer() {
        Ok(layer) => layer,
        Err(error) => {
            tracing::error!("the session has no image: {error:#}");
            return None;
        }
    };
    let socket: OwnedFd = match drained.stream.into_std() {
        Ok(stream) => stream.into(),
        Err(error) => {
            tracing::error!("the socket was not given back: {error}");
            return None;
        }
    };
    let outcome = server.mover.move_out(socket, Some(layer), &server.to).await;
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let event = match outcome.ending {
        Ending::Moved => Event::Moved {
            position,
            report: outcome.report,
            at_us: since.as_micros() as u64,
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
            let stream = std::net::TcpStream::from(socket);
            let stream = stream.set_nonblocking(true).map(|()| stream);
            let kept = stream
                .and_then(TcpStream::from_std)
                .map_err(Into::into)
                .and_then(|stream| server.movable(now).resume(stream, session));
            return kept
                .inspect_err(|error| tracing::error!("the connection cannot go on: {error}"))
                .ok();
        }
    };
    if let Err(error) = say(&event) {
        tracing::error!("{error:#}");
    }
    None
}
