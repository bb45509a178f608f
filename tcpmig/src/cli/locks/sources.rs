//! The ways of locking that a host may have in use, and what each of them holds.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use tcpmig_format::FourTuple;
use tcpmig_lock::{Backend, Entry, Flavour, Iptables, Link, LockError, Locker, Nftables, Swept};

type Open = fn() -> Result<Box<dyn Locker>, LockError>;

/// One way of locking.
pub(in crate::cli) struct Source {
    pub(in crate::cli) name: &'static str,
    /// None for one whose locks are more than entries of one table.
    pub(super) open: Option<Open>,
    pub(super) list: fn() -> Result<Vec<Entry>, LockError>,
    pub(super) sweep: fn() -> Result<Swept, LockError>,
    pub(super) renew: fn(&[FourTuple], Duration) -> Result<(), LockError>,
    pub(in crate::cli) release: fn(&[FourTuple]) -> Result<(), LockError>,
}

/// The default flavour of iptables is one of the two.
pub(super) static SOURCES: [Source; 4] = [
    Source {
        name: "nftables",
        open: Some(|| Backend::Nftables.open()),
        list: || Backend::Nftables.open()?.list(),
        sweep: || Backend::Nftables.open()?.sweep(),
        renew: |flows, lease| Nftables::new()?.renew(flows, lease),
        release: |flows| Nftables::new()?.force_unlock(flows),
    },
    Source {
        name: "iptables-nft",
        open: Some(|| Backend::Iptables(Flavour::Nft).open()),
        list: || Backend::Iptables(Flavour::Nft).open()?.list(),
        sweep: || Backend::Iptables(Flavour::Nft).open()?.sweep(),
        renew: |flows, lease| Iptables::with_flavour(Flavour::Nft)?.renew(flows, lease),
        release: |flows| Iptables::with_flavour(Flavour::Nft)?.force_unlock(flows),
    },
    Source {
        name: "iptables-legacy",
        open: Some(|| Backend::Iptables(Flavour::Legacy).open()),
        list: || Backend::Iptables(Flavour::Legacy).open()?.list(),
        sweep: || Backend::Iptables(Flavour::Legacy).open()?.sweep(),
        renew: |flows, lease| Iptables::with_flavour(Flavour::Legacy)?.renew(flows, lease),
        release: |flows| Iptables::with_flavour(Flavour::Legacy)?.force_unlock(flows),
    },
    Source {
        name: "link",
        open: None,
        list: Link::list_all,
        sweep: Link::sweep_all,
        renew: Link::renew_all,
        release: Link::force_unlock_all,
    },
];

/// What a host does not have locks nothing.
pub(super) fn if_there<T: Default>(name: &str, result: Result<T, LockError>) -> anyhow::Result<T> {
    match result {
        Err(LockError::NoProgram { .. } | LockError::NoNftables { .. }) => Ok(T::default()),
        Err(LockError::Program { message, .. }) if name.starts_with("iptables-") => {
            tracing::debug!(name, message, "not usable here");
            Ok(T::default())
        }
        other => other.with_context(|| name.to_owned()),
    }
}

/// Something that is held, and in which way.
pub(in crate::cli) struct Held {
    pub(in crate::cli) source: &'static Source,
    pub(in crate::cli) entry: Entry,
}

impl Held {
    /// Who holds it, for people.
    pub(in crate::cli) fn holder(&self) -> String {
        holder(&self.entry)
    }
}

/// Who holds it, for people.
pub(in crate::cli) fn holder(entry: &Entry) -> String {
    match (&entry.owner_name, entry.owner) {
        (Some(name), Some(pid)) => format!("{name} ({pid})"),
        (None, Some(pid)) => format!("process {pid}"),
        _ => "-".to_owned(),
    }
}

/// What is locked and redirected of these connections on this host, in whatever way.
pub(in crate::cli) fn held(flows: &[FourTuple]) -> anyhow::Result<Vec<Held>> {
    let flows: HashSet<&FourTuple> = flows.iter().collect();
    let mut held = Vec::new();
    for source in &SOURCES {
        let mut entries = if_there(source.name, (source.list)())?;
        entries.retain(|entry| flows.contains(&entry.flow));
        held.extend(entries.into_iter().map(|entry| Held { source, entry }));
    }
    Ok(held)
}
