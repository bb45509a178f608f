//! The target's side: performs what [`TargetSessions`] decides about the connections that are offered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{FourTuple, Image, Limits};
use tcpmig_lock::{Locker, conntrack};
use tcpmig_sys::info::State;
use tcpmig_sys::sockets::Lookup;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tracing::{Instrument, info, warn};

use super::Options;
use super::acceptor::{Accepts, AcceptsAsync, Arrived, Offer, Offered, Ready, Terms};
use super::descriptors::Reserve;
use super::exchange::Outbox;
use super::journal::{HandoverInfo, Journal, Note, Role};
use super::keeper::Keeper;
use super::policy::{Policy, ThisHost};
use super::slot::{Slot, lock, try_lock};
use super::spans;
use super::worker::Worker;
use crate::handover::{
    Code, HandoverId, Heard, Message, Recalled, Refusal, TargetAction, TargetResult, TargetSessions,
};
use crate::hold::{Keep, every};
use crate::options::{self, NotSet, Unsupported};
use crate::restore::{self, NotActivated, Prepared, RestoreError};

pub(super) type Action = TargetAction<Outbox>;

pub(super) struct Host {
    policy: Policy,
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
    slots: Mutex<HashMap<HandoverId, Arc<Mutex<Slot>>>>,
    /// The sessions count time from here.
    start: Instant,
    clock: Clock,
    worker: Worker,
    keeper: Keeper,
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
        arrived: mpsc::UnboundedSender<Arrived>,
    ) -> Self {
        let keeper = Keeper::new(locker.clone());
        keeper.start();
        let worker = Worker::new();
        worker.start();
        let Terms {
            options,
            policy,
            accepts,
            accepts_async,
        } = terms;
        Self {
            policy,
            facts: ThisHost::default(),
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
        let mut sessions = lock(&self.sessions);
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
            Action::Examine { from, image } if self.accepts_async.is_some() => {
                let doing = self.doing(id);
                let result = self.ask(id, &from, image).await;
                return doing.ended(result);
            }
            _ => {}
        }
        // Nothing is slow between freeze and activation: what waits for nothing is not handed to another thread.
        if !self.waits_for(id, &action) {
            return self.step(id, action);
        }
        let host = self.clone();
        let working = move || {
            let mut next = Some(action);
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
    async fn ask(&self, id: HandoverId, from: &Arc<str>, image: Bytes) -> TargetResult {
        let examined = async {
            let (image, left_out) = self.examine(from, image)?;
            let mut ready = None;
            if let (Some(accepts), Some(ip)) = (&self.accepts_async, image.ip()) {
                let offer = Offer {
                    flow: ip.flow,
                    from: from.clone(),
                    layers: image.layers.clone(),
                };
                ready = Some(accepts(offer).await?);
            }
            Ok((image, left_out, ready))
        };
        match examined.await {
            Ok((image, left_out, ready)) => self.examined(id, from, image, left_out, ready),
            Err(refusal) => TargetResult::Failed(refusal),
        }
    }

    fn examined(
        &self,
        id: HandoverId,
        from: &Arc<str>,
        image: Image,
        left_out: Vec<NotSet>,
        ready: Option<Ready>,
    ) -> TargetResult {
        let mut slot = Slot::new(from.clone(), image, left_out, self.options.lease);
        slot.ready = ready;
        lock(&self.slots).insert(id, Arc::new(Mutex::new(slot)));
        TargetResult::Done
    }

    /// Whether it can wait.
    fn waits_for(&self, id: HandoverId, action: &Action) -> bool {
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
            Action::Build => {
                let image = slot.and_then(|slot| slot.image.as_ref());
                any || image.is_some_and(|(image, _)| restore::waits(image))
            }
            Action::Activate { packets } => {
                locker || is_taken || slot.is_some_and(|slot| !slot.is_ready(packets))
            }
            Action::Discard { .. } | Action::Unlock => any || is_taken,
        }
    }

    fn slot(&self, id: HandoverId) -> Option<Arc<Mutex<Slot>>> {
        lock(&self.slots).get(&id).cloned()
    }

    fn work(&self, id: HandoverId, action: Action) -> TargetResult {
        match action {
            Action::Examine { from, image } => match self.examine(&from, image) {
                Ok((image, left_out)) => self.examined(id, &from, image, left_out, None),
                Err(refusal) => TargetResult::Failed(refusal),
            },
            Action::Build => match self.build(id) {
                Ok(()) => TargetResult::Done,
                Err(error) => TargetResult::Failed(refusal(&error)),
            },
            Action::Note(note) => self.note(id, note),
            Action::Activate { packets } => self.activate(id, &packets),
            Action::Discard { reason } => self.discard(id, &reason),
            Action::Unlock => {
                self.forget_slot(id, |slot| slot.lock = None);
                TargetResult::Done
            }
            Action::Deliver => {
                self.deliver(id);
                TargetResult::Done
            }
            Action::Send { .. } => TargetResult::Done,
        }
    }

    /// Everything that can be said about an offer before the host is touched for it: what is
    /// refused here has silenced nothing, not for a moment.
    fn examine(&self, from: &Arc<str>, image: Bytes) -> Result<(Image, Vec<NotSet>), Refusal> {
        let mut image = Image::decode_shared(image.into(), &Limits::default())
            .map_err(|error| Refusal::new(Code::Image, format!("image: {error}")))?;
        if image.listener().is_some() {
            return Err(refusal(&RestoreError::Listener));
        }
        let Some(ip) = image.ip() else {
            return Err(refusal(&RestoreError::Layer("IP")));
        };
        let flow = ip.flow;
        let leave_out = self.options.unsupported == Unsupported::Warn;
        let is_asked = self.accepts.is_some() || self.accepts_async.is_some();
        let left_out = self
            .policy
            .rules(from)
            .check(&mut image, &self.facts, is_asked, leave_out)
            .map_err(|denied| Refusal::new(denied.code(), denied.to_string()))?;
        if let Some(accepts) = &self.accepts {
            let layers = &image.layers;
            accepts(&Offered { flow, from, layers })?;
        }
        self.descriptors.check()?;
        self.check_free(flow)?;
        Ok((image, left_out))
    }

    /// Refuses a connection that lives here: locking its packets would silence it.
    fn check_free(&self, flow: FourTuple) -> Result<(), Refusal> {
        let failed = |error| Refusal::other(format!("connections of this host: {error}"));
        let sockets = self.sockets().map_err(failed)?;
        let found = sockets.occupant(flow.local(), flow.remote());
        match found.map_err(failed)? {
            None => Ok(()),
            // It gives way.
            Some(found) if found.state == State::TimeWait => Ok(()),
            Some(found) => Err(Refusal::other(format!("{flow}: {found}"))),
        }
    }

    fn sockets(&self) -> tcpmig_sys::Result<&Lookup> {
        match self.sockets.get() {
            Some(sockets) => Ok(sockets),
            None => {
                let sockets = Lookup::new()?;
                Ok(self.sockets.get_or_init(|| sockets))
            }
        }
    }

    /// Finds out now what an offer will be judged by, as far as that does not depend on it.
    pub(super) fn freshen(&self) {
        self.facts.freshen();
        let mut freshened = lock(&self.freshened);
        if freshened.is_none_or(|when| when.elapsed() > options::FRESHEN_AFTER) {
            *freshened = Some(Instant::now());
            options::freshen();
            conntrack::freshen();
        }
        // Whoever needs it is told of the error.
        let _ = self.sockets().map(Lookup::freshen);
    }

    fn build(&self, id: HandoverId) -> Result<(), RestoreError> {
        let Some(slot) = self.slot(id) else {
            return Ok(());
        };
        let mut building = lock(&slot);
        let Some((mut image, left_out)) = building.image.take() else {
            return Ok(());
        };
        let Options {
            lease, unsupported, ..
        } = self.options;
        // It came at once, and the clocks of two hosts need not agree: its own goes on from here.
        image.taken = None;
        let mut prepared = Prepared::build_with(image, &*self.locker, lease, unsupported)?;
        prepared.leave_out(left_out);
        building.prepared = Some(Box::new(prepared));
        drop(building);
        let slot: Arc<dyn Keep> = slot;
        self.keeper.keep((Arc::downgrade(&slot), every(lease)));
        Ok(())
    }

    fn note(&self, id: HandoverId, note: Note) -> TargetResult {
        let noted = if note.is_first() {
            let slot = self.slot(id);
            let about = slot.and_then(|slot| {
                let slot = lock(&slot);
                let built = slot.prepared.as_ref()?;
                Some(HandoverInfo {
                    role: Role::Target,
                    flow: built.flow(),
                    host: slot.from.to_string(),
                    address: None,
                })
            });
            about.map_or(Ok(()), |about| self.journal.begin(id, &about))
        } else {
            self.journal.note(id, note)
        };
        match noted {
            Ok(()) => TargetResult::Done,
            Err(error) => {
                warn!(%id, ?note, "the journal does not have a step of a handover: {error}");
                TargetResult::Failed(Refusal::other(format!("journal: {error}")))
            }
        }
    }

    fn activate(&self, id: HandoverId, packets: &[Bytes]) -> TargetResult {
        let Some(slot) = self.slot(id) else {
            return TargetResult::Failed(Refusal::other("nothing was built"));
        };
        let mut slot = lock(&slot);
        if self.arrived.is_closed() {
            let moved_on = slot.has_moved_on();
            slot.discard();
            return TargetResult::NotActivated {
                why: Refusal::other("the application takes no more connections"),
                moved_on,
                is_locked: slot.lock.is_some(),
            };
        }
        let Some(prepared) = slot.prepared.take() else {
            return TargetResult::Failed(Refusal::other("nothing was built"));
        };
        let arrived = packets.iter().map(|packet| &packet[..]);
        let flow = prepared.flow();
        match prepared.activate_with(arrived) {
            Ok(live) => {
                slot.restored = Some(Box::new(live));
                TargetResult::Done
            }
            Err(failed) => {
                let NotActivated {
                    error,
                    lock,
                    moved_on,
                } = *failed;
                // Until ABORT comes, as after any other end.
                slot.lock = lock.or_else(|| {
                    let again = self.locker.lock(&[flow], self.options.lease);
                    again
                        .inspect_err(|error| warn!(%id, "not locked again: {error}"))
                        .ok()
                });
                TargetResult::NotActivated {
                    why: refusal(&error),
                    moved_on,
                    is_locked: slot.lock.is_some(),
                }
            }
        }
    }

    fn discard(&self, id: HandoverId, reason: &str) -> TargetResult {
        let mut moved_on = false;
        if let Some(slot) = self.slot(id) {
            let mut slot = lock(&slot);
            moved_on = slot.has_moved_on();
            slot.discard();
            let ready = slot.ready.take();
            drop(slot);
            // It is the application's, and may take its time to be dropped.
            drop(ready);
        }
        if moved_on {
            warn!(%id, "{}", RestoreError::MovedOn);
        }
        info!(%id, reason, "a built connection was discarded");
        TargetResult::Discarded { moved_on }
    }

    /// Takes what is left of a handover.
    fn forget_slot(&self, id: HandoverId, last: impl FnOnce(&mut Slot)) {
        let gone = lock(&self.slots).remove(&id);
        if let Some(slot) = gone {
            last(&mut lock(&slot));
        }
    }

    /// Hands a connection to the application.
    fn deliver(&self, id: HandoverId) {
        let mut delivered = None;
        self.forget_slot(id, |slot| {
            let ready = slot.ready.take();
            let live = slot.restored.take();
            delivered = live.map(|live| (live, slot.from.clone(), ready));
        });
        let Some((mut restored, from, ready)) = delivered else {
            return;
        };
        restored.write();
        info!(flow = %restored.flow, "a connection arrived");
        for option in &restored.not_set {
            warn!(flow = %restored.flow, %option, "a connection arrived without an option");
        }
        let arrived = Arrived {
            socket: restored.socket,
            flow: restored.flow,
            unwritten: restored.unwritten,
            layers: restored.layers,
            ready,
            not_set: restored.not_set,
            from: from.to_string(),
        };
        if self.arrived.send(arrived).is_err() {
            warn!("a connection arrived after the application stopped: it is closed");
        }
    }
}

/// An action that is done, whose end has to be reported whatever comes of it: nothing else of the handover goes on before.
struct Doing<'a> {
    host: &'a Host,
    id: HandoverId,
    is_reported: bool,
}

impl Doing<'_> {
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

/// What a source is told of it.
fn refusal(error: &RestoreError) -> Refusal {
    let code = match error {
        RestoreError::Layer(_) | RestoreError::Listener | RestoreError::State(_) => Code::Image,
        RestoreError::InjectMark => Code::Policy,
        RestoreError::Option(_) => Code::Option,
        _ => Code::Other,
    };
    Refusal::new(code, error.to_string())
}
