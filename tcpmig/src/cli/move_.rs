//! `tcpmig move`: connections of this host to another, through the agents.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tcpmig::agent::{Client, Fate};
use tcpmig_format::FourTuple;
use tcpmig_sys::ends::Ends;
use tcpmig_sys::process::pause::Holders;

use super::dump;
use super::list::{self, Filter, Shown};
use super::print::{say, tell};
use super::status::AgentSocket;
use super::{FAILED, IN_DOUBT, NOTHING, Output, enter};

/// Move connections of this host to another.
///
/// Those of a server that is registered at the agent are given by it, with their sessions, at their next safe point. Those of any other process are taken from
/// it while it stands still, without its knowledge: it finds its descriptor closed, and on the other host the command gets the
/// connection that the agent there has in its configuration for the service. Which is meant is said by --flow, by --pid and --fd, or by
/// filters as `tcpmig list` has; filters mean connections of registered servers only.
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// The host that gets them
    #[arg(long, value_name = "HOST")]
    to: String,

    /// The connection by its two ends, for example 10.0.0.1:80,10.0.0.9:51234
    #[arg(long, value_name = "LOCAL,REMOTE", conflicts_with_all = ["pid", "state", "local", "remote", "service"])]
    flow: Option<FourTuple>,

    /// This descriptor of the process --pid
    #[arg(long, value_name = "N", requires = "pid", conflicts_with_all = ["state", "local", "remote", "service"])]
    fd: Option<i32>,

    #[command(flatten)]
    filter: Filter,

    /// They are in this network namespace (a name of `ip netns`, or a path), as is the agent
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,

    #[command(flatten)]
    agent: AgentSocket,
}

/// A connection, and how it leaves.
enum Outgoing {
    /// Its server gives it.
    Given(FourTuple),
    /// It is taken from whoever has it.
    Taken(FourTuple, OwnedFd),
}

pub(crate) fn main(args: &MoveArgs, output: Output) -> anyhow::Result<ExitCode> {
    let services = args.agent.status()?.services;
    enter(args.netns.as_deref())?;
    let leaving = match (args.flow, args.filter.pid, args.fd) {
        (Some(flow), _, _) => {
            let is_served = services.iter().any(|one| list::is_of(one, flow.local()));
            match dump::find_flow(flow)? {
                Some(_) if is_served => vec![Outgoing::Given(flow)],
                Some(found) => vec![Outgoing::Taken(flow, found.socket)],
                None => Vec::new(),
            }
        }
        (None, Some(pid), Some(fd)) => {
            let socket = dump::take(pid, fd)?;
            let Ends { local, remote } = Ends::of(socket.as_fd())?;
            vec![Outgoing::Taken(FourTuple::new(local, remote)?, socket)]
        }
        _ if args.filter.is_open() => {
            bail!(
                "say which connections are meant: --flow, --pid, --service, --local, --remote or --state"
            )
        }
        _ => selected(&list::select(&args.filter, &services, false)?),
    };
    if leaving.is_empty() {
        tell!("nothing to do: no connection that can be moved is like that");
        return Ok(ExitCode::from(NOTHING));
    }
    args.agent.with(|client| async move {
        let mut worst = 0;
        for one in leaving {
            let (flow, fate) = depart(&client, one, &args.to).await?;
            worst = worst.max(report(flow, &fate, &args.to, output));
        }
        Ok(ExitCode::from(worst))
    })
}

fn selected(shown: &[Shown]) -> Vec<Outgoing> {
    let given = shown.iter().filter_map(|one| {
        let is_given = one.service.is_some() && one.hindered.is_none();
        let flow = FourTuple::new(one.listed.local, one.listed.remote).ok()?;
        is_given.then_some(Outgoing::Given(flow))
    });
    given.collect()
}

async fn depart(client: &Client, leaving: Outgoing, to: &str) -> anyhow::Result<(FourTuple, Fate)> {
    match leaving {
        Outgoing::Given(flow) => Ok((flow, client.move_connection(flow, to, None).await?)),
        Outgoing::Taken(flow, socket) => {
            let mut holders = Holders::of(socket.as_fd())?;
            // Whoever has it uses it no more until its fate is known.
            let _still = holders.pause().with_context(|| flow.to_string())?;
            let fate = client.move_connection(flow, to, Some(socket)).await?;
            Ok((flow, fate))
        }
    }
}

/// Says what became of it; the exit status that goes with it.
fn report(flow: FourTuple, fate: &Fate, to: &str, output: Output) -> u8 {
    let (word, reason, code) = match fate {
        Fate::Moved(_) => ("moved", String::new(), 0),
        Fate::Kept(why) => ("kept", why.to_string(), FAILED),
        Fate::Lost(why) => ("lost", why.clone(), FAILED),
        _ => (
            "in doubt",
            "the target does not answer".to_owned(),
            IN_DOUBT,
        ),
    };
    if output == Output::Json {
        let numbers = match fate {
            Fate::Moved(numbers) => Some(numbers),
            _ => None,
        };
        let value =
            json!({ "flow": flow.to_string(), "fate": word, "reason": reason, "report": numbers });
        say!("{value}");
        return code;
    }
    match fate {
        Fate::Moved(numbers) => {
            let still = numbers.get("blackout_us").copied().unwrap_or_default();
            say!("{flow} moved to {to}; it stood still for {still} us");
        }
        _ => say!("{flow} is {word}: {reason}"),
    }
    code
}
