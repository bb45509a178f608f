//! `tcpmig locks --lock`, `--renew` and `--release`: a person decides what is held.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tcpmig_format::FourTuple;
use tcpmig_lock::{Backend, LockError};
use tcpmig_sys::info::State;
use tcpmig_sys::sockets::Lookup;

use super::sources::{Held, held};
use crate::cli::print::{say, tell};
use crate::cli::{NOTHING, Output, lockers};

#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// Lock the packets of these connections, which are about to come to this host, until `tcpmig restore` takes the locks
    /// over, or for --lease seconds. Before `tcpmig dump --redirect` on the other host: what it forwards arrives here at once, and
    /// this host, which has the address and not yet the connection, would answer with resets. A connection that lives here is
    /// refused: it would be silenced
    #[arg(long, value_name = "LOCAL,REMOTE", num_args = 1.., group = "leased", conflicts_with_all = ["change", "sweep", "guard", "journals"])]
    lock: Vec<FourTuple>,

    /// Prolong the locks and redirects of these connections: they end --lease seconds from now, or later if they would have
    /// ended later anyway. For the peer it goes on as it is: packets of a locked connection are lost on the way, those of a
    /// redirected one go on to the other host, and each of them prolongs the redirect by the longer lease
    #[arg(long, value_name = "LOCAL,REMOTE", num_args = 1.., groups = ["change", "leased"], conflicts_with_all = ["sweep", "guard", "journals"])]
    renew: Vec<FourTuple>,

    /// End the locks and redirects of these connections, now and not with their leases. From then on this host answers what
    /// the peer sends: if the connection does not live here, with a reset, and the peer loses it
    #[arg(long, value_name = "LOCAL,REMOTE", num_args = 1.., group = "change", conflicts_with_all = ["renew", "sweep", "guard", "journals"])]
    release: Vec<FourTuple>,

    /// For --lock and --renew: the lease [seconds]
    #[arg(long, value_name = "SECONDS", default_value = "60", requires = "leased", value_parser = lockers::seconds)]
    lease: Duration,

    /// For --renew and --release: also if the process lives that holds it. It is not asked, and may believe that it still
    /// holds what was released
    #[arg(long, requires = "change")]
    force: bool,
}

impl ChangeArgs {
    /// Whether it was asked for.
    pub(super) fn is_asked(&self) -> bool {
        [&self.lock, &self.renew, &self.release]
            .iter()
            .any(|flows| !flows.is_empty())
    }

    /// Does what is asked: for all connections, or if one of them is refused for none.
    pub(super) fn change(&self, output: Output) -> anyhow::Result<ExitCode> {
        if self.lock.is_empty() {
            self.change_held(output)
        } else {
            self.lock_coming(output)
        }
    }

    /// Locks connections that are to come.
    fn lock_coming(&self, output: Output) -> anyhow::Result<ExitCode> {
        let sockets = Lookup::new()?;
        for flow in &self.lock {
            // What is in TIME-WAIT gives way to a connection that comes.
            if let Some(found) = sockets.occupant(flow.local(), flow.remote())?
                && found.state != State::TimeWait
            {
                bail!("{flow}: {found}; locking its packets would silence it");
            }
        }
        let locker = tcpmig::locker::open(&Backend::Nftables).context("nftables")?;
        let locked = locker.lock(&self.lock, self.lease);
        let guard = locked.map_err(|error| match held_by(&error) {
            Some(holder) => anyhow::Error::from(error).context(format!(
                "held by {holder}: `tcpmig locks --renew` prolongs what a process left behind"
            )),
            None => error.into(),
        })?;
        // It is for a process that comes after this one.
        guard.detach();
        let locked: Vec<String> = self.lock.iter().map(ToString::to_string).collect();
        self.report("locked", &locked, &[], output);
        Ok(ExitCode::SUCCESS)
    }

    /// Prolongs or ends what is held.
    fn change_held(&self, output: Output) -> anyhow::Result<ExitCode> {
        let renews = !self.renew.is_empty();
        let flows = if renews { &self.renew } else { &self.release };
        let mut held = held(flows)?;
        if renews {
            // A redirect whose connection has ended ends with it.
            held.retain(|held| !held.entry.closing);
        }
        self.refuse(&held)?;
        let changed: HashSet<FourTuple> = held.iter().map(|held| held.entry.flow).collect();
        for part in held.chunk_by(|one, next| one.source.name == next.source.name) {
            let source = part[0].source;
            // One connection may have a lock and a redirect.
            let flows: HashSet<FourTuple> = part.iter().map(|held| held.entry.flow).collect();
            let flows: Vec<FourTuple> = flows.into_iter().collect();
            if renews {
                (source.renew)(&flows, self.lease)?;
            } else {
                (source.release)(&flows)?;
            }
        }
        let (mut done, mut missing) = (Vec::new(), Vec::new());
        for flow in flows {
            let list = if changed.contains(flow) {
                &mut done
            } else {
                &mut missing
            };
            list.push(flow.to_string());
        }
        let name = if renews { "renewed" } else { "released" };
        self.report(name, &done, &missing, output);
        Ok(if done.is_empty() {
            ExitCode::from(NOTHING)
        } else {
            ExitCode::SUCCESS
        })
    }

    /// What a process that lives holds is its own business.
    fn refuse(&self, held: &[Held]) -> anyhow::Result<()> {
        if self.force {
            return Ok(());
        }
        for held in held {
            if held.entry.owner_may_live() {
                bail!(
                    "{} is held by {}, which lives, or may: end it first, or do it with --force",
                    held.entry.flow,
                    held.holder()
                );
            }
        }
        Ok(())
    }

    fn report(&self, name: &str, done: &[String], missing: &[String], output: Output) {
        if output == Output::Json {
            say!("{}", json!({ name: done, "not_held": missing }));
            return;
        }
        for flow in done {
            match name {
                "locked" => say!(
                    "{flow}: locked for {} s from now; `tcpmig restore` takes the lock over",
                    self.lease.as_secs()
                ),
                "renewed" => say!(
                    "{flow}: held for {} s from now, or longer",
                    self.lease.as_secs()
                ),
                _ => say!("{flow}: {name}"),
            }
        }
        for flow in missing {
            tell!("nothing to do: nobody holds {flow} here");
        }
    }
}

/// Who holds what could not be locked.
fn held_by(error: &LockError) -> Option<String> {
    let LockError::AlreadyLocked(flow) = error else {
        return None;
    };
    Some(held(&[*flow]).ok()?.first()?.holder())
}
