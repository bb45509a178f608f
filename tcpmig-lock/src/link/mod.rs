//! The `link` locker.

mod saved;
mod state;

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags};
use tcpmig_format::FourTuple;

use crate::check_request;
use crate::lease::{self, Lease, MAX_LEASE, left};
use crate::namespace::Namespace;
use crate::route::Routes;
use crate::{
    Entry, Features, LeaseEnd, LockBackend, LockError, LockGuard, Locker, NextHop, Owner,
    RedirectBackend, Scope, Swept, runtime,
};
pub(crate) use saved::Rest;
use saved::Saved;
use state::{Hold, State};

const NAME: &str = "link";
/// How many devices are taken to be on top of each other.
const MAX_STACK: usize = 8;

/// How a device is unplugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unplug {
    /// The device, a port of a bridge, is taken off the bridge and put back: the first choice, because whoever is
    /// behind it loses nothing. A bridge that filters VLANs is refused, because the port would lose its own.
    Port,
    /// The device is taken down and up again: the device of a host or container itself (also a macvlan), or the host's
    /// side of a container's veth. What the kernel forgets of a device that is down is put back: IPv6 addresses,
    /// routes in all tables, neighbours, proxies.
    Down,
}

impl Unplug {
    fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Down => "down",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Port, Self::Down]
            .into_iter()
            .find(|unplug| unplug.name() == name)
    }
}

/// A device that is unplugged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unplugged {
    /// Its name.
    pub device: String,
    /// In which way.
    pub unplug: Unplug,
    /// How long the lease still runs of the lock that ends last. Zero if all have ended.
    pub remaining: Duration,
    /// Whether one of the processes that locked may live ([`Owner::may_live`]): it puts the device back with the end of its
    /// lease.
    pub owner_may_live: bool,
}

/// The `link` locker: it unplugs a network device, for hosts without any packet filter.
///
/// **Everything that uses the device falls silent**, not only the flows that are locked, as long as one of them is:
/// whatever moves the connections' images must reach its peer by another device.
/// [`cuts_off`](Self::cuts_off) tells whether it does, and [`keeps`](Self::keeps) makes a lock refuse to cut it off.
/// Nothing is captured, nothing can be exempted, and a lock cannot end as a redirect. The flows themselves are only
/// remembered, to tell who holds what.
///
/// Cut the side of the host that holds the connections where there is a choice: with the far end of its link cut, its
/// kernel takes for sent what it then sends, and the connection's state is read with data in flight that never left.
///
/// # Leases
///
/// The process that holds a lock ends it when its lease does, with a thread of its own for each lock. If the process is
/// dead, the device stays unplugged until somebody calls [`sweep`](Locker::sweep) after the lease has ended, from
/// whatever process ([`Link::unplugged_all`] tells what is due): what it needs to put the device back is in a file in `/run/tcpmig` (`$XDG_RUNTIME_DIR/tcpmig`, or
/// `tcpmig-` and the user's number in the directory for temporary files, where that cannot be written). Leases are
/// counted by a clock that also runs while the host sleeps.
///
/// # What is put back
///
/// Addresses, routes and neighbours are those from when the device was unplugged, with what is left of their
/// lifetimes. A neighbour that was known is asked for again when it is used (it is `STALE`); temporary IPv6 addresses
/// come back as ordinary ones. Duplicate address detection is left out (`accept_dad`) if `/proc/sys` can be written,
/// and else an IPv6 address can be used a second later. A port's settings and static stations come back, multicast
/// groups that it listens to are learned again.
///
/// A handle acts on the network namespace of the thread that made it, whatever thread uses it.
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    device: String,
    index: u32,
    unplug: Unplug,
    keep: Mutex<Vec<IpAddr>>,
    routes: Routes,
    namespace: Namespace,
}

impl Link {
    /// A handle that unplugs this device of the calling thread's network namespace, in this way. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// [`LockError::NoDevice`]. Whether the device can be unplugged shows with the first lock.
    pub fn new(device: &str, unplug: Unplug) -> Result<Self, LockError> {
        let routes = Routes::new()?;
        Ok(Self {
            shared: Arc::new(Shared {
                device: device.to_owned(),
                index: routes.device_index(device)?,
                unplug,
                keep: Mutex::default(),
                routes,
                namespace: Namespace::current()?,
            }),
        })
    }

