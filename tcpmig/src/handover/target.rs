//! The target's side: all handovers of a host that takes connections.

mod admission;
mod handover;
mod link;
mod memory;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use link::{Frame, Link, LinkError};

use self::admission::Admission;
use self::handover::{Event, Handover};
use self::memory::Memory;
use super::{Code, Fate, HandoverId, Message, Note, Refusal};

/// What a target insists on, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TargetConfig {
    /// How long what is accepted waits for its image, and what is prepared for COMMIT.
    pub commit_within: Duration,
    /// How many connections are accepted and prepared at a time, from all sources.
    pub prepared_at_once: usize,
    /// How many bytes their images may have together.
    pub bytes_prepared: usize,
    /// How many of the connections may be of one host.
    pub prepared_by_each: usize,
    /// How many bytes the images of one host may have together.
    pub bytes_by_each: usize,
    /// How many ended handovers of one host are remembered.
    pub remembered_by_each: usize,
    /// How long an ended handover is remembered.
    pub remember: Duration,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            commit_within: Duration::from_secs(10),
            prepared_at_once: 4096,
            bytes_prepared: 256 << 20,
            prepared_by_each: 1024,
            bytes_by_each: 128 << 20,
            remembered_by_each: 100_000,
            remember: Duration::from_secs(600),
        }
    }
}

/// All handovers of a target, without what they are done with.
///
/// `L` stands for an exchange with a source: whatever an answer can be sent by.
///
/// Times are those since any fixed moment. One that goes back counts as the latest.
///
/// - Tell it what happens: [`handle_message`](Self::handle_message), [`handle_result`](Self::handle_result),
///   [`handle_timeout`](Self::handle_timeout) when [`poll_timeout`](Self::poll_timeout) says so.
/// - Then do what it asks for: [`poll`](Self::poll) the handover that it names until there is nothing more, and those that
///   [`poll_ready`](Self::poll_ready) names; drop all that is kept for those of [`poll_forgotten`](Self::poll_forgotten).
///
/// An action that has a result is the only one of its handover until that is handed in; others can go on meanwhile. So
/// whoever calls may do the actions of different handovers side by side, and those of one wherever it likes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetSessions<L> {
    config: TargetConfig,
    now: Duration,
    /// Those under way. There are few of them, and most of what is asked is about them.
    handovers: BTreeMap<HandoverId, Box<Handover<L>>>,
    ended: Ended<L>,
    admission: Admission,
    memory: Memory,
    /// All wait equally long, so the first is always the next. It is one that a handover still has; of the others some may not be.
    deadlines: VecDeque<(Duration, HandoverId)>,
    ready: VecDeque<HandoverId>,
    forgotten: Vec<HandoverId>,
}

/// Handovers that ended and are remembered. There may be very many, of which most are never asked about again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ended<L>(HashMap<HandoverId, Box<Handover<L>>>);

impl<L> Default for Ended<L> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<L: Hash> Hash for Ended<L> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // In an order that is the same for the same handovers.
        let all: BTreeMap<_, _> = self.0.iter().collect();
        all.hash(state);
    }
}

