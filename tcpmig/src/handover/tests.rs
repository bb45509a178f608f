mod model;
mod source;
mod target;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn messages() -> impl Strategy<Value = Message> {
    let id = any::<[u8; 16]>().prop_map(HandoverId::from_bytes);
    let code = prop::sample::select(&Code::ALL[..]);
    (id, 0..12, any::<u32>(), (code, ".{0,40}"), any::<Vec<u8>>()).prop_map(
        |(id, kind, us, (code, reason), image)| match kind {
            0 => Message::Offer {
                id,
                queued: us,
                draft: Bytes::from(image),
            },
            9 => Message::Accepted { id, locked_ms: us },
            10 => Message::Image {
                id,
                waits: us % 2 == 0,
                image: Bytes::from(image),
            },
            1 => Message::Prepared { id, rebuild_us: us },
            2 => Message::Refused { id, code, reason },
            3 => Message::Commit {
                id,
                packets: image.chunks_exact(20).map(Bytes::copy_from_slice).collect(),
            },
            4 => Message::Abort { id },
            5 => Message::Active {
                id,
                rebuild_us: us / 2,
                activate_us: us,
            },
            6 => Message::Aborted { id, code, reason },
            7 => Message::Lost { id, reason },
            8 => Message::Hello {
                oldest: us as u16,
                newest: (us >> 16) as u16,
            },
            _ => Message::Unknown { id },
        },
    )
}

/// One of each kind.
fn one_of_each() -> [Message; 12] {
    let id = HandoverId::from_bytes([0; 16]);
    let reason = String::new;
    [
        Message::hello(),
        Message::Offer {
            id,
            queued: 0,
            draft: Bytes::new(),
        },
        Message::Accepted { id, locked_ms: 0 },
        Message::Image {
            id,
            waits: true,
            image: Bytes::new(),
        },
        Message::Prepared { id, rebuild_us: 0 },
        Message::Refused {
            id,
            code: Code::Full,
            reason: reason(),
        },
        Message::commit(id),
        Message::Abort { id },
        Message::Active {
            id,
            rebuild_us: 0,
            activate_us: 0,
        },
        Message::Aborted {
            id,
            code: Code::Other,
            reason: reason(),
        },
        Message::Lost {
            id,
            reason: reason(),
        },
        Message::Unknown { id },
    ]
}

#[test]
fn the_specification_has_these_messages_and_fields() {
    let text = include_str!("../../PROTOCOL.md");
    assert!(text.contains(&format!("protocol, version {VERSION}\n")));
    let (table, _) = text
        .split_once("`reason` is for")
        .expect("the codes follow");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| `") && !line.contains("`m`"));
    let rows: Vec<Vec<&str>> = rows
        .map(|row| row.split('|').map(str::trim).collect())
        .collect();
    let messages = one_of_each();
    assert_eq!(rows.len(), messages.len());
    for (row, message) in rows.iter().zip(messages) {
        let name = message.name();
        assert_eq!(row[2], name);
        let (frame, _) = message.encode();
        let fields: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
            rmp_serde::from_slice(&frame).unwrap();
        let mut named: Vec<&str> = row[4].split('`').skip(1).step_by(2).collect();
        named.push("m");
        if name != "HELLO" {
            named.push("id");
        }
        named.sort_unstable();
        assert_eq!(fields.keys().collect::<Vec<_>>(), named, "{name}");
        let wire = row[1].trim_matches('`').as_bytes();
        assert!(
            frame.windows(wire.len()).any(|bytes| bytes == wire),
            "{name}"
        );
    }
}

#[test]
fn the_specification_has_these_codes() {
    let text = include_str!("../../PROTOCOL.md");
    let (_, table) = text.split_once("| `code` |").expect("a table of codes");
    let rows = table.lines().skip(2).map_while(|row| row.split('`').nth(1));
    let words = Code::ALL.map(Code::word);
    assert_eq!(rows.collect::<Vec<_>>(), words);
    assert_eq!(words.map(Code::of), Code::ALL);
}

/// What REFUSED looks like to a peer that knows no codes, and from one.
#[test]
fn codes_are_no_concern_of_those_who_do_not_know_them() {
    let id = HandoverId::from_bytes([7; 16]);
    let refused = |code| Message::Refused {
        id,
        code,
        reason: "no".to_owned(),
    };
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Earlier {
        m: String,
        id: HandoverId,
        reason: String,
    }
    let (frame, _) = refused(Code::Policy).encode();
    let earlier: Earlier = rmp_serde::from_slice(&frame).unwrap();
    assert_eq!((&*earlier.m, &*earlier.reason), ("refused", "no"));
    let frame = rmp_serde::to_vec_named(&earlier).unwrap();
    let decoded = Decoder::default().frame(frame.into()).unwrap();
    assert_eq!(decoded, Some(refused(Code::Other)));

    // One that a later version has.
    let (frame, _) = refused(Code::Image).encode();
    let at = frame.windows(5).position(|word| word == b"image").unwrap();
    let mut later = frame.to_vec();
    later[at..at + 5].copy_from_slice(b"newer");
    let decoded = Decoder::default().frame(later.into()).unwrap();
    assert_eq!(decoded, Some(refused(Code::Other)));
}

