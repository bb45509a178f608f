//! The target's side: performs what [`TargetSessions`] decides about the connections that are offered.

mod actions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{FourTuple, Image};
use tcpmig_lock::Locker;
use tcpmig_sys::sockets::Lookup;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tracing::Instrument;

use super::Options;
use super::arrival::{Accepts, AcceptsAsync, Arrived, Offer, Ready, Terms};
use super::descriptors::Reserve;
use super::journal::Journal;
use super::keeper::Keeper;
use super::mutex::{lock, try_lock};
use super::outbox::Outbox;
use super::policy::{Policy, ThisHost};
use super::slot::{SharedSlot, Slot};
use super::spans;
use super::together::{Locks, Together};
use super::worker::Worker;
use crate::handover::{
    HandoverId, Heard, Message, Recalled, Refusal, TargetAction, TargetResult, TargetSessions,
};
use crate::options::NotSet;
use crate::restore;

pub(super) type Action = TargetAction<Outbox>;

pub(super) struct Host {
    policy: RwLock<Arc<Policy>>,
    /// What the policy asks about this host.
    facts: ThisHost,
    accepts: Option<Box<Accepts>>,
    accepts_async: Option<Box<AcceptsAsync>>,
    locker: Arc<dyn Locker>,
    options: Options,
    journal: Arc<dyn Journal>,
    descriptors: Reserve,
    exchanges: Arc<Semaphore>,
    /// Made when something is offered, in the network namespace of the task that serves it.
    sockets: OnceLock<Lookup>,
    /// When it was looked at last what new sockets have.
    freshened: Mutex<Option<Instant>>,
    arrived: mpsc::UnboundedSender<Arrived>,
    /// Decides. Locked for a moment only, never while something is done.
    sessions: Mutex<TargetSessions<Outbox>>,
    /// What there is of each handover here.
    slots: Mutex<BTreeMap<HandoverId, SharedSlot>>,
    /// The sessions count time from here.
    start: Instant,
    clock: Clock,
    worker: Worker,
    keeper: Keeper,
    locks: Locks,
    activations: Together<(HandoverId, Vec<Bytes>), Option<TargetResult>>,
}

/// When the task that keeps the time looks next.
#[derive(Default)]
struct Clock {
    wakes: Mutex<Option<Duration>>,
    earlier: Notify,
}

impl Host {
    pub(super) fn new(
        locker: Arc<dyn Locker>,
        terms: Terms,
        journal: Arc<dyn Journal>,
        (worker, arrived): (Worker, mpsc::UnboundedSender<Arrived>),
    ) -> Self {
        let keeper = Keeper::new(locker.clone());
        keeper.start();
        worker.start();
        let Terms {
            options,
            policy,
            accepts,
            accepts_async,
        } = terms;
        Self {
            policy: RwLock::new(Arc::new(policy)),
            facts: ThisHost::default(),
            locks: Locks::new(locker.clone(), options.lease),
            activations: Together::default(),
            accepts,
            accepts_async,
            locker,
            keeper,
            worker,
            descriptors: Reserve::new(&options),
            exchanges: Arc::new(Semaphore::new(
                options.exchanges_at_once.min(Semaphore::MAX_PERMITS),
            )),
            sockets: OnceLock::new(),
            freshened: Mutex::default(),
            sessions: Mutex::new(TargetSessions::new(options.target())),
            slots: Mutex::default(),
            start: Instant::now(),
            clock: Clock::default(),
            options,
            journal,
            arrived,
        }
    }

