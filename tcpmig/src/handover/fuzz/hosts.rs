//! Hosts that give one connection to each other, and a network that loses, repeats and reorders.
//!
//! The test `handover::tests::model` visits every state of two handovers between three hosts; here
//! are more of them, one target takes several, and what is said travels as bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use bytes::Bytes;

use super::super::*;

const HOSTS: usize = 3;
/// Handovers of a course.
const MAX_HANDOVERS: u8 = 32;
/// Everything is due at once.
const NOW: Duration = Duration::ZERO;

/// What happens, one after the other.
#[derive(Arbitrary, Debug)]
pub struct Course {
    /// Whether hosts note what they do.
    journal: bool,
    steps: Vec<Step>,
}

/// What happens next. Handovers and messages are numbered modulo how many there are.
#[derive(Arbitrary, Debug)]
enum Step {
    /// The owner gives the connection to the next host, or the one after that. Packets are locked there from the beginning, and
    /// COMMIT follows the image at once, or not.
    Begin { far: bool, at_once: bool },
    /// A message arrives. It stays on its way, and so arrives again.
    Deliver {
        message: u8,
        /// What its host does about it works.
        works: bool,
    },
    /// A message arrives and the process ends as soon as it has noted this step of it.
    CrashAfterNote { message: u8 },
    /// No answer came in time, or a pause is over.
    SourceLate { handover: u8 },
    /// The source asks no more.
    GiveUp { handover: u8 },
    /// The caller does not want the handover any longer.
    Cancel { handover: u8 },
    /// A source in doubt asks again.
    AskAgain { handover: u8 },
    /// The process after a source settles what it finds in the journal.
    Resolve { handover: u8 },
    /// COMMIT did not come in time.
    TargetLate { host: u8 },
    /// All that is between two hosts is lost.
    LinkLost { handover: u8 },
    /// The process on a host ends and is started again.
    Crash { host: u8 },
    /// What the target has built takes bytes, which it must not.
    MoveOn { handover: u8 },
}

/// The socket on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Socket {
    None,
    /// In repair mode and locked, in this handover.
    Still(HandoverId),
    Lives,
}

struct Host {
    name: Arc<str>,
    socket: Socket,
    sources: HashMap<HandoverId, SourceSession<()>>,
    /// An exchange is named by its handover.
    targets: TargetSessions<usize>,
    /// The newest note of each handover.
    journal: HashMap<HandoverId, Note>,
}

/// A message on its way, as frames.
#[derive(Clone)]
struct Sent {
    handover: usize,
    to_target: bool,
    frames: (Bytes, Option<Bytes>),
}

#[derive(Clone, Copy)]
struct Handover {
    id: HandoverId,
    source: usize,
    target: usize,
    at_once: bool,
    fate: Option<Fate>,
    /// Whether the connection has ever lived at its target.
    lived: bool,
    /// Whether the process of its target has ended, or that of its source.
    crashed: bool,
    /// Whether what the target built has taken bytes.
    moved_on: bool,
}

/// How what follows goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    Well,
    Wrong,
    /// Until something is noted, and then the process ends.
    UntilNote,
}

struct World {
    journal: bool,
    hosts: [Host; HOSTS],
    handovers: Vec<Handover>,
    wire: Vec<Sent>,
}

/// Runs a course. At no time there are two owners, and sources know or doubt where the connection is.
pub(super) fn run(course: &Course) {
    let mut world = World::new(course.journal);
    for step in &course.steps {
        world.step(step);
        world.check();
    }
}

fn no_targets() -> TargetSessions<usize> {
    TargetSessions::new(TargetConfig {
        commit_within: NOW,
        ..TargetConfig::default()
    })
}

fn config() -> SourceConfig {
    SourceConfig {
        prepared_within: NOW,
        commit_at_once: usize::MAX,
        answer_within: NOW,
        ask_for: Duration::from_secs(1),
        first_pause: NOW,
        longest_pause: NOW,
    }
}

