//! The `nftables` locker.

mod batch;
mod capture;
mod care;
mod connection;
mod copy;
mod doubles;
mod element;
mod entries;
mod expression;
mod ffi;
mod forward;
mod frame;
mod held;
mod hooks;
mod later;
mod layout;
mod lease_class;
mod listing;
mod monitor;
mod names;
mod object;
mod redirect;
mod registry;
mod restore;
mod shared;
mod take_over;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;

use crate::capture::CaptureHandle;
use crate::event::Listener;
use crate::{Entry, Event, Features, LockError, LockGuard, Locker, NextHop, Swept};
use batch::Op;
use names::{REDIRECT, Set, Table};
use shared::Shared;

const DEFAULT_TABLE: &str = "tcpmig";
const MAX_TABLE_NAME: usize = 200;
/// How many flows go into one message of a sweep.
const SWEPT_AT_ONCE: usize = 256;
/// How often a sweep looks again because the rules changed while it looked.
const SWEEP_TRIES: usize = 8;

/// Whom the table of an [`Nftables`] handle belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableKind {
    /// There is none.
    Missing,
    /// To all processes that use it: whoever flushes the host's rules removes it, and what is in it comes back if a
    /// process lives that holds it (or [keeps all](Nftables::keep_all)).
    Shared,
    /// To one process, [as long as it lives](Nftables::with_owned_table): no flush touches it.
    Owned,
}

/// The `nftables` locker: flows are elements of a set in one nftables table, with their lease as timeout.
///
/// A lock takes effect in one batch for any number of flows of both families: either all of them fall silent at the
/// same moment or none does. Other connections are not touched; their packets are looked up in a hash table, whatever
/// the number of locked flows. Only TCP is looked at.
///
/// The table, named `tcpmig` in the families `inet` and (for redirects) `netdev`, is shared by all processes of the
/// network namespace that use the same name, each of which locks and unlocks its own flows. It stays when they end;
/// [`sweep`](Locker::sweep) removes it when nothing is in it. `nft list ruleset` shows it, with the process that made
/// each entry.
///
/// A handle acts on the network namespace of the thread that made it, whatever thread uses it or its guards. Both
/// that thread and the one that uses it need `CAP_NET_ADMIN`.
///
/// The [manual](crate::manual) says what happens when others change the host's rules, what redirects and captures do exactly,
/// and how many flows go into one step.
pub struct Nftables {
    shared: Arc<Shared>,
}

impl Nftables {
    /// A handle with the default table, `tcpmig`, in the network namespace of the calling thread. Changes nothing
    /// yet.
    ///
    /// # Errors
    ///
    /// [`LockError::NoNftables`] if the kernel has no netfilter at all. Other lacks, also of permission, show with
    /// [`prepare`](Self::prepare) or the first lock.
    pub fn new() -> Result<Self, LockError> {
        Self::with_table(DEFAULT_TABLE)
    }

    /// Like [`new`](Self::new), but with a table of this name.
    ///
    /// Handles with different tables do not see each other's locks: a flow is silent while it is locked in any of
    /// them.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), and [`LockError::TableName`].
    pub fn with_table(name: &str) -> Result<Self, LockError> {
        Self::open(name, false)
    }

    /// Like [`with_table`](Self::with_table), but with a table that only this handle can change as long as it or one of its
    /// guards lives (flags `owner` and `persist`, Linux 6.9 and later): neither `nft flush ruleset`, as firewalls do when
    /// they start again, nor another process can unlock its flows. It stays when its process ends, with what is in it,
    /// and then anybody can sweep it, or own it again.
    ///
    /// For hosts on which one process locks: others that use the table get [`LockError::TableOwned`]. Where the kernel
    /// cannot do it, or the table is there and not owned, the table is a plain one;
    /// [`owns_table`](Self::owns_table) tells.
    ///
    /// # Errors
    ///
    /// As for [`with_table`](Self::with_table).
    pub fn with_owned_table(name: &str) -> Result<Self, LockError> {
        Self::open(name, true)
    }

    /// Whether only this handle can change its table. Sets the tables up to find out.
    ///
    /// # Errors
    ///
    /// As for [`prepare`](Self::prepare).
    pub fn owns_table(&self) -> Result<bool, LockError> {
        self.prepare()?;
        Ok(self.shared.state().owned)
    }

