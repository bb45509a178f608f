//! What was measured, for people.

use crate::case::{By, Loss, Measured, SECONDS};

pub(crate) fn print_head() {
    println!(
        "A path of a round-trip time; beyond: the longest pause beyond the time it stood still and a round trip.\n\
         Bytes (answers) a second in these seconds after the move, moved / in percent of the connection that stays.\n\
         Segments sent again, timers that ran out and frames lost: moved / stayed."
    );
    println!(
        "{:<9} {:<7} {:<8} {:>6} {:>7} {:>8} {:>8} {:>17} {:>17} {:>17} {:>11} {:>8} {:>11}",
        "traffic",
        "control",
        "by",
        "rtt ms",
        "loss",
        "still ms",
        "beyond",
        format!("{}.", SECONDS[0]),
        format!("{}.", SECONDS[1]),
        format!("{}.", SECONDS[2]),
        "sent again",
        "timers",
        "lost",
    );
}

pub(crate) fn print(m: &Measured) {
    let by = match m.by {
        By::Driver => "driver",
        By::File => "file",
        By::Nothing => "nothing",
    };
    let loss = match m.loss {
        Loss::None => "none".to_owned(),
        Loss::Queue => "queue".to_owned(),
        Loss::Ppm(ppm) => format!("{} %", f64::from(ppm) / 10_000.0),
    };
    let second = |at: usize| {
        let percent = (m.moved[at] * 100).checked_div(m.stayed[at]);
        let percent = percent.map_or("-".to_owned(), |percent| format!("{percent} %"));
        format!("{} / {percent}", bytes(m.moved[at]))
    };
    let both = |[moved, stayed]: [u64; 2]| format!("{moved} / {stayed}");
    println!(
        "{:<9} {:<7} {:<8} {:>6} {:>7} {:>8.1} {:>8.1} {:>17} {:>17} {:>17} {:>11} {:>8} {:>11}",
        format!("{:?}", m.traffic),
        m.control,
        by,
        m.rtt_ms,
        loss,
        m.stood_still_ms,
        m.beyond_ms,
        second(0),
        second(1),
        second(2),
        both(m.again),
        both(m.timeouts),
        both(m.lost),
    );
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..10_000_000 => format!("{} k", count / 1000),
        _ => format!("{:.1} M", count as f64 / 1e6),
    }
}
