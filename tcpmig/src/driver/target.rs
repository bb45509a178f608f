//! The target's side of handovers: what becomes of the connections that are offered.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{FourTuple, Image, Limits};
use tcpmig_lock::{LockGuard, Locker};
use tcpmig_sys::info::State;
use tcpmig_sys::sockets::Lookup;
use tcpmig_transport::Exchange;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tracing::{Instrument, Span, debug, info, warn};

use super::Options;
use super::acceptor::{Accepts, Arrived, Offered, Terms};
use super::admission::{Admission, Permit};
use super::journal::{About, Journal, Note, Role};
use super::keeper::Keeper;
use super::policy::{Policy, ThisHost};
use super::register::Register;
use super::spans;
use super::worker::Worker;
use crate::handover::{
    Decoder, HandoverId, Message, OLDEST_VERSION, Target, TargetAction, TargetEvent, VERSION,
};
use crate::hold::{Keep, every, hold_on, next};
use crate::options::{NotSet, Unsupported};
use crate::restore::{self, NotActivated, Prepared, RestoreError, Restored};

pub(super) struct Host {
    policy: Policy,
    /// What the policy asks about this host.
    facts: ThisHost,
    accepts: Option<Box<Accepts>>,
    locker: Arc<dyn Locker>,
    options: Options,
    journal: Arc<dyn Journal>,
    admission: Arc<Admission>,
    exchanges: Arc<Semaphore>,
    /// Made when something is offered, in the network namespace of the task that serves it.
    sockets: OnceLock<Lookup>,
    arrived: mpsc::UnboundedSender<Arrived>,
    handovers: Register<Mutex<Slot>>,
    worker: Worker,
    keeper: Keeper,
}

/// One handover, kept for a while after its end: then it holds as little as it can.
struct Slot {
    /// The host that offered it. Nobody else has a say in it.
    from: Arc<str>,
    machine: Target,
    prepared: Option<Box<Prepared>>,
    /// For as long as something is locked here: a source that never says ABORT must not have more and more of this host
    /// silenced.
    permit: Option<Permit>,
    /// Of what was discarded, until the source says with ABORT that it has the packets again:
    /// they may come here for as long as it redirects them, and would draw an RST.
    lock: Option<LockGuard>,
    /// Of each lock.
    lease: Duration,
    reason: String,
    activate_us: u32,
}

impl Slot {
    fn preparing(from: &Arc<str>, lease: Duration) -> Self {
        Self {
            from: from.clone(),
            machine: Target::preparing(),
            prepared: None,
            permit: None,
            lock: None,
            lease,
            reason: String::new(),
            activate_us: 0,
        }
    }

    /// Whether what was built has taken octets, which it must not: then nobody says that it never lived.
    fn has_moved_on(&self) -> bool {
        let built = self.prepared.as_ref();
        built.is_some_and(|built| built.has_moved_on())
    }

    /// Whether COMMIT with these packets can be answered without waiting for anything, apart from the locker.
    fn is_ready(&mut self, packets: &[Bytes], from: &Arc<str>) -> bool {
        let is_its = self.from == *from;
        match &mut self.prepared {
            // Packets make it be built again, and the last of them may have closed it.
            Some(built) if is_its => packets.is_empty() && built.get_ready(),
            _ => true,
        }
    }

    fn discard(&mut self) {
        if let Some(built) = self.prepared.take() {
            self.lock = Some(built.discard());
            if let Some(permit) = &mut self.permit {
                permit.give_back_octets();
            }
        }
    }

    fn unlock(&mut self) {
        self.lock = None;
        self.permit = None;
    }
}

