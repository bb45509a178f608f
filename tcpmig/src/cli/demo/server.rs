//! The demo's web server: hyper, with connections that move in the middle of a response.

use std::convert::Infallible;
use std::io::Write;
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
use tcpmig::driver::{Acceptor, Arrived, Destination, Mover, Options};
use tcpmig::http::{Connection, Drained, Ended, Movable, RequestBody, Resumable, Resumed};
use tcpmig::session::{Carriers, Departed, Tcp, Way};
use tcpmig::steer::Redirected;
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
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
    /// Bytes of the body that hyper took.
    position: AtomicU64,
    /// Where the body stops for a move; `u64::MAX` for nowhere.
    stop_at: AtomicU64,
    stopped: Notify,
}

/// Everything that the connections of one server share.
struct Server<K> {
    files: Arc<Files>,
    carriers: K,
    settle: Duration,
    mover: Mover,
    to: Destination,
}

/// What it serves.
struct Files {
    content: Content,
    path: String,
    move_at: Vec<u64>,
}

/// A connection over one of these.
type Served<K> = Connection<FileService, <K as Carriers>::Carrier>;

/// Serves until standard input ends.
pub(crate) async fn run() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let setup = lines
        .next_line()
        .await?
        .context("no set-up on standard input")?;
    let setup: Setup = serde_json::from_str(&setup).context("set-up")?;
    match &setup.web {
        None => serve(Tcp, setup, lines).await,
        Some(web) => serve(web.carriers()?, setup, lines).await,
    }
}

