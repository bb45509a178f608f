//! One handover of the source: performs what [`SourceSession`] decides.

mod actions;
mod preparing;

use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpmig_format::{FourTuple, Layer};
use tcpmig_lock::LockError;
use tcpmig_transport::{Exchange, TransportError};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, info, warn};

use super::Report;
use super::doubt::InDoubt;
use super::journal::{Decision, Note};
use super::outcome::{Ending, Outcome, Reason};
use super::permits::Limits;
use super::report::since;
use super::source::{Connection, Destination, Mover};
use super::spans;
use super::together::{self, Locked};
use crate::capture::{Frozen, Plan};
use crate::handover::{
    Decoder, Fate, HandoverId, Message, SourceAction, SourceResult, SourceSession, Why,
};
use crate::steer::Steering;

type Session = SourceSession<Reason>;
type Result = SourceResult<Reason>;

/// One handover under way.
///
/// It owns all that it works on, so that it can go to a thread that may wait and come back, see [`Outgoing::aside`].
pub(super) struct Outgoing {
    pub(super) mover: Mover,
    to: Arc<Destination>,
    /// Decides.
    pub(super) session: Session,
    /// The session counts time from here.
    start: Instant,
    held: Held,
    layers: Vec<Layer>,
    /// Once it is known.
    flow: Option<FourTuple>,
    steering: Option<Box<dyn Steering>>,
    /// Its lock, if it was made along with others.
    locked: Option<Locked>,
    /// What became of its redirect, if it was made along with others.
    redirected: Option<std::result::Result<(), LockError>>,
    exchange: Option<Exchange>,
    decoder: Decoder,
    report: Report,
    times: Times,
    /// Somebody has to be told what becomes of the connection.
    is_owed: bool,
    /// Becomes true when the handover is to end early.
    cancelled: Option<watch::Receiver<bool>>,
    /// Why it cannot begin.
    hindered: Option<Reason>,
}

/// What this host has of the connection.
enum Held {
    /// It lives.
    Live(OwnedFd, Option<Plan>),
    Frozen(Frozen),
    Nothing,
}

/// When the phases of the report began.
#[derive(Default)]
struct Times {
    locking: Option<Instant>,
    offering: Option<Instant>,
    sending: Option<Instant>,
    steering: Option<Instant>,
    committing: Option<Instant>,
}

impl Outgoing {
    /// A connection that is to leave. Nothing is done about it yet.
    pub(super) fn new(
        mover: Mover,
        to: Arc<Destination>,
        Connection { socket, layers }: Connection,
        cancelled: watch::Receiver<bool>,
    ) -> Box<Self> {
        let id = HandoverId::random();
        let unnamed = || HandoverId::from_bytes([0; 16]);
        let name = id.as_ref().map_or_else(|_| unnamed(), |id| *id);
        let session = SourceSession::new(mover.options.source(), name);
        let mut outgoing = Self::bare(mover, to, session, None);
        outgoing.held = Held::Live(socket, None);
        outgoing.layers = layers;
        outgoing.is_owed = true;
        outgoing.cancelled = Some(cancelled);
        outgoing.hindered = id.err().map(Reason::Random);
        outgoing
    }

    /// A handover of a process before this one, which has nothing of the connection.
    pub(super) fn orphaned(
        mover: Mover,
        to: Destination,
        (id, note): (HandoverId, Note),
        flow: FourTuple,
        ask_for: Duration,
    ) -> Box<Self> {
        let session = SourceSession::orphaned(mover.options.source(), id, note, ask_for);
        Self::bare(mover, Arc::new(to), session, Some(flow))
    }

    fn bare(
        mover: Mover,
        to: Arc<Destination>,
        session: Session,
        flow: Option<FourTuple>,
    ) -> Box<Self> {
        Box::new(Self {
            mover,
            to,
            session,
            start: Instant::now(),
            held: Held::Nothing,
            layers: Vec::new(),
            flow,
            steering: None,
            locked: None,
            redirected: None,
            exchange: None,
            decoder: Decoder::default(),
            report: Report::default(),
            times: Times::default(),
            is_owed: false,
            cancelled: None,
            hindered: None,
        })
    }

