//! A gateway to a language model that streams: the example, under curl.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};
use tcpmig::http::serve;
use tokio::net::TcpListener;

use crate::scene::{Client, Scene, URL};
use crate::served::{Pair, Server};
use crate::support::kernel_test;

#[path = "../../examples/gateway/llm/mod.rs"]
pub(crate) mod llm;

use llm::{Gateway, Model};

/// Where the model server is on each host.
const MODEL: &str = "127.0.0.1:3000";
/// Where the gateways find each other.
pub(crate) const PRIVATE: [&str; 2] = ["198.18.0.1:9000", "198.18.0.2:9000"];

/// A model server, of which nothing is to be asked twice.
#[derive(Clone, Default)]
pub(crate) struct Models {
    asked: Arc<AtomicU64>,
    /// How many tokens were given.
    given: Arc<AtomicU64>,
    /// A stream can be had from any token.
    replays: bool,
}

impl Models {
    pub(crate) fn router(&self) -> Router {
        let models = self.clone();
        let answer = async move |headers: HeaderMap, Json(request): Json<Value>| {
            models.answer(&headers, &request)
        };
        Router::new().route("/v1/chat/completions", post(answer))
    }

    /// How many streams were asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn answer(&self, headers: &HeaderMap, request: &Value) -> Response {
        let run = match self.replays {
            true => 0,
            false => self.asked.load(Ordering::Relaxed),
        };
        self.asked.fetch_add(1, Ordering::Relaxed);
        let after = headers.get("last-event-id");
        assert!(self.replays || after.is_none(), "it cannot replay");
        let after = after.map_or(0, |after| after.to_str().unwrap().parse().unwrap());
        let most = request["max_tokens"].as_u64().unwrap();
        let prompt = request["messages"][0]["content"].clone();
        let given = self.given.clone();
        let tokens = stream::unfold(after + 1, move |token| {
            let prompt = prompt.clone();
            let given = given.clone();
            async move {
                if token > most + 1 {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                given.fetch_add(1, Ordering::Relaxed);
                let data = if token > most {
                    "[DONE]".to_owned()
                } else {
                    chunk(&prompt, run, token).to_string()
                };
                let event = format!(": a comment\nid: {token}\ndata: {data}\n\n");
                Some((Ok::<_, Infallible>(event), token + 1))
            }
        });
        let kind = [(header::CONTENT_TYPE, "text/event-stream")];
        (kind, Body::from_stream(tokens)).into_response()
    }
}

/// What `OpenAI`'s clients expect.
fn chunk(prompt: &Value, run: u64, token: u64) -> Value {
    let content = format!("{}-{run}-{token}", prompt.as_str().unwrap());
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "small",
        "choices": [{ "index": 0, "delta": { "content": content }, "finish_reason": null }],
    })
}

pub(crate) fn request(tokens: u64) -> String {
    json!({
        "model": "small",
        "messages": [{ "role": "user", "content": "once" }],
        "max_tokens": tokens,
        "stream": true,
    })
    .to_string()
}

/// A gateway and a model server on each host.
pub(crate) fn gateways(model: Model) -> (Scene, [Models; 2]) {
    let gateways =
        PRIVATE.map(|private| Gateway::new(model, MODEL.parse().unwrap(), private.into()));
    let scene = Scene::serving(gateways.each_ref().map(Gateway::public));
    let models = [0, 1].map(|host| {
        let models = Models {
            replays: model == Model::Replays,
            ..Models::default()
        };
        let (router, gateway) = (models.router(), gateways[host].clone());
        scene.also(host, async move || {
            let model = TcpListener::bind(MODEL).await.unwrap();
            let private = TcpListener::bind(PRIVATE[host]).await.unwrap();
            let model = axum::serve(model, router).into_future();
            let private = axum::serve(private, gateway.private()).into_future();
            let _ = tokio::join!(model, private);
        });
        models
    });
    (scene, models)
}

pub(crate) const COMPLETIONS: &str = "/v1/chat/completions";

fn complete(scene: &Scene, tokens: u64) -> Client {
    let kind = "content-type: application/json";
    let url = format!("{URL}{COMPLETIONS}");
    let request = request(tokens);
    let whole = ["--max-time", "600", "--header", kind, "--data", &request];
    scene.curl(&[&whole[..], &[&url]].concat())
}

fn next_token(curl: &mut Client, run: u64, token: u64) {
    curl.says(&format!("id: {token}"));
    curl.says(&format!("data: {}", chunk(&json!("once"), run, token)));
    curl.says("");
}

fn last(mut curl: Client, tokens: u64) {
    curl.says(&format!("id: {}", tokens + 1));
    curl.says("data: [DONE]");
    curl.says("");
    assert!(curl.end_of_curl(1).is_empty());
}

const MOVES: u64 = 100;

/// A stream of tokens moves a hundred times. How often each of the model servers was asked.
fn a_hundred_moves(model: Model) -> [u64; 2] {
    const TOKENS: u64 = 6000;
    let (mut scene, models) = gateways(model);
    let mut curl = complete(&scene, TOKENS);
    for token in 1..=TOKENS {
        next_token(&mut curl, 0, token);
        if token % 50 == 0 && token <= 50 * MOVES {
            scene.hop();
        }
    }
    last(curl, TOKENS);
    models.map(|models| models.asked())
}

