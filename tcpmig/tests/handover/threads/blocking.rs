//! A locker, a journal and a way of steering that wait until the runtime of their host goes on with something else.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tcpmig::capture::Frozen;
use tcpmig::driver::journal::{Decision, HandoverInfo, Journal, Note, Role, Unfinished};
use tcpmig::handover::HandoverId;
use tcpmig::steer::{Steer, SteerError, Steering};
use tcpmig_format::FourTuple;
use tcpmig_lock::{
    Captured, Entry, Features, LockBackend, LockError, LockGuard, Locker, NextHop, Nftables,
    Redirect, RedirectBackend, Swept,
};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::support::{B, PATIENCE};

/// A task that goes on for as long as its runtime does.
#[derive(Clone)]
pub(super) struct Heart {
    beats: Arc<AtomicU64>,
    /// How often a thread of its own has looked in vain for the next beat, at the most.
    longest: Arc<AtomicU64>,
}

impl Heart {
    /// On the runtime of the calling task.
    pub(super) fn begin() -> Self {
        let beats = Arc::new(AtomicU64::new(0));
        let longest = Arc::new(AtomicU64::new(0));
        let (watched, most) = (Arc::downgrade(&beats), longest.clone());
        std::thread::spawn(move || {
            let (mut before, mut in_vain) = (0, 0);
            while let Some(beats) = watched.upgrade() {
                let now = beats.load(Ordering::Relaxed);
                in_vain = if now == before { in_vain + 1 } else { 0 };
                before = now;
                most.fetch_max(in_vain, Ordering::Relaxed);
                drop(beats);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let heart = Arc::downgrade(&beats);
        spawn_local(async move {
            while let Some(beats) = heart.upgrade() {
                beats.fetch_add(1, Ordering::Relaxed);
                drop(beats);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { beats, longest }
    }

    fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// For how long the runtime stood still at the most, by how often a thread found it so: about once each millisecond. Both wait
    /// for a busy machine.
    pub(super) fn stood_still(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }
}

/// What can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Lock,
    Renew,
    Captured,
    Unlock,
    Release,
    Redirect,
    Plan,
    Steer,
    Begin,
    Note,
    InDoubt,
    Decided,
    LeftOpen,
}

/// The calls of one host.
#[derive(Clone)]
pub(super) struct Calls(Arc<Shared>);

struct Shared {
    heart: Heart,
    /// The network namespace of the host.
    namespace: PathBuf,
    waits: bool,
    state: Mutex<State>,
    opened: Condvar,
    reached: Notify,
}

#[derive(Default)]
struct State {
    /// How often each has come back, and the beats of the heart at that time.
    done: BTreeMap<Call, (u64, u64)>,
    /// Those during which the runtime did nothing.
    stuck: BTreeSet<Call>,
    /// Those that came from a thread in another network namespace.
    elsewhere: BTreeSet<Call>,
    fails: Option<Call>,
    panics: Option<Call>,
    held: Option<Call>,
    is_held: bool,
    open: Vec<Unfinished>,
    active: Option<HandoverId>,
}

impl Calls {
    /// Each waits until the heart has beaten.
    pub(super) fn of(heart: Heart) -> Self {
        Self::new(heart, true)
    }

    /// They wait for nothing and say so. That counts the beats of the heart.
    pub(super) fn that_count(heart: Heart) -> Self {
        Self::new(heart, false)
    }

    fn new(heart: Heart, waits: bool) -> Self {
        Self(Arc::new(Shared {
            heart,
            namespace: namespace(),
            waits,
            state: Mutex::default(),
            opened: Condvar::new(),
            reached: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn wait(&self, call: Call) {
        let heart = &self.0.heart;
        let deadline = Instant::now() + PATIENCE / 4;
        let mut state = self.state();
        if namespace() != self.0.namespace {
            state.elsewhere.insert(call);
        }
        if state.panics == Some(call) {
            state.panics = None;
            drop(state);
            panic!("for a test");
        }
        if state.held == Some(call) {
            state.held = None;
            state.is_held = true;
            self.0.reached.notify_one();
            while state.is_held && Instant::now() < deadline {
                let woken = self.0.opened.wait_timeout(state, Duration::from_secs(1));
                (state, _) = woken.unwrap();
            }
        }
        drop(state);
        let before = heart.beats();
        while self.0.waits && heart.beats() < before + 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut state = self.state();
        if self.0.waits && heart.beats() < before + 3 {
            state.stuck.insert(call);
        }
        let (count, beats) = state.done.entry(call).or_default();
        *count += 1;
        *beats = heart.beats();
    }

    /// That the runtime went on during all calls, and that there were calls of these kinds.
    pub(super) fn went_on(&self, kinds: &[Call]) {
        let state = self.state();
        assert_eq!(state.stuck, BTreeSet::new(), "the runtime stood still");
        assert_eq!(state.elsewhere, BTreeSet::new(), "in another namespace");
        for kind in kinds {
            assert!(state.done.contains_key(kind), "no {kind:?}");
        }
    }

    pub(super) fn count(&self, call: Call) -> u64 {
        self.state().done.get(&call).map_or(0, |(count, _)| *count)
    }

    pub(super) fn heart(&self) -> &Heart {
        &self.0.heart
    }

    /// Those of the heart when the last of these calls came back.
    pub(super) fn beats(&self, call: Call) -> u64 {
        self.state().done[&call].1
    }

    /// The next of these calls fails, if it is one that can.
    pub(super) fn fail(&self, call: Call) {
        self.state().fails = Some(call);
    }

    fn fails(&self, call: Call) -> bool {
        self.state().fails.take_if(|fails| *fails == call).is_some()
    }

    pub(super) fn panic(&self, call: Call) {
        self.state().panics = Some(call);
    }

    /// The next of these calls does not come back before the gate is opened.
    pub(super) fn hold(&self, call: Call) -> Gate {
        self.state().held = Some(call);
        Gate(self.clone())
    }

    /// The journal has this one from a process that ended.
    pub(super) fn leave_open(&self, id: HandoverId) {
        let flow = "198.18.0.80:80,198.18.0.9:51234".parse().unwrap();
        let b = Some(B.parse().unwrap());
        let about = HandoverInfo::new(Role::Source, flow, "host-b", b);
        let (note, since) = (Note::Committing, SystemTime::now());
        let open = Unfinished::new(id, about, note, since);
        self.state().open.push(open);
    }

    /// The journal says that a process which ended had this one.
    pub(super) fn recalls_as_active(&self, id: HandoverId) {
        self.state().active = Some(id);
    }
}

fn namespace() -> PathBuf {
    std::fs::read_link("/proc/thread-self/ns/net").unwrap()
}

/// Where a call is held up.
pub(super) struct Gate(Calls);

impl Gate {
    pub(super) async fn reached(&self) {
        self.0.0.reached.notified().await;
    }

    pub(super) fn open(&self) {
        self.0.state().is_held = false;
        self.0.0.opened.notify_all();
    }
}

/// A locker whose every call waits.
pub(super) struct Blocking {
    inner: Nftables,
    calls: Calls,
}

impl Blocking {
    /// On the calling thread's host.
    pub(super) fn new(calls: &Calls) -> Self {
        Self {
            inner: tcpmig::locker::nftables().unwrap(),
            calls: calls.clone(),
        }
    }
}

impl Locker for Blocking {
    fn name(&self) -> &'static str {
        "blocking"
    }

    fn features(&self) -> Features {
        let mut features = self.inner.features();
        features.waits = self.calls.0.waits;
        features
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.calls.wait(Call::Lock);
        let guard = HeldUp {
            guard: Some(self.inner.lock(flows, lease)?),
            calls: self.calls.clone(),
        };
        Ok(LockGuard::new(flows.to_vec(), Box::new(guard)))
    }

    /// What another process left has its redirect.
    fn redirects(&self, flow: &FourTuple) -> Result<bool, LockError> {
        let is_left = |open: &Unfinished| open.about.flow == *flow;
        let is_left = self.calls.state().open.iter().any(is_left);
        Ok(is_left || self.inner.redirects(flow)?)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        self.inner.sweep()
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.inner.list()
    }
}

struct HeldUp {
    // None once it has ended.
    guard: Option<LockGuard>,
    calls: Calls,
}

impl HeldUp {
    fn guard(&mut self, call: Call) -> &mut LockGuard {
        self.calls.wait(call);
        self.guard.as_mut().expect("the lock has not ended")
    }
}

impl LockBackend for HeldUp {
    fn renew(&mut self, _: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.guard(Call::Renew).renew(lease)
    }

    fn unlock(&mut self, _: &[FourTuple]) -> Result<(), LockError> {
        self.calls.wait(Call::Unlock);
        self.guard.take().map_or(Ok(()), LockGuard::unlock)
    }

    fn release(&mut self, _: &[FourTuple]) -> Result<(), LockError> {
        self.calls.wait(Call::Release);
        self.guard.take().map_or(Ok(()), LockGuard::release)
    }

    fn captured(&mut self, _: &[FourTuple]) -> Result<Captured, LockError> {
        self.guard(Call::Captured).captured()
    }

    fn redirect(
        &mut self,
        _: &[FourTuple],
        hop: &NextHop,
        lease: Duration,
    ) -> Result<Box<dyn RedirectBackend>, LockError> {
        let redirect = self.guard(Call::Redirect).try_redirect(hop, lease)?;
        let calls = self.calls.clone();
        Ok(Box::new(Redirected(Some(redirect), calls)))
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // The guard around this was left to its lease.
        if let Some(guard) = self.guard.take() {
            guard.detach();
        }
    }
}

struct Redirected(Option<Redirect>, Calls);

impl RedirectBackend for Redirected {
    fn renew(&mut self, _: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        self.1.wait(Call::Renew);
        self.0.as_mut().map_or(Ok(()), |inner| inner.renew(lease))
    }

    fn end(&mut self, _: &[FourTuple]) -> Result<(), LockError> {
        self.1.wait(Call::Unlock);
        self.0.take().map_or(Ok(()), Redirect::end)
    }

    fn captured(&mut self, _: &[FourTuple]) -> Result<Captured, LockError> {
        self.1.wait(Call::Captured);
        let inner = self.0.as_mut();
        inner.map_or(Ok(Captured::new()), Redirect::captured)
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            inner.detach();
        }
    }
}

/// A journal whose every call waits, but for those that have to come back at once.
pub(super) struct Noted(Calls);

impl Noted {
    pub(super) fn new(calls: &Calls) -> Self {
        Self(calls.clone())
    }
}

impl Journal for Noted {
    fn waits(&self) -> bool {
        self.0.0.waits
    }

    fn begin(&self, _: HandoverId, _: &HandoverInfo) -> io::Result<()> {
        self.0.wait(Call::Begin);
        Ok(())
    }

    fn note(&self, _: HandoverId, _: Note) -> io::Result<()> {
        self.0.wait(Call::Note);
        Ok(())
    }

    fn in_doubt(&self, _: HandoverId) -> io::Result<()> {
        self.0.wait(Call::InDoubt);
        Ok(())
    }

    fn decided(&self, _: HandoverId) -> Option<Decision> {
        self.0.wait(Call::Decided);
        None
    }

    fn lookup(&self, id: HandoverId) -> Option<Note> {
        let is_active = self.0.state().active == Some(id);
        is_active.then_some(Note::Active)
    }

    fn left_open(&self) -> Vec<Unfinished> {
        self.0.wait(Call::LeftOpen);
        self.0.state().open.clone()
    }
}

/// A way to the target that waits, before and while the connection stands still.
pub(super) struct Planned {
    inner: Arc<dyn Steer>,
    calls: Calls,
}

impl Planned {
    pub(super) fn new(inner: Arc<dyn Steer>, calls: &Calls) -> Self {
        Self {
            inner,
            calls: calls.clone(),
        }
    }
}

struct Then(Box<dyn Steering>, Calls);

impl Steer for Planned {
    fn plan(&self, flow: FourTuple, locker: &dyn Locker) -> Result<Box<dyn Steering>, SteerError> {
        self.calls.wait(Call::Plan);
        Ok(Box::new(Then(
            self.inner.plan(flow, locker)?,
            self.calls.clone(),
        )))
    }
}

impl Steering for Then {
    fn steer(self: Box<Self>, frozen: &mut Frozen) -> Result<(), SteerError> {
        self.1.wait(Call::Steer);
        if self.1.fails(Call::Steer) {
            return Err(SteerError::Other("for a test".to_owned()));
        }
        self.0.steer(frozen)
    }
}
