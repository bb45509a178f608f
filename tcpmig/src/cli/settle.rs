//! `tcpmig locks --settle`: a person says where the connection of a handover in doubt is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tcpmig::driver::journal::{self, Decision, Journal, Note, Unfinished};

use super::handovers::{existing, identifier, in_doubt};
use crate::cli::print::tell;

#[derive(Debug, Args)]
pub(crate) struct SettleArgs {
    /// Say where the connection of a handover in doubt is, when you know and the hosts do not: kept (it goes on here), moved
    /// (it lives on the target), lost. A program that lives and has it in doubt is given the decision, and takes
    /// it when it next asks the target; of one that has died it is noted, as moved or lost, because its socket has ended with it.
    /// With kept, make sure first that the target does not have it: two owners corrupt both streams
    #[arg(long, value_names = ["ID", "kept|moved|lost"], num_args = 2, requires = "journals")]
    settle: Vec<String>,

    /// For --settle: do it, and do not only say what it means
    #[arg(long, requires = "settle")]
    yes: bool,

    /// For --settle: how long to wait for the program to take the decision [seconds]
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "settle", value_parser = super::lockers::seconds)]
    within: Duration,
}

impl SettleArgs {
    /// Does what is asked.
    pub(super) fn settle(&self, journals: &[PathBuf]) -> anyhow::Result<()> {
        for pair in self.settle.chunks_exact(2) {
            self.settle_one(journals, &pair[0], &pair[1])?;
        }
        Ok(())
    }

    /// In whichever journal has the handover.
    fn settle_one(&self, journals: &[PathBuf], text: &str, decided: &str) -> anyhow::Result<()> {
        let id =
            identifier(text).with_context(|| format!("{text:?} is not the ID of a handover"))?;
        let decision = decision(decided)?;
        for path in journals {
            let listing = journal::read(path)?;
            let mine = |open: &&Unfinished| open.id == id && in_doubt(open, listing.in_use);
            let Some(open) = listing.open.iter().find(mine) else {
                continue;
            };
            if decision == Decision::Kept && !listing.in_use {
                bail!(
                    "{text} cannot be kept: its socket ended with its process. Settle it as moved or lost"
                );
            }
            let meaning = format!("{}: {}", open.about.flow, warning(decision));
            if !self.yes {
                bail!("{meaning}. With --yes this is done");
            }
            tell!("warning: {meaning}");
            if listing.in_use {
                journal::decide(path, id, decision, self.within)?;
            } else {
                note_by_hand(path, open, decision)?;
            }
            return Ok(());
        }
        bail!("no handover {text} in doubt was begun here as a source");
    }
}

/// Of a process that has died.
fn note_by_hand(path: &Path, open: &Unfinished, decision: Decision) -> anyhow::Result<()> {
    let journal = existing(path)?;
    let note = if decision == Decision::Moved {
        Note::Moved
    } else {
        Note::Lost
    };
    if note == Note::Lost
        && let Ok(locker) = tcpmig::locker::nftables()
        && let Err(error) = locker.force_unlock(&[open.about.flow])
    {
        tracing::debug!(%error, "what redirects it is left to its lease");
    }
    journal
        .note(open.id, note)
        .with_context(|| format!("write {}", path.display()))
}

/// What a decision means, for the one who takes it.
fn warning(decision: Decision) -> &'static str {
    match decision {
        Decision::Kept => {
            "it goes on here although the target may have it: if it does, the connection has two owners, and both streams are corrupted. \
             Make sure that the target's process has ended, or that it never had it"
        }
        Decision::Moved => {
            "it ends here without a packet, and what redirects it stays: if the target does not have it, nobody has"
        }
        Decision::Lost => {
            "it ends here without a packet, and what redirects it is removed: if the target has it after all, its peer is cut off"
        }
    }
}

fn decision(text: &str) -> anyhow::Result<Decision> {
    Ok(match text {
        "kept" => Decision::Kept,
        "moved" => Decision::Moved,
        "lost" => Decision::Lost,
        _ => bail!("{text:?} is not one of kept, moved and lost"),
    })
}
