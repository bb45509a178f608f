//! What a person sees of the demo.

use std::io::{IsTerminal, Write};

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
    " move          at     lock     read transfer  rebuild    steer   commit  blackout   carried";

impl Timeline {
    pub(crate) fn begin(args: &DemoArgs, addresses: &Addresses, output: Output) -> Self {
        let bar = if output == Output::Text && std::io::stderr().is_terminal() {
            ProgressBar::new(args.size << 20).with_style(style())
        } else {
            ProgressBar::hidden()
        };
        let timeline = Self { bar, output };
        timeline.line(&format!(
            "curl at {} downloads {} MiB from {}://{}, which host A ({}) and host B ({}) both serve.",
            addresses.peer,
            args.size,
            if args.tls.is_some() { "https" } else { "http" },
            addresses.service,
            addresses.a.ip(),
            addresses.b.ip(),
        ));
        timeline.line(&format!(
            "Its one connection moves {} times in the middle of the body. Times in milliseconds.",
            args.hops
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
                let ms = |us: u64| us as f64 / 1000.0;
                format!(
                    "{begin} {:>6.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>9.2}   {} KiB in {} frames",
                    ms(r.lock_us),
                    ms(r.read_us),
                    ms(r.transfer_us),
                    ms(r.rebuild_us),
                    ms(r.steer_us),
                    ms(r.commit_us),
                    ms(r.blackout_us),
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

fn middle(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
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
    let mut blackouts: Vec<u64> = summary
        .hops
        .iter()
        .filter_map(|hop| hop.report.map(|report| report.blackout_us))
        .collect();
    blackouts.sort_unstable();
    if let (Some(least), Some(most)) = (blackouts.first(), blackouts.last()) {
        writeln!(
            out,
            "blackout  {:.2} ms at the least, {:.2} in the middle, {:.2} at the most (lock to ACTIVE, seen from the source)",
            *least as f64 / 1000.0,
            middle(&blackouts) as f64 / 1000.0,
            *most as f64 / 1000.0,
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
