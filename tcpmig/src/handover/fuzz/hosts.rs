//! Hosts that give one connection to each other, and a network that loses, repeats and reorders.
//!
//! The test `handover::tests::model` visits every state of two handovers between two hosts; here
//! are more of both, and what is said travels as octets.

use std::collections::HashMap;

use arbitrary::Arbitrary;
use bytes::Bytes;

use super::super::*;

const HOSTS: usize = 3;
/// Handovers of a course.
const MAX_HANDOVERS: u8 = 32;

/// What happens, one after the other.
#[derive(Arbitrary, Debug)]
pub struct Course {
    /// Whether targets note what they do.
    journal: bool,
    steps: Vec<Step>,
}

/// What happens next. Handovers and messages are numbered modulo how many there are.
#[derive(Arbitrary, Debug)]
enum Step {
    /// The owner gives the connection to the next host, or the one after that.
    Begin { far: bool },
    /// A message arrives. It stays on its way, and so arrives again.
    Deliver {
        message: u8,
        /// Building or activating works.
        works: bool,
    },
    /// The source has read the connection again.
    Confirm { handover: u8, same: bool },
    /// No answer came in time.
    SourceDeadline { handover: u8 },
    /// The source asks no more.
    GiveUp { handover: u8 },
    /// A source in doubt asks again.
    AskAgain { handover: u8 },
    /// COMMIT did not come in time.
    TargetDeadline { handover: u8 },
    /// All that is between two hosts is lost.
    LinkLost { handover: u8 },
    /// The process on a host ends and is started again.
    Crash { host: u8 },
    /// A message arrives and the process ends as soon as it has noted that it activates.
    CrashActivating { message: u8 },
    /// What the target has built takes octets, which it must not.
    MoveOn { handover: u8 },
}

/// The socket on a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Socket {
    None,
    /// Under repair and locked, in this handover.
    Still(HandoverId),
    Lives,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Noted {
    Prepared,
    Activating,
    Aborted,
}