/// What a target has to do for a handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TargetAction<L> {
    /// Say what there is to say about the connection without touching the host for it: what is refused here has silenced
    /// nothing. Done, or failed.
    Examine {
        /// The name of the host that offers it.
        from: Arc<str>,
        /// The encoded draft of its image.
        draft: Bytes,
    },
    /// Lock the connection's packets, unless this host still redirects them: then the connection lives where they go. Locked, or
    /// failed.
    Lock,
    /// Lock the connection, if it is not locked, and build it, mute. Done, or failed; then nothing but its lock is left of it.
    Build {
        /// The encoded image, without what the draft has.
        image: Bytes,
    },
    /// Note this in the journal, where a process after this one finds it. Done, or failed.
    Note(Note),
    /// Merge what arrived at the source, unlock, and let it live. Done, or not activated; failed if nobody can say.
    Activate {
        /// The packets that arrived there, from their IP headers on.
        packets: Vec<Bytes>,
    },
    /// Compare the numbers of what was built with those that it was built with, and discard it without a packet. Its
    /// packets stay locked. Discarded; failed if nobody can say.
    Discard {
        /// Why, for a person to read.
        reason: String,
    },
    /// Unlock what was discarded. Done.
    Unlock,
    /// Send this. It has no result: whether the source gets to know it changes nothing.
    Send {
        /// Over this exchange.
        link: L,
        /// What to send.
        message: Message,
    },
    /// Hand the connection to the application. Done.
    Deliver,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TargetResult {
    /// It is done.
    Done,
    /// For so long the packets are locked whatever becomes of this process: not at all if it is zero.
    Locked(Duration),
    /// It is not, for this reason.
    Failed(Refusal),
    /// The connection is discarded.
    Discarded {
        /// It had taken bytes by itself, which its source does not have.
        moved_on: bool,
    },
    /// The connection does not live and was discarded.
    NotActivated {
        /// Why.
        why: Refusal,
        /// It had taken bytes by itself, which its source does not have.
        moved_on: bool,
        /// Whether its packets are still locked.
        is_locked: bool,
    },
}

/// What the journal of the process before this one says of a handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Recalled {
    /// Its newest note.
    pub note: Note,
    /// The host that offered it, if that is known.
    pub offered_by: Option<String>,
}

impl Recalled {
    /// What a journal says whose newest note is this.
    #[must_use]
    pub fn new(note: Note, offered_by: Option<String>) -> Self {
        Self { note, offered_by }
    }
}

/// What comes of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use]
pub enum Heard {
    /// [`TargetSessions::poll`] has something to do for this handover, or soon.
    Poll(HandoverId),
    /// Send this back. There is no such handover.
    Answer(Message),
    /// The handover was offered by another host, so this one has no say in it. Send back what there is.
    Foreign(Option<Message>),
    /// Nothing.
    Ignored,
    /// No target is sent this: the exchange ends.
    Unexpected(&'static str),
}

impl<L: Clone> TargetSessions<L> {
    /// None yet.
    #[must_use]
    pub fn new(config: TargetConfig) -> Self {
        Self {
            now: Duration::ZERO,
            handovers: BTreeMap::new(),
            ended: Ended::default(),
            admission: Admission::new(&config),
            memory: Memory::new(config.remember, config.remembered_by_each),
            deadlines: VecDeque::new(),
            ready: VecDeque::new(),
            forgotten: Vec::new(),
            config,
        }
    }

    /// Whether there is a handover of this name, under way or remembered.
    #[must_use]
    pub fn knows(&self, id: HandoverId) -> bool {
        self.get(id).is_some()
    }

    fn get(&self, id: HandoverId) -> Option<&Handover<L>> {
        let found = self.handovers.get(&id).or_else(|| self.ended.0.get(&id));
        found.map(Box::as_ref)
    }

    fn get_mut(&mut self, id: HandoverId) -> Option<&mut Handover<L>> {
        let Self {
            handovers, ended, ..
        } = self;
        let found = handovers.get_mut(&id).or_else(|| ended.0.get_mut(&id));
        found.map(Box::as_mut)
    }

