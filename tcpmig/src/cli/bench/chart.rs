//! The figures as a picture: how long connections stood still, and what a single move consists of.

use std::fmt::Write;

use super::figures::{Measured, Moves};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const STYLE: &str = "text{font-family:sans-serif;fill:#333;font-size:13px}.title{font-size:20px;font-weight:bold}\
.axis{font-size:11px;fill:#666}.grid{stroke:#e5e5e5}.frame{fill:none;stroke:#999}\
.single{fill:none;stroke:#1f77b4;stroke-width:2}.many{fill:none;stroke:#ff7f0e;stroke-width:2}";
/// Of the phases, in their order.
const COLOURS: [&str; 6] = [
    "#d62728", "#9467bd", "#7f7f7f", "#1f77b4", "#2ca02c", "#ff7f0e",
];
/// Where the distribution is drawn.
const LEFT: f64 = 60.0;
const TOP: f64 = 90.0;
const RIGHT: f64 = 860.0;
const BOTTOM: f64 = 290.0;

pub(crate) fn draw(measured: &Measured) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"34\">How long connections stand still when they move</text>"
    );
    let kinds = [
        ("single", "one by one", &measured.single),
        ("many", "at once", &measured.many),
    ];
    let mut left = LEFT;
    for (class, how, moves) in kinds {
        let text = format!(
            "{} {how}: {:.2} ms in the middle",
            moves.connections,
            moves.still_ms(50)
        );
        let _ = writeln!(
            svg,
            "<path class=\"{class}\" d=\"M{left} 60h24\"/><text x=\"{}\" y=\"65\">{text}</text>",
            left + 32.0
        );
        left += 360.0;
    }
    let all = kinds.map(|(_, _, moves)| moves);
    let scale = Scale::of(&all);
    scale.axes(&mut svg);
    for (class, _, moves) in kinds {
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{}\"/>", scale.path(moves));
    }
    phases(&mut svg, &measured.single);
    svg.push_str("</svg>\n");
    svg
}

/// Times to the right, each power of ten as wide as the others; the share of connections up.
struct Scale {
    /// Powers of ten of a millisecond.
    least: f64,
    most: f64,
}

impl Scale {
    fn of(all: &[&Moves]) -> Self {
        let powers = || {
            let times = all.iter().flat_map(|moves| &moves.still_us);
            times.map(|us| (us.max(&1).to_owned() as f64 / 1000.0).log10())
        };
        let least = powers().fold(0.0, f64::min).floor();
        Self {
            least,
            most: powers().fold(least + 1.0, f64::max).ceil(),
        }
    }

    fn x(&self, ms: f64) -> f64 {
        let share = (ms.log10() - self.least) / (self.most - self.least);
        LEFT + share.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn axes(&self, svg: &mut String) {
        for power in self.least as i32..=self.most as i32 {
            let ms = 10_f64.powi(power);
            let x = self.x(ms);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>\
                 <text class=\"axis\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{ms} ms</text>",
                BOTTOM + 16.0
            );
        }
        for percent in [0, 50, 90, 100] {
            let y = Self::y(f64::from(percent) / 100.0);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
                 <text class=\"axis\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{percent} %</text>",
                LEFT - 6.0,
                y + 3.0
            );
        }
        let _ = writeln!(
            svg,
            "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/>",
            RIGHT - LEFT,
            BOTTOM - TOP
        );
    }

    fn y(share: f64) -> f64 {
        BOTTOM - share * (BOTTOM - TOP)
    }

    /// A step for each hundredth of the connections.
    fn path(&self, moves: &Moves) -> String {
        let mut path = String::new();
        for percent in 0..=100 {
            let letter = if percent == 0 { 'M' } else { 'L' };
            let (x, y) = (
                self.x(moves.still_ms(percent)),
                Self::y(percent as f64 / 100.0),
            );
            let _ = write!(path, "{letter}{x:.1} {y:.1}");
        }
        path
    }
}

/// A bar of what a single move consists of.
fn phases(svg: &mut String, moves: &Moves) {
    let all: f64 = moves.phases_ms().map(|(_, ms)| ms).sum();
    let (mut left, mut label) = (LEFT, LEFT);
    for ((name, ms), colour) in moves.phases_ms().zip(COLOURS) {
        let width = ms / all.max(f64::MIN_POSITIVE) * (RIGHT - LEFT);
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"340\" width=\"{width:.1}\" height=\"22\" fill=\"{colour}\"/>\
             <rect x=\"{label}\" y=\"378\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"389\">{name} {ms:.2} ms</text>",
            label + 18.0
        );
        left += width;
        label += (RIGHT - LEFT) / COLOURS.len() as f64;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tcpmig::driver::Report;

    use super::*;

    #[test]
    fn a_chart_has_both_kinds_and_all_phases() {
        let report = |blackout| {
            let mut report = Report::default();
            report.blackout = Duration::from_micros(blackout);
            report.lock = Duration::from_micros(100);
            report
        };
        let moves = |us: u64| Moves::new(1.0, &[report(us), report(us * 2)]);
        let mut measured = Measured {
            kernel: String::new(),
            processors: 1,
            single: moves(700),
            many: moves(20_000),
            connections: 4,
            alive: 4,
        };
        let svg = draw(&measured);
        assert_eq!(svg.matches("<path class=\"single\"").count(), 2);
        assert_eq!(svg.matches("<path class=\"many\"").count(), 2);
        assert!(svg.contains("lock 0.10 ms") && svg.contains(">100 ms<"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // Nothing moved in no time.
        measured.single = Moves::new(0.0, &[]);
        let svg = draw(&measured);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
