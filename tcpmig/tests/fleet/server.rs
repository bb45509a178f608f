//! A server, with either way to other hosts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::service::Service as HyperService;
use hyper::{Request, Response};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tcpmig::agent::{Client, Drain, Event, Service};
use tcpmig::driver::{Acceptor, Destination, Mover, Options, Report};
use tcpmig::http::websocket::WebSocket;
use tcpmig::http::{ConnectionState, Handle, Movable, RequestBody, Server, State};
use tcpmig::session::{Arrival, Way};
use tcpmig::steer::Redirected;
use tcpmig::tls::Tls;
use tcpmig_sys::lab::PATIENCE;
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Keys, Orders, SERVICE, Say, Spread};

/// How many connections stand still at a time.
const AT_ONCE: usize = 32;

/// By which way its connections leave.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Through {
    /// By the agent at this socket, to this host.
    Agent(PathBuf, String),
    /// By itself, with its own privileges: its address, that of the other host, and keys of both.
    Itself([SocketAddr; 2], [String; 3]),
}

/// What a server knows of a connection.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Served {
    requests: u64,
}

impl ConnectionState for Served {
    const KIND: &'static str = "fleet";
    const VERSION: u32 = 1;
}

/// What it says at the end of a drain.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Drained {
    pub(crate) moved: usize,
    /// How often a connection was kept, and tried again.
    pub(crate) kept: usize,
    /// Why the first few were.
    pub(crate) reasons: Vec<String>,
    /// For how long each stood still, in microseconds, as the hosts say.
    pub(crate) blackout_us: Spread,
}

/// Answers each request, and each message of a WebSocket, with its number.
#[derive(Clone, Copy)]
pub(crate) struct App;

impl HyperService<Request<RequestBody>> for App {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        if let Ok(upgrade) = create_response_with_body(&request, Full::default) {
            return ready(Ok(upgrade));
        }
        let served = request.extensions().get::<State<Served>>();
        let number = served.map_or(0, count);
        ready(Ok(Response::new(format!("{number:012}").into())))
    }
}

fn count(served: &State<Served>) -> u64 {
    let mut served = served.lock();
    served.requests += 1;
    served.requests
}

async fn chat(socket: WebSocket) {
    let Some(served) = socket.state::<Served>() else {
        return;
    };
    let stream = socket.into_stream();
    let mut messages = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    // An error is the end of the connection, or of its life here.
    while let Some(Ok(message)) = messages.next().await {
        if message.is_text() {
            let number = count(&served);
            if messages.send(number.to_string().into()).await.is_err() {
                return;
            }
        }
    }
}

