//! The client in Rust, as the way of an HTTP server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tcpmig::agent::{Client, Event, Service};
use tcpmig::http::{Movable, RequestBody, Resumable, Resumed, Server};
use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::{Host, PATIENCE, pattern};
use tcpmig_sys::netns::Namespace;

use crate::hosts::Hosts;
use crate::support::{succeeds, text, until};

const SIZE: usize = 3 << 20;
const FRAME: usize = 10_000;
const SERVICE: &str = "198.18.0.80:7000";

static ALL: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(7, SIZE));

/// A download that goes on elsewhere in its middle.
async fn download(
    request: Request<RequestBody>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let resumed = request.extensions().get::<Resumed>();
    let begin = resumed.map_or(0, |resumed| resumed.cursor().unwrap());
    let body = Resumable::new(begin, |at: usize| async move {
        let end = SIZE.min(at + FRAME);
        Ok::<_, Infallible>((at < end).then(|| (Bytes::copy_from_slice(&ALL[at..end]), end)))
    });
    Ok(body.response())
}

/// A server on a host, on a thread of its own. It drains when it is told to.
struct Rust {
    said: mpsc::Receiver<String>,
    _thread: thread::JoinHandle<()>,
}

impl Rust {
    fn start(hosts: &Hosts, of: &str) -> Self {
        let (say, said) = mpsc::channel();
        let socket = hosts.agent(of).socket.clone();
        let namespace = hosts.host(of).namespace().path();
        let thread = thread::spawn(move || {
            let namespace = Namespace::open(&namespace).unwrap();
            namespace.enter_permanently().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(socket, say));
        });
        let rust = Self {
            said,
            _thread: thread,
        };
        assert_eq!(rust.says(), "ready");
        rust
    }

    fn says(&self) -> String {
        self.said
            .recv_timeout(PATIENCE)
            .expect("the server goes on")
    }
}

async fn serve(socket: PathBuf, say: mpsc::Sender<String>) {
    let movable = Movable::new(service_fn(download)).drain_within(PATIENCE);
    let server = Server::new(movable.clone());
    let address: SocketAddr = SERVICE.parse().unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let agent = Client::connect(socket).await.unwrap();
    let accept = move |offer: tcpmig::agent::Offer| {
        let movable = movable.clone();
        async move { Ok(movable.get_ready(&offer.layers).await?) }
    };
    let service = Service::new("counter").address(address).takes(accept);
    let mut events = agent.register(service).await.unwrap();
    let way = agent.way("counter");
    say.send("ready".to_owned()).unwrap();
    loop {
        let server = server.clone();
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                tokio::spawn(async move { server.serve(stream).await.map(drop) });
            }
            event = events.next() => match event {
                Some(Event::Arrived(arrival)) => {
                    let _ = say.send("arrived".to_owned());
                    tokio::spawn(async move { server.arrived(arrival).await.map(drop) });
                }
                Some(Event::Drain(drain)) => {
                    while server.count() > 0 {
                        for (_, moved) in server.move_all(&way, &drain.hosts()[0], 32).await {
                            let _ = say.send(match moved {
                                Ok(report) => format!("moved in {} us", report["blackout_us"]),
                                Err(error) => error.to_string(),
                            });
                        }
                        drain.left(server.count() as u64);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    drain.left(0);
                    let _ = say.send("empty".to_owned());
                }
                _ => return,
            },
        }
    }
}

/// Fetches the download slowly.
fn curl(peer: &Host) -> std::process::Child {
    let mut command = peer.command("curl").unwrap();
    command
        .args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "110",
        ])
        .args([
            "--limit-rate",
            "1M",
            "--write-out",
            "%{stderr}%{http_code} %{num_connects}",
        ])
        .arg(format!("http://{SERVICE}/"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("curl is installed")
}

kernel_test!(downloads_of_an_http_server_move_by_the_agent, || {
    let hosts = Hosts::new();
    let (a, b) = (Rust::start(&hosts, "a"), Rust::start(&hosts, "b"));
    let curls: Vec<_> = (0..3).map(|_| curl(&hosts.peer)).collect();
    let is_busy = || {
        let metrics = hosts.metrics("a");
        metrics.contains(r#"tcpmig_sessions{service="counter"} 3"#)
    };
    until("all of them are being fetched", is_busy);
    let drain = [
        "drain",
        "--to",
        "b.example",
        "--wait",
        "--service",
        "counter",
    ];
    succeeds(&hosts.verb("a", &drain));
    let moved = (0..3).map(|_| a.says());
    assert!(moved.into_iter().all(|said| said.starts_with("moved in ")));
    assert_eq!(a.says(), "empty");
    for _ in 0..3 {
        assert_eq!(b.says(), "arrived");
    }
    for curl in curls {
        let Output {
            status,
            stdout,
            stderr,
        } = curl.wait_with_output().unwrap();
        let said = text(&stderr);
        assert!(status.success(), "{status}: {said}");
        assert_eq!(said, "200 1");
        assert!(stdout == *ALL, "other bytes");
    }
});
