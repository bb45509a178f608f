//! What was measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tcpmig::driver::Report;

/// The end of a measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) kernel: String,
    pub(crate) processors: usize,
    pub(crate) single: Moves,
    pub(crate) many: Moves,
    /// How many there were, and how many of them answered after their move.
    pub(crate) connections: usize,
    pub(crate) alive: usize,
}

/// Some moves, as the source saw them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Moves {
    pub(crate) connections: usize,
    /// From the first lock to the last answer.
    pub(crate) seconds: f64,
    /// How long each connection stood still, in microseconds, in order.
    pub(crate) still_us: Vec<u64>,
    /// Of each phase, in the mean, in microseconds.
    pub(crate) phases_us: Vec<(String, f64)>,
}

/// How long a phase took.
type Phase = fn(&Report) -> Duration;

impl Moves {
    pub(crate) fn new(seconds: f64, reports: &[Report]) -> Self {
        let mut still_us: Vec<u64> = reports
            .iter()
            .map(|report| micros(report.blackout))
            .collect();
        still_us.sort_unstable();
        let mean = |of: Phase| {
            let sum: Duration = reports.iter().map(of).sum();
            sum.as_secs_f64() * 1e6 / reports.len().max(1) as f64
        };
        let phases: [(&str, Phase); 6] = [
            ("lock", |r| r.lock),
            ("read", |r| r.read),
            ("transfer", |r| r.transfer),
            ("rebuild", |r| r.rebuild),
            ("steer", |r| r.steer),
            ("commit", |r| r.commit),
        ];
        Self {
            connections: reports.len(),
            seconds,
            still_us,
            phases_us: phases
                .map(|(name, of)| (name.to_owned(), mean(of)))
                .to_vec(),
        }
    }

    /// How long so many of a hundred connections stood still at the most.
    pub(crate) fn still_ms(&self, percent: usize) -> f64 {
        let last = self.still_us.len().saturating_sub(1);
        let at = (self.still_us.len() * percent / 100).min(last);
        self.still_us.get(at).copied().unwrap_or(0) as f64 / 1000.0
    }

    pub(crate) fn phases_ms(&self) -> impl Iterator<Item = (&str, f64)> {
        let phases = self.phases_us.iter();
        phases.map(|(name, us)| (name.as_str(), us / 1000.0))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_there_is() {
        let report = |blackout| {
            let mut report = Report::default();
            report.blackout = Duration::from_millis(blackout);
            report.transfer = Duration::from_micros(2);
            report
        };
        let reports: Vec<Report> = (1..=200).rev().map(report).collect();
        let moves = Moves::new(1.0, &reports);
        assert_eq!(moves.still_ms(50), 101.0);
        assert_eq!(moves.still_ms(99), 199.0);
        assert_eq!(moves.still_ms(100), 200.0);
        let transfer = moves.phases_ms().find(|(name, _)| *name == "transfer");
        assert_eq!(transfer, Some(("transfer", 0.002)));
        assert_eq!(Moves::new(1.0, &[]).still_ms(50), 0.0);
    }
}
