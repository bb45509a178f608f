//! Peers that break the rules: they get no further than with hyper alone.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{Request, Response};
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tcpmig::http::{Ended, Movable};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::host::{in_time, moment};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;
const STREAM_CLOSED: u32 = 5;

/// `GET http:///`, from the static table.
const GET: &[u8] = &[0x82, 0x86, 0x84];

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

fn request(id: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, id, GET)
}

fn reset(id: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())
}

fn ids() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// Answers nothing, and counts what it is asked and what it has not been let off.
#[derive(Clone, Default)]
struct Count(Arc<Counts>);

#[derive(Default)]
struct Counts {
    asked: AtomicUsize,
    open: AtomicUsize,
}

struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Count {
    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::Relaxed)
    }

    fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }
}

impl<B: Send + 'static> Service<Request<B>> for Count {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.0.clone());
        Box::pin(async move {
            let _kept = (request, open);
            pending().await
        })
    }
}

/// What the peer has to do with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Server {
    Hyper,
    Movable,
    /// The same behind a move.
    Moved,
}

const ALL: [Server; 3] = [Server::Hyper, Server::Movable, Server::Moved];

/// A peer whose connection has begun.
struct Peer {
    stream: TcpStream,
    count: Count,
    /// Each asks for a move, and is told whether there was one.
    orders: mpsc::UnboundedSender<oneshot::Sender<bool>>,
}

/// How far an attack came.
#[derive(Debug, PartialEq)]
struct Outcome {
    asked: usize,
    goaway: Option<u32>,
    /// How many frames the peer got: SETTINGS, PING, and those that reset a stream.
    answers: [usize; 3],
}

impl Peer {
    async fn new(server: Server) -> Self {
        let count = Count::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, (accepted, _)) = (stream.unwrap(), accepted.unwrap());
        stream.set_nodelay(true).unwrap();
        let (orders, asked) = mpsc::unbounded_channel();
        let service = count.clone();
        if server == Server::Hyper {
            let builder = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(accepted), service));
        } else {
            let movable = Movable::new(service).with_http2();
            let movable = movable.drain_within(Duration::from_millis(300));
            tokio::spawn(serve(movable, accepted, asked));
        }
        let mut peer = Self {
            stream,
            count,
            orders,
        };
        peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        peer.send(&frame(SETTINGS, 0, 0, &[])).await;
        peer.send(&frame(SETTINGS, ACK, 0, &[])).await;
        peer.is_read().await;
        if server == Server::Moved {
            assert!(in_time(peer.begin_move()).await.unwrap());
            peer.is_read().await;
        }
        peer
    }

    fn begin_move(&self) -> oneshot::Receiver<bool> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(answer).unwrap();
        answered
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Waits until the server has read everything.
    async fn is_read(&mut self) {
        self.send(&frame(PING, 0, 0, &[7; 8])).await;
        while let Some((kind, payload)) = next(&mut self.stream).await {
            if kind == PING && payload == [7; 8] {
                return;
            }
        }
        panic!("the connection ends");
    }

    /// Sends this, and reads until all of it is answered or the server ends it.
    async fn attack(self, bytes: Vec<u8>) -> Outcome {
        let (mut reads, mut writes) = self.stream.into_split();
        let writing = tokio::spawn(async move {
            // The server may have had enough.
            let _ = writes.write_all(&bytes).await;
            let _ = writes.write_all(&frame(PING, 0, 0, &[9; 8])).await;
            // It is closed by the server.
            pending::<()>().await;
        });
        let mut outcome = Outcome {
            asked: 0,
            goaway: None,
            answers: [0; 3],
        };
        while let Some((kind, payload)) = next(&mut reads).await {
            match kind {
                SETTINGS => outcome.answers[0] += 1,
                PING if payload == [9; 8] => break,
                PING => outcome.answers[1] += 1,
                RST_STREAM => outcome.answers[2] += 1,
                GOAWAY => {
                    outcome.goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
                }
                _ => {}
            }
        }
        writing.abort();
        outcome.asked = self.count.asked();
        outcome
    }
}

