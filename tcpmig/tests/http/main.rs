//! HTTP sessions that move under clients that know nothing of it: curl, python3 and its websockets, wrk.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../support/mod.rs"]
mod support;

mod app;
mod asked;
#[cfg(all(feature = "http2", feature = "tls"))]
mod browser;
mod chat;
mod clients;
#[cfg(all(feature = "http2", feature = "tls"))]
mod conformance;
mod cursors;
mod downloads;
mod frameworks;
mod gateway;
mod handed;
#[cfg(all(feature = "http2", feature = "tls"))]
mod http2;
mod keep_alive;
mod log;
mod ordinary;
mod ranges;
mod refused;
mod requests;
mod resumed;
mod scene;
mod served;
mod side_by_side;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_owner;
mod told;
mod upgraded;
mod websockets;

/// Routes of the application that are described beside their tests.
fn more_routes() -> axum::Router {
    routes_with(axum::routing::get(handed::chat))
}

/// The same with this in the place of a WebSocket.
fn routes_with(chat: axum::routing::MethodRouter) -> axum::Router {
    let routes = asked::routes()
        .merge(cursors::routes())
        .merge(handed::routes())
        .route("/axum-chat", chat);
    #[cfg(feature = "tls")]
    let routes = routes.route("/negotiated", axum::routing::get(tls::negotiated));
    routes
}
