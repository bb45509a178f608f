//! `tcpmig locks --journal`: handovers that have no end, and how they get one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tcpmig::driver::journal::{self, File, Journal, Note, Role, Unfinished};
use tcpmig::driver::{Mover, Options, Resolved};
use tcpmig::handover::{Fate, HandoverId};
use tcpmig_lock::{Locker, NoLock};
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};

use super::IN_DOUBT;
use super::settle::SettleArgs;
use crate::cli::print::say;

#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    /// Show which handovers of this journal have no end as well; can be given several times
    #[arg(long = "journal", value_name = "FILE")]
    journals: Vec<PathBuf>,

    /// Ask the targets about those that a process which has ended left behind, and note what became of them
    #[arg(long, requires_all = ["journals", "cert", "key", "ca"])]
    resolve: bool,

    /// For --resolve: the certificate of this host
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,

    /// For --resolve: its private key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// For --resolve: the certificate of the authority
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Take this handover off the list: its target is gone for good, and the connection counts as lost
    #[arg(long, value_name = "ID", requires = "journals")]
    forget: Vec<String>,

    #[command(flatten)]
    settling: SettleArgs,
}

/// What there is to say about journals.
#[derive(Default)]
pub(crate) struct Handovers {
    resolved: Vec<Resolved>,
    open: Vec<(PathBuf, bool, Unfinished)>,
    asked: bool,
}

impl JournalArgs {
    /// Does what is asked, and reads what is open then.
    pub(crate) fn handovers(&self) -> anyhow::Result<Option<Handovers>> {
        if self.journals.is_empty() {
            return Ok(None);
        }
        let mut handovers = Handovers {
            asked: self.resolve,
            ..Handovers::default()
        };
        if !self.forget.is_empty() {
            self.forget()?;
        }
        self.settling.settle(&self.journals)?;
        for path in &self.journals {
            if self.resolve {
                handovers.resolved.extend(self.resolve(path)?);
            }
            let listing = journal::read(path)?;
            let open = listing.open.into_iter();
            handovers
                .open
                .extend(open.map(|open| (path.clone(), listing.in_use, open)));
        }
        Ok(Some(handovers))
    }

    fn resolve(&self, path: &Path) -> anyhow::Result<Vec<Resolved>> {
        let (Some(cert), Some(key), Some(ca)) = (&self.cert, &self.key, &self.ca) else {
            bail!("--resolve needs --cert, --key and --ca");
        };
        let identity = Identity::from_pem_files(cert, key)?;
        let trust = Trust::only(Authorities::from_pem_file(ca)?, [""; 0]);
        let journal = Arc::new(existing(path)?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(async {
            let targets = journal.left_open().into_iter();
            let v6 = targets
                .filter_map(|open| open.about.address)
                .any(|address| address.is_ipv6());
            let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
            // INVARIANT: both are addresses.
            let any = any.parse().expect("an address");
            let endpoint = Endpoint::bind(any, &identity, &trust, TransportLimits::default())?;
            // Only to end redirects of what is lost: without it they are left to their lease.
            let locker: Arc<dyn Locker> = match tcpmig::locker::nftables() {
                Ok(locker) => Arc::new(locker),
                Err(_) => Arc::new(NoLock),
            };
            let mover = Mover::new(endpoint.clone(), locker, Options::default());
            let resolved = mover.with_journal(journal).resolve().await;
            endpoint.close("done").await;
            Ok(resolved)
        })
    }

    fn forget(&self) -> anyhow::Result<()> {
        for text in &self.forget {
            let id = identifier(text)
                .with_context(|| format!("{text:?} is not the ID of a handover"))?;
            let mut found = false;
            for path in &self.journals {
                let journal = existing(path)?;
                if journal.left_open().iter().any(|open| open.id == id) {
                    journal
                        .note(id, Note::Lost)
                        .with_context(|| format!("write {}", path.display()))?;
                    found = true;
                }
            }
            if !found {
                bail!("no handover {text} without an end was begun here as a source");
            }
        }
        Ok(())
    }
}

/// A journal that is there: a wrong name must not make one.
pub(super) fn existing(path: &Path) -> anyhow::Result<File> {
    journal::read(path)?;
    Ok(File::open(path)?)
}

pub(super) fn identifier(text: &str) -> Option<HandoverId> {
    let bytes = u128::from_str_radix(text, 16).ok()?;
    (text.len() == 32).then(|| HandoverId::from_bytes(bytes.to_be_bytes()))
}

/// Since when nobody answers for it; a process that has died did not always say.
pub(super) fn in_doubt(open: &Unfinished, in_use: bool) -> bool {
    let source = open.about.role == Role::Source;
    source && open.note == Note::Committing && (!in_use || open.in_doubt_since.is_some())
}

/// What is known of a handover, and whether its source can ask about it.
fn state(open: &Unfinished, in_use: bool) -> (&'static str, bool) {
    match (open.about.role, open.note, in_use) {
        (Role::Source, Note::Committing, true) if open.in_doubt_since.is_some() => {
            ("in doubt: the target does not answer its process", false)
        }
        (Role::Source, Note::Committing, true) => ("under way, COMMIT sent", false),
        (Role::Source, _, true) => ("under way", false),
        (Role::Source, Note::Committing, false) => ("in doubt: the target has it, or nobody", true),
        (Role::Source, _, false) => ("lost with its process, the target may wait", true),
        (Role::Target, _, true) => ("waits for COMMIT", false),
        (Role::Target, Note::Activating, false) => ("lost with its process", false),
        (Role::Target, _, false) => ("gone with its process, the source may have it", false),
    }
}

fn elapsed(since: SystemTime) -> Duration {
    // A clock that was set back.
    since.elapsed().unwrap_or(Duration::ZERO)
}

fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Kept => "kept",
        Fate::Moved => "moved",
        Fate::InDoubt => "in doubt",
        Fate::Lost => "lost",
    }
}

