//! The application's WebSockets.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::SEC_WEBSOCKET_EXTENSIONS;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use tcpmig::http::State;
use tcpmig::http::websocket::{Stream, WebSocket};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::app::{Slow, Visits};
use crate::support::numbered;

pub(crate) async fn upgrade(request: Request) -> Response {
    match create_response_with_body(&request, Body::empty) {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

/// Agrees to what the library cannot do: the client is compressed from then on.
pub(crate) async fn upgrade_compressed(request: Request) -> Response {
    let mut response = upgrade(request).await;
    let deflate = HeaderValue::from_static("permessage-deflate");
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_EXTENSIONS, deflate);
    response
}

pub(crate) fn handler(
    host: &'static str,
    slow: Arc<Slow>,
) -> impl Fn(WebSocket) -> Box<dyn Future<Output = ()> + Send + Unpin> + Send + Sync + 'static {
    move |socket| {
        let slow = slow.clone();
        Box::new(Box::pin(async move {
            let state = socket.state().expect("connections have a state");
            let asked = socket.asked();
            assert!(socket.request().uri().path().starts_with("/c"));
            let stream = socket.into_stream();
            let messages = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
            // An error is the end of the connection or of its life here.
            let _ = serve(messages, host, &state, asked, &slow).await;
        }))
    }
}

async fn serve(
    mut messages: WebSocketStream<Stream>,
    host: &str,
    state: &State<Visits>,
    asked: impl Future<Output = ()>,
    slow: &Slow,
) -> Result<(), Error> {
    let mut asked = std::pin::pin!(asked);
    loop {
        if !fragments(&mut messages, state, asked.as_mut()).await? {
            return Ok(());
        }
        let Some(message) = messages.next().await else {
            return Ok(());
        };
        let message = message?;
        if !message.is_text() && !message.is_binary() {
            continue;
        }
        state.lock().count += 1;
        let text = message.to_text().unwrap_or_default();
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["who"] => {
                let count = state.lock().count;
                messages.send(format!("{host} {count}").into()).await?;
            }
            ["fragments", count, size] => {
                let [count, size] = [count, size].map(|word| word.parse().unwrap());
                state.lock().fragments = Some([0, count, size]);
            }
            ["slow"] => {
                slow.begun.fetch_add(1, Ordering::Relaxed);
                slow.release.notified().await;
                messages.send("at last".into()).await?;
            }
            ["close"] => messages.close(None).await?,
            _ => messages.send(message).await?,
        }
    }
}

/// Sends the rest of a message in fragments; whether it came to its end.
async fn fragments(
    messages: &mut WebSocketStream<Stream>,
    state: &State<Visits>,
    mut asked: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Result<bool, Error> {
    loop {
        let Some([sent, count, size]) = state.lock().fragments else {
            return Ok(true);
        };
        tokio::select! {
            biased;
            () = asked.as_mut() => return Ok(false),
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
        }
        let kind = if sent == 0 {
            Data::Binary
        } else {
            Data::Continue
        };
        let bytes = numbered((sent * size) as u64, size);
        let is_last = sent + 1 == count;
        let frame = Frame::message(bytes, OpCode::Data(kind), is_last);
        state.lock().fragments = (!is_last).then_some([sent + 1, count, size]);
        messages.send(Message::Frame(frame)).await?;
    }
}
