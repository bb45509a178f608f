//! Web servers behind one address share their keep-alive connections while wrk uses them.
//!
//! `cargo run --release --example balance [-- --servers N --clients K --seconds S --tls]`
//!
//! Every client connects to the first server, because that one answers for the address. Its connections are moved until
//! every server has its share; then the last server is drained for good and its connections go back and
//! are shared by the others. wrk (of Debian's package `wrk`) is the load and counts failures; a few connections of this
//! program's own, which move like the others, time every request. With `--tls` all of it is HTTPS. Ends with 0 if none failed.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use serde::{Deserialize, Serialize};
use tcpmig::driver::policy::{Policy, Rules};
use tcpmig::driver::{Acceptor, Destination, Mover, Options, Reason, Report};
use tcpmig::http::{ConnectionState, Movable, NotMoved, Server, State, move_connections};
use tcpmig::session::{Carriers, Tcp};
use tcpmig::steer::Redirected;
use tcpmig::tls::Tls;
use tcpmig_sys::lab::{Host, Lab};
use tcpmig_sys::netns::Namespace;
use tcpmig_transport::keys::{Authority, Issued};
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::sync::{mpsc, oneshot};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SERVICE: &str = "198.18.0.80:80";
/// Connections that time their requests.
const WATCHERS: usize = 12;
/// Moves that run at the same time.
const AT_ONCE: usize = 4;

/// What a server knows of each connection, and what moves with it.
#[derive(Default, Serialize, Deserialize)]
struct Served {
    requests: u64,
}

impl ConnectionState for Served {
    const KIND: &'static str = "balance";
    const VERSION: u32 = 1;
}

async fn hello(Extension(served): Extension<State<Served>>) -> String {
    let mut served = served.lock();
    served.requests += 1;
    format!("request {:012} on this connection\n", served.requests)
}

type App = TowerToHyperService<Router>;
type Moved = std::result::Result<Report, NotMoved<Reason>>;

/// The name by which clients know the service, over TLS.
const NAME: &str = "balance.example";

/// A web server over one of these: a thread in its host's network namespace.
struct Site<K> {
    server: Server<App, K>,
    orders: mpsc::UnboundedSender<Order>,
}

/// Move so many connections to that server.
struct Order {
    count: usize,
    to: usize,
    done: oneshot::Sender<Vec<Moved>>,
}

fn own_address(number: usize) -> SocketAddr {
    // INVARIANT: there are at most 60 servers.
    SocketAddr::new(IpAddr::from([198, 18, 0, number as u8 + 1]), 7077)
}

fn own_name(number: usize) -> String {
    format!("server-{}", number + 1)
}

/// How a server speaks TLS, with a certificate of its own.
fn tls(authority: &Authority) -> Result<Tls> {
    let issued = authority.issue(NAME)?;
    let chain = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)?;
    Ok(Tls::new(config))
}

/// A client that checks the servers' certificates.
fn client(authority: &Authority) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        authority.ca_pem().as_bytes(),
    )?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(Arc::new(config.with_no_client_auth()))
}

