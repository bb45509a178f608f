//! Connections between a peer and a server that say what the tests let them say.

use bytes::BytesMut;
use proptest::prelude::*;

use super::frame::{
    ACK, CONTINUATION, END_HEADERS, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, put,
    put_window_update,
};
use super::*;

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    put(&mut bytes, kind, flags, id, payload);
    bytes
}

fn window_update(id: u32, increment: i64) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_window_update(&mut bytes, id, increment);
    bytes
}

/// `:method: GET`, and nothing else that a server needs.
const GET: &[u8] = &[0x82];
/// `:status: 200`.
const OK: &[u8] = &[0x88];
/// What a server of hyper begins with, and the size of a connection's window then.
const BEGINS: &[u8] = &[0, 4, 0, 16, 0, 0];
const TARGET: i64 = 1 << 20;

/// Frames, as the tests look at them.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(head) = Head::first(bytes) {
        let payload = bytes[HEAD..head.whole()].to_vec();
        frames.push((head.kind, head.flags, head.id, payload));
        bytes = &bytes[head.whole()..];
    }
    assert!(bytes.is_empty());
    frames
}

/// What the server reads; requests are taken.
fn read(connection: &mut Connection) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        let read = connection.read().split();
        got.extend_from_slice(&read);
        if connection.take_request().is_none() && read.is_empty() {
            return got;
        }
    }
}

/// The peer sends this, and the server looks at it.
fn arrive(connection: &mut Connection, bytes: &[u8]) {
    connection.receive(bytes);
    connection.read();
}

/// What the peer gets of what the server says.
fn say(connection: &mut Connection, bytes: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    let passes = connection.passes(bytes.len());
    got.extend_from_slice(&bytes[..passes]);
    connection.sent(&bytes[..passes]);
    connection.write(&bytes[passes..]);
    got.extend_from_slice(&connection.unsent().split());
    got
}

/// A connection whose peer and server have said SETTINGS.
fn begun() -> Connection {
    let mut connection = Connection::new();
    connection.receive(PREFACE);
    arrive(&mut connection, &frame(SETTINGS, 0, 0, &[]));
    say(&mut connection, &frame(SETTINGS, 0, 0, BEGINS));
    say(&mut connection, &frame(SETTINGS, ACK, 0, &[]));
    say(&mut connection, &window_update(0, TARGET - 65_535));
    connection.receive(&frame(SETTINGS, ACK, 0, &[]));
    read(&mut connection);
    connection
}

/// The same behind a move, with a server that has begun. What it was given, and what the peer got.
fn moved(mut connection: Connection) -> (Connection, Vec<u8>, Vec<u8>) {
    connection.drain(true);
    let image = connection.into_image(&[]).unwrap();
    let encoded = rmp_serde::to_vec_named(&image).unwrap();
    let image = rmp_serde::from_slice(&encoded).unwrap();
    let mut connection = Connection::resume(&image, |_| Some(GET.to_vec())).unwrap();
    let script = read(&mut connection);
    let begin = [
        frame(SETTINGS, 0, 0, BEGINS),
        frame(SETTINGS, ACK, 0, &[]),
        window_update(0, TARGET - 65_535),
    ];
    let got = say(&mut connection, &begin.concat());
    (connection, script, got)
}

