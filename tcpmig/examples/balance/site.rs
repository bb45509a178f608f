//! A web server of the example, and how it moves connections with its own privileges.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tcpmig::driver::policy::{Policy, Rules};
use tcpmig::driver::{Acceptor, Destination, Mover, Options, Report};
use tcpmig::http::{ConnectionState, Movable, Server, State, move_connections};
use tcpmig::session::{Carriers, Way};
use tcpmig::steer::Redirected;
use tcpmig_sys::lab::Host;
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::keys::Issued;
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::sync::{mpsc, oneshot};

use crate::{Result, SERVICE};

/// Moves that run at the same time.
const AT_ONCE: usize = 4;

/// What a server knows of each connection, and what moves with it.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Served {
    requests: u64,
}

impl ConnectionState for Served {
    const KIND: &'static str = "balance";
    const VERSION: u32 = 1;
}

async fn hello(Extension(served): Extension<State<Served>>) -> String {
    let mut served = served.lock();
    served.requests += 1;
    format!("request {:012} on this connection\n", served.requests)
}

pub(crate) type App = TowerToHyperService<Router>;

/// What every server serves, over these.
pub(crate) fn movable<K: Carriers>(carriers: K) -> Movable<App, K> {
    let router = Router::new().route("/", get(hello));
    Movable::new(TowerToHyperService::new(router))
        .with_state::<Served>()
        .with_http2()
        .over(carriers)
}

/// What became of connections that were to move.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// For how long each that moved stood still, in microseconds.
    pub(crate) still_us: Vec<u64>,
    /// Why others did not.
    pub(crate) not_moved: Vec<String>,
}

/// Moves so many connections of a server.
pub(crate) async fn move_some<K: Carriers, W: Way>(
    server: &Server<App, K>,
    count: usize,
    way: &W,
    to: &W::Destination,
    us: impl Fn(&W::Report) -> u64,
) -> Moved {
    let mut handles = server.connections();
    handles.truncate(count);
    let mut moved = Moved::default();
    for (_, result) in move_connections(handles, way, to, AT_ONCE).await {
        match result {
            Ok(report) => moved.still_us.push(us(&report)),
            Err(why) => moved.not_moved.push(why.to_string()),
        }
    }
    moved
}

/// A server on a host of its own.
pub(crate) trait Site {
    /// How many connections it has.
    fn count(&self) -> Result<usize>;

    /// Moves so many to that server; this returns when all have moved.
    fn move_some(&self, count: usize, to: usize) -> Result<Moved>;
}

pub(crate) fn own_address(number: usize) -> SocketAddr {
    // INVARIANT: there are at most 60 servers.
    SocketAddr::new(IpAddr::from([198, 18, 0, number as u8 + 1]), 7077)
}

pub(crate) fn own_name(number: usize) -> String {
    format!("server-{}", number + 1)
}

/// A server that moves connections itself: a thread in its host's network namespace.
pub(crate) struct Privileged<K> {
    server: Server<App, K>,
    orders: mpsc::UnboundedSender<Order>,
}

/// Move so many connections to that server.
struct Order {
    count: usize,
    to: usize,
    done: oneshot::Sender<Moved>,
}

impl<K: Carriers> Site for Privileged<K> {
    fn count(&self) -> Result<usize> {
        Ok(self.server.count())
    }

    fn move_some(&self, count: usize, to: usize) -> Result<Moved> {
        let (done, is_done) = oneshot::channel();
        let order = Order { count, to, done };
        self.orders.send(order).map_err(|_| "a server ended")?;
        is_done.blocking_recv().map_err(|_| "a server ended".into())
    }
}

impl<K: Carriers> Privileged<K> {
    pub(crate) fn start(
        host: &Host,
        number: usize,
        issued: &Issued,
        authority: &str,
        carriers: K,
    ) -> Result<Self> {
        let namespace = Namespace::open(&host.namespace().path())?;
        let (cert, key) = (issued.cert_pem.clone(), issued.key_pem.clone());
        let authority = authority.to_owned();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let run = async || -> Result<()> {
                let (site, work) = Self::open(number, &cert, &key, &authority, carriers).await?;
                let _ = ready.send(site);
                work.await
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let ended = namespace
                .enter_permanently()
                .map_err(Into::into)
                .and_then(|()| runtime.map_err(Into::into))
                .and_then(|runtime| runtime.block_on(run()));
            if let Err(error) = ended {
                eprintln!("{}: {error}", own_name(number));
            }
        });
        is_ready.recv().map_err(|_| "a server did not start".into())
    }

    async fn open(
        number: usize,
        cert: &str,
        key: &str,
        authority: &str,
        carriers: K,
    ) -> Result<(Self, impl Future<Output = Result<()>> + use<K>)> {
        let identity = Identity::from_pem(cert.as_bytes(), key.as_bytes())?;
        let authorities = Authorities::from_pem(authority.as_bytes())?;
        let trust = Trust::only(authorities, (0..60).map(own_name));
        let limits = TransportLimits::default();
        let endpoint = Endpoint::bind(own_address(number), &identity, &trust, limits)?;
        let locker = Arc::new(tcpmig::locker::nftables()?);
        let options = Options::default();
        let mover = Mover::new(endpoint.clone(), locker.clone(), options.clone());
        let movable = movable(carriers);
        let server = Server::new(movable.clone());
        let lease = options.redirect_lease;
        // Nothing but connections of the service, whatever the other servers bring.
        let service: SocketAddr = SERVICE.parse()?;
        let rules = Rules::new().local(service.ip().into());
        let policy = Policy::new().others(rules.ports(service.port()..=service.port()));
        let mut arrivals = Acceptor::new(endpoint, locker)
            .options(options)
            .policy(policy)
            .accept_if(move |offered| Ok(movable.check(offered.layers)?))
            .serve();
        // All could listen; the network brings new connections to the first.
        let listener = tokio::net::TcpListener::bind(SERVICE).await?;
        let (orders, mut ordered) = mpsc::unbounded_channel::<Order>();
        let site = Self {
            server: server.clone(),
            orders,
        };
        let work = async move {
            loop {
                let server = server.clone();
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted?;
                        stream.set_nodelay(true)?;
                        tokio::spawn(async move { server.serve(stream).await });
                    }
                    Some(arrived) = arrivals.next() => {
                        tokio::spawn(async move {
                            if let Err(error) = server.arrived(arrived).await {
                                eprintln!("{}: a connection was closed: {error}", own_name(number));
                            }
                        });
                    }
                    order = ordered.recv() => {
                        let Some(order) = order else { return Ok(()) };
                        let steer = Redirected::new(own_address(order.to).ip(), lease)?;
                        tokio::spawn(obey(server, mover.clone(), order, Arc::new(steer)));
                    }
                }
            }
        };
        Ok((site, work))
    }
}

async fn obey<K: Carriers>(
    server: Server<App, K>,
    mover: Mover,
    order: Order,
    steer: Arc<Redirected>,
) {
    let to = Destination {
        address: own_address(order.to),
        name: own_name(order.to),
        steer,
    };
    let us = |report: &Report| report.blackout.as_micros() as u64;
    let moved = move_some(&server, order.count, &mover, &to, us).await;
    // Nobody asks any more if the program ends.
    let _ = order.done.send(moved);
}
