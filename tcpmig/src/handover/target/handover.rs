//! One handover of a target.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Fate, HandoverId, MOVED_ON, Message, Note, Refusal};
use super::admission::Usage;
use super::{TargetAction, TargetResult};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Handover<L> {
    pub(super) id: HandoverId,
    /// The host that offered it. Nobody else has a say in it.
    pub(super) from: Arc<str>,
    state: State,
    /// What is under way. Nothing else is decided before it ends.
    step: Option<Step>,
    /// What comes next, in this order.
    todo: VecDeque<TargetAction<L>>,
    /// What happened meanwhile.
    inbox: VecDeque<Event<L>>,
    /// Who waits for what comes of the state.
    asked_by: Option<L>,
    /// When nothing is waited for any longer.
    pub(super) deadline: Option<Duration>,
    /// Of COMMIT.
    packets: Vec<Bytes>,
    /// Of the draft and the queues, or of the image.
    bytes: usize,
    /// Something is locked here although nothing waits for COMMIT any more.
    is_locked: bool,
    /// When the offer was accepted, and for how long that lasts by itself.
    locked_for: Duration,
    /// When the message came that is worked on.
    since: Duration,
    rebuild_us: u32,
    activate_us: u32,
    why: Refusal,
}

/// What happens to a handover from outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Event<L> {
    Image {
        /// Whoever waits for PREPARED.
        link: Option<L>,
        image: Bytes,
        /// Whether it may be as large as it is.
        room: Result<(), Refusal>,
    },
    Commit {
        link: L,
        packets: Vec<Bytes>,
    },
    Abort,
    Deadline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// It was offered, and nothing was said yet.
    Offered,
    /// It waits for its image.
    Accepted,
    Preparing,
    Prepared,
    /// What was built is being discarded.
    GivingUp(Then),
    Activating,
    Active,
    Refused,
    Aborted,
    Lost,
}

/// What follows when it is discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Then {
    /// It stays locked: its packets may come here for as long as the source redirects them, and would draw an RST.
    StayLocked,
    /// The source has its packets again.
    Unlock,
    /// Nothing is left of it.
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Examine,
    Lock,
    Build,
    Note(Note),
    Activate,
    Discard,
    /// Nothing depends on what comes of it.
    Other,
}

const GIVEN_UP: &str = "the source gave it up";

impl<L: Clone> Handover<L> {
    /// One whose OFFER has come.
    pub(super) fn offered(
        id: HandoverId,
        from: Arc<str>,
        link: L,
        draft: Bytes,
        bytes: usize,
    ) -> Self {
        Self {
            id,
            from: from.clone(),
            state: State::Offered,
            step: None,
            bytes,
            todo: [TargetAction::Examine { from, draft }].into(),
            inbox: VecDeque::new(),
            asked_by: Some(link),
            deadline: None,
            packets: Vec::new(),
            is_locked: false,
            locked_for: Duration::ZERO,
            since: Duration::ZERO,
            rebuild_us: 0,
            activate_us: 0,
            why: Refusal::other(""),
        }
    }

    /// What it takes of the target's room. What was given up has its place for as long as something is locked for it: a source
    /// that never says ABORT must not have more and more of this host silenced.
    pub(super) fn usage(&self) -> Usage {
        let bytes = match self.state {
            State::Offered
            | State::Accepted
            | State::Preparing
            | State::Prepared
            | State::GivingUp(_)
            | State::Activating => self.bytes,
            State::Active | State::Refused | State::Aborted | State::Lost => 0,
        };
        let is_open = self.fate().is_none() && self.state != State::Refused;
        Usage {
            handovers: usize::from(is_open || self.is_locked),
            bytes,
        }
    }

    /// Where the connection is, once that is so.
    pub(super) fn fate(&self) -> Option<Fate> {
        match self.state {
            State::Active => Some(Fate::Moved),
            State::Aborted => Some(Fate::Kept),
            State::Lost => Some(Fate::Lost),
            _ => None,
        }
    }

    /// Bytes that it has room for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// It has room for so many bytes, if that is more.
    pub(super) fn needs(&mut self, bytes: usize) {
        self.bytes = self.bytes.max(bytes);
    }