/// The next frame: its kind and its payload.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    in_time(stream.read_exact(&mut head)).await.ok()?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(len).unwrap()];
    in_time(stream.read_exact(&mut payload)).await.ok()?;
    Some((head[3], payload))
}

async fn serve(
    movable: Movable<Count>,
    stream: TcpStream,
    mut orders: mpsc::UnboundedReceiver<oneshot::Sender<bool>>,
) {
    let mut connection = movable.connection(stream).unwrap();
    loop {
        let mut order = None;
        let ended = connection.run(async {
            match orders.recv().await {
                Some(next) => order = Some(next),
                None => pending().await,
            }
        });
        connection = match ended.await {
            Ok(Ended::Drained(drained)) => {
                let parts = drained.into_parts().unwrap();
                let connection = movable.resume_parts(parts).unwrap();
                let _ = order.unwrap().send(true);
                connection
            }
            Ok(Ended::Busy(connection, _)) => {
                let _ = order.unwrap().send(false);
                connection
            }
            _ => return,
        };
    }
}

/// How far this comes with each kind of server.
async fn outcomes(bytes: &[u8]) -> [Outcome; 3] {
    let [a, b, c] = ALL.map(async |server| Peer::new(server).await.attack(bytes.to_vec()).await);
    [a.await, b.await, c.await]
}

#[tokio::test]
async fn requests_that_are_reset_at_once_end_the_connection() {
    let bytes: Vec<_> = ids()
        .take(400)
        .flat_map(|id| [request(id), reset(id)].concat())
        .collect();
    for outcome in outcomes(&bytes).await {
        assert_eq!(
            (outcome.asked, outcome.goaway),
            (0, Some(ENHANCE_YOUR_CALM))
        );
    }
}

