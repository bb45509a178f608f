//! The `iptables` locker.

mod clock;
mod program;
mod rules;

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use tcpmig_format::FourTuple;

pub use program::Flavour;

use crate::capture::{Capture, CaptureHandle};
use crate::check_request;
use crate::event::Listener;
use crate::lease::{self, Lease, MAX_LEASE};
use crate::namespace::Namespace;
use crate::{
    Captured, Entry, Event, Features, LockBackend, LockError, LockGuard, Locker, NextHop, Owner,
    RedirectBackend, Swept, runtime,
};
use clock::{Now, Watch};
use rules::{Rule, Rules};

const NAME: &str = "iptables";
/// How many rules are removed one by one, each of which is looked for from the first on; more are removed by writing
/// all others again.
const FEW: usize = 16;
/// How many flows are changed at once where more are refused, and how the programs say that they are.
const PART: usize = 50;
const TOO_LONG: &str = "Message too long";

/// The `iptables` locker, for hosts whose packet filter is iptables: each flow is two rules in the table `raw`.
///
/// It runs `iptables-restore --noflush` (`ip6tables-restore` for IPv6) once for a call, however many flows that is
/// about, and `iptables-save` before it to see what is there. The rules are in chains of its own, `tcpmig-in` and
/// `tcpmig-out`, to which `PREROUTING` and `OUTPUT` jump first; no other rule is touched, and
/// [`sweep`](Locker::sweep) removes the chains when nothing is in them. Only TCP is looked at.
///
/// Prefer [`Nftables`](crate::Nftables) where the kernel has it, whatever the host's own rules are made with. Here
/// each packet of the host is compared with one rule after the other, so that what a lock costs other connections
/// grows with the number of locked flows; a call takes milliseconds, because it starts processes; flows of both
/// families in one call fall silent one family after the other; and a flow cannot be redirected.
///
/// # Leases
///
/// A rule matches until the end of the second in which its lease ends (the match `time`), so the kernel ends it even
/// if nobody lives who could, up to a second later than asked for; the rule itself stays until somebody locks, unlocks
/// or sweeps. That match goes by the wall clock, leases by one that cannot be set: when the clock is set, a handle that
/// has locked and lives writes the rules again, of all processes, within some ten milliseconds
/// ([`on_event`](Self::on_event) tells of it). Where none lives, a clock that is set forward ends a lock early, and one that
/// is set back prolongs it until somebody locks, unlocks or sweeps. No lease ends after
/// January 19, 2038, and none lasts longer than ten years.
///
/// # Many processes
///
/// Processes that lock in the same network namespace keep each other away with a lock on a file, `lock-NUMBER` in
/// `/run/tcpmig` (`$XDG_RUNTIME_DIR/tcpmig`, or `tcpmig-` and the user's number in the directory for temporary files,
/// where that cannot be written). The two flavours are two sets of rules: a flow that is locked in one is silent, but
/// handles of the other do not see that.
///
/// A handle acts on the network namespace of the thread that made it. A thread in another one needs `CAP_SYS_ADMIN`
/// to use it.
pub struct Iptables {
    shared: Arc<Shared>,
}

struct Shared {
    flavour: Flavour,
    namespace: Namespace,
    marks: Mutex<Vec<u32>>,
    capture: Arc<Capture>,
    listener: Mutex<Listener>,
    /// None where the kernel gave no timer; that was told.
    watch: OnceLock<Option<Arc<Watch>>>,
}

impl Iptables {
    /// A handle for the network namespace of the calling thread, with the flavour that the host uses. Changes nothing
    /// yet.
    ///
    /// # Errors
    ///
    /// [`LockError::NoProgram`].
    pub fn new() -> Result<Self, LockError> {
        Self::with_flavour(Flavour::Default)
    }