    /// A message came from this host, by the name in its certificate, over this exchange. Each OFFER and COMMIT is answered over
    /// it, now or later. `recalled` is what the journal of the process before this one says; nobody asks for it if the handover
    /// [is known](Self::knows).
    pub fn handle_message(
        &mut self,
        now: Duration,
        from: &Arc<str>,
        link: L,
        message: Message,
        recalled: Option<&Recalled>,
    ) -> Heard {
        self.now = self.now.max(now);
        let (id, event) = match message {
            Message::Offer { id, queued, draft } => {
                return match self.offered(id, from, link, (queued, draft), recalled) {
                    Ok(()) => Heard::Poll(id),
                    Err(Refusal { code, reason }) => {
                        Heard::Answer(Message::Refused { id, code, reason })
                    }
                };
            }
            Message::Image { id, waits, image } => {
                let room = self.make_room(id, from, image.len());
                let link = waits.then_some(link);
                (id, Event::Image { link, image, room })
            }
            Message::Commit { id, packets } => (id, Event::Commit { link, packets }),
            Message::Abort { id } => (id, Event::Abort),
            other => return Heard::Unexpected(other.name()),
        };
        match self.get_mut(id) {
            Some(handover) if handover.from == *from => {
                handover.happened(event);
                Heard::Poll(id)
            }
            Some(_) => Heard::Foreign(event.wants_answer().then_some(Message::Unknown { id })),
            None if event.wants_answer() => by_journal(id, from, recalled),
            None => Heard::Ignored,
        }
    }

    /// An action of this handover has ended.
    pub fn handle_result(&mut self, now: Duration, id: HandoverId, result: TargetResult) {
        self.now = self.now.max(now);
        let now = self.now;
        self.change(id, |handover| handover.ended(now, result));
    }

