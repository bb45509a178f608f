//! What the peer of a connection notices when it moves: the longest pause in four kinds of
//! traffic, beside the longest pause of the same connection just before the move.
//!
//! `cargo bench -p tcpmig --bench gaps [-- --moves N] [--only TRAFFIC] [--json]`
#![allow(clippy::unwrap_used, reason = "a failed set-up ends the benchmark")]

mod app;
mod meter;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use serde::Serialize;
use support::{Family, Net, Site};
use tcpmig::driver::{Ending, Options, Report};

use app::{App, Traffic};
use meter::{Meter, Window};

/// How long each connection is watched before and after a move.
const WATCHED: Duration = Duration::from_millis(300);

/// The moves of one kind of traffic.
#[derive(Serialize)]
struct Measured {
    traffic: Traffic,
    moves: usize,
    /// Longest pauses just before each move, in microseconds: in the middle and the longest.
    quiet_us: [u64; 2],
    /// How long the connection stood still.
    locked_us: [u64; 2],
    /// Longest pauses around each move.
    gap_us: [u64; 2],
    /// How much longer than it stood still the pause was.
    beyond_us: [u64; 2],
    /// Moves whose pause was more than 2 ms longer.
    late: usize,
    /// Segments that the peer sent again.
    peer_retransmissions: u32,
    /// Octets per second after a move in percent of those before it, in the middle.
    throughput_percent: Option<u64>,
}

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
    let all: Vec<Measured> = [
        Traffic::Requests,
        Traffic::Upload,
        Traffic::SlowUpload,
        Traffic::Download,
        Traffic::Idle,
    ]
    .into_iter()
    .filter(|traffic| {
        let name = format!("{traffic:?}");
        only.as_ref()
            .is_none_or(|only| only.eq_ignore_ascii_case(&name))
    })
    .map(|traffic| measure(traffic, moves))
    .collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&all).unwrap());
        return;
    }
    println!(
        "{:<12} {:>5}  {:>15} {:>15} {:>15} {:>15} {:>5} {:>7} {:>10}",
        "traffic",
        "moves",
        "quiet",
        "stood still",
        "pause",
        "beyond",
        "late",
        "retrans",
        "throughput"
    );
    println!("(milliseconds, middle / worst)");
    for m in &all {
        let ms = |[middle, worst]: [u64; 2]| {
            format!(
                "{:.2} / {:.2}",
                middle as f64 / 1000.0,
                worst as f64 / 1000.0
            )
        };
        println!(
            "{:<12} {:>5}  {:>15} {:>15} {:>15} {:>15} {:>5} {:>7} {:>10}",
            format!("{:?}", m.traffic),
            m.moves,
            ms(m.quiet_us),
            ms(m.locked_us),
            ms(m.gap_us),
            ms(m.beyond_us),
            m.late,
            m.peer_retransmissions,
            m.throughput_percent
                .map_or(String::new(), |p| format!("{p} %")),
        );
    }
}

fn middle_and_worst(mut values: Vec<u64>) -> [u64; 2] {
    values.sort_unstable();
    let middle = values.get(values.len() / 2).copied().unwrap_or(0);
    [middle, values.last().copied().unwrap_or(0)]
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn measure(traffic: Traffic, moves: usize) -> Measured {
    let net = Net::new();
    let options = Options {
        settle: Duration::from_millis(20),
        ..Options::default()
    };
    let (a, b) = Site::pair(&net, &options);
    a.serve();
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let mut app = App::start(&a, traffic, server);
    let meter = Meter::start(traffic, peer);

    let (mut quiet, mut locked, mut gaps, mut beyond) = (vec![], vec![], vec![], vec![]);
    let mut throughput = Vec::new();
    for hop in 0..moves {
        let (from, to) = if hop % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let before = watch();
        let begin = Instant::now();
        let (report, next) = hop_over(app, from, to);
        app = next;
        let after = watch();
        let at_move = Window {
            begin: begin - Duration::from_millis(1),
            end: after.end,
        };
        quiet.push(micros(meter.longest_pause(before)));
        let gap = micros(meter.longest_pause(at_move));
        gaps.push(gap);
        locked.push(report.blackout_us);
        beyond.push(gap.saturating_sub(report.blackout_us));
        if let Some(percent) = meter
            .octets(after)
            .saturating_mul(100)
            .checked_div(meter.octets(before))
        {
            throughput.push(percent);
        }
    }
    let peer_retransmissions = meter.stop(app);
    Measured {
        traffic,
        moves,
        late: beyond.iter().filter(|&&us| us > 2000).count(),
        quiet_us: middle_and_worst(quiet),
        locked_us: middle_and_worst(locked),
        gap_us: middle_and_worst(gaps),
        beyond_us: middle_and_worst(beyond),
        peer_retransmissions,
        throughput_percent: (!throughput.is_empty() && traffic.is_bulk())
            .then(|| middle_and_worst(throughput)[0]),
    }
}

/// Lets time pass with nothing but the traffic.
fn watch() -> Window {
    let begin = Instant::now();
    std::thread::sleep(WATCHED);
    Window {
        begin,
        end: Instant::now(),
    }
}

/// One move.
fn hop_over(app: App, from: &Site, to: &Site) -> (Report, App) {
    let (socket, state) = app.stop();
    let outcome = from.move_out(socket, None).wait();
    match outcome.ending {
        Ending::Moved => {}
        Ending::Kept { reason, .. } => panic!("kept: {reason}"),
        Ending::InDoubt(doubt) => panic!("{doubt:?}"),
    }
    let arrived = to.arrival();
    let app = App::resume(to, state, arrived.socket, &arrived.unwritten);
    (outcome.report, app)
}
