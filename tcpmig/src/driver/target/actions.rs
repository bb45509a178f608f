//! What a target does with the connection itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::{FourTuple, Image, Limits};
use tcpmig_lock::{Locker, conntrack};
use tcpmig_sys::info::State;
use tcpmig_sys::sockets::Lookup;
use tracing::{info, warn};

use super::{Action, Examined, Host};
use crate::draft;
use crate::driver::Options;
use crate::driver::arrival::{Arrived, Offered};
use crate::driver::journal::{HandoverInfo, Note, Role};
use crate::driver::mutex::{lock, try_lock};
use crate::driver::slot::{SharedSlot, Slot};
use crate::driver::together::Locked;
use crate::handover::{Code, HandoverId, Refusal, TargetResult};
use crate::hold::{Keep, every};
use crate::options::{self, Unsupported};
use crate::restore::{Activated, NotActivated, Prepared, RestoreError, StandIn};

impl Host {
    pub(super) fn work(&self, id: HandoverId, action: Action) -> TargetResult {
        match action {
            Action::Examine { from, draft } => match self.examine(&from, draft) {
                Ok(examined) => self.examined(id, &from, examined, None),
                Err(refusal) => TargetResult::Failed(refusal),
            },
            Action::Lock => locked(self.lock(id)),
            Action::Build { .. } => match self.build(id) {
                Ok(()) => TargetResult::Done,
                Err(error) => TargetResult::Failed(refusal(&error)),
            },
            Action::Note(note) => self.note(id, note),
            Action::Activate { packets } => self.activate(id, &packets),
            Action::Discard { reason } => self.discard(id, &reason),
            Action::Unlock => {
                self.forget_slot(id, Slot::unlock);
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
    pub(super) fn examine(&self, from: &Arc<str>, draft: Bytes) -> Result<Examined, Refusal> {
        let mut image = Image::decode_shared(draft.into(), &Limits::default())
            .map_err(|error| Refusal::new(Code::Image, format!("image: {error}")))?;
        if image.listener().is_some() {
            return Err(refusal(&RestoreError::Listener));
        }
        let Some(ip) = image.ip() else {
            return Err(refusal(&RestoreError::Layer("IP")));
        };
        if image.tcp().is_none() {
            return Err(refusal(&RestoreError::Layer("TCP")));
        }
        let flow = ip.flow;
        let leave_out = self.options.unsupported == Unsupported::Warn;
        let is_asked = self.accepts.is_some() || self.accepts_async.is_some();
        let policy = self.policy();
        let left_out = policy
            .rules(from)
            .check(&mut image, &self.facts, is_asked, leave_out)
            .map_err(|denied| Refusal::new(denied.code(), denied.to_string()))?;
        if let Some(accepts) = &self.accepts {
            let layers = &image.layers;
            accepts(&Offered { flow, from, layers })?;
        }
        self.descriptors.check()?;
        self.check_free(flow)?;
        Ok((flow, image, left_out))
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
            Some(_) if self.is_coming(flow) => Err(Refusal::other(format!(
                "{flow} is locked: another handover brings it here"
            ))),
            Some(found) => Err(Refusal::other(format!("{flow}: {found}"))),
        }
    }

    /// Whether what is found of it is what stands in for it.
    fn is_coming(&self, flow: FourTuple) -> bool {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        // What is being worked on is not waited for: this decides about words only.
        let mut free = slots.iter().filter_map(|slot| try_lock(slot));
        free.any(|slot| slot.is_coming(flow))
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
    pub(in crate::driver) fn freshen(self: &Arc<Self>) {
        let host = self.clone();
        self.worker.leave(false, move || host.freshen_here());
    }

    fn freshen_here(&self) {
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

    /// Locks what was examined, unless its packets are redirected from here to where it lives. For how long it is locked if nobody renews
    /// that.
    fn lock(&self, id: HandoverId) -> Result<Duration, RestoreError> {
        match self.to_lock(id)? {
            Some((slot, flow)) => self.locked(slot, self.locks.lock_now(flow)),
            None => Ok(Duration::ZERO),
        }
    }

    /// The same along with others.
    pub(super) async fn lock_together(&self, id: HandoverId) -> TargetResult {
        let locking = async {
            match self.to_lock(id)? {
                Some((slot, flow)) => self.locked(slot, self.locks.lock(flow).await),
                None => Ok(Duration::ZERO),
            }
        };
        locked(locking.await)
    }

    fn to_lock(&self, id: HandoverId) -> Result<Option<(SharedSlot, FourTuple)>, RestoreError> {
        let Some(slot) = self.slot(id) else {
            return Ok(None);
        };
        let flow = lock(&slot).flow;
        let is_redirected = self.locker.redirects(&flow)?;
        Ok((!is_redirected).then_some((slot, flow)))
    }

    fn locked(&self, slot: SharedSlot, locked: Locked) -> Result<Duration, RestoreError> {
        let guard = locked.guard?;
        {
            let mut slot = lock(&slot);
            slot.lock = Some(guard);
            slot.stand_in();
        }
        self.keep(slot);
        let lease = self.options.lease;
        // Whenever the process ends, it was renewed this long before.
        Ok(lease.saturating_sub(every(lease)))
    }

    /// Renews its lock until it has none.
    fn keep(&self, slot: SharedSlot) {
        let slot: Arc<dyn Keep> = slot;
        self.keeper
            .keep((Arc::downgrade(&slot), every(self.options.lease)));
    }

    /// Makes the whole image of the draft and what has come.
    pub(super) fn complete(&self, id: HandoverId, image: Bytes) {
        let Some(slot) = self.slot(id) else {
            return;
        };
        let rest = Image::decode_shared(image.into(), &Limits::default());
        let mut slot = lock(&slot);
        slot.image = Some(Box::new(match rest {
            Ok(rest) => slot
                .draft
                .take()
                .and_then(|draft| draft::complete(*draft, rest))
                .ok_or(RestoreError::Layer("TCP")),
            Err(error) => Err(RestoreError::Image(error)),
        }));
    }

    fn build(&self, id: HandoverId) -> Result<(), RestoreError> {
        let Some(slot) = self.slot(id) else {
            return Ok(());
        };
        let mut building = lock(&slot);
        let Some(image) = building.image.take() else {
            return Ok(());
        };
        let image = (*image)?;
        let Options {
            lease, unsupported, ..
        } = self.options;
        let early = building.lock.take();
        let is_kept = early.is_some();
        let guard = match early {
            Some(guard) => guard,
            None => self.locker.lock(&[building.flow], lease)?,
        };
        let stand_in = building.stand_in.take();
        let aside = stand_in.and_then(StandIn::step_aside);
        let since = building.since;
        let built = match Prepared::build_since(since, image, guard, lease, unsupported) {
            Ok(mut prepared) => {
                prepared.leave_out(std::mem::take(&mut building.left_out));
                building.prepared = Some(Box::new(prepared));
                Ok(())
            }
            Err(not_built) => {
                // Its packets may be steered here until its source is told.
                building.lock = Some(not_built.lock);
                building.stand_in = aside;
                Err(not_built.error)
            }
        };
        drop(building);
        if !is_kept {
            self.keep(slot);
        }
        built
    }

    fn note(&self, id: HandoverId, note: Note) -> TargetResult {
        let noted = if note.is_first() {
            let slot = self.slot(id);
            let about = slot.map(|slot| {
                let slot = lock(&slot);
                HandoverInfo {
                    role: Role::Target,
                    flow: slot.flow,
                    host: slot.from.to_string(),
                    address: None,
                }
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
        let activated = prepared.activate_with(arrived);
        self.activated(id, &mut slot, activated)
    }

    /// Activates those that wait for nothing, and unlocks them in one step; `None` of the others, which are as they were.
    pub(super) fn activate_each(
        &self,
        all: &[(HandoverId, Vec<Bytes>)],
    ) -> Vec<Option<TargetResult>> {
        let slots: Vec<_> = all.iter().map(|(id, _)| self.slot(*id)).collect();
        let mut going = Vec::with_capacity(all.len());
        let mut built = Vec::with_capacity(all.len());
        for (index, (slot, (_, packets))) in slots.iter().zip(all).enumerate() {
            // What is renewed just now has a turn of its own.
            let slot = slot.as_deref().and_then(try_lock);
            if let Some(mut slot) = slot
                && !self.arrived.is_closed()
                && slot.is_ready(packets)
                && let Some(prepared) = slot.prepared.take()
            {
                built.push((*prepared, packets.iter().map(|packet| &packet[..])));
                going.push((index, slot));
            }
        }
        let mut results: Vec<_> = all.iter().map(|_| None).collect();
        for ((index, mut slot), activated) in going.into_iter().zip(Prepared::activate_each(built))
        {
            results[index] = Some(self.activated(all[index].0, &mut slot, activated));
        }
        results
    }

    fn activated(
        &self,
        id: HandoverId,
        slot: &mut Slot,
        activated: Result<Activated, Box<NotActivated>>,
    ) -> TargetResult {
        match activated {
            Ok(live) => {
                slot.activated = Some(Box::new(live));
                TargetResult::Done
            }
            Err(failed) => {
                let NotActivated {
                    error,
                    lock,
                    moved_on,
                } = *failed;
                // Until ABORT comes, as after any other end.
                let flow = slot.flow;
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
            let live = slot.activated.take();
            delivered = live.map(|live| (live, slot.from.clone(), ready));
        });
        let Some((activated, from, ready)) = delivered else {
            return;
        };
        let restored = activated.write();
        info!(flow = %restored.flow, "a connection arrived");
        for option in &restored.not_set {
            warn!(flow = %restored.flow, %option, "a connection arrived without an option");
        }
        let arrived = Arrived {
            id,
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

fn locked(locked: Result<Duration, RestoreError>) -> TargetResult {
    match locked {
        Ok(lasts) => TargetResult::Locked(lasts),
        Err(error) => TargetResult::Failed(refusal(&error)),
    }
}

/// What a source is told of it.
fn refusal(error: &RestoreError) -> Refusal {
    let code = match error {
        RestoreError::Layer(_)
        | RestoreError::Listener
        | RestoreError::State(_)
        | RestoreError::Image(_) => Code::Image,
        RestoreError::InjectMark => Code::Policy,
        RestoreError::Option(_) => Code::Option,
        _ => Code::Other,
    };
    Refusal::new(code, error.to_string())
}
