mod model;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

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
