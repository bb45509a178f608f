//! `tcpmig keys`: certificates for the hosts that move connections to each other.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tcpmig_transport::keys::Authority;

use super::Output;
use crate::cli::print::say;

/// Make an authority and certificates for hosts, as PEM files.
///
/// Hosts move connections to each other only if the other side shows a certificate of the same authority, with a name that is allowed.
/// DIR gets ca.pem and ca.key (made if it has none), and NAME.pem and NAME.key for each host. Keys are readable by you alone; nothing
/// is overwritten.
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// The folder, made if it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// A host's name, as in DNS; can be given several times
    #[arg(long, required = true, value_name = "NAME")]
    host: Vec<String>,
}

pub(crate) fn main(args: &KeysArgs, output: Output) -> anyhow::Result<ExitCode> {
    let dir = args.dir.display();
    std::fs::create_dir_all(&args.dir).with_context(|| format!("create {dir}"))?;
    let authority = if args.dir.join("ca.key").exists() {
        Authority::load(&args.dir)?
    } else {
        let authority = Authority::create("tcpmig")?;
        authority.write_to(&args.dir)?;
        authority
    };
    for host in &args.host {
        let issued = authority.issue(host)?;
        issued.write_to(&args.dir)?;
        match output {
            Output::Text => say!("{dir}/{host}.pem and {dir}/{host}.key"),
            Output::Json => {
                let file = |ending: &str| args.dir.join(format!("{host}.{ending}"));
                let value = json!({
                    "host": host,
                    "certificate": file("pem"),
                    "key": file("key"),
                    "authority": args.dir.join("ca.pem"),
                });
                say!("{value}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
