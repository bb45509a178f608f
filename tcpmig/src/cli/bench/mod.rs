//! `tcpmig bench`: what moves cost on this machine.

mod chart;
mod figures;
mod part;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::files::NewFile;
use super::print::{say, tell};
use super::{FAILED, Output};
use figures::Measured;

pub(crate) use part::{PART, PartArgs, main_part};

/// Measure what moves cost on this machine, in less than a minute.
///
/// Makes three network namespaces (a peer and the hosts A and B on a switch), with a process on each. Connections from the
/// peer to A move to B: some one by one, then many at once; afterwards each of them has to answer the peer.
/// Source, target and peer share this machine's processors: on hosts of their own moves are faster. An
/// ordinary user can run it; nothing outside the namespaces changes, and all of it is gone afterwards.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Connections that move one by one
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) single: u32,

    /// Connections that move at once
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) many: u32,

    /// Draw the figures; the file must not exist
    #[arg(long, value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
}

pub(crate) fn main(args: &BenchArgs, output: Output) -> anyhow::Result<ExitCode> {
    // What cannot be written is known before the rest is done.
    let new = || args.svg.as_deref().map(NewFile::create).transpose();
    drop(new()?);
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace()?;
    }
    let measured = run::run(args)?;
    if let Some(mut file) = new()? {
        file.write(chart::draw(&measured).as_bytes())?;
        file.publish()?;
        file.keep()?;
    }
    if output == Output::Json {
        let text = serde_json::to_string_pretty(&measured).context("write the figures")?;
        say!("{text}");
    } else {
        print(&measured);
    }
    if measured.alive == measured.connections {
        return Ok(ExitCode::SUCCESS);
    }
    let lost = measured.connections - measured.alive;
    tell!("{lost} connections did not answer after their move");
    Ok(ExitCode::from(FAILED))
}

fn print(measured: &Measured) {
    say!(
        "Source, target and peer on one machine with {} processors, {}. Times in milliseconds.",
        measured.processors,
        measured.kernel
    );
    say!();
    say!(
        "{:<22} {:>10} {:>9} {:>9} | {:^29}",
        "connections",
        "time",
        "each",
        "a second",
        "stood still"
    );
    say!(
        "{:<22} {:>10} {:>9} {:>9} | {:>9} {:>9} {:>9}",
        "",
        "",
        "",
        "",
        "middle",
        "99 of 100",
        "longest"
    );
    for (how, moves) in [
        ("one by one", &measured.single),
        ("at once", &measured.many),
    ] {
        say!(
            "{:<22} {:>10.1} {:>9.3} {:>9.0} | {:>9.2} {:>9.2} {:>9.2}",
            format!("{} {how}", moves.connections),
            moves.seconds * 1000.0,
            moves.seconds * 1000.0 / moves.connections as f64,
            moves.connections as f64 / moves.seconds,
            moves.still_ms(50),
            moves.still_ms(99),
            moves.still_ms(100),
        );
    }
    say!();
    say!("Of those that moved one by one, in the mean:");
    for (name, ms) in measured.single.phases_ms() {
        say!("{name:>14} {ms:>7.3}");
    }
    say!();
    say!(
        "{} of {} connections answered the peer afterwards.",
        measured.alive,
        measured.connections
    );
}
