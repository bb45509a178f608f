//! HTTP servers that run as nobody: downloads, events and WebSockets move by the agents, plain and over TLS, under clients that know
//! nothing of it.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tcpmig::agent::{Client, Event, Service};
use tcpmig::http::{Handle, Movable, Server};
use tcpmig::session::{Carriers, Way};
use tcpmig_sys::kernel_test;
use tokio::net::TcpListener;

use crate::app::{App, Visits, app};
use crate::chat::handler;
use crate::fleet::Keys;
use crate::fleet::server::tls;
use crate::hosts::{Hosts, user};
use crate::support::{Program, numbered, succeeds};

const SIZE: usize = 8_000_000;
const EVENTS: usize = 4000;

/// Where the server finds what it has to know.
const VARIABLE: &str = "TCPMIG_TEST_AGENT_HTTP";

/// What a server has to know.
#[derive(Serialize, Deserialize)]
struct Setup {
    host: String,
    socket: PathBuf,
    keys: Option<Keys>,
}

impl Setup {
    fn name(&self) -> &'static str {
        if self.host == "a" { "a" } else { "b" }
    }
}

const ADDRESS: &str = "198.18.0.80:7000";

/// Not a test: the server that the tests start as another user.
#[test]
#[ignore = "it is run by the other tests, in processes of its own"]
fn server_of_the_tests() {
    let setup = std::env::var(VARIABLE).expect("it is told what to do");
    let setup: Setup = serde_json::from_str(&setup).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let slow = Arc::default();
    let movable = app(setup.name(), Arc::clone(&slow))
        .with_state::<Visits>()
        .with_websockets(handler(setup.name(), slow));
    runtime.block_on(async {
        match &setup.keys {
            Some(keys) => serve(&setup, movable.over(tls(keys))).await,
            None => serve(&setup, movable).await,
        }
    });
}

async fn serve<K: Carriers + Clone>(setup: &Setup, movable: Movable<App, K>) {
    let server = Server::new(movable.clone());
    let listener = TcpListener::bind(ADDRESS).await.unwrap();
    let agent = Client::connect(&setup.socket).await.unwrap();
    let service = Service::new("web").address(ADDRESS.parse().unwrap());
    let service = service.takes(move |offer| {
        let movable = movable.clone();
        async move { Ok(movable.get_ready(&offer.layers).await?) }
    });
    let mut events = agent.register(service).await.unwrap();
    let way = agent.way("web");
    println!("\nready");
    loop {
        let server = server.clone();
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                tokio::spawn(async move { server.serve(stream).await.map(drop) });
            }
            event = events.next() => match event {
                Some(Event::Arrived(arrival)) => {
                    tokio::spawn(async move {
                        if let Err(error) = server.arrived(arrival).await {
                            println!("\nended: {error}");
                        }
                    });
                }
                Some(Event::Wanted { flow, to }) => {
                    let is_meant = |one: &Handle| one.peer() == flow.remote();
                    let wanted = server.connections().into_iter().find(is_meant);
                    let way = way.clone();
                    tokio::spawn(async move { give(wanted, &way, &to).await });
                }
                Some(Event::Drain(drain)) => {
                    while server.count() > 0 {
                        server.move_all(&way, &drain.hosts()[0], 4).await;
                        drain.left(server.count() as u64);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    drain.left(0);
                }
                _ => return,
            }
        }
    }
}

async fn give<W: Way>(wanted: Option<Handle>, way: &W, to: &W::Destination) {
    if let Some(Err(why)) = match wanted {
        Some(handle) => Some(handle.move_to(way, to).await),
        None => None,
    } {
        println!("\nnot moved: {why}");
    }
}

fn config(of: &str) -> String {
    let other = if of == "a" { "b" } else { "a" };
    let user = user();
    format!(
        r#"
        [services.web]
        users = ["root", {user}]
        addresses = ["198.18.0.80"]
        ports = [7000]
        to = ["{other}.example"]
        from = ["{other}.example"]
        "#
    )
}

/// Two hosts with a server each, as nobody.
struct Site {
    hosts: Hosts,
    servers: [Program; 2],
    authority: Option<PathBuf>,
}