    /// So late it is.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some((_, id)) = self.deadlines.front().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_front();
            if let Some(handover) = self.get_mut(id)
                && handover.deadline.is_some_and(|at| at <= now)
            {
                handover.deadline = None;
                handover.happened(Event::Deadline);
                self.ready.push_back(id);
            }
        }
        self.prune_deadlines();
        let over = self.memory.sweep(now);
        self.forget(over);
    }

    /// When [`TargetSessions::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let both = deadline.into_iter().chain(self.memory.sweep_at());
        both.min()
    }

    /// Has the first of the deadlines be one that a handover has.
    fn prune_deadlines(&mut self) {
        while let Some((at, id)) = self.deadlines.front() {
            let has_it = |it: &Handover<L>| it.deadline == Some(*at);
            if self.handovers.get(id).is_some_and(|it| has_it(it)) {
                return;
            }
            self.deadlines.pop_front();
        }
    }

    /// The same after this handover has changed.
    fn prune_deadlines_of(&mut self, changed: HandoverId) {
        if self.deadlines.front().is_some_and(|(_, id)| *id == changed) {
            self.prune_deadlines();
        }
    }

    /// What to do next for this handover; `None` if there is nothing, or something is being done whose result comes first.
    pub fn poll(&mut self, id: HandoverId) -> Option<TargetAction<L>> {
        let now = self.now;
        let polled = self.change(id, |handover| {
            let action = handover.poll(now);
            let is_idle = action.is_none();
            let is_nothing = is_idle && handover.is_nothing();
            (action, is_nothing, is_idle && handover.is_over())
        });
        let (action, is_nothing, is_over) = polled?;
        if is_nothing {
            // The same offer can come again, and then be taken.
            self.forget(vec![id]);
        } else if is_over && let Some(over) = self.handovers.remove(&id) {
            self.ended.0.insert(id, over);
        }
        action
    }

    /// Whoever did the actions of this handover does not go on: [`poll_ready`](Self::poll_ready) names it.
    pub fn leave(&mut self, id: HandoverId) {
        self.ready.push_back(id);
    }

    /// The next handover that has to be polled because its time came, or because nobody else does.
    pub fn poll_ready(&mut self) -> Option<HandoverId> {
        self.ready.pop_front()
    }

    /// The next handover that nobody will be answered for any more: drop what there is of it. What is locked for it
    /// is left to its lease.
    pub fn poll_forgotten(&mut self) -> Option<HandoverId> {
        self.forgotten.pop()
    }

    /// Where the connection of this handover is as far as the target knows: [`Fate::Moved`] here, or [`Fate::Kept`] by
    /// the source, or [`Fate::Lost`]; `None` while that is open, or nothing is known of it.
    #[must_use]
    pub fn fate(&self, id: HandoverId) -> Option<Fate> {
        self.get(id).and_then(Handover::fate)
    }

    /// Makes what only persons read the same everywhere, so that it makes no state of its own.
    #[cfg(test)]
    pub(super) fn forget_words(&mut self) {
        let all = self.handovers.values_mut().chain(self.ended.0.values_mut());
        for handover in all {
            handover.forget_words();
        }
    }

    fn offered(
        &mut self,
        id: HandoverId,
        from: &Arc<str>,
        link: L,
        (queued, draft): (u32, Bytes),
        recalled: Option<&Recalled>,
    ) -> Result<(), Refusal> {
        if self.knows(id) || recalled.is_some() {
            return Err(Refusal::other("this handover was offered before"));
        }
        let bytes = draft.len().saturating_add(queued as usize);
        self.admission.admit(from, bytes)?;
        let handover = Handover::offered(id, from.clone(), link, draft, bytes);
        self.handovers.insert(id, Box::new(handover));
        Ok(())
    }

    /// Takes room for an image that is larger than its offer said; or why there is none.
    fn make_room(&mut self, id: HandoverId, from: &Arc<str>, bytes: usize) -> Result<(), Refusal> {
        match self.handovers.get(&id) {
            Some(handover) if handover.from == *from => {
                let more = bytes.saturating_sub(handover.bytes());
                self.admission.admit_bytes(from, more)?;
            }
            _ => return Ok(()),
        }
        self.change(id, |handover| handover.needs(bytes));
        Ok(())
    }

    /// Something happens to a handover, and its place, its deadline and the memory of it follow.
    fn change<T>(
        &mut self,
        id: HandoverId,
        change: impl FnOnce(&mut Handover<L>) -> T,
    ) -> Option<T> {
        let Self {
            handovers, ended, ..
        } = self;
        let handover = handovers.get_mut(&id).or_else(|| ended.0.get_mut(&id))?;
        let before = (handover.usage(), handover.fate(), handover.waits());
        let result = change(handover);
        self.admission
            .change(&handover.from, before.0, handover.usage());
        if handover.waits() != before.2 {
            let deadline = self.now.saturating_add(self.config.commit_within);
            handover.deadline = handover.waits().is_some().then_some(deadline);
            if handover.deadline.is_some() {
                self.deadlines.push_back((deadline, id));
            }
        }
        let has_ended = handover.fate().is_some() && before.1.is_none();
        let oldest = has_ended.then(|| self.memory.ended(self.now, id, &handover.from));
        self.prune_deadlines_of(id);
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
        Some(result)
    }

    fn forget(&mut self, ended: Vec<HandoverId>) {
        for id in ended {
            let gone = self.handovers.remove(&id);
            if let Some(gone) = gone.or_else(|| self.ended.0.remove(&id)) {
                self.admission
                    .change(&gone.from, gone.usage(), admission::Usage::default());
                self.forgotten.push(id);
                self.prune_deadlines_of(id);
            }
        }
    }
}

/// Answers COMMIT by what a process before this one has noted.
fn by_journal(id: HandoverId, from: &Arc<str>, recalled: Option<&Recalled>) -> Heard {
    let Some(Recalled { note, offered_by }) = recalled else {
        return Heard::Answer(Message::Unknown { id });
    };
    if offered_by.as_ref().is_some_and(|host| *host != **from) {
        return Heard::Foreign(Some(Message::Unknown { id }));
    }
    let reason = "the process that had it has ended since".to_owned();
    Heard::Answer(match note {
        // It may have lived.
        Note::Activating | Note::Active => Message::Lost { id, reason },
        _ => Message::Aborted {
            id,
            code: Code::Other,
            reason,
        },
    })
}

impl<L> Event<L> {
    fn wants_answer(&self) -> bool {
        matches!(
            self,
            Self::Commit { .. } | Self::Image { link: Some(_), .. }
        )
    }
}
