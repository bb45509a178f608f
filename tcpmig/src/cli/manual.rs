//! `tcpmig manual`: the manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};

/// Write the manual pages: tcpmig.1, and one for each verb.
#[derive(Debug, Args)]
pub(crate) struct ManualArgs {
    /// The folder that gets them, made if it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(crate) fn main(args: &ManualArgs, command: Command) -> anyhow::Result<ExitCode> {
    let dir = args.dir.display();
    std::fs::create_dir_all(&args.dir).with_context(|| format!("create {dir}"))?;
    // `help` says of each verb what its own page says.
    let command = command.disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.dir).with_context(|| format!("write to {dir}"))?;
    Ok(ExitCode::SUCCESS)
}