impl<K: Carriers> Site<K> {
    fn start(
        host: &Host,
        number: usize,
        issued: &Issued,
        authority: &str,
        carriers: K,
    ) -> Result<Self> {
        let namespace = Namespace::open(&host.namespace().path())?;
        let (cert, key) = (issued.cert_pem.clone(), issued.key_pem.clone());
        let authority = authority.to_owned();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let run = async || -> Result<()> {
                let (site, work) = Self::open(number, &cert, &key, &authority, carriers).await?;
                let _ = ready.send(site);
                work.await
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let ended = namespace
                .enter_permanently()
                .map_err(Into::into)
                .and_then(|()| runtime.map_err(Into::into))
                .and_then(|runtime| runtime.block_on(run()));
            if let Err(error) = ended {
                eprintln!("{}: {error}", own_name(number));
            }
        });
        is_ready.recv().map_err(|_| "a server did not start".into())
    }

    async fn open(
        number: usize,
        cert: &str,
        key: &str,
        authority: &str,
        carriers: K,
    ) -> Result<(Self, impl Future<Output = Result<()>> + use<K>)> {
        let identity = Identity::from_pem(cert.as_bytes(), key.as_bytes())?;
        let authorities = Authorities::from_pem(authority.as_bytes())?;
        let trust = Trust::only(authorities, (0..60).map(own_name));
        let limits = TransportLimits::default();
        let endpoint = Endpoint::bind(own_address(number), &identity, &trust, limits)?;
        let locker = Arc::new(tcpmig::locker::nftables()?);
        let options = Options::default();
        let mover = Mover::new(endpoint.clone(), locker.clone(), options.clone());
        let router = Router::new().route("/", get(hello));
        let movable = Movable::new(TowerToHyperService::new(router))
            .with_state::<Served>()
            .over(carriers);
        let server = Server::new(movable.clone());
        let lease = options.redirect_lease;
        // Nothing but connections of the service, whatever the other servers bring.
        let service: SocketAddr = SERVICE.parse()?;
        let rules = Rules::new().local(service.ip().into());
        let policy = Policy::new().others(rules.ports(service.port()..=service.port()));
        let mut arrivals = Acceptor::new(endpoint, locker)
            .options(options)
            .policy(policy)
            .accept_if(move |offered| Ok(movable.check(offered.layers)?))
            .serve();
        // All could listen; the network brings new connections to the first.
        let listener = tokio::net::TcpListener::bind(SERVICE).await?;
        let (orders, mut ordered) = mpsc::unbounded_channel::<Order>();
        let site = Self {
            server: server.clone(),
            orders,
        };
        let work = async move {
            loop {
                let server = server.clone();
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted?;
                        stream.set_nodelay(true)?;
                        tokio::spawn(async move { server.serve(stream).await });
                    }
                    Some(arrived) = arrivals.next() => {
                        tokio::spawn(async move {
                            if let Err(error) = server.arrived(arrived).await {
                                eprintln!("{}: a connection was closed: {error}", own_name(number));
                            }
                        });
                    }
                    order = ordered.recv() => {
                        let Some(order) = order else { return Ok(()) };
                        let steer = Redirected::new(own_address(order.to).ip(), lease)?;
                        tokio::spawn(obey(server, mover.clone(), order, Arc::new(steer)));
                    }
                }
            }
        };
        Ok((site, work))
    }

    /// Moves connections; this returns when all have moved.
    fn move_some(&self, count: usize, to: usize) -> Result<Vec<Moved>> {
        let (done, is_done) = oneshot::channel();
        let order = Order { count, to, done };
        self.orders.send(order).map_err(|_| "a server ended")?;
        is_done.blocking_recv().map_err(|_| "a server ended".into())
    }
}

async fn obey<K: Carriers>(
    server: Server<App, K>,
    mover: Mover,
    order: Order,
    steer: Arc<Redirected>,
) {
    let to = Destination {
        address: own_address(order.to),
        name: own_name(order.to),
        steer,
    };
    let mut handles = server.connections();
    handles.truncate(order.count);
    let results = move_connections(handles, &mover, &to, AT_ONCE).await;
    let results = results.into_iter().map(|(_, result)| result).collect();
    // Nobody asks any more if the program ends.
    let _ = order.done.send(results);
}

/// Latencies by phase, in microseconds.
#[derive(Default)]
struct Watched {
    latencies: Mutex<[Vec<u64>; 3]>,
    phase: AtomicU8,
    stop: AtomicBool,
}