impl Keep for Mutex<Slot> {
    fn keep(&self, locker: &dyn Locker) -> Option<Duration> {
        let Some(mut slot) = try_lock(self) else {
            // It is being activated, or discarded.
            return Some(Duration::from_millis(50));
        };
        let Slot {
            prepared,
            lock,
            lease,
            ..
        } = &mut *slot;
        let renewed = match (prepared, lock) {
            (Some(built), _) => built.renew(locker),
            // Its source may redirect the packets to this host until it knows that they are its own.
            (None, Some(lock)) => hold_on(lock, *lease, locker),
            (None, None) => return None,
        };
        Some(next(&renewed, every(*lease)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.discard();
        if let Some(lock) = self.lock.take() {
            // As above; the lease ends the silence.
            lock.leave();
        }
    }
}

const OFFERED_BEFORE: &str = "this handover was offered before";

/// A panic elsewhere left the value as it was: the machine's steps are complete or not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same if nobody has it locked.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(value) => Some(value),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Somebody knows the identifier of a handover that is not its own.
fn is_not_its(id: HandoverId, from: &str, message: &str) {
    warn!(%id, from, "{message} of a host that did not offer the connection was ignored");
}

/// Answers the messages of one exchange.
pub(super) async fn serve_exchange(exchange: Exchange, host: Arc<Host>, from: Arc<str>) {
    let span = spans::target(&from);
    serve_messages(exchange, host, from).instrument(span).await;
}

async fn serve_messages(mut exchange: Exchange, host: Arc<Host>, from: Arc<str>) {
    let mut said: Option<HandoverId> = None;
    let mut decoder = Decoder::default();
    let mut begun: Vec<HandoverId> = Vec::new();
    let mut greeted = false;
    let ended = loop {
        let frame = match exchange.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                // So that it knows that all of it was read: an exchange that is only dropped counts as given up.
                let _ = exchange.finish().await;
                break "the source finished".to_owned();
            }
            Err(error) => break error.to_string(),
        };
        let mut restored = None;
        let message = decoder.frame(frame);
        let about = message
            .as_ref()
            .ok()
            .and_then(|message| message.as_ref()?.id());
        if about.is_some() && about != said {
            said = about;
            Span::current().record("id", about.map(tracing::field::display));
        }
        let answer = match message {
            Ok(None) => continue,
            Ok(Some(Message::Hello { newest, .. })) if !greeted => {
                greeted = true;
                if (OLDEST_VERSION..=VERSION).contains(&newest) {
                    // A source greets before its connection stands still.
                    host.freshen();
                    continue;
                }
                let (hello, _) = Message::hello().encode();
                if exchange.send(hello).await.is_ok() {
                    let _ = exchange.finish().await;
                }
                break format!("the source speaks version {newest} of the protocol");
            }
            Ok(Some(other)) if !greeted => break format!("{} came before HELLO", other.name()),
            Ok(Some(Message::Offer { id, image })) => {
                let answer = host.offer(id, image, &from).await;
                if let Message::Prepared { .. } = answer {
                    begun.push(id);
                }
                Some(answer)
            }
            Ok(Some(Message::Commit { id, packets })) => {
                let answer;
                (answer, restored) = host.commit(id, packets, &from).await;
                Some(answer)
            }
            Ok(Some(Message::Abort { id })) => {
                host.abort(id, &from).await;
                None
            }
            Ok(Some(other)) => break format!("{} was not expected", other.name()),
            Err(error) => break error.to_string(),
        };
        if let Some(answer) = answer {
            let answer_id = answer.id();
            let (frame, _) = answer.encode();
            let sent = exchange.send(frame).await;
            // The connection lives whether or not the source got to know it.
            if let Some(restored) = restored {
                // What was sent leaves with the link's own task, which would have to wait for an
                // application that begins to write at once.
                tokio::task::yield_now().await;
                host.deliver(*restored, &from);
                if let Some(id) = answer_id {
                    let noting = {
                        let host = host.clone();
                        move || host.note_end(id, Note::Active)
                    };
                    host.worker.call(host.journal.waits(), noting).await;
                }
            }
            if let Err(error) = sent {
                break error.to_string();
            }
        }
    };
    debug!(ended, "an exchange ended");
    for id in begun {
        host.event(id, TargetEvent::LinkLost).await;
    }
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
        } = terms;
        Self {
            policy,
            facts: ThisHost::default(),
            accepts,
            locker,
            keeper,
            worker,
            admission: Admission::new(&options),
            exchanges: Arc::new(Semaphore::new(
                options.exchanges_at_once.min(Semaphore::MAX_PERMITS),
            )),
            sockets: OnceLock::new(),
            handovers: Register::new(options.remember, options.remembered_by_each),
            options,
            journal,
            arrived,
        }
    }

    /// A place for one more exchange, until it is dropped.
    pub(super) fn exchange(&self) -> Option<OwnedSemaphorePermit> {
        self.exchanges.clone().try_acquire_owned().ok()
    }

    /// Forgets ended handovers in time, for ever.
    pub(super) async fn forget(host: Weak<Self>) {
        loop {
            let Some(wait) = host.upgrade().map(|host| {
                host.handovers.sweep();
                host.options.remember / 8
            }) else {
                return;
            };
            sleep(wait.clamp(Duration::from_millis(50), Duration::from_secs(30))).await;
        }
    }

    /// Answers an OFFER.
    async fn offer(self: &Arc<Self>, id: HandoverId, image: Bytes, from: &Arc<str>) -> Message {
        let begin = Instant::now();
        match self.prepare(id, image, from).await {
            Ok(()) => Message::Prepared {
                id,
                rebuild_us: micros(begin),
            },
            Err(reason) => {
                info!(%id, from = &**from, reason, "a connection was refused");
                Message::Refused { id, reason }
            }
        }
    }

    /// Builds what is offered. If it is refused nothing of it is left here.
    async fn prepare(
        self: &Arc<Self>,
        id: HandoverId,
        image: Bytes,
        from: &Arc<str>,
    ) -> Result<(), String> {
        if self.handovers.get(id).is_some() || self.journal.recall(id).is_some() {
            return Err(OFFERED_BEFORE.to_owned());
        }
        let permit = self.admission.admit(from, image.len())?;
        let (image, left_out) = self.examine(image, from)?;
        let waits = self.waits() || restore::waits(&image);
        let building = {
            let (host, from) = (self.clone(), from.clone());
            move || host.build_slot(id, image, left_out, permit, &from)
        };
        self.worker.call(waits, building).await
    }

    fn build_slot(
        self: &Arc<Self>,
        id: HandoverId,
        image: Image,
        left_out: Vec<NotSet>,
        permit: Permit,
        from: &Arc<str>,
    ) -> Result<(), String> {
        let slot = Arc::new(Mutex::new(Slot::preparing(from, self.options.lease)));
        // Whoever asks for it meanwhile waits for what becomes of it.
        let mut building = lock(&slot);
        if !self.handovers.begin(id, slot.clone()) {
            return Err(OFFERED_BEFORE.to_owned());
        }
        match self.build(id, image, from) {
            Ok(mut prepared) => {
                prepared.leave_out(left_out);
                building.machine.handle(TargetEvent::Built);
                building.prepared = Some(Box::new(prepared));
                building.permit = Some(permit);
                drop(building);
                let slot: Arc<dyn Keep> = slot;
                let soon = every(self.options.lease);
                self.keeper.keep((Arc::downgrade(&slot), soon));
                self.expire(id);
                Ok(())
            }
            Err(reason) => {
                building.machine.handle(TargetEvent::NotBuilt);
                building.reason.clone_from(&reason);
                drop(building);
                self.handovers.forget(id);
                Err(reason)
            }
        }
    }

    /// Everything that can be said about an offer before the host is touched for it: what is
    /// refused here has silenced nothing, not for a moment.
    fn examine(&self, image: Bytes, from: &Arc<str>) -> Result<(Image, Vec<NotSet>), String> {
        let mut image = Image::decode_shared(image.into(), &Limits::default())
            .map_err(|error| format!("image: {error}"))?;
        if image.listener().is_some() {
            return Err(RestoreError::Listener.to_string());
        }
        let Some(ip) = image.ip() else {
            return Err(RestoreError::Layer("IP").to_string());
        };
        let flow = ip.flow;
        let leave_out = self.options.unsupported == Unsupported::Warn;
        let left_out = self
            .policy
            .rules(from)
            .check(&mut image, &self.facts, self.accepts.is_some(), leave_out)
            .map_err(|denied| denied.to_string())?;
        if let Some(accepts) = &self.accepts {
            let layers = &image.layers;
            accepts(&Offered { flow, from, layers })?;
        }
        self.admission.check_descriptors()?;
        self.check_free(flow)?;
        Ok((image, left_out))
    }

    /// Refuses a connection that lives here: locking its packets would silence it.
    fn check_free(&self, flow: FourTuple) -> Result<(), String> {
        let failed = |error| format!("connections of this host: {error}");
        let sockets = self.sockets().map_err(failed)?;
        let found = sockets.occupant(flow.local(), flow.remote());
        match found.map_err(failed)? {
            None => Ok(()),
            // It gives way.
            Some(found) if found.state == State::TimeWait => Ok(()),
            Some(found) => Err(format!("{flow}: {found}")),
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
    fn freshen(&self) {
        self.facts.freshen();
        // Whoever needs it is told of the error.
        let _ = self.sockets().map(Lookup::freshen);
    }

    fn build(&self, id: HandoverId, image: Image, from: &Arc<str>) -> Result<Prepared, String> {
        let Options {
            lease, unsupported, ..
        } = self.options;
        let prepared = Prepared::build_with(image, &*self.locker, lease, unsupported)
            .map_err(|error| error.to_string())?;
        let about = About {
            role: Role::Target,
            flow: prepared.flow(),
            host: from.to_string(),
            address: None,
        };
        match self.journal.begin(id, &about) {
            Ok(()) => Ok(prepared),
            Err(error) => Err(format!("journal: {error}")),
        }
    }

    /// Discards what was built if COMMIT does not come in time, whatever the link does.
    fn expire(self: &Arc<Self>, id: HandoverId) {
        let host = Arc::downgrade(self);
        let commit_within = self.options.commit_within;
        let expiring = async move {
            sleep(commit_within).await;
            if let Some(host) = host.upgrade() {
                host.event(id, TargetEvent::Deadline).await;
            }
        };
        tokio::spawn(expiring.instrument(spans::target_of(id)));
    }

    /// Whether what is done for each connection can wait, whatever its state. If not, what can be done at once is done on the
    /// task that serves the exchange.
    fn waits(&self) -> bool {
        self.locker.abilities().waits || self.journal.waits()
    }

    /// ABORT, if it comes from the host that offered the connection.
    async fn abort(self: &Arc<Self>, id: HandoverId, from: &Arc<str>) {
        self.event_from(id, TargetEvent::Abort, Some(from)).await;
    }

    async fn event(self: &Arc<Self>, id: HandoverId, event: TargetEvent) {
        self.event_from(id, event, None).await;
    }

    async fn event_from(
        self: &Arc<Self>,
        id: HandoverId,
        event: TargetEvent,
        from: Option<&Arc<str>>,
    ) {
        let Some(slot) = self.handovers.get(id) else {
            return;
        };
        if !self.waits()
            && let Some(slot) = try_lock(&slot)
        {
            return self.happen(id, slot, event, from);
        }
        let (host, from) = (self.clone(), from.cloned());
        let happening = move || host.happen(id, lock(&slot), event, from.as_ref());
        self.worker.call(true, happening).await;
    }

    fn happen(
        &self,
        id: HandoverId,
        mut slot: MutexGuard<'_, Slot>,
        event: TargetEvent,
        from: Option<&Arc<str>>,
    ) {
        if let Some(from) = from
            && slot.from != *from
        {
            return is_not_its(id, from, "ABORT");
        }
        let gives_up = matches!(event, TargetEvent::Abort | TargetEvent::Deadline);
        let moved_on = gives_up && slot.has_moved_on();
        let ends = if moved_on {
            TargetEvent::MovedOn
        } else {
            event
        };
        if slot.machine.handle(ends) == TargetAction::Discard {
            slot.discard();
            if moved_on {
                warn!(%id, "{}", RestoreError::MovedOn);
            }
            // What may have lived is lost for the process after this one as well.
            self.note_end(id, [Note::Aborted, Note::Activating][usize::from(moved_on)]);
            slot.reason = match event {
                _ if moved_on => RestoreError::MovedOn.to_string(),
                TargetEvent::Deadline => "COMMIT did not come in time".to_owned(),
                _ => "the source gave it up".to_owned(),
            };
            info!(%id, reason = slot.reason, "a built connection was discarded");
            self.handovers.ended(id, &slot.from);
        }
        if event == TargetEvent::Abort {
            slot.unlock();
        }
    }

    /// Answers COMMIT.
    async fn commit(
        self: &Arc<Self>,
        id: HandoverId,
        packets: Vec<Bytes>,
        from: &Arc<str>,
    ) -> (Message, Option<Box<Restored>>) {
        let Some(slot) = self.handovers.get(id) else {
            return (self.recalled(id, from), None);
        };
        // Nothing is slow between freeze and activation: what waits for nothing is not handed to another thread.
        if !self.waits()
            && let Some(mut slot) = try_lock(&slot)
            && slot.is_ready(&packets, from)
        {
            return self.commit_slot(id, &mut slot, &packets, from);
        }
        let (host, from) = (self.clone(), from.clone());
        let committing = move || host.commit_slot(id, &mut lock(&slot), &packets, &from);
        self.worker.call(true, committing).await
    }

    /// Activates what was built, the first time.
    fn commit_slot(
        &self,
        id: HandoverId,
        slot: &mut Slot,
        packets: &[Bytes],
        from: &Arc<str>,
    ) -> (Message, Option<Box<Restored>>) {
        if slot.from != *from {
            is_not_its(id, from, "COMMIT");
            return (Message::Unknown { id }, None);
        }
        let mut restored = None;
        let mut action = slot.machine.handle(TargetEvent::Commit);
        if action == TargetAction::Activate {
            let event = self.activate(id, slot, packets, &mut restored);
            action = slot.machine.handle(event);
            self.handovers.ended(id, &slot.from);
        }
        let answer = match action {
            TargetAction::SayActive => Message::Active {
                id,
                activate_us: slot.activate_us,
            },
            TargetAction::SayLost => Message::Lost {
                id,
                reason: slot.reason.clone(),
            },
            _ => Message::Aborted {
                id,
                reason: slot.reason.clone(),
            },
        };
        (answer, restored)
    }

    /// What a process before this one has done.
    fn recalled(&self, id: HandoverId, from: &Arc<str>) -> Message {
        let offered_by = self.journal.offered_by(id);
        if offered_by.is_some_and(|host| host != **from) {
            is_not_its(id, from, "COMMIT");
            return Message::Unknown { id };
        }
        let mut machine = match self.journal.recall(id) {
            None => return Message::Unknown { id },
            Some(Note::Activating | Note::Active) => Target::died(),
            Some(_) => Target::never_active(),
        };
        let reason = "the process that had it has ended since".to_owned();
        match machine.handle(TargetEvent::Commit) {
            TargetAction::SayLost => Message::Lost { id, reason },
            _ => Message::Aborted { id, reason },
        }
    }

    fn activate(
        &self,
        id: HandoverId,
        slot: &mut Slot,
        packets: &[Bytes],
        restored: &mut Option<Box<Restored>>,
    ) -> TargetEvent {
        let begin = Instant::now();
        let hindered = if self.arrived.is_closed() {
            Some("the application takes no more connections".to_owned())
        } else {
            let noted = self.journal.note(id, Note::Activating);
            noted.err().map(|error| format!("journal: {error}"))
        };
        if let Some(reason) = hindered {
            return self.not_activated(id, slot, reason);
        }
        let Some(prepared) = slot.prepared.take() else {
            return TargetEvent::NotActivated;
        };
        let arrived = packets.iter().map(|packet| &packet[..]);
        let flow = prepared.flow();
        match prepared.activate_with(arrived) {
            Ok(live) => {
                slot.activate_us = micros(begin);
                *restored = Some(Box::new(live));
                slot.permit = None;
                TargetEvent::Activated
            }
            Err(failed) => {
                let NotActivated {
                    error,
                    lock,
                    moved_on,
                } = *failed;
                slot.reason = error.to_string();
                // Until ABORT comes, as after any other end.
                slot.lock = lock.or_else(|| {
                    let again = self.locker.lock(&[flow], self.options.lease);
                    again
                        .inspect_err(|error| warn!(%id, "not locked again: {error}"))
                        .ok()
                });
                if slot.lock.is_none() {
                    slot.permit = None;
                }
                if moved_on {
                    // The journal says so already.
                    return TargetEvent::MovedOn;
                }
                self.note_end(id, Note::Aborted);
                TargetEvent::NotActivated
            }
        }
    }

    /// Gives up what is not to live, for a reason that has nothing to do with it.
    fn not_activated(&self, id: HandoverId, slot: &mut Slot, reason: String) -> TargetEvent {
        let moved_on = slot.has_moved_on();
        slot.discard();
        slot.reason = reason;
        if moved_on {
            self.note_end(id, Note::Activating);
            return TargetEvent::MovedOn;
        }
        self.note_end(id, Note::Aborted);
        TargetEvent::NotActivated
    }

    fn note_end(&self, id: HandoverId, note: Note) {
        if let Err(error) = self.journal.note(id, note) {
            warn!(%id, ?note, "the journal does not have the end of a handover: {error}");
        }
    }

    /// Hands a connection to the application.
    fn deliver(&self, mut restored: Restored, from: &str) {
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
            not_set: restored.not_set,
            from: from.to_owned(),
        };
        if self.arrived.send(arrived).is_err() {
            warn!("a connection arrived after the application stopped: it is closed");
        }
    }
}