    /// Goes on until the handover has ended.
    pub(super) async fn run(self: Box<Self>, limits: Option<&Limits>) -> Outcome {
        let span = spans::source(self.session.id(), &self.to.name);
        let running = async {
            let outcome = self.depart(limits).await;
            match &outcome.ending {
                Ending::Moved => info!("the connection lives on the target"),
                Ending::Kept { reason, .. } => info!(%reason, "the connection goes on here"),
                Ending::Lost(reason) => warn!(reason, "the connection is lost"),
                // It was said when it came to that.
                Ending::InDoubt(_) => {}
            }
            outcome
        };
        running.instrument(span).await
    }

    /// The same of one that was in doubt and is asked about, or settled.
    pub(super) async fn go_on(mut self: Box<Self>) -> Outcome {
        let span = spans::source(self.session.id(), &self.to.name);
        let going_on = async {
            self.end().await;
            self.outcome()
        };
        going_on.instrument(span).await
    }

    async fn depart(mut self: Box<Self>, limits: Option<&Limits>) -> Outcome {
        let cancelled = cancelled(self.cancelled.clone());
        let prepared = tokio::select! {
            biased;
            () = cancelled => Err(Reason::Cancelled),
            prepared = self.prepare(limits) => prepared,
        };
        // It has its permit until it has ended.
        let _permit = match prepared {
            Ok(permit) => permit,
            Err(reason) => return self.kept(reason),
        };
        self.end().await;
        self.outcome()
    }

    /// It was not begun, for this reason.
    fn kept(mut self: Box<Self>, reason: Reason) -> Outcome {
        self.is_owed = false;
        let Held::Live(socket, _) = std::mem::replace(&mut self.held, Held::Nothing) else {
            // INVARIANT: it is frozen by the session alone, which has not begun.
            unreachable!("a connection that is not begun lives")
        };
        Outcome {
            id: self.session.id(),
            flow: self.flow,
            ending: Ending::Kept {
                socket,
                layers: std::mem::take(&mut self.layers),
                reason,
            },
            report: Report::default(),
        }
    }

    /// Does what there is to do until nothing is left.
    pub(super) async fn end(&mut self) {
        loop {
            if self.cancelled.as_ref().is_some_and(|by| *by.borrow()) {
                self.cancel();
            }
            match self.session.poll() {
                Some(action) => self.perform(action).await,
                None if self.session.ended().is_some() => return,
                None => self.listen().await,
            }
        }
    }

    /// It ends early when this becomes true.
    pub(super) fn cancelled_by(&mut self, cancelled: watch::Receiver<bool>) {
        self.cancelled = Some(cancelled);
    }

    /// The target is asked again where the connection is.
    pub(super) fn ask(&mut self) {
        self.is_owed = true;
        self.session.ask(self.now());
    }

    /// Nobody is there to be asked.
    pub(super) fn ask_no_more(&mut self) {
        self.session.give_up(self.now(), Reason::Closed);
    }

    /// A person says where it is.
    pub(super) fn settle(&mut self, decision: Decision) {
        self.is_owed = true;
        self.warn_by_hand(decision);
        self.session.settle(self.now(), decision);
    }

