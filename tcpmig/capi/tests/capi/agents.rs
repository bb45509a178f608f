//! Sessions through the agent: the example server on two hosts, with an agent on each.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use tcpmig::agent::server::Agent;
use tcpmig::agent::{Client, Draining, Fate};
use tcpmig_format::FourTuple;
use tcpmig_sys::kernel_test;
use tcpmig_sys::lab::{Host, PATIENCE, World, until};
use tcpmig_transport::keys::Authority;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::built::{How, Installed, VALGRIND, said};

pub(crate) const PORT: &str = "8080";

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn config(of: &str, own: &str, other: &str, address: &str) -> String {
    format!(
        r#"
        name = "{of}.example"
        listen = "{own}:4433"
        certificate = "{of}.pem"
        key = "{of}.key"
        authority = "ca.pem"
        journal = "{of}.journal"
        socket = "{of}.sock"
        socket_mode = "0666"
        admins = ["root"]
        [hosts."{other}.example"]
        address = "{address}:4433"
        steer = "redirect"
        [services.web]
        users = ["root", "www-data"]
        addresses = ["{}"]
        ports = [{PORT}]
        to = ["{other}.example"]
        from = ["{other}.example"]
        "#,
        World::SERVICE[0]
    )
}

/// An agent on a thread of this process.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(host: &Host, path: PathBuf) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        // The thread inherits the namespace.
        let start = || {
            thread::spawn(move || {
                runtime().block_on(async {
                    let mut agent = Agent::open(path).unwrap();
                    tokio::select! {
                        () = agent.run() => {}
                        _ = stopped => {}
                    }
                });
            })
        };
        let thread = host.run(start).unwrap();
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// Two hosts with an agent each.
pub(crate) struct Hosts {
    pub(crate) world: World,
    pub(crate) installed: Installed,
    agents: [Option<Running>; 2],
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let mut new = Self::without_agents();
        for of in ["a", "b"] {
            new.start_agent(of);
        }
        new
    }

    /// Nobody runs the agents yet.
    pub(crate) fn without_agents() -> Self {
        let (world, installed) = (World::new(), Installed::new());
        let authority = Authority::create("tests").unwrap();
        fs::write(installed.path("ca.pem"), authority.ca_pem()).unwrap();
        for (of, own, other, address) in [
            ("a", "198.18.0.1", "b", "198.18.0.2"),
            ("b", "198.18.0.2", "a", "198.18.0.1"),
        ] {
            let issued = authority.issue(&format!("{of}.example")).unwrap();
            let key = installed.path(&format!("{of}.key"));
            fs::write(installed.path(&format!("{of}.pem")), &issued.cert_pem).unwrap();
            fs::write(&key, &issued.key_pem).unwrap();
            fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
            let path = installed.path(&format!("{of}.toml"));
            fs::write(path, config(of, own, other, address)).unwrap();
        }
        Self {
            world,
            installed,
            agents: [None, None],
        }
    }

    pub(crate) fn start_agent(&mut self, of: &str) {
        let path = self.installed.path(&format!("{of}.toml"));
        let running = Running::start(self.host(of), path);
        self.agents[usize::from(of == "b")] = Some(running);
        let socket = self.socket(of);
        until("the agent listens", || {
            runtime().block_on(Client::connect(&socket)).is_ok()
        });
    }

    pub(crate) fn stop_agent(&mut self, of: &str) {
        self.agents[usize::from(of == "b")] = None;
    }

    /// The socket of this host's agent.
    pub(crate) fn socket(&self, of: &str) -> PathBuf {
        self.installed.path(&format!("{of}.sock"))
    }

    pub(crate) fn host(&self, of: &str) -> &Host {
        if of == "a" {
            &self.world.a
        } else {
            &self.world.b
        }
    }

    /// The example server, without privileges where there are some.
    pub(crate) fn server(&self, of: &str, before: &[&str], program: &Path) -> Server {
        let program = program.to_str().unwrap();
        let words: Vec<&str> = before.iter().copied().chain([program]).collect();
        let mut command = self.host(of).command("setpriv").unwrap();
        command.args([
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--",
        ]);
        command.args(words).args([World::SERVICE[0], PORT, "web"]);
        command.arg(self.socket(of)).arg("-");
        let log = self.installed.path(&format!("{of}.log"));
        Server::start(self.installed.with_library(&mut command), log)
    }

    /// Has one connection move that a server of this host has.
    pub(crate) fn moves(&self, of: &str, to: &str, flow: FourTuple) -> Fate {
        runtime().block_on(async {
            let client = Client::connect(self.socket(of)).await.unwrap();
            let to = format!("{to}.example");
            client.move_connection(flow, to, None).await.unwrap()
        })
    }

    /// Has the service drained, and waits until it is empty; how many connections moved.
    pub(crate) fn drain(&self, of: &str, to: &str) -> u64 {
        runtime().block_on(async {
            let client = Client::connect(self.socket(of)).await.unwrap();
            let drain = client.drain(Some("web".to_owned()), vec![format!("{to}.example")]);
            let mut draining: Draining = drain.await.unwrap();
            let mut moved = 0;
            while let Some(progress) = draining.next().await.unwrap() {
                moved = progress.moved;
            }
            moved
        })
    }
}

