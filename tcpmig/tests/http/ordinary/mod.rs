//! Ordinary axum servers, after axum's own examples, as they were and as they move. How many of their lines had to
//! change is printed, and is ten at most; the line that reads the site is the tests' own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tcpmig::http::Site;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use crate::handed;
use crate::requests::response;
use crate::served::{Pair, Server};
use crate::support::{kernel_test, numbered, until};

/// Where the server is to which the reverse proxy passes requests on, on the proxy's own host.
pub(crate) const UPSTREAM: &str = "127.0.0.1:3000";

/// What a server gets from outside.
pub(crate) struct Given {
    pub(crate) listener: TcpListener,
    /// Ready when it has to end.
    pub(crate) term: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(crate) folder: PathBuf,
    /// Who this host is, for a server whose connections move.
    pub(crate) site: Site,
    /// Where they go.
    pub(crate) to: &'static str,
}

macro_rules! server {
    ($name:ident) => {
        mod $name {
            pub(crate) mod after;
            #[expect(dead_code, reason = "the other is compared with it")]
            pub(crate) mod before;

            /// How many lines changed.
            pub(crate) fn changed() -> usize {
                super::changed(
                    include_str!(concat!(stringify!($name), "/before.rs")),
                    include_str!(concat!(stringify!($name), "/after.rs")),
                )
            }
        }
    };
}

server!(chat);
server!(graceful_shutdown);
server!(key_value);
server!(reverse_proxy);
server!(sse);
server!(static_files);
server!(stream_to_file);
server!(websockets);

/// How many lines of what it became are not lines of what it was, in their order.
fn changed(before: &str, after: &str) -> usize {
    let before: Vec<_> = before.lines().collect();
    let mut common = vec![0; before.len() + 1];
    let mut lines = 0;
    for line in after.lines() {
        lines += 1;
        let mut diagonal = 0;
        for (index, old) in before.iter().enumerate() {
            let above = common[index + 1];
            common[index + 1] = if *old == line {
                diagonal + 1
            } else {
                above.max(common[index])
            };
            diagonal = above;
        }
    }
    lines - common[before.len()]
}

#[test]
fn ten_lines_change_at_most() {
    assert_eq!(changed("a\nb\nc\n", "a\nc\n"), 0);
    assert_eq!(changed("a\nb\nc\n", "a\nx\nc\ny\n"), 2);
    for (name, lines) in [
        ("sse", sse::changed()),
        ("static-file-server", static_files::changed()),
        ("stream-to-file", stream_to_file::changed()),
        ("key-value-store", key_value::changed()),
        ("graceful-shutdown", graceful_shutdown::changed()),
        ("chat", chat::changed()),
        ("websockets", websockets::changed()),
        ("reverse-proxy", reverse_proxy::changed()),
    ] {
        println!("{name}: {lines} changed lines");
        assert!((1..=10).contains(&lines), "{name}");
    }
}

/// Runs such a server on a host.
fn run<F>(pair: &Pair, host: usize, server: fn(Given) -> F) -> Server<()>
where
    F: Future<Output = ()> + 'static,
{
    let folder = pair.folder().to_owned();
    let to = ["host-b", "host-a"][host];
    let running = pair.run(host, move |listener, site, term| {
        server(Given {
            listener,
            term: Box::pin(async {
                let _ = term.await;
            }),
            folder,
            site,
            to,
        })
    });
    pair.listens(host);
    running
}

/// Moves everything from the server of host A to that of host B, which is the result.
fn hand_over<F>(pair: &Pair, a: Server<()>, server: fn(Given) -> F) -> Server<()>
where
    F: Future<Output = ()> + 'static,
{
    let b = run(pair, 1, server);
    a.end();
    b
}