kernel_test!(a_stream_of_a_model_that_replays, || {
    assert_eq!(a_hundred_moves(Model::Replays), [51, 50]);
});
kernel_test!(a_stream_of_a_model_that_gives_it_once, || {
    assert_eq!(a_hundred_moves(Model::GivesOnce), [1, 0]);
});

kernel_test!(a_stream_whose_keeper_is_gone_ends_and_says_so, || {
    let (mut scene, _) = gateways(Model::GivesOnce);
    let mut curl = complete(&scene, 1_000_000);
    for token in 1..=100 {
        next_token(&mut curl, 0, token);
    }
    scene.hop();
    for token in 101..=200 {
        next_token(&mut curl, 0, token);
    }
    // Nothing gets from one gateway to the other any longer.
    scene.net.a.nft(
        "table inet gone { chain into { type filter hook input priority 0;
         tcp dport 9000 reject with tcp reset; }; }",
    );
    let mut lines = std::iter::from_fn(|| Some(curl.line()));
    let error = lines.find(|line| line.starts_with("data: {\"error\""));
    assert!(error.unwrap().contains("message"));
});

/// The whole of the example's main, but for what it reads from its command line.
fn run(pair: &Pair, host: usize, model: Model, at: SocketAddr) -> Server<usize> {
    let to = ["host-b", "host-a"][host];
    let running = pair.run(host, move |listener, site, term| async move {
        let gateway = Gateway::new(model, at, PRIVATE[host].into());
        let private = TcpListener::bind(PRIVATE[host]).await.unwrap();
        let private = axum::serve(private, gateway.private()).into_future();
        let app = gateway.public().into_make_service();
        let (mover, other) = (site.mover(), site.destination(to).unwrap());
        let term = async {
            let _ = term.await;
        };
        let served = gateway.takes(serve(listener, app, site));
        let served = served.with_drain(term, to).into_future();
        let whole = async {
            let served = served.await.unwrap();
            gateway.give_all(&mover, &other).await;
            gateway.emptied().await;
            served.moved
        };
        tokio::select! {
            moved = whole => moved,
            _ = private => unreachable!("it has no end"),
        }
    });
    pair.listens(host);
    running
}

const TOKENS: u64 = 3000;

/// A client of the one host, in the middle of a stream whose model server is at the peer.
struct Deploy {
    pair: Pair,
    models: Models,
    _server: Server<()>,
    at: SocketAddr,
    curl: Client,
    a: Option<Server<usize>>,
    tokens: Range<u64>,
}

impl Deploy {
    fn new(model: Model) -> Self {
        let pair = Pair::with_any_port();
        let at: SocketAddr = "198.18.0.9:3000".parse().unwrap();
        let models = Models::default();
        let server = pair.serve_at_peer(models.router(), &at.to_string());
        let a = run(&pair, 0, model, at);
        let mut curl = pair.net.peer.command("curl").unwrap();
        curl.args(["--silent", "--no-buffer", "--noproxy", "*"])
            .args(["--header", "content-type: application/json"])
            .args(["--data", &request(TOKENS)])
            .arg(format!("{URL}{COMPLETIONS}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let curl = Client(curl.spawn().unwrap());
        let mut deploy = Self {
            pair,
            models,
            _server: server,
            at,
            curl,
            a: Some(a),
            tokens: 1..TOKENS + 1,
        };
        deploy.tokens(100);
        deploy
    }

    fn tokens(&mut self, count: usize) {
        for token in self.tokens.by_ref().take(count) {
            next_token(&mut self.curl, 0, token);
        }
    }

    /// The rest of the stream.
    fn rest(&mut self) {
        self.tokens(usize::MAX);
        self.curl.says(&format!("id: {}", TOKENS + 1));
        self.curl.says("data: [DONE]");
        self.curl.says("");
        assert!(self.curl.0.wait().unwrap().success());
        assert_eq!(self.models.asked(), 1);
    }
}

kernel_test!(a_gateway_ends_when_nobody_needs_what_it_keeps, || {
    let mut deploy = Deploy::new(Model::GivesOnce);
    let b = run(&deploy.pair, 1, Model::GivesOnce, deploy.at);
    let a = deploy.a.take().unwrap();
    let a = std::thread::spawn(|| a.end());
    deploy.tokens(1000);
    // The model cannot be so far ahead that it has ended.
    assert!(!a.is_finished());
    deploy.rest();
    assert_eq!(a.join().unwrap(), 1);
    b.end();
});

kernel_test!(a_connection_to_the_model_server_moves_too, || {
    let model = Model::Moves("198.18.0.80".parse().unwrap());
    let mut deploy = Deploy::new(model);
    let b = run(&deploy.pair, 1, model, deploy.at);
    // It ends before the stream does.
    let a = deploy.a.take().unwrap();
    assert_eq!(a.end(), 1);
    deploy.tokens(1000);
    deploy.rest();
    b.end();
});
