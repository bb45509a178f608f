//! The picture: the whole download, and below it the first moves from near.

use std::fmt::Write;

use super::{Point, Recording, Sender, Still};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 730.0;
/// How many moves are shown from near.
const NEAR: usize = 4;
/// What is shown around such a move, as a multiple of the time it stood still, and at least, in seconds.
const AROUND: (f64, f64) = (2.0, 0.002);
/// Segments and acknowledgements that a panel has at most: it has no room for more.
const MOST: usize = 1500;

const STYLE: &str = "text{font-family:sans-serif;fill:#333}\
.title{font-size:22px;font-weight:bold}.sub{font-size:14px;fill:#666}.axis{font-size:11px;fill:#666}\
.name{font-size:13px}.frame{fill:none;stroke:#999}.grid{stroke:#e5e5e5}.still{fill:#d62728;fill-opacity:.18}\
.a{stroke:#1f77b4}.b{stroke:#ff7f0e}.ack{fill:none;stroke:#555;stroke-width:1}.a,.b{stroke-width:2;stroke-linecap:round}";

/// Draws what was recorded, with the times in which the connection stood still.
pub(crate) fn draw(recording: &Recording, stills: &[Still], title: &str) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-size=\"12\">\n\
         <style>{STYLE}</style>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text class=\"title\" x=\"60\" y=\"36\">{}</text>",
        escaped(title)
    );
    legend(&mut svg);
    let points = &recording.points;
    let end = points.iter().map(|point| point.at).fold(0.001, f64::max);
    let whole = Panel::new([60.0, 90.0, 1110.0, 280.0], [0.0, end]);
    whole.draw(&mut svg, points, stills, "");
    let shown = stills.len().min(NEAR);
    let width = (1110.0 - 40.0 * (NEAR as f64 - 1.0)) / NEAR as f64;
    for (number, still) in stills.iter().take(shown).enumerate() {
        let lasted = still.end - still.begin;
        let around = (lasted * AROUND.0).max(AROUND.1);
        let left = 60.0 + (width + 40.0) * number as f64;
        let panel = Panel::new(
            [left, 450.0, width, 240.0],
            [still.begin - around, still.end + around],
        );
        let way = if still.from == Sender::A {
            "A to B"
        } else {
            "B to A"
        };
        let name = format!("move {}, {way}: {:.2} ms", number + 1, lasted * 1000.0);
        panel.draw(&mut svg, points, stills, &name);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    let marks = [
        ("a", "sent by host A"),
        ("b", "sent by host B"),
        ("ack", "acknowledged by the peer"),
    ];
    let mut left = 60.0;
    for (class, text) in marks {
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{left}\" y1=\"58\" x2=\"{}\" y2=\"58\"/>\
             <text class=\"sub\" x=\"{}\" y=\"63\">{text}</text>",
            left + 24.0,
            left + 32.0
        );
        left += 60.0 + 8.0 * text.len() as f64;
    }
    let _ = writeln!(
        svg,
        "<rect class=\"still\" x=\"{left}\" y=\"50\" width=\"24\" height=\"16\"/>\
         <text class=\"sub\" x=\"{}\" y=\"63\">the connection stands still</text>",
        left + 32.0
    );
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;")
}

/// A part of the picture: where it is, and what times it shows.
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    times: [f64; 2],
}

impl Panel {
    fn new([left, top, width, height]: [f64; 4], times: [f64; 2]) -> Self {
        Self {
            left,
            top,
            width,
            height,
            times,
        }
    }

    fn x(&self, at: f64) -> f64 {
        let [begin, end] = self.times;
        self.left + (at.clamp(begin, end) - begin) / (end - begin) * self.width
    }

    fn shows(&self, begin: f64, end: f64) -> bool {
        end >= self.times[0] && begin <= self.times[1]
    }

