//! Two hosts that serve the application, and clients at the peer.

use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::routing::MethodRouter;
use hyper_util::service::TowerToHyperService;
use tcpmig::driver::{Acceptor, Destination, Options, Reason, Report};
use tcpmig::http::{Doing, Movable, NotMoved, Resumed, Server, SessionError};
use tcpmig::session::{Carriers, Tcp, Way};
use tokio::net::TcpListener;

use crate::app::{App, NewVisits, Slow, Visits, app, app_with};
use crate::support::{Here, Net, PATIENCE, Running, Site, until};

pub(crate) const URL: &str = "http://198.18.0.80:8080";

/// What host B knows of connections.
pub(crate) enum OnB {
    Visits,
    NewVisits,
    NoState,
    NoWebSockets,
    /// Its responses go on from a cursor of another type.
    OtherCursors,
    /// Its files are these, and it is not asked for the rest of one before it comes.
    File(Box<MethodRouter>),
    /// Its files are these, and so are its WebSockets.
    Asked(Box<MethodRouter>),
    /// It takes no connections in.
    Nothing,
}

pub(crate) struct Scene<K = Tcp> {
    pub(crate) net: Net,
    hosts: [(Site, Server<App, K>); 2],
    /// Where the connection is.
    pub(crate) at: usize,
    pub(crate) slow: Arc<Slow>,
    /// Why connections that arrived did not go on.
    pub(crate) errors: Errors,
}

/// What became of an order to move.
pub(crate) type Moved = Result<Report, NotMoved<Reason>>;

type Errors = Arc<Mutex<Vec<String>>>;

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(&OnB::Visits, Duration::from_secs(5))
    }

    pub(crate) fn with(on_b: &OnB, drain_within: Duration) -> Self {
        Self::over([Tcp, Tcp], on_b, drain_within)
    }

    /// These applications on both hosts.
    pub(crate) fn serving(apps: [Router; 2]) -> Self {
        Self::serving_these(apps.map(|app| {
            let movable = Movable::new(TowerToHyperService::new(app));
            let movable = movable.settle(Duration::from_millis(20));
            movable.answer_within(PATIENCE)
        }))
    }

    /// The same, made movable by the test.
    pub(crate) fn serving_these(apps: [Movable<App>; 2]) -> Self {
        let hosts = apps.map(|movable| (movable, TakesIn::Asked));
        Self::assemble(hosts, Arc::default())
    }
}

impl<K: Carriers + Clone> Scene<K> {
    /// These, made movable by the test, over carriers of its own.
    #[cfg(all(feature = "http2", feature = "tls"))]
    pub(crate) fn serving_over(apps: [Movable<App, K>; 2]) -> Self {
        let hosts = apps.map(|movable| (movable, TakesIn::Asked));
        Self::assemble(hosts, Arc::default())
    }

    /// With the carriers of each host.
    pub(crate) fn over(carriers: [K; 2], on_b: &OnB, drain_within: Duration) -> Self {
        let slow = Arc::new(Slow::default());
        let make = |name| app(name, slow.clone()).drain_within(drain_within);
        let with_visits = |name| {
            let chat = crate::chat::handler(name, slow.clone());
            make(name).with_state::<Visits>().with_websockets(chat)
        };
        let on_b = match on_b {
            OnB::Visits => (with_visits("b"), TakesIn::Asked),
            OnB::NewVisits => (make("b").with_state::<NewVisits>(), TakesIn::Asked),
            OnB::NoState => (make("b"), TakesIn::Asked),
            OnB::NoWebSockets => (make("b").with_state::<Visits>(), TakesIn::Asked),
            OnB::OtherCursors => (with_visits("b").resumes_if(other_cursors), TakesIn::Checked),
            OnB::File(file) | OnB::Asked(file) => {
                let [file, chat] = [(); 2].map(|()| MethodRouter::clone(file));
                let movable = app_with(crate::routes_with(chat), file, "b", slow.clone());
                let takes_in = match on_b {
                    OnB::File(_) => TakesIn::Checked,
                    _ => TakesIn::Asked,
                };
                (movable.with_state::<Visits>(), takes_in)
            }
            OnB::Nothing => (make("b"), TakesIn::Nothing),
        };
        let on_a = (with_visits("a"), TakesIn::Asked);
        let [over_a, over_b] = carriers;
        let on_a = (on_a.0.over(over_a), on_a.1);
        let on_b = (on_b.0.over(over_b), on_b.1);
        Self::assemble([on_a, on_b], slow)
    }

