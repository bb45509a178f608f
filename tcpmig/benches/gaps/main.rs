//! What the peer of a connection notices when it moves: the longest pause in six kinds of traffic, beside the same
//! traffic on a connection that is not moved.
//!
//! `cargo bench -p tcpmig --bench gaps [-- --moves N] [--only TRAFFIC] [--json]`
#![allow(clippy::unwrap_used, reason = "a failed set-up ends the benchmark")]

mod app;
mod meter;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use support::{Family, Net, Site, tcp_counter};
use tcpmig::driver::Options;

use app::{Servers, Traffic};
use meter::{Meter, Window};
use table::{Measured, middle_and_worst};

/// What a move may add to the time in which the connection stands still.
const LATE: Duration = Duration::from_millis(2);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut moves, mut json, mut only) = (40, false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--moves" => {
                let number = arguments.next().and_then(|n| n.parse().ok());
                moves = number.expect("a number after --moves");
            }
            "--json" => json = true,
            "--only" => only = arguments.next(),
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => panic!("{other:?}: give --moves N, --only TRAFFIC or --json"),
        }
    }
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    let chosen = Traffic::ALL.into_iter().filter(|traffic| {
        let name = format!("{traffic:?}");
        only.as_ref()
            .is_none_or(|only| only.eq_ignore_ascii_case(&name))
    });
    let all: Vec<Measured> = chosen.map(|traffic| measure(traffic, moves)).collect();
    assert!(!all.is_empty(), "no such traffic: {only:?}");
    if json {
        println!("{}", serde_json::to_string_pretty(&all).unwrap());
    } else {
        table::print(&all);
    }
}

fn measure(traffic: Traffic, moves: usize) -> Measured {
    let unmoved = Observed::of(traffic, moves, false);
    let moved = Observed::of(traffic, moves, true);
    let over = |observed: &Observed| {
        let beyond = observed.beyond.iter();
        beyond.filter(|&&beyond| beyond > LATE).count()
    };
    // What pauses as long without a move does not pause because of one.
    let longest_unmoved = unmoved.gaps.iter().copied().max().unwrap_or_default();
    let by_the_move = moved.gaps.iter().zip(&moved.locked);
    let late = by_the_move
        .filter(|&(&gap, &locked)| gap > locked.max(longest_unmoved) + LATE)
        .count();
    let throughput = |observed: &Observed| {
        let percent = observed.throughput_percent.clone();
        traffic.is_bulk().then(|| middle_and_worst(percent)[0])
    };
    let micros = |durations: &[Duration]| {
        middle_and_worst(durations.iter().map(|d| d.as_micros() as u64).collect())
    };
    Measured {
        traffic,
        moves,
        unmoved_us: micros(&unmoved.gaps),
        unmoved_over: over(&unmoved),
        locked_us: micros(&moved.locked),
        gap_us: micros(&moved.gaps),
        beyond_us: micros(&moved.beyond),
        over: over(&moved),
        late,
        with_captured: moved.with_captured,
        peer_retransmissions: moved.peer_retransmissions,
        timeouts: moved.timeouts,
        unmoved_throughput_percent: throughput(&unmoved),
        throughput_percent: throughput(&moved),
    }
}

/// One connection, watched before and after each of several moments: of moves, or of none.
#[derive(Default)]
struct Observed {
    /// The longest pause around each moment.
    gaps: Vec<Duration>,
    /// How long the connection stood still.
    locked: Vec<Duration>,
    /// How much longer the pause was.
    beyond: Vec<Duration>,
    /// Bytes after each moment in percent of those before it, in equal times.
    throughput_percent: Vec<u64>,
    /// Moves during which packets were captured.
    with_captured: usize,
    peer_retransmissions: u32,
    timeouts: u64,
}

impl Observed {
    fn of(traffic: Traffic, moments: usize, moving: bool) -> Self {
        let net = Net::new();
        let mut options = Options::default();
        options.settle = Duration::from_millis(20);
        let (a, b) = Site::pair(&net, &options);
        let (peer, server) = net.connect(Family::V4);
        let (locked, asks) = mpsc::channel();
        let mut servers = Servers::start([&a, &b], traffic, server, &locked);
        let meter = Meter::start(traffic, peer, asks);
        let mut observed = Self::default();
        // The first moments of a connection are its slow start.
        watch(traffic);
        for _ in 0..moments {
            let before = watch(traffic);
            let begin = Instant::now();
            let stood_still = if moving {
                let report = servers.hop();
                observed.with_captured += usize::from(report.captured_packets > 0);
                report.blackout
            } else {
                let _ = locked.send(());
                Duration::ZERO
            };
            let after = watch(traffic);
            let around = Window {
                begin,
                end: after.end,
            };
            let gap = meter.longest_pause(around);
            observed.gaps.push(gap);
            observed.locked.push(stood_still);
            observed.beyond.push(gap.saturating_sub(stood_still));
            let percent = (meter.bytes(after) * 100).checked_div(meter.bytes(before));
            observed.throughput_percent.extend(percent);
        }
        observed.timeouts = [&net.peer, &net.a, &net.b]
            .map(|host| tcp_counter(host, "TCPTimeouts"))
            .iter()
            .sum();
        drop(locked);
        observed.peer_retransmissions = meter.stop(servers);
        observed
    }
}

/// Lets time pass with nothing but the traffic.
fn watch(traffic: Traffic) -> Window {
    let begin = Instant::now();
    std::thread::sleep(if traffic.is_bulk() {
        Duration::from_secs(1)
    } else {
        Duration::from_millis(300)
    });
    Window {
        begin,
        end: Instant::now(),
    }
}
