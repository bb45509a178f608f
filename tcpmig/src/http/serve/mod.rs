//! A server in one call: accepts, takes arrivals in, drains and ends.

mod drain;
mod site;

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower_service::Service as TowerService;

use super::begin::Ready as Asked;
use super::movable::Movable;
use super::request_body::RequestBody;
use super::server::{Live, Server};
use super::service::BoxError;
use crate::driver::{Arrived, Offer};
use crate::handover::{Code, Refusal};
use crate::session::{Arrival, Carriers, Tcp};
pub use drain::{Served, Stayed};
pub use site::{Site, SiteError};

/// Serves connections that can move, in one call: accepts them, takes those in that other hosts give, and, with
/// [`Serve::with_drain`], gives all of them away when it is told to.
///
/// `make_service` makes a service for each connection, from its peer's address: what axum's `into_make_service` and
/// `into_make_service_with_connect_info::<SocketAddr>` give, or any tower service that does. A connection that arrives is served
/// by one that was made for it before it came, which is [asked](Movable::get_ready) whether it goes on with the response in the
/// middle.
///
/// ```no_run
/// use std::net::SocketAddr;
/// use axum::{Router, routing::get};
/// use tcpmig::http::{Site, serve};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let app = Router::new().route("/", get(async || "hello"));
/// let app = app.into_make_service_with_connect_info::<SocketAddr>();
/// let listener = tokio::net::TcpListener::bind("198.51.100.80:80").await?;
/// let term = async {
///     let _ = tokio::signal::ctrl_c().await;
/// };
/// serve(listener, app, Site::from_env()?)
///     .with_drain(term, "b.example")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "it serves when it is awaited"]
pub fn serve<M>(listener: TcpListener, make_service: M, site: Site) -> Serve<M> {
    Serve {
        listener,
        make_service,
        site,
        movable: Movable::new(()),
        #[cfg(feature = "http2")]
        speaks_http2: false,
        others: Vec::new(),
    }
}

/// A server that is to run until its task ends: [`serve`].
#[must_use = "it serves when it is awaited"]
pub struct Serve<M, K = Tcp> {
    listener: TcpListener,
    make_service: M,
    site: Site,
    movable: Movable<(), K>,
    #[cfg(feature = "http2")]
    speaks_http2: bool,
    others: Vec<Other>,
}

/// What becomes of connections that are not this server's clients.
struct Other {
    kind: String,
    versions: RangeInclusive<u32>,
    take: Box<TakeOther>,
}

type TakeOther = dyn Fn(Arrival) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// A server that is to run until a signal comes and its connections are gone: [`Serve::with_drain`].
#[must_use = "it serves when it is awaited"]
pub struct Draining<M, F, K = Tcp> {
    serve: Serve<M, K>,
    signal: F,
    to: String,
    within: Duration,
    end_within: Duration,
}

/// Why a server did not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The site does not know the host to which connections are to go.
    #[error("the site has no host {0:?}")]
    UnknownHost(String),
}

impl<M, K: Carriers> Serve<M, K> {
    /// With what a [`Movable`] can be given: a state for each connection, a handler of WebSockets, limits, carriers.
    pub fn with<L: Carriers>(
        self,
        configure: impl FnOnce(Movable<(), K>) -> Movable<(), L>,
    ) -> Serve<M, L> {
        Serve {
            listener: self.listener,
            make_service: self.make_service,
            site: self.site,
            movable: configure(self.movable),
            #[cfg(feature = "http2")]
            speaks_http2: self.speaks_http2,
            others: self.others,
        }
    }

    /// Takes HTTP/2 connections too: [`Movable::with_http2`].
    #[cfg(feature = "http2")]
    pub fn with_http2(mut self) -> Self {
        self.speaks_http2 = true;
        self
    }

