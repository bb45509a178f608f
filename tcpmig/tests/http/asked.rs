//! Targets whose service is asked before a connection in the middle of a response leaves its source.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tcpmig::http::{Cursor, IntoMovable, Resume};

use crate::requests::connect;
use crate::scene::{OnB, Scene, URL};
use crate::support::{kernel_test, numbered};

const SIZE: usize = 40_000_000;

/// The connection stays, for this reason, and the download on it comes to its end.
fn stays(file: MethodRouter, words: &[&str]) {
    let scene = Scene::with(&OnB::Asked(Box::new(file)), Duration::from_secs(5));
    let mut curl = scene.curl(&[&format!("{URL}/file/{SIZE}")]);
    let mut body = curl.read(1_000_000);
    let why = scene.stays();
    for word in words {
        assert!(why.contains(word), "{word:?} is not in {why:?}");
    }
    body.extend(curl.end_of_curl(1));
    assert!(body == numbered(0, SIZE), "{} bytes", body.len());
    assert!(scene.errors.lock().unwrap().is_empty());
}

#[derive(Clone, Serialize, Deserialize)]
struct Chapter(u64);

impl Cursor for Chapter {
    const KIND: &'static str = "chapter";
    const VERSION: u32 = 3;
}

async fn chapters(_: Resume<Chapter>) -> Response {
    panic!("the cursor is of another kind");
}

kernel_test!(a_route_that_is_gone, || stays(
    get(async || StatusCode::NOT_FOUND),
    &["refused it", "404 Not Found"]
));
kernel_test!(a_service_that_fails, || stays(
    get(async || (StatusCode::INTERNAL_SERVER_ERROR, "the database is away")),
    &["500 Internal Server Error", "the database is away"]
));
kernel_test!(a_limit_that_is_reached, || stays(
    get(async || (StatusCode::TOO_MANY_REQUESTS, "not so fast")),
    &["429 Too Many Requests", "not so fast"]
));
kernel_test!(an_extractor_that_refuses_the_request, || stays(
    get(async |_: Json<u64>| "an answer"),
    &["415 Unsupported Media Type"]
));
kernel_test!(an_answer_without_a_cursor, || stays(
    get(async || "x".repeat(1000)),
    &["200 OK", "no rest of that response"]
));
kernel_test!(a_cursor_of_another_kind, || stays(
    get(chapters),
    &[
        "409 Conflict",
        "is of no kind, and here it is chapter version 3"
    ]
));

/// How a story is told.
#[derive(Clone, Deserialize)]
struct Prompt {
    story: String,
    times: u64,
}

pub(crate) fn routes() -> Router {
    Router::new()
        .route("/story", post(story))
        .route("/swallow", post(swallow))
}

/// Reads everything and answers without an end.
async fn swallow(resume: Resume<u64>, body: Body) -> Response {
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let at = resume.clone();
    let answer = stream::unfold(body, move |body| {
        at.set(body.len() as u64);
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, Infallible>(body.slice(..10)), body))
        }
    });
    Body::from_stream(answer).movable(resume)
}

/// The request is needed again to go on.
async fn story(resume: Resume<u64>, Json(prompt): Json<Prompt>) -> Response {
    if prompt.times == 0 {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let at = resume.clone();
    let begin = resume.cursor().unwrap_or(0);
    let told = stream::unfold(begin, move |time| {
        let (at, story) = (at.clone(), prompt.story.clone());
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            at.set(time + 1);
            let piece = Bytes::from(format!("{time} {story}\n"));
            (time < prompt.times).then_some((Ok::<_, Infallible>(piece), time + 1))
        }
    });
    Body::from_stream(told).movable(resume)
}

kernel_test!(the_body_of_a_request_comes_along, || {
    const TIMES: usize = 2000;
    let mut scene = Scene::new();
    let prompt = serde_json::json!({ "story": "once upon a time", "times": TIMES }).to_string();
    let kind = "content-type: application/json";
    let url = format!("{URL}/story");
    let mut curl = scene.curl(&["--header", kind, "--data", &prompt, &url]);
    let mut text = Vec::new();
    for _ in 0..10 {
        text.extend(curl.read(1000));
        scene.hop();
    }
    text.extend(curl.end_of_curl(1));
    let expected: String = (0..TIMES)
        .map(|time| format!("{time} once upon a time\n"))
        .collect();
    assert!(text == expected.as_bytes(), "{} bytes", text.len());
});

kernel_test!(a_request_body_beyond_the_bound_keeps_the_connection, || {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let stream = connect(&scene);
    let story = "x".repeat(3 << 20);
    let head = format!(
        "POST /swallow HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        story.len()
    );
    (&stream).write_all(head.as_bytes()).unwrap();
    (&stream).write_all(story.as_bytes()).unwrap();
    let mut reader = BufReader::new(&stream);
    reader.fill_buf().unwrap();
    let why = scene.stays();
    assert!(why.contains("too large to be carried"), "{why}");
    assert!(reader.read(&mut [0; 100]).unwrap() > 0);
});
