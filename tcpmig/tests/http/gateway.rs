//! A gateway to a language model that streams, whose upstream gives a stream again from any token.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tcpmig::http::{Cursor, IntoMovable, Resume};
use tokio::sync::mpsc;

use crate::scene::{Scene, URL};
use crate::support::kernel_test;

#[derive(Clone, Deserialize)]
struct Completion {
    prompt: String,
    max_tokens: u64,
    stream: bool,
}

/// The last token that the client has, as the upstream counts them.
#[derive(Clone, Serialize, Deserialize)]
struct LastToken(u64);

impl Cursor for LastToken {
    const KIND: &'static str = "last-token";
    const VERSION: u32 = 1;
}

pub(crate) fn routes() -> Router {
    Router::new().route("/v1/completions", post(complete))
}

/// The model: the same request has the same tokens, and a stream begins behind any of them. It is ahead of who reads.
fn upstream(request: &Completion, after: u64) -> mpsc::Receiver<(u64, String)> {
    let (sender, tokens) = mpsc::channel(50);
    let request = request.clone();
    tokio::spawn(async move {
        for token in after + 1..=request.max_tokens {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let text = format!("{}-{token}", request.prompt);
            if sender.send((token, text)).await.is_err() {
                // The gateway does not read any longer.
                return;
            }
        }
    });
    tokens
}

async fn complete(resume: Resume<LastToken>, Json(request): Json<Completion>) -> Response {
    if !request.stream {
        return "only streams".into_response();
    }
    let after = resume.cursor().map_or(0, |LastToken(token)| token);
    let tokens = stream::unfold(upstream(&request, after), async |mut tokens| {
        Some((tokens.recv().await?, tokens))
    });
    let at = resume.clone();
    let events = tokens.map(move |(token, text)| {
        at.set(LastToken(token));
        let chunk = json!({ "choices": [{ "text": text }] });
        let event = Event::default().id(token.to_string());
        Ok::<_, Infallible>(event.data(chunk.to_string()))
    });
    Sse::new(events).movable(resume)
}

kernel_test!(a_stream_of_tokens_moves_a_hundred_times, || {
    const TOKENS: u64 = 6000;
    const MOVES: u64 = 100;
    let mut scene = Scene::new();
    let request = json!({ "prompt": "once", "max_tokens": TOKENS, "stream": true }).to_string();
    let kind = "content-type: application/json";
    let url = format!("{URL}/v1/completions");
    let long = [
        "--max-time",
        "600",
        "--header",
        kind,
        "--data",
        &request,
        &url,
    ];
    let mut curl = scene.curl(&long);
    for token in 1..=TOKENS {
        assert_eq!(curl.line(), format!("id: {token}\n"));
        let chunk = json!({ "choices": [{ "text": format!("once-{token}") }] });
        assert_eq!(curl.line(), format!("data: {chunk}\n"));
        assert_eq!(curl.line(), "\n");
        if token % 50 == 0 && token <= 50 * MOVES {
            scene.hop();
        }
    }
    assert!(curl.end_of_curl(1).is_empty());
});