    /// Like [`new`](Self::new): a port of a bridge is taken off it, any other device down.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn of(device: &str) -> Result<Self, LockError> {
        let routes = Routes::new()?;
        let link = routes.device(routes.device_index(device)?)?;
        let unplug = match saved::master(&link) {
            Some(_) => Unplug::Port,
            None => Unplug::Down,
        };
        Self::new(device, unplug)
    }

    /// Makes locks refuse ([`LockError::CutsOff`]) to unplug the device if this address, for example that of the host
    /// to which images are sent, is reached through it.
    #[must_use]
    pub fn keeps(self, address: IpAddr) -> Self {
        self.shared.keep().push(address);
        self
    }

    /// Whether packets that this network namespace sends to an address leave through the device: directly, by a device
    /// on top of it (a VLAN, a macvlan), or by a bridge that knows the next host to be behind it. An address that
    /// cannot be reached is not cut off.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn cuts_off(&self, address: IpAddr) -> Result<bool, LockError> {
        self.shared.cuts_off(address)
    }

    fn begin(
        &self,
        flows: &[FourTuple],
        lease: Duration,
        taking: bool,
    ) -> Result<LockGuard, LockError> {
        let start = Instant::now();
        let (id, until, taken) = self.shared.lock(flows, lease, taking)?;
        let timer = Arc::new(Timer::new(start + left(until).min(MAX_LEASE)));
        if !flows.is_empty() {
            let (shared, timer) = (Arc::clone(&self.shared), Arc::clone(&timer));
            let own = id.clone();
            let watch = move || {
                while timer.wait() {
                    // If the device cannot be put back now, a sweep does it. Somebody else may have prolonged it.
                    match shared.end_at(&own) {
                        Ok(Some(until)) => timer.prolong(Instant::now() + left(until)),
                        Ok(None) | Err(_) => break,
                    }
                }
            };
            let name = "tcpmig-lease".to_owned();
            if let Err(source) = std::thread::Builder::new().name(name).spawn(watch) {
                let _ = self.shared.end(|hold| hold.lease.id != id);
                return Err(LockError::call("pthread_create")(source));
            }
        }
        let lock = Lock {
            shared: Arc::clone(&self.shared),
            id,
            timer,
        };
        let flows = flows.to_vec();
        Ok(LockGuard::with_taken(flows, Box::new(lock), taken))
    }

    /// Ends every lock of these flows, whoever made it: for an operator who knows that the holder is gone. Flows
    /// without one are not an error.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::unlock`].
    pub fn force_unlock(&self, flows: &[FourTuple]) -> Result<(), LockError> {
        let flows: HashSet<&FourTuple> = flows.iter().collect();
        self.shared.end(|hold| {
            hold.flows.retain(|flow| !flows.contains(flow));
            !hold.flows.is_empty()
        })
    }

    /// Like [`force_unlock`](Self::force_unlock), on all devices of the calling thread's network namespace, without a handle.
    ///
    /// # Errors
    ///
    /// As for [`force_unlock`](Self::force_unlock).
    pub fn force_unlock_all(flows: &[FourTuple]) -> Result<(), LockError> {
        let flows: HashSet<&FourTuple> = flows.iter().collect();
        let (routes, namespace) = (Routes::new()?, Namespace::current()?);
        let (directory, _others_wait) = runtime::exclusive(&namespace)?;
        for path in state::paths(&directory, namespace.inode())? {
            end_holds(&routes, &namespace, &path, |hold| {
                hold.flows.retain(|flow| !flows.contains(flow));
                !hold.flows.is_empty()
            })?;
        }
        Ok(())
    }

    /// Prolongs every lock of these flows, whoever made it, as [`LockGuard::renew`] does: for an operator, on all devices of
    /// the calling thread's network namespace. The process that made it stays its owner in the list. Flows that were
    /// locked together are prolonged together.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if a flow is not locked: then nothing is prolonged. [`LockError::StateFile`].
    pub fn renew_all(flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        check_request(flows, lease)?;
        let wanted: HashSet<&FourTuple> = flows.iter().collect();
        let namespace = Namespace::current()?;
        let (directory, _others_wait) = runtime::exclusive(&namespace)?;
        let of = namespace.cookie()?;
        let now = lease::now();
        let mut found = HashSet::new();
        let mut renewed = Vec::new();
        for path in state::paths(&directory, namespace.inode())? {
            let Some(mut state) = State::read(&path, of)? else {
                continue;
            };
            for hold in state.holds.iter_mut().filter(|hold| hold.lease.runs(now)) {
                let mine = hold.flows.iter().filter(|flow| wanted.contains(flow));
                let mine: Vec<FourTuple> = mine.copied().collect();
                if !mine.is_empty() {
                    hold.lease.renew(now, lease);
                    found.extend(mine);
                }
            }
            renewed.push((path, state));
        }
        if let Some(flow) = flows.iter().find(|flow| !found.contains(flow)) {
            return Err(LockError::NotHeld(*flow));
        }
        renewed
            .iter()
            .try_for_each(|(path, state)| state.write(path))
    }

    /// Like [`Locker::sweep`], but for all devices of the calling thread's network namespace, without a handle.
    ///
    /// # Errors
    ///
    /// As for [`Locker::sweep`].
    pub fn sweep_all() -> Result<Swept, LockError> {
        sweep(&Routes::new()?, &Namespace::current()?)
    }

    /// The devices of the calling thread's network namespace that are unplugged, also for locks that have ended: those that
    /// nobody has put back, which [`sweep_all`](Self::sweep_all) does.
    ///
    /// # Errors
    ///
    /// [`LockError::StateFile`].
    pub fn unplugged_all() -> Result<Vec<Unplugged>, LockError> {
        let namespace = Namespace::current()?;
        let (directory, _others_wait) = runtime::exclusive(&namespace)?;
        let of = namespace.cookie()?;
        let mut unplugged = Vec::new();
        for path in state::paths(&directory, namespace.inode())? {
            if let Some(state) = State::read(&path, of)? {
                let until = state.holds.iter().map(|hold| hold.lease.until).max();
                unplugged.push(Unplugged {
                    device: state.device,
                    unplug: state.unplug,
                    remaining: left(until.unwrap_or_default()),
                    owner_may_live: state.holds.iter().any(|hold| hold.lease.owner.may_live()),
                });
            }
        }
        Ok(unplugged)
    }

    /// Like [`Locker::list`], but for all devices of the calling thread's network namespace, without a handle.
    ///
    /// # Errors
    ///
    /// As for [`Locker::list`].
    pub fn list_all() -> Result<Vec<Entry>, LockError> {
        list(&Namespace::current()?)
    }
}

