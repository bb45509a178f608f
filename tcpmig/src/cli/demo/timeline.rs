//! What a person sees of the demo.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::DemoArgs;
use super::net::Addresses;
use super::run::{Hop, Summary};
use crate::Output;

/// Prints the moves as they happen, under a progress bar on a terminal.
pub(crate) struct Timeline {
    bar: ProgressBar,
    output: Output,
}

const COLUMNS: &str =
    " move          at   accept     lock     read    steer   commit  rebuild  blackout   carried";

impl Timeline {
    pub(crate) fn begin(args: &DemoArgs, addresses: &Addresses, output: Output) -> Self {
        let bar = if output == Output::Text && std::io::stderr().is_terminal() {
            ProgressBar::new(args.size << 20).with_style(style())
        } else {
            ProgressBar::hidden()
        };
        let timeline = Self { bar, output };
        timeline.line(&format!(
            "curl at {} downloads {}{} MiB from {}://{}, which host A ({}) and host B ({}) both serve.",
            addresses.peer,
            if args.http2 { "three times " } else { "" },
            args.size,
            if args.tls_version().is_some() { "https" } else { "http" },
            addresses.service,
            addresses.a.ip(),
            addresses.b.ip(),
        ));
        timeline.line(&format!(
            "Its one connection{} moves {} times in the middle of {}. Times in milliseconds.",
            if args.http2 { " of HTTP/2" } else { "" },
            args.hops,
            if args.http2 { "the bodies" } else { "the body" },
        ));
        timeline.line("");
        timeline.line(COLUMNS);
        timeline
    }

    fn line(&self, text: &str) {
        if self.output == Output::Json {
            return;
        }
        self.bar.suspend(|| {
            // A reader that went away does not stop the demo.
            let _ = writeln!(std::io::stdout(), "{text}");
        });
    }

    pub(crate) fn progress(&self, received: u64) {
        self.bar.set_position(received);
    }

    pub(crate) fn hop(&mut self, hop: &Hop) {
        let at = hop.position as f64 / 1_048_576.0;
        let Hop {
            hop: number,
            from,
            to,
            ..
        } = hop;
        let begin = format!("{number:>4} {from} -> {to} {at:>6.1} MiB");
        self.line(&match (&hop.report, &hop.reason) {
            (Some(r), _) => {
                format!(
                    "{begin} {:>6.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>9.2}   {} KiB in {} frames",
                    ms(r.accept),
                    ms(r.lock),
                    ms(r.read),
                    ms(r.steer),
                    ms(r.commit),
                    ms(r.rebuild),
                    ms(r.blackout),
                    r.image_bytes.div_ceil(1024),
                    r.frames_sent,
                )
            }
            (None, Some(reason)) => format!("{begin}  kept at {from}: {reason}"),
            (None, None) => format!("{begin}  in doubt: {to} does not answer"),
        });
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    // INVARIANT: the template is constant and has only known keys.
    ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn middle(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The end: what curl says, and whether the bytes are right.
pub(crate) fn print_end(summary: &Summary, output: Output) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if output == Output::Json {
        serde_json::to_writer_pretty(&mut out, summary)?;
        writeln!(out)?;
        return Ok(());
    }
    let curl = &summary.curl;
    writeln!(out)?;
    let mut blackouts: Vec<Duration> = summary
        .hops
        .iter()
        .filter_map(|hop| hop.report.map(|report| report.blackout))
        .collect();
    blackouts.sort_unstable();
    if let (Some(least), Some(most)) = (blackouts.first(), blackouts.last()) {
        writeln!(
            out,
            "blackout  {:.2} ms at the least, {:.2} in the middle, {:.2} at the most (from the lock until it lived again)",
            ms(*least),
            ms(middle(&blackouts)),
            ms(*most),
        )?;
    }
    writeln!(
        out,
        "curl      HTTP {}, {} bytes in {:.2} s ({:.0} MiB/s), connections used: {}",
        curl.http_code,
        curl.size_download,
        curl.time_total,
        summary.throughput_mib_per_second,
        curl.num_connects
    )?;
    if let Some(error) = &curl.errormsg {
        writeln!(out, "          error {}: {error}", curl.exitcode)?;
    }
    let equal = summary.sha256_expected == summary.sha256_received;
    writeln!(
        out,
        "SHA-256   {} {}",
        if equal {
            "equal:"
        } else {
            "DIFFERENT: received"
        },
        summary.sha256_received
    )?;
    if !equal {
        writeln!(out, "          expected {}", summary.sha256_expected)?;
    }
    for beside in &summary.beside {
        let equal = summary.sha256_expected == beside.sha256_received;
        writeln!(
            out,
            "          of another download on the connection, HTTP {}: {}",
            beside.curl.http_code,
            if equal { "equal" } else { "DIFFERENT" }
        )?;
    }
    writeln!(
        out,
        "{}",
        if summary.ok {
            format!(
                "The connection moved {} times and curl did not notice.",
                summary.hops_moved
            )
        } else {
            format!(
                "FAILED: {} of {} moves; see above.",
                summary.hops_moved, summary.hops_wanted
            )
        }
    )?;
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