    /// Takes connections in that are not of clients, but were made by the server at the other host, and gives them to `take`:
    /// those that have one layer, of this kind and of one of these versions. They leave by
    /// [`Site::mover`], as [`Parts`](crate::session::Parts) with such a layer.
    pub fn with_others<F, Fut>(
        mut self,
        kind: impl Into<String>,
        versions: RangeInclusive<u32>,
        take: F,
    ) -> Self
    where
        F: Fn(Arrival) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.others.push(Other {
            kind: kind.into(),
            versions,
            take: Box::new(move |arrival| Box::pin(take(arrival))),
        });
        self
    }

    /// When `signal` is ready, accepts nothing more and moves all connections to this host of the site. Those that cannot move at
    /// once are tried again until the [deadline](Draining::within). What is left then ends as graceful shutdown ends it:
    /// at once if it is idle, or behind its response. The future is ready when nothing is left.
    pub fn with_drain<F>(self, signal: F, to: impl Into<String>) -> Draining<M, F, K>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Draining {
            serve: self,
            signal,
            to: to.into(),
            within: Duration::from_secs(30),
            end_within: Duration::from_secs(30),
        }
    }
}

impl<M, F, K> Draining<M, F, K> {
    /// How long connections are tried to be moved; default 30 s.
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// How long what did not move may take to end after that, before it is closed; default 30 s.
    pub fn end_within(mut self, within: Duration) -> Self {
        self.end_within = within;
        self
    }
}

/// What `make_service` of [`serve`] has to be.
///
/// It is implemented for tower services from a peer's address to a service of HTTP, such as axum's make-services.
pub trait MakeServices: Send + 'static {
    /// A connection's service.
    type Service: TowerService<
            Request<RequestBody>,
            Response = Response<Self::Body>,
            Error: Into<BoxError>,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static;
    /// The body of its responses.
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;

    /// The service of a connection from this peer.
    fn make(
        &mut self,
        peer: SocketAddr,
    ) -> impl Future<Output = Result<Self::Service, BoxError>> + Send;
}

impl<M, S, B> MakeServices for M
where
    M: TowerService<SocketAddr, Response = S, Error: Into<BoxError>, Future: Send> + Send + 'static,
    S: TowerService<
            Request<RequestBody>,
            Response = Response<B>,
            Error: Into<BoxError>,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Service = S;
    type Body = B;

    async fn make(&mut self, peer: SocketAddr) -> Result<S, BoxError> {
        poll_fn(|cx| self.poll_ready(cx))
            .await
            .map_err(Into::into)?;
        self.call(peer).await.map_err(Into::into)
    }
}

/// The same service for every connection, as `make_service` of [`serve`]: for frameworks that have no make-service.
#[derive(Debug, Clone)]
pub struct ForAll<S>(S);

impl<S> ForAll<S> {
    /// This service.
    pub fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S: Clone> TowerService<SocketAddr> for ForAll<S> {
    type Response = S;
    type Error = Infallible;
    type Future = Ready<Result<S, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: SocketAddr) -> Self::Future {
        ready(Ok(self.0.clone()))
    }
}

type Hyper<M> = TowerToHyperService<<M as MakeServices>::Service>;
type Answered<M> = Response<<M as MakeServices>::Body>;

/// What was made ready for a connection before it came.
enum Taken<M: MakeServices, K> {
    Client(Box<Movable<Hyper<M>, K>>, Asked<Answered<M>>),
    /// The index of who takes it.
    Other(usize),
}

/// What all tasks of a server share.
struct Serving<M, K> {
    make: Mutex<M>,
    movable: Movable<(), K>,
    #[cfg(feature = "http2")]
    speaks_http2: bool,
    others: Vec<Other>,
    live: Live,
    /// Nothing is taken in any more.
    drains: AtomicBool,
}

impl<M: MakeServices, K: Carriers> Serving<M, K> {
    async fn movable(&self, peer: SocketAddr) -> Result<Movable<Hyper<M>, K>, BoxError> {
        let service = self.make.lock().await.make(peer).await?;
        let movable = self.movable.serving(TowerToHyperService::new(service));
        #[cfg(feature = "http2")]
        if self.speaks_http2 {
            return Ok(movable.with_http2());
        }
        Ok(movable)
    }

    fn server(&self, movable: Movable<Hyper<M>, K>) -> Server<Hyper<M>, K> {
        Server::among(movable, self.live.clone())
    }

    async fn accept(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        match self.movable(peer).await {
            Ok(movable) => {
                if let Err(error) = self.server(movable).serve(stream).await {
                    tracing::debug!(%peer, %error, "a connection did not begin");
                }
            }
            Err(error) => tracing::warn!(%peer, error, "no service was made for a connection"),
        }
    }