    fn policy(&self) -> Arc<Policy> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        policy.clone()
    }

    /// Judges by this policy from now on.
    pub(super) fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// A place for one more exchange, until it is dropped.
    pub(super) fn exchange(&self) -> Option<OwnedSemaphorePermit> {
        self.exchanges.clone().try_acquire_owned().ok()
    }

    /// Tells the sessions how late it is, for ever.
    pub(super) async fn keep_time(host: Weak<Self>) {
        loop {
            let Some(host) = host.upgrade() else {
                return;
            };
            let due = host.with(|sessions| {
                sessions.handle_timeout(host.now());
                std::iter::from_fn(|| sessions.poll_ready()).collect::<Vec<_>>()
            });
            for id in due {
                let host = host.clone();
                let working = async move {
                    let mut next = host.with(|sessions| sessions.poll(id));
                    while let Some(action) = next {
                        next = host.perform(id, action).await;
                    }
                };
                tokio::spawn(working.instrument(spans::target_of(id)));
            }
            let wait = host.set_alarm();
            let waiting = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = waiting => {}
                () = host.clock.earlier.notified() => {}
            }
        }
    }

    /// How long [`Host::keep_time`] has to wait.
    fn set_alarm(&self) -> Option<Duration> {
        let sessions = lock(&self.sessions);
        let wakes = sessions.poll_timeout();
        *lock(&self.clock.wakes) = wakes;
        wakes.map(|at| at.saturating_sub(self.now()))
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Asks or tells the sessions something.
    pub(super) fn with<T>(&self, ask: impl FnOnce(&mut TargetSessions<Outbox>) -> T) -> T {
        let mut sessions = lock(&self.sessions);
        let answer = ask(&mut sessions);
        let next = sessions.poll_timeout();
        let forgotten: Vec<_> = std::iter::from_fn(|| sessions.poll_forgotten()).collect();
        drop(sessions);
        if let Some(next) = next
            && lock(&self.clock.wakes).is_none_or(|at| next < at)
        {
            self.clock.earlier.notify_one();
        }
        for id in forgotten {
            let gone = lock(&self.slots).remove(&id);
            // Whatever it does when it is dropped, nobody else has to wait for that.
            drop(gone);
        }
        answer
    }

    pub(super) fn hear(&self, from: &Arc<str>, outbox: &Outbox, message: Message) -> Heard {
        let recalled = message.id().and_then(|id| {
            let is_known = lock(&self.sessions).knows(id);
            if is_known { None } else { self.lookup(id) }
        });
        let (now, link) = (self.now(), outbox.clone());
        self.with(|sessions| sessions.handle_message(now, from, link, message, recalled.as_ref()))
    }

    /// What a process before this one has noted.
    fn lookup(&self, id: HandoverId) -> Option<Recalled> {
        let offered_by = self.journal.offered_by(id);
        self.journal
            .lookup(id)
            .map(|note| Recalled { note, offered_by })
    }

    /// Does something for a handover; what is to be done next.
    pub(super) async fn perform(
        self: &Arc<Self>,
        id: HandoverId,
        action: Action,
    ) -> Option<Action> {
        match action {
            Action::Send { link, message } => {
                link.pass(message);
                return self.with(|sessions| sessions.poll(id));
            }
            // What was sent leaves with the link's own task, which would have to wait for an
            // application that begins to write at once.
            Action::Deliver => tokio::task::yield_now().await,
            Action::Examine { from, draft } if self.accepts_async.is_some() => {
                let doing = self.doing(id);
                let result = Box::pin(self.ask(id, &from, draft)).await;
                return doing.ended(result);
            }
            Action::Lock if self.works_together() => {
                let doing = self.doing(id);
                let result = self.lock_together(id).await;
                return doing.ended(result);
            }
            Action::Activate { ref packets } if self.works_together() => {
                let doing = self.doing(id);
                let together = self
                    .activations
                    .join((id, packets.clone()), |all| self.activate_each(&all));
                match together.await {
                    Ok(Some(result)) => return doing.ended(result),
                    // It is done by itself.
                    _ => doing.leave(),
                }
            }
            Action::Build { ref image } => self.complete(id, image.clone()),
            _ => {}
        }
        // Nothing is slow between freeze and activation: what waits for nothing is not handed to another thread.
        if !self.waits_for(id, &action) {
            return self.step(id, action);
        }
        let host = self.clone();
        let working = move || {
            let mut next = host.step(id, action);
            while let Some(action) = next {
                if matches!(action, Action::Send { .. } | Action::Deliver) {
                    return Some(action);
                }
                next = host.step(id, action);
            }
            None
        };
        self.worker.call(true, working).await
    }

    /// Whether locks are made and ended along with those of others.
    fn works_together(&self) -> bool {
        self.locks.help() && !self.worker.is_elsewhere()
    }

    /// Does something here; what is to be done next.
    fn step(&self, id: HandoverId, action: Action) -> Option<Action> {
        let doing = self.doing(id);
        let result = self.work(id, action);
        doing.ended(result)
    }

    fn doing(&self, id: HandoverId) -> Doing<'_> {
        Doing {
            host: self,
            id,
            is_reported: false,
        }
    }

    /// Examines an offer, and asks an application that takes its time.
    async fn ask(self: &Arc<Self>, id: HandoverId, from: &Arc<str>, draft: Bytes) -> TargetResult {
        let examined = async {
            let (host, by) = (self.clone(), from.clone());
            let examining = move || host.examine(&by, draft);
            let examined = self.worker.call(false, examining).await?;
            let (flow, draft, _) = &examined;
            let mut ready = None;
            if let Some(accepts) = &self.accepts_async {
                let offer = Offer {
                    flow: *flow,
                    from: from.clone(),
                    layers: draft.layers.clone(),
                };
                ready = Some(accepts(offer).await?);
            }
            Ok((examined, ready))
        };
        match examined.await {
            Ok((examined, ready)) => self.examined(id, from, examined, ready),
            Err(refusal) => TargetResult::Failed(refusal),
        }
    }

    fn examined(
        &self,
        id: HandoverId,
        from: &Arc<str>,
        (flow, draft, left_out): Examined,
        ready: Option<Ready>,
    ) -> TargetResult {
        let mut slot = Slot::new(from.clone(), flow, draft, left_out, self.options.lease);
        slot.ready = ready;
        lock(&self.slots).insert(id, Arc::new(Mutex::new(slot)));
        TargetResult::Done
    }

    /// Whether it can wait.
    fn waits_for(&self, id: HandoverId, action: &Action) -> bool {
        if self.worker.is_elsewhere() {
            return !matches!(action, Action::Send { .. });
        }
        let locker = self.locker.features().waits;
        let any = locker || self.journal.waits();
        let slot = self.slot(id);
        let mut slot = slot.as_deref().map(try_lock);
        // Its lock is being renewed.
        let is_taken = matches!(slot, Some(None));
        let slot = slot.as_mut().and_then(Option::as_deref_mut);
        match action {
            // The application is asked on this task.
            Action::Examine { .. } | Action::Send { .. } | Action::Deliver => false,
            Action::Note(_) => self.journal.waits(),
            Action::Lock => locker,
            Action::Build { .. } => {
                let image = slot.and_then(|slot| slot.image.as_deref());
                let waits = |image: &Result<Image, _>| image.as_ref().is_ok_and(restore::waits);
                any || is_taken || image.is_some_and(waits)
            }
            Action::Activate { packets } => {
                locker || is_taken || slot.is_some_and(|slot| !slot.is_ready(packets))
            }
            Action::Discard { .. } | Action::Unlock => any || is_taken,
        }
    }

    fn slot(&self, id: HandoverId) -> Option<SharedSlot> {
        lock(&self.slots).get(&id).cloned()
    }
}

/// A draft of a connection that may come, and what was left out of it.
type Examined = (FourTuple, Image, Vec<NotSet>);

/// An action that is done, whose end has to be reported whatever comes of it: nothing else of the handover goes on before.
struct Doing<'a> {
    host: &'a Host,
    id: HandoverId,
    is_reported: bool,
}

impl Doing<'_> {
    /// It was not done.
    fn leave(mut self) {
        self.is_reported = true;
    }

    /// What is to be done next.
    fn ended(mut self, result: TargetResult) -> Option<Action> {
        self.is_reported = true;
        let now = self.host.now();
        self.host.with(|sessions| {
            sessions.handle_result(now, self.id, result);
            sessions.poll(self.id)
        })
    }
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        if !self.is_reported {
            let (now, id) = (self.host.now(), self.id);
            let result = TargetResult::Failed(Refusal::other("a call panicked"));
            self.host.with(|sessions| {
                sessions.handle_result(now, id, result);
                sessions.leave(id);
            });
            // Who is asked next has to do the rest.
            self.host.clock.earlier.notify_one();
        }
    }
}
