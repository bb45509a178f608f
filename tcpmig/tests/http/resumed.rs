//! Targets whose service does not go on with a response in the middle.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use tcpmig::http::Resumable;

use crate::log;
use crate::scene::{OnB, Scene, URL};
use crate::support::{kernel_test, numbered, until};

const SIZE: usize = 40_000_000;

/// The client is cut, and the target says why: in the log with the flow, and to the application.
fn is_cut(file: MethodRouter, words: &[&str]) {
    log::keep();
    let mut scene = Scene::with(&OnB::File(Box::new(file)), Duration::from_secs(5));
    let mut curl = scene.curl(&[&format!("{URL}/file/{SIZE}")]);
    let mut body = curl.read(SIZE / 16);
    scene.hop();
    let output = curl.0.wait_with_output().unwrap();
    // A partial file.
    assert_eq!(output.status.code(), Some(18));
    body.extend(output.stdout);
    // What the source had written arrives.
    assert!(body == numbered(0, body.len()), "{} bytes", body.len());
    until("the application of the target is told", || {
        !scene.errors.lock().unwrap().is_empty()
    });
    let errors = scene.errors.lock().unwrap().join("\n");
    for word in words {
        assert!(errors.contains(word), "{word:?} is not in {errors:?}");
    }
    let flow = "198.18.0.80:8080 <-> 198.18.0.";
    log::logged("WARN", &[&[flow][..], words].concat());
}

kernel_test!(an_answer_that_is_not_there, || is_cut(
    get(async || StatusCode::NOT_FOUND),
    &["404 Not Found"]
));
kernel_test!(an_answer_that_failed, || is_cut(
    get(async || (StatusCode::INTERNAL_SERVER_ERROR, "the database is away")),
    &["500 Internal Server Error", "the database is away"]
));
kernel_test!(an_answer_that_is_limited, || is_cut(
    get(async || (StatusCode::TOO_MANY_REQUESTS, "not so fast")),
    &["429 Too Many Requests", "not so fast"]
));
kernel_test!(an_extractor_that_refuses, || is_cut(
    get(async |_: Json<u64>| "an answer"),
    &["415 Unsupported Media Type", "Expected request with"]
));
kernel_test!(an_answer_of_another_kind, || is_cut(
    get(async || "x".repeat(1000)),
    &["200 OK", "no rest of that response: \"xxxxxxx"]
));
kernel_test!(a_rest_that_fails, || is_cut(
    get(async || rest(Err(std::io::Error::other("the file is not on this host")))),
    &["failed", "the file is not on this host"]
));
kernel_test!(a_rest_that_is_too_short, || is_cut(
    get(async || rest(Ok(None))),
    &["failed", "bytes before the response does"]
));

type Rest = Result<Option<(bytes::Bytes, u64)>, std::io::Error>;

fn rest(step: Rest) -> Result<Response, Infallible> {
    let mut step = Some(step);
    let body = Resumable::new(0_u64, move |_| {
        let step = step.take().unwrap_or(Ok(None));
        async move { step }
    });
    let mut response = body.response().into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, SIZE.into());
    Ok(response)
}
