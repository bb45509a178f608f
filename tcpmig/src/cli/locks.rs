//! `tcpmig locks`: what is locked and redirected on this host.

mod change;
mod sources;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tcpmig_format::FourTuple;
use tcpmig_lock::{Entry, EntryKind, Link, Nftables, Swept, TableKind, Unplugged};

use super::handovers::{Handovers, JournalArgs};
use super::{Output, enter};
use crate::cli::print::say;
use change::ChangeArgs;
pub(super) use sources::{Held, held, holder};
use sources::{SOURCES, if_there};

/// Show which connections are locked or redirected on this host, by whom and for how long.
///
/// Locks end with their lease also when the process that made them was killed. With --sweep what such a process
/// left behind and nothing needs any more is removed; what a lease still covers never is.
///
/// `nft flush ruleset`, with which the rules of many firewalls begin, removes locks and redirects of nftables as well. A
/// process that still lives sets its own up again within milliseconds; `tcpmig dump` does not live that long. With
/// --guard this command stays and does it for all, for example as a service of the host.
///
/// With --lock this host is silent for a connection before it comes.
///
/// A device that was unplugged (`--lock link:DEVICE` of other commands) comes back with the end of the lease. If it does not, because all
/// processes were killed that would see to it, it is named here, and --sweep or a --guard brings it back.
///
/// With --journal also the handovers without an end that programs noted there: those that are under way, and those that a
/// program which was killed left behind.
#[derive(Debug, Args)]
pub(crate) struct LocksArgs {
    /// Remove what is stale, and say what that was
    #[arg(long)]
    sweep: bool,

    /// Stay, and set up again what is locked or redirected with nftables, whoever made it, when somebody removes the
    /// rules (`nft flush ruleset`, a firewall that is started again); and bring devices back for which a lock has ended
    #[arg(long, conflicts_with_all = ["sweep", "journals"])]
    guard: bool,

    /// Look in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,

    #[command(flatten)]
    change: ChangeArgs,

    #[command(flatten)]
    journals: JournalArgs,
}

impl LocksArgs {
    /// Whether nothing is changed.
    pub(super) fn only_shows(&self) -> bool {
        !self.sweep && !self.guard && !self.change.is_asked()
    }
}

pub(crate) fn main(args: &LocksArgs, output: Output) -> anyhow::Result<ExitCode> {
    enter(args.netns.as_deref())?;
    if args.guard {
        return guard(output);
    }
    if args.change.is_asked() {
        return args.change.change(output);
    }
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
    let unplugged = Link::unplugged_all().context("link")?;
    let handovers = args.journals.handovers()?;
    match output {
        Output::Json => print_json(
            args,
            &swept,
            &entries,
            &unplugged,
            handovers.as_ref(),
            table_kind()?,
        ),
        Output::Text => {
            print_text(args, &swept, &entries);
            print_unplugged(&unplugged);
            if entries.iter().any(|(locker, _)| *locker == "nftables") && table_kind()? == "shared"
            {
                say!(
                    "`nft flush ruleset` ends what nftables holds, unless its process lives or `tcpmig locks --guard` runs"
                );
            }
            if let Some(handovers) = &handovers {
                handovers.print();
            }
        }
    }
    Ok(handovers.map_or(ExitCode::SUCCESS, |handovers| handovers.exit()))
}

/// The process that has a flow locked or redirected and may still live, by name and number.
pub(super) fn living_holder(flow: FourTuple) -> anyhow::Result<Option<String>> {
    let held = held(&[flow])?;
    let lives = held.iter().find(|held| held.entry.owner_may_live());
    Ok(lives.map(Held::holder))
}

/// Ends what a process that has ended had locked or redirected of a flow. What one that lives holds stays.
pub(super) fn release(flow: FourTuple) -> anyhow::Result<()> {
    /// Until it is ended.
    const LEASE: Duration = Duration::from_secs(1);
    for Held { source, entry } in held(&[flow])? {
        if entry.owner_may_live() {
            continue;
        }
        match source.open {
            // Whoever lives and was faster keeps it.
            Some(open) => open()?.take_over(&[flow], LEASE)?.unlock()?,
            None => (source.release)(&[flow])?,
        }
    }
    Ok(())
}

/// How often a guard looks after devices.
const LOOK: Duration = Duration::from_millis(500);

