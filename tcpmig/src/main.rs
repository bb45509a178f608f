//! The `tcpmig` command.

#[path = "cli/mod.rs"]
mod cli;

use std::process::ExitCode;

pub(crate) use cli::Output;

fn main() -> ExitCode {
    cli::main()
}
