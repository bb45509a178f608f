//! WebSockets (RFC 6455): sessions that move between two messages, or in the middle of one.
//!
//! # By axum's `WebSocketUpgrade`
//!
//! A handler that gets its connection by `hyper::upgrade` is made movable like any other response, with a [`Resume`](super::Resume):
//!
//! ```
//! use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
//! use axum::response::Response;
//! use tcpmig::http::{IntoMovable, Resume};
//!
//! async fn count(upgrade: WebSocketUpgrade, resume: Resume<u64>) -> Response {
//!     let at = resume.clone();
//!     upgrade.on_upgrade(|socket| talk(socket, at)).movable(resume)
//! }
//!
//! async fn talk(mut socket: WebSocket, at: Resume<u64>) {
//!     let mut count = at.cursor().unwrap_or(0);
//!     // An error is the end, here or of the connection.
//!     while let Some(Ok(Message::Text(text))) = socket.recv().await {
//!         count += 1;
//!         if socket.send(format!("{count}: {text}").into()).await.is_err() {
//!             return;
//!         }
//!         at.set(count);
//!     }
//! }
//! ```
//!
//! When the connection is to move, the next read fails, and the handler returns as at any end of its connection;
//! [`Resume::is_leaving`](super::Resume::is_leaving) tells the two apart. The connection leaves when it is dropped. On the target the
//! request is played to the service again, with its extractors, before the connection leaves its source: only if that answers with a movable 101
//! on the same terms (subprotocol, no extensions, a cursor of the same kind) the connection comes. The peer, which has
//! its 101, does not see another, and the new run of the handler finds its cursor.
//!
//! - The cursor is what the handler has to remember, and its tasks set it whenever that changes: with the message that they sent or
//!   answered, before they wait for anything else. One that has nothing to remember sets `()` once. A handler that exchanged messages
//!   and never set one keeps its connection: [`Obstacle::CursorNotSet`].
//! - One that does not read (at work on a message, or only writing) cannot be told, and keeps its connection when
//!   [`Movable::drain_within`](super::Movable::drain_within) has passed: [`Obstacle::Handler`]. If it was told and takes
//!   longer than that, it begins again where it was.
//! - Tasks of the handler that write meanwhile are not cut in the middle of a frame. A CLOSE that is written when the handler was told is not sent: the
//!   peer's connection goes on.
//!
//! # By a handler of the connection
//!
//! A connection that a response of the service made a WebSocket (101 with `upgrade: websocket`) goes to the
//! handler of [`Movable::with_websockets`](super::Movable::with_websockets). The handler puts a WebSocket
//! library on its [`Stream`], and returns when a read fails: either the connection is over, or it is to move. Then the handler
//! of the other server is run with the same connection, as if it had just been opened: what the session knows is in the
//! connection's [`State`], and [`WebSocket::is_resumed`] says which of the two it is. [`Server`](super::Server) and
//! [`Handle`](super::Handle) move it like any other connection.
//!
//! ```
//! use axum::extract::Request;
//! use axum::http::StatusCode;
//! use axum::response::{IntoResponse, Response};
//! use axum::{Router, body::Body, routing::get};
//! use futures_util::{SinkExt, StreamExt};
//! use hyper_util::service::TowerToHyperService;
//! use serde::{Deserialize, Serialize};
//! use tcpmig::http::websocket::WebSocket;
//! use tcpmig::http::{ConnectionState, Movable};
//! use tokio_tungstenite::WebSocketStream;
//! use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
//! use tokio_tungstenite::tungstenite::{Message, protocol::Role};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Chat {
//!     messages: u64,
//! }
//!
//! impl ConnectionState for Chat {
//!     const KIND: &'static str = "chat";
//!     const VERSION: u32 = 1;
//! }
//!
//! async fn chat(socket: WebSocket) {
//!     let Some(chat) = socket.state::<Chat>() else { return };
//!     let mut messages = WebSocketStream::from_raw_socket(socket.into_stream(), Role::Server, None).await;
//!     // An error is the end, here or of the connection.
//!     while let Some(Ok(message)) = messages.next().await {
//!         if let Message::Text(text) = message {
//!             let number = { let mut chat = chat.lock(); chat.messages += 1; chat.messages };
//!             if messages.send(Message::text(format!("{number}: {text}"))).await.is_err() {
//!                 return;
//!             }
//!         }
//!     }
//! }
//!
//! /// The route of the WebSocket: an answer like any other.
//! async fn upgrade(request: Request) -> Response {
//!     create_response_with_body(&request, Body::empty)
//!         .unwrap_or_else(|error| (StatusCode::BAD_REQUEST, error.to_string()).into_response())
//! }
//!
//! let router: Router = Router::new().route("/chat", get(upgrade));
//! let movable = Movable::new(TowerToHyperService::new(router)).with_state::<Chat>().with_websockets(chat);
//! ```
//!
//! # What is carried
//!
//! Whatever the library has read of a message that is not whole yet is read again by the library of the other
//! server, from the message's beginning; whole control frames in between are not, but the last PING to which no PONG
//! was written. What the library has written and the peer has not made room for is carried like
//! that of HTTP.
//!
//! A read fails, and [`WebSocket::asked`] is ready, only where nothing is lost: a frame that the library has partly written is
//! written to its end first. What the handler gave to a library that has not begun to write it
//! (`feed` without `flush`) is lost when the handler returns.
//!
//! # What does not move
//!
//! - One that a handler has taken by `hyper::upgrade` without a [`Resume`](super::Resume): nobody knows what it would have to
//!   remember ([`Obstacle::Upgraded`]). It works, and stays.
//! - A WebSocket that is being closed: after the first CLOSE of either side it ends where it is, or stays, with
//!   [`Obstacle::Closing`].
//! - One with extensions: do not offer `permessage-deflate`, whose compression has a state that no library gives
//!   out ([`Obstacle::Extensions`]).
//! - One whose handler does not return within [`Movable::drain_within`](super::Movable::drain_within):
//!   it stays ([`Obstacle::Handler`], [`Obstacle::Writing`]).

