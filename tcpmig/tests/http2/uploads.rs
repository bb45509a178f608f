//! Requests that move in the middle of their bodies.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::post;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tcpmig::http::{Cursor, IntoMovable, Obstacle, Resume, Upload};
use tokio::sync::Mutex;

use crate::app::{Slow, bytes};
use crate::client::Client;
use crate::host::{Hosts, in_time, moment};

/// Which file the bodies are.
pub(crate) const FILE: u64 = 6;

pub(crate) fn routes() -> Router {
    Router::new()
        .route("/consume", post(consume))
        .route("/lag", post(lag))
        .route("/both", post(both))
}

/// What a handler has read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Consumed {
    len: u64,
}

impl Cursor for Consumed {
    const KIND: &'static str = "consumed";
    const VERSION: u32 = 1;
}

impl Consumed {
    /// The body goes on with this.
    fn add(&mut self, piece: &[u8]) {
        let expected = bytes(FILE, self.len, piece.len());
        assert!(piece == expected, "at {}", self.len);
        self.len += piece.len() as u64;
    }
}

async fn next(body: &mut Body) -> Option<Bytes> {
    let frame = body.frame().await?.unwrap();
    Some(frame.into_data().expect("no trailers"))
}

/// Says what it has read, piece by piece.
async fn consume(
    Extension(slow): Extension<Arc<Slow>>,
    upload: Upload<Consumed>,
    headers: HeaderMap,
    mut body: Body,
) -> String {
    slow.begun.fetch_add(1, Ordering::Relaxed);
    let mut consumed = upload.cursor().unwrap_or_default();
    let length = headers.get(header::CONTENT_LENGTH).cloned();
    while let Some(piece) = next(&mut body).await {
        consumed.add(&piece);
        tokio::time::sleep(Duration::from_millis(1)).await;
        upload.set(&consumed);
    }
    if let Some(length) = length {
        assert_eq!(length, consumed.len.to_string());
    }
    consumed.len.to_string()
}

/// Says it now and then, and not of all that it has read.
async fn lag(
    Extension(slow): Extension<Arc<Slow>>,
    upload: Upload<Consumed>,
    mut body: Body,
) -> String {
    slow.begun.fetch_add(1, Ordering::Relaxed);
    let mut consumed = upload.cursor().unwrap_or_default();
    let mut read = Vec::new();
    while let Some(piece) = next(&mut body).await {
        read.extend_from_slice(&piece);
        while read.len() > 100_000 {
            let done: Vec<_> = read.drain(..70_001).collect();
            consumed.add(&done);
            upload.set_behind(&consumed, done.len());
        }
    }
    consumed.add(&read);
    consumed.len.to_string()
}

/// Answers with what it reads.
async fn both(resume: Resume<u64>, upload: Upload<u64>, body: Body) -> impl IntoResponse {
    let body = Arc::new(Mutex::new(body));
    let pieces = resume.unfold(0, move |count| {
        let (body, upload) = (body.clone(), upload.clone());
        async move {
            let piece = next(&mut *body.lock().await).await?;
            let count = count + piece.len() as u64;
            upload.set(&count);
            Some((Ok::<_, Infallible>(piece), count))
        }
    });
    Body::from_stream(pieces).movable(resume)
}

/// An upload of so many bytes in pieces of this size, while the connection moves again and again.
async fn upload(route: &str, len: usize, piece: usize, moves: usize) -> String {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = client.post_sized(route, len).await;
    let each = len / (moves + 1);
    let content = bytes(FILE, 0, len);
    let mut parts = content.chunks(each).peekable();
    while let Some(part) = parts.next() {
        for piece in part.chunks(piece) {
            body.send_data(Bytes::copy_from_slice(piece), false)
                .unwrap();
        }
        if parts.peek().is_some() {
            begun(&hosts, 1).await;
            moment().await;
            hosts.hop().await;
        }
    }
    body.send_data(Bytes::new(), true).unwrap();
    let (said, _) = answer.body().await.whole().await;
    assert_eq!(hosts.others().await, 0);
    // Its handler was begun again at each host.
    assert_eq!(hosts.begun(), moves + 1);
    String::from_utf8(said).unwrap()
}

async fn begun(hosts: &Hosts, count: usize) {
    let have_begun = async {
        while hosts.begun() < count {
            moment().await;
        }
    };
    in_time(have_begun).await;
}