#[test]
fn a_connection_at_rest_goes_on() {
    let mut connection = begun();
    connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET));
    assert_eq!(read(&mut connection).len(), HEAD + 1);
    let answer = [
        frame(HEADERS, END_HEADERS, 1, OK),
        frame(DATA, END_STREAM, 1, &[7; 1000]),
    ];
    assert_eq!(say(&mut connection, &answer.concat()), answer.concat());

    let (mut connection, script, got) = moved(connection);
    assert!(script.starts_with(PREFACE));
    let script = frames(&script[PREFACE.len()..]);
    // No table, no window for streams; no more for the connection than it has.
    assert_eq!(script[0].3, [0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    assert_eq!(script[1].1, ACK);
    assert_eq!(script.len(), 2);
    assert!(got.is_empty(), "{got:?}");

    // The peer's next stream: with its window.
    connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 3, GET));
    let given = frames(&read(&mut connection));
    let update = given.iter().find(|frame| frame.0 == WINDOW_UPDATE).unwrap();
    assert_eq!(
        (update.2, &update.3[..]),
        (3, &65_535_u32.to_be_bytes()[..])
    );
    // The server believes in the whole of the connection's window.
    let answer = [
        frame(HEADERS, END_HEADERS, 3, OK),
        frame(DATA, 0, 3, &[8; 16_384]),
        frame(DATA, 0, 3, &[8; 16_384]),
        frame(DATA, 0, 3, &[8; 16_384]),
        frame(DATA, END_STREAM, 3, &[8; 16_383]),
    ];
    let got = frames(&say(&mut connection, &answer.concat()));
    assert_eq!(got[0].3, [0x20, 0x88], "the table is emptied");
    let data: usize = got[1..].iter().map(|frame| frame.3.len()).sum();
    assert_eq!(data, 3 * 16_384, "the last does not fit");
    arrive(&mut connection, &window_update(0, 20_000));
    let got = frames(&connection.unsent().split());
    assert_eq!((got[0].1, got[0].3.len()), (END_STREAM, 16_383));
    // What was owed is paid: the server learns of the rest.
    let told = frames(&read(&mut connection));
    let update = told.iter().find(|frame| frame.0 == WINDOW_UPDATE).unwrap();
    assert_eq!(update.3, 19_000_u32.to_be_bytes());
    assert!(
        told.iter().any(|frame| frame.0 == SETTINGS),
        "its table is given back"
    );
    say(&mut connection, &frame(SETTINGS, ACK, 0, &[]));
    assert_eq!(connection.passes(100), 100);
    // That answer was to this module.
    assert!(connection.unsent().is_empty());
}

#[test]
fn a_response_in_the_middle_goes_on_behind_what_waits() {
    let mut connection = begun();
    for id in [1, 3, 5] {
        connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, id, GET));
        read(&mut connection);
        say(&mut connection, &frame(HEADERS, END_HEADERS, id, OK));
        say(&mut connection, &frame(DATA, 0, id, &[id as u8; 10_000]));
    }
    connection.drain(true);
    // Held back.
    connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 7, GET));
    connection.flood();
    let given = frames(&read(&mut connection));
    assert_eq!(
        given
            .iter()
            .filter(|frame| frame.0 == WINDOW_UPDATE)
            .count(),
        4
    );
    say(&mut connection, &frame(SETTINGS, ACK, 0, &[]));
    // The peer has no room for it: 35 535 are left.
    let said = say(&mut connection, &frame(DATA, 0, 3, &[3; 16_384]));
    assert_eq!(said.len(), HEAD + 16_384);
    say(&mut connection, &frame(DATA, 0, 3, &[3; 16_384]));
    for _ in 0..2 {
        let said = say(&mut connection, &frame(DATA, 0, 3, &[4; 16_384]));
        assert!(said.is_empty());
    }
    let said = say(&mut connection, &frame(DATA, END_STREAM, 5, &[5; 100]));
    assert_eq!(said.len(), HEAD + 100);

    let (mut connection, script, got) = moved(connection);
    assert!(got.is_empty());
    let opened = frames(&script[PREFACE.len()..]);
    let opened: Vec<_> = opened
        .iter()
        .filter(|frame| frame.0 == HEADERS)
        .map(|f| f.2)
        .collect();
    assert!(opened.is_empty(), "behind the server's first words");
    let given = frames(&read(&mut connection));
    let opened: Vec<_> = given
        .iter()
        .filter(|frame| frame.0 == HEADERS)
        .map(|f| f.2)
        .collect();
    assert_eq!(opened, [1, 3, 7], "the fifth has ended");
    // The head is not said twice, what waits comes first, and only the peer's room is used.
    let said = say(&mut connection, &frame(HEADERS, END_HEADERS, 3, OK));
    assert!(said.is_empty());
    let said = say(&mut connection, &frame(DATA, END_STREAM, 3, &[9; 10]));
    assert!(said.is_empty());
    arrive(&mut connection, &window_update(0, 1 << 16));
    let got = frames(&connection.unsent().split());
    let got: Vec<_> = got
        .iter()
        .map(|frame| (frame.1, frame.2, frame.3[0], frame.3.len()))
        .collect();
    let left = [(0, 3, 4, 16_384), (0, 3, 4, 6_383)];
    assert_eq!(got, left, "so much is left of the stream's window");
    arrive(&mut connection, &window_update(3, 1 << 16));
    let got = frames(&connection.unsent().split());
    let got: Vec<_> = got
        .iter()
        .map(|frame| (frame.1, frame.2, frame.3[0], frame.3.len()))
        .collect();
    assert_eq!(got, [(0, 3, 4, 10_001), (END_STREAM, 3, 9, 10)]);
    // An end that comes with the head is said.
    let said = say(
        &mut connection,
        &frame(HEADERS, END_HEADERS | END_STREAM, 1, OK),
    );
    assert_eq!(frames(&said), [(DATA, END_STREAM, 1, vec![])]);
    // The new one is answered as any, behind an empty table.
    let said = say(
        &mut connection,
        &frame(HEADERS, END_HEADERS | END_STREAM, 7, OK),
    );
    assert_eq!(frames(&said)[0].3, [0x20, 0x88]);
    assert!(!connection.is_open(1) && !connection.is_open(3) && !connection.is_open(7));
}

