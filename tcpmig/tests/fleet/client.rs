//! The clients: many connections, each of which has to have every answer once and in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::SinkExt;
use futures_util::stream::{self, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tcpmig_sys::lab::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Keys, NAME, Orders, Spread};

/// How many connect at a time.
const CONNECTING: usize = 32;
/// Over how many tasks the load is spread: so many requests can be on their way.
const AT_ONCE: usize = 64;

/// What the clients do.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) keys: Keys,
    pub(crate) address: SocketAddr,
    pub(crate) sessions: usize,
    /// Requests a second, on all sessions together.
    pub(crate) rate: u32,
    /// WebSockets instead of requests.
    pub(crate) talk: bool,
}

/// What they saw.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    /// Of each session that failed, why; it is not used again.
    pub(crate) failed: Vec<String>,
    /// How long an answer took, in microseconds.
    pub(crate) answered_us: Spread,
}

enum Session {
    Asks(Box<TlsStream<TcpStream>>),
    Talks(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

struct Client {
    session: Session,
    port: u16,
    count: u64,
}

impl Client {
    async fn connect(task: &Task, tls: &TlsConnector) -> Self {
        let stream = TcpStream::connect(task.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let port = stream.local_addr().unwrap().port();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = tls.connect(name, stream).await.unwrap();
        let session = if task.talk {
            let (socket, _) = client_async(format!("ws://{NAME}/"), stream).await.unwrap();
            Session::Talks(Box::new(socket))
        } else {
            Session::Asks(Box::new(stream))
        };
        Self {
            session,
            port,
            count: 0,
        }
    }

    /// One request and its answer.
    async fn ask(&mut self) -> Result<(), String> {
        self.count += 1;
        let answer = timeout(PATIENCE, self.session.ask()).await;
        let answer = answer.unwrap_or(Err("no answer".to_owned()));
        let number = answer.map_err(|why| format!("request {}: {why}", self.count))?;
        if number == self.count {
            Ok(())
        } else {
            Err(format!("request {} was answered {number}", self.count))
        }
    }
}

impl Session {
    async fn ask(&mut self) -> Result<u64, String> {
        let text = match self {
            Self::Asks(stream) => ask(stream).await.map_err(|error| error.to_string())?,
            Self::Talks(socket) => {
                let sent = socket.send("hello".into()).await;
                sent.map_err(|error| error.to_string())?;
                match socket.next().await {
                    Some(Ok(message)) => message.to_string(),
                    other => return Err(format!("{other:?}")),
                }
            }
        };
        text.parse().map_err(|_| format!("{text:?}"))
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    const BODY: usize = 12;
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && body.len() >= BODY
        {
            return Ok(body.to_owned());
        }
    }
}

fn connector(keys: &Keys) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(keys.authority.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Connects, and does what it is ordered: `load` until `stop`, with all sessions; `ask` until `stop`, with the next one alone.
pub(crate) async fn run(task: &Task, mut orders: Orders) {
    let tls = connector(&task.keys);
    let connecting = (0..task.sessions).map(|_| Client::connect(task, &tls));
    let connecting = stream::iter(connecting).buffer_unordered(CONNECTING);
    let mut clients: Vec<Client> = connecting.collect().await;
    (orders.say)("connected");
    let mut next = 0;
    while let Some(order) = orders.heard.recv().await {
        match order.as_str() {
            "load" => {
                let (stop, stopped) = watch::channel(false);
                let loading = spawn(load(std::mem::take(&mut clients), task.rate, stopped));
                (orders.say)("loading");
                orders.heard.recv().await;
                let _ = stop.send(true);
                let (seen, rest) = loading.await.unwrap();
                clients = rest;
                (orders.say)(&serde_json::to_string(&seen).unwrap());
            }
            "ask" => {
                let at = next % clients.len();
                let client = &mut clients[at];
                next += 1;
                let seen = ask_one(client, &mut orders).await;
                (orders.say)(&serde_json::to_string(&seen).unwrap());
            }
            other => panic!("{other:?} is not an order"),
        }
    }
}

/// Asks with one session as fast as it goes; says its port first.
async fn ask_one(client: &mut Client, orders: &mut Orders) -> Seen {
    let (mut took, mut failed) = (Vec::new(), Vec::new());
    (orders.say)(&client.port.to_string());
    while orders.heard.try_recv() == Err(mpsc::error::TryRecvError::Empty) {
        let begin = Instant::now();
        if let Err(why) = client.ask().await {
            failed.push(why);
            break;
        }
        took.push(begin.elapsed().as_micros() as u64);
    }
    Seen {
        requests: took.len() as u64,
        failed,
        answered_us: Spread::of(took),
    }
}

/// Asks with all of them in turn until it is stopped, and then with each once more.
async fn load(
    clients: Vec<Client>,
    rate: u32,
    stopped: watch::Receiver<bool>,
) -> (Seen, Vec<Client>) {
    let tasks = AT_ONCE.min(clients.len());
    let pause = Duration::from_secs(1) * tasks as u32 / rate.max(1);
    let mut parts: Vec<Vec<Client>> = (0..tasks).map(|_| Vec::new()).collect();
    for (at, client) in clients.into_iter().enumerate() {
        parts[at % tasks].push(client);
    }
    let mut asking = JoinSet::new();
    for part in parts {
        asking.spawn(ask_in_turn(part, pause, stopped.clone()));
    }
    let (mut rest, mut took, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(done) = asking.join_next().await {
        let (part, times, why) = done.unwrap();
        rest.extend(part);
        took.extend(times);
        failed.extend(why);
    }
    let seen = Seen {
        requests: took.len() as u64,
        failed,
        answered_us: Spread::of(took),
    };
    (seen, rest)
}

async fn ask_in_turn(
    mut clients: Vec<Client>,
    pause: Duration,
    stopped: watch::Receiver<bool>,
) -> (Vec<Client>, Vec<u64>, Vec<String>) {
    let (mut took, mut failed) = (Vec::new(), Vec::new());
    let mut at = 0;
    let mut due = tokio::time::Instant::now();
    while !*stopped.borrow() && !clients.is_empty() {
        at %= clients.len();
        let begin = Instant::now();
        match clients[at].ask().await {
            Ok(()) => {
                took.push(begin.elapsed().as_micros() as u64);
                at += 1;
            }
            Err(why) => {
                failed.push(why);
                drop(clients.remove(at));
            }
        }
        due += pause;
        if due > tokio::time::Instant::now() {
            sleep_until(due).await;
        } else {
            // It is late: as fast as it goes, and the others have their turn.
            sleep(Duration::ZERO).await;
        }
    }
    for mut client in std::mem::take(&mut clients) {
        let begin = Instant::now();
        match client.ask().await {
            Ok(()) => {
                took.push(begin.elapsed().as_micros() as u64);
                clients.push(client);
            }
            Err(why) => failed.push(why),
        }
    }
    (clients, took, failed)
}