/// Stays, and keeps what the tables hold.
fn guard(output: Output) -> anyhow::Result<ExitCode> {
    let locker = Nftables::new()?.on_event(move |event| match output {
        Output::Json => say!("{}", json!({ "event": event.to_string() })),
        Output::Text => say!("{event}"),
    });
    locker.keep_all()?;
    match output {
        Output::Json => say!("{}", json!({ "event": "guarding" })),
        Output::Text => {
            say!("guarding what is locked and redirected here, until this command is ended");
        }
    }
    loop {
        std::thread::sleep(LOOK);
        match Link::sweep_all() {
            Ok(swept) => {
                for structure in &swept.structures {
                    let text = format!("brought back for a lock that has ended: {structure}");
                    match output {
                        Output::Json => say!("{}", json!({ "event": text })),
                        Output::Text => say!("{text}"),
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "devices are looked at again"),
        }
    }
}

/// Whom the table of nftables belongs to, in a word.
fn table_kind() -> anyhow::Result<&'static str> {
    let asked = Nftables::new().and_then(|locker| locker.table_kind());
    Ok(match if_there("nftables", asked.map(Some))? {
        Some(TableKind::Owned) => "owned",
        Some(TableKind::Shared) => "shared",
        _ => "none",
    })
}

fn print_json(
    args: &LocksArgs,
    swept: &[(&str, Swept)],
    entries: &[(&str, Entry)],
    unplugged: &[Unplugged],
    handovers: Option<&Handovers>,
    kind: &str,
) {
    let held: Vec<Value> = entries
        .iter()
        .map(|(locker, entry)| {
            let (kind, to) = match &entry.kind {
                EntryKind::Redirect { address, device } => {
                    let to = json!({ "address": address, "device": device });
                    ("redirect", Some(to))
                }
                EntryKind::Silent => ("silent", None),
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
    let devices: Vec<Value> = unplugged
        .iter()
        .map(|device| {
            json!({
                "device": device.device,
                "remaining_seconds": device.remaining.as_secs_f64(),
                "ended": device.remaining.is_zero(),
            })
        })
        .collect();
    say!(
        "{}",
        json!({
            "held": held,
            "unplugged": devices,
            "table": kind,
            "swept": removed,
            "handovers": handovers.map(Handovers::json),
        })
    );
}

fn print_text(args: &LocksArgs, swept: &[(&str, Swept)], entries: &[(&str, Entry)]) {
    for (locker, swept) in swept {
        for flow in &swept.flows {
            say!("removed: {flow} ({locker}, its lease or redirect had ended)");
        }
        for structure in &swept.structures {
            say!("removed: {structure} ({locker}, it held nothing)");
        }
    }
    if args.sweep && swept.is_empty() {
        say!("nothing was stale");
    }
    if entries.is_empty() {
        say!("no connection is locked or redirected here");
        return;
    }
    say!(
        "{:<52} {:<26} {:<15} {:>8} {:>8}  OWNER",
        "CONNECTION",
        "STATE",
        "LOCKER",
        "LEFT",
        "AGE"
    );
    for (locker, entry) in entries {
        let state = match &entry.kind {
            EntryKind::Redirect { address, .. } if entry.closing => {
                format!("closing, to {address}")
            }
            EntryKind::Redirect { address, .. } => format!("redirected to {address}"),
            EntryKind::Silent => "silent, was redirected".to_owned(),
            _ => "locked".to_owned(),
        };
        let owner = holder(entry);
        say!(
            "{:<52} {state:<26} {locker:<15} {:>8} {:>8}  {owner}",
            entry.flow.to_string(),
            span(entry.remaining),
            entry.age.map_or("-".to_owned(), span)
        );
    }
}

/// Says which devices do not work for whom nobody may be left.
fn print_unplugged(unplugged: &[Unplugged]) {
    for Unplugged {
        device, remaining, ..
    } in unplugged
    {
        if remaining.is_zero() {
            say!(
                "the device {device} is unplugged for a lock that has ended: `tcpmig locks --sweep` brings it back, with its \
                 addresses and routes"
            );
        } else {
            say!(
                "the device {device} is unplugged for {} more; should it stay so, `tcpmig locks --sweep` brings it back then",
                span(*remaining)
            );
        }
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
