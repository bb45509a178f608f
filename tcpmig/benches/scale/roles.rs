//! What each process does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tcpmig::driver::{Acceptor, Destination, Ending, Mover, Options, Outcome, Report};
use tcpmig::steer::Redirected;
use tcpmig_sys::fcntl;
use tcpmig_sys::process::descriptors;
use tokio::task::JoinSet;

use crate::support::endpoint;
use crate::{Sent, Taken, Task};

const SERVICE: &str = "198.18.0.80:80";
const SOURCE: &str = "198.18.0.1:7077";
const TARGET: &str = "198.18.0.2:7077";

/// So many pings are on their way in a second, whatever the number of connections.
const PINGS: u32 = 2_000;

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) {
    let role = arguments.next().unwrap();
    let task: Task = serde_json::from_str(&arguments.next().unwrap()).unwrap();
    descriptors::raise_limit().unwrap();
    descriptors::reserve(task.connections() as u32 + 64).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match role.as_str() {
        "source" => runtime.block_on(source(&task)),
        "target" => runtime.block_on(target(&task)),
        "peer" => peer(&task),
        other => panic!("no role {other}"),
    }
}

fn pem() -> [String; 3] {
    ["CERT", "KEY", "CA"].map(|name| std::env::var(name).unwrap())
}

fn say(line: &str) {
    println!("{line}");
}

fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Bytes of memory that this process has now.
fn memory() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse::<i64>().unwrap() << 10
}

/// Time of processors that this process has taken.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    times
        .iter()
        .map(|time| Duration::from_micros(time.num_microseconds() as u64))
        .sum()
}

fn options(task: &Task) -> Options {
    let mut options = Options::default();
    options.in_flight = task.in_flight;
    options
}

async fn source(task: &Task) {
    let service: SocketAddr = SERVICE.parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&service.into()).unwrap();
    socket.listen(4096).unwrap();
    let listener = TcpListener::from(socket);
    let locker = Arc::new(tcpmig::locker::nftables().unwrap());
    let endpoint = endpoint(SOURCE.parse().unwrap(), &pem());
    let target: SocketAddr = TARGET.parse().unwrap();
    let to = Destination {
        address: target,
        name: "host-b".to_owned(),
        steer: Arc::new(Redirected::new(target.ip(), Duration::from_secs(3600)).unwrap()),
    };
    say("listening");
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for _ in 0..task.connections() {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        sockets.push(stream.into());
    }
    say("accepted");
    endpoint.connect(target, &to.name).await.unwrap();
    assert_eq!(hear(), "move");
    let mover = Mover::new(endpoint, locker, options(task));
    let (before, worked) = (memory(), cpu());
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(task.connections());
    let mut taken = Duration::ZERO;
    let mut sockets = sockets.into_iter();
    for _ in 0..task.rounds {
        let batch: Vec<OwnedFd> = sockets.by_ref().take(task.size).collect();
        let begin = Instant::now();
        let mut moves = mover.move_all(batch, &to);
        while let Some(outcome) = moves.next().await {
            outcomes.push(outcome);
        }
        taken += begin.elapsed();
    }
    let sent = Sent {
        seconds: taken.as_secs_f64(),
        moved: count_moved(&outcomes),
        not_moved: not_moved(&outcomes),
        blackout_us: outcomes
            .iter()
            .map(|o| o.report.blackout.as_micros() as u64)
            .collect(),
        phases_us: phases(&outcomes),
        captured_packets: outcomes.iter().map(|o| o.report.captured_packets).sum(),
        memory: memory() - before,
        cpu: cpu() - worked,
    };
    say(&serde_json::to_string(&sent).unwrap());
    hear();
}

fn count_moved(outcomes: &[Outcome]) -> usize {
    let moved = |outcome: &&Outcome| matches!(outcome.ending, Ending::Moved);
    outcomes.iter().filter(moved).count()
}

