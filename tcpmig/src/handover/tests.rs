use std::collections::HashSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// A source and a target with what is on the wire between them, and who has a live socket.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    source: Source,
    target: Target,
    to_target: Vec<TargetEvent>,
    to_source: Vec<SourceEvent>,
    link: bool,
    source_lives: bool,
    target_lives: bool,
}

impl World {
    fn new() -> Self {
        Self {
            source: Source::offered(),
            target: Target::preparing(),
            to_target: Vec::new(),
            to_source: Vec::new(),
            link: true,
            source_lives: false,
            target_lives: false,
        }
    }

    fn at_source(mut self, event: SourceEvent) -> Self {
        match self.source.handle(event) {
            SourceAction::Commit => self.send_commit(),
            SourceAction::AskAgain => {
                self.link = true;
                self.send_commit();
            }
            SourceAction::Keep => {
                self.source_lives = true;
                if self.link {
                    self.to_target.push(TargetEvent::Abort);
                }
            }
            SourceAction::Wait
            | SourceAction::Confirm
            | SourceAction::Discard
            | SourceAction::Doubt => {}
        }
        self
    }

    fn send_commit(&mut self) {
        if self.link && !self.to_target.contains(&TargetEvent::Commit) {
            self.to_target.push(TargetEvent::Commit);
        }
    }

    fn at_target(mut self, event: TargetEvent) -> Self {
        let said = match self.target.handle(event) {
            TargetAction::SayPrepared => SourceEvent::Prepared,
            TargetAction::SayRefused => SourceEvent::Refused,
            TargetAction::SayActive => SourceEvent::Active,
            TargetAction::SayAborted => SourceEvent::Aborted,
            TargetAction::SayLost => SourceEvent::Lost,
            TargetAction::Wait | TargetAction::Activate | TargetAction::Discard => return self,
        };
        if self.link {
            self.to_source.push(said);
        }
        self
    }

    fn next(&self) -> Vec<World> {
        let mut next = Vec::new();
        for event in [
            TargetEvent::Built,
            TargetEvent::NotBuilt,
            TargetEvent::Deadline,
        ] {
            next.push(self.clone().at_target(event));
        }
        if self.target.clone().handle(TargetEvent::Activated) == TargetAction::SayActive {
            let mut lives = self.clone().at_target(TargetEvent::Activated);
            lives.target_lives = true;
            next.push(lives);
            next.push(self.clone().at_target(TargetEvent::NotActivated));
        }
        for event in [
            SourceEvent::Confirmed,
            SourceEvent::NotConfirmed,
            SourceEvent::Deadline,
        ] {
            // Only a source that was asked to confirm reports that it did.
            let asked = matches!(event, SourceEvent::Deadline)
                || self.source.clone().handle(SourceEvent::Confirmed) == SourceAction::Commit;
            if asked {
                next.push(self.clone().at_source(event));
            }
        }
        if let Some((first, rest)) = self.to_target.split_first() {
            let mut world = self.clone();
            world.to_target = rest.to_vec();
            next.push(world.at_target(*first));
        }
        if let Some((first, rest)) = self.to_source.split_first() {
            let mut world = self.clone();
            world.to_source = rest.to_vec();
            next.push(world.at_source(*first));
        }
        if self.link {
            // The link breaks and loses what is on it.
            let mut world = self.clone();
            world.link = false;
            world.to_target.clear();
            world.to_source.clear();
            let world = world.at_target(TargetEvent::LinkLost);
            next.push(world.at_source(SourceEvent::LinkLost));
        }
        next
    }
}

#[test]
fn no_order_of_events_makes_two_owners() {
    let mut seen = HashSet::from([World::new()]);
    let mut open = vec![World::new()];
    let mut settled = 0;
    while let Some(world) = open.pop() {
        assert!(
            !(world.source_lives && world.target_lives),
            "two owners: {world:?}"
        );
        match world.source.fate() {
            Some(Fate::Moved) => assert!(world.target_lives, "nobody owns it: {world:?}"),
            Some(Fate::Kept) => assert!(world.source_lives),
            _ => {}
        }
        settled += usize::from(world.source.fate().is_some());
        open.extend(
            world
                .next()
                .into_iter()
                .filter(|next| next.to_target.len() + next.to_source.len() < 6)
                .filter(|next| seen.insert(next.clone())),
        );
    }
    assert!(settled > 10, "the exploration reaches the ends");
}

