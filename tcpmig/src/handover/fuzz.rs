//! What any bytes, events and orders of messages do to the two ends of a handover.

mod hosts;

use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use bytes::Bytes;

use super::{
    Code, Decoder, Fate, HandoverId, Heard, Message, Note, Refusal, SourceAction, SourceConfig,
    SourceResult, SourceSession, TargetAction, TargetConfig, TargetResult, TargetSessions,
};
use crate::fuzz::Peak;

/// What decoding a message allocates at most, apart from a few times its input.
const ALLOCATION: u64 = 8 << 10;

/// What happens to a handover.
#[derive(Arbitrary, Debug)]
pub enum Story<'a> {
    /// Frames of any bytes arrive.
    SecretBytes(Vec<&'a [u8]>),
    /// Messages go from one end to the other.
    Messages(Vec<Said<'a>>),
    /// Any events at a source, whatever its target does.
    Source(Vec<AtSource>),
    /// Any events at a target, whatever sources do.
    Target(Vec<AtTarget>),
    /// A connection moves between hosts that keep to the protocol, over links that lose, repeat
    /// and reorder.
    Hosts(hosts::Course),
}

/// A message.
#[derive(Arbitrary, Debug)]
#[allow(missing_docs, reason = "as of Message")]
pub enum Said<'a> {
    Hello(u16, u16),
    Offer([u8; 16], u32, &'a [u8]),
    Accepted([u8; 16], u32),
    Image([u8; 16], bool, &'a [u8]),
    Prepared([u8; 16], u32),
    Refused([u8; 16], Code, &'a str),
    Commit([u8; 16], Vec<&'a [u8]>),
    Abort([u8; 16]),
    Active([u8; 16], u32, u32),
    Aborted([u8; 16], Code, &'a str),
    Lost([u8; 16], &'a str),
    Unknown([u8; 16]),
}

/// Runs a story. Nothing panics, a decision that was made stays, and no two hosts own a connection.
pub fn handover(story: &Story<'_>, peak: Peak) {
    match story {
        Story::SecretBytes(frames) => bytes(frames, peak),
        Story::Messages(said) => {
            for said in said {
                roundtrip(&said.message());
            }
        }
        Story::Source(events) => source(events),
        Story::Target(events) => target(events),
        Story::Hosts(course) => hosts::run(course),
    }
}

fn bytes(frames: &[&[u8]], peak: Peak) {
    let mut decoder = Decoder::default();
    for frame in frames {
        let len = frame.len() as u64;
        let frame = Bytes::copy_from_slice(frame);
        let mut decoded = None;
        let allocated = peak(&mut || decoded = Some(decoder.frame(frame.clone())));
        assert!(
            allocated <= 8 * len + ALLOCATION,
            "{allocated} bytes were allocated for {len}"
        );
        match decoded {
            Some(Ok(Some(message))) => roundtrip(&message),
            Some(Ok(None)) | None => {}
            Some(Err(error)) => {
                let _ = error.to_string();
                // The link is given up.
                return;
            }
        }
    }
}

fn roundtrip(message: &Message) {
    let _ = format!("{message:?}");
    let (first, second) = message.clone().encode();
    let mut decoder = Decoder::default();
    let mut decoded = decoder.frame(first).expect("just encoded");
    if let Some(image) = second {
        assert_eq!(decoded, None);
        decoded = decoder.frame(image).expect("any bytes can be an image");
    }
    assert_eq!(decoded.as_ref(), Some(message));
}

impl Said<'_> {
    fn message(&self) -> Message {
        let id = HandoverId::from_bytes;
        match self {
            Self::Hello(oldest, newest) => Message::Hello {
                oldest: *oldest,
                newest: *newest,
            },
            Self::Offer(of, queued, draft) => Message::Offer {
                id: id(*of),
                queued: *queued,
                draft: Bytes::copy_from_slice(draft),
            },
            Self::Accepted(of, locked_ms) => Message::Accepted {
                id: id(*of),
                locked_ms: *locked_ms,
            },
            Self::Image(of, waits, image) => Message::Image {
                id: id(*of),
                waits: *waits,
                image: Bytes::copy_from_slice(image),
            },
            Self::Prepared(of, rebuild_us) => Message::Prepared {
                id: id(*of),
                rebuild_us: *rebuild_us,
            },
            Self::Refused(of, code, reason) => Message::Refused {
                id: id(*of),
                code: *code,
                reason: (*reason).to_owned(),
            },
            Self::Commit(of, packets) => Message::Commit {
                id: id(*of),
                // Shorter ones are left out by readers.
                packets: packets
                    .iter()
                    .map(|packet| [&[0x45; 20], *packet].concat().into())
                    .collect(),
            },
            Self::Abort(of) => Message::Abort { id: id(*of) },
            Self::Active(of, rebuild_us, activate_us) => Message::Active {
                id: id(*of),
                rebuild_us: *rebuild_us,
                activate_us: *activate_us,
            },
            Self::Aborted(of, code, reason) => Message::Aborted {
                id: id(*of),
                code: *code,
                reason: (*reason).to_owned(),
            },
            Self::Lost(of, reason) => Message::Lost {
                id: id(*of),
                reason: (*reason).to_owned(),
            },
            Self::Unknown(of) => Message::Unknown { id: id(*of) },
        }
    }
}

/// What happens to a source.
#[derive(Arbitrary, Debug)]
#[allow(missing_docs, reason = "its names say it")]
pub enum AtSource {
    /// It does what it has to do next.
    Do {
        works: bool,
    },
    /// It begins that, and other things happen meanwhile.
    Begin,
    /// What it has begun ends.
    End {
        works: bool,
    },
    /// This comes.
    Message(u8),
    LinkLost,
    Late,
    GiveUp,
    Cancel,
    Ask,
}

/// What happens to a target.
#[derive(Arbitrary, Debug)]
#[allow(missing_docs, reason = "its names say it")]
pub enum AtTarget {
    /// It does what it has to do next.
    Do {
        works: bool,
        moved_on: bool,
    },
    /// It begins that, and other things happen meanwhile.
    Begin,
    /// What it has begun ends.
    End {
        works: bool,
        moved_on: bool,
    },
    /// This comes, from its source or another host.
    Message {
        kind: u8,
        is_foreign: bool,
    },
    Late,
}

const ID: HandoverId = HandoverId::from_bytes([7; 16]);

/// A message of each kind but HELLO.
fn of_kind(kind: u8) -> Message {
    let (id, code, reason) = (ID, Code::Other, String::new());
    match kind % 13 {
        0 => Message::Offer {
            id,
            queued: 7,
            draft: Bytes::from_static(b"draft"),
        },
        9 | 10 => Message::Accepted {
            id,
            locked_ms: if kind % 13 == 9 { u32::MAX } else { 0 },
        },
        11 | 12 => Message::Image {
            id,
            waits: kind % 13 == 11,
            image: Bytes::from_static(b"image"),
        },
        1 => Message::Prepared { id, rebuild_us: 1 },
        2 => Message::Refused { id, code, reason },
        3 => Message::commit(id),
        4 => Message::Abort { id },
        5 => Message::Active {
            id,
            rebuild_us: 1,
            activate_us: 1,
        },
        6 => Message::Aborted { id, code, reason },
        7 => Message::Lost { id, reason },
        _ => Message::Unknown { id },
    }
}

/// What a source has done so far.
#[derive(Default)]
struct SourceDid {
    noted: Vec<Note>,
    accepted: bool,
    frozen: bool,
    /// The target was told that PREPARED is not waited for.
    at_once: bool,
    prepared: bool,
    sent_commit: bool,
    heard_aborted: bool,
    thawed: bool,
    discarded: bool,
}

impl SourceDid {
    fn ends(&mut self, action: &SourceAction, works: bool) -> SourceResult<()> {
        use SourceAction as A;
        let failed = SourceResult::Failed(());
        match action {
            A::Note(note) => {
                if !works {
                    return failed;
                }
                self.noted.push(*note);
            }
            A::Describe => {
                assert_eq!(self.noted, []);
                let draft = Bytes::new();
                return if works {
                    SourceResult::Described { queued: 0, draft }
                } else {
                    failed
                };
            }
            A::Freeze => {
                assert!(self.accepted && !self.frozen);
                assert_eq!(self.noted, [Note::Offering]);
                if !works {
                    return failed;
                }
                self.frozen = true;
                let image = Bytes::new();
                return SourceResult::Frozen { image };
            }
            A::Confirm => {
                assert!(self.frozen && !self.sent_commit);
                assert!(self.at_once || self.prepared);
                let packets = Vec::new();
                return if works {
                    SourceResult::Confirmed { packets }
                } else {
                    failed
                };
            }
            A::Send(message) => {
                match message {
                    Message::Offer { .. } => assert_eq!(self.noted, [Note::Offering]),
                    Message::Image { waits, .. } => {
                        assert!(self.frozen && !self.sent_commit);
                        self.at_once = !waits;
                    }
                    Message::Commit { .. } => {
                        assert_eq!(self.noted, [Note::Offering, Note::Committing]);
                        self.sent_commit = true;
                    }
                    Message::Abort { .. } => assert_eq!(self.frozen, self.thawed),
                    other => panic!("a source does not say {other:?}"),
                }
                if !works {
                    return failed;
                }
            }
            A::Keep => {
                assert!(!self.thawed && !self.discarded);
                assert!(!self.sent_commit || self.heard_aborted);
                self.thawed = self.frozen;
            }
            A::Discard => {
                assert!(self.sent_commit && !self.thawed && !self.discarded);
                self.discarded = true;
            }
            A::Silence => assert!(self.sent_commit && self.at_once && !self.prepared),
            A::Connect | A::Doubt | A::EndRedirect | A::LookUpDecision => assert!(self.sent_commit),
            A::Finish => panic!("its process has not ended"),
        }
        match action {
            A::LookUpDecision => SourceResult::Decided(None),
            A::Connect if !works => SourceResult::Hopeless(()),
            _ => SourceResult::Done,
        }
    }
}

fn source(events: &[AtSource]) {
    let now = Duration::ZERO;
    let mut source = SourceSession::<()>::new(SourceConfig::default(), ID);
    let mut did = SourceDid::default();
    let mut begun = None;
    let mut fate = None;
    for event in events {
        match event {
            AtSource::Begin => begun = source.poll().or(begun),
            AtSource::Do { works } | AtSource::End { works } => {
                if matches!(event, AtSource::Do { .. }) {
                    begun = source.poll().or(begun);
                }
                if let Some(action) = begun.take() {
                    source.handle_result(now, did.ends(&action, *works));
                }
            }
            AtSource::Message(kind) => {
                if source.listens() {
                    let message = of_kind(*kind);
                    did.heard_aborted |= matches!(message, Message::Aborted { .. });
                    did.accepted |= matches!(message, Message::Accepted { .. });
                    did.prepared |= matches!(message, Message::Prepared { .. });
                    source.handle_message(now, message);
                }
            }
            AtSource::LinkLost => source.handle_link_lost(now, ()),
            AtSource::Late => {
                if let Some(late) = source.poll_timeout() {
                    source.handle_timeout(late);
                }
            }
            AtSource::GiveUp => source.give_up(now, ()),
            AtSource::Cancel => source.cancel(now),
            AtSource::Ask => {
                source.ask(now);
                fate = fate.filter(|fate| *fate != Fate::InDoubt);
            }
        }
        assert!(may_follow(fate, source.ended()));
        fate = source.ended();
        match fate {
            Some(Fate::Kept) => assert_eq!(did.frozen, did.thawed),
            Some(Fate::Moved | Fate::Lost) => assert!(did.discarded),
            Some(Fate::InDoubt) => assert!(did.sent_commit && !did.thawed),
            None => {}
        }
    }
}

/// Whether a fate can follow another.
fn may_follow(before: Option<Fate>, after: Option<Fate>) -> bool {
    before == after || before.is_none() || (before == Some(Fate::InDoubt) && after.is_some())
}

/// What a target has done so far with what is offered to it.
#[derive(Default)]
struct TargetDid {
    noted: Vec<Note>,
    locked: bool,
    built: bool,
    lives: bool,
    moved_on: bool,
}

impl TargetDid {
    fn ends(&mut self, action: &TargetAction<u8>, works: bool, moved_on: bool) -> TargetResult {
        use TargetAction as A;
        let why = Refusal::other("for a test");
        match action {
            A::Examine { .. } | A::Lock => {
                assert!(!self.locked && !self.built && !self.lives);
                if !works {
                    return TargetResult::Failed(why);
                }
                if matches!(action, A::Lock) {
                    // Or it is redirected, which `moved_on` stands for here.
                    self.locked = !moved_on;
                    return TargetResult::Locked(Duration::from_secs(self.locked.into()));
                }
            }
            A::Build { .. } => {
                assert!(!self.built && !self.lives);
                assert_eq!(self.noted, [Note::Prepared]);
                self.locked = true;
                if !works {
                    return TargetResult::Failed(why);
                }
                self.built = true;
            }
            A::Note(note) => {
                if !works {
                    return TargetResult::Failed(why);
                }
                self.noted.push(*note);
            }
            A::Activate { .. } => {
                assert!(self.built && !self.lives);
                assert_eq!(self.noted.last(), Some(&Note::Activating));
                self.built = false;
                if !works {
                    self.moved_on = moved_on;
                    return TargetResult::NotActivated {
                        why,
                        moved_on,
                        is_locked: true,
                    };
                }
                self.lives = true;
            }
            A::Discard { .. } => {
                assert!(!self.lives);
                self.moved_on = moved_on && self.built;
                self.built = false;
                return TargetResult::Discarded {
                    moved_on: self.moved_on,
                };
            }
            A::Deliver => assert!(self.lives),
            A::Unlock => {
                assert!(!self.built && !self.lives);
                self.locked = false;
            }
            A::Send { .. } => {}
        }
        TargetResult::Done
    }

    fn says(&self, message: &Message) {
        match message {
            Message::Accepted { locked_ms, .. } => {
                assert_eq!(self.noted, [Note::Prepared]);
                assert!(!self.built && (*locked_ms != 0) == self.locked);
            }
            Message::Prepared { .. } => {
                assert_eq!(self.noted, [Note::Prepared]);
                assert!(self.built);
            }
            Message::Active { .. } => assert!(self.lives),
            Message::Aborted { .. } => assert!(!self.built && !self.lives && !self.moved_on),
            Message::Refused { .. } => assert!(!self.lives),
            Message::Lost { .. } => assert!(self.moved_on),
            Message::Unknown { .. } => {}
            other => panic!("a target does not say {other:?}"),
        }
    }
}

fn target(events: &[AtTarget]) {
    let now = Duration::ZERO;
    let mut target = TargetSessions::new(TargetConfig::default());
    let mut did = TargetDid::default();
    let mut begun: Option<TargetAction<u8>> = None;
    let mut asked = [0_usize; 256];
    let [source, other]: [Arc<str>; 2] = ["source".into(), "other".into()];
    for (number, event) in events.iter().enumerate() {
        let mut answer = None;
        match event {
            AtTarget::Begin => begun = begun.or_else(|| target.poll(ID)),
            AtTarget::Do { works, moved_on } | AtTarget::End { works, moved_on } => {
                if matches!(event, AtTarget::Do { .. }) {
                    begun = begun.or_else(|| target.poll(ID));
                }
                if let Some(action) = begun.take() {
                    let result = did.ends(&action, *works, *moved_on);
                    if let TargetAction::Send { link, message } = action {
                        answer = Some((link, message));
                    } else {
                        target.handle_result(now, ID, result);
                    }
                }
            }
            AtTarget::Message { kind, is_foreign } => {
                let from = if *is_foreign { &other } else { &source };
                let message = of_kind(*kind);
                let link = (number % asked.len()) as u8;
                let wants_answer = matches!(
                    message,
                    Message::Offer { .. }
                        | Message::Commit { .. }
                        | Message::Image { waits: true, .. }
                );
                asked[usize::from(link)] += usize::from(wants_answer);
                match target.handle_message(now, from, link, message, None) {
                    Heard::Answer(message) | Heard::Foreign(Some(message)) => {
                        asked[usize::from(link)] -= 1;
                        // About what is gone, or is somebody else's.
                        assert!(matches!(
                            message,
                            Message::Unknown { .. } | Message::Refused { .. }
                        ));
                    }
                    Heard::Poll(id) => assert_eq!(id, ID),
                    Heard::Foreign(None) | Heard::Ignored | Heard::Unexpected(_) => {}
                }
            }
            AtTarget::Late => {
                if let Some(late) = target.poll_timeout() {
                    target.handle_timeout(late.min(Duration::from_secs(60)));
                }
            }
        }
        if let Some((link, message)) = answer {
            did.says(&message);
            asked[usize::from(link)] = asked[usize::from(link)]
                .checked_sub(1)
                .expect("nobody asked for it");
        }
        // It was refused, and can be offered again.
        if begun.is_none() && !target.knows(ID) {
            assert!(!did.built && !did.lives);
            did = TargetDid::default();
        }
    }
}
