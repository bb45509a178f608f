//! WebSockets of axum's `WebSocketUpgrade` that move: its handler gets them by `hyper::upgrade`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use futures_util::{SinkExt, StreamExt};
use tcpmig::http::{IntoMovable, Resume};
use tokio_tungstenite::tungstenite::{self, protocol::Role};

use crate::app::Host;
use crate::scene::{OnB, Scene};
use crate::support::{kernel_test, numbered, until};
use crate::websockets::{self, python};

pub(crate) fn routes() -> Router {
    Router::new()
        .route("/handed/forgets", get(forgets))
        .route("/handed/compresses", get(compresses))
        .route("/handed/ticker", get(ticker))
        .route("/handed/both", get(both))
        .route("/handed/lingers", get(lingers))
}

pub(crate) async fn chat(
    upgrade: WebSocketUpgrade,
    resume: Resume<u64>,
    Extension(host): Extension<Host>,
) -> Response {
    let at = resume.clone();
    upgrade
        .protocols(["chat", "other"])
        .on_upgrade(|socket| talk(socket, host, at))
        .movable(resume)
}

/// Answers like the other chat; it remembers how many messages it has got.
async fn talk(mut socket: WebSocket, host: Host, at: Resume<u64>) {
    let mut count = at.cursor().unwrap_or(0);
    at.set(count);
    while let Some(Ok(message)) = socket.recv().await {
        if !matches!(message, Message::Text(_) | Message::Binary(_)) {
            continue;
        }
        count += 1;
        let answer = match message.to_text().unwrap_or_default() {
            "who" => format!("{} {count}", host.name).into(),
            "slow" => {
                host.slow.begun.fetch_add(1, Ordering::Relaxed);
                host.slow.release.notified().await;
                "at last".into()
            }
            "close" => Message::Close(None),
            _ => message,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
        at.set(count);
    }
    // What handlers do at their end, whatever it is: the peer of a connection that moves must not get it.
    if at.is_leaving() {
        socket.send(Message::Close(None)).await.unwrap();
    }
}

/// Never sets its cursor.
async fn forgets(upgrade: WebSocketUpgrade, resume: Resume<u64>) -> Response {
    let answer = async |mut socket: WebSocket| {
        while let Some(Ok(message)) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    };
    upgrade.on_upgrade(answer).movable(resume)
}

/// Says that it compresses.
async fn compresses(upgrade: WebSocketUpgrade, resume: Resume<()>) -> Response {
    let wait = async |mut socket: WebSocket| {
        let _ = socket.recv().await;
    };
    let mut response = upgrade.on_upgrade(wait).movable(resume);
    let deflate = HeaderValue::from_static("permessage-deflate");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, deflate);
    response
}