    /// Like [`new`](Self::new), but with this flavour.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_flavour(flavour: Flavour) -> Result<Self, LockError> {
        flavour.check()?;
        Ok(Self {
            shared: Arc::new(Shared {
                flavour,
                namespace: Namespace::current()?,
                marks: Mutex::default(),
                capture: Arc::new(Capture::new()?),
                listener: Mutex::default(),
                watch: OnceLock::new(),
            }),
        })
    }

    /// Has somebody told what happens while nobody calls this handle, see [`Event`]: on a thread of its own.
    #[must_use]
    pub fn on_event(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        let own = self.shared.listener.lock();
        *own.unwrap_or_else(PoisonError::into_inner) = Listener::new(listener);
        self
    }

    /// Lets packets with this mark pass all locks, in both directions: also those of others. They keep passing until
    /// the chains are removed.
    #[must_use]
    pub fn exempt_mark(self, mark: u32) -> Self {
        let mut marks = self
            .shared
            .marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        marks.push(mark);
        drop(marks);
        self
    }

    /// Makes locks of this handle capture what arrives for them (NFLOG); as
    /// [`Nftables::capturing`](crate::Nftables::capturing).
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`], or [`LockError::NoNftables`] if the kernel lacks `nfnetlink_log`.
    pub fn capturing(self, buffer_bytes: usize) -> Result<Self, LockError> {
        self.shared.capture.start(buffer_bytes)?;
        Ok(self)
    }

    fn begin(
        &self,
        flows: &[FourTuple],
        lease: Duration,
        taking: bool,
    ) -> Result<LockGuard, LockError> {
        let until = Instant::now() + lease.min(MAX_LEASE);
        self.shared.watch();
        let Locked { id, token, taken } = self.shared.lock(flows, lease, taking)?;
        let lock = Lock {
            capture: CaptureHandle::new(&self.shared.capture, flows, token),
            shared: Arc::clone(&self.shared),
            id,
            until,
        };
        let flows = flows.to_vec();
        Ok(LockGuard::with_taken(flows, Box::new(lock), taken))
    }

    /// Prolongs every lock of these flows, whoever made it, as [`LockGuard::renew`] does: for an operator. The process
    /// that made it stays its owner in the list.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if a flow is not locked: then nothing is prolonged. [`LockError::NoPermission`] or what else
    /// the programs say.
    pub fn renew(&self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        check_request(flows, lease)?;
        self.shared.prolong(flows, lease, |_| true, None)
    }

    /// Ends every lock of these flows, whoever made it: for an operator who knows that the holder is gone. Flows
    /// without one are not an error.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`] or what else the programs say.
    pub fn force_unlock(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        self.shared.remove(flows, |_| true)
    }
}

/// What was locked.
struct Locked {
    /// What the lock is called.
    id: String,
    /// In a handle that captures, whose the packets are.
    token: Option<u64>,
    /// What was locked before.
    taken: Vec<Entry>,
}

fn of_family(flows: &[FourTuple], v4: bool) -> Vec<FourTuple> {
    let mine = |flow: &&FourTuple| flow.is_ipv4() == v4;
    flows.iter().filter(mine).copied().collect()
}

impl Shared {
    /// Begins to wait for the wall clock to be set, if that has not been done.
    fn watch(self: &Arc<Self>) {
        self.watch.get_or_init(|| {
            let spawn = || {
                let watch = Arc::new(Watch::new()?);
                clock::spawn(Arc::clone(&watch), Arc::downgrade(self))?;
                Ok(watch)
            };
            spawn()
                .map_err(LockError::call("timerfd_create"))
                .map_err(|error| self.tell(&Event::NotWatched { error }))
                .ok()
        });
    }

    fn tell(&self, event: &Event) {
        let listener = self.listener.lock();
        let listener = listener.unwrap_or_else(PoisonError::into_inner).clone();
        listener.tell(event);
    }