impl Site {
    fn new(keys: Option<Keys>) -> Self {
        let hosts = Hosts::with(config);
        // The other user may not reach this program where it is.
        let copy = hosts.file("server");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        let servers = ["a", "b"].map(|of| {
            let setup = Setup {
                host: of.to_owned(),
                socket: hosts.agent(of).socket.clone(),
                keys: keys.clone(),
            };
            let mut command = hosts.unprivileged(of, copy.to_str().unwrap());
            command
                .args(["http::server_of_the_tests", "--exact", "--nocapture"])
                .arg("--include-ignored")
                .env(VARIABLE, serde_json::to_string(&setup).unwrap())
                .current_dir("/");
            let server = Program::spawn(&mut command);
            while server.hear() != "ready" {}
            server
        });
        let authority = keys.map(|keys| {
            let path = hosts.file("service.pem");
            fs::write(&path, keys.authority()).unwrap();
            path
        });
        Self {
            hosts,
            servers,
            authority,
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.hosts.peer.command(program).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn curl(&self, path: &str) -> Fetch {
        let mut command = self.command("curl");
        let scheme = match &self.authority {
            Some(authority) => {
                command.arg("--cacert").arg(authority);
                "https"
            }
            None => "http",
        };
        command
            .args(["--silent", "--show-error", "--no-buffer", "--noproxy", "*"])
            .args(["--max-time", "110", "--limit-rate", "2M"])
            .args(["--resolve", "service.example:7000:198.18.0.80"])
            .args(["--write-out", "%{stderr}%{http_code} %{num_connects}"])
            .arg(format!("{scheme}://service.example:7000{path}"))
            .stderr(Stdio::piped());
        Fetch(Some(command.spawn().expect("curl is installed")))
    }

    fn chat(&self) -> Fetch {
        let mut command = self.command("/usr/bin/python3");
        command.args(["-u", "-c", CHAT]);
        if let Some(authority) = &self.authority {
            command.arg(authority);
        }
        Fetch(Some(command.spawn().expect("python3 is installed")))
    }

    /// Moves everything from one host to the other, or what is not over yet.
    fn moves(&self, from: usize) {
        let to = ["b.example", "a.example"][from];
        let moved = self
            .hosts
            .verb(["a", "b"][from], &["move", "--to", to, "--service", "web"]);
        // One that cannot at the moment is kept, and goes with the next round.
        assert!(matches!(moved.status.code(), Some(0 | 1 | 4)), "{moved:?}");
    }
}

/// Asks all the time, until its standard input is closed; says how often when it is.
const CHAT: &str = r"
import asyncio, ssl, sys, websockets
async def run():
    loop = asyncio.get_running_loop()
    options, scheme = {}, 'ws'
    if sys.argv[1:]:
        scheme, options['ssl'] = 'wss', ssl.create_default_context(cafile=sys.argv[1])
        options['server_hostname'] = 'service.example'
    async with websockets.connect(scheme + '://198.18.0.80:7000/chat', **options) as ws:
        print('open')
        end = loop.run_in_executor(None, sys.stdin.read)
        count, port = 0, ws.local_address[1]
        while not end.done():
            await ws.send('x' * (count % 300))
            assert await ws.recv() == 'x' * (count % 300)
            count += 1
            await asyncio.sleep(0.002)
        await ws.send('who')
        host, said = (await ws.recv()).split()
        assert int(said) == count + 1, (said, count)
        assert ws.local_address[1] == port
    print(host, count)
asyncio.run(run())
";

/// A client that is at work.
struct Fetch(Option<Child>);

impl Fetch {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    /// So many of the bytes that it writes.
    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let stdout = self.child().stdout.as_mut().unwrap();
        stdout.read_exact(&mut bytes).expect("the client writes");
        bytes
    }

    /// The rest of them, and what it said on standard error.
    fn ends(mut self) -> (Vec<u8>, String) {
        let mut child = self.0.take().unwrap();
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", output.status);
        (output.stdout, said)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn sessions_move(keys: Option<Keys>) {
    let site = Site::new(keys);
    let mut curls = [
        site.curl(&format!("/file/{SIZE}")),
        site.curl(&format!("/chunked/{SIZE}")),
        site.curl(&format!("/events/{EVENTS}")),
    ];
    let mut chat = site.chat();
    assert_eq!(chat.read(5), b"open\n");
    let mut got = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..4 {
        for (curl, got) in curls.iter_mut().zip(&mut got) {
            // All of them are in the middle. Events are fewer bytes.
            let len = if got.len() < SIZE && round == 0 {
                1000
            } else {
                3000
            };
            got.extend(curl.read(len));
        }
        site.moves(round % 2);
    }
    // A kept one may be on either host.
    let drain = ["drain", "--to", "b.example", "--wait"];
    succeeds(&site.hosts.verb("a", &drain));
    let (said, _) = chat.ends();
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("b "), "{said:?}");
    for (curl, got) in curls.into_iter().zip(&mut got) {
        let (rest, said) = curl.ends();
        got.extend(rest);
        assert_eq!(said, "200 1");
    }
    let bytes = numbered(0, SIZE);
    assert!(got[0] == bytes && got[1] == bytes, "other bytes");
    let events: String = (1..=EVENTS)
        .map(|event| format!("id: {event}\ndata: this is event {event}\n\n"))
        .collect();
    assert!(got[2] == events.as_bytes(), "other events");
    let metrics = site.hosts.metrics("a");
    let moved = metrics.lines().find_map(|line| {
        line.strip_prefix(r#"tcpmig_moves_total{service="web",outcome="moved"} "#)
    });
    println!("{moved:?} moved from a");
    assert!(moved.is_some_and(|moved| moved.parse::<u32>().unwrap() >= 4));
    for server in &site.servers {
        let heard: Vec<String> = server.lines.try_iter().collect();
        assert!(
            !heard.iter().any(|line| line.starts_with("ended: ")),
            "{heard:?}"
        );
    }
}

kernel_test!(http_servers_without_privileges_move_their_sessions, || {
    sessions_move(None);
});

kernel_test!(and_so_do_those_over_tls, || sessions_move(
    Some(Keys::new())
));
