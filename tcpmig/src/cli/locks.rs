//! `tcpmig locks`: what is locked and redirected on this host.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tcpmig_lock::{Backend, Entry, EntryKind, Flavour, Link, LockError, Swept};

use super::handovers::{Handovers, JournalArgs};
use super::{Output, enter};

/// Show which connections are locked or redirected on this host, by whom and for how long.
///
/// Locks end with their lease also when the process that made them was killed. With --sweep what such a process
/// left behind and nothing needs any more is removed; what a lease still covers never is.
///
/// With --journal also the handovers without an end that programs noted there: those that are under way, and those that a
/// program which was killed left behind.
#[derive(Debug, Args)]
pub(crate) struct LocksArgs {
    /// Remove what is stale, and say what that was
    #[arg(long)]
    sweep: bool,

    /// Look in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,

    #[command(flatten)]
    journals: JournalArgs,
}

/// One way of locking that this host may have in use.
struct Source {
    name: &'static str,
    list: fn() -> Result<Vec<Entry>, LockError>,
    sweep: fn() -> Result<Swept, LockError>,
}

/// The default flavour of iptables is one of the two.
const SOURCES: [Source; 4] = [
    Source {
        name: "nftables",
        list: || Backend::Nftables.open()?.list(),
        sweep: || Backend::Nftables.open()?.sweep(),
    },
    Source {
        name: "iptables-nft",
        list: || Backend::Iptables(Flavour::Nft).open()?.list(),
        sweep: || Backend::Iptables(Flavour::Nft).open()?.sweep(),
    },
    Source {
        name: "iptables-legacy",
        list: || Backend::Iptables(Flavour::Legacy).open()?.list(),
        sweep: || Backend::Iptables(Flavour::Legacy).open()?.sweep(),
    },
    Source {
        name: "link",
        list: Link::list_all,
        sweep: Link::sweep_all,
    },
];

/// What a host does not have locks nothing.
fn if_there<T: Default>(name: &str, result: Result<T, LockError>) -> anyhow::Result<T> {
    match result {
        Err(LockError::NoProgram { .. } | LockError::NoNftables { .. }) => Ok(T::default()),
        Err(LockError::Program { message, .. }) if name.starts_with("iptables-") => {
            tracing::debug!(name, message, "not usable here");
            Ok(T::default())
        }
        other => other.with_context(|| name.to_owned()),
    }
}

pub(crate) fn main(args: &LocksArgs, output: Output) -> anyhow::Result<ExitCode> {
    enter(args.netns.as_deref())?;
    let mut swept = Vec::new();
    let mut entries = Vec::new();
    for source in &SOURCES {
        if args.sweep {
            swept.push((source.name, if_there(source.name, (source.sweep)())?));
        }
        let found = if_there(source.name, (source.list)())?;
        entries.extend(found.into_iter().map(|entry| (source.name, entry)));
    }
    swept.retain(|(_, swept)| !swept.is_empty());
    let handovers = args.journals.handovers()?;
    match output {
        Output::Json => print_json(args, &swept, &entries, handovers.as_ref()),
        Output::Text => {
            print_text(args, &swept, &entries);
            if let Some(handovers) = &handovers {
                handovers.print();
            }
        }
    }
    Ok(handovers.map_or(ExitCode::SUCCESS, |handovers| handovers.exit()))
}

fn print_json(
    args: &LocksArgs,
    swept: &[(&str, Swept)],
    entries: &[(&str, Entry)],
    handovers: Option<&Handovers>,
) {
    let held: Vec<Value> = entries
        .iter()
        .map(|(locker, entry)| {
            let (kind, to) = match &entry.kind {
                EntryKind::Redirect { address, device } => {
                    let to = json!({ "address": address, "device": device });
                    ("redirect", Some(to))
                }
                _ => ("lock", None),
            };
            json!({
                "locker": locker,
                "flow": entry.flow.to_string(),
                "kind": kind,
                "to": to,
                "remaining_seconds": entry.remaining.as_secs_f64(),
                "age_seconds": entry.age.map(|age| age.as_secs_f64()),
                "owner": entry.owner,
                "owner_name": entry.owner_name,
                "closing": entry.closing,
            })
        })
        .collect();
    let removed: Vec<Value> = swept
        .iter()
        .map(|(locker, swept)| {
            let flows: Vec<String> = swept.flows.iter().map(ToString::to_string).collect();
            json!({ "locker": locker, "flows": flows, "structures": swept.structures })
        })
        .collect();
    let removed = args.sweep.then_some(removed);
    println!(
        "{}",
        json!({ "held": held, "swept": removed, "handovers": handovers.map(Handovers::json) })
    );
}

fn print_text(args: &LocksArgs, swept: &[(&str, Swept)], entries: &[(&str, Entry)]) {
    for (locker, swept) in swept {
        for flow in &swept.flows {
            println!("removed: {flow} ({locker}, its lease had ended)");
        }
        for structure in &swept.structures {
            println!("removed: {structure} ({locker}, it held nothing)");
        }
    }
    if args.sweep && swept.is_empty() {
        println!("nothing was stale");
    }
    if entries.is_empty() {
        println!("no connection is locked or redirected here");
        return;
    }
    println!(
        "{:<52} {:<26} {:<15} {:>8} {:>8}  OWNER",
        "CONNECTION", "STATE", "LOCKER", "LEFT", "AGE"
    );
    for (locker, entry) in entries {
        let state = match &entry.kind {
            EntryKind::Redirect { address, .. } if entry.closing => {
                format!("closing, to {address}")
            }
            EntryKind::Redirect { address, .. } => format!("redirected to {address}"),
            _ => "locked".to_owned(),
        };
        let owner = match (&entry.owner_name, entry.owner) {
            (Some(name), Some(pid)) => format!("{name} ({pid})"),
            (None, Some(pid)) => format!("process {pid}"),
            _ => "-".to_owned(),
        };
        println!(
            "{:<52} {state:<26} {locker:<15} {:>8} {:>8}  {owner}",
            entry.flow.to_string(),
            span(entry.remaining),
            entry.age.map_or("-".to_owned(), span)
        );
    }
}

/// A span of time, for people.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{:.1} s", time.as_secs_f64()),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