#[test]
fn what_nobody_has_of_a_stream_from_before_is_for_nobody() {
    let mut connection = begun();
    connection.receive(&frame(HEADERS, END_HEADERS, 1, GET));
    read(&mut connection);
    say(&mut connection, &frame(RST_STREAM, 0, 1, &[0; 4]));
    let (mut connection, ..) = moved(connection);
    read(&mut connection);
    // On its way when the stream was reset.
    connection.receive(&frame(DATA, 0, 1, &[1; 500]));
    connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 1, GET));
    connection.receive(&window_update(1, 10));
    assert!(read(&mut connection).is_empty());
    let got = connection.unsent().split();
    assert_eq!(got, window_update(0, 500), "the peer gets its room back");
    // A GOAWAY does not say that the stream was not served.
    let said = say(&mut connection, &frame(GOAWAY, 0, 0, &[0; 8]));
    assert_eq!(frames(&said)[0].3, [0, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(connection.obstacle(), Some(Unsettled::GoingAway));
}

#[test]
fn what_cannot_be_followed_is_for_the_server() {
    for bad in [
        frame(CONTINUATION, END_HEADERS, 1, GET),
        frame(HEADERS, END_HEADERS, 1, &[0x80]),
        frame(DATA, 0, 1, &[0; frame::MAX_PAYLOAD + 1]),
    ] {
        is_for_the_server(&bad, begun());
    }
}

fn is_for_the_server(bad: &[u8], mut connection: Connection) {
    connection.receive(bad);
    connection.receive(b"more");
    let got = read(&mut connection);
    assert!(got.ends_with(b"more"), "{bad:?}: {} bytes", got.len());
    assert_eq!(connection.obstacle(), Some(Unsettled::Astray));
}

#[test]
fn what_is_malformed_is_for_the_server() {
    for (kind, flags, id, len) in [
        (DATA, 0, 0, 1),
        (HEADERS, END_HEADERS, 0, 1),
        // Nobody waits for the rest of its block.
        (HEADERS, 0, 0, 1),
        (PRIORITY, 0, 0, 5),
        (PRIORITY, 0, 1, 4),
        (RST_STREAM, 0, 0, 4),
        (RST_STREAM, 0, 1, 3),
        (RST_STREAM, 0, 1, 5),
        (SETTINGS, 0, 1, 0),
        (SETTINGS, 0, 0, 5),
        (SETTINGS, ACK, 1, 0),
        (SETTINGS, ACK, 0, 6),
        (PUSH_PROMISE, END_HEADERS, 1, 5),
        (PING, 0, 1, 8),
        (PING, 0, 0, 7),
        (GOAWAY, 0, 1, 8),
        (GOAWAY, 0, 0, 7),
        (WINDOW_UPDATE, 0, 0, 3),
        (WINDOW_UPDATE, 0, 1, 5),
        (CONTINUATION, END_HEADERS, 0, 1),
    ] {
        let bad = frame(kind, flags, id, &[0; 8][..len]);
        is_for_the_server(&bad, begun());
        let request = frame(HEADERS, END_HEADERS, 1, GET);
        let mut connection = begun();
        connection.receive(&request);
        read(&mut connection);
        is_for_the_server(&bad, connection);
        let (mut connection, ..) = moved(begun());
        read(&mut connection);
        is_for_the_server(&bad, connection);
        // The request comes with it, and is not taken for one that was reset.
        let mut connection = begun();
        connection.receive(&[request.clone(), bad.clone()].concat());
        let given = frames(&read(&mut connection));
        assert!(
            given.iter().any(|given| given.0 == HEADERS && given.2 == 1),
            "{given:?}"
        );
        // A request that is held back does not hold it back.
        let mut connection = begun();
        connection.drain(true);
        connection.receive(&request);
        read(&mut connection);
        is_for_the_server(&bad, connection);
    }
}

#[test]
fn what_is_reset_before_it_is_given_is_not_given() {
    let request = |id| {
        frame(
            HEADERS,
            END_HEADERS,
            id,
            &[0x82, 0x40, 1, b'x', 1, id as u8],
        )
    };
    let mut connection = begun();
    let all = [
        request(1),
        frame(DATA, 0, 1, &[1; 500]),
        window_update(1, 10),
        request(3),
        frame(RST_STREAM, 0, 1, &[0; 4]),
    ];
    connection.receive(&all.concat());
    let given = frames(&read(&mut connection));
    let given: Vec<_> = given.iter().map(|frame| (frame.0, frame.2)).collect();
    assert_eq!(given, [(HEADERS, 3)]);
    assert_eq!(connection.unsent().split(), window_update(0, 500));
    // The decoder is told what the first one said.
    let block = [0xbf];
    connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 5, &block));
    let given = frames(&read(&mut connection));
    assert!(given[0].3.ends_with(&[b'x', 1, 1]), "{given:?}");
    // A frame of the first now is for the server, as any of a stream that is closed.
    connection.receive(&frame(DATA, 0, 1, &[1]));
    assert_eq!(read(&mut connection).len(), HEAD + 1);
}

