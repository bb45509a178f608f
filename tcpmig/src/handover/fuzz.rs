//! What any octets, events and orders of messages do to the two ends of a handover.

mod hosts;

use arbitrary::Arbitrary;
use bytes::Bytes;

use super::{
    Decoder, Fate, HandoverId, Message, Source, SourceAction, SourceEvent, Target, TargetAction,
    TargetEvent,
};
use crate::fuzz::Peak;

/// What decoding a message allocates at most, apart from a few times its input.
const ALLOCATION: u64 = 8 << 10;

/// What happens to a handover.
#[derive(Arbitrary, Debug)]
pub enum Story<'a> {
    /// Frames of any octets arrive.
    Octets(Vec<&'a [u8]>),
    /// Messages go from one end to the other.
    Messages(Vec<Said<'a>>),
    /// Any events at a source, whatever its target does.
    Source(Vec<SourceEvent>),
    /// Any events at a target, whatever its source does.
    Target(Vec<TargetEvent>),
    /// A connection moves between hosts that keep to the protocol, over links that lose, repeat
    /// and reorder.
    Hosts(hosts::Course),
}

/// A message.
#[derive(Arbitrary, Debug)]
#[allow(missing_docs, reason = "as of Message")]
pub enum Said<'a> {
    Hello(u16, u16),
    Offer([u8; 16], &'a [u8]),
    Prepared([u8; 16], u32),
    Refused([u8; 16], &'a str),
    Commit([u8; 16], Vec<&'a [u8]>),
    Abort([u8; 16]),
    Active([u8; 16], u32),
    Aborted([u8; 16], &'a str),
    Lost([u8; 16], &'a str),
    Unknown([u8; 16]),
}

/// Runs a story. Nothing panics, a decision that was made stays, and no two hosts own a connection.
pub fn handover(story: &Story<'_>, peak: Peak) {
    match story {
        Story::Octets(frames) => octets(frames, peak),
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

fn octets(frames: &[&[u8]], peak: Peak) {
    let mut decoder = Decoder::default();
    for frame in frames {
        let len = frame.len() as u64;
        let frame = Bytes::copy_from_slice(frame);
        let mut decoded = None;
        let allocated = peak(&mut || decoded = Some(decoder.frame(frame.clone())));
        assert!(
            allocated <= 8 * len + ALLOCATION,
            "{allocated} octets were allocated for {len}"
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
        decoded = decoder.frame(image).expect("any octets can be an image");
    }
    assert_eq!(decoded.as_ref(), Some(message));
}

impl Said<'_> {
    fn message(&self) -> Message {
        let id = HandoverId::from_octets;
        match self {
            Self::Hello(oldest, newest) => Message::Hello {
                oldest: *oldest,
                newest: *newest,
            },
            Self::Offer(of, image) => Message::Offer {
                id: id(*of),
                image: Bytes::copy_from_slice(image),
            },
            Self::Prepared(of, rebuild_us) => Message::Prepared {
                id: id(*of),
                rebuild_us: *rebuild_us,
            },
            Self::Refused(of, reason) => Message::Refused {
                id: id(*of),
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
            Self::Active(of, activate_us) => Message::Active {
                id: id(*of),
                activate_us: *activate_us,
            },
            Self::Aborted(of, reason) => Message::Aborted {
                id: id(*of),
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

/// Whether a fate can follow another.
fn may_follow(before: Option<Fate>, after: Option<Fate>) -> bool {
    before == after || before.is_none() || (before == Some(Fate::InDoubt) && after.is_some())
}

fn source(events: &[SourceEvent]) {
    use SourceAction as A;
    let mut source = Source::offered();
    let (mut prepared, mut sent, mut ended) = (false, false, false);
    for event in events {
        let before = source.fate();
        let action = source.handle(*event);
        assert!(may_follow(before, source.fate()));
        assert!(!ended || action == A::Wait, "{action:?} after the end");
        match action {
            A::Confirm => assert!(*event == SourceEvent::Prepared && !prepared),
            A::Commit => assert!(*event == SourceEvent::Confirmed && prepared && !sent),
            A::AskAgain | A::Doubt => assert!(sent),
            A::Keep => {
                assert!(!sent || *event == SourceEvent::Aborted);
                assert_eq!(source.fate(), Some(Fate::Kept));
            }
            A::Discard => {
                assert!(sent);
                assert!(matches!(source.fate(), Some(Fate::Moved | Fate::Lost)));
            }
            A::Wait => {}
            A::Release => panic!("its process has not ended"),
        }
        prepared |= action == A::Confirm;
        sent |= action == A::Commit;
        ended |= matches!(action, A::Keep | A::Discard);
        let kept = source.fate() == Some(Fate::Kept);
        assert_eq!(source.has_committed(), sent && !kept);
    }
}

fn target(events: &[TargetEvent]) {
    use TargetAction as A;
    let mut target = Target::preparing();
    let (mut built, mut activating, mut lives, mut given_up) = (false, false, false, false);
    let mut moved_on = false;
    for event in events {
        let before = target.fate();
        let action = target.handle(*event);
        assert!(may_follow(before, target.fate()));
        match action {
            A::SayPrepared => assert!(!built && !given_up),
            A::Activate => {
                assert!(*event == TargetEvent::Commit && built && !activating && !given_up);
            }
            A::SayActive => {
                assert!(activating && !given_up);
                assert_eq!(target.fate(), Some(Fate::Moved));
            }
            A::SayLost | A::Discard if moved_on || *event == TargetEvent::MovedOn => {
                assert!(!lives && (built || !activating));
                moved_on = true;
                assert_eq!(target.fate(), Some(Fate::Lost));
            }
            A::SayRefused | A::SayAborted | A::Discard => {
                assert!(!lives);
                assert_eq!(target.fate(), Some(Fate::Kept));
            }
            A::SayLost => panic!("this process has not ended"),
            A::Wait => {}
        }
        built |= action == A::SayPrepared;
        activating |= action == A::Activate;
        lives |= action == A::SayActive;
        given_up |= matches!(action, A::SayRefused | A::SayAborted | A::Discard);
    }
}
