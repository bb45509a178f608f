//! Servers without privileges, in any language: an agent on each host moves their connections.
//!
//! A server talks to the agent of its host over a Unix socket, whose protocol is specified in
//! [AGENT.md](https://github.com/tcpmig/tcpmig/blob/main/tcpmig/AGENT.md). [`Client`] speaks it: it gives connections away, as a
//! [`Way`](crate::session::Way) of [`http::Server`](crate::http) or by hand, and takes those in that come from other hosts. The
//! agent itself is the module `server` (feature `agent`), and `tcpmig agent` runs it.
//!
//! ```no_run
//! use tcpmig::agent::{Client, Event, Service};
//! # use tcpmig::http::{Movable, Server, RequestBody};
//! # use std::convert::Infallible;
//! # async fn service(_: hyper::Request<RequestBody>) -> Result<hyper::Response<String>, Infallible> { Ok(Default::default()) }
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let movable = Movable::new(hyper::service::service_fn(service));
//! let server = Server::new(movable.clone());
//! let listener = tokio::net::TcpListener::bind("198.51.100.80:8080").await?;
//!
//! let agent = Client::connect("/run/tcpmig/agent.sock").await?;
//! let web = Service::new("web").address(listener.local_addr()?);
//! let accept = move |offer: tcpmig::agent::Offer| {
//!     let movable = movable.clone();
//!     async move { Ok(movable.get_ready(&offer.layers).await?) }
//! };
//! let mut events = agent.register(web.takes(accept)).await?;
//! let way = agent.way("web");
//! loop {
//!     let server = server.clone();
//!     tokio::select! {
//!         accepted = listener.accept() => {
//!             let (stream, _) = accepted?;
//!             tokio::spawn(async move { server.serve(stream).await.map(drop) });
//!         }
//!         event = events.next() => match event {
//!             Some(Event::Arrived(arrival)) => {
//!                 tokio::spawn(async move { server.arrived(arrival).await.map(drop) });
//!             }
//!             // The host is to be empty: nothing is accepted any more, and what there is goes to others.
//!             Some(Event::Drain(drain)) => {
//!                 for to in drain.hosts() {
//!                     server.move_all(&way, to, 32).await;
//!                 }
//!                 drain.left(server.count() as u64);
//!             }
//!             _ => return Ok(()),
//!         }
//!     }
//! }
//! # }
//! ```

mod client;
mod link;
#[cfg(feature = "agent")]
pub mod server;
mod status;
mod wire;

pub use client::{
    AgentError, Client, Drain, Draining, Event, Events, Fate, NotGiven, Offer, Progress, ServerWay,
    Service,
};
pub use status::{Registered, Status};

/// Where an agent is found unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tcpmig/agent.sock";
