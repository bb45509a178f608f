//! `tcpmig thaw`: what a killed dump left in repair mode.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tcpmig_format::FourTuple;
use tcpmig_sys::ends::Ends;
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::process::owners;
use tcpmig_sys::process::take::{Process, descriptor};
use tcpmig_sys::repair::{FreezeError, FrozenSocket, is_in_repair_mode};

use super::locks;
use super::print::{say, tell};
use super::{NOTHING, Output, enter};

/// Let a connection go on that a killed tool left in repair mode.
///
/// A socket that somebody has put into repair mode (`TCP_REPAIR`) and left so is silent for ever, and its process meets errors that no
/// peer made. This ends repair: the peer is made to answer, what was lost is sent again, and keepalive,
/// `TCP_USER_TIMEOUT` and `SO_REUSEADDR` are as they were before. The connection's lock, if the one who made it is dead, ends too.
///
/// `tcpmig dump` does this by itself if it is killed; this is for what happened anyway, such as when all of its processes were
/// killed at once. A connection that a living process has locked is being moved: it is left alone without --force.
#[derive(Debug, Args)]
pub(crate) struct ThawArgs {
    #[command(flatten)]
    which: Which,

    /// This descriptor of the process only
    #[arg(long, value_name = "N", requires = "pid")]
    fd: Option<i32>,

    /// Look in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "pid")]
    netns: Option<String>,

    /// Thaw a connection that a living process has locked too: its move will fail
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The connections of this process
    #[arg(long, value_name = "P")]
    pid: Option<u32>,

    /// The connection by its two ends, for example 10.0.0.1:80,10.0.0.9:51234
    #[arg(long, value_name = "LOCAL,REMOTE")]
    flow: Option<FourTuple>,

    /// All of this network namespace, whatever process has them
    #[arg(long)]
    all: bool,
}

/// Where to look for connections that are in repair mode.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Selection {
    /// In a process, or in one of its descriptors.
    Process { pid: u32, fd: Option<i32> },
    /// By its two ends, in the network namespace of this thread.
    Flow(FourTuple),
    /// In every process that can be seen, those of the network namespace of this thread.
    All,
}

/// A connection that goes on.
#[derive(Debug)]
pub(crate) struct Thawed {
    pid: u32,
    fd: i32,
    /// `None` if it had no addresses any more.
    flow: Option<FourTuple>,
}

pub(crate) fn main(args: &ThawArgs, output: Output) -> anyhow::Result<ExitCode> {
    enter(args.netns.as_deref())?;
    let selection = match (args.which.pid, args.which.flow) {
        (Some(pid), _) => Selection::Process { pid, fd: args.fd },
        (_, Some(flow)) => Selection::Flow(flow),
        _ => Selection::All,
    };
    let (thawed, failed) = thaw(&selection, args.force)?;
    report(&thawed, output);
    let many = failed.len() > 1 || !thawed.is_empty();
    match failed.into_iter().next() {
        None if thawed.is_empty() => {
            tell!("nothing to do: no connection is in repair mode there");
            Ok(ExitCode::from(NOTHING))
        }
        None => Ok(ExitCode::SUCCESS),
        Some(error) if many => Err(error.context("not all of them go on")),
        Some(error) => Err(error),
    }
}

/// Says what goes on.
pub(crate) fn report(thawed: &[Thawed], output: Output) {
    for Thawed { pid, fd, flow } in thawed {
        let flow = flow.map(|flow| flow.to_string());
        match output {
            Output::Json => say!("{}", json!({ "thawed": flow, "pid": pid, "fd": fd })),
            Output::Text => say!(
                "{}: goes on (descriptor {fd} of process {pid})",
                flow.as_deref().unwrap_or("a socket without a connection")
            ),
        }
    }
}

/// Ends repair of all that are selected; what goes on, and why others do not.
pub(crate) fn thaw(
    selection: &Selection,
    force: bool,
) -> anyhow::Result<(Vec<Thawed>, Vec<anyhow::Error>)> {
    let (mut thawed, mut failed) = (Vec::new(), Vec::new());
    for (pid, fd) in candidates(selection)? {
        // It can have been closed since, or be something else by now; a process that is not ours has nothing for us.
        let Ok(socket) = descriptor(pid, fd) else {
            continue;
        };
        if !is_in_repair_mode(socket.as_fd()).unwrap_or(false) {
            continue;
        }
        let namespace = Namespace::of_socket(socket.as_fd())?;
        if matches!(selection, Selection::All) && !namespace.is_current()? {
            continue;
        }
        let result = one(socket, &namespace, force);
        match result.with_context(|| format!("descriptor {fd} of process {pid}")) {
            Ok(flow) => thawed.push(Thawed { pid, fd, flow }),
            Err(error) => failed.push(error),
        }
    }
    Ok((thawed, failed))
}

fn candidates(selection: &Selection) -> anyhow::Result<Vec<(u32, i32)>> {
    Ok(match selection {
        Selection::Process { pid, fd: Some(fd) } => {
            descriptor(*pid, *fd).with_context(|| format!("descriptor {fd} of process {pid}"))?;
            vec![(*pid, *fd)]
        }
        Selection::Process { pid, fd: None } => {
            Process::open(*pid).with_context(|| format!("process {pid}"))?;
            owners::sockets_of(*pid)?
        }
        Selection::Flow(flow) => owners::find(flow.local(), flow.remote())?
            .into_iter()
            .map(|owner| (owner.pid, owner.fd))
            .collect(),
        Selection::All => owners::processes()?
            .into_iter()
            .filter(|pid| *pid != std::process::id())
            .flat_map(|pid| owners::sockets_of(pid).unwrap_or_default())
            .collect(),
    })
}

/// Works where the socket is, which need not be where we are.
fn one(socket: OwnedFd, namespace: &Namespace, force: bool) -> anyhow::Result<Option<FourTuple>> {
    let _entered = namespace.enter()?;
    let ends = Ends::of(socket.as_fd()).ok();
    let flow = ends.and_then(|ends| FourTuple::new(ends.local, ends.remote).ok());
    if let Some(flow) = flow
        && !force
        && let Some(holder) = locks::living_holder(flow)?
    {
        bail!("{holder} has {flow} locked: it is being moved (--force thaws it all the same)");
    }
    let left = FrozenSocket::left_behind(socket).map_err(|FreezeError { error, .. }| error)?;
    if let Some(flow) = flow {
        // Before the thaw, so that what makes the peer answer can leave.
        if let Err(error) = locks::release(flow) {
            tracing::warn!("the lock of {flow} stays until its lease ends: {error:#}");
        }
    }
    left.thaw().map_err(|FreezeError { error, .. }| error)?;
    Ok(flow)
}
