use super::edit::Edit;
use super::*;

fn unmeasured(work: &mut dyn FnMut()) -> u64 {
    work();
    0
}

#[test]
fn images_are_read_and_written_back_byte_by_byte() {
    for (_, image) in WRITTEN {
        let payload = &image[Envelope::LEN..];
        let root = msgpack::read(payload).expect("MessagePack");
        let mut again = Vec::new();
        root.write(&mut again);
        assert_eq!(again, payload);
        decode(image, unmeasured);
    }
}

#[test]
fn every_value_in_its_longest_form_says_the_same() {
    for (version, image) in WRITTEN {
        let payload = &image[Envelope::LEN..];
        let mut root = msgpack::read(payload).expect("MessagePack");
        for number in 0..root.count() {
            root.nth(number).expect("counted").wide = true;
        }
        let mut wide = Vec::new();
        root.write(&mut wide);
        assert!(wide.len() > payload.len());
        let decoded = Image::decode(&sealed(*version, *version, &wide), &Limits::default());
        assert_eq!(decoded, Image::decode(image, &Limits::default()));
    }
}

#[test]
fn a_change_that_means_something_is_noticed() {
    let image = WRITTEN[0].1;
    let payload = &image[Envelope::LEN..];
    let edits = [Edit::Claim {
        at: 0,
        len: 1 << 30,
    }];
    assert!(!edits[0].is_harmless());
    let changed = edit::apply(payload, &edits);
    assert!(decoded(&sealed(1, 1, &changed), unmeasured).is_none());
}

#[test]
#[should_panic(expected = "bytes were allocated")]
fn what_is_allocated_is_held_against_the_input() {
    decode(b"", |work| {
        work();
        1 << 20
    });
}