#[test]
fn a_request_that_is_held_back_and_reset_is_dropped() {
    let mut connection = begun();
    connection.drain(true);
    for id in [1, 3] {
        connection.receive(&frame(HEADERS, END_HEADERS, id, GET));
        connection.receive(&frame(DATA, 0, id, &[1; 500]));
        read(&mut connection);
    }
    arrive(&mut connection, &frame(RST_STREAM, 0, 1, &[0; 4]));
    assert_eq!(connection.unsent().split(), window_update(0, 500));
    let (mut connection, ..) = moved(connection);
    let given = frames(&read(&mut connection));
    let given = given.iter().filter(|frame| frame.0 != SETTINGS);
    let given: Vec<_> = given.map(|frame| (frame.0, frame.2)).collect();
    assert_eq!(given, [(HEADERS, 3), (WINDOW_UPDATE, 3), (DATA, 3)]);
}

#[test]
fn who_has_been_told_the_end_is_not_read_any_more() {
    let mut connection = begun();
    for id in (1..100).step_by(2) {
        connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, id, GET));
        connection.receive(&frame(RST_STREAM, 0, id, &[0; 4]));
    }
    assert!(connection.is_ended() && !connection.wants_more() && !connection.looks_ahead());
    assert!(connection.read().is_empty());
    let said = frames(&connection.unsent().split());
    assert_eq!(said.len(), 1);
    assert_eq!(
        (said[0].0, &said[0].3[..8]),
        (GOAWAY, &[0, 0, 0, 0, 0, 0, 0, 11][..])
    );
    assert_eq!(connection.obstacle(), Some(Unsettled::Astray));
}

#[test]
fn what_nobody_reads_stops_what_is_kept() {
    // The server does not read.
    let mut connection = begun();
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
    let mut rounds = 0;
    while connection.looks_ahead() || connection.wants_more() {
        connection.receive(&pings);
        connection.read();
        rounds += 1;
        assert!(rounds < 10);
    }
    // The peer does not.
    connection = begun();
    connection.receive(&frame(HEADERS, END_HEADERS, 1, GET));
    read(&mut connection);
    say(&mut connection, &frame(RST_STREAM, 0, 1, &[0; 4]));
    let (mut connection, ..) = moved(connection);
    read(&mut connection);
    let data = frame(DATA, 0, 1, &[0]).repeat(1000);
    let mut rounds = 0;
    while connection.looks_ahead() || connection.wants_more() {
        connection.receive(&data);
        connection.read();
        rounds += 1;
        assert!(rounds < 30);
    }
}

