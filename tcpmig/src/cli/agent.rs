//! `tcpmig agent`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use sd_notify::NotifyState;
use tcpmig::agent::server::Agent;
use tokio::signal::unix::{SignalKind, signal};

use super::enter;
use super::print::tell;

/// Move connections for the servers of this host, which need no privileges for it.
///
/// Servers reach it over a Unix socket (tcpmig/AGENT.md in the source is its protocol), agents of other hosts over QUIC. The configuration names
/// which users may do what; what it does not name is denied. SIGHUP reads the configuration and the certificates again, and SIGTERM
/// ends it: connections that are moving come to their end first. It needs `CAP_NET_ADMIN` and `CAP_NET_RAW`, and tells systemd
/// when it is ready (Type=notify-reload).
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The configuration (TOML)
    #[arg(long, value_name = "FILE", default_value = "/etc/tcpmig/agent.toml")]
    config: PathBuf,

    /// Be the agent of this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,

    /// How long connections that are moving may take to come to their end, when it ends [seconds]
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = super::lockers::seconds)]
    finish_within: Duration,
}

pub(crate) fn main(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    enter(args.netns.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(run(args))
}

async fn run(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    // Before it is known that there is one: none is missed.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut agent = Agent::open(&args.config)?;
    tell!("the agent listens at {}", agent.socket().display());
    notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            () = agent.run() => {}
            _ = hangup.recv() => reload(&mut agent),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify(&[NotifyState::Stopping]);
    agent.finish(args.finish_within).await;
    Ok(ExitCode::SUCCESS)
}

fn reload(agent: &mut Agent) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd does not hear of a reload"),
    }
    match agent.reload() {
        Ok(()) => tracing::info!("the configuration was read again"),
        Err(error) => {
            tracing::error!(%error, "the configuration was not read again, and everything is as it was");
        }
    }
    notify(&[NotifyState::Ready]);
}

fn notify(state: &[NotifyState<'_>]) {
    // Without systemd it does nothing.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd is not told");
    }
}