    fn flow(&self) -> FourTuple {
        // INVARIANT: a session is polled only once the connection was looked at, or has it from the journal.
        self.flow.expect("it is known by now")
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Does something, and what follows as far as that is done together.
    async fn perform(&mut self, action: SourceAction) {
        let result = match action {
            SourceAction::Send(message) => {
                self.note_time(&message);
                self.in_time(async |run| run.send(message).await).await
            }
            SourceAction::Connect => {
                self.exchange = None;
                self.decoder = Decoder::default();
                self.in_time(async |run| {
                    run.exchange = Some(run.mover.open(&run.to).await?);
                    Ok(())
                })
                .await
            }
            SourceAction::Finish => self.in_time(Self::finish).await,
            SourceAction::Freeze if self.locks_together() => {
                self.locked = Some(self.mover.together.locks.lock(self.flow()).await);
                return self.do_aside(SourceAction::Freeze).await;
            }
            SourceAction::Confirm if self.redirects_together() => {
                self.redirect_together().await;
                return self.do_aside(SourceAction::Confirm).await;
            }
            action => return self.do_aside(action).await,
        };
        if let Some(result) = result {
            self.session.handle_result(self.now(), result);
        }
    }

    /// Does something that is about the link until its time is over; `None` if it is.
    async fn in_time(
        &mut self,
        doing: impl AsyncFnOnce(&mut Self) -> std::result::Result<(), Reason>,
    ) -> Option<Result> {
        // What tells the target of an end is not cut off by it.
        let cancelled = cancelled(self.cancelled.clone().filter(|_| !self.session.is_ending()));
        let late = late(self.time_left());
        // What is done at once needs no alarm.
        tokio::select! {
            biased;
            ended = doing(self) => return Some(done(ended)),
            () = late => self.session.handle_timeout(self.now()),
            () = cancelled => self.cancel(),
        }
        None
    }

    fn cancel(&mut self) {
        self.cancelled = None;
        self.session.cancel(self.now());
    }

    fn time_left(&self) -> Option<Duration> {
        let deadline = self.session.poll_timeout()?;
        Some(deadline.saturating_sub(self.now()))
    }

    /// Does what is about the connection, on another thread if it can wait; and what follows, as far as that is about it as well.
    async fn do_aside(&mut self, action: SourceAction) {
        if self.waits_for(&action) {
            self.aside(move |run| run.work_on(action, true)).await;
        } else {
            self.work_on(action, false);
        }
    }

    fn waits_for(&self, action: &SourceAction) -> bool {
        match action {
            SourceAction::LookUpDecision => {
                self.mover.journal.waits() || self.mover.worker.is_elsewhere()
            }
            // A thaw can wait for the peer.
            SourceAction::Keep => true,
            SourceAction::Confirm => self.to.steer.waits() || self.mover.waits(),
            _ => self.mover.waits(),
        }
    }

    /// Does something with all of it on a thread of the worker. If the future is dropped meanwhile, it is
    /// done to its end, and then this is dropped.
    async fn aside(&mut self, job: impl FnOnce(&mut Self) + Send + 'static) {
        let worker = self.mover.worker.clone();
        let mut run = self.take();
        let working = worker.call(true, move || {
            job(&mut run);
            run
        });
        *self = *working.await;
    }

    /// All that there is; what stays does nothing when it is dropped.
    fn take(&mut self) -> Box<Self> {
        let id = self.session.id();
        let session = SourceSession::new(self.mover.options.source(), id);
        let mut rest = Self::bare(self.mover.clone(), self.to.clone(), session, self.flow);
        std::mem::swap(self, &mut *rest);
        rest
    }

    /// Does something about the connection and what follows, until that is about the link, or could wait here.
    fn work_on(&mut self, action: SourceAction, may_wait: bool) {
        let mut next = Some(action);
        while let Some(action) = next {
            let result = self.work(&action);
            self.session.handle_result(self.now(), result);
            let goes_on = self
                .session
                .peek()
                .is_some_and(|next| !next.is_about_link() && (may_wait || !self.waits_for(next)));
            // What is polled counts as begun. Nobody may be left to send it.
            next = goes_on.then(|| self.session.poll()).flatten();
        }
    }

    async fn send(&mut self, message: Message) -> std::result::Result<(), Reason> {
        // It leaves with the link's own task, and is on its way while the rest is done. Who redirects along with others waits anyway.
        let lets_leave = matches!(message, Message::Image { .. }) && !self.redirects_together();
        let Some(exchange) = &mut self.exchange else {
            return Err(Reason::Closed);
        };
        match message.encode() {
            (first, Some(second)) => {
                exchange.queue(first)?;
                exchange.send(second).await?;
            }
            (only, None) => exchange.send(only).await?,
        }
        if lets_leave {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Whether its packets are locked in one step with those of others.
    fn locks_together(&self) -> bool {
        let is_alive = matches!(&self.held, Held::Live(_, Some(plan)) if !plan.has_ended());
        is_alive && !self.mover.waits() && self.mover.together.locks.help()
    }

    /// Whether they are redirected so.
    fn redirects_together(&self) -> bool {
        let steering = self.steering.as_ref();
        !self.to.steer.waits()
            && !self.mover.waits()
            && self.mover.together.locks.help()
            && steering.is_some_and(|steering| steering.redirects_to().is_some())
    }

    async fn redirect_together(&mut self) {
        let (Held::Frozen(frozen), Some(steering)) = (&self.held, &self.steering) else {
            return;
        };
        let Some((hop, lease)) = steering.redirects_to() else {
            return;
        };
        let item = (frozen.holding(), hop.clone(), lease);
        self.note_end_of_phase(&SourceAction::Confirm);
        let redirects = &self.mover.together.redirects;
        // If whoever was to do it has gone it is done alone.
        self.redirected = redirects.join(item, together::redirect_each).await.ok();
    }

    async fn finish(&mut self) -> std::result::Result<(), Reason> {
        let Some(exchange) = &mut self.exchange else {
            return Err(Reason::Closed);
        };
        exchange.finish().await?;
        // The target finishes its direction when it has come to the end of this one.
        exchange.recv().await?;
        Ok(())
    }

    /// Waits for what happens next, and hands it in.
    async fn listen(&mut self) {
        let left = self.time_left();
        let cancelled = cancelled(self.cancelled.clone());
        let receiving = async {
            let Some(exchange) = self.exchange.as_mut().filter(|_| self.session.listens()) else {
                return pending().await;
            };
            loop {
                let Some(frame) = exchange.recv().await? else {
                    return Err(Reason::Closed);
                };
                if let Some(message) = self.decoder.frame(frame)? {
                    return Ok(message);
                }
            }
        };
        let heard = tokio::select! {
            biased;
            heard = receiving => Some(heard),
            () = late(left) => None,
            () = cancelled => return self.cancel(),
        };
        let now = self.now();
        match heard {
            Some(Ok(message)) => self.session.handle_message(now, message),
            Some(Err(reason)) => self.session.handle_link_lost(now, reason),
            None => self.session.handle_timeout(now),
        }
    }

    fn note_time(&mut self, message: &Message) {
        match message {
            Message::Offer { .. } => self.times.offering = Some(Instant::now()),
            Message::Image { .. } => self.times.sending = Some(Instant::now()),
            Message::Commit { .. } if self.times.committing.is_none() => {
                self.report.steer = since(self.times.steering);
                self.times.committing = Some(Instant::now());
            }
            _ => {}
        }
    }

    /// What has become of it, once it has ended.
    pub(super) fn outcome(mut self: Box<Self>) -> Outcome {
        self.is_owed = false;
        // The target learns that nothing more comes over it, also while this is in doubt.
        self.exchange = None;
        self.cancelled = None;
        let (id, flow, report) = (self.session.id(), self.flow, self.report);
        let ending = match self.session.ended() {
            Some(Fate::InDoubt) => Ending::InDoubt(Box::new(InDoubt::new(self))),
            Some(Fate::Moved) => Ending::Moved,
            Some(Fate::Lost) => Ending::Lost(self.session.take_why().to_string()),
            Some(Fate::Kept) | None => match std::mem::replace(&mut self.held, Held::Nothing) {
                Held::Live(socket, _) => Ending::Kept {
                    socket,
                    layers: std::mem::take(&mut self.layers),
                    reason: self.session.take_why().into(),
                },
                // INVARIANT: what is kept was thawed, or never frozen.
                Held::Frozen(_) | Held::Nothing => unreachable!("a kept connection has a socket"),
            },
        };
        Outcome {
            id,
            flow,
            ending,
            report,
        }
    }

    /// For a future that nobody polls any more: before COMMIT the connection goes on here, and after it is in doubt.
    fn give_up(mut self: Box<Self>) {
        // Of what was under way nobody knows the end.
        self.session
            .handle_result(self.now(), Result::Failed(Reason::Cancelled));
        self.session.cancel(self.now());
        while let Some(action) = self.session.poll() {
            let result = match action {
                SourceAction::Send(message) => {
                    self.send_apart(message);
                    Result::Done
                }
                SourceAction::Connect | SourceAction::Finish => Result::Failed(Reason::Cancelled),
                action => self.work(&action),
            };
            self.session.handle_result(self.now(), result);
        }
        let is_gone = matches!(self.held, Held::Nothing);
        if is_gone && self.session.ended() == Some(Fate::Kept) {
            self.is_owed = false;
            return warn!("a call panicked, and the connection ended with it");
        }
        let unclaimed = self.mover.unclaimed.clone();
        unclaimed.put(self.outcome());
    }

    /// Sends it if there is a runtime that can.
    fn send_apart(&mut self, message: Message) {
        let (Some(mut exchange), Ok(runtime)) = (self.exchange.take(), Handle::try_current())
        else {
            return;
        };
        let within = self.mover.options.answer_within;
        runtime.spawn(async move {
            let (frame, _) = message.encode();
            let _ = timeout(within, exchange.send(frame)).await;
        });
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Only when its task panicked or its runtime ended.
        if self.is_owed {
            let run = self.take();
            self.mover.worker.leave(true, move || run.give_up());
        }
    }
}

/// When somebody cancels; never if nobody can.
async fn cancelled(by: Option<watch::Receiver<bool>>) {
    if let Some(mut by) = by
        && by.wait_for(|is_cancelled| *is_cancelled).await.is_ok()
    {
        return;
    }
    pending::<()>().await;
}

/// After this time, or never.
async fn late(left: Option<Duration>) {
    match left {
        Some(left) => sleep(left).await,
        None => pending().await,
    }
}

fn done(ended: std::result::Result<(), Reason>) -> Result {
    match ended {
        Ok(()) => Result::Done,
        Err(Reason::Link(error)) if is_hopeless(&error) => Result::Hopeless(error.into()),
        Err(reason) => Result::Failed(reason),
    }
}

/// Whether it will not be otherwise when it is tried again: who answers is somebody else, or refuses this host.
fn is_hopeless(error: &TransportError) -> bool {
    use TransportError as E;
    !matches!(
        error,
        E::Unreachable { .. }
            | E::HandshakeTimeout { .. }
            | E::Idle { .. }
            | E::Closed { .. }
            | E::Restarted { .. }
            | E::Abandoned
            | E::Stopped { .. }
            | E::FrameTimeout { .. }
            | E::Truncated { .. }
    )
}

impl From<Why<Reason>> for Reason {
    fn from(why: Why<Reason>) -> Self {
        match why {
            Why::Failed(reason) => reason,
            Why::Refused(refusal) => Self::Refused(refusal),
            Why::Aborted(refusal) => Self::Aborted(refusal),
            Why::TooLate(within) => Self::TooLate(within),
            Why::Version { oldest, newest } => Self::Version { oldest, newest },
            Why::Unexpected(what) => Self::Unexpected(what),
            Why::Settled => Self::Settled,
            Why::Cancelled => Self::Cancelled,
            // Nothing is kept for one of these.
            Why::Agreed | Why::Lost(_) | Why::Unknown | Why::Orphaned => Self::Closed,
        }
    }
}