/// Sends and never reads.
async fn ticker(upgrade: WebSocketUpgrade, resume: Resume<u64>) -> Response {
    let at = resume.clone();
    let tick = async move |mut socket: WebSocket| {
        for number in at.cursor().unwrap_or(1).. {
            let message = number.to_string().into();
            if socket.send(message).await.is_err() {
                return;
            }
            at.set(number + 1);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    upgrade.on_upgrade(tick).movable(resume)
}

/// How much [`both`] sends in one message, in bytes.
const PIECE: usize = 100_000;

/// One task reads and another sends, each as fast as it can, until the peer has said that it has enough.
async fn both(upgrade: WebSocketUpgrade, resume: Resume<String>) -> Response {
    let (at, leaving) = (resume.clone(), resume.clone());
    let talk = async move |socket: WebSocket| {
        let (mut sender, mut receiver) = socket.split();
        let begin = at.cursor().unwrap_or_else(|| "0 0".to_owned());
        let (read, sent) = begin.split_once(' ').unwrap();
        let mut read: u64 = read.parse().unwrap();
        let sent: u64 = sent.parse().unwrap();
        let counts = Arc::new(Mutex::new((read, sent)));
        let set = {
            let counts = counts.clone();
            move |change: &dyn Fn(&mut (u64, u64))| {
                let mut counts = counts.lock().unwrap();
                change(&mut counts);
                at.set(format!("{} {}", counts.0, counts.1));
            }
        };
        set(&|_| ());
        let enough = Arc::new(AtomicBool::new(false));
        let ends = enough.clone();
        let sets = set.clone();
        let sending = tokio::spawn(async move {
            for piece in sent.. {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                let message = numbered(piece * PIECE as u64, PIECE);
                if sender.send(Message::Binary(message.into())).await.is_err() {
                    break;
                }
                sets(&|counts| counts.1 = piece + 1);
            }
            sender
        });
        while let Some(Ok(Message::Binary(message))) = receiver.next().await {
            assert!(message[..] == numbered(read * PIECE as u64, PIECE));
            read += 1;
            set(&|counts| counts.0 = read);
        }
        if leaving.is_leaving() {
            sending.abort();
            return;
        }
        // The peer has said that it has enough.
        enough.store(true, Ordering::Relaxed);
        let mut sender = sending.await.unwrap();
        let _ = sender.send(read.to_string().into()).await;
    };
    upgrade.on_upgrade(talk).movable(resume)
}

kernel_test!(it_moves_between_messages, || {
    websockets::between_messages("/axum-chat");
});
kernel_test!(its_large_messages_are_whole_wherever_they_are_cut, || {
    websockets::large_messages("/axum-chat");
});
kernel_test!(it_moves_between_the_peers_fragments, || {
    websockets::between_fragments("/axum-chat");
});
kernel_test!(it_may_be_cut_anywhere, || {
    websockets::cut_anywhere("/axum-chat");
});
kernel_test!(it_stays_while_it_is_being_closed, || {
    websockets::being_closed("/axum-chat");
});
kernel_test!(a_handler_that_does_not_read_keeps_it, || {
    websockets::at_work("/axum-chat");
});

/// A client that opens a WebSocket by hand.
pub(crate) fn open(scene: &Scene, path: &str) -> TcpStream {
    let stream = crate::requests::connect(scene);
    ask(&stream, path);
    stream
}

/// Asks for a WebSocket, and reads the answer to its end.
pub(crate) fn ask(mut stream: &TcpStream, path: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    head
}

/// A library's WebSocket on a connection that is one.
pub(crate) fn client(stream: TcpStream) -> tungstenite::WebSocket<TcpStream> {
    tungstenite::WebSocket::from_raw_socket(stream, Role::Client, None)
}

kernel_test!(both_directions_are_whole_wherever_they_are_cut, || {
    let mut scene = Scene::new();
    let stream = open(&scene, "/handed/both");
    let mut writer = client(stream.try_clone().unwrap());
    let mut reader = client(stream);
    let moved = AtomicBool::new(false);
    let (written, read) = std::thread::scope(|threads| {
        let writing = threads.spawn(|| {
            let mut pieces = 0;
            while !moved.load(Ordering::Relaxed) {
                let message = numbered(pieces * PIECE as u64, PIECE);
                writer.send(message.into()).unwrap();
                pieces += 1;
            }
            pieces
        });
        let reading = threads.spawn(|| {
            let mut pieces = 0;
            while !moved.load(Ordering::Relaxed) {
                let message = reader.read().unwrap().into_data();
                let piece = numbered(pieces * PIECE as u64, PIECE);
                assert!(message[..] == piece, "piece {pieces}");
                pieces += 1;
            }
            pieces
        });
        for _ in 0..10 {
            scene.hop();
        }
        moved.store(true, Ordering::Relaxed);
        (writing.join().unwrap(), reading.join().unwrap())
    });
    assert!(written > 10 && read > 10, "{written} and {read} pieces");
    // What was read of what was written is the handler's to check; it answers with its number.
    writer.send("enough".into()).unwrap();
    let last = std::iter::from_fn(|| reader.read().ok()).find(tungstenite::Message::is_text);
    assert_eq!(last, Some(written.to_string().into()));
});

kernel_test!(a_handler_that_never_reads_keeps_it, || {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let mut client = client(open(&scene, "/handed/ticker"));
    let mut numbers = (1..).map(|number: u64| {
        assert_eq!(client.read().unwrap(), number.to_string().into());
    });
    numbers.by_ref().take(10).for_each(drop);
    let why = scene.stays();
    assert!(why.contains("handler of the WebSocket is still"), "{why}");
    numbers.take(100).for_each(drop);
    assert_eq!(scene.counts(), [1, 0]);
});

kernel_test!(a_handler_without_a_cursor_keeps_it, || {
    let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
    let mut client = client(open(&scene, "/handed/forgets"));
    for message in ["one", "two"] {
        client.send(message.into()).unwrap();
        assert_eq!(client.read().unwrap(), message.into());
        let why = scene.stays();
        assert!(why.contains("its handler has not set one"), "{why}");
    }
});

kernel_test!(a_handler_that_has_done_nothing_needs_no_cursor, || {
    let mut scene = Scene::new();
    let mut client = client(open(&scene, "/handed/forgets"));
    scene.hop();
    client.send("one".into()).unwrap();
    assert_eq!(client.read().unwrap(), "one".into());
});

kernel_test!(compression_is_refused_by_name, || {
    let scene = Scene::new();
    let stream = open(&scene, "/handed/compresses");
    let why = scene.stays();
    assert!(why.contains("the WebSocket has extensions"), "{why}");
    drop(stream);
    until("it is over", || scene.counts() == [0, 0]);
});

/// It is not taken at host B, where its route is this, for this reason; it goes on at host A, whose handler begins again.
fn is_refused(file: MethodRouter, words: &[&str]) {
    let scene = Scene::with(&OnB::Asked(Box::new(file)), Duration::from_secs(5));
    let stream = crate::requests::connect(&scene);
    ask(&stream, "/axum-chat");
    let mut client = client(stream);
    for round in 1..=3 {
        client.send("who".into()).unwrap();
        assert_eq!(client.read().unwrap(), format!("a {round}").into());
        let why = scene.stays();
        for word in words {
            assert!(why.contains(word), "{word:?} is not in {why:?}");
        }
    }
    client.close(None).unwrap();
    while client.read().is_ok() {}
    until("it is over", || scene.counts() == [0, 0]);
}

async fn other_cursors(upgrade: WebSocketUpgrade, resume: Resume<String>) -> Response {
    upgrade.on_upgrade(async |_| ()).movable(resume)
}

async fn not_movable(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |_| panic!("it is not to begin"))
}

async fn other_protocol(upgrade: WebSocketUpgrade, resume: Resume<u64>) -> Response {
    let mut response = upgrade
        .on_upgrade(async |_| panic!("it is not to begin"))
        .movable(resume);
    let headers = response.headers_mut();
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static("chat"),
    );
    response
}