    /// The message that it waits for, for so long and no longer.
    pub(super) fn waits(&self) -> Option<&'static str> {
        match self.state {
            State::Accepted => Some("the image"),
            State::Prepared => Some("COMMIT"),
            _ => None,
        }
    }

    /// Nothing was built, and whoever asked has been told.
    pub(super) fn is_nothing(&self) -> bool {
        self.state == State::Refused
            && self.step.is_none()
            && self.todo.is_empty()
            && self.inbox.is_empty()
    }

    /// It has ended, and nothing is left to do for it unless somebody asks.
    pub(super) fn is_over(&self) -> bool {
        self.fate().is_some()
            && self.step.is_none()
            && self.todo.is_empty()
            && self.inbox.is_empty()
    }

    #[cfg(test)]
    pub(super) fn forget_words(&mut self) {
        self.why = Refusal::other("");
    }

    pub(super) fn happened(&mut self, event: Event<L>) {
        self.inbox.push_back(event);
    }

    pub(super) fn poll(&mut self, now: Duration) -> Option<TargetAction<L>> {
        while self.step.is_none() {
            if let Some(action) = self.todo.pop_front() {
                self.step = Step::of(&action);
                return Some(action);
            }
            let event = self.inbox.pop_front()?;
            self.decide(now, event);
        }
        None
    }

    /// Only while nothing is under way.
    fn decide(&mut self, now: Duration, event: Event<L>) {
        match (self.state, event) {
            (State::Accepted, Event::Image { link, image, room }) => {
                self.state = State::Preparing;
                self.asked_by = link;
                self.since = now;
                match room {
                    Ok(()) => self.todo.push_back(TargetAction::Build { image }),
                    Err(why) => self.give_up_for(why, Then::StayLocked),
                }
            }
            // Whatever came of the image, it did not come here.
            (State::Accepted, Event::Commit { link, .. }) => {
                self.asked_by = Some(link);
                self.give_up("its image did not come", Then::StayLocked);
            }
            (State::Prepared, Event::Commit { link, packets }) => {
                self.state = State::Activating;
                self.asked_by = Some(link);
                self.packets = packets;
                self.since = now;
                // What may have lived must not be given back by the process after this one.
                self.todo.push_back(TargetAction::Note(Note::Activating));
            }
            (State::Accepted | State::Prepared, Event::Abort) => {
                self.give_up(GIVEN_UP, Then::Unlock);
            }
            (State::Accepted | State::Prepared, Event::Deadline) => {
                let what = self.waits().unwrap_or_default();
                self.give_up(&format!("{what} did not come in time"), Then::StayLocked);
            }
            (_, Event::Commit { link, .. }) => self.answer(link),
            (_, Event::Abort) => self.unlock(),
            // One that comes again, or after the end.
            (_, Event::Image { link, .. }) => {
                if let Some(link) = link.filter(|_| self.fate().is_some()) {
                    self.answer(link);
                }
            }
            (_, Event::Deadline) => {}
        }
    }

    pub(super) fn ended(&mut self, now: Duration, result: TargetResult) {
        use TargetResult as R;
        let Some(step) = self.step.take() else {
            return;
        };
        match (step, result) {
            (Step::Examine, R::Done) => self.todo.push_back(TargetAction::Lock),
            (Step::Examine | Step::Lock, R::Failed(why)) => {
                self.why = why;
                self.refuse();
            }
            (Step::Lock, result) => {
                if let R::Locked(locked) = result {
                    self.locked_for = locked;
                }
                self.is_locked = !self.locked_for.is_zero();
                self.todo.push_back(TargetAction::Note(Note::Prepared));
            }
            (Step::Note(Note::Prepared), R::Failed(why)) => self.give_up_for(why, Then::Refuse),
            (Step::Note(Note::Prepared), _) => self.accepted(),
            (Step::Build, R::Failed(why)) => {
                self.why = why;
                self.is_locked = true;
                self.never_lives(false);
            }
            (Step::Build, _) => self.built(now),
            (Step::Note(Note::Activating), R::Failed(why)) if self.state == State::Activating => {
                self.todo.push_back(TargetAction::Discard {
                    reason: why.reason.clone(),
                });
                self.why = why;
            }
            (Step::Note(Note::Activating), _) if self.state == State::Activating => {
                let packets = std::mem::take(&mut self.packets);
                self.todo.push_back(TargetAction::Activate { packets });
            }
            (Step::Activate, R::Done) => self.activated(now),
            (
                Step::Activate,
                R::NotActivated {
                    why,
                    moved_on,
                    is_locked,
                },
            ) => {
                self.why = why;
                self.is_locked = is_locked;
                self.never_lives(moved_on);
            }
            // Nobody can say whether it lived, or took bytes.
            (Step::Activate | Step::Discard, R::Failed(why)) => {
                self.why = why;
                self.never_lives(true);
            }
            (Step::Discard, result) => {
                self.discarded(matches!(result, R::Discarded { moved_on: true }));
            }
            // Notes of an end, and what cannot fail.
            _ => {}
        }
    }

    fn accepted(&mut self) {
        if self.is_given_up() {
            return;
        }
        self.state = State::Accepted;
        let id = self.id;
        let locked_ms = u32::try_from(self.locked_for.as_millis()).unwrap_or(u32::MAX);
        self.say(Message::Accepted { id, locked_ms });
    }

    fn built(&mut self, now: Duration) {
        self.rebuild_us = micros(now.saturating_sub(self.since));
        if self.is_given_up() {
            return;
        }
        self.state = State::Prepared;
        let (id, rebuild_us) = (self.id, self.rebuild_us);
        self.say(Message::Prepared { id, rebuild_us });
    }

    /// Gives it up if ABORT has come meanwhile: nothing that the source has committed follows that.
    fn is_given_up(&mut self) -> bool {
        let before = self.inbox.len();
        self.inbox.retain(|event| !matches!(event, Event::Abort));
        let is_given_up = self.inbox.len() < before;
        if is_given_up {
            self.give_up(GIVEN_UP, Then::Unlock);
        }
        is_given_up
    }

    fn activated(&mut self, now: Duration) {
        self.state = State::Active;
        self.is_locked = false;
        self.activate_us = micros(now.saturating_sub(self.since));
        if let Some(link) = self.asked_by.take() {
            self.answer(link);
        }
        self.todo.push_back(TargetAction::Deliver);
        self.todo.push_back(TargetAction::Note(Note::Active));
    }

    fn give_up(&mut self, reason: &str, then: Then) {
        self.give_up_for(Refusal::other(reason), then);
    }

    fn give_up_for(&mut self, why: Refusal, then: Then) {
        self.state = State::GivingUp(then);
        let reason = why.reason.clone();
        self.why = why;
        self.todo.push_back(TargetAction::Discard { reason });
    }

    /// What was built is gone, except for its lock.
    fn discarded(&mut self, moved_on: bool) {
        self.is_locked = true;
        let then = match self.state {
            State::GivingUp(then) => then,
            _ => Then::StayLocked,
        };
        if then == Then::Refuse {
            self.unlock();
            return self.refuse();
        }
        if moved_on {
            self.why = Refusal::other(MOVED_ON);
        }
        self.never_lives(moved_on);
        if then == Then::Unlock {
            self.unlock();
        }
    }

    /// It does not live here, whoever asks. What has taken bytes by itself may not go on at the source either.
    fn never_lives(&mut self, moved_on: bool) {
        let note = if moved_on {
            self.state = State::Lost;
            // That is what makes it lost for the process after this one as well.
            Note::Activating
        } else {
            self.state = State::Aborted;
            Note::Aborted
        };
        self.todo.push_back(TargetAction::Note(note));
        if let Some(link) = self.asked_by.take() {
            self.answer(link);
        }
    }

    fn refuse(&mut self) {
        self.state = State::Refused;
        let Refusal { code, reason } = self.why.clone();
        let id = self.id;
        self.say(Message::Refused { id, code, reason });
    }

    fn unlock(&mut self) {
        if std::mem::take(&mut self.is_locked) {
            self.todo.push_back(TargetAction::Unlock);
        }
    }

    /// Answers COMMIT by what became of it.
    fn answer(&mut self, link: L) {
        let Refusal { code, reason } = self.why.clone();
        let id = self.id;
        let message = match self.state {
            State::Active => Message::Active {
                id,
                rebuild_us: self.rebuild_us,
                activate_us: self.activate_us,
            },
            State::Lost => Message::Lost { id, reason },
            State::Aborted => Message::Aborted { id, code, reason },
            _ => Message::Unknown { id },
        };
        self.todo.push_back(TargetAction::Send { link, message });
    }

    /// Answers the message that is worked on.
    fn say(&mut self, message: Message) {
        if let Some(link) = self.asked_by.take() {
            self.todo.push_back(TargetAction::Send { link, message });
        }
    }
}

impl Step {
    /// What of an action has to end before anything else is decided.
    fn of<L>(action: &TargetAction<L>) -> Option<Self> {
        match action {
            TargetAction::Examine { .. } => Some(Self::Examine),
            TargetAction::Lock => Some(Self::Lock),
            TargetAction::Build { .. } => Some(Self::Build),
            TargetAction::Note(note) => Some(Self::Note(*note)),
            TargetAction::Activate { .. } => Some(Self::Activate),
            TargetAction::Discard { .. } => Some(Self::Discard),
            TargetAction::Deliver | TargetAction::Unlock => Some(Self::Other),
            // A source that does not read must not hold up a deadline.
            TargetAction::Send { .. } => None,
        }
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