#[test]
fn a_lost_commit_is_asked_for_again_and_never_thaws() {
    let mut source = Source::offered();
    assert_eq!(source.handle(SourceEvent::Prepared), SourceAction::Confirm);
    assert_eq!(source.handle(SourceEvent::Confirmed), SourceAction::Commit);
    for event in [SourceEvent::LinkLost, SourceEvent::Deadline] {
        assert_eq!(source.handle(event), SourceAction::AskAgain);
        assert_eq!(source.fate(), None);
    }
    assert_eq!(source.handle(SourceEvent::GiveUp), SourceAction::Doubt);
    assert_eq!(source.fate(), Some(Fate::InDoubt));
    // An answer that comes after all settles it.
    assert_eq!(source.handle(SourceEvent::Active), SourceAction::Discard);
    assert_eq!(source.fate(), Some(Fate::Moved));
}

#[test]
fn a_target_waits_for_commit_when_the_link_breaks() {
    let mut target = Target::preparing();
    assert_eq!(target.handle(TargetEvent::Built), TargetAction::SayPrepared);
    assert_eq!(target.handle(TargetEvent::LinkLost), TargetAction::Wait);
    assert_eq!(target.handle(TargetEvent::Commit), TargetAction::Activate);
    assert_eq!(
        target.handle(TargetEvent::Activated),
        TargetAction::SayActive
    );
    assert_eq!(target.handle(TargetEvent::Commit), TargetAction::SayActive);
    assert_eq!(target.fate(), Some(Fate::Moved));
}

#[test]
fn a_commit_after_the_deadline_is_answered_with_aborted() {
    let mut target = Target::preparing();
    assert_eq!(target.handle(TargetEvent::Built), TargetAction::SayPrepared);
    assert_eq!(target.handle(TargetEvent::Deadline), TargetAction::Discard);
    assert_eq!(target.handle(TargetEvent::Commit), TargetAction::SayAborted);
}

fn messages() -> impl Strategy<Value = Message> {
    let id = any::<[u8; 16]>().prop_map(HandoverId::from_octets);
    (id, 0..10, any::<u32>(), ".{0,40}", any::<Vec<u8>>()).prop_map(
        |(id, kind, us, reason, image)| match kind {
            0 => Message::Offer {
                id,
                image: Bytes::from(image),
            },
            1 => Message::Prepared { id, rebuild_us: us },
            2 => Message::Refused { id, reason },
            3 => Message::Commit {
                id,
                packets: image.chunks(7).map(Bytes::copy_from_slice).collect(),
            },
            4 => Message::Abort { id },
            5 => Message::Active {
                id,
                activate_us: us,
            },
            6 => Message::Aborted { id, reason },
            7 => Message::Lost { id, reason },
            8 => Message::Hello {
                oldest: us as u16,
                newest: (us >> 16) as u16,
            },
            _ => Message::Unknown { id },
        },
    )
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in(messages in prop::collection::vec(messages(), 0..8)) {
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for message in messages.clone() {
            let (first, second) = message.encode();
            for frame in [Some(first), second].into_iter().flatten() {
                got.extend(decoder.frame(frame).unwrap());
            }
        }
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn any_frame_is_decoded_or_refused(frame in any::<Vec<u8>>()) {
        let _ = Decoder::default().frame(frame.into());
    }

    #[test]
    fn octets_after_a_message_are_refused(message in messages(), more in 1..9_usize) {
        let (first, _) = message.encode();
        let mut frame = first.to_vec();
        frame.extend(vec![0; more]);
        prop_assert!(Decoder::default().frame(frame.into()).is_err());
    }
}