#[test]
fn what_is_too_short_for_a_packet_is_left_out() {
    let id = HandoverId::from_bytes([1; 16]);
    let packets = [0, 19, 20, 1, 21].map(|len| Bytes::from(vec![0x45; len]));
    let commit = |packets: &[Bytes]| Message::Commit {
        id,
        packets: packets.to_vec(),
    };
    let (frame, _) = commit(&packets).encode();
    let decoded = Decoder::default().frame(frame).unwrap();
    let kept = [packets[2].clone(), packets[4].clone()];
    assert_eq!(decoded, Some(commit(&kept)));
}

#[test]
fn a_handover_is_named_by_its_bytes_and_by_no_others() {
    let id = HandoverId::from_bytes(std::array::from_fn(|at| at as u8));
    assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
    assert!(id < HandoverId::from_bytes([1; 16]));
    let (frame, _) = Message::Abort { id }.encode();
    let bin16 = [&[0xc4, 16][..], &id.bytes()].concat();
    assert!(frame.ends_with(&bin16), "{frame:?}");
    // One byte less, and one more.
    for len in [15, 17] {
        let mut other = frame[..frame.len() - 18].to_vec();
        other.extend_from_slice(&[0xc4, len]);
        other.resize(other.len() + usize::from(len), 1);
        let error = Decoder::default().frame(other.into()).unwrap_err();
        assert!(error.to_string().contains("16 bytes"), "{error}");
    }
}

#[test]
fn what_a_message_lacks_is_named() {
    let frame = rmp_serde::to_vec_named(&std::collections::BTreeMap::from([("m", "abort")]));
    let error = Decoder::default().frame(frame.unwrap().into()).unwrap_err();
    assert!(error.to_string().ends_with("missing field `id`"), "{error}");
}

#[cfg(feature = "driver")]
#[test]
fn the_specification_has_these_limits() {
    let text = include_str!("../../PROTOCOL.md");
    let options = crate::driver::Options::default();
    let ms = |time: std::time::Duration| match time.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        ms @ 1000..60_000 => format!("{} s", ms / 1000),
        ms => format!("{} min", ms / 60_000),
    };
    for (name, value) in [
        ("prepared_within", ms(options.prepared_within)),
        ("answer_within", ms(options.answer_within)),
        ("ask_for", ms(options.ask_for)),
        ("commit_within", ms(options.commit_within)),
        ("remember", ms(options.remember)),
        ("lease", ms(options.lease)),
        ("prepared_at_once", options.prepared_at_once.to_string()),
        (
            "bytes_prepared",
            format!("{} MiB", options.bytes_prepared >> 20),
        ),
    ] {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = format!("`{name}` ({value})");
        assert!(words.contains(&said), "{said}");
    }
}

/// Every note that a journal takes is in the table of the specification, and no other.
#[cfg(feature = "driver")]
#[test]
fn the_specification_has_these_notes() {
    use crate::driver::journal::{Note, Role};
    let text = include_str!("../../PROTOCOL.md");
    let mut named = Vec::new();
    for row in text.lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        if let [_, side @ ("source" | "target"), notes, _, _, _] = cells[..] {
            let words = notes.split(", with").next().unwrap_or_default();
            named.extend(words.split(", ").map(|note| (side, note.to_owned())));
        }
    }
    let notes = [
        Note::Offering,
        Note::Committing,
        Note::Kept,
        Note::Moved,
        Note::Lost,
        Note::Prepared,
        Note::Activating,
        Note::Active,
        Note::Aborted,
    ];
    let side = |note: Note| match note.role() {
        Role::Source => "source",
        Role::Target => "target",
    };
    let notes: Vec<_> = notes.map(|note| (side(note), format!("{note:?}"))).into();
    assert_eq!(named, notes);
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
    fn bytes_after_a_message_are_refused(message in messages(), more in 1..9_usize) {
        let (first, _) = message.encode();
        let mut frame = first.to_vec();
        frame.extend(vec![0; more]);
        prop_assert!(Decoder::default().frame(frame.into()).is_err());
    }
}
