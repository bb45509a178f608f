//! One handover of the source, step by step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_format::Layer;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::Report;
use super::doubt::{Doubt, Open};
use super::journal::{Decision, Note};
use super::report::micros;
use super::source::{Destination, Ending, Mover, Outcome, Reason, thaw};
use super::unclaimed::Claim;
use tcpmig_lock::Packet;

use crate::capture::{CaptureError, Frozen};
use crate::handover::{Decoder, Fate, HandoverId, Message, Source, SourceAction, SourceEvent};
use crate::steer::Steering;
use tcpmig_transport::Exchange;

/// What the state machine decided in the end.
pub(super) enum Decided {
    Moved,
    Keep(Reason),
    Lost(String),
    Doubt,
}

/// One handover under way.
///
/// It owns all that it works on, so that it can go to a thread that may wait and come back, see [`Run::away`].
pub(super) struct Run {
    mover: Mover,
    to: Arc<Destination>,
    // Taken out at the end; dropped with a committed machine it must not thaw.
    frozen: Option<Frozen>,
    machine: Source,
    id: HandoverId,
    layers: Vec<Layer>,
    pub(super) exchange: Option<Exchange>,
    decoder: Decoder,
    reason: Option<Reason>,
    /// How the target lost it.
    lost: String,
    /// What arrived here while the connection stood still.
    packets: Vec<Bytes>,
    /// The connection goes on here, which the target has not heard yet.
    owes_abort: bool,
}

impl Run {
    pub(super) fn new(
        mover: Mover,
        to: Arc<Destination>,
        frozen: Frozen,
        machine: Source,
        id: HandoverId,
        layers: Vec<Layer>,
        exchange: Option<Exchange>,
    ) -> Self {
        Self {
            mover,
            to,
            frozen: Some(frozen),
            machine,
            id,
            layers,
            exchange,
            decoder: Decoder::default(),
            reason: None,
            lost: String::new(),
            packets: Vec::new(),
            owes_abort: false,
        }
    }

    /// Does something that can wait with all of it on a thread of the worker. If the future is dropped meanwhile, it is
    /// done to its end, and then this is dropped.
    async fn away<T: Send + 'static>(
        &mut self,
        waits: bool,
        job: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> T {
        if !waits {
            return job(self);
        }
        let worker = self.mover.worker.clone();
        let mut run = Box::new(self.take());
        let working = worker.call(waits, move || {
            let result = job(&mut run);
            (run, result)
        });
        let (run, result) = working.await;
        *self = *run;
        result
    }

    /// All that there is; what stays does nothing when it is dropped.
    fn take(&mut self) -> Self {
        let rest = Self {
            mover: self.mover.clone(),
            to: self.to.clone(),
            frozen: None,
            machine: self.machine.clone(),
            id: self.id,
            layers: Vec::new(),
            exchange: None,
            decoder: Decoder::default(),
            reason: None,
            lost: String::new(),
            packets: Vec::new(),
            owes_abort: false,
        };
        std::mem::replace(self, rest)
    }

    pub(super) async fn offer(
        &mut self,
        image: Bytes,
        steering: Box<dyn Steering>,
        report: &mut Report,
    ) -> Decided {
        let offering = Instant::now();
        let mut steering = Some(steering);
        let within = self.mover.options.prepared_within;
        let id = self.id;
        // A target that does not read stops the sending of a large image as well.
        let mut event = match timeout(within, self.send(Message::Offer { id, image })).await {
            Ok(Ok(())) => {
                let left = within.saturating_sub(offering.elapsed());
                self.receive(left, report).await
            }
            Ok(Err(event)) => event,
            Err(_) => SourceEvent::Deadline,
        };
        if event == SourceEvent::Deadline {
            self.reason = Some(Reason::TooLate(within));
        }
        loop {
            match self.machine.handle(event) {
                SourceAction::Confirm => {
                    report.transfer_us = micros(offering).saturating_sub(report.rebuild_us);
                    let steered = Instant::now();
                    let steering = steering.take();
                    let waits = self.to.steer.waits() || self.mover.waits();
                    event = self.away(waits, move |run| run.confirm(steering)).await;
                    report.steer_us = micros(steered);
                    report.captured_packets = self.packets.len() as u64;
                }
                SourceAction::Commit => {
                    let committing = Instant::now();
                    let decided = self.commit(report).await;
                    report.commit_us = micros(committing);
                    return decided;
                }
                SourceAction::Keep => return self.give_back(),
                // Before COMMIT the machine answers with nothing else.
                action => {
                    debug!(?action, "no action before COMMIT");
                    event = SourceEvent::LinkLost;
                }
            }
        }
    }