impl Shared {
    fn keep(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.keep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, directory: &Path) -> PathBuf {
        state::path(directory, self.namespace.inode(), self.index)
    }

    fn cuts_off(&self, address: IpAddr) -> Result<bool, LockError> {
        let route = match self.routes.lookup(address, None) {
            Err(LockError::NoRoute(_)) => return Ok(false),
            other => other?,
        };
        if route.local {
            return Ok(false);
        }
        // The device of the route, and those that it is on top of. The two ends of a veth name each other.
        let mut next = Some(route.index);
        for _ in 0..MAX_STACK {
            match next {
                Some(index) if index == self.index => return Ok(true),
                Some(index) => next = saved::lower(&self.routes.device(index)?),
                None => break,
            }
        }
        let bridge = saved::master(&self.routes.device(self.index)?);
        if bridge != Some(route.index) {
            return Ok(false);
        }
        self.is_behind(route.gateway.unwrap_or(address))
    }

    /// Whether a bridge knows a neighbour to be behind this port.
    fn is_behind(&self, neighbour: IpAddr) -> Result<bool, LockError> {
        let wanted = match neighbour {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        let wanted = NeighbourAttribute::Destination(wanted);
        let known = |family| saved::neighbours(&self.routes, family, NeighbourFlags::empty());
        let link_layer = known(AddressFamily::Unspec)?
            .into_iter()
            .filter(|entry| entry.attributes.contains(&wanted))
            .flat_map(|entry| entry.attributes)
            .find(|attribute| matches!(attribute, NeighbourAttribute::LinkLayerAddress(_)));
        let Some(link_layer) = link_layer else {
            return Ok(false);
        };
        let stations = known(AddressFamily::Bridge)?;
        Ok(stations.iter().any(|station| {
            station.header.ifindex == self.index && station.attributes.contains(&link_layer)
        }))
    }

    /// Locks flows; with `taking` also those that a process has locked which has ended. Gives what the lock is called, when
    /// it ends, and what was locked before.
    fn lock(
        &self,
        flows: &[FourTuple],
        lease: Duration,
        taking: bool,
    ) -> Result<(String, u64, Vec<Entry>), LockError> {
        check_request(flows, lease)?;
        let (directory, _others_wait) = runtime::exclusive(&self.namespace)?;
        let path = self.path(&directory);
        let of = self.namespace.cookie()?;
        let now = lease::now();
        let mut state = match State::read(&path, of)?.filter(|state| state.device == self.device) {
            Some(state) => state,
            None => State {
                namespace: of,
                device: self.device.clone(),
                index: self.index,
                unplug: self.unplug,
                saved: Saved::default(),
                holds: Vec::new(),
            },
        };
        let wanted: HashSet<&FourTuple> = flows.iter().collect();
        let mut lease = Lease::begin(now, lease);
        let mut taken = Vec::new();
        for hold in state.holds.iter().filter(|hold| hold.lease.runs(now)) {
            let mut mine = hold
                .flows
                .iter()
                .filter(|flow| wanted.contains(flow))
                .peekable();
            if let Some(flow) = mine.peek()
                && (!taking || hold.lease.owner.may_live())
            {
                return Err(LockError::AlreadyLocked(**flow));
            }
            for flow in mine {
                lease.until = lease.until.max(hold.lease.until);
                taken.push(hold.lease.entry(*flow, now));
            }
        }
        let (id, until) = (lease.id.clone(), lease.until);
        if flows.is_empty() {
            return Ok((id, until, taken));
        }
        let before = state.clone();
        let unplugged = !state.holds.is_empty();
        if unplugged && state.unplug != self.unplug {
            return Err(LockError::CannotUnplug {
                device: self.device.clone(),
                reason: "another lock unplugs it in another way",
            });
        }
        if !unplugged {
            for address in self.keep().iter() {
                if self.cuts_off(*address)? {
                    return Err(LockError::CutsOff {
                        address: *address,
                        device: self.device.clone(),
                    });
                }
            }
            state.saved = Saved::take(&self.routes, &self.namespace, &self.device, self.unplug)?;
        }
        state.holds.retain_mut(|hold| {
            hold.flows.retain(|flow| !wanted.contains(flow));
            hold.lease.runs(now) && !hold.flows.is_empty()
        });
        state.holds.push(Hold {
            lease,
            flows: flows.to_vec(),
        });
        // Before the device is touched, so that it is put back wherever this process dies.
        state.write(&path)?;
        // Also if it is said to be unplugged: whoever wrote that may have died before he did it.
        if let Err(error) = saved::unplug(&self.routes, self.index, self.unplug) {
            let _ = if unplugged {
                before.write(&path)
            } else {
                state::remove(&path)
            };
            return Err(error);
        }
        Ok((id, until, taken))
    }

    fn renew(&self, flows: &[FourTuple], id: &str, lease: Duration) -> Result<(), LockError> {
        check_request(&[], lease)?;
        let Some(first) = flows.first() else {
            return Ok(());
        };
        let (directory, _others_wait) = runtime::exclusive(&self.namespace)?;
        let path = self.path(&directory);
        let now = lease::now();
        let not_held = || LockError::NotHeld(*first);
        let mut state = State::read(&path, self.namespace.cookie()?)?.ok_or_else(not_held)?;
        let mine = state
            .holds
            .iter_mut()
            .find(|hold| hold.lease.id == id && hold.lease.runs(now));
        let mine = mine.ok_or_else(not_held)?;
        if let Some(flow) = flows.iter().find(|flow| !mine.flows.contains(flow)) {
            return Err(LockError::NotHeld(*flow));
        }
        mine.lease.renew(now, lease);
        mine.lease.owner = Owner::current();
        state.write(&path)
    }

    /// Ends a lock whose lease has ended; else gives when it does.
    fn end_at(&self, id: &str) -> Result<Option<u64>, LockError> {
        let mut later = None;
        self.end(|hold| {
            let ended = hold.lease.id == id && !hold.lease.runs(lease::now());
            if hold.lease.id == id && !ended {
                later = Some(hold.lease.until);
            }
            !ended
        })?;
        Ok(later)
    }

    /// Ends the locks that `keep` does not, and puts the device back if none is left.
    fn end(&self, keep: impl FnMut(&mut Hold) -> bool) -> Result<(), LockError> {
        let (directory, _others_wait) = runtime::exclusive(&self.namespace)?;
        end_holds(&self.routes, &self.namespace, &self.path(&directory), keep)
    }
}

/// Ends the locks in a file that `keep` does not, and puts the device back if none is left.
fn end_holds(
    routes: &Routes,
    namespace: &Namespace,
    path: &Path,
    mut keep: impl FnMut(&mut Hold) -> bool,
) -> Result<(), LockError> {
    let Some(mut state) = State::read(path, namespace.cookie()?)? else {
        return Ok(());
    };
    let before = state.clone();
    state.holds.retain_mut(&mut keep);
    if state == before {
        return Ok(());
    }
    if !state.holds.is_empty() {
        return state.write(path);
    }
    // A device that is gone, or another with its number, cannot be put back.
    match routes.device_name(state.index) {
        Ok(name) if name == state.device => {
            state
                .saved
                .put_back(routes, namespace, &name, state.index)?;
        }
        Ok(_) | Err(LockError::NoDevice(_)) => {}
        Err(error) => return Err(error),
    }
    state::remove(path)
}

fn sweep(routes: &Routes, namespace: &Namespace) -> Result<Swept, LockError> {
    let (directory, _others_wait) = runtime::exclusive(namespace)?;
    let of = namespace.cookie()?;
    let mut swept = Swept::default();
    for path in state::paths(&directory, namespace.inode())? {
        let Some(state) = State::read(&path, of)? else {
            state::remove(&path)?;
            continue;
        };
        let now = lease::now();
        let over: Vec<Hold> = state
            .holds
            .into_iter()
            .filter(|hold| !hold.lease.runs(now))
            .collect();
        if over.is_empty() {
            continue;
        }
        end_holds(routes, namespace, &path, |hold| hold.lease.runs(now))?;
        swept
            .flows
            .extend(over.into_iter().flat_map(|hold| hold.flows));
        if !path.exists() {
            swept.structures.push(format!("link {}", state.device));
        }
    }
    Ok(swept)
}

fn list(namespace: &Namespace) -> Result<Vec<Entry>, LockError> {
    let (directory, _others_wait) = runtime::exclusive(namespace)?;
    let of = namespace.cookie()?;
    let now = lease::now();
    let mut entries = Vec::new();
    for path in state::paths(&directory, namespace.inode())? {
        let holds = State::read(&path, of)?
            .map(|state| state.holds)
            .unwrap_or_default();
        for hold in holds.iter().filter(|hold| hold.lease.runs(now)) {
            entries.extend(hold.flows.iter().map(|flow| hold.lease.entry(*flow, now)));
        }
    }
    Ok(entries)
}

impl Locker for Link {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        Features {
            silence: Scope::Device,
            lease: LeaseEnd::Sweep,
            takes_over: true,
            ..Features::default()
        }
    }