kernel_test!(a_route_that_is_gone_refuses_it, || is_refused(
    get(async || StatusCode::NOT_FOUND),
    &["refused it", "request of a WebSocket", "404 Not Found"]
));
kernel_test!(a_handler_that_is_not_movable_refuses_it, || is_refused(
    get(not_movable),
    &["101 Switching Protocols", "did not take it"]
));
kernel_test!(a_cursor_of_another_kind_refuses_it, || is_refused(
    get(other_cursors),
    &["409 Conflict", "is u64 version 1", "string version 1"]
));
kernel_test!(other_terms_refuse_it, || is_refused(
    get(other_protocol),
    &["the protocol \"chat\"", "no protocol"]
));
kernel_test!(compression_on_the_target_refuses_it, || is_refused(
    get(compresses_u64),
    &["permessage-deflate", "no extensions"]
));

async fn compresses_u64(upgrade: WebSocketUpgrade, resume: Resume<u64>) -> Response {
    let response = upgrade.on_upgrade(async |_| ()).movable(resume);
    let deflate = (header::SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate");
    ([deflate], response).into_response()
}

kernel_test!(the_agreed_protocol_stays, || {
    let mut scene = Scene::new();
    let mut client = python(
        &scene,
        "/axum-chat",
        "async def session(ws):\n    \
             assert ws.subprotocol == 'other', ws.subprotocol\n    \
             while await go():\n        \
                 await ws.send('who')\n        \
                 say(await ws.recv())\n\
         run(session, subprotocols=['other', 'none'])\n",
    );
    for hop in 1..=4 {
        scene.hop();
        client.go();
        client.says(&format!("{} {hop}", ["a", "b"][scene.at]));
    }
    client.end_of_python();
});

kernel_test!(what_came_with_the_request_is_carried, || {
    // A client that does not wait for the answer: messages come with the request.
    let mut scene = Scene::new();
    let mut stream = crate::requests::connect(&scene);
    let mut written = Vec::new();
    {
        let mut library = tungstenite::WebSocket::from_raw_socket(
            std::io::Cursor::new(&mut written),
            Role::Client,
            None,
        );
        for message in ["one", "two", "slow", "three", "who"] {
            library.send(message.into()).unwrap();
        }
    }
    let request = "GET /axum-chat HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\n\r\n";
    let cut = written.len() - 3;
    stream
        .write_all(&[request.as_bytes(), &written[..cut]].concat())
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    scene.slow_begins();
    let moving = scene.begin_move();
    scene.take_turns();
    scene.slow.release.notify_one();
    moving.wait().expect("it moves");
    scene.at = 1;
    stream.write_all(&written[cut..]).unwrap();
    let mut client = client(stream);
    for message in ["one", "two", "at last", "three", "b 5"] {
        assert_eq!(client.read().unwrap(), message.into());
    }
});

kernel_test!(
    a_handler_that_returns_late_begins_again_where_it_was,
    || {
        // It is told to return, and does when nobody waits for it any longer.
        let scene = Scene::with(&OnB::Visits, Duration::from_millis(300));
        let mut client = client(open(&scene, "/handed/lingers"));
        client.send("one".into()).unwrap();
        assert_eq!(client.read().unwrap(), "1".into());
        let why = scene.stays();
        assert!(why.contains("handler of the WebSocket is still"), "{why}");
        scene.slow.release.notify_one();
        client.send("two".into()).unwrap();
        assert_eq!(client.read().unwrap(), "2".into());
        assert_eq!(scene.counts(), [1, 0]);
    }
);

/// Takes its time when it is told to return.
async fn lingers(
    upgrade: WebSocketUpgrade,
    resume: Resume<u64>,
    Extension(host): Extension<Host>,
) -> Response {
    let at = resume.clone();
    let count = async move |mut socket: WebSocket| {
        let mut count = at.cursor().unwrap_or(0);
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, Message::Text(_)) {
                count += 1;
                let answer = count.to_string().into();
                socket.send(answer).await.unwrap();
                at.set(count);
            }
        }
        if at.is_leaving() {
            host.slow.release.notified().await;
        }
    };
    upgrade.on_upgrade(count).movable(resume)
}
