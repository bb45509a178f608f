//! Servers in one call, each described by a file.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use tcpmig::http::{NotMoved, Served, Site as Described, SiteError, serve};
use tcpmig_sys::lab;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_http::services::ServeDir;

use crate::cursors;
use crate::requests::response;
use crate::support::{Keys, Net, PATIENCE, Running, Site, kernel_test, until};

/// Where hosts reach each other; [`Site`] has an endpoint of its own.
const ADDRESSES: [(&str, &str); 2] = [("host-a", "198.18.0.1:7078"), ("host-b", "198.18.0.2:7078")];

/// The files of both hosts, in this folder.
fn describe(folder: &Path, keys: &Keys, ports: &str) {
    for ((name, listen), (other, address)) in
        [(ADDRESSES[0], ADDRESSES[1]), (ADDRESSES[1], ADDRESSES[0])]
    {
        let [certificate, key, authority] = keys.pem(name);
        let write = |what: &str, text: &str| {
            let file = folder.join(format!("{name}.{what}"));
            std::fs::write(&file, text).unwrap();
            // A key that others can read is refused.
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        };
        write("pem", &certificate);
        write("key", &key);
        write("ca", &authority);
        let text = format!(
            "listen = {listen:?}\n\
             certificate = \"{name}.pem\"\n\
             key = \"{name}.key\"\n\
             authority = \"{name}.ca\"\n\
             [hosts.{other}]\n\
             address = {address:?}\n\
             steer = \"redirect\"\n\
             {ports}\n"
        );
        write("toml", &text);
    }
}

/// Two hosts of which each runs a server that can give its connections to the other.
pub(crate) struct Pair {
    pub(crate) net: Net,
    sites: [Site; 2],
    folder: tempfile::TempDir,
}

/// A server at work, and what tells it to drain.
pub(crate) struct Server<T> {
    term: Option<oneshot::Sender<()>>,
    running: Running<T>,
}

impl<T> Server<T> {
    /// Tells it to drain and waits for its end.
    pub(crate) fn end(mut self) -> T {
        drop(self.term.take());
        self.running.wait()
    }
}

/// Ready when the sender is dropped.
pub(crate) type Term = oneshot::Receiver<()>;

impl Pair {
    pub(crate) fn new() -> Self {
        Self::describing("ports = [8080]")
    }

    /// They take connections of any port.
    pub(crate) fn with_any_port() -> Self {
        Self::describing("")
    }

    fn describing(ports: &str) -> Self {
        let net = Net::new();
        // By itself it grows until a whole film fits in it.
        let window = net.peer.set("net/ipv4/tcp_rmem", "4096 131072 2000000");
        window.expect("the peer's own setting");
        let keys = Keys::new();
        let folder = tempfile::tempdir().unwrap();
        describe(folder.path(), &keys, ports);
        let (a, b) = Site::pair_with(&net, &keys, &tcpmig::driver::Options::default());
        Self {
            net,
            sites: [a, b],
            folder,
        }
    }

