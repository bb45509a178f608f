//! Web servers behind one address share their keep-alive connections while wrk uses them.
//!
//! `cargo run --release --example balance [-- --servers N --clients K --seconds S --tls --http2 --agents]`
//!
//! Every client connects to the first server, because that one answers for the address. Its connections are moved until
//! every server has its share; then the last server is drained for good and its connections go back and
//! are shared by the others. wrk (of Debian's package `wrk`) is the load and counts failures; a few connections of this
//! program's own, which move like the others, time every request. With `--tls` all of it is HTTPS. With `--http2` the load is h2load (of
//! `nghttp2-client`), with several requests at a time on each connection. With `--agents` each server is a
//! process of its own that runs as nobody, and an agent on its host moves its connections. Ends with 0 if none failed.

mod agents;
mod load;
mod site;
mod tls;

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use tcpmig::session::Tcp;
use tcpmig_sys::lab::{Host, Lab};
use tcpmig_transport::keys::{Authority, Issued};

use agents::{Folder, Unprivileged};
use load::{Load, Said};
use site::{Privileged, Site, own_address, own_name};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SERVICE: &str = "198.18.0.80:8080";
/// Connections that time their requests.
const WATCHERS: usize = 12;

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
    http2: bool,
    agents: bool,
}

impl Args {
    /// The program that is the load, and its package.
    fn load(&self) -> (&'static str, &'static str) {
        if self.http2 {
            ("h2load", "nghttp2-client")
        } else {
            ("wrk", "wrk")
        }
    }
}

fn arguments() -> Result<Args> {
    let mut args = Args {
        servers: 3,
        clients: 300,
        seconds: 3,
        tls: false,
        http2: false,
        agents: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--tls" => {
                args.tls = true;
                continue;
            }
            "--http2" => {
                args.http2 = true;
                continue;
            }
            "--agents" => {
                args.agents = true;
                continue;
            }
            _ => {}
        }
        let number = words.next().and_then(|number| number.parse().ok());
        let number: usize = number.ok_or_else(|| format!("a number after {word}"))?;
        match word.as_str() {
            "--servers" if (2..=60).contains(&number) => args.servers = number,
            "--clients" if number > 0 => args.clients = number,
            "--seconds" if number > 0 => args.seconds = number as u64,
            _ => {
                return Err(format!(
                    "{word} {number}: give --servers 2 to 60, --clients, --seconds, --tls, --http2 or --agents"
                )
                .into());
            }
        }
    }
    Ok(args)
}

fn main() -> Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some("server") {
        return agents::serve().map(|()| ExitCode::SUCCESS);
    }
    run(&arguments()?)
}

/// The server of a host.
fn start(
    (host, number): (&Host, usize),
    authority: &Authority,
    issued: &Issued,
    args: &Args,
    folder: Option<&Folder>,
) -> Result<Box<dyn Site>> {
    let web = args.tls.then(|| authority.issue(tls::NAME)).transpose()?;
    if let Some(folder) = folder {
        let site = Unprivileged::start(folder, host, number, issued, web.as_ref())?;
        return Ok(Box::new(site));
    }
    let ca = authority.ca_pem();
    Ok(match web {
        Some(web) => {
            let carriers = tls::server(&web.cert_pem, &web.key_pem)?;
            Box::new(Privileged::start(host, number, issued, ca, carriers)?)
        }
        None => Box::new(Privileged::start(host, number, issued, ca, Tcp)?),
    })
}

/// All connections of all servers.
fn count_all(sites: &[Box<dyn Site>]) -> Result<usize> {
    sites.iter().map(|site| site.count()).sum()
}

fn run(args: &Args) -> Result<ExitCode> {
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace()?;
    }
    let mut lab = Lab::new()?;
    let peer = lab.host("clients", &["198.18.0.200/24"])?;
    let authority = Authority::create("balance")?;
    let folder = args
        .agents
        .then(|| Folder::create(&authority, args.servers));
    let folder = folder.transpose()?;
    let mut hosts = Vec::new();
    let mut sites: Vec<Box<dyn Site>> = Vec::new();
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
        let place = (&host, number);
        sites.push(start(place, &authority, &issued, args, folder.as_ref())?);
        hosts.push(host);
    }
    let watched = Arc::new(Watched::default());
    let mut watchers = Vec::new();
    let config = tls::client(&authority)?;
    for _ in 0..WATCHERS {
        let stream = peer.run(|| TcpStream::connect(SERVICE))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let watched = watched.clone();
        watchers.push(if args.tls {
            let name = ServerName::try_from(tls::NAME)?;
            let connection = ClientConnection::new(config.clone(), name)?;
            let stream = StreamOwned::new(connection, stream);
            thread::spawn(move || watch(stream, &watched))
        } else {
            thread::spawn(move || watch(stream, &watched))
        });
    }
    let all = args.clients + WATCHERS;

    let load = Load::start(&peer, args)?;
    let all_connected = until(Duration::from_secs(30), || Ok(sites[0].count()? == all));
    load.connected();
    all_connected?;

    println!(
        "{all} connections, {} servers{}; requests run all the time",
        args.servers,
        if args.agents {
            " without privileges, by agents"
        } else {
            ""
        }
    );
    print!("{:>9}  {:<34}", "seconds", "step");
    (1..=args.servers).for_each(|number| print!("{:>8}", format!("server{number}")));
    println!("{:>8}{:>20}", "moved", "stood still p50/max");
    let begin = Instant::now();
    let print = |step: &str, still_us: &[u64]| -> Result<()> {
        print!("{:>9.2}  {step:<34}", begin.elapsed().as_secs_f64());
        for site in &sites {
            print!("{:>8}", site.count()?);
        }
        let [p50, _, max] = percentiles(still_us.to_vec());
        println!(
            "{:>8}{:>20}",
            still_us.len(),
            format!("{p50:.2} / {max:.2} ms")
        );
        Ok(())
    };
    let quiet = Duration::from_secs(args.seconds);
    print("all at the first", &[])?;
    thread::sleep(quiet);
    print("before", &[])?;

    let before = sent_again(&peer)?;
    watched.phase.store(1, Ordering::Relaxed);
    let (mut moved, mut not_moved) = (0, 0);
    let mut shift = |from: usize, to: usize, count: usize| -> Result<()> {
        let mut left = count;
        while left > 0 {
            let some = left.min(25);
            left -= some;
            let done = sites[from].move_some(some, to)?;
            moved += done.still_us.len();
            not_moved += done.not_moved.len();
            for error in done.not_moved {
                eprintln!("not moved: {error}");
            }
            // What arrives is served a moment after the source knows that it lives there.
            until(Duration::from_secs(5), || Ok(count_all(&sites)? == all))?;
            let step = format!("{} -> {}", own_name(from), own_name(to));
            print(&step, &done.still_us)?;
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
    print("after", &[])?;
    let after = sent_again(&peer)?;
    let drained = sites[last].count()?;
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
    let Said {
        requests: by_load,
        failed: failed_by_load,
        latency_us,
    } = load.end()?;
    requests += by_load;
    failed += failed_by_load;

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
    let (program, _) = args.load();
    match latency_us {
        Some(latency) => line(&format!("{program}, overall"), latency.map(ms), by_load),
        None => println!("{:<13}{by_load:>38}", format!("{program}, overall")),
    }
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

fn until(within: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + within;
    while !holds()? {
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