    /// Steers the connection's packets and reads its numbers again.
    fn confirm(&mut self, steering: Option<Box<dyn Steering>>) -> SourceEvent {
        let (Some(frozen), Some(steering)) = (&mut self.frozen, steering) else {
            return SourceEvent::NotConfirmed;
        };
        let confirmed = steering
            .steer(frozen)
            .map_err(Reason::from)
            // A packet can have passed the lock's beginning until now.
            .and_then(|()| frozen.confirm().map_err(Reason::from))
            .and_then(|()| frozen.captured().map_err(|e| CaptureError::from(e).into()))
            // Last: what is noted as committing is committed, or a process after this one could do it.
            .and_then(|packets| {
                let noted = self.mover.journal.note(self.id, Note::Committing);
                noted.map(|()| packets).map_err(Reason::Journal)
            });
        match confirmed {
            Ok(packets) => {
                let octets = |packet: &Packet| Bytes::copy_from_slice(&packet.octets);
                self.packets = packets.iter().map(octets).collect();
                SourceEvent::Confirmed
            }
            Err(reason) => {
                self.reason = Some(reason);
                SourceEvent::NotConfirmed
            }
        }
    }

    /// Sends COMMIT, and again until it is answered or the time for asking is over.
    async fn commit(&mut self, report: &mut Report) -> Decided {
        let within = self.mover.options.answer_within;
        let event = match self.send_commit().await {
            Ok(()) => self.receive(within, report).await,
            Err(event) => event,
        };
        match self.decide(event) {
            Some(decided) => decided,
            None => self.ask().await,
        }
    }