    /// Runs a server on one of the hosts.
    pub(crate) fn run<T, F>(
        &self,
        host: usize,
        server: impl FnOnce(TcpListener, Described, Term) -> F + Send + 'static,
    ) -> Server<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (term, ended) = oneshot::channel();
        let file = self
            .folder
            .path()
            .join(ADDRESSES[host].0)
            .with_extension("toml");
        let running = self.sites[host].begin(move |here| async move {
            let site = Described::from_file(file)
                .unwrap()
                .options(here.options.clone());
            let listener = TcpListener::bind("198.18.0.80:8080").await.unwrap();
            server(listener, site, ended).await
        });
        Server {
            term: Some(term),
            running,
        }
    }

    /// Serves the files of the folder at an address of a host.
    pub(crate) fn serve_files(&self, host: usize, address: &'static str) -> Server<()> {
        let files = Router::new().fallback_service(ServeDir::new(self.folder()));
        self.serve_app(host, files, address)
    }

    /// Serves an application at an address of a host; its connections do not move.
    pub(crate) fn serve_app(&self, host: usize, app: Router, address: &str) -> Server<()> {
        self.serve_in([&self.net.a, &self.net.b][host], app, address)
    }

    /// The same at an address of the peer.
    pub(crate) fn serve_at_peer(&self, app: Router, address: &str) -> Server<()> {
        self.serve_in(&self.net.peer, app, address)
    }

    fn serve_in(&self, host: &lab::Host, app: Router, address: &str) -> Server<()> {
        let listener = host.run(|| std::net::TcpListener::bind(address));
        let listener = listener.unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (term, ended) = oneshot::channel();
        // The socket is one of its host, whoever uses it.
        let running = self.sites[1].begin(move |_| async move {
            let listener = TcpListener::from_std(listener).unwrap();
            tokio::select! {
                served = axum::serve(listener, app).into_future() => served.unwrap(),
                _ = ended => {}
            }
        });
        Server {
            term: Some(term),
            running,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the server of this host listens.
    pub(crate) fn listens(&self, host: usize) {
        let host = [&self.net.a, &self.net.b][host];
        let connect = || TcpStream::connect("198.18.0.80:8080").is_ok();
        until("the server listens", || host.run(connect).unwrap());
    }

    /// A connection to the host that has the service's address, when a server is there.
    pub(crate) fn connect(&self) -> TcpStream {
        let mut connected = None;
        until("the server listens", || {
            let tried = self.net.peer.run(|| TcpStream::connect("198.18.0.80:8080"));
            connected = tried.unwrap().ok();
            connected.is_some()
        });
        let stream = connected.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn app() -> Router {
    let who = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string();
    let never = async || {
        tokio::time::sleep(lab::slowed(Duration::from_secs(3))).await;
        "at last"
    };
    cursors::routes()
        .route("/who", get(who))
        .route("/slow", get(never))
}

async fn server(listener: TcpListener, site: Described, term: Term, to: &'static str) -> Served {
    let app = app().into_make_service_with_connect_info::<SocketAddr>();
    let term = async {
        let _ = term.await;
    };
    serve(listener, app, site)
        .with(|movable| {
            movable
                .drain_within(Duration::from_millis(100))
                .answer_within(PATIENCE)
        })
        .with_drain(term, to)
        .within(Duration::from_millis(300))
        .end_within(PATIENCE)
        .await
        .unwrap()
}

const WHO: &[u8] = b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n";

fn ask(mut stream: &TcpStream, reader: &mut BufReader<&TcpStream>) -> String {
    stream.write_all(WHO).unwrap();
    String::from_utf8(response(reader).1).unwrap()
}

kernel_test!(a_server_in_one_call_drains_and_ends, || {
    let pair = Pair::new();
    let a = pair.run(0, |listener, site, term| {
        server(listener, site, term, "host-b")
    });
    let streams = [(); 4].map(|()| pair.connect());
    let mut readers = streams.each_ref().map(BufReader::new);
    // One is at rest, one in the middle of events, one waits for an answer that takes longer than a drain waits, one has
    // said nothing.
    let name = streams[0].local_addr().unwrap().to_string();
    assert_eq!(ask(&streams[0], &mut readers[0]), name);
    let get = |mut stream: &TcpStream, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
    };
    get(&streams[1], "/sse/3000");
    for event in 1..100 {
        next_event(&mut readers[1], event);
    }
    get(&streams[2], "/slow");

    let b = pair.run(1, |listener, site, term| {
        server(listener, site, term, "host-a")
    });
    pair.listens(1);
    let served = a.end();
    assert_eq!(served.moved, 3, "{served:?}");
    assert_eq!(served.stayed.len(), 1, "{served:?}");
    assert!(
        matches!(served.stayed[0].why, NotMoved::Busy(_)),
        "{served:?}"
    );

    // What stayed has ended behind its answer.
    let (head, body) = response(&mut readers[2]);
    assert_eq!(body, b"at last");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(readers[2].read(&mut [0]).unwrap(), 0);
    // What moved goes on, and its service knows its peer.
    assert_eq!(ask(&streams[0], &mut readers[0]), name);
    let last = streams[3].local_addr().unwrap().to_string();
    assert_eq!(ask(&streams[3], &mut readers[3]), last);
    for event in 100..3000 {
        next_event(&mut readers[1], event);
    }
    drop(streams);
    b.end();
});

fn next_event(reader: &mut BufReader<&TcpStream>, event: usize) {
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "it ends before event {event}"
        );
    }
    assert_eq!(line.trim_end(), format!("data: this is event {event}"));
}

#[tokio::test]
async fn what_is_wrong_with_a_site_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    let error = |text: Option<&str>| {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        Described::from_file(&file).unwrap_err().to_string()
    };
    assert!(error(None).contains("site.toml"));
    for (text, word) in [
        ("listen = 7", "listen"),
        ("listen = \"127.0.0.1:0\"\nkey = \"k\"", "certificate"),
        ("lisen = \"127.0.0.1:0\"", "lisen"),
    ] {
        let said = error(Some(text));
        assert!(said.contains(word) && said.contains("line"), "{said}");
    }
    let file = "listen = \"127.0.0.1:0\"\ncertificate = \"c\"\nkey = \"k\"\nauthority = \"a\"\n";
    assert!(error(Some(file)).contains("/c"));
    let unset = Described::from_env();
    assert!(matches!(unset, Err(SiteError::NotSet)));
}
