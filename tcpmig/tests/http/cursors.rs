//! Responses of any kind that move with a cursor beside them: axum's events, a body from a channel.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{StreamExt, stream};
use tcpmig::http::{IntoMovable, Resume};
use tokio::sync::mpsc;

use crate::scene::{OnB, Scene, URL};
use crate::support::{kernel_test, numbered};

pub(crate) fn routes() -> Router {
    Router::new()
        .route("/sse/{count}", get(events))
        .route("/channel/{size}", get(channel))
        .route("/forgets", get(forgets))
        .route("/elsewhere", get(elsewhere))
}

async fn events(Path(count): Path<u64>, resume: Resume<u64>) -> Response {
    let begin = resume.cursor().unwrap_or(1);
    let at = resume.clone();
    let events = stream::unfold(begin, move |event| {
        // Before it waits: a comment that comes meanwhile takes it for nothing.
        at.set(event + 1);
        async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let text = Event::default()
                .id(event.to_string())
                .data(format!("this is event {event}"));
            (event <= count).then_some((Ok::<_, Infallible>(text), event + 1))
        }
    });
    let comments = KeepAlive::new().interval(Duration::from_millis(1));
    Sse::new(events).keep_alive(comments).movable(resume)
}

const PIECE: usize = 1000;

/// The task that makes the body is ahead of it.
async fn channel(Path(size): Path<u64>, resume: Resume<u64>) -> Response {
    let (sender, pieces) = mpsc::channel(100);
    let mut position = resume.cursor().unwrap_or(0);
    tokio::spawn(async move {
        while position < size {
            let len = PIECE.min((size - position) as usize);
            let piece = Bytes::from(numbered(position, len));
            position += len as u64;
            if sender.send((piece, position)).await.is_err() {
                break;
            }
        }
    });
    let at = resume.clone();
    let pieces = received(pieces).map(move |(piece, behind)| {
        at.set(behind);
        Ok::<_, Infallible>(piece)
    });
    Body::from_stream(pieces).movable(resume)
}

fn received<T>(receiver: mpsc::Receiver<T>) -> impl stream::Stream<Item = T> {
    stream::unfold(receiver, async |mut receiver| {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
}

fn endless() -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok(Bytes::from_static(b"x")), ()))
    })
}

async fn forgets(resume: Resume<u64>) -> Response {
    resume.set(1);
    Body::from_stream(endless()).movable(resume)
}

async fn elsewhere(resume: Resume<u64>) -> impl IntoResponse {
    let at = resume.clone();
    tokio::spawn(async move {
        for cursor in 0.. {
            at.set(cursor);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    Body::from_stream(endless()).movable(resume)
}

kernel_test!(events_of_axum_go_on_from_a_cursor, || {
    const EVENTS: usize = 4000;
    let mut scene = Scene::new();
    let mut curl = scene.curl(&[&format!("{URL}/sse/{EVENTS}")]);
    let mut text = Vec::new();
    for _ in 0..10 {
        text.extend(curl.read(2000));
        scene.hop();
    }
    text.extend(curl.end_of_curl(1));
    let text = String::from_utf8(text).unwrap();
    let mut events = text.lines().filter(|line| line.starts_with("data:"));
    for event in 1..=EVENTS {
        let expected = format!("data: this is event {event}");
        assert_eq!(events.next(), Some(&*expected));
    }
    assert_eq!(events.next(), None);
    assert!(text.contains("\n:\n"), "no comment was sent");
});

kernel_test!(a_body_from_a_channel_goes_on_from_a_cursor, || {
    const SIZE: usize = 60_000_000;
    let mut scene = Scene::new();
    let mut curl = scene.curl(&[&format!("{URL}/channel/{SIZE}")]);
    let mut body = Vec::new();
    for _ in 0..10 {
        body.extend(curl.read(SIZE / 16));
        scene.hop();
    }
    body.extend(curl.end_of_curl(1));
    assert!(body == numbered(0, SIZE), "{} bytes", body.len());
});

/// A response of a handler that makes a mistake stays, and goes on.
fn stays(path: &str, reason: &str) {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let mut curl = scene.curl(&[&format!("{URL}{path}")]);
    curl.read(10);
    let why = scene.stays();
    assert!(why.contains(reason), "{why}");
    curl.read(10);
    curl.0.kill().unwrap();
    curl.0.wait().unwrap();
}

kernel_test!(a_handler_that_forgets_its_cursor, || stays(
    "/forgets",
    "its handler has not set one"
));
kernel_test!(a_cursor_that_is_ahead_of_the_body, || stays(
    "/elsewhere",
    "set by another task"
));