#[test]
fn a_header_block_of_several_frames_waits_as_one() {
    let mut connection = begun();
    for id in [1, 3] {
        connection.receive(&frame(HEADERS, END_HEADERS | END_STREAM, id, GET));
        read(&mut connection);
        say(&mut connection, &frame(HEADERS, END_HEADERS, id, OK));
    }
    connection.drain(true);
    connection.flood();
    read(&mut connection);
    say(&mut connection, &frame(SETTINGS, ACK, 0, &[]));
    say(&mut connection, &frame(DATA, 0, 1, &[1; 16_384]).repeat(4));
    let trailers = [
        frame(HEADERS, END_STREAM, 1, OK),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, &[]),
    ];
    for part in &trailers {
        assert!(say(&mut connection, part).is_empty());
    }
    let (mut connection, ..) = moved(connection);
    read(&mut connection);
    arrive(
        &mut connection,
        &[window_update(1, 9), window_update(0, 9)].concat(),
    );
    let got = frames(&connection.unsent().split());
    let got: Vec<_> = got.iter().map(|frame| (frame.0, frame.3.len())).collect();
    // The size of the peer's table is said in front.
    let whole = [
        (DATA, 16_383),
        (DATA, 1),
        (HEADERS, 2),
        (CONTINUATION, 0),
        (CONTINUATION, 0),
    ];
    assert_eq!(got, whole);
    assert!(!connection.is_open(1));
}

/// Frames of a client that keeps the rules, more or less.
fn client() -> impl Strategy<Value = Vec<BytesMut>> {
    let id = (0..8_u32).prop_map(|id| 2 * id + 1);
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let one = (0..8_u8, id, bytes).prop_map(|(kind, id, bytes)| match kind {
        0 | 1 => frame(DATA, u8::from(kind == 1), id, &bytes),
        2 => [
            frame(HEADERS, 0, id, GET),
            frame(CONTINUATION, END_HEADERS, id, GET),
        ]
        .concat()[..]
            .into(),
        3 => frame(HEADERS, END_HEADERS | END_STREAM, id, GET),
        4 => window_update(id, 77),
        5 => frame(PING, 0, 0, &[7; 8]),
        6 => frame(frame::PRIORITY, 0, id, &[0; 5]),
        _ => frame(200, 0, id, &bytes),
    });
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn what_arrives_is_read_wherever_it_is_cut(
        frames in client(),
        cuts in prop::collection::vec(1..400_usize, 1..40),
    ) {
        let mut connection = begun();
        let all = frames.concat();
        let mut got = Vec::new();
        let mut rest = &all[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (some, behind) = rest.split_at((*cut).min(rest.len()));
            connection.receive(some);
            got.extend_from_slice(&read(&mut connection));
            rest = behind;
        }
        prop_assert!(got == all);
    }

    /// The same frames, held back wherever that begins and ends: each request once and whole.
    #[test]
    fn what_is_held_back_is_read_later(frames_ in client(), holds in prop::collection::vec(any::<bool>(), 60)) {
        let mut connection = begun();
        let mut plain = begun();
        let mut got = Vec::new();
        let mut expected = Vec::new();
        for (frame, hold) in frames_.iter().zip(holds) {
            connection.drain(hold);
            connection.receive(frame);
            got.extend_from_slice(&read(&mut connection));
            plain.receive(frame);
            expected.extend_from_slice(&read(&mut plain));
        }
        connection.drain(false);
        got.extend_from_slice(&read(&mut connection));
        // Of each stream the same, in the same order.
        let of = |bytes: &[u8], id: u32| -> Vec<_> {
            let frames = frames(bytes).into_iter().filter(|frame| frame.2 == id);
            let blocks = frames.filter(|frame| frame.0 != CONTINUATION);
            blocks.map(|frame| (frame.0, if frame.0 == HEADERS { vec![] } else { frame.3 })).collect()
        };
        for id in (0..8).map(|id| 2 * id + 1) {
            prop_assert_eq!(of(&got, id), of(&expected, id));
        }
    }
}