struct Host {
    socket: Socket,
    sources: HashMap<HandoverId, Source>,
    targets: HashMap<HandoverId, Target>,
    journal: HashMap<HandoverId, Noted>,
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
    fate: Option<Fate>,
    /// Whether the connection has ever lived at its target.
    lived: bool,
    /// Whether the process of its target has ended.
    crashed: bool,
    /// Whether what the target built has taken octets.
    moved_on: bool,
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

impl World {
    fn new(journal: bool) -> Self {
        let host = |socket| Host {
            socket,
            sources: HashMap::new(),
            targets: HashMap::new(),
            journal: HashMap::new(),
        };
        Self {
            journal,
            hosts: [host(Socket::Lives), host(Socket::None), host(Socket::None)],
            handovers: Vec::new(),
            wire: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Begin { far } => self.begin(far),
            Step::Deliver { message, works } => self.deliver(message, works, false),
            Step::CrashActivating { message } => self.deliver(message, true, true),
            Step::Confirm { handover, same } => {
                let Some(h) = self.nth(handover) else { return };
                let confirming = self.source(h).is_some_and(|source| {
                    source.clone().handle(SourceEvent::Confirmed) == SourceAction::Commit
                });
                if confirming {
                    self.at_source(
                        h,
                        [SourceEvent::NotConfirmed, SourceEvent::Confirmed][usize::from(same)],
                    );
                }
            }
            Step::SourceDeadline { handover } => {
                let Some(h) = self.nth(handover) else { return };
                self.at_source(h, SourceEvent::Deadline);
            }
            Step::GiveUp { handover } => {
                let Some(h) = self.nth(handover) else { return };
                let open = |source: &Source| source.has_committed() && source.fate().is_none();
                if self.source(h).is_some_and(open) {
                    self.at_source(h, SourceEvent::GiveUp);
                }
            }
            Step::AskAgain { handover } => {
                let Some(h) = self.nth(handover) else { return };
                if self.source(h).and_then(Source::fate) == Some(Fate::InDoubt) {
                    self.say(h, true, Message::commit(self.handovers[h].id));
                }
            }
            Step::TargetDeadline { handover } => {
                let Some(h) = self.nth(handover) else { return };
                self.at_target(h, TargetEvent::Deadline);
            }
            Step::LinkLost { handover } => {
                let Some(h) = self.nth(handover) else { return };
                self.wire.retain(|sent| sent.handover != h);
                self.at_target(h, TargetEvent::LinkLost);
                self.at_source(h, SourceEvent::LinkLost);
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

    fn source(&self, h: usize) -> Option<&Source> {
        let Handover { id, source, .. } = self.handovers[h];
        self.hosts[source].sources.get(&id)
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

    fn begin(&mut self, far: bool) {
        let lives = |host: &Host| host.socket == Socket::Lives;
        let Some(source) = self.hosts.iter().position(lives) else {
            return;
        };
        let number = self.handovers.len() as u8;
        if number == MAX_HANDOVERS {
            return;
        }
        let id = HandoverId::from_octets([number; 16]);
        self.handovers.push(Handover {
            id,
            source,
            target: (source + 1 + usize::from(far)) % HOSTS,
            fate: None,
            lived: false,
            crashed: false,
            moved_on: false,
        });
        self.hosts[source].socket = Socket::Still(id);
        self.hosts[source].sources.insert(id, Source::offered());
        let image = Bytes::from_static(b"image");
        self.say(number.into(), true, Message::Offer { id, image });
    }

    fn deliver(&mut self, message: u8, works: bool, crash: bool) {
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
        let event = match message {
            Message::Offer { .. } if to_target => return self.offer(h, works),
            Message::Commit { .. } if to_target => return self.commit(h, works, crash),
            Message::Abort { .. } if to_target => return self.at_target(h, TargetEvent::Abort),
            Message::Prepared { .. } => SourceEvent::Prepared,
            Message::Refused { .. } => SourceEvent::Refused,
            Message::Active { .. } => SourceEvent::Active,
            Message::Aborted { .. } => SourceEvent::Aborted,
            Message::Lost { .. } => SourceEvent::Lost,
            Message::Unknown { .. } => SourceEvent::Unknown,
            other => panic!("nobody said {other:?}"),
        };
        self.at_source(h, event);
    }

    fn at_source(&mut self, h: usize, event: SourceEvent) {
        let Handover { id, source, .. } = self.handovers[h];
        let host = &mut self.hosts[source];
        let Some(machine) = host.sources.get_mut(&id) else {
            return;
        };
        let action = machine.handle(event);
        if matches!(action, SourceAction::Keep | SourceAction::Discard) {
            assert_eq!(host.socket, Socket::Still(id), "{action:?}");
        }
        match action {
            SourceAction::Commit | SourceAction::AskAgain => {
                self.say(h, true, Message::commit(id));
            }
            SourceAction::Keep => {
                host.socket = Socket::Lives;
                self.say(h, true, Message::Abort { id });
            }
            SourceAction::Discard => host.socket = Socket::None,
            SourceAction::Wait | SourceAction::Confirm | SourceAction::Doubt => {}
            SourceAction::Release => panic!("no source here is asked by the process after it"),
        }
    }

    fn at_target(&mut self, h: usize, event: TargetEvent) {
        use TargetEvent::{Abort, Deadline, MovedOn, NotActivated};

        let Handover {
            id,
            target,
            moved_on,
            ..
        } = self.handovers[h];
        // Whoever gives it up compares first.
        let event = match event {
            Abort | Deadline | NotActivated if moved_on => MovedOn,
            event => event,
        };
        let host = &mut self.hosts[target];
        let Some(machine) = host.targets.get_mut(&id) else {
            return;
        };
        let reason = String::new();
        let answer = match machine.handle(event) {
            TargetAction::SayPrepared => Message::Prepared { id, rebuild_us: 1 },
            TargetAction::SayRefused => Message::Refused { id, reason },
            TargetAction::SayActive => Message::Active { id, activate_us: 1 },
            TargetAction::SayAborted => Message::Aborted { id, reason },
            TargetAction::SayLost => Message::Lost { id, reason },
            TargetAction::Discard => {
                if host.socket == Socket::Still(id) {
                    host.socket = Socket::None;
                }
                return;
            }
            TargetAction::Wait => return,
            TargetAction::Activate => panic!("only COMMIT does that"),
        };
        self.say(h, false, answer);
    }

    fn note(&mut self, h: usize, noted: Noted) {
        let Handover { id, target, .. } = self.handovers[h];
        self.hosts[target].journal.insert(id, noted);
    }

    fn offer(&mut self, h: usize, works: bool) {
        let Handover { id, target, .. } = self.handovers[h];
        let host = &mut self.hosts[target];
        if host.targets.contains_key(&id) || host.journal.contains_key(&id) {
            let reason = "offered before".to_owned();
            return self.say(h, false, Message::Refused { id, reason });
        }
        host.targets.insert(id, Target::preparing());
        // Two with the same addresses cannot be there: the lock and the kernel refuse the second.
        if works && host.socket == Socket::None {
            host.socket = Socket::Still(id);
            self.note(h, Noted::Prepared);
            self.at_target(h, TargetEvent::Built);
        } else {
            self.at_target(h, TargetEvent::NotBuilt);
            // Nothing is remembered of it: the same offer can come again, and then be taken.
            self.hosts[target].targets.remove(&id);
        }
    }

    fn commit(&mut self, h: usize, works: bool, crash: bool) {
        let Handover { id, target, .. } = self.handovers[h];
        let host = &mut self.hosts[target];
        if let Some(machine) = host.targets.get(&id) {
            if machine.clone().handle(TargetEvent::Commit) != TargetAction::Activate {
                return self.at_target(h, TargetEvent::Commit);
            }
        } else {
            let machine = match host.journal.get(&id) {
                None => return self.say(h, false, Message::Unknown { id }),
                Some(Noted::Activating) => Target::died(),
                Some(Noted::Prepared | Noted::Aborted) => Target::never_active(),
            };
            host.targets.insert(id, machine);
            return self.at_target(h, TargetEvent::Commit);
        }
        assert_eq!(host.socket, Socket::Still(id), "COMMIT of what is not here");
        if let Some(machine) = host.targets.get_mut(&id) {
            machine.handle(TargetEvent::Commit);
        }
        if !works {
            host.socket = Socket::None;
            self.note(h, Noted::Aborted);
            return self.at_target(h, TargetEvent::NotActivated);
        }
        self.note(h, Noted::Activating);
        if crash {
            return self.crash(target);
        }
        self.hosts[target].socket = Socket::Lives;
        self.handovers[h].lived = true;
        self.at_target(h, TargetEvent::Activated);
    }

    /// Sockets end with their process, and what is on the links; the journal stays.
    fn crash(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.socket = Socket::None;
        host.sources.clear();
        host.targets.clear();
        if !self.journal {
            host.journal.clear();
        }
        let mut touched = Vec::new();
        for (h, handover) in self.handovers.iter_mut().enumerate() {
            handover.crashed |= handover.target == at;
            if handover.source == at || handover.target == at {
                touched.push(h);
            }
        }
        self.wire.retain(|sent| !touched.contains(&sent.handover));
        for h in touched {
            self.at_target(h, TargetEvent::LinkLost);
            self.at_source(h, SourceEvent::LinkLost);
        }
    }

    fn check(&mut self) {
        let owners = |host: &&Host| host.socket == Socket::Lives;
        assert!(self.hosts.iter().filter(owners).count() <= 1, "two owners");
        for h in 0..self.handovers.len() {
            let Some(source) = self.source(h) else {
                continue;
            };
            let (fate, committed) = (source.fate(), source.has_committed());
            let handover = &mut self.handovers[h];
            assert!(super::may_follow(handover.fate, fate));
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

    /// A connection moves from host 0 to 1, and from there back, while everything comes again.
    #[test]
    fn a_connection_moves_and_comes_back() {
        let mut world = World::new(true);
        let same = true;
        for step in [
            Step::Begin { far: false },
            // OFFER, PREPARED, COMMIT, ACTIVE.
            DELIVERED,
            deliver(1),
            Step::Confirm { handover: 0, same },
            deliver(2),
            deliver(2),
            deliver(3),
            Step::Begin { far: true },
            deliver(4),
            deliver(5),
            Step::Confirm { handover: 1, same },
            deliver(2),
            deliver(6),
            deliver(7),
            deliver(2),
        ] {
            world.step(&step);
            world.check();
        }
        let fates: Vec<_> = world.handovers.iter().map(|h| h.fate).collect();
        assert_eq!(fates, [Some(Fate::Moved); 2]);
        let sockets: Vec<_> = world.hosts.iter().map(|host| host.socket).collect();
        assert_eq!(sockets, [Socket::Lives, Socket::None, Socket::None]);
    }

    #[test]
    fn a_target_that_ends_while_it_activates_has_lost_the_connection() {
        let mut world = World::new(true);
        let same = true;
        for step in [
            Step::Begin { far: false },
            DELIVERED,
            deliver(1),
            Step::Confirm { handover: 0, same },
            Step::CrashActivating { message: 2 },
            // The source has asked again over a new link.
            DELIVERED,
            deliver(1),
        ] {
            world.step(&step);
            world.check();
        }
        assert_eq!(world.handovers[0].fate, Some(Fate::Lost));
    }

    #[test]
    #[should_panic(expected = "two owners")]
    fn two_owners_are_noticed() {
        let mut world = World::new(true);
        world.hosts[2].socket = Socket::Lives;
        world.check();
    }
}