pub(crate) fn tls(keys: &Keys) -> Tls {
    let chain = CertificateDer::from_pem_slice(keys.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(keys.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    Tls::new(config)
}

pub(crate) fn movable(keys: &Keys) -> Movable<App, Tls> {
    Movable::new(App)
        .with_state::<Served>()
        .with_websockets(chat)
        .drain_within(PATIENCE)
        .over(tls(keys))
}

/// Serves until all connections have left, or nobody orders anything any more.
pub(crate) async fn serve(keys: &Keys, through: Through, mut orders: Orders) {
    let site = Site {
        server: Server::new(movable(keys)),
        say: orders.say.clone(),
    };
    let listener = listen(SERVICE.parse().unwrap());
    match through {
        Through::Agent(socket, to) => {
            let agent = Client::connect(socket).await.unwrap();
            let movable = movable(keys);
            let service = Service::new("counter").address(SERVICE.parse().unwrap());
            let service = service.takes(move |offer| {
                let movable = movable.clone();
                async move { Ok(movable.check(&offer.layers)?) }
            });
            let mut events = agent.register(service).await.unwrap();
            let way = agent.way("counter");
            (site.say)("ready");
            loop {
                tokio::select! {
                    accepted = listener.accept() => site.accepted(accepted),
                    event = events.next() => match event {
                        Some(Event::Arrived(arrival)) => site.arrived(arrival),
                        Some(Event::Drain(drain)) => {
                            site.give_all(&way, &drain.hosts()[0], blackout, Some(&drain)).await;
                            break;
                        }
                        _ => break,
                    },
                    order = orders.heard.recv() => match order {
                        Some(order) => site.obey(&order, &way, &to, blackout).await,
                        None => break,
                    }
                }
            }
        }
        Through::Itself([own, other], [cert, key, ca]) => {
            let identity = Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
            let trust = Trust::anyone_signed_by(Authorities::from_pem(ca.as_bytes()).unwrap());
            let limits = TransportLimits::default();
            let endpoint = Endpoint::bind(own, &identity, &trust, limits).unwrap();
            let locker = Arc::new(tcpmig::locker::nftables().unwrap());
            let options = Options::default();
            let way = Mover::new(endpoint.clone(), locker.clone(), options.clone());
            let steer = Redirected::new(other.ip(), options.redirect_lease).unwrap();
            let to = Destination {
                address: other,
                name: host(other),
                steer: Arc::new(steer),
            };
            let movable = movable(keys);
            let mut arrivals = Acceptor::new(endpoint, locker)
                .options(options)
                .accept_if(move |offered| Ok(movable.check(offered.layers)?))
                .serve();
            (site.say)("ready");
            let us = |report: &Report| report.blackout.as_micros() as u64;
            loop {
                tokio::select! {
                    accepted = listener.accept() => site.accepted(accepted),
                    Some(arrived) = arrivals.next() => site.arrived(arrived),
                    order = orders.heard.recv() => match order.as_deref() {
                        Some("drain") => {
                            site.give_all(&way, &to, us, None).await;
                            break;
                        }
                        Some(order) => site.obey(order, &way, &to, us).await,
                        None => break,
                    }
                }
            }
        }
    }
}

/// The name of the host with this address.
pub(crate) fn host(address: SocketAddr) -> String {
    let letter = if address.ip().to_string().ends_with(".1") {
        'a'
    } else {
        'b'
    };
    format!("{letter}.example")
}

fn blackout(report: &BTreeMap<String, u64>) -> u64 {
    report["blackout_us"]
}

/// Thousands may connect before one is accepted.
pub(crate) fn listen(address: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    TcpListener::from_std(socket.into()).unwrap()
}

struct Site {
    server: Server<App, Tls>,
    say: Say,
}

impl Site {
    fn accepted(&self, accepted: std::io::Result<(tokio::net::TcpStream, SocketAddr)>) {
        let (stream, _) = accepted.unwrap();
        stream.set_nodelay(true).unwrap();
        let server = self.server.clone();
        tokio::spawn(async move { server.serve(stream).await.map(drop) });
    }

    fn arrived(&self, arrived: impl Into<Arrival>) {
        let (server, say, arrival) = (self.server.clone(), self.say.clone(), arrived.into());
        tokio::spawn(async move {
            if let Err(error) = server.arrived(arrival).await {
                say(&format!("a connection that moved here ended: {error}"));
            }
        });
    }

    /// Moves the connection with this port of its peer, or says how many there are.
    async fn obey<W: Way>(
        &self,
        order: &str,
        way: &W,
        to: &W::Destination,
        us: impl Fn(&W::Report) -> u64,
    ) {
        if order == "count" {
            return (self.say)(&self.server.count().to_string());
        }
        let port = order
            .strip_prefix("move ")
            .and_then(|port| port.parse().ok());
        let port: u16 = port.unwrap_or_else(|| panic!("{order:?} is not an order"));
        let is_meant = |handle: &Handle| handle.peer().port() == port;
        let found = self.server.connections().into_iter().find(is_meant);
        let moved = match found {
            Some(handle) => handle.move_to(way, to).await.map_err(|why| why.to_string()),
            None => Err("it is not here".to_owned()),
        };
        (self.say)(&match moved {
            Ok(report) => us(&report).to_string(),
            Err(why) => why,
        });
    }

    async fn give_all<W: Way>(
        &self,
        way: &W,
        to: &W::Destination,
        us: impl Fn(&W::Report) -> u64,
        drain: Option<&Drain>,
    ) {
        let (mut blackouts, mut kept, mut reasons) = (Vec::new(), 0, Vec::new());
        while self.server.count() > 0 {
            for (_, moved) in self.server.move_all(way, to, AT_ONCE).await {
                match moved {
                    Ok(report) => blackouts.push(us(&report)),
                    Err(why) => {
                        kept += 1;
                        if reasons.len() < 3 {
                            reasons.push(why.to_string());
                        }
                    }
                }
            }
            if let Some(drain) = drain {
                drain.left(self.server.count() as u64);
            }
            if self.server.count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        if let Some(drain) = drain {
            drain.left(0);
        }
        let drained = Drained {
            moved: blackouts.len(),
            kept,
            reasons,
            blackout_us: Spread::of(blackouts),
        };
        (self.say)(&serde_json::to_string(&drained).unwrap());
    }
}