impl Handovers {
    /// 3 if it was tried to settle all and some are in doubt.
    pub(crate) fn exit(&self) -> ExitCode {
        let doubt = |resolved: &Resolved| resolved.fate == Fate::InDoubt;
        if self.asked && self.resolved.iter().any(doubt) {
            ExitCode::from(IN_DOUBT)
        } else {
            ExitCode::SUCCESS
        }
    }

    pub(crate) fn json(&self) -> Value {
        let open: Vec<Value> = self
            .open
            .iter()
            .map(|(path, in_use, open)| {
                let (state, can_be_asked) = state(open, *in_use);
                let since = open.since.duration_since(SystemTime::UNIX_EPOCH);
                json!({
                    "id": open.id.to_string(),
                    "journal": path,
                    "in_use": in_use,
                    "role": if open.about.role == Role::Source { "source" } else { "target" },
                    "flow": open.about.flow.to_string(),
                    "host": open.about.host,
                    "address": open.about.address,
                    "state": state,
                    "in_doubt": in_doubt(open, *in_use),
                    "in_doubt_seconds": open.in_doubt_since.map(|since| elapsed(since).as_secs()),
                    "can_be_resolved": can_be_asked,
                    "since": since.map_or(0, |since| since.as_secs()),
                })
            })
            .collect();
        let resolved: Vec<Value> = self
            .resolved
            .iter()
            .map(|one| {
                json!({
                    "id": one.open.id.to_string(),
                    "flow": one.open.about.flow.to_string(),
                    "host": one.open.about.host,
                    "fate": fate(one.fate),
                    "reason": one.reason,
                })
            })
            .collect();
        json!({ "open": open, "resolved": self.asked.then_some(resolved) })
    }

    pub(crate) fn print(&self) {
        say!();
        for one in &self.resolved {
            let Unfinished { id, about, .. } = &one.open;
            let (flow, fate, reason) = (&about.flow, fate(one.fate), &one.reason);
            say!("{id}: {flow} is {fate} ({reason})");
        }
        if self.open.is_empty() {
            say!("every handover of these journals has an end");
            return;
        }
        say!(
            "{:<32} {:<46} {:<20} {:<16} STATE",
            "HANDOVER WITHOUT AN END",
            "CONNECTION",
            "OTHER HOST",
            "BEGUN"
        );
        for (_, in_use, open) in &self.open {
            let age = elapsed(open.since);
            let doubt = match open.in_doubt_since {
                Some(since) => format!(", for {}", super::locks::span(elapsed(since))),
                None => String::new(),
            };
            say!(
                "{:<32} {:<46} {:<20} {:<16} {}{doubt}",
                open.id.to_string(),
                open.about.flow.to_string(),
                open.about.host,
                format!("{} ago", super::locks::span(age)),
                state(open, *in_use).0
            );
        }
        let asked = |(_, in_use, open): &(PathBuf, bool, Unfinished)| state(open, *in_use).1;
        if self.open.iter().any(asked) {
            say!(
                "\nThe process that this journal belongs to settles them when it is started again, and so does \
                 `tcpmig locks --journal FILE --resolve --cert FILE --key FILE --ca FILE`, which asks the targets. \
                 If a target is gone for good, --forget ID takes its handover off the list."
            );
        }
        let doubted =
            |(_, in_use, open): &(PathBuf, bool, Unfinished)| *in_use && in_doubt(open, true);
        if self.open.iter().any(doubted) {
            say!(
                "\nA process that lives has a connection in doubt: frozen and locked here until its target answers. If you know where it is, \
                 `tcpmig locks --journal FILE --settle ID kept|moved|lost` says what each means."
            );
        }
    }
}