    /// See [`Locker::lock`]. The first lock unplugs the device; more only say that it has to stay so.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`], [`LockError::Duplicate`], [`LockError::LeaseZero`], [`LockError::CutsOff`],
    /// [`LockError::CannotUnplug`], [`LockError::NoPermission`], [`LockError::NoDevice`],
    /// [`LockError::StateFile`].
    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.begin(flows, lease, false)
    }

    /// See [`Locker::take_over`]. The device stays unplugged meanwhile.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Locker::lock).
    fn take_over(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.begin(flows, lease, true)
    }

    /// See [`Locker::sweep`]: of all devices of the network namespace, not only this handle's.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`], [`LockError::StateFile`], or what else the kernel says.
    fn sweep(&self) -> Result<Swept, LockError> {
        sweep(&self.shared.routes, &self.shared.namespace)
    }

    /// See [`Locker::list`]: of all devices of the network namespace, not only this handle's.
    ///
    /// # Errors
    ///
    /// [`LockError::StateFile`].
    fn list(&self) -> Result<Vec<Entry>, LockError> {
        list(&self.shared.namespace)
    }
}

/// The end of a lease, for the thread that waits for it.
struct Timer {
    /// None once there is nothing to wait for.
    deadline: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Timer {
    fn new(deadline: Instant) -> Self {
        Self {
            deadline: Mutex::new(Some(deadline)),
            changed: Condvar::new(),
        }
    }

    fn set(&self, deadline: Option<Instant>) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
        self.changed.notify_all();
    }

