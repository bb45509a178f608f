//! What it costs that HTTP sessions can move: requests per second and processor time beside plain hyper, and the
//! latency of requests while their connections move. With `--tls` HTTPS beside HTTP: the rate is that of HTTPS, beside plain
//! hyper over tokio-rustls, and the moves are those of both; and it says what it costs to take a TLS session apart and
//! to go on with it, beside a handshake. With `--http2` the rate is that of HTTP/2, with several streams on each connection, beside
//! hyper's own, and nothing moves.
//!
//! `cargo bench -p tcpmig --all-features --bench http [-- --tls] [--http2] [--rounds N] [--seconds S] [--connections K] [--only rate|moves] [--json]`
//!
//! The load is wrk, of Debian's package `wrk`, and h2load of `nghttp2-client`.
#![allow(clippy::unwrap_used, reason = "a failed set-up ends the benchmark")]

mod costs;
mod h2load;
mod servers;
#[path = "../../tests/support/mod.rs"]
mod support;
mod wrk;

use std::time::{Duration, Instant};

use serde::Serialize;

use costs::Costs;
use servers::{Over, Servers, Which};
use support::{tcp_counter, until};
use tcpmig::session::Carriers;
use wrk::Load;

struct Args {
    rounds: usize,
    seconds: u64,
    connections: usize,
    rate: bool,
    moves: bool,
    tls: bool,
    http2: bool,
    json: bool,
}

fn arguments() -> Args {
    let mut args = Args {
        rounds: 7,
        seconds: 2,
        connections: 64,
        rate: true,
        moves: true,
        tls: false,
        http2: false,
        json: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let number = words.next().and_then(|n| n.parse().ok());
            number.unwrap_or_else(|| panic!("a number after {word}"))
        };
        match word.as_str() {
            "--rounds" => args.rounds = number(),
            "--seconds" => args.seconds = number() as u64,
            "--connections" => args.connections = number(),
            "--only" => match words.next().as_deref() {
                Some("rate") => args.moves = false,
                Some("moves") => args.rate = false,
                other => panic!("{other:?}: rate or moves after --only"),
            },
            "--tls" => args.tls = true,
            "--http2" => (args.http2, args.moves) = (true, false),
            "--json" => args.json = true,
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => panic!(
                "{other:?}: give --tls, --http2, --rounds N, --seconds S, --connections K, --only rate|moves or --json"
            ),
        }
    }
    args
}

fn main() {
    let args = arguments();
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let costs: Vec<Costs> = match args.tls {
        true => versions.map(Costs::measure).into(),
        false => Vec::new(),
    };
    let (rate, moves) = if args.tls {
        let servers = Servers::over_tls(args.http2);
        let rate = args.rate.then(|| Rate::measure(&servers, &args));
        let over_tls = args.moves.then(|| Moves::measure(&servers, &args));
        drop(servers);
        let over_tcp = args
            .moves
            .then(|| Moves::measure(&Servers::over_tcp(args.http2), &args));
        (rate, over_tcp.into_iter().chain(over_tls).collect())
    } else {
        let servers = Servers::over_tcp(args.http2);
        let rate = args.rate.then(|| Rate::measure(&servers, &args));
        let moves = args.moves.then(|| Moves::measure(&servers, &args));
        (rate, Vec::from_iter(moves))
    };
    if args.json {
        let both = serde_json::json!({ "rate": rate, "moves": moves, "tls": costs });
        println!("{}", serde_json::to_string_pretty(&both).unwrap());
        return;
    }
    costs.iter().for_each(Costs::print);
    rate.iter().for_each(Rate::print);
    moves.iter().for_each(Moves::print);
}

/// As many requests as go, to both servers in turn.
#[derive(Serialize)]
struct Rate {
    connections: usize,
    seconds: u64,
    rounds: Vec<Round>,
    /// Of the movable server in percent of plain hyper, in the middle of the rounds.
    rate_percent: f64,
    /// The same of the processor's time for a request.
    time_percent: f64,
}

/// Both servers, one directly after the other.
#[derive(Serialize)]
struct Round {
    plain: OneRate,
    movable: OneRate,
}

#[derive(Serialize)]
struct OneRate {
    requests_per_second: f64,
    /// The server's thread, in the kernel and outside of it.
    processor_us_per_request: f64,
}

impl OneRate {
    fn measure(servers: &Servers<impl Carriers + Clone>, which: Which, args: &Args) -> Self {
        let load = Load {
            connections: args.connections,
            duration: Some(Duration::from_secs(args.seconds)),
            pause_ms: None,
        };
        let before = servers.processor_time();
        let (peer, url) = (&servers.net.peer, which.url(servers.over));
        let said = if servers.http2 {
            h2load::run(peer, &url, args.connections, args.seconds)
        } else {
            wrk::run(peer, &url, &load)
        };
        let spent = servers.processor_time() - before;
        said.assert_no_errors();
        Self {
            requests_per_second: said.requests as f64 / said.duration.as_secs_f64(),
            processor_us_per_request: spent.as_secs_f64() * 1e6 / said.requests as f64,
        }
    }
}