/// One keep-alive connection that checks every answer and times it.
fn watch(stream: impl Read + Write, watched: &Watched) -> Result<u64> {
    let mut stream = BufReader::new(stream);
    let mut count = 0;
    while !watched.stop.load(Ordering::Relaxed) {
        let phase = watched.phase.load(Ordering::Relaxed);
        let begin = Instant::now();
        let request = b"GET / HTTP/1.1\r\nhost: balance\r\n\r\n";
        stream.get_mut().write_all(request)?;
        stream.get_mut().flush()?;
        let mut answer = String::new();
        while !answer.ends_with("connection\n") {
            if stream.read_line(&mut answer)? == 0 {
                return Err("a server closed a watched connection".into());
            }
        }
        count += 1;
        if !answer.contains(&format!("request {count:012} on")) {
            return Err(format!("request {count} was answered {answer:?}").into());
        }
        let micros = u64::try_from(begin.elapsed().as_micros())?;
        if let Ok(mut latencies) = watched.latencies.lock() {
            latencies[usize::from(phase)].push(micros);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(count)
}

struct Args {
    servers: usize,
    clients: usize,
    seconds: u64,
    tls: bool,
}

fn arguments() -> Result<Args> {
    let mut args = Args {
        servers: 3,
        clients: 300,
        seconds: 3,
        tls: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--tls" {
            args.tls = true;
            continue;
        }
        let number = words.next().and_then(|number| number.parse().ok());
        let number: usize = number.ok_or_else(|| format!("a number after {word}"))?;
        match word.as_str() {
            "--servers" if (2..=60).contains(&number) => args.servers = number,
            "--clients" if number > 0 => args.clients = number,
            "--seconds" if number > 0 => args.seconds = number as u64,
            _ => {
                return Err(format!(
                    "{word} {number}: give --servers 2 to 60, --clients, --seconds or --tls"
                )
                .into());
            }
        }
    }
    Ok(args)
}

/// wrk waits between the requests of a connection, and says at the end what it saw.
const SCRIPT: &str = "
delay = function() return math.random(20, 60) end
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('%d %d %d %d %d\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
";

fn main() -> Result<ExitCode> {
    let args = arguments()?;
    if args.tls {
        run(&args, tls)
    } else {
        run(&args, |_| Ok(Tcp))
    }
}

fn run<K: Carriers>(args: &Args, carriers: fn(&Authority) -> Result<K>) -> Result<ExitCode> {
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace()?;
    }
    let mut lab = Lab::new()?;
    let peer = lab.host("clients", &["198.18.0.200/24"])?;
    let authority = Authority::create("balance")?;
    let mut hosts = Vec::new();
    let mut sites = Vec::new();
    for number in 0..args.servers {
        let own = format!("{}/24", own_address(number).ip());
        let host = if number == 0 {
            lab.host("server-1", &[&own, "198.18.0.80/24"])?
        } else {
            let host = lab.host(&own_name(number), &[&own])?;
            host.hold_silently(&["198.18.0.80/32"])?;
            host
        };
        let issued = authority.issue(&own_name(number))?;
        let carriers = carriers(&authority)?;
        let site = Site::start(&host, number, &issued, authority.ca_pem(), carriers)?;
        sites.push(site);
        hosts.push(host);
    }
    let watched = Arc::new(Watched::default());
    let mut watchers = Vec::new();
    let config = client(&authority)?;
    for _ in 0..WATCHERS {
        let stream = peer.run(|| TcpStream::connect(SERVICE))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let watched = watched.clone();
        watchers.push(if args.tls {
            let name = ServerName::try_from(NAME)?;
            let connection = ClientConnection::new(config.clone(), name)?;
            let stream = StreamOwned::new(connection, stream);
            thread::spawn(move || watch(stream, &watched))
        } else {
            thread::spawn(move || watch(stream, &watched))
        });
    }
    let all = args.clients + WATCHERS;

    // Long enough for the moves; it is told to stop when they are done.
    let script = std::env::temp_dir().join(format!("tcpmig-balance-{}.lua", std::process::id()));
    std::fs::write(&script, SCRIPT)?;
    let wrk = peer
        .command("wrk")?
        .args(["-t1", "-d3600s", "-s"])
        .arg(&script)
        .arg(format!("-c{}", args.clients))
        .arg(if args.tls {
            // It checks no certificate.
            format!("https://{SERVICE}/")
        } else {
            format!("http://{SERVICE}/")
        })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let wrk = wrk.map_err(|error| format!("wrk: {error} (of Debian's package wrk)"))?;
    let all_connected = until(Duration::from_secs(30), || sites[0].server.count() == all);
    std::fs::remove_file(&script)?;
    all_connected?;

    println!(
        "{all} connections, {} servers; requests run all the time",
        args.servers
    );
    print!("{:>9}  {:<34}", "seconds", "step");
    (1..=args.servers).for_each(|number| print!("{:>8}", format!("server{number}")));
    println!("{:>8}{:>20}", "moved", "stood still p50/max");
    let begin = Instant::now();
    let print = |step: &str, reports: &[Report]| {
        print!("{:>9.2}  {step:<34}", begin.elapsed().as_secs_f64());
        sites
            .iter()
            .for_each(|site| print!("{:>8}", site.server.count()));
        let still: Vec<u64> = reports
            .iter()
            .map(|report| report.blackout.as_micros() as u64)
            .collect();
        let [p50, _, max] = percentiles(still);
        println!(
            "{:>8}{:>20}",
            reports.len(),
            format!("{p50:.2} / {max:.2} ms")
        );
    };
    let quiet = Duration::from_secs(args.seconds);
    print("all at the first", &[]);
    thread::sleep(quiet);
    print("before", &[]);

    let before = sent_again(&peer)?;
    watched.phase.store(1, Ordering::Relaxed);
    let (mut moved, mut not_moved) = (0, 0);
    let mut shift = |from: usize, to: usize, count: usize| -> Result<()> {
        let mut left = count;
        while left > 0 {
            let some = left.min(25);
            left -= some;
            let (good, bad): (Vec<_>, Vec<_>) = sites[from]
                .move_some(some, to)?
                .into_iter()
                .partition(std::result::Result::is_ok);
            let reports: Vec<Report> = good.into_iter().flatten().collect();
            moved += reports.len();
            not_moved += bad.len();
            for error in bad.into_iter().filter_map(std::result::Result::err) {
                eprintln!("not moved: {error}");
            }
            // What arrives is served a moment after the source knows that it lives there.
            until(Duration::from_secs(5), || {
                sites.iter().map(|site| site.server.count()).sum::<usize>() == all
            })?;
            print(&format!("{} -> {}", own_name(from), own_name(to)), &reports);
        }
        Ok(())
    };
    let share = |number: usize, among: usize| all / among + usize::from(number < all % among);
    for to in 1..args.servers {
        shift(0, to, share(to, args.servers))?;
    }
    let last = args.servers - 1;
    println!(
        "{:>9.2}  {} is drained for good",
        begin.elapsed().as_secs_f64(),
        own_name(last)
    );
    shift(last, 0, share(last, args.servers))?;
    for to in 1..last {
        shift(0, to, share(to, last) - share(to, args.servers))?;
    }

    watched.phase.store(2, Ordering::Relaxed);
    thread::sleep(quiet);
    print("after", &[]);
    let after = sent_again(&peer)?;
    let drained = sites[last].server.count();
    watched.stop.store(true, Ordering::Relaxed);
    let mut failed = 0;
    let mut requests = 0;
    for watcher in watchers {
        match watcher.join().map_err(|_| "a watcher panicked")? {
            Ok(count) => requests += count,
            Err(error) => {
                eprintln!("a watched connection failed: {error}");
                failed += 1;
            }
        }
    }
    // wrk reports when it is interrupted.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(wrk.id())?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    let said = wrk.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stderr);
    let numbers: Vec<u64> = said
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [wrk_requests, wrk_failed, p50, p99, max] = numbers[..] else {
        return Err(format!("wrk said {said:?}").into());
    };
    requests += wrk_requests;
    failed += wrk_failed;

    println!("\nlatency, ms        p50      p99      max   requests");
    let latencies = watched.latencies.lock().map_err(|_| "a watcher panicked")?;
    let line = |name: &str, [p50, p99, max]: [f64; 3], count: u64| {
        println!("{name:<13}{p50:>9.2}{p99:>9.2}{max:>9.2}{count:>11}");
    };
    for (phase, latencies) in ["before", "during", "after"].iter().zip(latencies.iter()) {
        line(
            phase,
            percentiles(latencies.clone()),
            latencies.len() as u64,
        );
    }
    let ms = |micros: u64| micros as f64 / 1000.0;
    line("wrk, overall", [ms(p50), ms(p99), ms(max)], wrk_requests);
    println!(
        "\nsent again by the clients since the first move: {} by a timer, {} by a loss probe",
        after[0] - before[0],
        after[1] - before[1]
    );
    println!(
        "{requests} requests sent, {failed} failed; {moved} moves, {not_moved} refused; {drained} left on the drained server"
    );
    let good = failed == 0 && not_moved == 0 && drained == 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How often the clients sent something again on all connections together: because a timer ran out, because a loss was
/// suspected.
fn sent_again(peer: &Host) -> Result<[u64; 2]> {
    let netstat = peer.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let counter = |name| {
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        let value = pairs.find(|pair| pair.0 == name).map(|pair| pair.1.parse());
        value.unwrap_or(Ok(0))
    };
    Ok([counter("TCPTimeouts")?, counter("TCPLossProbes")?])
}

fn until(within: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while !holds() {
        if Instant::now() > deadline {
            return Err("connections are missing".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Middle, 99th percentile and worst, in milliseconds.
fn percentiles(mut micros: Vec<u64>) -> [f64; 3] {
    micros.sort_unstable();
    let at = |percent: usize| {
        let last = micros.len().saturating_sub(1);
        micros.get(last * percent / 100).copied().unwrap_or(0) as f64 / 1000.0
    };
    [at(50), at(99), at(100)]
}