    /// Writes the rules again whose leases run.
    fn clock_was_set(&self) {
        let corrected = self.exclusive(|table| {
            let mut corrected = 0;
            for v4 in [true, false] {
                let rules = match table.read(v4) {
                    Err(LockError::NoProgram { .. }) if !v4 => continue,
                    other => other?,
                };
                let mut right = rules.clone();
                let wrong = right.correct(Now::read());
                if wrong > 0 {
                    table.change(v4, &rules, &right)?;
                    corrected += wrong;
                }
            }
            Ok(corrected)
        });
        match corrected {
            Ok(0) => {}
            Ok(locks) => {
                self.capture.lost();
                self.tell(&Event::ClockSet { locks });
            }
            Err(error) => self.tell(&Event::NotRestored {
                table: "raw".to_owned(),
                error,
            }),
        }
    }

    /// Does something with the rules of the families that these flows are of, with nobody else in between.
    fn exclusive<T: Send>(
        &self,
        call: impl FnOnce(&Exclusive<'_>) -> Result<T, LockError> + Send,
    ) -> Result<T, LockError> {
        let (_, others_wait) = runtime::exclusive(&self.namespace)?;
        let table = Exclusive {
            shared: self,
            others_wait,
        };
        self.namespace.run(|| call(&table))
    }

    fn marks(&self) -> Vec<u32> {
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Locks flows; with `taking` also those that a process has locked which has ended.
    fn lock(
        &self,
        flows: &[FourTuple],
        lease: Duration,
        taking: bool,
    ) -> Result<Locked, LockError> {
        check_request(flows, lease)?;
        self.exclusive(|table| {
            // Only now, because a sweep by this handle wants both in the same order.
            let mut inbox = self.capture.begin()?;
            let clocks = Now::read();
            let made = clocks.running;
            let lease = Lease::begin(made, lease);
            let rule = |flow: &FourTuple| Rule {
                flow: *flow,
                lease: lease.clone(),
                stop: clocks.stop(lease.until),
                group: self.capture.group(),
            };
            let mut taken = Vec::new();
            let mut done: Vec<(bool, Rules, Rules)> = Vec::new();
            for v4 in [true, false] {
                let mine = of_family(flows, v4);
                if mine.is_empty() {
                    continue;
                }
                let rules: Vec<Rule> = mine.iter().map(rule).collect();
                match table.add(v4, rules, taking) {
                    Ok((before, after)) => {
                        let (_, replaced) = before.difference(&after);
                        let mine = replaced
                            .iter()
                            .filter(|rule| rule.lease.runs(made) && mine.contains(&rule.flow));
                        taken.extend(mine.map(|rule| rule.lease.entry(rule.flow, made)));
                        done.push((v4, before, after));
                    }
                    Err(error) => {
                        // What cannot be taken back ends with its lease; the first error is the one to tell.
                        for (v4, before, _) in done {
                            let _ = table.put_back(v4, before);
                        }
                        return Err(error);
                    }
                }
            }
            let token = inbox.as_mut().map(|inbox| inbox.register(flows));
            Ok(Locked {
                id: lease.id,
                token,
                taken,
            })
        })
    }

    /// Prolongs the locks of these flows that `which` takes, which has to take those of all. They are of `owner` from now on
    /// if one is given.
    fn prolong(
        &self,
        flows: &[FourTuple],
        lease: Duration,
        which: impl Fn(&Rule) -> bool + Send + Sync,
        owner: Option<&Owner>,
    ) -> Result<(), LockError> {
        check_request(&[], lease)?;
        self.exclusive(|table| {
            let now = lease::now();
            let mut found = Vec::new();
            for v4 in [true, false] {
                let mine = of_family(flows, v4);
                if mine.is_empty() {
                    continue;
                }
                let rules = table.read(v4)?;
                let held = rules.by_flow(now);
                let own = |flow: &FourTuple| held.get(flow).is_some_and(|rule| which(rule));
                if let Some(flow) = mine.iter().find(|flow| !own(flow)) {
                    return Err(LockError::NotHeld(*flow));
                }
                found.push((v4, rules));
            }
            let flows: HashSet<&FourTuple> = flows.iter().collect();
            let mut before: Vec<(bool, Rules, Rules)> = Vec::new();
            for (v4, rules) in found {
                let mut renewed = rules.clone();
                renewed.correct(Now::read());
                let mine = |rule: &&mut Rule| {
                    flows.contains(&rule.flow) && rule.lease.runs(now) && which(rule)
                };
                for rule in renewed.rules.iter_mut().filter(mine) {
                    rule.lease.renew(now, lease);
                    rule.stop = Now::read().stop(rule.lease.until);
                    if let Some(owner) = owner {
                        rule.lease.owner.clone_from(owner);
                    }
                }
                if let Err(error) = table.change(v4, &rules, &renewed) {
                    for (v4, rules, renewed) in before {
                        let _ = table.change(v4, &renewed, &rules);
                    }
                    return Err(error);
                }
                before.push((v4, rules, renewed));
            }
            Ok(())
        })
    }

    /// Removes the rules of these flows that `which` takes.
    fn remove(
        &self,
        flows: &[FourTuple],
        which: impl Fn(&Rule) -> bool + Send + Sync,
    ) -> Result<(), LockError> {
        self.exclusive(|table| {
            for v4 in [true, false] {
                table.remove_family(flows, v4, &which)?;
            }
            Ok(())
        })
    }
}

/// The rules, as long as nobody else who locks in this way touches them.
struct Exclusive<'a> {
    shared: &'a Shared,
    others_wait: Flock<File>,
}

impl Exclusive<'_> {
    fn read(&self, v4: bool) -> Result<Rules, LockError> {
        Ok(Rules::read(&self.shared.flavour.save(v4)?))
    }