    fn open(name: &str, owned: bool) -> Result<Self, LockError> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > MAX_TABLE_NAME || !name.bytes().all(valid) {
            return Err(LockError::TableName(name.to_owned()));
        }
        Ok(Self {
            shared: Arc::new(Shared::new(name, owned)?),
        })
    }

    /// Lets packets with this mark (`SO_MARK`, or set before the priority `raw`) pass all locks and redirects'
    /// silence, in both directions: also those of others who use the same table. They keep passing until the table is
    /// removed.
    #[must_use]
    pub fn exempt_mark(self, mark: u32) -> Self {
        self.shared.state().exempt.push(mark);
        self
    }

    /// How long a redirect outlives its flow; a minute unless this says otherwise. It is the same for all redirects of
    /// the table: the handle that made its first redirect last decides. At least 10 milliseconds.
    ///
    /// # Errors
    ///
    /// [`LockError::LeaseZero`].
    pub fn closing_time(self, time: Duration) -> Result<Self, LockError> {
        let mut state = self.shared.state();
        state.closing_ms = element::lease_ms(time)?;
        state.frame.forget();
        drop(state);
        Ok(self)
    }

    /// From now on, as long as this handle lives, what others hold in the table is set up again, too, if somebody removes
    /// its rules: for a process that stays, beside those that leave locks and redirects to their leases and end, like
    /// `tcpmig dump`. What was made in the last moments before that, about 20 milliseconds, may be missing.
    ///
    /// # Errors
    ///
    /// As for [`prepare`](Self::prepare).
    pub fn keep_all(&self) -> Result<(), LockError> {
        self.prepare()?;
        self.shared.state().care.due = Some(Instant::now());
        self.shared.monitor.wake();
        Ok(())
    }

    /// Whom the table for locks belongs to now.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`] or what else the kernel says.
    pub fn table_kind(&self) -> Result<TableKind, LockError> {
        let flags = self
            .shared
            .state()
            .connection
            .table_flags(&self.shared.table)?;
        Ok(match flags {
            None => TableKind::Missing,
            Some(flags) if flags & object::OWNED != 0 => TableKind::Owned,
            Some(_) => TableKind::Shared,
        })
    }

    /// Has somebody told what happens to what this handle holds while nobody calls it, see [`Event`]: on a thread of
    /// its own, and not while the handle is locked.
    #[must_use]
    pub fn on_event(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.shared.set_listener(Listener::new(listener));
        self
    }

    /// Makes locks of this handle capture what arrives for them. `buffer_bytes` is how much may wait in the kernel
    /// for all of its locks together, counting what the kernel needs beside each packet, and how much for each lock
    /// after another one's guard has read it; 8 MiB is plenty for thousands of flows. Changes no table yet.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`], or [`LockError::NoNftables`] if the kernel lacks `nfnetlink_log`.
    pub fn capturing(self, buffer_bytes: usize) -> Result<Self, LockError> {
        let mut state = self.shared.state();
        self.shared.capture.start(buffer_bytes)?;
        state.ready = false;
        drop(state);
        Ok(self)
    }

    /// Sets the tables up now, so that the first lock takes no longer than later ones.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`], [`LockError::NoNftables`], [`LockError::ForeignTable`].
    pub fn prepare(&self) -> Result<(), LockError> {
        self.shared.prepare()
    }

    /// Like [`NextHop::toward`], but in the network namespace of this handle.
    ///
    /// # Errors
    ///
    /// As for [`NextHop::toward`].
    pub fn next_hop(&self, target: IpAddr, peer: IpAddr) -> Result<NextHop, LockError> {
        self.shared.routes.next_hop(target, peer)
    }

    /// Ends every lock and redirect of these flows, whoever made it, in one step: for an operator who knows that the
    /// holder is gone. Flows without one are not an error.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`] or what else the kernel says; what was not ended is left to its lease.
    pub fn force_unlock(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        let mut state = self.shared.state();
        let mut sets = REDIRECT.to_vec();
        sets.push(Set::Locked);
        self.shared.remove(&mut state, flows, &sets)
    }

    /// Prolongs every lock and redirect of these flows, whoever made it, as [`LockGuard::renew`] does: for an operator. The
    /// process that made it stays its owner in the list. Packets prolong a redirect by the longer lease from now on. A
    /// redirect whose flow was [seen to end](crate::Redirect::closed) is left alone.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if a flow is neither locked nor redirected: then nothing is prolonged.
    /// [`LockError::NoPermission`] or what else the kernel says.
    pub fn renew(&self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.shared.renew_any(flows, lease)
    }

    /// Removes the chains that log for nobody, and gives their names. True if others log.
    fn sweep_captures(&self, chains: &mut Vec<String>) -> Result<bool, LockError> {
        let state = &mut *self.shared.state();
        let mut live = false;
        for group in capture::groups(&mut state.connection, &self.shared.table)? {
            let removed = self.shared.capture.if_free(group, || {
                let mut batch = state.connection.batch(None);
                capture::remove(&mut batch, &self.shared.table, group);
                state.connection.send(batch)
            })?;
            match removed {
                None => live = true,
                Some(Ok(())) => chains.push(capture::chain_name(group)),
                // Another sweep was faster.
                Some(Err(failure)) if failure.is(libc::ENOENT) => {}
                Some(Err(failure)) => return Err(failure.into_error(&self.shared.table)),
            }
        }
        Ok(live)
    }

    /// Ends this host's silence for flows that are not redirected any more, and gives them.
    fn sweep_silence(&self) -> Result<Vec<FourTuple>, LockError> {
        for _ in 0..SWEEP_TRIES {
            let generation = self.shared.state().connection.generation()?;
            let mut stale: HashSet<FourTuple> = HashSet::new();
            stale.extend(self.elements(Set::Gone)?.iter().map(|element| element.flow));
            if stale.is_empty() {
                break;
            }
            for set in [Set::Device, Set::Hop] {
                for element in self.elements(set)? {
                    stale.remove(&element.flow);
                }
            }
            let mut stale: Vec<FourTuple> = stale.into_iter().collect();
            let state = &mut *self.shared.state();
            // The lists may have left some out.
            for set in [Set::Device, Set::Hop] {
                let table = &self.shared.table;
                let found = state
                    .connection
                    .elements_of(table, set, &stale, usize::MAX)?;
                let redirected: HashSet<_> = found.iter().map(|element| element.flow).collect();
                stale.retain(|flow| !redirected.contains(flow));
            }
            // Only if nobody has changed anything since, who might just have redirected one of them.
            let mut batch = state.connection.batch(Some(generation));
            for flows in stale.chunks(SWEPT_AT_ONCE) {
                let op = if state.destroy {
                    Op::Destroy
                } else {
                    Op::Delete
                };
                batch.elements(&self.shared.table, Set::Gone, op, flows);
            }
            match state.connection.send(batch) {
                Ok(()) => return Ok(stale),
                Err(failure) if failure.lacks_destroy() => state.destroy = false,
                // One has ended just now.
                Err(failure) if failure.is(libc::ERESTART) || failure.is(libc::ENOENT) => {}
                Err(failure) => return Err(self.shared.explain(state, failure)),
            }
        }
        Ok(Vec::new())
    }

    /// Removes a table if its sets hold nothing, and says whether it did. The one for redirects stays as long as there
    /// are locks, which are released faster with it.
    fn sweep_table(&self, table: Table) -> Result<bool, LockError> {
        let state = &mut *self.shared.state();
        for _ in 0..SWEEP_TRIES {
            let generation = state.connection.generation()?;
            let mut there = false;
            for set in [Set::Locked, Set::Gone, Set::Device, Set::Hop] {
                for v4 in [true, false] {
                    if table == Table::Inet && set.table() != table {
                        continue;
                    }
                    match state.connection.elements(&self.shared.table, set, v4)? {
                        Some(elements) if !elements.is_empty() => return Ok(false),
                        Some(_) => there |= set.table() == table,
                        None => {}
                    }
                }
            }
            if !there {
                return Ok(false);
            }
            // Only if nobody has changed anything since: else a lock that was made meanwhile would go with the table.
            let mut batch = state.connection.batch(Some(generation));
            layout::delete_table(&mut batch, table, &self.shared.table);
            match state.connection.send(batch) {
                Ok(()) => {
                    if table == Table::Inet {
                        state.ready = false;
                    }
                    return Ok(true);
                }
                Err(failure) if failure.is(libc::ERESTART) => {}
                Err(failure) => return Err(failure.into_error(&self.shared.table)),
            }
        }
        Ok(false)
    }

    fn elements(&self, set: Set) -> Result<Vec<element::Element>, LockError> {
        let state = &mut *self.shared.state();
        let mut all = Vec::new();
        for v4 in [true, false] {
            let elements = state.connection.elements(&self.shared.table, set, v4)?;
            all.extend(elements.unwrap_or_default());
        }
        Ok(all)
    }
}

