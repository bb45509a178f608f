//! The source's side: one handover of a connection that leaves.

mod action;
mod asking;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

pub use action::{SourceAction, SourceConfig, SourceResult, Why};

use super::{Fate, HandoverId, Message, Note, Refusal};

/// One handover at its source, without what it is done with.
///
/// `E` stands for the reasons of whoever does the actions. Times are those since any fixed moment, and must not go back.
///
/// - Do what [`poll`](Self::poll) asks for, one action after the other, and hand in how each ended: [`handle_result`](Self::handle_result).
/// - While there is nothing to do, tell what happens: [`handle_message`](Self::handle_message),
///   [`handle_link_lost`](Self::handle_link_lost), and [`handle_timeout`](Self::handle_timeout) when
///   [`poll_timeout`](Self::poll_timeout) says so. Its time may come while something is sent, opened or finished: that is then
///   given up.
/// - Until [`ended`](Self::ended) says where the connection is. [`ask`](Self::ask) and [`settle`](Self::settle) go on with one
///   that is in doubt.
///
/// A session whose process dies is gone with the socket; its journal has what the next process begins
/// [`orphaned`](Self::orphaned) with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceSession<E> {
    config: SourceConfig,
    id: HandoverId,
    now: Duration,
    state: State,
    /// What is under way.
    step: Option<Step>,
    /// What comes next, in this order.
    todo: VecDeque<SourceAction>,
    deadline: Option<Duration>,
    /// For so long the target has the packets locked, so that they may be steered there before it has built the connection.
    locked: Duration,
    /// They are, and nobody knows whether it has built it.
    is_ahead: bool,
    /// The process that had the connection has ended, and the socket with it.
    is_orphan: bool,
    is_cancelled: bool,
    /// What arrived here while the connection stood still.
    packets: Vec<Bytes>,
    asking: Option<Asking>,
    /// The target has said something about the orphan.
    has_heard: bool,
    why: Why<E>,
    rebuild_us: u32,
    activate_us: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// The connection lives, and nobody was told of it.
    Beginning,
    /// It lives, and the target is asked.
    Offered,
    /// The target takes it, and it is being frozen.
    Freezing,
    /// The target builds it, and is waited for.
    Preparing,
    Confirming,
    /// COMMIT may have been sent.
    Committed,
    /// The target has to unlock, and to say that it has read that.
    Releasing,
    /// A person has decided that the connection is kept, and the target is looked for to tell it that.
    Keeping,
    /// What is left to be done changes nothing any more.
    Ending(Fate),
    Ended(Fate),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Asking {
    until: Duration,
    pause: Duration,
    pauses: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Describe,
    Note(Note),
    Freeze,
    Confirm,
    Send,
    Connect,
    Finish,
    LookUp,
    /// Nothing depends on what comes of it.
    Other,
}

/// So many times as long as its answer to COMMIT is waited for a target's lock has to last.
const LOCK_OUTLASTS: u32 = 4;

impl<E> SourceSession<E> {
    /// A connection that lives here and is to leave, when an exchange with the target is open.
    #[must_use]
    pub fn new(config: SourceConfig, id: HandoverId) -> Self {
        Self {
            config,
            id,
            now: Duration::ZERO,
            state: State::Beginning,
            step: None,
            todo: [SourceAction::Describe].into(),
            deadline: None,
            locked: Duration::ZERO,
            is_ahead: false,
            is_orphan: false,
            is_cancelled: false,
            packets: Vec::new(),
            asking: None,
            has_heard: false,
            why: Why::Agreed,
            rebuild_us: 0,
            activate_us: 0,
        }
    }

    /// A handover that a process before this one noted and did not bring to an end. Its socket ended with that process, without a
    /// packet. The target is asked until `until`, but once in any case.
    ///
    /// If the newest note is [`Note::Committing`], COMMIT may have been sent. Else the connection was the source's and is lost, and the
    /// target has to discard what it built.
    #[must_use]
    pub fn orphaned(config: SourceConfig, id: HandoverId, note: Note, until: Duration) -> Self {
        let mut session = Self::new(config, id);
        session.is_orphan = true;
        session.asking = Some(Asking {
            until,
            pause: session.config.first_pause,
            pauses: false,
        });
        session.todo = [SourceAction::Connect].into();
        session.state = State::Committed;
        if note != Note::Committing {
            session.state = State::Releasing;
            session.why = Why::Orphaned;
        }
        session
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> HandoverId {
        self.id
    }

    /// Where the connection is, once nothing is left to be done.
    #[must_use]
    pub fn ended(&self) -> Option<Fate> {
        match self.state {
            State::Ended(fate) => Some(fate),
            _ => None,
        }
    }

    /// Whether it is settled where the connection is, and what is left to be done changes nothing of it.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending(_) | State::Ended(_))
    }

