//! Sessions of hyper servers: HTTP/1 and HTTP/2 connections and WebSockets that stop at a safe point, even in the middle of
//! responses or a message, and go on elsewhere.
//!
//! [`Movable`] serves a service of hyper's, or tower's and axum's through `hyper_util::service::TowerToHyperService`, over
//! connections that can be drained: plain TCP, [TLS](crate::tls), or another [`Carrier`](crate::session::Carrier).
//! [`Server`] keeps a list of them and moves each when it is told to, by any [`Way`](crate::session::Way)
//! ([`Handle::move_to`]); [`Connection::run`] and [`Movable::resume_parts`] are the same in two steps.
//!
//! # An axum server whose sessions move
//!
//! What changes: the accept loop calls [`Server::serve`], arrivals go to [`Server::arrived`], and
//! responses that take long come from a cursor: a body that is made from one ([`Resumable`]), or any other that a handler sets one
//! beside ([`Resume`]). Everything else of the router stays as it was.
//! With the feature `serve`, [`serve`](fn@serve) is the loop below in one call.
//!
//! ```no_run
//! use std::{io, sync::Arc};
//!
//! use axum::extract::Extension;
//! use axum::http::{Response, header::CONTENT_LENGTH};
//! use axum::{Router, response::IntoResponse, routing::get};
//! use bytes::Bytes;
//! use hyper_util::service::TowerToHyperService;
//! use serde::{Deserialize, Serialize};
//! use tcpmig::driver::policy::{Policy, Rules};
//! use tcpmig::driver::{Destination, Mover, Options, Acceptor};
//! use tcpmig::http::{ConnectionState, Movable, Resumable, Resumed, Server, State};
//! use tcpmig_transport::Endpoint;
//! use tokio::io::{AsyncReadExt, AsyncSeekExt};
//!
//! /// What the server knows of one connection. It moves with it.
//! #[derive(Default, Serialize, Deserialize)]
//! struct Visits {
//!     count: u64,
//! }
//!
//! impl ConnectionState for Visits {
//!     const KIND: &'static str = "visits";
//!     const VERSION: u32 = 1;
//! }
//!
//! /// An ordinary handler. If its connection is to move, that waits for its end.
//! async fn visits(Extension(visits): Extension<State<Visits>>) -> String {
//!     let mut visits = visits.lock();
//!     visits.count += 1;
//!     format!("this is your visit number {}", visits.count)
//! }
//!
//! /// Where a download goes on.
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Place {
//!     file: String,
//!     position: u64,
//! }
//!
//! async fn next(place: Place) -> io::Result<Option<(Bytes, Place)>> {
//!     let mut file = tokio::fs::File::open(&place.file).await?;
//!     file.seek(io::SeekFrom::Start(place.position)).await?;
//!     let mut bytes = Vec::new();
//!     file.take(1 << 16).read_to_end(&mut bytes).await?;
//!     let position = place.position + bytes.len() as u64;
//!     let place = Place { position, ..place };
//!     Ok((!bytes.is_empty()).then_some((bytes.into(), place)))
//! }
//!
//! /// A response that goes on elsewhere in its middle.
//! async fn film(resumed: Option<Extension<Resumed>>) -> Result<impl IntoResponse, String> {
//!     let place = match resumed {
//!         Some(resumed) => resumed.cursor().map_err(|error| error.to_string())?,
//!         None => Place { file: "/srv/film.mp4".into(), position: 0 },
//!     };
//!     let size = tokio::fs::metadata(&place.file).await.map_err(|error| error.to_string())?.len();
//!     let mut response: Response<_> = Resumable::new(place, next).response();
//!     response.headers_mut().insert(CONTENT_LENGTH, size.into());
//!     Ok(response)
//! }
//!
//! # async fn run(endpoint: Endpoint, to: Destination) -> Result<(), Box<dyn std::error::Error>> {
//! let router = Router::new().route("/", get(visits)).route("/film", get(film));
//! let movable = Movable::new(TowerToHyperService::new(router)).with_state::<Visits>();
//! let (locker, options) = (Arc::new(tcpmig::locker::nftables()?), Options::default());
//! let mover = Mover::new(endpoint.clone(), locker.clone(), options.clone());
//! let server = Server::new(movable.clone());
//!
//! let mut arrivals = Acceptor::new(endpoint, locker)
//!     .options(options)
//!     .policy(Policy::new().host("b.example", Rules::new().ports(80..=80)))
//!     .accept_async(move |offer| {
//!         let movable = movable.clone();
//!         async move { Ok(movable.get_ready(&offer.layers).await?) }
//!     })
//!     .serve();
//! let listener = tokio::net::TcpListener::bind("198.18.0.80:80").await?;
//! let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
//! loop {
//!     let server = server.clone();
//!     tokio::select! {
//!         accepted = listener.accept() => {
//!             let (stream, _) = accepted?;
//!             tokio::spawn(async move { server.serve(stream).await });
//!         }
//!         Some(arrived) = arrivals.next() => {
//!             tokio::spawn(async move {
//!                 if let Err(error) = server.arrived(arrived).await {
//!                     eprintln!("a connection that moved here is closed: {error}");
//!                 }
//!             });
//!         }
//!         _ = term.recv() => break,
//!     }
//! }
//! // Instead of an end for all of them: they go on at the other host. 32 of them move at a time.
//! for (peer, moved) in server.move_all(&mover, &to, 32).await {
//!     if let Err(error) = moved {
//!         eprintln!("{peer}: {error}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Safe points
//!
//! | The connection is | A drain |
//! |---|---|
//! | at rest, a request's head partly read | takes it as it is |
//! | between requests that came together | takes it: what hyper has read and the service has not seen is read again on the target |
//! | in the middle of a [`Resumable`] response, or one with a [`Resume`] | takes it at the end of a frame: the peer's framing (a length, chunks, the connection's end) goes on exactly |
//! | in the middle of another response, or the service is at work | waits for the end, which need not wait for a slow peer ([`Movable::absorb`]) |
//! | receiving the body of a request that the service has been given | waits for the end of the request and what follows; a handler with an `Upload` (HTTP/2) stands still when it wants more of the body |
//! | holding a request that the service has not been given, with its body or without | takes it: the request is carried as it came, with all that hyper has read behind it |
//! | a WebSocket that a handler got by `hyper::upgrade` (axum's `WebSocketUpgrade`), with a [`Resume`] | lets its next read fail, and takes it when the handler has dropped it |
//! | upgraded by a handler in another way | does not take it: [`Obstacle::Upgraded`] |
//! | at its end, with bytes that the peer has not read | waits for the peer: [`Obstacle::Ending`] |
//! | a WebSocket | tells its handler to return, and takes it between two messages or in the middle of one: [`websocket`] |
//!
//! A wait ends after [`Movable::drain_within`]: the connection then goes on where it is, with the [`Obstacle`]. What
//! hyper has written and the peer has not made room for is carried, so a slow reader holds nothing up.
//!
//! A layer that changes the bytes of a [`Resumable`] response (compression) makes a response of the other kind of it: a
//! drain waits for its end, and then says [`Obstacle::Changed`].
//!
//! # What the target has to know
//!
//! [`Movable::check`], asked before anything leaves the source, refuses a session whose
//! [`ConnectionState`] is of a kind or version that is not known here, a WebSocket where no
//! handler is, and what [`Movable::resumes_if`] says of a response in the middle: the source
//! keeps the connection and [`Handle::move_to`] says why.
//!
//! What the service itself answers to the request of a response in the middle is known when it is asked. It must be the rest: a
//! [`Resumable`], or a response with a [`Resume`]. [`Movable::get_ready`] asks it before anything leaves the source, with the
//! request's head and body ([`Movable::carry_bodies`]), so that extractors work as they did. If it answers with anything else
//! (404, because the route is not known here; 429, because a limit counts the request again; 409, because the cursor is of
//! another kind or version; 500), the target refuses the connection with the status and the beginning of that answer, and
//! the source goes on. The answer is kept for the connection, and dropped if that does not come.
//!
//! If the service was not asked before (only [`Movable::check`]), or if the rest fails later, nothing can follow the beginning
//! that the peer has, and the connection is closed. [`Server::arrived`] returns [`SessionError::Cut`] then and [`Connection::run`]
//! [`ConnectionError::NotResumed`], with the status and the beginning of the answer or the cause;
//! a warning with the connection's flow is logged.
//!
//! # Other frameworks
//!
//! [`serve`](fn@serve) and [`Movable`] take any service of tower or hyper that takes requests with a [`RequestBody`], and so every framework
//! whose services are generic over the body: axum, warp (`warp::service(filter)`). Those that take
//! `Request<hyper::body::Incoming>` and nothing else, as `hyper_util::server::conn::auto` wants them, get it by [`TakesIncoming`].
//! [`ForAll`] takes the place of a make-service. Where a framework has one type of bodies, its handler makes a response movable by
//! [`Resume::mark`], with the [`Resumed`] that it finds in the extensions of its request. Connections are HTTP/1 whatever the framework: a
//! client that begins with HTTP/2 is refused, as by hyper's `http1`, but for servers that speak it.
//!
//! # HTTP/2
//!
//! With the feature `http2`, `Movable::with_http2` (and `Serve::with_http2`) takes connections whose client begins with the
//! preface of HTTP/2: by prior knowledge, or over [TLS](crate::tls) by ALPN if `alpn_protocols` has `h2`. Such a connection moves at rest, and in the middle
//! of any number of responses that go on from a cursor, each with its own; handlers are written as for HTTP/1. A stream that has to end first is waited
//! for: the others stand still meanwhile at the end of a frame, and what the peer asks for is held back, and served at the target. The peer
//! sees nothing that a server may not do at any time: no GOAWAY, and no new settings.
//!
//! A handler that consumes the body of its request piece by piece says how far it is with an `Upload`: then its stream moves in the middle of that
//! body, with the response begun or not. It goes on from its own cursor, and is given again what it had not consumed. So a unary call of gRPC moves at rest, one
//! that streams from the server with a [`Resume`], one that streams to it with an `Upload`, and one that streams both ways with both.
//!
//! A peer that floods a connection (requests that are reset at once, header blocks without an end, empty frames) gets no further than
//! with hyper alone, and a request that is reset before the service was given it is not given to it.
//!
//! A response in the middle that does not go on at the target is reset by itself; the other streams go on. A connection that is going away, after
//! [`Server::shut_down`], stays ([`Obstacle::Ending`]), and so does one whose peer has broken the protocol ([`Obstacle::Frames`]) or whose
//! streams are tunnels (CONNECT: [`Obstacle::Upgraded`]). WebSockets over HTTP/2 (RFC 8441) are not offered.
//!
//! # Who is told
//!
//! - A handler that goes on gets the cursor ([`Resume`]), and the extensions of its request have [`Resumed`]. The request is as it was, with
//!   the id that it was given: [`Movable::request_id`].
//! - Layers see such a request again; [`Once`] applies one to requests that begin here only, so that nothing is logged twice.
//! - [`Movable::on_move`] is told what left, what was kept and what came.
//! - [`Handle::doing`] says what a connection is doing: at rest and since when, in which response, a WebSocket.
//!
//! # What does not move
//!
//! Connections that a handler has taken by `hyper::upgrade` and did not make movable. They work as with plain hyper and stay on this
//! host until the handler is done; a drain says [`Obstacle::Upgraded`], and a line is logged when they begin. A WebSocket of
//! axum's `WebSocketUpgrade` moves if its response is made movable with a [`Resume`]: see [`websocket`]. A connection
//! whose response said 101 for another protocol, or without a handler, and that nobody has
//! taken is given back as [`Upgraded`]. A request's body in its middle over HTTP/1, and one over HTTP/2
//! whose handler has no `Upload`.

mod asking;
#[cfg(feature = "axum")]
mod axum;
mod begin;
mod connection;
mod cursor;
#[cfg(all(feature = "axum", feature = "serve"))]
pub mod deploys;
mod doing;
mod gate;
mod head;
mod http1;
#[cfg(feature = "http2")]
mod http2;
mod inbound;
mod incoming;
mod lent;
mod movable;
mod moves;
mod notice;
#[cfg(feature = "axum")]
mod once;
#[cfg(feature = "http2")]
mod opening;
mod order;
#[cfg(test)]
mod parity_tests;
#[cfg(feature = "axum")]
mod ranges;
mod replay;
mod request_body;
mod response;
mod resumable;
mod seldom;
#[cfg(feature = "serve")]
mod serve;
mod server;
mod service;
mod session;
mod shared;
mod stages;
#[cfg(feature = "http2")]
mod upload;
#[cfg(test)]
mod way_tests;
pub mod websocket;

#[cfg(feature = "axum")]
pub use axum::IntoMovable;
pub use begin::Ready;
pub use connection::{Connection, ConnectionError, Drained, Ended, HttpError, Upgraded};
pub use cursor::{Cursor, Followed, Resume, Unfold};
pub use doing::{Activity, Doing};
#[cfg(feature = "http2")]
pub use http2::{HTTP2_KIND, HTTP2_VERSION};
pub use incoming::TakesIncoming;
pub use movable::Movable;
pub use moves::move_connections;
pub use notice::{Notice, Noticed};
#[cfg(feature = "axum")]
pub use once::{Either, Once, Twofold};
#[cfg(feature = "axum")]
pub use ranges::{RangeBody, RangeLayer, Ranged, Ranging};
pub use request_body::RequestBody;
pub use resumable::{NotResumed, Resumable, Resumed};
#[cfg(feature = "serve")]
pub use serve::{
    Draining, ForAll, MakeServices, Serve, ServeError, Served, Site, SiteError, Stayed, serve,
};
pub use server::{Handle, NotMoved, Server};
pub use session::{ConnectionState, KIND, PayloadError, Session, SessionError, State, VERSION};
pub use shared::Obstacle;
#[cfg(feature = "http2")]
pub use upload::Upload;