    fn restore(&self, v4: bool, batch: &str) -> Result<(), LockError> {
        self.shared.flavour.restore(v4, batch, &self.others_wait)
    }

    /// Makes the table hold `after`, where it holds `before`.
    fn change(&self, v4: bool, before: &Rules, after: &Rules) -> Result<(), LockError> {
        let (add, remove) = before.difference(after);
        let small = before.holds_frame_of(after) && remove.len() <= FEW;
        let batch = if small {
            Rules::delta(&add, &remove)
        } else {
            after.write()
        };
        match self.restore(v4, &batch) {
            // Without privileges iptables-nft can send so much at once and no more.
            Err(LockError::Program { message, .. }) if message.contains(TOO_LONG) => {
                self.change_in_parts(v4, before, after, &add, &remove)
            }
            other => other,
        }
    }

    fn change_in_parts(
        &self,
        v4: bool,
        before: &Rules,
        after: &Rules,
        add: &[Rule],
        remove: &[Rule],
    ) -> Result<(), LockError> {
        if !before.holds_frame_of(after) {
            if !before.rules.is_empty() {
                return Err(LockError::Program {
                    program: "iptables-nft-restore".to_owned(),
                    message: format!("{TOO_LONG}: set marks and capture before the first lock"),
                });
            }
            self.restore(v4, &after.write_frame())?;
        }
        let mut done: Vec<String> = Vec::new();
        // What is added first, so that no flow that is prolonged is unlocked in between.
        let adding = add.chunks(PART).map(|part| (part, true));
        for (part, is_new) in adding.chain(remove.chunks(PART).map(|part| (part, false))) {
            let delta = |is_new| match is_new {
                true => Rules::delta(part, &[]),
                false => Rules::delta(&[], part),
            };
            if let Err(error) = self.restore(v4, &delta(is_new)) {
                for undo in done.iter().rev() {
                    let _ = self.restore(v4, undo);
                }
                return Err(error);
            }
            done.push(delta(!is_new));
        }
        Ok(())
    }