impl Locker for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn features(&self) -> Features {
        Features {
            captures: self.shared.capture.group().is_some(),
            redirects: true,
            exempts: true,
            takes_over: true,
            splits: true,
            // One message to the kernel and its answer: tens of microseconds. What it shares with threads of this process is held
            // for no longer. Only a rule set of somebody else that is being replaced in the same moment adds to that.
            waits: false,
            ..Features::default()
        }
    }

    /// See [`Locker::lock`]. A flow that is redirected here, because it left this host before, can be locked: it
    /// stays redirected until [`LockGuard::release`] or [`Locker::end_redirects`].
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`], [`LockError::Duplicate`], [`LockError::LeaseZero`], [`LockError::NoPermission`],
    /// [`LockError::NoNftables`], [`LockError::ForeignTable`].
    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let (until, token) = self.shared.lock(flows, lease)?;
        let lock = held::Lock {
            shared: Arc::clone(&self.shared),
            until,
            capture: CaptureHandle::new(&self.shared.capture, flows, token),
        };
        Ok(LockGuard::new(flows.to_vec(), Box::new(lock)))
    }

    /// See [`Locker::sweep`]. The kernel removes what a lease has ended; this ends the silence for flows that are not
    /// redirected any more (the list shows them as [`EntryKind::Silent`](crate::EntryKind::Silent)), and removes the chains that captured for
    /// processes that are gone, and the tables, if nothing is in them and no handle captures.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`] or what else the kernel says.
    fn sweep(&self) -> Result<Swept, LockError> {
        let mut swept = Swept {
            flows: self.sweep_silence()?,
            ..Swept::default()
        };
        let inet = Table::Inet.family_name();
        let mut chains = Vec::new();
        let captured = self.sweep_captures(&mut chains)?;
        for chain in chains {
            let name = format!("{inet} {} {chain}", self.shared.table);
            swept.structures.push(name);
        }
        for table in [Table::Inet, Table::Netdev] {
            if !(captured && table == Table::Inet) && self.sweep_table(table)? {
                swept
                    .structures
                    .push(format!("{} {}", table.family_name(), self.shared.table));
            }
        }
        Ok(swept)
    }

    /// See [`Locker::take_over`]. One transaction of the kernel, unless there are so many flows that a
    /// [socket's buffer](crate::manual#many-flows) does not take them. What others change in the tables at the same time has it
    /// begin again.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Locker::lock).
    fn take_over(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let taken = self.shared.take_over(flows, lease)?;
        let lock = held::Lock {
            shared: Arc::clone(&self.shared),
            until: taken.until,
            capture: CaptureHandle::new(&self.shared.capture, flows, taken.token),
        };
        let flows = flows.to_vec();
        Ok(LockGuard::with_taken(flows, Box::new(lock), taken.entries))
    }

    /// Has packets looked at on all devices, as redirects need it; that stays as after a redirect.
    fn get_ready(&self, hop: &NextHop, lease: Duration) -> Result<(), LockError> {
        self.shared.get_ready(hop, lease)
    }

    /// See [`Locker::end_redirects`]. One step, and no lock is needed for it: one that is held meanwhile stays, whoever holds it
    /// ([`LockGuard::release`] ends both).
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`] or what else the kernel says; the redirects are then left to their leases.
    fn end_redirects(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        let mut state = self.shared.state();
        self.shared.remove(&mut state, flows, &REDIRECT)
    }

    fn redirects(&self, flow: &FourTuple) -> Result<bool, LockError> {
        self.shared.redirects(flow)
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.shared.list()
    }
}

impl fmt::Debug for Nftables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nftables")
            .field("table", &self.shared.table)
            .finish_non_exhaustive()
    }
}