fn not_moved(outcomes: &[Outcome]) -> Vec<String> {
    let why = |outcome: &Outcome| match &outcome.ending {
        Ending::Moved => None,
        Ending::Kept { reason, .. } => Some(reason.to_string()),
        other => Some(format!("{other:?}")),
    };
    outcomes.iter().filter_map(why).take(3).collect()
}

type Phase = fn(&Report) -> Duration;

fn phases(outcomes: &[Outcome]) -> Vec<(String, f64)> {
    let phases: [(&str, Phase); 7] = [
        ("lock", |r| r.lock),
        ("read", |r| r.read),
        ("transfer", |r| r.transfer),
        ("rebuild", |r| r.rebuild),
        ("steer", |r| r.steer),
        ("commit", |r| r.commit),
        ("activate", |r| r.activate),
    ];
    let mean = |of: Phase| {
        let sum: Duration = outcomes.iter().map(|outcome| of(&outcome.report)).sum();
        sum.as_secs_f64() * 1e6 / outcomes.len() as f64
    };
    phases
        .iter()
        .map(|&(name, of)| (name.to_owned(), mean(of)))
        .collect()
}

async fn target(task: &Task) {
    let locker = Arc::new(tcpmig::locker::nftables().unwrap());
    let endpoint = endpoint(TARGET.parse().unwrap(), &pem());
    let mut arrivals = Acceptor::new(endpoint, locker)
        .options(options(task))
        .serve();
    say("serving");
    let (before, worked) = (memory(), cpu());
    let mut echoes = JoinSet::new();
    for _ in 0..task.connections() {
        let arrived = arrivals.next().await.unwrap();
        assert!(arrived.unwritten.is_empty());
        fcntl::set_non_blocking(arrived.socket.as_fd(), true).unwrap();
        echoes.spawn(echo(arrived.socket));
    }
    // Of this, the application's task and registration are some hundred bytes.
    let taken = Taken {
        memory: memory() - before,
        cpu: cpu() - worked,
    };
    say(&serde_json::to_string(&taken).unwrap());
    while echoes.join_next().await.is_some() {}
}

/// Answers each byte with itself.
async fn echo(socket: OwnedFd) {
    let stream = tokio::net::TcpStream::from_std(TcpStream::from(socket)).unwrap();
    let mut bytes = [0; 64];
    loop {
        stream.readable().await.unwrap();
        match stream.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => assert_eq!(stream.try_write(&bytes[..count]).unwrap(), count),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
}

/// The ping with this number, as the byte that it is.
fn ping(number: usize) -> u8 {
    (number * 7 + 3) as u8
}

fn peer(task: &Task) {
    let connect = |_| TcpStream::connect(SERVICE).unwrap();
    let streams: Vec<TcpStream> = (0..task.connections()).map(connect).collect();
    let mut pings = vec![0; streams.len()];
    for stream in &streams {
        stream.set_nodelay(true).unwrap();
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
    }
    say("connected");
    let (sender, check) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(hear()));
    let mut next = 0;
    while check.try_recv().is_err() {
        std::thread::sleep(Duration::from_millis(1));
        if !task.pinging {
            continue;
        }
        for _ in 0..PINGS / 1000 {
            // At most so many as the windows take, whoever answers them.
            if pings[next] < 1000 {
                (&streams[next]).write_all(&[ping(pings[next])]).unwrap();
                pings[next] += 1;
            }
            next = (next + 1) % streams.len();
        }
    }
    let answers = |(mut stream, &pings): (&TcpStream, &usize)| {
        stream.write_all(&[ping(pings)]).unwrap();
        (0..=pings).all(|number| {
            let mut byte = [0];
            stream.read_exact(&mut byte).is_ok() && byte[0] == ping(number)
        })
    };
    let alive = streams
        .iter()
        .zip(&pings)
        .filter(|&pair| answers(pair))
        .count();
    say(&alive.to_string());
    hear();
}