    /// Adds rules; with `taking` in place of those that a process has made which has ended. Gives what was there and what
    /// is.
    fn add(&self, v4: bool, mut new: Vec<Rule>, taking: bool) -> Result<(Rules, Rules), LockError> {
        let mut rules = self.read(v4)?;
        let clocks = Now::read();
        let now = clocks.running;
        let held = rules.by_flow(now);
        let mut flows = HashSet::new();
        for rule in &mut new {
            flows.insert(rule.flow);
            let Some(older) = held.get(&rule.flow) else {
                continue;
            };
            if !taking || older.lease.owner.may_live() {
                return Err(LockError::AlreadyLocked(rule.flow));
            }
            if older.lease.until > rule.lease.until {
                rule.lease.until = older.lease.until;
                rule.stop = clocks.stop(rule.lease.until);
            }
        }
        let marks = self.shared.marks();
        let group = self.shared.capture.group();
        let before = rules.clone();
        rules
            .rules
            .retain(|rule| rule.lease.runs(now) && !flows.contains(&rule.flow));
        rules.correct(Now::read());
        rules.rules.extend(new);
        rules.marks.extend(marks);
        rules.marks.sort_unstable();
        rules.marks.dedup();
        rules.groups.extend(group);
        rules.groups.sort_unstable();
        rules.groups.dedup();
        self.change(v4, &before, &rules)?;
        Ok((before, rules))
    }

    /// Makes the table hold these rules again, and leaves what rules need.
    fn put_back(&self, v4: bool, before: Rules) -> Result<(), LockError> {
        let there = self.read(v4)?;
        let mut right = there.clone();
        right.rules = before.rules;
        self.change(v4, &there, &right)
    }

    fn remove_family(
        &self,
        flows: &[FourTuple],
        v4: bool,
        which: &dyn Fn(&Rule) -> bool,
    ) -> Result<(), LockError> {
        let flows: HashSet<FourTuple> = of_family(flows, v4).into_iter().collect();
        if flows.is_empty() {
            return Ok(());
        }
        let mut rules = self.read(v4)?;
        let before = rules.clone();
        rules
            .rules
            .retain(|rule| !(flows.contains(&rule.flow) && which(rule)));
        rules.correct(Now::read());
        if rules == before {
            return Ok(());
        }
        self.change(v4, &before, &rules)
    }

    /// Removes what one family's table holds for nobody.
    fn sweep(&self, v4: bool, swept: &mut Swept) -> Result<(), LockError> {
        let mut rules = match self.read(v4) {
            // What cannot be there need not be removed.
            Err(LockError::NoProgram { .. }) if !v4 => return Ok(()),
            other => other?,
        };
        if !rules.any {
            return Ok(());
        }
        let now = lease::now();
        let name = if v4 { "ip" } else { "ip6" };
        let over = rules.rules.iter().filter(|rule| !rule.lease.runs(now));
        let over: Vec<FourTuple> = over.map(|rule| rule.flow).collect();
        let before = rules.clone();
        rules.rules.retain(|rule| rule.lease.runs(now));
        if rules.correct(Now::read()) > 0 || !over.is_empty() {
            self.change(v4, &before, &rules)?;
            swept.flows.extend(over);
        }
        for group in rules.groups.clone() {
            if rules.rules.iter().any(|rule| rule.group == Some(group)) {
                continue;
            }
            let remove = || self.restore(v4, &Rules::remove_group(group));
            if let Some(removed) = self.shared.capture.if_free(group, remove)? {
                removed?;
                rules.groups.retain(|other| *other != group);
                swept
                    .structures
                    .push(format!("{name} raw tcpmig-log{group}"));
            }
        }
        if rules.rules.is_empty() && rules.groups.is_empty() {
            self.restore(v4, &rules.remove_all())?;
            swept.structures.push(format!("{name} raw tcpmig-in"));
            swept.structures.push(format!("{name} raw tcpmig-out"));
        }
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(Some(watch)) = self.watch.get() {
            watch.end();
        }
        let Some(group) = self.capture.group() else {
            return;
        };
        // Its chain goes with the handle, if no lock that was left to its lease needs it. What cannot be removed here
        // is swept.
        let _ = self.exclusive(|table| {
            for v4 in [true, false] {
                let rules = table.read(v4)?;
                let used = rules.rules.iter().any(|rule| rule.group == Some(group));
                if rules.groups.contains(&group) && !used {
                    table.restore(v4, &Rules::remove_group(group))?;
                }
            }
            Ok(())
        });
    }
}