    /// Moves the deadline on, if this one is later. One that was reached stays so.
    fn prolong(&self, later: Instant) {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *deadline = deadline.map(|deadline| deadline.max(later));
        drop(deadline);
        self.changed.notify_all();
    }

    /// Waits for the deadline; false if there is none any more.
    fn wait(&self) -> bool {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(end) = *deadline {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(deadline, left);
            deadline = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

struct Lock {
    shared: Arc<Shared>,
    id: String,
    timer: Arc<Timer>,
}

impl LockBackend for Lock {
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        let deadline = Instant::now() + lease.min(MAX_LEASE);
        self.shared.renew(flows, &self.id, lease)?;
        self.timer.prolong(deadline);
        Ok(())
    }

    fn unlock(&mut self, _flows: &[FourTuple]) -> Result<(), LockError> {
        self.shared.end(|hold| hold.lease.id != self.id)?;
        self.timer.set(None);
        Ok(())
    }

    fn give_back(&mut self, _flows: &[FourTuple], taken: &[Entry]) -> Result<(), LockError> {
        let taken: HashSet<FourTuple> = taken.iter().map(|entry| entry.flow).collect();
        self.shared.end(|hold| {
            if hold.lease.id == self.id {
                hold.flows.retain(|flow| taken.contains(flow));
            }
            !hold.flows.is_empty()
        })
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

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("device", &self.shared.device)
            .field("unplug", &self.shared.unplug)
            .finish_non_exhaustive()
    }
}