impl World {
    fn new(journal: bool) -> Self {
        let host = |name: &str, socket| Host {
            name: name.into(),
            socket,
            sources: HashMap::new(),
            targets: no_targets(),
            journal: HashMap::new(),
        };
        Self {
            journal,
            hosts: [
                host("a", Socket::Lives),
                host("b", Socket::None),
                host("c", Socket::None),
            ],
            handovers: Vec::new(),
            wire: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        let well = Goes::Well;
        match *step {
            Step::Begin { far, at_once } => self.begin(far, at_once),
            Step::Deliver { message, works } => {
                self.deliver(message, if works { well } else { Goes::Wrong });
            }
            Step::CrashAfterNote { message } => self.deliver(message, Goes::UntilNote),
            Step::SourceLate { handover } => {
                self.at_source(handover, |source| source.handle_timeout(NOW));
            }
            Step::GiveUp { handover } => {
                self.at_source(handover, |source| source.give_up(NOW, ()));
            }
            Step::Cancel { handover } => self.at_source(handover, |source| source.cancel(NOW)),
            Step::AskAgain { handover } => self.at_source(handover, |source| source.ask(NOW)),
            Step::Resolve { handover } => self.resolve(handover),
            Step::TargetLate { host } => self.target_late(usize::from(host) % HOSTS),
            Step::LinkLost { handover } => {
                let Some(h) = self.nth(handover) else { return };
                self.wire.retain(|sent| sent.handover != h);
                self.at_source(handover, |source| source.handle_link_lost(NOW, ()));
            }
            Step::Crash { host } => self.crash(usize::from(host) % HOSTS),
            Step::MoveOn { handover } => {
                let Some(h) = self.nth(handover) else { return };
                let Handover { id, target, .. } = self.handovers[h];
                if self.hosts[target].socket == Socket::Still(id) {
                    self.handovers[h].moved_on = true;
                }
            }
        }
    }

    fn nth(&self, handover: u8) -> Option<usize> {
        usize::from(handover).checked_rem(self.handovers.len())
    }

    fn source(&mut self, h: usize) -> Option<&mut SourceSession<()>> {
        let Handover { id, source, .. } = self.handovers[h];
        self.hosts[source].sources.get_mut(&id)
    }

    fn say(&mut self, handover: usize, to_target: bool, message: Message) {
        let sent = Sent {
            handover,
            to_target,
            frames: message.encode(),
        };
        let same = |other: &Sent| {
            (other.handover, other.to_target, &other.frames) == (handover, to_target, &sent.frames)
        };
        if !self.wire.iter().any(same) {
            self.wire.push(sent);
        }
    }

    fn begin(&mut self, far: bool, at_once: bool) {
        let lives = |host: &Host| host.socket == Socket::Lives;
        let Some(source) = self.hosts.iter().position(lives) else {
            return;
        };
        let number = self.handovers.len() as u8;
        if number == MAX_HANDOVERS {
            return;
        }
        let id = HandoverId::from_bytes([number; 16]);
        self.handovers.push(Handover {
            id,
            source,
            target: (source + 1 + usize::from(far)) % HOSTS,
            at_once,
            fate: None,
            lived: false,
            crashed: false,
            moved_on: false,
        });
        let session = SourceSession::new(config(), id);
        self.hosts[source].sources.insert(id, session);
        self.source_works(number.into(), Goes::Well);
    }

    fn resolve(&mut self, handover: u8) {
        let Some(h) = self.nth(handover) else { return };
        let Handover { id, source, .. } = self.handovers[h];
        let host = &mut self.hosts[source];
        let note = host.journal.get(&id).filter(|note| !note.is_end());
        let Some(note) = note.filter(|_| !host.sources.contains_key(&id)) else {
            return;
        };
        let session = SourceSession::orphaned(config(), id, *note, config().ask_for);
        host.sources.insert(id, session);
        self.source_works(h, Goes::Well);
    }

    fn deliver(&mut self, message: u8, goes: Goes) {
        let Some(number) = usize::from(message).checked_rem(self.wire.len()) else {
            return;
        };
        let Sent {
            handover: h,
            to_target,
            frames: (first, second),
        } = self.wire[number].clone();
        let mut decoder = Decoder::default();
        let mut message = decoder.frame(first).expect("a message");
        if let Some(image) = second {
            message = decoder.frame(image).expect("an image");
        }
        let message = message.expect("whole");
        assert_eq!(message.id(), Some(self.handovers[h].id));
        if to_target {
            self.tell_target(h, message, goes);
        } else if let Some(source) = self.source(h) {
            source.handle_message(NOW, message);
            self.source_works(h, goes);
        }
    }

    fn at_source(&mut self, handover: u8, happens: impl FnOnce(&mut SourceSession<()>)) {
        let Some(h) = self.nth(handover) else { return };
        if let Some(source) = self.source(h) {
            happens(source);
            self.source_works(h, Goes::Well);
        }
    }

    /// A source does what it has to do.
    fn source_works(&mut self, h: usize, goes: Goes) {
        let Handover { id, source: at, .. } = self.handovers[h];
        while let Some(action) = self.source(h).and_then(SourceSession::poll) {
            let works = goes != Goes::Wrong;
            let mut result = SourceResult::Done;
            let host = &mut self.hosts[at];
            match action {
                SourceAction::Note(note) => {
                    host.journal.insert(id, note);
                    if goes == Goes::UntilNote {
                        return self.crash(at);
                    }
                }
                SourceAction::Describe => {
                    let draft = Bytes::from_static(b"draft");
                    result = SourceResult::Described { queued: 0, draft };
                }
                // Another handover of it was quicker.
                SourceAction::Freeze if host.socket != Socket::Lives => {
                    result = SourceResult::Failed(());
                }
                SourceAction::Freeze => {
                    host.socket = Socket::Still(id);
                    let image = Bytes::from_static(b"image");
                    result = SourceResult::Frozen { image };
                }
                SourceAction::Confirm if works => {
                    let packets = Vec::new();
                    result = SourceResult::Confirmed { packets };
                }
                SourceAction::Confirm => result = SourceResult::Failed(()),
                SourceAction::Send(message) => self.say(h, true, message),
                SourceAction::LookUpDecision => result = SourceResult::Decided(None),
                SourceAction::Keep => {
                    if host.socket == Socket::Still(id) {
                        host.socket = Socket::Lives;
                    }
                }
                SourceAction::Discard => {
                    assert_eq!(host.socket, Socket::Still(id));
                    host.socket = Socket::None;
                }
                SourceAction::Connect
                | SourceAction::Finish
                | SourceAction::EndRedirect
                | SourceAction::Silence
                | SourceAction::Doubt => {}
            }
            if let Some(source) = self.source(h) {
                source.handle_result(NOW, result);
            }
        }
    }

    fn tell_target(&mut self, h: usize, message: Message, goes: Goes) {
        let Handover {
            id, source, target, ..
        } = self.handovers[h];
        let from = self.hosts[source].name.clone();
        let host = &mut self.hosts[target];
        let recalled = host.journal.get(&id).filter(|_| !host.targets.knows(id));
        let recalled = recalled.map(|note| Recalled {
            note: *note,
            offered_by: Some(from.to_string()),
        });
        match host
            .targets
            .handle_message(NOW, &from, h, message, recalled.as_ref())
        {
            Heard::Poll(_) => self.target_works(h, goes),
            Heard::Answer(answer) => self.say(h, false, answer),
            Heard::Ignored => {}
            other => panic!("{other:?}: it is its own"),
        }
    }

    fn target_late(&mut self, host: usize) {
        self.hosts[host].targets.handle_timeout(NOW);
        while let Some(id) = self.hosts[host].targets.poll_ready() {
            if let Some(h) = self.handovers.iter().position(|h| h.id == id) {
                self.target_works(h, Goes::Well);
            }
        }
    }

    /// A target does what it has to do.
    fn target_works(&mut self, h: usize, goes: Goes) {
        let Handover {
            id,
            target: at,
            at_once,
            moved_on,
            ..
        } = self.handovers[h];
        let why = || Refusal::other("for a test");
        let works = goes != Goes::Wrong;
        while let Some(action) = self.hosts[at].targets.poll(id) {
            let host = &mut self.hosts[at];
            let mut result = TargetResult::Done;
            match action {
                TargetAction::Examine { .. } => {}
                TargetAction::Lock => {
                    result = TargetResult::Locked(Duration::from_millis(at_once.into()));
                }
                TargetAction::Build { .. } => {
                    // Two with the same addresses cannot be there: the lock and the kernel refuse the second.
                    if works && host.socket == Socket::None {
                        host.socket = Socket::Still(id);
                    } else {
                        result = TargetResult::Failed(why());
                    }
                }
                TargetAction::Note(note) => {
                    host.journal.insert(id, note);
                    if goes == Goes::UntilNote {
                        return self.crash(at);
                    }
                }
                TargetAction::Activate { .. } => {
                    assert_eq!(host.socket, Socket::Still(id), "COMMIT of what is not here");
                    if works && !moved_on {
                        host.socket = Socket::Lives;
                        self.handovers[h].lived = true;
                    } else {
                        host.socket = Socket::None;
                        result = TargetResult::NotActivated {
                            why: why(),
                            moved_on,
                            is_locked: true,
                        };
                    }
                }
                TargetAction::Discard { .. } => {
                    // Or nothing was built of it.
                    let is_built = host.socket == Socket::Still(id);
                    if is_built {
                        host.socket = Socket::None;
                    }
                    let moved_on = moved_on && is_built;
                    result = TargetResult::Discarded { moved_on };
                }
                TargetAction::Unlock | TargetAction::Deliver => {}
                TargetAction::Send { link, message } => {
                    self.say(link, false, message);
                    continue;
                }
            }
            self.hosts[at].targets.handle_result(NOW, id, result);
        }
        while self.hosts[at].targets.poll_forgotten().is_some() {}
    }

    /// Sockets end with their process, and what is on the links; the journal stays.
    fn crash(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.socket = Socket::None;
        host.sources.clear();
        host.targets = no_targets();
        if !self.journal {
            host.journal.clear();
        }
        let mut touched = Vec::new();
        for (h, handover) in self.handovers.iter_mut().enumerate() {
            if handover.source == at || handover.target == at {
                handover.crashed = true;
                touched.push(h);
            }
        }
        self.wire.retain(|sent| !touched.contains(&sent.handover));
        for h in touched {
            if let Some(source) = self.source(h) {
                source.handle_link_lost(NOW, ());
                self.source_works(h, Goes::Well);
            }
        }
    }

    fn check(&mut self) {
        let owners = |host: &&Host| host.socket == Socket::Lives;
        assert!(self.hosts.iter().filter(owners).count() <= 1, "two owners");
        for h in 0..self.handovers.len() {
            let Some(source) = self.source(h) else {
                continue;
            };
            let (fate, committed) = (source.ended(), source.has_committed());
            let handover = &mut self.handovers[h];
            // One in doubt can be asked again.
            let before = handover.fate.filter(|fate| *fate != Fate::InDoubt);
            assert!(super::may_follow(before, fate));
            handover.fate = fate;
            match fate {
                Some(Fate::Moved) => assert!(handover.lived),
                Some(Fate::Kept) => assert!(!handover.lived),
                Some(Fate::Lost) => assert!(handover.crashed || handover.moved_on),
                None | Some(Fate::InDoubt) => assert!(committed || !handover.lived),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERED: Step = Step::Deliver {
        message: 0,
        works: true,
    };

    fn deliver(message: u8) -> Step {
        Step::Deliver {
            message,
            works: true,
        }
    }

    fn run(steps: impl IntoIterator<Item = Step>) -> World {
        let mut world = World::new(true);
        for step in steps {
            world.step(&step);
            world.check();
        }
        world
    }

    fn begin(far: bool, at_once: bool) -> Step {
        Step::Begin { far, at_once }
    }

    /// A connection moves from host 0 to 1, and from there back, while everything comes again.
    #[test]
    fn a_connection_moves_and_comes_back() {
        let world = run([
            begin(false, false),
            // OFFER, ACCEPTED, IMAGE, PREPARED, COMMIT, ACTIVE.
            DELIVERED,
            deliver(1),
            deliver(2),
            deliver(2),
            deliver(3),
            deliver(4),
            deliver(4),
            deliver(5),
            // OFFER, ACCEPTED, IMAGE, COMMIT, ACTIVE.
            begin(true, true),
            deliver(6),
            deliver(7),
            deliver(2),
            deliver(8),
            deliver(9),
            deliver(9),
            deliver(10),
        ]);
        let fates: Vec<_> = world.handovers.iter().map(|h| h.fate).collect();
        assert_eq!(fates, [Some(Fate::Moved); 2]);
        let sockets: Vec<_> = world.hosts.iter().map(|host| host.socket).collect();
        assert_eq!(sockets, [Socket::Lives, Socket::None, Socket::None]);
    }

    #[test]
    fn a_target_that_ends_while_it_activates_has_lost_the_connection() {
        let world = run([
            begin(false, false),
            DELIVERED,
            deliver(1),
            deliver(2),
            deliver(3),
            Step::CrashAfterNote { message: 4 },
            // The source has asked again over a new link.
            DELIVERED,
            deliver(1),
        ]);
        assert_eq!(world.handovers[0].fate, Some(Fate::Lost));
    }

    /// The source's process ends when it has noted that it commits, and the one after it does so.
    #[test]
    fn what_is_committed_moves_without_its_source() {
        let world = run([
            begin(false, false),
            DELIVERED,
            deliver(1),
            deliver(2),
            Step::CrashAfterNote { message: 3 },
            Step::Resolve { handover: 0 },
            DELIVERED,
            deliver(1),
        ]);
        assert_eq!(world.handovers[0].fate, Some(Fate::Moved));
        assert_eq!(world.hosts[1].socket, Socket::Lives);
    }

    /// The same before its image has left.
    #[test]
    fn what_is_committed_without_its_image_is_lost() {
        let world = run([
            begin(false, true),
            DELIVERED,
            Step::CrashAfterNote { message: 1 },
            Step::Resolve { handover: 0 },
            DELIVERED,
            deliver(1),
        ]);
        assert_eq!(world.handovers[0].fate, Some(Fate::Lost));
        assert_eq!(world.hosts[1].socket, Socket::None);
    }

    #[test]
    #[should_panic(expected = "two owners")]
    fn two_owners_are_noticed() {
        let mut world = World::new(true);
        world.hosts[2].socket = Socket::Lives;
        world.check();
    }
}