    fn draw(&self, svg: &mut String, points: &[Point], stills: &[Still], name: &str) {
        let shown: Vec<Point> = points
            .iter()
            .filter(|point| self.shows(point.at, point.at))
            .copied()
            .collect();
        let least = shown.iter().map(|point| point.from).min().unwrap_or(0);
        let most = shown.iter().map(|point| point.to).max().unwrap_or(1);
        let range = (most.saturating_sub(least)).max(1) as f64;
        let y = |byte: u64| {
            self.top + self.height - (byte.saturating_sub(least)) as f64 / range * self.height
        };
        for still in stills {
            if self.shows(still.begin, still.end) {
                let (begin, end) = (self.x(still.begin), self.x(still.end));
                let _ = writeln!(
                    svg,
                    "<rect class=\"still\" x=\"{begin:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>",
                    self.top,
                    // A move of the whole picture is thinner than a line.
                    (end - begin).max(1.0),
                    self.height
                );
            }
        }
        self.axes(svg, least, range);
        let mut path = String::new();
        let mut acknowledged = thinned(&shown, |point| point.sender == Sender::Peer);
        if let Some(first) = acknowledged.next() {
            let _ = write!(path, "M{:.1} {:.1}", self.x(first.at), y(first.to));
            for point in acknowledged {
                // It is known only from this moment on.
                let _ = write!(path, "H{:.1}V{:.1}", self.x(point.at), y(point.to));
            }
        }
        let _ = writeln!(svg, "<path class=\"ack\" d=\"{path}\"/>");
        for (sender, class) in [(Sender::A, "a"), (Sender::B, "b")] {
            let mut path = String::new();
            for point in thinned(&shown, |point| point.sender == sender) {
                let x = self.x(point.at);
                // A line of no length has its round ends.
                let _ = write!(path, "M{x:.1} {:.1}V{:.1}", y(point.from), y(point.to));
            }
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
        }
        let _ = writeln!(
            svg,
            "<text class=\"name\" x=\"{}\" y=\"{}\">{}</text>\n\
             <rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            self.left,
            self.top - 8.0,
            escaped(name),
            self.left,
            self.top,
            self.width,
            self.height
        );
    }

    /// Lines and numbers: milliseconds to the right, bytes up.
    fn axes(&self, svg: &mut String, least: u64, range: f64) {
        let [begin, end] = self.times;
        let bottom = self.top + self.height;
        let step = round_step((end - begin) / (self.width / 110.0));
        let mut number = (begin / step).ceil();
        while number * step <= end {
            let x = self.x(number * step);
            let text = decimal(number * step * 1000.0, step * 1000.0);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
                 <text class=\"axis\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{text} ms</text>",
                self.top,
                bottom + 16.0
            );
            number += 1.0;
        }
        let mib = f64::from(1 << 20);
        let step = round_step(range / mib / (self.height / 50.0)) * mib;
        let mut number = (least as f64 / step).ceil();
        while number * step <= least as f64 + range {
            let y = bottom - (number * step - least as f64) / range * self.height;
            let text = decimal(number * step / mib, step / mib);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"/>\
                 <text class=\"axis\" x=\"{}\" y=\"{:.1}\">{text} MiB</text>",
                self.left,
                self.left + self.width,
                self.left + 4.0,
                y - 3.0
            );
            number += 1.0;
        }
    }
}

/// Those that are chosen, and of very many every so-manyth.
fn thinned(points: &[Point], chosen: impl Fn(&Point) -> bool) -> impl Iterator<Item = Point> {
    let chosen: Vec<Point> = points
        .iter()
        .filter(|point| chosen(point))
        .copied()
        .collect();
    let every = chosen.len().div_ceil(MOST).max(1);
    chosen.into_iter().step_by(every)
}

/// The next larger one of 1, 2 and 5 and their multiples by powers of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.max(1e-9).log10().floor());
    let digit = step / power;
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| digit <= *round);
    round.unwrap_or(10.0) * power
}

/// A number with as many decimals as its step has.
fn decimal(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (step, round) in [
            (0.9, 1.0),
            (1.1, 2.0),
            (30.0, 50.0),
            (0.06, 0.1),
            (5.0, 5.0),
        ] {
            let got = round_step(step);
            assert!((got - round).abs() < 1e-9, "{step}: {got}");
        }
        assert_eq!(decimal(0.30000001, 0.1), "0.3");
        assert_eq!(decimal(300.0, 100.0), "300");
    }

    #[test]
    fn a_picture_shows_both_hosts_and_where_it_stood_still() {
        let point = |at: f64, sender, from, to| Point {
            at,
            sender,
            from,
            to,
        };
        let recording = Recording {
            points: vec![
                point(0.0, Sender::A, 0, 1000),
                point(0.001, Sender::Peer, 1000, 1000),
                point(0.004, Sender::B, 1000, 9000),
            ],
            begin: None,
        };
        let still = Still {
            begin: 0.002,
            end: 0.003,
            from: Sender::A,
        };
        let svg = draw(&recording, &[still], "a < b");
        assert!(svg.contains("a &lt; b") && svg.contains("move 1, A to B: 1.00 ms"));
        // The legend, the whole, and the move from near.
        assert_eq!(svg.matches("class=\"still\"").count(), 3);
        for class in ["a", "b"] {
            let drawn = format!("<path class=\"{class}\" d=\"M");
            assert_eq!(svg.matches(&drawn).count(), 2, "{class}: {svg}");
        }
        assert!(svg.ends_with("</svg>\n"));
        // Without any packet there is a picture, too.
        assert!(draw(&Recording::default(), &[], "none").contains("</svg>"));
    }
}