mod frames;
mod stream;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Request;
use tokio::io::AsyncWriteExt;

use super::connection::{About, Drained};
use super::head;
use super::session::{AnyState, ConnectionState, Session, SessionError, State};
use super::shared::Obstacle;
use crate::session::Carrier;
pub(super) use stream::{AnyLink, Link, Rest};
pub use stream::{Moves, Stream};

/// A connection that is a WebSocket now, for its handler.
#[derive(Debug)]
pub struct WebSocket {
    request: Request<()>,
    stream: Stream,
    resumed: bool,
}

impl WebSocket {
    /// The head of the request that made it a WebSocket, with its target and headers.
    #[must_use]
    pub fn request(&self) -> &Request<()> {
        &self.request
    }

    /// The connection's state: that which the request's own handler saw, and which moves.
    #[must_use]
    pub fn state<T: ConnectionState>(&self) -> Option<State<T>> {
        self.request.extensions().get().cloned()
    }

    /// Whether a handler had it before, here or on another server.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Ready when the handler has to return because the connection is to move: for those that wait for something else
    /// than a message of the peer.
    pub fn asked(&self) -> impl Future<Output = ()> + Send + use<> {
        let link = self.stream.0.clone();
        std::future::poll_fn(move |cx| link.poll_asked(cx))
    }

    /// The connection's bytes, for a library.
    #[must_use]
    pub fn into_stream(self) -> Stream {
        self.stream
    }
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the application does with WebSockets.
#[derive(Clone)]
pub(super) struct Handler(Arc<dyn Fn(WebSocket) -> Running + Send + Sync>);

impl Handler {
    pub(super) fn new<F, Fut>(handler: F) -> Self
    where
        F: Fn(WebSocket) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(move |socket| Box::pin(handler(socket))))
    }
}

/// Where a WebSocket stands.
pub(super) struct At<'a, C> {
    pub(super) stream: C,
    pub(super) unread: &'a [u8],
    pub(super) unwritten: &'a [u8],
    /// It has extensions.
    pub(super) extended: bool,
    pub(super) resumed: bool,
}

/// A WebSocket whose handler runs.
pub(super) struct Served<C> {
    handler: Handler,
    running: Running,
    link: Arc<Link<C>>,
    /// The head of its request.
    head: Vec<u8>,
    state: Option<Arc<dyn AnyState>>,
    extended: bool,
}

impl<C: Carrier> Served<C> {
    pub(super) fn begin(
        handler: Handler,
        at: At<'_, C>,
        head: Vec<u8>,
        about: &About,
    ) -> Result<Self, SessionError> {
        let mut request = head::parse(&head)?;
        about.known.extend(request.extensions_mut());
        let link = Link::new(at.stream, at.unread, at.unwritten);
        let running = (handler.0)(WebSocket {
            request,
            stream: Stream(link.clone()),
            resumed: at.resumed,
        });
        Ok(Self {
            handler,
            running,
            link,
            head,
            state: about.known.state.clone(),
            extended: at.extended,
        })
    }

    /// Runs the handler; ready when it has returned.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.link.flush(cx);
        self.running.as_mut().poll(cx)
    }

    /// Tells the handler to return, if that can be done at all.
    pub(super) fn drain(&self, absorb: usize) -> Result<(), Obstacle> {
        if self.extended {
            return Err(Obstacle::Extensions);
        }
        self.link.drain(absorb);
        Ok(())
    }

    pub(super) fn undrain(&self) -> Obstacle {
        self.link.undrain();
        self.link.obstacle().unwrap_or(Obstacle::Handler)
    }

    /// What is left when the handler has returned because it was told to; nothing if the connection is over.
    pub(super) async fn end(self) -> Result<Option<Drained<C>>, SessionError> {
        let moves = self.link.was_told();
        let obstacle = self.link.obstacle();
        // The handler may hold what it shares with others.
        drop(self.running);
        let Some(mut rest) = self.link.take() else {
            return Ok(None);
        };
        if !moves || obstacle.is_some() {
            if moves && obstacle == Some(Obstacle::Writing) {
                tracing::warn!("the handler of a WebSocket left a frame partly written");
            }
            // The peer may have closed it first.
            let _ = rest.stream.write_all(&rest.unwritten).await;
            let _ = rest.stream.shutdown().await;
            return Ok(None);
        }
        let session = Session {
            unwritten: rest.unwritten,
            websocket: Some(self.head),
            state: self.state.map(|state| state.store()).transpose()?,
            ..Session::at_rest(rest.unread)
        };
        Ok(Some(Drained {
            stream: rest.stream,
            session,
        }))
    }

    /// The head of its request.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    pub(super) fn handler(&self) -> Handler {
        self.handler.clone()
    }
}