/// Two downloads on one connection, to its standard output: it waits while nobody reads that.
pub(crate) fn curl(peer: &Host) -> Child {
    let url = format!("http://{}:{PORT}/numbers", World::SERVICE[0]);
    let mut curl = peer.command("curl").unwrap();
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "600"]);
    curl.args(["--write-out", "%{stderr}%{num_connects} ", &url, &url]);
    curl.stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub(crate) struct Server {
    child: Option<Child>,
    log: PathBuf,
}

impl Server {
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = command
            .stderr(file.try_clone().unwrap())
            .stdout(file)
            .spawn();
        let mut server = Self {
            child: Some(child.unwrap()),
            log,
        };
        server.says("ready", 1);
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has said this so many times.
    pub(crate) fn says(&mut self, line: &str, times: usize) {
        until(line, || {
            let log = self.log();
            let has = log.lines().filter(|said| *said == line).count() >= times;
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(has || ended.is_none(), "{ended:?} {log}");
            has
        });
    }

    pub(crate) fn ends_well(mut self) {
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn body() -> Vec<u8> {
    (0..100_000)
        .flat_map(|line| format!("{line:08}\n").into_bytes())
        .collect()
}

/// Both downloads of this curl, of which so much was read.
pub(crate) fn both_are_whole(curl: Child, mut downloaded: Vec<u8>) {
    let curl = curl.wait_with_output().unwrap();
    assert!(
        curl.status.success(),
        "{}",
        String::from_utf8_lossy(&curl.stderr)
    );
    assert_eq!(curl.stderr, b"1 0 ", "connections that curl has made");
    downloaded.extend(curl.stdout);
    assert!(downloaded == [body(), body()].concat());
}

/// A download and connections at rest go from one host to the other, back and to it again.
fn drains(before: &[&str], how: How) {
    let hosts = Hosts::new();
    let program = hosts.installed.compile("http_server.c", how);
    let mut a = hosts.server("a", before, &program);
    let mut b = hosts.server("b", before, &program);

    let rest = hosts.world.peer.run(|| {
        let address = format!("{}:{PORT}", World::SERVICE[0]);
        [(); 5].map(|()| Resting::new(&address))
    });
    let mut rest = rest.unwrap();
    let mut curl = curl(&hosts.world.peer);
    let mut downloaded = vec![0; 1000];
    curl.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut downloaded)
        .unwrap();
    // Half of a request that is answered by the next host.
    rest[0].say("GET / HT");
    assert_eq!(hosts.drain("a", "b"), 6);
    b.says("arrived", 6);
    a.says("empty", 1);
    a.ends_well();
    rest[0].say("TP/1.1\r\n\r\n");
    rest[0].hears("request 2 of this connection\n");
    for one in &mut rest[1..] {
        one.asks("request 2 of this connection\n");
    }

    let mut a = hosts.server("a", before, &program);
    assert_eq!(hosts.drain("b", "a"), 6);
    a.says("arrived", 6);
    b.ends_well();
    for one in &mut rest {
        one.asks("request 3 of this connection\n");
    }
    both_are_whole(curl, downloaded);
    drop(rest);
    // With nothing left it ends at once.
    until("the connections are over", || hosts.drain("a", "b") == 0);
    a.ends_well();
}

/// A connection that is mostly at rest.
pub(crate) struct Resting(TcpStream);

impl Resting {
    pub(crate) fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        let patience = Some(PATIENCE);
        stream.set_read_timeout(patience).unwrap();
        let mut new = Self(stream);
        new.asks("request 1 of this connection\n");
        new
    }

    pub(crate) fn say(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).unwrap();
    }

    pub(crate) fn hears(&mut self, body: &str) {
        let whole = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut got = vec![0; whole.len()];
        self.0.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), whole);
    }

    pub(crate) fn asks(&mut self, body: &str) {
        self.say("GET / HTTP/1.1\r\n\r\n");
        self.hears(body);
    }
}

kernel_test!(a_server_is_drained_in_the_middle_of_everything, || {
    drains(&[], How::default());
});

kernel_test!(a_server_is_drained_and_no_memory_is_lost, || {
    drains(&VALGRIND, How::default());
});

kernel_test!(without_an_agent_it_says_so, || {
    let hosts = Hosts::new();
    let program = hosts.installed.compile("http_server.c", How::default());
    let says = |service: &str, socket: &str| {
        let mut command = hosts.world.a.command(program.to_str().unwrap()).unwrap();
        command.args([World::SERVICE[0], PORT, service]);
        command.arg(hosts.installed.path(socket)).arg("-");
        let output = hosts.installed.with_library(&mut command).output().unwrap();
        assert!(!output.status.success());
        said(&output)
    };
    let without = says("web", "none.sock");
    assert!(without.contains("none.sock"), "{without}");
    // One that the configuration does not name.
    let unknown = says("mail", "a.sock");
    assert!(unknown.contains("the agent refuses"), "{unknown}");
});
