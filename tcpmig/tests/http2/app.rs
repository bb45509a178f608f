//! An axum application, some of whose responses can move.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tcpmig::http::{ConnectionState, IntoMovable, Movable, Resume, State};
use tokio::sync::Notify;

pub(crate) type App = TowerToHyperService<Router>;

/// What the application knows of a connection.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Visits {
    count: u64,
}

impl ConnectionState for Visits {
    const KIND: &'static str = "visits";
    const VERSION: u32 = 1;
}

/// An answer that takes until it is told to come.
#[derive(Default)]
pub(crate) struct Slow {
    pub(crate) begun: AtomicUsize,
    pub(crate) release: Notify,
}

/// The bytes of a file of this number, from a position on.
pub(crate) fn bytes(file: u64, from: u64, len: usize) -> Vec<u8> {
    let at = from..from + len as u64;
    // Positions and files that differ have bytes that differ.
    at.map(|at| (at ^ (at >> 8) ^ (at >> 16)).wrapping_add(file * 37) as u8)
        .collect()
}

/// How a file is sent: what its query says.
#[derive(Clone, Copy)]
struct Sending {
    len: u64,
    piece: u64,
    /// Before each piece, in milliseconds.
    wait: u64,
}

impl<S: Sync> FromRequestParts<S> for Sending {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        let said = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.find(|(named, _)| *named == name)?;
            Some(value.parse().unwrap())
        };
        Ok(Self {
            len: said("len").unwrap(),
            piece: said("piece").unwrap_or(10_000),
            wait: said("wait").unwrap_or(0),
        })
    }
}

pub(crate) fn app(name: &'static str, slow: Arc<Slow>) -> Movable<App> {
    let router = Router::new()
        .route("/", get(async move || name))
        .route("/visits", get(visits))
        .route("/file/{file}", get(file).post(posted))
        .route("/sized/{file}", get(sized))
        .route("/plain/{file}", get(plain))
        .route("/slow", get(slow_answer))
        .route("/echo", post(echo))
        .route("/upload", post(upload))
        .route("/headers", get(headers))
        .merge(crate::uploads::routes())
        .merge(crate::grpc::routes())
        .layer(Extension(slow));
    let movable = Movable::new(TowerToHyperService::new(router));
    movable
        .with_http2()
        .with_state::<Visits>()
        .settle(Duration::from_millis(20))
}

async fn visits(Extension(visits): Extension<State<Visits>>) -> String {
    let mut visits = visits.lock();
    visits.count += 1;
    visits.count.to_string()
}

fn pieces_of(
    file: u64,
    sending: Sending,
    resume: &Resume<u64>,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    resume.unfold(0, move |at| {
        let left = (sending.len - at).min(sending.piece);
        let wait = sending.wait;
        async move {
            if left == 0 {
                return None;
            }
            if wait > 0 {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            } else {
                tokio::task::yield_now().await;
            }
            let piece = bytes(file, at, usize::try_from(left).unwrap());
            Some((Ok(piece.into()), at + left))
        }
    })
}

async fn file(Path(file): Path<u64>, sending: Sending, resume: Resume<u64>) -> impl IntoResponse {
    let body = Body::from_stream(pieces_of(file, sending, &resume));
    body.movable(resume)
}

/// The same, for who reads a form first.
async fn posted(
    path: Path<u64>,
    sending: Sending,
    resume: Resume<u64>,
    form: Bytes,
) -> impl IntoResponse {
    assert_eq!(form, "a form");
    file(path, sending, resume).await
}

/// With its length.
async fn sized(Path(file): Path<u64>, sending: Sending, resume: Resume<u64>) -> impl IntoResponse {
    let length = [(header::CONTENT_LENGTH, sending.len)];
    let body = Body::from_stream(pieces_of(file, sending, &resume));
    (length, body).movable(resume)
}

/// It cannot move, and has trailers.
async fn plain(Path(file): Path<u64>, sending: Sending) -> impl IntoResponse {
    let resume = Resume::of_resumed(None).unwrap();
    let body = Body::from_stream(pieces_of(file, sending, &resume));
    let trailers = async {
        let trailer = (
            header::HeaderName::from_static("x-end"),
            header::HeaderValue::from(7),
        );
        Some(Ok(HeaderMap::from_iter([trailer])))
    };
    Response::new(Body::new(body.with_trailers(trailers)))
}

async fn slow_answer(Extension(slow): Extension<Arc<Slow>>) -> &'static str {
    let released = slow.release.notified();
    slow.begun.fetch_add(1, Ordering::Relaxed);
    released.await;
    "at last"
}

async fn echo(body: Bytes) -> Bytes {
    body
}

async fn upload(Extension(slow): Extension<Arc<Slow>>, body: Body) -> String {
    slow.begun.fetch_add(1, Ordering::Relaxed);
    body.collect().await.unwrap().to_bytes().len().to_string()
}

/// What the request has.
async fn headers(headers: HeaderMap) -> String {
    let mut lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.concat()
}