impl Locker for Iptables {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        Features {
            captures: self.shared.capture.group().is_some(),
            exempts: true,
            takes_over: true,
            splits: true,
            ..Features::default()
        }
    }

    /// See [`Locker::lock`].
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`], [`LockError::Duplicate`], [`LockError::LeaseZero`], [`LockError::NoPermission`],
    /// [`LockError::NoProgram`] (for IPv6, if only the programs for IPv4 are there), [`LockError::Program`] if the
    /// kernel lacks what the rules need, [`LockError::StateFile`] if others keep it waiting for 20 seconds.
    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.begin(flows, lease, false)
    }

    /// See [`Locker::take_over`]. One change of the rules for each family, as a lock.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Locker::lock).
    fn take_over(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.begin(flows, lease, true)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        self.shared.exclusive(|table| {
            let mut swept = Swept::default();
            for v4 in [true, false] {
                table.sweep(v4, &mut swept)?;
            }
            Ok(swept)
        })
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.shared.exclusive(|table| {
            let now = lease::now();
            let mut entries = Vec::new();
            for v4 in [true, false] {
                let rules = match table.read(v4) {
                    Err(LockError::NoProgram { .. }) if !v4 => continue,
                    other => other?,
                };
                entries.extend(rules.held(now).map(|rule| rule.lease.entry(rule.flow, now)));
            }
            Ok(entries)
        })
    }
}

struct Lock {
    capture: CaptureHandle,
    shared: Arc<Shared>,
    id: String,
    until: Instant,
}

impl LockBackend for Lock {
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        let until = Instant::now() + lease.min(MAX_LEASE);
        let own = |rule: &Rule| rule.lease.id == self.id;
        let owner = Owner::current();
        self.shared.prolong(flows, lease, own, Some(&owner))?;
        self.until = self.until.max(until);
        Ok(())
    }

    fn unlock(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        self.shared.remove(flows, |rule| rule.lease.id == self.id)
    }

    fn give_back(&mut self, flows: &[FourTuple], taken: &[Entry]) -> Result<(), LockError> {
        let taken: HashSet<FourTuple> = taken.iter().map(|entry| entry.flow).collect();
        let mut free = flows.to_vec();
        free.retain(|flow| !taken.contains(flow));
        self.unlock(&free)
    }

    fn captured(&mut self, flows: &[FourTuple]) -> Result<Captured, LockError> {
        let share = self.capture.share().ok_or(LockError::Unsupported {
            locker: NAME,
            operation: "capture without Iptables::capturing",
        })?;
        match flows.first() {
            Some(flow) if Instant::now() >= self.until => Err(LockError::NotHeld(*flow)),
            _ => share.captured(),
        }
    }

    fn left_over(&mut self, _flows: &[FourTuple]) -> Result<Captured, LockError> {
        self.capture.left_over()
    }

    fn split(&mut self, flows: &[FourTuple]) -> Option<Vec<Box<dyn LockBackend>>> {
        // The rules of all keep one name: each part only touches those of its own flow.
        let part = |capture| -> Box<dyn LockBackend> {
            Box::new(Self {
                shared: Arc::clone(&self.shared),
                id: self.id.clone(),
                until: self.until,
                capture,
            })
        };
        let captures = self.capture.split(flows);
        Some(captures.into_iter().map(part).collect())
    }

    fn redirect(
        &mut self,
        _flows: &[FourTuple],
        _hop: &NextHop,
        _lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        Err(LockError::Unsupported {
            locker: NAME,
            operation: "redirect",
        })
    }
}

impl fmt::Debug for Iptables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iptables")
            .field("flavour", &self.shared.flavour)
            .finish_non_exhaustive()
    }
}
