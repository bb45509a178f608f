//! How fast many connections move at once, and for how long each of them stands still.
//!
//! `cargo bench -p tcpmig --bench scale [-- --connections N] [--in-flight N] [--only idle|pinging] [--json]`
//!
//! Source, target and peer are processes of their own, each on a host of its own.
#![allow(clippy::unwrap_used, reason = "a failed set-up ends the benchmark")]

mod child;
mod roles;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use support::{Keys, Net};

use child::Child;

/// How many connections are moved to get a distribution, if a batch is smaller than this.
const ENOUGH: usize = 200;

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("role").is_some() {
        return roles::run(arguments);
    }
    let mut sizes = vec![1, 100, 1_000, 10_000];
    let mut loads = vec![false, true];
    let (mut json, mut in_flight) = (false, tcpmig::driver::Options::default().in_flight);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let number = arguments.next().and_then(|n| n.parse().ok());
            number.unwrap_or_else(|| panic!("a number after {argument}"))
        };
        match argument.as_str() {
            "--connections" => sizes = vec![number()],
            "--in-flight" => in_flight = number(),
            "--only" => match arguments.next().as_deref() {
                Some("idle") => loads = vec![false],
                Some("pinging") => loads = vec![true],
                other => panic!("{other:?}: idle or pinging after --only"),
            },
            "--json" => json = true,
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => panic!(
                "{other:?}: give --connections N, --in-flight N, --only idle|pinging or --json"
            ),
        }
    }
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    let mut all = Vec::new();
    if !json {
        Measured::print_head();
    }
    for pinging in loads {
        for &size in &sizes {
            let measured = measure(&Task {
                size,
                rounds: (ENOUGH / size).clamp(1, 100),
                pinging,
                in_flight,
            });
            if !json {
                measured.print();
            }
            all.push(measured);
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&all).unwrap());
    }
}

/// What is to be measured.
#[derive(Clone, Serialize, Deserialize)]
struct Task {
    /// Connections in each batch.
    size: usize,
    /// Batches, one after the other.
    rounds: usize,
    pinging: bool,
    in_flight: usize,
}

impl Task {
    fn connections(&self) -> usize {
        self.size * self.rounds
    }
}

/// What the source saw.
#[derive(Serialize, Deserialize)]
struct Sent {
    seconds: f64,
    moved: usize,
    not_moved: Vec<String>,
    /// Of each connection, in microseconds.
    blackout_us: Vec<u64>,
    /// Means, in microseconds.
    phases_us: Vec<(String, f64)>,
    captured_packets: u64,
    /// Bytes of memory that the process has more than before.
    memory: i64,
    /// Of its process, from the first connection that moved to the last.
    cpu: Duration,
}

/// What the target saw.
#[derive(Serialize, Deserialize)]
struct Taken {
    memory: i64,
    cpu: Duration,
}

#[derive(Serialize)]
struct Measured {
    connections: usize,
    rounds: usize,
    pinging: bool,
    in_flight: usize,
    seconds: f64,
    per_second: f64,
    blackout_p50_us: u64,
    blackout_p99_us: u64,
    blackout_max_us: u64,
    captured_packets: u64,
    source_bytes_each: i64,
    target_bytes_each: i64,
    source_cpu_us: f64,
    target_cpu_us: f64,
    phases_us: Vec<(String, f64)>,
    alive: usize,
}

fn measure(task: &Task) -> Measured {
    let net = Net::new();
    let keys = Keys::new();
    let mut target = Child::start(&net.b, "target", &keys.pem("host-b"), task);
    let mut source = Child::start(&net.a, "source", &keys.pem("host-a"), task);
    assert_eq!(source.hear(), "listening");
    let mut peer = Child::start(&net.peer, "peer", &keys.pem("peer"), task);
    assert_eq!(peer.hear(), "connected");
    assert_eq!(source.hear(), "accepted");
    assert_eq!(target.hear(), "serving");
    source.say("move");
    let sent: Sent = serde_json::from_str(&source.hear()).unwrap();
    assert_eq!(sent.not_moved, Vec::<String>::new());
    let taken: Taken = serde_json::from_str(&target.hear()).unwrap();
    // Each connection has to answer, with nothing lost or repeated before.
    peer.say("check");
    let alive: usize = peer.hear().parse().unwrap();
    assert_eq!(
        alive,
        task.connections(),
        "connections that live afterwards"
    );
    let mut blackouts = sent.blackout_us;
    blackouts.sort_unstable();
    let at = |percent: usize| blackouts[(blackouts.len() * percent / 100).min(blackouts.len() - 1)];
    let all = task.connections();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / all as f64;
    Measured {
        connections: task.size,
        rounds: task.rounds,
        pinging: task.pinging,
        in_flight: task.in_flight,
        seconds: sent.seconds / task.rounds as f64,
        per_second: all as f64 / sent.seconds,
        blackout_p50_us: at(50),
        blackout_p99_us: at(99),
        blackout_max_us: at(100),
        captured_packets: sent.captured_packets,
        source_bytes_each: sent.memory / all as i64,
        target_bytes_each: taken.memory / all as i64,
        source_cpu_us: each(sent.cpu),
        target_cpu_us: each(taken.cpu),
        phases_us: sent.phases_us,
        alive,
    }
}

impl Measured {
    fn print_head() {
        println!(
            "{:>11} {:>8} {:>10} {:>9} | {:^26} | {:>8} | {:^15} | {:^15}",
            "", "", "", "", "blackout", "arrived", "memory each", "µs of CPU each"
        );
        println!(
            "{:>11} {:>8} {:>10} {:>9} | {:>8} {:>8} {:>8} | {:>8} | {:>7} {:>7} | {:>7} {:>7}",
            "connections",
            "",
            "time",
            "a second",
            "p50",
            "p99",
            "max",
            "meanwhile",
            "source",
            "target",
            "source",
            "target"
        );
    }

    fn print(&self) {
        let ms = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
        println!(
            "{:>11} {:>8} {:>7.1} ms {:>9.0} | {:>8} {:>8} {:>8} | {:>8} | {:>7} {:>7} | {:>7.0} {:>7.0}",
            self.connections,
            if self.pinging { "pinging" } else { "idle" },
            self.seconds * 1000.0,
            self.per_second,
            ms(self.blackout_p50_us),
            ms(self.blackout_p99_us),
            ms(self.blackout_max_us),
            self.captured_packets,
            self.source_bytes_each,
            self.target_bytes_each,
            self.source_cpu_us,
            self.target_cpu_us,
        );
        let phases: Vec<String> = self
            .phases_us
            .iter()
            .map(|(name, us)| format!("{name} {us:.0}"))
            .collect();
        println!("{:>11} mean of each phase in µs: {}", "", phases.join(", "));
    }
}