#[tokio::test]
async fn a_request_that_is_reset_before_it_is_given_is_not_given() {
    for server in ALL {
        let mut peer = Peer::new(server).await;
        for id in ids().take(100) {
            let both = [request(id), reset(id)].concat();
            peer.send(&both).await;
            peer.is_read().await;
        }
        // hyper gives them to its service, and takes them back.
        let asked = if server == Server::Hyper { 100 } else { 0 };
        assert_eq!(peer.count.asked(), asked, "{server:?}");
        // What comes behind them is served, with their part in the table of headers.
        peer.send(&request(1001)).await;
        peer.is_read().await;
        assert_eq!(peer.count.asked(), asked + 1, "{server:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_reset_later_is_taken_back() {
    for server in ALL {
        let mut peer = Peer::new(server).await;
        for id in ids().take(300) {
            peer.send(&request(id)).await;
            peer.is_read().await;
            peer.send(&reset(id)).await;
        }
        peer.is_read().await;
        assert_eq!(peer.count.asked(), 300, "{server:?}");
        let gone = async {
            while peer.count.open() > 0 {
                moment().await;
            }
        };
        in_time(gone).await;
    }
}

#[tokio::test]
async fn a_request_that_is_reset_while_it_is_held_back_is_not_given() {
    let mut peer = Peer::new(Server::Movable).await;
    // The service does not answer it: it is waited for.
    peer.send(&request(1)).await;
    peer.is_read().await;
    let moved = peer.begin_move();
    moment().await;
    let body = frame(DATA, 0, 3, &[7; 10_000]);
    for id in ids().skip(1).take(100) {
        peer.send(&frame(HEADERS, END_HEADERS, id, GET)).await;
        if id == 3 {
            peer.send(&body).await;
        }
        peer.is_read().await;
        peer.send(&reset(id)).await;
    }
    peer.send(&request(1001)).await;
    peer.is_read().await;
    assert_eq!(in_time(moved).await, Ok(false));
    peer.is_read().await;
    assert_eq!(peer.count.asked(), 2);
    assert_eq!(peer.count.open(), 2);
}

#[tokio::test]
async fn a_stream_is_not_opened_again() {
    for server in [Server::Movable, Server::Moved] {
        let mut peer = Peer::new(server).await;
        peer.send(&[request(1), reset(1)].concat()).await;
        peer.is_read().await;
        let outcome = peer.attack(request(1)).await;
        assert_eq!((outcome.asked, outcome.goaway), (0, Some(STREAM_CLOSED)));
    }
}

#[tokio::test]
async fn a_header_block_without_an_end_ends_the_connection() {
    let mut bytes = frame(HEADERS, END_STREAM, 1, GET);
    bytes.extend((0..10_000).flat_map(|_| frame(CONTINUATION, 0, 1, &[])));
    for outcome in outcomes(&bytes).await {
        assert_eq!(
            (outcome.asked, outcome.goaway),
            (0, Some(ENHANCE_YOUR_CALM))
        );
    }
}

#[tokio::test]
async fn headers_that_are_too_large_are_not_given() {
    let field = |value: &[u8]| {
        let len = value.len() - 127;
        // Without indexing, a name of one letter, and a length in three bytes.
        let len = [0x7f, (len % 128 + 128) as u8, (len / 128) as u8];
        [&[0x00, 1, b'x'], &len[..], value].concat()
    };
    let large = field(&[b'y'; 16_000]);
    let [first, next] = [[GET, &large].concat(), large];
    let bytes = [
        frame(HEADERS, END_STREAM, 1, &first),
        frame(CONTINUATION, 0, 1, &next),
        frame(CONTINUATION, END_HEADERS, 1, &next),
    ]
    .concat();
    let [hyper, movable, moved] = outcomes(&bytes).await;
    assert_eq!(hyper.asked, 0);
    assert_eq!(movable, hyper);
    assert_eq!(moved, hyper);
}

#[tokio::test]
async fn bytes_that_stand_for_thousands_are_not_given() {
    // An entry of 4000 bytes, again and again.
    let entry = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let block = [GET, &entry, &[0xbe; 10_000]].concat();
    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    let [hyper, movable, moved] = outcomes(&bytes).await;
    assert_eq!(hyper.asked, 0);
    assert_eq!(movable, hyper);
    assert_eq!(moved.asked, 0);
    assert!(moved.goaway.is_some());
}

#[tokio::test]
async fn empty_frames_of_a_body_end_the_connection() {
    let mut bytes = frame(HEADERS, END_HEADERS, 1, GET);
    bytes.extend((0..1000).flat_map(|_| frame(DATA, 0, 1, &[])));
    let [hyper, movable, moved] = outcomes(&bytes).await;
    assert_eq!(hyper.goaway, Some(ENHANCE_YOUR_CALM));
    for outcome in [movable, moved] {
        assert_eq!(outcome.goaway, hyper.goaway);
        // Its request is given before its body has come, if hyper looks at it first.
        assert!(outcome.asked <= 1);
    }
}

#[tokio::test]
async fn each_ping_and_each_setting_is_answered_once() {
    let mut bytes = Vec::new();
    for _ in 0..3000 {
        bytes.extend(frame(PING, 0, 0, &[1; 8]));
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
    }
    for outcome in outcomes(&bytes).await {
        let expected = Outcome {
            asked: 0,
            goaway: None,
            answers: [3000, 3000, 0],
        };
        assert_eq!(outcome, expected);
    }
}

#[tokio::test]
async fn streams_that_the_server_has_to_reset_end_the_connection() {
    let grow = |id| frame(WINDOW_UPDATE, 0, id, &0x7fff_ffff_u32.to_be_bytes());
    let bytes: Vec<_> = ids()
        .take(1200)
        .flat_map(|id| [request(id), grow(id)].concat())
        .collect();
    for outcome in outcomes(&bytes).await {
        assert_eq!(outcome.goaway, Some(ENHANCE_YOUR_CALM));
        // So many streams the server resets before it has had enough.
        assert!(outcome.asked <= 1024 + 1, "{outcome:?}");
    }
}
