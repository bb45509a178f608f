//! `tcpmig status`: what the agent of this host does.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tcpmig::agent::{Client, DEFAULT_SOCKET, Status};
use tcpmig_sys::process::users;

use super::Output;
use super::print::say;

/// How the verbs find the agent.
#[derive(Debug, Args)]
pub(crate) struct AgentSocket {
    /// The agent's socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "TCPMIG_AGENT")]
    agent: PathBuf,
}

impl AgentSocket {
    /// Does something with the agent.
    pub(crate) fn with<T, F>(&self, action: impl FnOnce(Client) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(async {
            let client = Client::connect(&self.agent).await?;
            action(client).await
        })
    }

    /// What the agent says of itself, if there is one that talks to this user.
    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        self.with(|client| async move { Ok(client.status().await?) })
    }
}

/// Show what the agent of this host does: services, hosts, moves.
///
/// Users that are not named as admins in its configuration see their own services only.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    agent: AgentSocket,
}

pub(crate) fn main(args: &StatusArgs, output: Output) -> anyhow::Result<ExitCode> {
    let status = args.agent.status()?;
    if output == Output::Json {
        say!("{}", json!(status));
        return Ok(ExitCode::SUCCESS);
    }
    let Status {
        host,
        version,
        hosts,
        services,
        moving,
        doubts,
        ..
    } = &status;
    say!("agent {version} of {host}");
    say!(
        "knows {}",
        if hosts.is_empty() {
            "no other host".to_owned()
        } else {
            hosts.join(", ")
        }
    );
    say!("{moving} connections are moving, {doubts} are in doubt");
    if services.is_empty() {
        say!("no service is registered");
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "\n{:<20} {:>8} {:<16} {:<6} ADDRESSES",
        "SERVICE",
        "PROCESS",
        "USER",
        "TAKES"
    );
    for one in services {
        let user = users::name(one.user).ok().flatten();
        let user = user.unwrap_or_else(|| one.user.to_string());
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        say!(
            "{:<20} {:>8} {user:<16} {:<6} {}",
            one.service,
            one.process,
            if one.takes { "yes" } else { "no" },
            addresses.join(" ")
        );
    }
    Ok(ExitCode::SUCCESS)
}