async fn serve<K: Carriers + Clone>(
    carriers: K,
    setup: Setup,
    mut lines: Lines<BufReader<Stdin>>,
) -> anyhow::Result<()> {
    let identity = Identity::from_pem(setup.certificate.as_bytes(), setup.key.as_bytes())?;
    let authorities = Authorities::from_pem(setup.authority.as_bytes())?;
    let trust = Trust::only(authorities, [&setup.other_name]);
    let endpoint = Endpoint::bind(setup.own, &identity, &trust, TransportLimits::default())?;
    let locker = super::lock::open(&setup)?;
    let settle = Duration::from_millis(setup.settle_ms);
    let mut options = Options::default();
    options.settle = settle;
    let steer = Redirected::new(setup.hop, options.redirect_lease)?;
    let server = Arc::new(Server {
        files: Arc::new(Files {
            content: Content::new(setup.size),
            path: super::path(setup.size),
            move_at: setup.move_at,
        }),
        carriers,
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

async fn arrive<K: Carriers + Clone>(server: Arc<Server<K>>, arrived: Arrived) {
    let now = Arc::new(Now::default());
    match server.movable(&now).resume_arrived(arrived) {
        Ok(resumed) => connection(server, now, resumed).await,
        Err(error) => tracing::error!("a connection arrived that cannot go on: {error:#}"),
    }
}

async fn accept<K: Carriers + Clone>(server: Arc<Server<K>>, stream: TcpStream) {
    let now = Arc::new(Now::default());
    let movable = server.movable(&now);
    let accepted = movable.accept(stream).await;
    match accepted.and_then(|carrier| movable.connection(carrier)) {
        Ok(accepted) => connection(server, now, accepted).await,
        Err(error) => tracing::error!("a connection cannot be served: {error:#}"),
    }
}

impl<K: Carriers + Clone> Server<K> {
    /// Makes one connection movable.
    fn movable(&self, now: &Arc<Now>) -> Movable<FileService, K> {
        let stop_at = self.files.stop_after(0);
        now.stop_at.store(stop_at, Ordering::Relaxed);
        let service = FileService {
            files: self.files.clone(),
            now: now.clone(),
        };
        Movable::new(service)
            // For whoever negotiates it.
            .with_http2()
            .settle(self.settle)
            .over(self.carriers.clone())
    }
}

impl Files {
    fn stop_after(&self, position: u64) -> u64 {
        let next = self.move_at.iter().find(|&&at| at > position);
        next.copied().unwrap_or(u64::MAX)
    }
}

/// Serves one connection, and moves it when its response reaches one of the positions.
async fn connection<K: Carriers + Clone>(server: Arc<Server<K>>, now: Arc<Now>, first: Served<K>) {
    let mut next = Some(first);
    while let Some(connection) = next.take() {
        match connection.run(now.stopped.notified()).await {
            Ok(Ended::Drained(drained)) => {
                let stopped_at = now.stop_at.load(Ordering::Relaxed);
                next = depart(&server, &now, drained).await;
                // A connection that was kept is not moved again at the same place.
                let stop_at = server.files.stop_after(stopped_at);
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
    files: Arc<Files>,
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
        let found = request.uri().path() == self.files.path;
        let content = if found {
            self.files.content.clone()
        } else {
            Content::new(0)
        };
        let resumed = request.extensions().get::<Resumed>();
        let place = resumed.map_or(Ok(Place { position: 0 }), Resumed::cursor);
        let Ok(place) = place else {
            // Without a cursor the connection is closed.
            return Response::new(Box::pin(String::new()));
        };
        // Of several downloads the one without a query says where the connection moves.
        let leads = request.uri().query().is_none();
        if leads {
            self.now.position.store(place.position, Ordering::Relaxed);
        }
        if leads && resumed.is_some() {
            let stop_at = self.files.stop_after(place.position);
            self.now.stop_at.store(stop_at, Ordering::Relaxed);
        }
        let total = content.size();
        let now = leads.then(|| self.now.clone());
        let body = Resumable::new(place, move |place: Place| {
            let (now, content) = (now.clone(), content.clone());
            async move { Ok(next(now.as_deref(), &content, place.position).await) }
        });
        let mut response = body.response().map(|body| Box::pin(body) as BoxBody);
        if !found {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(total));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/byte-stream"),
        );
        response
    }
}

/// The next piece of a body, if it has not ended.
async fn next(now: Option<&Now>, content: &Content, position: u64) -> Option<(Bytes, Place)> {
    if let Some(now) = now {
        now.position.store(position, Ordering::Relaxed);
    }
    if position >= content.size() {
        return None;
    }
    if let Some(now) = now
        && position >= now.stop_at.load(Ordering::Relaxed)
    {
        // The connection's task drains it now, which ends this body.
        now.stopped.notify_one();
        std::future::pending::<()>().await;
    }
    let data = content.frame(position);
    let position = position + data.len() as u64;
    if let Some(now) = now {
        now.position.store(position, Ordering::Relaxed);
    }
    Some((data, Place { position }))
}

/// Moves a drained connection; gives it back if it was kept.
async fn depart<K: Carriers + Clone>(
    server: &Server<K>,
    now: &Arc<Now>,
    drained: Drained<K::Carrier>,
) -> Option<Served<K>> {
    let position = now.position.load(Ordering::Relaxed);
    let parts = match drained.into_parts() {
        Ok(parts) => parts,
        Err(error) => {
            tracing::error!("the connection cannot be taken apart: {error:#}");
            return None;
        }
    };
    let departed = server.mover.depart(parts, &server.to).await;
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let event = match departed {
        Departed::Moved(report) => Event::Moved {
            position,
            report,
            at_us: since.as_micros() as u64,
        },
        Departed::Lost(reason) => {
            tracing::error!("the connection was lost: {reason}");
            Event::InDoubt { position }
        }
        Departed::InDoubt(doubt) => {
            // Nothing is left to do here but to keep asking; the demo says so and ends.
            drop(doubt);
            Event::InDoubt { position }
        }
        Departed::Kept { parts, cause } => {
            let event = Event::Kept {
                position,
                reason: cause.to_string(),
            };
            if let Err(error) = say(&event) {
                tracing::error!("{error:#}");
            }
            let kept = server.movable(now).resume_parts(parts);
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
