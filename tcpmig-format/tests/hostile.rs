//! What an input can make the decoder spend: memory and time stay in proportion to it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use std::time::{Duration, Instant};

use common::wire::{self, bin, connection, critical, map, nil, number, text};
use tcpmig_format::{DecodeError, Envelope, Image, Limits, SecretBytes};

/// The most bytes in use at once, and all that were asked for, while this input is decoded.
fn spent(input: &[u8], limits: &Limits) -> (u64, u64) {
    let spent = allocation_counter::measure(|| {
        // What is wrong with it is the matter of other tests.
        let _ = Image::decode(input, limits);
    });
    (spent.bytes_max, spent.bytes_total)
}

/// In place of the list of critical parts, of the subject, of layers, of a field that is not known, and inside.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let many = 200_000;
    let one_of = |marker: u8| [&[marker][..], &u32::MAX.to_be_bytes()].concat();
    let nested = |marker: &[u8]| [marker.repeat(many), nil()].concat();
    vec![
        ("a list that promises 2^32 names", one_of(0xdd)),
        ("a map that promises 2^32 fields", one_of(0xdf)),
        ("bytes that promise 4 GiB", one_of(0xc6)),
        ("text that promises 4 GiB", one_of(0xdb)),
        ("an extension that promises 4 GiB", one_of(0xc9)),
        ("lists inside each other", nested(&[0x91])),
        ("maps inside each other", nested(&[0x81, 0xa1, b'x'])),
        ("maps as keys", nested(&[0x81])),
        ("a list of many nils", {
            let head = [&[0xdd][..], &(many as u32).to_be_bytes()].concat();
            [head, nil().repeat(many)].concat()
        }),
        ("a map of many fields", {
            let head = [&[0xdf][..], &(many as u32).to_be_bytes()].concat();
            let field = [text("x"), nil()].concat();
            [head, field.repeat(many)].concat()
        }),
        ("a long text", text(&"x".repeat(60_000))),
        ("many bytes", bin(&vec![7; 1 << 20])),
    ]
}

#[test]
fn memory_is_a_small_multiple_of_the_input() {
    let limits = Limits::default();
    for (what, value) in hostile() {
        let places: [Vec<u8>; 6] = [
            map(&[("critical", value.clone())]),
            map(&[critical(&[]), ("subject", value.clone())]),
            map(&[critical(&[]), connection(&[]), ("layers", value.clone())]),
            map(&[critical(&[]), connection(&[]), ("later", value.clone())]),
            wire::part("tcp", &wire::with(wire::tcp(), "send", value.clone())),
            wire::layered(&wire::with(wire::layer(), "payload", value.clone())),
        ];
        for payload in places {
            let input = wire::sealed(&payload);
            let (max, total) = spent(&input, &limits);
            let len = input.len() as u64;
            // A page is what the messages of errors and short lists take.
            assert!(max <= 2 * len + 4096, "{what}: {max} bytes for {len}");
            assert!(total <= 4 * len + 8192, "{what}: {total} in all for {len}");
        }
    }
}

#[test]
fn many_layers_are_refused_before_they_cost() {
    let many = |count: usize| {
        let layer = wire::map(&wire::with(wire::layer(), "payload", bin(&[])));
        let layers = wire::list(&vec![layer; count]);
        wire::sealed(&map(&[critical(&[]), connection(&[]), ("layers", layers)]))
    };
    let limits = Limits::default();
    assert_eq!(Image::decode(&many(16), &limits).unwrap().layers.len(), 16);
    for count in [17, 60_000] {
        match Image::decode(&many(count), &limits) {
            Err(DecodeError::Malformed { place, reason }) => {
                assert_eq!(place, "layers");
                assert!(reason.contains("more than 16 layers"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert!(spent(&many(count), &limits).1 < 8192);
    }
}

#[test]
fn nothing_is_allocated_for_what_is_above_the_limits() {
    let queue = bin(&vec![0; 1 << 20]);
    let payload = wire::layered(&wire::with(wire::layer(), "payload", queue));
    let input = wire::sealed(&payload);
    let mut layers = Limits::default();
    layers.max_layers = 1 << 19;
    let mut image = Limits::default();
    image.max_image = 1 << 19;
    for limits in [layers, image] {
        let error = Image::decode(&input, &limits).unwrap_err();
        assert!(matches!(error, DecodeError::TooLong { .. }), "{error}");
        assert!(spent(&input, &limits).1 < 8192);
    }
}

#[test]
fn queues_of_a_shared_image_are_not_copied() {
    let layer = wire::with(wire::layer(), "payload", bin(&vec![9; 1 << 20]));
    let bytes = wire::sealed(&wire::layered(&layer));
    let range = bytes.as_ptr_range();
    let bytes = SecretBytes::from(bytes);
    let mut image = None;
    let spent = allocation_counter::measure(|| {
        image = Some(Image::decode_shared(bytes, &Limits::default()));
    });
    assert!(spent.bytes_total < 4096, "{spent:?}");
    let payload = image.unwrap().unwrap().layers.remove(0).payload;
    assert!(range.contains(&payload.as_ptr()));
    assert_eq!(*payload, [9; 1 << 20]);
}

/// In proportion this takes seconds at most; with the square of the number of fields it would take days.
#[test]
fn time_is_in_proportion_to_the_input() {
    let count = 2_000_000_u32;
    let head = [&[0xdf][..], &(count + 2).to_be_bytes()].concat();
    let known = [critical(&[]), connection(&[])].map(|(name, value)| [text(name), value].concat());
    let field = [text("later"), number(1)].concat();
    let payload = [head, known.concat(), field.repeat(count as usize)].concat();
    let begin = Instant::now();
    Image::decode(&wire::sealed(&payload), &Limits::default()).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(120));
}

#[test]
fn encoding_allocates_once_for_the_queues() {
    let mut image = common::full();
    image.layers[0].payload = SecretBytes::from(vec![5; 1 << 20]);
    let spent = allocation_counter::measure(|| {
        assert!(image.encode().unwrap().len() > (1 << 20) + Envelope::LEN);
    });
    assert!(spent.bytes_total < (1 << 20) + 16_384, "{spent:?}");
}