    pub(super) async fn ask(&mut self) -> Decided {
        let options = self.mover.options.clone();
        let until = tokio::time::Instant::now() + options.ask_for;
        let mut pause = Duration::from_millis(10);
        let mut unreported = Report::default();
        while tokio::time::Instant::now() < until {
            if let Some(decision) = self.decided_by_hand().await {
                return self.by_hand(decision).await;
            }
            self.decoder = Decoder::default();
            let asked = match timeout_at(until, self.mover.open(&self.to)).await {
                Ok(Ok(exchange)) => {
                    self.exchange = Some(exchange);
                    self.send_commit().await
                }
                Ok(Err(error)) => {
                    debug!(%error, "asking again failed");
                    Err(SourceEvent::LinkLost)
                }
                Err(_) => Err(SourceEvent::Deadline),
            };
            let event = match asked {
                Ok(()) => self.receive(options.answer_within, &mut unreported).await,
                Err(event) => event,
            };
            if let Some(decided) = self.decide(event) {
                return decided;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        match self.decide(SourceEvent::GiveUp) {
            Some(decided) => decided,
            None => Decided::Doubt,
        }
    }

    async fn decided_by_hand(&self) -> Option<Decision> {
        let (journal, id) = (self.mover.journal.clone(), self.id);
        let waits = journal.waits();
        let looking = move || journal.decided(id);
        self.mover.worker.call(waits, looking).await
    }

    /// What a person says who knows more than the hosts.
    pub(super) async fn by_hand(&mut self, decision: Decision) -> Decided {
        warn!(id = %self.id, ?decision, "a handover in doubt is settled by hand, without the word of its target");
        match decision {
            Decision::Kept => {
                // For the ABORT afterwards, by which a target that has not activated it gives it up.
                let opening = self.mover.open(&self.to);
                let opened = timeout(self.mover.options.answer_within, opening).await;
                self.exchange = opened.ok().and_then(Result::ok);
                Decided::Keep(Reason::Settled)
            }
            Decision::Moved => Decided::Moved,
            Decision::Lost => Decided::Lost("it was settled by hand".to_owned()),
        }
    }

    /// `None` if the target has to be asked again.
    fn decide(&mut self, event: SourceEvent) -> Option<Decided> {
        match self.machine.handle(event) {
            SourceAction::Discard if self.machine.fate() == Some(Fate::Lost) => {
                Some(Decided::Lost(std::mem::take(&mut self.lost)))
            }
            SourceAction::Discard => Some(Decided::Moved),
            SourceAction::Keep => Some(self.give_back()),
            SourceAction::Doubt => Some(Decided::Doubt),
            _ => None,
        }
    }

    fn give_back(&mut self) -> Decided {
        Decided::Keep(self.reason.take().unwrap_or(Reason::Closed))
    }

    pub(super) async fn finish(mut self: Box<Self>, decided: Decided) -> Ending {
        // A thaw can wait for the peer.
        let waits = matches!(decided, Decided::Keep(_)) || self.mover.waits();
        let claim = self.away(waits, move |run| run.end(decided)).await;
        if self.owes_abort {
            // Only now: the target unlocks, and answers packets that are still steered to it
            // with RST. It notices the end of the exchange as well.
            let id = self.id;
            let within = self.mover.options.answer_within;
            let _ = timeout(within, self.send(Message::Abort { id })).await;
            self.owes_abort = false;
        }
        claim.take().ending
    }

    /// Where the connection is from here on.
    fn end(&mut self, decided: Decided) -> Claim {
        // INVARIANT: it is taken at the end of each path, and by whoever has it when nobody waits any longer.
        let mut frozen = self.frozen.take().expect("a handover ends once");
        let flow = frozen.flow();
        let ending = match decided {
            Decided::Moved => {
                frozen.make_sure(&*self.mover.locker);
                if let Err(error) = frozen.discard() {
                    warn!("the moved connection was closed here, but {error}");
                }
                self.mover.note_end(self.id, Fate::Moved);
                Ending::Moved
            }
            Decided::Keep(reason) => {
                let socket = thaw(frozen);
                self.owes_abort = true;
                Ending::Kept {
                    socket,
                    layers: std::mem::take(&mut self.layers),
                    reason,
                }
            }
            Decided::Lost(reason) => {
                if let Err(error) = frozen.discard() {
                    warn!("the lost connection was closed here, but {error}");
                }
                self.mover.end_redirect(flow);
                self.mover.note_end(self.id, Fate::Lost);
                Ending::Lost(reason)
            }
            Decided::Doubt => self.doubt(frozen),
        };
        let kept = matches!(ending, Ending::Kept { .. });
        let outcome = Outcome {
            flow: Some(flow),
            ending,
            report: Report::default(),
        };
        let claim = Claim::new(&self.mover, outcome);
        if kept {
            self.mover.note_end(self.id, Fate::Kept);
        }
        claim
    }

    fn doubt(&mut self, frozen: Frozen) -> Ending {
        let Destination { address, name, .. } = &*self.to;
        self.mover
            .say_in_doubt(self.id, frozen.flow(), name, Some(*address));
        let open = Open {
            frozen,
            machine: self.machine.clone(),
            id: self.id,
            layers: std::mem::take(&mut self.layers),
        };
        Ending::InDoubt(Box::new(Doubt::new(open, &self.mover, self.to.clone())))
    }

    /// For a future that nobody polls any more: before COMMIT the connection goes on here, and after it is in doubt.
    fn give_up(mut self) {
        let decided = if self.machine.has_committed() {
            Decided::Doubt
        } else {
            Decided::Keep(Reason::Cancelled)
        };
        // Dropped it is among those that nobody has claimed.
        drop(self.end(decided));
    }

    /// As at the end of [`Run::finish`], for a future that nobody polls any more.
    fn say_abort(&mut self) {
        let (Some(mut exchange), Ok(runtime)) = (self.exchange.take(), Handle::try_current())
        else {
            return;
        };
        let id = self.id;
        let within = self.mover.options.answer_within;
        runtime.spawn(async move {
            let (frame, _) = Message::Abort { id }.encode();
            let _ = timeout(within, exchange.send(frame)).await;
        });
    }

    async fn send_commit(&mut self) -> Result<(), SourceEvent> {
        let (id, packets) = (self.id, self.packets.clone());
        let within = self.mover.options.answer_within;
        // A target that does not read must not hold it.
        timeout(within, self.send(Message::Commit { id, packets }))
            .await
            .unwrap_or(Err(SourceEvent::Deadline))
    }

    async fn send(&mut self, message: Message) -> Result<(), SourceEvent> {
        let Some(exchange) = &mut self.exchange else {
            return Err(SourceEvent::LinkLost);
        };
        let (first, second) = message.encode();
        for frame in [Some(first), second].into_iter().flatten() {
            if let Err(error) = exchange.send(frame).await {
                self.reason = Some(error.into());
                return Err(SourceEvent::LinkLost);
            }
        }
        Ok(())
    }

    async fn receive(&mut self, within: Duration, report: &mut Report) -> SourceEvent {
        let deadline = tokio::time::Instant::now() + within;
        let Some(exchange) = &mut self.exchange else {
            return SourceEvent::LinkLost;
        };
        loop {
            let frame = match timeout_at(deadline, exchange.recv()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => {
                    self.reason = Some(Reason::Closed);
                    return SourceEvent::LinkLost;
                }
                Ok(Err(error)) => {
                    self.reason = Some(error.into());
                    return SourceEvent::LinkLost;
                }
                Err(_) => {
                    self.reason = Some(Reason::TooLate(within));
                    return SourceEvent::Deadline;
                }
            };
            let message = match self.decoder.frame(frame) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(error) => {
                    self.reason = Some(error.into());
                    return SourceEvent::LinkLost;
                }
            };
            if let Message::Hello { oldest, newest } = message {
                self.reason = Some(Reason::Version { oldest, newest });
                return SourceEvent::LinkLost;
            }
            if message.id() != Some(self.id) {
                self.reason = Some(Reason::Unexpected("a message of another handover"));
                return SourceEvent::LinkLost;
            }
            // They answer COMMIT. Before it they are why the connection is kept, and after it no
            // reason is asked for.
            if matches!(
                message,
                Message::Active { .. } | Message::Unknown { .. } | Message::Lost { .. }
            ) {
                self.reason = Some(Reason::Unexpected(message.name()));
            }
            return match message {
                Message::Prepared { rebuild_us, .. } => {
                    report.rebuild_us = rebuild_us.into();
                    SourceEvent::Prepared
                }
                Message::Refused { reason, .. } => {
                    self.reason = Some(Reason::Refused(reason));
                    SourceEvent::Refused
                }
                Message::Active { activate_us, .. } => {
                    report.activate_us = activate_us.into();
                    SourceEvent::Active
                }
                Message::Aborted { reason, .. } => {
                    self.reason = Some(Reason::Aborted(reason));
                    SourceEvent::Aborted
                }
                Message::Lost { reason, .. } => {
                    self.lost = reason;
                    SourceEvent::Lost
                }
                Message::Unknown { .. } => SourceEvent::Unknown,
                other @ (Message::Hello { .. }
                | Message::Offer { .. }
                | Message::Commit { .. }
                | Message::Abort { .. }) => {
                    self.reason = Some(Reason::Unexpected(other.name()));
                    SourceEvent::LinkLost
                }
            };
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Only when a future is dropped half-way.
        if self.frozen.is_some() {
            let run = self.take();
            self.mover.worker.leave(true, move || run.give_up());
        } else if self.owes_abort {
            self.say_abort();
        }
    }
}
