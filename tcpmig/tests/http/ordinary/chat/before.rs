//! A room in which everybody hears what anybody says.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::broadcast;

use crate::ordinary::Given;

struct Room {
    names: Mutex<HashSet<String>>,
    said: broadcast::Sender<String>,
}

pub(crate) async fn run(given: Given) {
    let room = Arc::new(Room {
        names: Mutex::default(),
        said: broadcast::channel(100).0,
    });
    let app = Router::new()
        .route("/websocket", get(enter))
        .with_state(room);
    axum::serve(given.listener, app)
        .with_graceful_shutdown(given.term)
        .await
        .unwrap();
}

async fn enter(ws: WebSocketUpgrade, State(room): State<Arc<Room>>) -> Response {
    ws.on_upgrade(|socket| chat(socket, room))
}

async fn chat(socket: WebSocket, room: Arc<Room>) {
    let (mut sender, mut receiver) = socket.split();
    let mut name = String::new();
    while name.is_empty() {
        match receiver.next().await {
            Some(Ok(Message::Text(text))) => name = text.to_string(),
            Some(Ok(_)) => {}
            _ => return,
        }
    }
    if !room.names.lock().unwrap().insert(name.clone()) {
        let _ = sender.send("that name is taken".into()).await;
        return;
    }
    let mut said = room.said.subscribe();
    let _ = room.said.send(format!("{name} joined"));
    let hearing = tokio::spawn(async move {
        while let Ok(text) = said.recv().await {
            if sender.send(text.into()).await.is_err() {
                break;
            }
        }
    });
    while let Some(Ok(Message::Text(text))) = receiver.next().await {
        let _ = room.said.send(format!("{name}: {text}"));
    }
    hearing.abort();
    room.names.lock().unwrap().remove(&name);
    let _ = room.said.send(format!("{name} left"));
}
