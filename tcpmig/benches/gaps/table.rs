//! What was measured, for people and programs.

use serde::Serialize;

use crate::app::Traffic;

/// The moves of one kind of traffic. Pairs are the value in the middle and the worst, in microseconds.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) traffic: Traffic,
    pub(crate) moves: usize,
    /// Longest pauses of a connection that is not moved, in as many and as long times.
    pub(crate) unmoved_us: [u64; 2],
    /// How many of them were longer than 2 ms.
    pub(crate) unmoved_over: usize,
    /// How long the moved connection stood still.
    pub(crate) locked_us: [u64; 2],
    /// Longest pauses around each move.
    pub(crate) gap_us: [u64; 2],
    /// How much longer than it stood still the pause was.
    pub(crate) beyond_us: [u64; 2],
    /// Moves whose pause was more than 2 ms longer.
    pub(crate) over: usize,
    /// Those of them whose pause was also more than 2 ms longer than any without a move.
    pub(crate) late: usize,
    /// Moves during which packets arrived.
    pub(crate) with_captured: usize,
    /// Segments that the peer sent again, by a loss probe or otherwise.
    pub(crate) peer_retransmissions: u32,
    /// Retransmission timers that ran out, on all three hosts (`TCPTimeouts`).
    pub(crate) timeouts: u64,
    /// Bytes in the second after in percent of those in the second before, in the middle.
    pub(crate) unmoved_throughput_percent: Option<u64>,
    pub(crate) throughput_percent: Option<u64>,
}

pub(crate) fn middle_and_worst(mut values: Vec<u64>) -> [u64; 2] {
    values.sort_unstable();
    let middle = values.get(values.len() / 2).copied().unwrap_or(0);
    [middle, values.last().copied().unwrap_or(0)]
}

pub(crate) fn print(all: &[Measured]) {
    println!(
        "milliseconds: middle / worst; over: more than 2 ms longer than it stood still; late: also 2 ms longer than any pause unmoved"
    );
    println!(
        "{:<10} {:>5} | {:>13} {:>4} {:>6} | {:>12} {:>13} {:>13} {:>4} {:>4} {:>8} {:>7} {:>8} {:>6}",
        "traffic",
        "moves",
        "unmoved pause",
        "over",
        "thru",
        "stood still",
        "pause",
        "beyond",
        "over",
        "late",
        "captured",
        "retrans",
        "timeouts",
        "thru",
    );
    for m in all {
        let ms = |[middle, worst]: [u64; 2]| {
            format!(
                "{:.2} / {:.2}",
                middle as f64 / 1000.0,
                worst as f64 / 1000.0
            )
        };
        let percent = |value: Option<u64>| value.map_or("-".to_owned(), |p| format!("{p} %"));
        println!(
            "{:<10} {:>5} | {:>13} {:>4} {:>6} | {:>12} {:>13} {:>13} {:>4} {:>4} {:>8} {:>7} {:>8} {:>6}",
            format!("{:?}", m.traffic),
            m.moves,
            ms(m.unmoved_us),
            m.unmoved_over,
            percent(m.unmoved_throughput_percent),
            ms(m.locked_us),
            ms(m.gap_us),
            ms(m.beyond_us),
            m.over,
            m.late,
            m.with_captured,
            m.peer_retransmissions,
            m.timeouts,
            percent(m.throughput_percent),
        );
    }
}
