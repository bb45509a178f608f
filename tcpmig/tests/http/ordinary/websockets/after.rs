//! Sends messages and receives others at the same time.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use axum::routing::get;
use futures_util::{SinkExt, StreamExt};
use tcpmig::http::{IntoMovable, Resume, serve};

use crate::ordinary::Given;

pub(crate) const MESSAGES: u64 = 1000;

pub(crate) async fn run(given: Given) {
    let app = Router::new().route("/ws", get(upgrade));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    serve(given.listener, app, given.site)
        .with_drain(given.term, given.to)
        .await
        .unwrap();
}

async fn upgrade(
    ws: WebSocketUpgrade,
    at: Resume<u64>,
    headers: HeaderMap,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Response {
    let resume = at.clone();
    let agent = headers.get(USER_AGENT).cloned();
    ws.on_upgrade(move |socket| talk(socket, at, peer, agent))
        .movable(resume)
}

async fn talk(socket: WebSocket, at: Resume<u64>, peer: SocketAddr, agent: Option<HeaderValue>) {
    let (mut sender, mut receiver) = socket.split();
    let mut sending = tokio::spawn(async move {
        for number in at.cursor().unwrap_or(0)..MESSAGES {
            let message = format!("message {number} for {peer}, {agent:?}");
            if sender.send(message.into()).await.is_err() {
                return;
            }
            at.set(number + 1);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let end = CloseFrame {
            code: close_code::NORMAL,
            reason: "that was all".into(),
        };
        let _ = sender.send(Message::Close(Some(end))).await;
    });
    let mut receiving = tokio::spawn(async move {
        while let Some(Ok(message)) = receiver.next().await {
            if let Message::Close(_) = message {
                return;
            }
        }
    });
    tokio::select! {
        _ = &mut sending => receiving.abort(),
        _ = &mut receiving => sending.abort(),
    }
}