fn send(mut stream: &TcpStream, head: &str) {
    let request = format!("{head}\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
}

fn text(reader: &mut BufReader<&TcpStream>) -> String {
    String::from_utf8(response(reader).1).unwrap()
}

kernel_test!(events, || {
    let pair = Pair::new();
    let a = run(&pair, 0, sse::after::run);
    let stream = pair.connect();
    send(&stream, "GET /sse HTTP/1.1");
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let mut numbers = lines
        .by_ref()
        .filter_map(|line| line.strip_prefix("data: ")?.parse::<u64>().ok());
    for number in 0..100 {
        assert_eq!(numbers.next(), Some(number));
    }
    let b = hand_over(&pair, a, sse::after::run);
    for number in 100..1000 {
        assert_eq!(numbers.next(), Some(number));
    }
    drop(stream);
    b.end();
});

kernel_test!(files, || {
    const SIZE: usize = 30_000_000;
    let pair = Pair::new();
    fs::write(pair.folder().join("film"), numbered(0, SIZE)).unwrap();
    let a = run(&pair, 0, static_files::after::run);
    let stream = pair.connect();
    let mut reader = BufReader::new(&stream);
    send(&stream, "GET /files/film HTTP/1.1");
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let mut body = vec![0; SIZE];
    let (first, rest) = body.split_at_mut(1_000_000);
    reader.read_exact(first).unwrap();
    let b = hand_over(&pair, a, static_files::after::run);
    reader.read_exact(rest).unwrap();
    assert!(body == numbered(0, SIZE));
    // The connection is one of the same server afterwards.
    send(&stream, "GET /files/nothing HTTP/1.1");
    assert!(response(&mut reader).0.starts_with("HTTP/1.1 404"));
    drop(reader);
    drop(stream);
    b.end();
});

kernel_test!(uploads, || {
    const SIZE: usize = 2_000_000;
    let pair = Pair::new();
    let a = run(&pair, 0, stream_to_file::after::run);
    let mut stream = pair.connect();
    let other = stream.try_clone().unwrap();
    let mut reader = BufReader::new(&other);
    let body = numbered(0, SIZE);
    let head = format!("POST /file/film HTTP/1.1\r\nhost: x\r\ncontent-length: {SIZE}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body[..1_000_000]).unwrap();
    let file = pair.folder().join("film");
    until("the upload has begun", || file.exists());
    let sending = std::thread::spawn(move || stream.write_all(&body[1_000_000..]).unwrap());
    // The drain waits for its end.
    let b = hand_over(&pair, a, stream_to_file::after::run);
    sending.join().unwrap();
    assert_eq!(text(&mut reader), format!("{SIZE} bytes\n"));
    assert!(fs::read(&file).unwrap() == numbered(0, SIZE));
    send(&other, "POST /file/none HTTP/1.1");
    assert_eq!(text(&mut reader), "0 bytes\n");
    drop(reader);
    drop(other);
    b.end();
});

kernel_test!(values, || {
    let pair = Pair::new();
    let a = run(&pair, 0, key_value::after::run);
    let stream = pair.connect();
    let mut reader = BufReader::new(&stream);
    let keep = |value: &str| {
        let head = "POST /name HTTP/1.1\r\nhost: x\r\ncontent-length";
        let request = format!("{head}: {}\r\n\r\n{value}", value.len());
        (&stream).write_all(request.as_bytes()).unwrap();
    };
    keep("a value");
    assert_eq!(text(&mut reader), "");
    send(&stream, "GET /name HTTP/1.1");
    assert_eq!(text(&mut reader), "a value");
    let b = hand_over(&pair, a, key_value::after::run);
    // The values are the server's and not the connection's.
    send(&stream, "GET /name HTTP/1.1");
    assert!(response(&mut reader).0.starts_with("HTTP/1.1 404"));
    keep("another");
    assert_eq!(text(&mut reader), "");
    send(&stream, "GET /name HTTP/1.1");
    assert_eq!(text(&mut reader), "another");
    drop(reader);
    drop(stream);
    b.end();
});

kernel_test!(slow_answers, || {
    let pair = Pair::new();
    let a = run(&pair, 0, graceful_shutdown::after::run);
    let [rests, waits] = [pair.connect(), pair.connect()];
    let mut readers = [&rests, &waits].map(BufReader::new);
    send(&rests, "GET / HTTP/1.1");
    assert_eq!(text(&mut readers[0]), "here");
    send(&waits, "GET /slow HTTP/1.1");
    let b = hand_over(&pair, a, graceful_shutdown::after::run);
    assert_eq!(text(&mut readers[1]), "at last");
    for (stream, reader) in [&rests, &waits].into_iter().zip(&mut readers) {
        send(stream, "GET / HTTP/1.1");
        assert_eq!(text(reader), "here");
    }
    drop(readers);
    drop((rests, waits));
    b.end();
});

/// Reads messages of text; the peer is asked nothing else.
fn heard(client: &mut WebSocket<TcpStream>) -> String {
    client.read().unwrap().into_text().unwrap().to_string()
}

fn enters(pair: &Pair, path: &str) -> WebSocket<TcpStream> {
    let stream = pair.connect();
    handed::ask(&stream, path);
    handed::client(stream)
}

kernel_test!(a_chat, || {
    let pair = Pair::new();
    let a = run(&pair, 0, chat::after::run);
    let [mut anna, mut bert] = [(); 2].map(|()| enters(&pair, "/websocket"));
    anna.send("anna".into()).unwrap();
    assert_eq!(heard(&mut anna), "anna joined");
    bert.send("bert".into()).unwrap();
    assert_eq!(heard(&mut anna), "bert joined");
    assert_eq!(heard(&mut bert), "bert joined");
    anna.send("hello".into()).unwrap();
    assert_eq!(heard(&mut bert), "anna: hello");
    assert_eq!(heard(&mut anna), "anna: hello");
    let b = hand_over(&pair, a, chat::after::run);
    // Nobody is asked for a name again. Who says it hears it; Anna's handler may have begun only after that was said.
    bert.send("still here?".into()).unwrap();
    until("Bert hears it", || heard(&mut bert) == "bert: still here?");
    let second = Some(Duration::from_secs(1));
    anna.get_ref().set_read_timeout(second).unwrap();
    until("Anna hears it", || match anna.read() {
        Ok(message) => message.into_text().unwrap() == "bert: still here?",
        Err(_) => {
            bert.send("still here?".into()).unwrap();
            false
        }
    });
    // And nobody else gets it.
    let connect = || TcpStream::connect("198.18.0.80:8080").unwrap();
    let stream = pair.net.b.run(connect).unwrap();
    handed::ask(&stream, "/websocket");
    let mut other = handed::client(stream);
    other.send("anna".into()).unwrap();
    assert_eq!(heard(&mut other), "that name is taken");
    drop((anna, bert, other));
    b.end();
});

kernel_test!(messages, || {
    let pair = Pair::new();
    let a = run(&pair, 0, websockets::after::run);
    let mut client = enters(&pair, "/ws");
    let peer = client.get_ref().local_addr().unwrap();
    let mut numbers = 0..websockets::after::MESSAGES;
    for number in numbers.by_ref().take(100) {
        assert_eq!(
            heard(&mut client),
            format!("message {number} for {peer}, None")
        );
        client.send("go on".into()).unwrap();
    }
    let b = hand_over(&pair, a, websockets::after::run);
    for number in numbers {
        assert_eq!(
            heard(&mut client),
            format!("message {number} for {peer}, None")
        );
        client.send("go on".into()).unwrap();
    }
    let Message::Close(Some(end)) = client.read().unwrap() else {
        panic!("it goes on");
    };
    assert_eq!(end.reason, "that was all");
    drop(client);
    b.end();
});

kernel_test!(files_of_another_server, || {
    const SIZE: usize = 30_000_000;
    let pair = Pair::new();
    fs::write(pair.folder().join("film"), numbered(0, SIZE)).unwrap();
    let servers = [0, 1].map(|host| pair.serve_files(host, UPSTREAM));
    let a = run(&pair, 0, reverse_proxy::after::run);
    let stream = pair.connect();
    let mut reader = BufReader::new(&stream);
    send(&stream, "GET /film HTTP/1.1");
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let mut body = vec![0; SIZE];
    let (first, rest) = body.split_at_mut(1_000_000);
    reader.read_exact(first).unwrap();
    let b = hand_over(&pair, a, reverse_proxy::after::run);
    reader.read_exact(rest).unwrap();
    assert!(body == numbered(0, SIZE));
    send(&stream, "GET /nothing HTTP/1.1");
    assert!(response(&mut reader).0.starts_with("HTTP/1.1 404"));
    drop(reader);
    drop(stream);
    b.end();
    servers.into_iter().for_each(Server::end);
});