#[tokio::test]
async fn an_upload_moves_in_its_middle() {
    for piece in [700, 20_000] {
        let said = upload("/consume", 1_000_000, piece, 9).await;
        assert_eq!(said, "1000000");
    }
}

#[tokio::test]
async fn what_was_read_and_not_consumed_is_read_again() {
    let said = upload("/lag", 4_000_000, 9_999, 9).await;
    assert_eq!(said, "4000000");
}

#[tokio::test]
async fn uploads_and_downloads_move_at_once() {
    const LEN: usize = 3_000_000;
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let mut bodies = Vec::new();
    let mut answers = Vec::new();
    for route in ["/consume", "/lag", "/consume", "/lag"] {
        let (answer, mut body) = client.post(route).await;
        // As fast as the windows let it.
        body.send_data(bytes(FILE, 0, LEN).into(), false).unwrap();
        bodies.push(body);
        answers.push(answer);
    }
    let download = client.get("/file/3?len=2000000&wait=1").await.body().await;
    // What is not read of it holds the answers up.
    let download = tokio::spawn(download.whole());
    begun(&hosts, 4).await;
    for _ in 0..20 {
        hosts.hop().await;
        moment().await;
    }
    assert_eq!(hosts.begun(), 4 * 21);
    for mut body in bodies {
        body.send_data(Bytes::new(), true).unwrap();
    }
    for answer in answers {
        let (said, _) = answer.body().await.whole().await;
        assert_eq!(said, b"3000000");
    }
    assert!(in_time(download).await.unwrap().0 == bytes(3, 0, 2_000_000));
    assert_eq!(client.text("/").await, "a");
}

#[tokio::test]
async fn a_stream_moves_in_the_middle_of_both_its_bodies() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = client.post("/both").await;
    // The head comes with the first piece at the latest.
    body.send_data("begin".into(), false).unwrap();
    let mut reading = answer.body().await;
    assert_eq!(reading.next().await.unwrap(), "begin");
    for round in 0..20 {
        let sent = bytes(round, 0, 100_000);
        body.send_data(sent.clone().into(), false).unwrap();
        let moving = hosts.hop();
        let reads = async {
            let mut got = Vec::new();
            while got.len() < sent.len() {
                got.extend_from_slice(&reading.next().await.unwrap());
            }
            got
        };
        let (_, got) = tokio::join!(moving, reads);
        assert!(got == sent, "round {round}");
    }
    body.send_data("end".into(), true).unwrap();
    assert_eq!(reading.whole().await.0, b"end");
}

#[tokio::test]
async fn an_upload_whose_peer_is_gone_from_it_ends_alone() {
    let hosts = Hosts::new().await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = client.post("/consume").await;
    body.send_data(bytes(FILE, 0, 100_000).into(), false)
        .unwrap();
    hosts.hop().await;
    body.send_data(bytes(FILE, 100_000, 1000).into(), false)
        .unwrap();
    body.send_reset(h2::Reason::CANCEL);
    drop(answer);
    hosts.hop().await;
    assert_eq!(client.text("/").await, "a");
}

/// A drain that is given up leaves the body as it was.
#[tokio::test]
async fn an_upload_that_stays_goes_on() {
    let hosts = Hosts::with(|movable| movable.drain_within(Duration::from_millis(200))).await;
    let client = Client::new(hosts.address).await;
    let (answer, mut body) = client.post("/consume").await;
    let slow = client.get("/slow").await;
    begun(&hosts, 2).await;
    let content = bytes(FILE, 0, 500_000);
    let (first, second) = content.split_at(200_000);
    body.send_data(Bytes::copy_from_slice(first), false)
        .unwrap();
    let moving = hosts.try_move();
    let sends = async {
        moment().await;
        // It is held back.
        for piece in second.chunks(1000) {
            body.send_data(Bytes::copy_from_slice(piece), false)
                .unwrap();
        }
    };
    let (moved, ()) = tokio::join!(moving, sends);
    assert_eq!(moved, Err(Obstacle::Service));
    body.send_data(Bytes::new(), true).unwrap();
    let (said, _) = answer.body().await.whole().await;
    assert_eq!(said, b"500000");
    hosts.slow.release.notify_waiters();
    assert_eq!(in_time(slow.body()).await.whole().await.0, b"at last");
    hosts.hop().await;
    assert_eq!(client.text("/").await, "b");
}