    /// These on host A, which listens, and host B.
    fn assemble(hosts: [(Movable<App, K>, TakesIn); 2], slow: Arc<Slow>) -> Self {
        let net = Net::new();
        // By itself it grows to 32 MB, which is most of the largest response.
        let window = net.peer.set("net/ipv4/tcp_rmem", "4096 131072 2000000");
        window.expect("the peer's own setting");
        let mut options = Options::default();
        options.settle = Duration::from_millis(20);
        // Unoptimized programs take their time for images of megabytes.
        options.prepared_within = PATIENCE;
        options.commit_within = PATIENCE;
        options.lease = PATIENCE * 2;
        let (a, b) = Site::pair(&net, &options);
        let errors = Errors::default();
        let [(on_a, a_takes), (on_b, b_takes)] = hosts;
        let server_a = start(&a, on_a, a_takes, &errors);
        a.call({
            let server = server_a.clone();
            |_| async move {
                let listener = TcpListener::bind("198.18.0.80:8080").await.unwrap();
                tokio::spawn(async move {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let server = server.clone();
                        tokio::spawn(async move { server.serve(stream).await.unwrap() });
                    }
                });
            }
        });
        let server_b = start(&b, on_b, b_takes, &errors);
        Self {
            net,
            hosts: [(a, server_a), (b, server_b)],
            at: 0,
            slow,
            errors,
        }
    }

    /// Runs something else on a host, as long as the scene is there.
    pub(crate) fn also<F>(&self, host: usize, run: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.hosts[host].0.call(|_| async {
            tokio::spawn(run());
        });
    }

    fn server(&self) -> &Server<App, K> {
        &self.hosts[self.at].1
    }

    /// What the one connection is doing.
    pub(crate) fn doing(&self) -> Doing {
        until("one connection lives here", || self.server().count() == 1);
        self.server().connections().remove(0).doing()
    }

    /// Begins to move the one connection to the other host.
    pub(crate) fn begin_move(&self) -> Running<Moved> {
        until("one connection lives here", || self.server().count() == 1);
        let (site, server) = &self.hosts[self.at];
        let handle = server.connections().remove(0);
        site.begin(|here| async move { handle.move_to(&here.mover(), &here.other()).await })
    }

    /// The same by another way.
    pub(crate) fn move_by<W>(
        &self,
        way: fn(&Here) -> W,
    ) -> Running<Result<W::Report, NotMoved<W::Cause>>>
    where
        W: Way<Destination = Destination>,
    {
        until("one connection lives here", || self.server().count() == 1);
        let (site, server) = &self.hosts[self.at];
        let handle = server.connections().remove(0);
        site.begin(move |here| async move { handle.move_to(&way(&here), &here.other()).await })
    }

    /// Begins something on the host where the connection is not.
    pub(crate) fn on_other<T, F>(
        &self,
        work: impl FnOnce(Rc<Here>) -> F + Send + 'static,
    ) -> Running<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.hosts[1 - self.at].0.begin(work)
    }

    /// Waits until a slow answer has been asked for.
    pub(crate) fn slow_begins(&self) {
        until("the slow answer is asked for", || self.slow_count() == 1);
    }

    /// How many slow answers have been asked for.
    pub(crate) fn slow_count(&self) -> usize {
        self.slow.begun.load(Ordering::Relaxed)
    }

    /// Lets the host's one thread do all that is ready: an order reaches its connection.
    pub(crate) fn take_turns(&self) {
        self.hosts[self.at].0.call(|_| async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Moves the one connection to the other host.
    pub(crate) fn hop(&mut self) -> Report {
        let report = self.begin_move().wait().expect("the connection moves");
        self.at = 1 - self.at;
        report
    }

    /// Moves all that live at the one host to the other, so many at a time.
    pub(crate) fn move_all(&self, at_once: usize) -> Vec<(SocketAddr, Moved)> {
        let (site, server) = &self.hosts[self.at];
        let server = server.clone();
        site.call(move |here| async move {
            let (way, to) = (here.mover(), here.other());
            server.move_all(&way, &to, at_once).await
        })
    }

    /// Moves all that live at the one host to the other and tells how many.
    pub(crate) fn hop_all(&mut self) -> usize {
        let results = self.move_all(4);
        for (peer, result) in &results {
            assert!(result.is_ok(), "{peer} did not move: {result:?}");
        }
        self.at = 1 - self.at;
        results.len()
    }

    /// How many connections each host has.
    pub(crate) fn counts(&self) -> [usize; 2] {
        [self.hosts[0].1.count(), self.hosts[1].1.count()]
    }

    /// Why the one connection stays.
    pub(crate) fn stays(&self) -> String {
        let error = self.begin_move().wait().expect_err("it stays");
        error.to_string()
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = self.net.peer.command(program).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// curl, which says at the end on standard error how many connections it made and how it fared.
    pub(crate) fn curl(&self, arguments: &[&str]) -> Client {
        let mut command = self.command("curl");
        command
            .args(["--silent", "--show-error", "--no-buffer", "--globoff"])
            .args(["--noproxy", "*", "--max-time", "60", "--fail"])
            .args(["--write-out", "%{stderr}%{num_connects} %{http_code}\n"])
            .args(arguments)
            .stderr(Stdio::piped());
        Client(command.spawn().expect("curl starts"))
    }

    /// A program for python3.
    pub(crate) fn python(&self, program: &str) -> Client {
        let mut command = self.command("/usr/bin/python3");
        command.args(["-u", "-c", program]).stdin(Stdio::piped());
        Client(command.spawn().expect("python3 starts"))
    }
}

#[derive(serde::Deserialize)]
struct Chapter {
    #[expect(dead_code, reason = "that it is missing is what counts")]
    chapter: u64,
}

fn other_cursors(request: &Request<()>, resumed: &Resumed) -> Result<(), SessionError> {
    assert!(request.uri().path().starts_with("/file/"));
    resumed.cursor::<Chapter>().map(drop)
}

/// What a host takes in.
#[derive(Clone, Copy, PartialEq)]
enum TakesIn {
    Nothing,
    /// What it knows.
    Checked,
    /// That with which its service goes on.
    Asked,
}

fn start<K: Carriers>(
    site: &Site,
    movable: Movable<App, K>,
    takes_in: TakesIn,
    errors: &Errors,
) -> Server<App, K> {
    let errors = errors.clone();
    site.call(move |here| async move {
        let (endpoint, locker) = (here.endpoint.clone(), here.locker.clone());
        let server = Server::new(movable.clone());
        if takes_in != TakesIn::Nothing {
            let acceptor = Acceptor::new(endpoint, locker).options(here.options.clone());
            let acceptor = if takes_in == TakesIn::Checked {
                acceptor.accept_if(move |offered| Ok(movable.check(offered.layers)?))
            } else {
                acceptor.accept_async(move |offer| {
                    let movable = movable.clone();
                    async move { Ok(movable.get_ready(&offer.layers).await?) }
                })
            };
            let mut arrivals = acceptor.serve();
            let server = server.clone();
            tokio::spawn(async move {
                while let Some(arrived) = arrivals.next().await {
                    let (server, errors) = (server.clone(), errors.clone());
                    tokio::spawn(async move {
                        if let Err(error) = server.arrived(arrived).await {
                            errors.lock().unwrap().push(error.to_string());
                        }
                    });
                }
            });
        }
        server
    })
}

/// A program at the peer.
pub(crate) struct Client(pub(crate) Child);

impl Client {
    /// The next bytes that it writes.
    pub(crate) fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let stdout = self.0.stdout.as_mut().unwrap();
        stdout.read_exact(&mut bytes).expect("the client writes");
        bytes
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(self.read(1));
        }
        String::from_utf8(line).unwrap()
    }

    /// It writes this line.
    pub(crate) fn says(&mut self, line: &str) {
        assert_eq!(self.line().trim_end(), line);
    }

    /// Tells it to go on.
    pub(crate) fn go(&mut self) {
        use std::io::Write;
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
    }

    /// Tells it to go on until it ends.
    pub(crate) fn end_of_python(mut self) {
        drop(self.0.stdin.take());
        self.end();
    }

    pub(crate) fn end(self) -> Output {
        let output = self.0.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        output
    }

    /// Its end: what is left of its output. It made one connection and all went well.
    pub(crate) fn end_of_curl(self, urls: usize) -> Vec<u8> {
        let output = self.end();
        let said = String::from_utf8(output.stderr).unwrap();
        let mut expected = vec!["0 200"; urls];
        expected[0] = "1 200";
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        output.stdout
    }
}