    /// Whether the connection may be the target's.
    #[must_use]
    pub fn has_committed(&self) -> bool {
        match self.state {
            State::Committed => true,
            State::Ending(fate) | State::Ended(fate) => fate != Fate::Kept,
            State::Releasing => self.is_orphan,
            State::Beginning
            | State::Offered
            | State::Freezing
            | State::Preparing
            | State::Confirming
            | State::Keeping => false,
        }
    }

    /// Whether what comes over the exchange that is open is to be handed in.
    #[must_use]
    pub fn listens(&self) -> bool {
        let pauses = self.asking.is_some_and(|asking| asking.pauses);
        matches!(
            self.state,
            State::Offered | State::Preparing | State::Committed
        ) && self.step.is_none()
            && self.todo.is_empty()
            && !pauses
    }

    /// Whether its process has died, and this one has it from the journal: [`orphaned`](Self::orphaned).
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        self.is_orphan
    }

    /// Whether the target has said anything about the [orphaned](Self::orphaned) handover.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        self.has_heard
    }

    /// Why it ended as it did. Asked again it has forgotten.
    pub fn take_why(&mut self) -> Why<E> {
        std::mem::take(&mut self.why)
    }

    /// How long the target took to build the connection, and to activate it.
    #[must_use]
    pub fn target_took(&self) -> (Duration, Duration) {
        let time = |us: u32| Duration::from_micros(us.into());
        (time(self.rebuild_us), time(self.activate_us))
    }

    /// What [`poll`](Self::poll) would give.
    #[must_use]
    pub fn peek(&self) -> Option<&SourceAction> {
        self.todo.front().filter(|_| self.step.is_none())
    }

    /// What to do next; `None` if something else has to happen first. From then on it counts as begun.
    pub fn poll(&mut self) -> Option<SourceAction> {
        if self.step.is_some() {
            return None;
        }
        let action = self.todo.pop_front();
        self.step = action.as_ref().map(Step::of);
        action
    }

    /// When [`SourceSession::handle_timeout`] has to be called, if nothing else happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.deadline
    }

    /// The action that [`SourceSession::poll`] gave last has ended.
    pub fn handle_result(&mut self, now: Duration, result: SourceResult<E>) {
        self.now = now;
        let Some(step) = self.step.take() else {
            return;
        };
        self.went_on(step, result);
        if self.is_cancelled {
            self.cancel(now);
        }
        self.end_if_done();
    }

    fn went_on(&mut self, step: Step, result: SourceResult<E>) {
        use SourceResult as R;
        match (step, result) {
            (Step::Describe, R::Described { queued, draft }) => {
                self.todo.push_back(SourceAction::Note(Note::Offering));
                let id = self.id;
                self.send(Message::Offer { id, queued, draft });
            }
            (Step::Describe | Step::Note(Note::Offering), R::Failed(why)) => {
                self.end(Fate::Kept, Why::Failed(why));
            }
            (Step::Note(Note::Offering), _) => {
                self.state = State::Offered;
                self.within(self.config.prepared_within);
            }
            (Step::Freeze, R::Frozen { image }) => self.frozen(image),
            (Step::Freeze, R::Failed(why)) => self.keep(Why::Failed(why)),
            // Last: what is noted as committing is committed, or a process after this one could do it.
            (Step::Confirm, R::Confirmed { packets }) => {
                self.packets = packets;
                self.todo.push_back(SourceAction::Note(Note::Committing));
            }
            (Step::Confirm | Step::Note(Note::Committing), R::Failed(why)) => {
                self.keep(Why::Failed(why));
            }
            (Step::Note(Note::Committing), _) => {
                self.state = State::Committed;
                self.say_commit();
            }
            (Step::LookUp, R::Decided(Some(decision))) => self.decided(decision),
            (Step::LookUp, _) => self.connect(),
            (Step::Connect, R::Done) => self.connected(),
            (Step::Finish, R::Done) => {
                self.has_heard = true;
                self.released();
            }
            (Step::Connect, R::Hopeless(why)) if self.is_orphan => self.ask_no_more_for(why),
            (Step::Send | Step::Connect | Step::Finish, R::Failed(why) | R::Hopeless(why)) => {
                self.link_lost(Why::Failed(why));
            }
            _ => {}
        }
    }

    /// The target sent this over the exchange that is open.
    pub fn handle_message(&mut self, now: Duration, message: Message) {
        self.now = now;
        if let Message::Hello { oldest, newest } = message {
            return self.disobeys(Why::Version { oldest, newest });
        }
        if message.id() != Some(self.id) {
            return self.disobeys(Why::Unexpected("a message of another handover"));
        }
        self.has_heard = self.is_orphan;
        let name = message.name();
        match (self.state, message) {
            (
                _,
                Message::Offer { .. }
                | Message::Image { .. }
                | Message::Commit { .. }
                | Message::Abort { .. },
            ) => {
                self.disobeys(Why::Unexpected(name));
            }
            (State::Offered, Message::Accepted { locked_ms, .. }) => {
                self.locked = Duration::from_millis(locked_ms.into());
                self.state = State::Freezing;
                self.wait_for(SourceAction::Freeze);
            }
            (State::Preparing, Message::Prepared { rebuild_us, .. }) => {
                self.rebuild_us = rebuild_us;
                self.state = State::Confirming;
                self.wait_for(SourceAction::Confirm);
            }
            (State::Offered | State::Preparing, Message::Refused { code, reason, .. }) => {
                self.keep(Why::Refused(Refusal { code, reason }));
            }
            (State::Offered | State::Preparing, Message::Aborted { code, reason, .. }) => {
                self.keep(Why::Aborted(Refusal { code, reason }));
            }
            // They answer other messages.
            (State::Offered | State::Preparing, _) => self.keep(Why::Unexpected(name)),
            (
                State::Committed,
                Message::Active {
                    rebuild_us,
                    activate_us,
                    ..
                },
            ) => {
                self.rebuild_us = rebuild_us;
                self.activate_us = activate_us;
                self.moved(Why::Agreed);
            }
            (State::Committed, Message::Lost { reason, .. }) => self.lost(Why::Lost(reason)),
            (State::Committed, Message::Aborted { code, reason, .. }) => {
                let why = Why::Aborted(Refusal { code, reason });
                if self.is_orphan {
                    // Neither host has it any more, and the target is silent until it is told.
                    self.why = why;
                    self.state = State::Releasing;
                    self.connect();
                } else {
                    self.keep(why);
                }
            }
            // A target that forgot may have been the owner before: not a reason to thaw.
            (State::Committed, Message::Unknown { .. }) => self.doubt(Why::Unknown),
            (State::Committed, _) if self.is_orphan => self.disobeys(Why::Unexpected(name)),
            // PREPARED that comes again.
            _ => {}
        }
        self.end_if_done();
    }

    /// The exchange that was open has broken or ended, or something came over it that is not a message.
    pub fn handle_link_lost(&mut self, now: Duration, why: E) {
        self.now = now;
        self.link_lost(Why::Failed(why));
        self.end_if_done();
    }

    /// So late it is.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.now = now;
        self.deadline = None;
        let pauses = self.asking.is_some_and(|asking| asking.pauses);
        match (self.state, self.asking) {
            (State::Committed | State::Releasing, Some(asking)) if pauses => {
                if now < asking.until {
                    self.ask_again();
                } else {
                    self.ask_no_more();
                }
            }
            (State::Offered | State::Freezing | State::Preparing | State::Confirming, _) => {
                self.link_lost(Why::TooLate(self.config.prepared_within));
            }
            _ => self.link_lost(Why::TooLate(self.answer_within())),
        }
        self.end_if_done();
    }

    /// Ends it as soon as what is under way allows: before COMMIT the connection goes on here, afterwards it is in doubt.
    pub fn cancel(&mut self, now: Duration) {
        self.now = now;
        if !self.step.is_none_or(Step::can_be_given_up) {
            self.is_cancelled = true;
            return;
        }
        self.is_cancelled = false;
        match self.state {
            State::Beginning => {
                self.end(Fate::Kept, Why::Cancelled);
            }
            State::Offered | State::Freezing | State::Preparing | State::Confirming => {
                self.keep(Why::Cancelled);
            }
            // COMMIT was not sent yet.
            State::Committed if self.is_committing() => self.keep(Why::Cancelled),
            State::Committed => self.doubt(Why::Cancelled),
            // It is as good as ended.
            State::Releasing | State::Keeping | State::Ending(_) | State::Ended(_) => {}
        }
        self.end_if_done();
    }

    /// It stands still. COMMIT follows the image at once if nothing is gained by waiting: the target answers both by what it did. A
    /// large image has its time to get there, and packets do not come where a lock could end before they are silenced here again.
    fn frozen(&mut self, image: Bytes) {
        let least = self.config.answer_within.saturating_mul(LOCK_OUTLASTS);
        let lasts = !self.locked.is_zero() && self.locked >= least;
        let waits = !lasts || image.len() > self.config.commit_at_once;
        self.is_ahead = !waits;
        let id = self.id;
        self.within(self.config.prepared_within);
        self.send(Message::Image { id, waits, image });
        self.state = State::Preparing;
        if !waits {
            self.state = State::Confirming;
            self.todo.push_back(SourceAction::Confirm);
        }
    }

    /// Whether COMMIT is still to be sent for the first time.
    fn is_committing(&self) -> bool {
        let is_next = matches!(
            self.todo.front(),
            Some(SourceAction::Send(Message::Commit { .. }))
        );
        is_next && self.step.is_none() && self.asking.is_none()
    }

    fn disobeys(&mut self, why: Why<E>) {
        if self.is_orphan && self.state == State::Committed {
            self.why = why;
            self.ask_no_more();
        } else {
            self.link_lost(why);
        }
        self.end_if_done();
    }

    /// Nothing comes over the link any more, or not in time.
    fn link_lost(&mut self, why: Why<E>) {
        if !self.step.is_none_or(Step::can_be_given_up) {
            return;
        }
        match self.state {
            // Until COMMIT is sent the connection is the source's, whatever happens.
            State::Offered | State::Freezing | State::Preparing | State::Confirming => {
                self.keep(why);
            }
            State::Committed | State::Releasing => {
                if self.state == State::Committed {
                    self.why = why;
                }
                self.step = None;
                self.todo.clear();
                if self.asking.is_some() {
                    self.pause();
                } else {
                    self.begin_asking();
                }
            }
            State::Keeping => self.keep_unsaid(Why::Settled),
            // It was ABORT that could not be sent.
            State::Ending(_) => {
                self.step = None;
                self.deadline = None;
            }
            State::Beginning | State::Ended(_) => {}
        }
    }

    /// Sends COMMIT, the first time or again: the target answers each.
    fn say_commit(&mut self) {
        let (id, packets) = (self.id, self.packets.clone());
        self.within(self.answer_within());
        self.send(Message::Commit { id, packets });
    }

    fn moved(&mut self, why: Why<E>) {
        self.end(Fate::Moved, why);
        self.discard();
        self.todo.push_back(SourceAction::Note(Note::Moved));
    }

    fn lost(&mut self, why: Why<E>) {
        self.end(Fate::Lost, why);
        self.discard();
        self.todo.push_back(SourceAction::EndRedirect);
        self.todo.push_back(SourceAction::Note(Note::Lost));
    }

    fn keep(&mut self, why: Why<E>) {
        self.keep_unsaid(why);
        // Only then: the target unlocks, and answers packets that are still steered to it with RST.
        let id = self.id;
        self.send(Message::Abort { id });
    }

    /// The same when no target can be told.
    fn keep_unsaid(&mut self, why: Why<E>) {
        self.end(Fate::Kept, why);
        self.todo.push_back(SourceAction::Keep);
        self.todo.push_back(SourceAction::Note(Note::Kept));
    }

    fn discard(&mut self) {
        if !self.is_orphan {
            self.todo.push_back(SourceAction::Discard);
        }
    }

    fn end(&mut self, fate: Fate, why: Why<E>) {
        self.state = State::Ending(fate);
        self.why = why;
        self.step = None;
        self.todo.clear();
        self.deadline = None;
        self.asking = None;
    }

    fn end_if_done(&mut self) {
        if let State::Ending(fate) = self.state {
            if self.step.is_none() && self.todo.is_empty() {
                self.state = State::Ended(fate);
                self.deadline = None;
            } else if matches!(self.todo.front(), Some(SourceAction::Send(_)))
                && self.deadline.is_none()
            {
                // A target that does not read must not hold it.
                self.within(self.config.answer_within);
            }
        }
    }

    fn send(&mut self, message: Message) {
        self.todo.push_back(SourceAction::Send(message));
    }

    /// Does this next, for as long as it takes.
    fn wait_for(&mut self, action: SourceAction) {
        self.step = None;
        self.todo = [action].into();
        self.deadline = None;
    }

    fn within(&mut self, time: Duration) {
        self.deadline = Some(self.now.saturating_add(time));
    }

    /// A target that is asked about an orphan may still be building it.
    fn answer_within(&self) -> Duration {
        let Self {
            config, is_orphan, ..
        } = self;
        if *is_orphan {
            config.prepared_within.saturating_add(config.answer_within)
        } else {
            config.answer_within
        }
    }
}

impl Step {
    fn of(action: &SourceAction) -> Self {
        match action {
            SourceAction::Describe => Self::Describe,
            SourceAction::Note(note) => Self::Note(*note),
            SourceAction::Freeze => Self::Freeze,
            SourceAction::Confirm => Self::Confirm,
            SourceAction::Send(_) => Self::Send,
            SourceAction::Connect => Self::Connect,
            SourceAction::Finish => Self::Finish,
            SourceAction::LookUpDecision => Self::LookUp,
            SourceAction::Keep
            | SourceAction::Discard
            | SourceAction::EndRedirect
            | SourceAction::Silence
            | SourceAction::Doubt => Self::Other,
        }
    }

    /// Whether it is about the link alone. Anything else is done to its end.
    fn can_be_given_up(self) -> bool {
        matches!(self, Self::Send | Self::Connect | Self::Finish)
    }
}
