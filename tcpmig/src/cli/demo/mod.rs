//! `tcpmig demo`: a real curl download changes servers in the middle.

mod content;
mod download;
mod lock;
mod messages;
mod net;
mod plot;
mod run;
mod server;
mod timeline;
mod tls;
mod upgrade;

use std::process::ExitCode;

use clap::Args;

use super::{FAILED, Output};
use crate::cli::print::tell;

pub(crate) use net::Net;
pub(crate) use upgrade::VERB as VERSION;

/// Watch a download change servers in the middle, on this machine alone.
///
/// Makes three network namespaces (a peer and the hosts A and B on a switch), starts a web server on A and
/// on B and curl in the peer, and moves curl's one connection A -> B -> A -> ... in the middle of the
/// body: lock, image, QUIC, rebuild, redirect. Then compares checksums and counts curl's
/// connections. An ordinary user can run it; nothing outside the namespaces changes, and all of it is gone
/// afterwards. With --upgrade it is one server that is replaced by its next version, on one host.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How often the connection moves
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) hops: u32,

    /// Size of the file in MiB
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub(crate) size: u64,

    /// How long the connection may go on before it is frozen, until curl has fetched most of
    /// what waits in the send queue; 0 carries the full queue [milliseconds]
    #[arg(long, default_value_t = 100, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub(crate) settle: u64,

    /// How the packets are kept away while the connection stands still
    #[arg(long, value_name = "LOCKER", default_value = "nftables")]
    pub(crate) lock: lock::Lock,

    /// Draw the download as the peer saw it: bytes over time, each host in its colour, the first moves from near;
    /// the file must not exist
    #[arg(long, value_name = "FILE.svg", value_hint = clap::ValueHint::FilePath)]
    pub(crate) plot: Option<std::path::PathBuf>,

    /// Serve the file over TLS: curl checks the certificate against the demo's own authority
    #[arg(long, value_name = "VERSION", num_args = 0..=1, default_missing_value = "1.3")]
    pub(crate) tls: Option<tls::Version>,

    /// Download the file three times at once, over one connection of HTTP/2 and TLS
    #[arg(long, conflicts_with = "upgrade")]
    pub(crate) http2: bool,

    /// Replace one server instead, on this machine as it is: each version takes over from the one before, under a curl that downloads,
    /// another that listens to events, a WebSocket and wrk, all over TLS
    #[arg(long, conflicts_with_all = ["plot", "lock", "settle", "ipv6"])]
    pub(crate) upgrade: bool,

    /// Use IPv6
    #[arg(long, short = '6')]
    pub(crate) ipv6: bool,
}

impl DemoArgs {
    /// What the web servers speak, if that is TLS.
    fn tls_version(&self) -> Option<tls::Version> {
        self.tls.or(self.http2.then_some(tls::Version::V13))
    }
}

/// Where the file is found on the demo's web servers.
fn path(size: u64) -> String {
    format!("/{size}-bytes.bin")
}

/// The places in the body at which the connection moves.
fn positions(size: u64, hops: u32) -> Vec<u64> {
    let parts = u128::from(hops) + 1;
    (1..=u128::from(hops))
        // INVARIANT: below `size`, as the fraction is below one.
        .map(|hop| (u128::from(size) * hop / parts) as u64)
        .collect()
}

pub(crate) fn main(args: &DemoArgs, output: Output) -> anyhow::Result<ExitCode> {
    if args.upgrade {
        return main_upgrade(args, output);
    }
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace()?;
    }
    let result = runtime()?.block_on(async {
        tokio::select! {
            result = run::run(args, output) => result.map(Some),
            _ = tokio::signal::ctrl_c() => Ok(None),
        }
    })?;
    let Some(summary) = result else {
        tell!("interrupted; everything the demo made is gone");
        return Ok(ExitCode::from(FAILED));
    };
    timeline::print_end(&summary, output)?;
    Ok(ExitCode::from(if summary.ok { 0 } else { FAILED }))
}

fn main_upgrade(args: &DemoArgs, output: Output) -> anyhow::Result<ExitCode> {
    let result = runtime()?.block_on(async {
        tokio::select! {
            result = upgrade::run(args, output) => result.map(Some),
            _ = tokio::signal::ctrl_c() => Ok(None),
        }
    })?;
    let Some(summary) = result else {
        tell!("interrupted; everything the demo made is gone");
        return Ok(ExitCode::from(FAILED));
    };
    upgrade::print_end(&summary, output)?;
    Ok(ExitCode::from(if summary.ok { 0 } else { FAILED }))
}

/// A version of the server that is replaced.
pub(crate) fn main_version() -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let ended = runtime.block_on(upgrade::run_version());
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

/// A web server of the demo.
pub(crate) fn main_server() -> anyhow::Result<ExitCode> {
    runtime()?.block_on(server::run())?;
    Ok(ExitCode::SUCCESS)
}

/// On the main thread alone: children die with the thread that started them.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::positions;

    #[test]
    fn moves_are_spread_over_the_body() {
        assert_eq!(positions(100, 4), [20, 40, 60, 80]);
        assert!(positions(100, 0).is_empty());
        let many = positions(1 << 40, 10_000);
        assert!(many.is_sorted());
        assert!(*many.last().unwrap() < 1 << 40);
    }
}