    async fn take(self: Arc<Self>, offer: Offer) -> Result<Taken<M, K>, Refusal> {
        if self.drains.load(Ordering::Relaxed) {
            let reason = "the server is giving its connections away";
            return Err(Refusal::new(Code::Full, reason));
        }
        if let [layer] = &offer.layers[..]
            && let Some(other) = self
                .others
                .iter()
                .position(|other| other.kind == layer.kind)
        {
            if !self.others[other].versions.contains(&layer.version) {
                let reason = format!("{:?} version {} is not known", layer.kind, layer.version);
                return Err(Refusal::new(Code::Session, reason));
            }
            return Ok(Taken::Other(other));
        }
        let movable = self.movable(offer.flow.remote()).await;
        let movable = movable.map_err(|error| Refusal::other(error.to_string()))?;
        let ready = movable.get_ready(&offer.layers).await?;
        Ok(Taken::Client(Box::new(movable), ready))
    }

    async fn arrived(self: Arc<Self>, mut arrived: Arrived) {
        let flow = arrived.flow;
        let taken = arrived.ready.take();
        let Some(taken) = taken.and_then(|ready| ready.downcast::<Taken<M, K>>().ok()) else {
            tracing::error!(%flow, "a connection arrived for which nobody was asked: it is closed");
            return;
        };
        let mut arrival = Arrival::from(arrived);
        let (movable, ready) = match *taken {
            Taken::Client(movable, ready) => (*movable, ready),
            Taken::Other(other) => return (self.others[other].take)(arrival).await,
        };
        arrival.ready = Some(Box::new(ready) as Box<dyn Any + Send>);
        if let Err(error) = self.server(movable).arrived(arrival).await {
            tracing::warn!(%flow, %error, "a connection that moved here is closed");
        }
    }
}

/// The next connection; waits for as long as there can be none.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Too many descriptors, or no memory: connections that end give some back.
                tracing::error!(%error, "nothing can be accepted");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

async fn run<M: MakeServices, K: Carriers>(
    serve: Serve<M, K>,
    drain: Option<drain::Drain>,
) -> Served {
    let Serve {
        listener,
        make_service,
        site,
        movable,
        #[cfg(feature = "http2")]
        speaks_http2,
        others,
    } = serve;
    let serving = Arc::new(Serving {
        make: Mutex::new(make_service),
        movable,
        #[cfg(feature = "http2")]
        speaks_http2,
        others,
        live: Live::default(),
        drains: AtomicBool::new(false),
    });
    let takes = serving.clone();
    let mut arrivals = site
        .acceptor()
        .accept_async(move |offer| takes.clone().take(offer))
        .serve();
    let mut tasks = JoinSet::new();
    let (signal, plan) = match drain {
        Some(drain::Drain { signal, plan }) => (signal, Some(plan)),
        None => (Box::pin(std::future::pending()) as drain::Signal, None),
    };
    let mut signal = signal;
    loop {
        tokio::select! {
            (stream, peer) = accept(&listener) => {
                tasks.spawn(serving.clone().accept(stream, peer));
            }
            Some(arrived) = arrivals.next() => {
                tasks.spawn(serving.clone().arrived(arrived));
            }
            Some(_) = tasks.join_next() => {}
            () = &mut signal => break,
        }
    }
    serving.drains.store(true, Ordering::Relaxed);
    // Who has connected before is not cut off by the end of the listener.
    while let Ok((stream, peer)) = timeout(Duration::ZERO, accept(&listener)).await {
        tasks.spawn(serving.clone().accept(stream, peer));
    }
    drop(listener);
    let Some(plan) = plan else {
        return Served::default();
    };
    let (way, live) = (site.mover(), serving.live.clone());
    let mut draining = std::pin::pin!(plan.run(&way, &live));
    let served = loop {
        tokio::select! {
            served = &mut draining => break served,
            // What had been agreed to before arrives, and leaves with the others.
            Some(arrived) = arrivals.next() => {
                tasks.spawn(serving.clone().arrived(arrived));
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    };
    tasks.shutdown().await;
    served
}
