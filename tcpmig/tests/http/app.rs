//! An axum application whose responses and connections can move.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Extension, Path};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tcpmig::http::{ConnectionState, Movable, Resumable, Resumed, State};
use tokio::sync::Notify;
use tower_http::compression::CompressionLayer;

use crate::support::numbered;

pub(crate) type App = TowerToHyperService<Router>;

/// What the application knows of a connection.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Visits {
    pub(crate) count: u64,
    /// Of a message that the server sends in fragments: how many it has sent, how many there are, of how
    /// many bytes each.
    pub(crate) fragments: Option<[usize; 3]>,
}

impl ConnectionState for Visits {
    const KIND: &'static str = "visits";
    const VERSION: u32 = 1;
}

/// The next version of it.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct NewVisits {
    since: String,
}

impl ConnectionState for NewVisits {
    const KIND: &'static str = "visits";
    const VERSION: u32 = 2;
}

#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) slow: Arc<Slow>,
}

/// An answer that takes until it is told to come.
#[derive(Default)]
pub(crate) struct Slow {
    pub(crate) begun: AtomicUsize,
    pub(crate) release: Notify,
}

/// The application on the host of this name; and when its slow answers come.
pub(crate) fn app(name: &'static str, slow: Arc<Slow>) -> Movable<App> {
    app_with(crate::more_routes(), get(file), name, slow)
}

/// The same, but for its files and the routes that are described beside their tests.
pub(crate) fn app_with(
    more: Router,
    file: MethodRouter,
    name: &'static str,
    slow: Arc<Slow>,
) -> Movable<App> {
    let router = Router::new()
        .route("/file/{size}", file)
        .route("/chunked/{size}", get(chunked))
        .route(
            "/compressed-ticks/{count}",
            get(ticks).layer(CompressionLayer::new()),
        )
        .route("/events/{count}", get(events))
        .route("/plain/{size}", get(plain))
        .route("/upload", post(upload))
        .route("/early/{size}", post(plain))
        .route("/ignore", post(async || "ignored"))
        .route("/who", get(who))
        .route("/slow", get(slow_answer))
        .route("/chat", get(crate::chat::upgrade))
        .route("/axum", get(axums_websocket))
        .route("/compressed", get(crate::chat::upgrade_compressed))
        .route(
            "/not-modified",
            get(async || axum::http::StatusCode::NOT_MODIFIED),
        )
        .merge(more)
        .layer(Extension(Host { name, slow }));
    Movable::new(TowerToHyperService::new(router))
        .settle(Duration::from_millis(20))
        .answer_within(crate::support::PATIENCE)
}

#[derive(Clone, Serialize, Deserialize)]
struct Place {
    position: u64,
}

const FRAME: u64 = 10_000;

fn numbers(size: u64, resumed: Option<Extension<Resumed>>) -> Response {
    let place = match resumed.map(|resumed| resumed.cursor()) {
        None => Place { position: 0 },
        Some(Ok(place)) => place,
        Some(Err(error)) => return error.to_string().into_response(),
    };
    let body = Resumable::new(place, move |place: Place| async move {
        let len = FRAME.min(size - place.position);
        let position = place.position + len;
        let bytes = Bytes::from(numbered(place.position, len as usize));
        Ok::<_, Infallible>((len > 0).then_some((bytes, Place { position })))
    });
    body.response().into_response()
}

async fn file(Path(size): Path<u64>, resumed: Option<Extension<Resumed>>) -> Response {
    let mut response = numbers(size, resumed);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, size.into());
    response
}

async fn chunked(Path(size): Path<u64>, resumed: Option<Extension<Resumed>>) -> Response {
    numbers(size, resumed)
}

async fn events(Path(count): Path<u64>, resumed: Option<Extension<Resumed>>) -> Response {
    let mut response = ticks(Path(count), resumed).await;
    let kind = header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn ticks(Path(count): Path<u64>, resumed: Option<Extension<Resumed>>) -> Response {
    let next: u64 = resumed.map_or(1, |resumed| resumed.cursor().unwrap());
    let body = Resumable::new(next, move |event: u64| async move {
        if event > count {
            return Ok::<_, Infallible>(None);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let text = format!("id: {event}\ndata: this is event {event}\n\n");
        Ok(Some((text.into(), event + 1)))
    });
    body.response().into_response()
}

async fn plain(Path(size): Path<usize>) -> Vec<u8> {
    numbered(0, size)
}

async fn upload(body: Bytes) -> String {
    let right = body[..] == numbered(0, body.len());
    format!("{} {right}\n", body.len())
}

async fn who(
    Extension(host): Extension<Host>,
    state: Option<Extension<State<Visits>>>,
    headers: HeaderMap,
) -> String {
    let count = state.map_or(0, |state| {
        let mut visits = state.lock();
        visits.count += 1;
        visits.count
    });
    let said = headers.get("x-say").map_or("", |say| say.to_str().unwrap());
    format!("{} {count} {said}\n", host.name)
}

async fn slow_answer(Extension(host): Extension<Host>) -> &'static str {
    host.slow.begun.fetch_add(1, Ordering::Relaxed);
    host.slow.release.notified().await;
    "at last\n"
}

/// An echo by axum's own means, which knows nothing of moves.
async fn axums_websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, Message::Text(_) | Message::Binary(_)) {
                // The end of the connection is found out above.
                let _ = socket.send(message).await;
            }
        }
    })
}