impl Rate {
    fn measure(servers: &Servers<impl Carriers + Clone>, args: &Args) -> Self {
        // The first run warms up what both share.
        OneRate::measure(servers, Which::Plain, args);
        let rounds: Vec<Round> = (0..args.rounds)
            .map(|round| {
                // In turns, which of the two is the first.
                let one = |which| OneRate::measure(servers, which, args);
                if round % 2 == 0 {
                    let plain = one(Which::Plain);
                    let movable = one(Which::Movable);
                    Round { plain, movable }
                } else {
                    let movable = one(Which::Movable);
                    let plain = one(Which::Plain);
                    Round { plain, movable }
                }
            })
            .collect();
        let percent = |part: fn(&OneRate) -> f64| {
            middle(
                rounds
                    .iter()
                    .map(|round| 100.0 * part(&round.movable) / part(&round.plain)),
            )
        };
        Self {
            connections: args.connections,
            seconds: args.seconds,
            rate_percent: percent(|one| one.requests_per_second),
            time_percent: percent(|one| one.processor_us_per_request),
            rounds,
        }
    }

    fn print(&self) {
        println!(
            "{} connections, {} s each: requests per second, µs of the server's processor for each",
            self.connections, self.seconds
        );
        println!(
            "{:>8}{:>20}{:>20}{:>8}",
            "round", "plain hyper", "movable", "rate"
        );
        let one = |one: &OneRate| {
            format!(
                "{:.0} / {:.2}",
                one.requests_per_second, one.processor_us_per_request
            )
        };
        for (number, Round { plain, movable }) in self.rounds.iter().enumerate() {
            let percent = 100.0 * movable.requests_per_second / plain.requests_per_second;
            println!(
                "{:>8}{:>20}{:>20}{:>8}",
                number + 1,
                one(plain),
                one(movable),
                format!("{percent:.1} %")
            );
        }
        println!(
            "in the middle: {:.1} % of the rate, {:.1} % of the processor's time\n",
            self.rate_percent, self.time_percent
        );
    }
}

/// Requests at a steady rate while all connections move to and fro, and while none does.
#[derive(Serialize)]
struct Moves {
    over: &'static str,
    connections: usize,
    quiet: Window,
    moving: Window,
    /// How often a connection moved.
    moves: usize,
    /// How long each stood still: in the middle, 99th percentile, worst.
    stood_still_us: [u64; 3],
}

#[derive(Serialize)]
struct Window {
    requests: u64,
    seconds: f64,
    /// In the middle, 99th percentile, worst.
    latency_us: [u64; 3],
    /// What wrk's host sent again because an answer did not come: after a timer, as a loss probe.
    sent_again: [u64; 2],
}

impl Moves {
    fn measure(servers: &Servers<impl Carriers + Clone>, args: &Args) -> Self {
        let load = Load {
            connections: args.connections,
            duration: None,
            pause_ms: Some([5, 20]),
        };
        let window = |moving: bool| {
            let sent_again = || {
                ["TCPTimeouts", "TCPLossProbes"]
                    .map(|counter| tcp_counter(&servers.net.peer, counter))
            };
            let before = sent_again();
            let wrk = wrk::start(&servers.net.peer, &Which::Movable.url(servers.over), &load);
            until("wrk has connected", || {
                servers.counts() == [args.connections, 0]
            });
            let end = Instant::now() + Duration::from_secs(args.seconds * 5);
            let mut still = Vec::new();
            if moving {
                let mut at = 0;
                while Instant::now() < end || at == 1 {
                    still.extend(servers.move_all_from(at));
                    at = 1 - at;
                    until("all have arrived", || {
                        servers.counts()[at] == args.connections
                    });
                }
            }
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            let said = wrk.stop();
            until("all are over", || servers.counts() == [0, 0]);
            said.assert_no_errors();
            let after = sent_again();
            let window = Window {
                requests: said.requests,
                seconds: said.duration.as_secs_f64(),
                latency_us: said.latency_us,
                sent_again: [after[0] - before[0], after[1] - before[1]],
            };
            (window, still)
        };
        let (quiet, _) = window(false);
        let (moving, still) = window(true);
        Self {
            over: match servers.over {
                Over::Tcp => "HTTP",
                Over::Tls => "HTTPS",
            },
            connections: args.connections,
            quiet,
            moving,
            moves: still.len(),
            stood_still_us: three(still),
        }
    }

    fn print(&self) {
        println!(
            "{} connections of {} that ask now and then, latency in ms: middle / 99 % / worst",
            self.connections, self.over
        );
        let ms = |[middle, high, worst]: [u64; 3]| {
            let ms = |us: u64| us as f64 / 1000.0;
            format!("{:.2} / {:.2} / {:.2}", ms(middle), ms(high), ms(worst))
        };
        for (name, window) in [("no move", &self.quiet), ("moving", &self.moving)] {
            println!(
                "{name:>8}{:>10} requests in {:>5.1} s{:>26}; sent again: {} by a timer, {} by a loss probe",
                window.requests,
                window.seconds,
                ms(window.latency_us),
                window.sent_again[0],
                window.sent_again[1]
            );
        }
        println!(
            "{} moves, each stood still for {} ms",
            self.moves,
            ms(self.stood_still_us)
        );
    }
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn three(mut values: Vec<u64>) -> [u64; 3] {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    [50, 99, 100].map(|percent| values.get(last * percent / 100).copied().unwrap_or(0))
}
