//! What a reader takes and what it refuses, with payloads written by hand.

mod common;

use common::wire::{list, map, nil, number, octets, sealed, sealed_as, text, yes};
use tcpmig_format::{DecodeError, Image, InvalidTcp, Limits, Seq, TcpState};

type Fields<'a> = Vec<(&'a str, Vec<u8>)>;

fn decode(payload: &[u8]) -> Result<Image, DecodeError> {
    Image::decode(&sealed(payload), &Limits::default())
}

#[track_caller]
fn malformed(payload: &[u8], expected_place: &str, expected_reason: &str) {
    match decode(payload) {
        Err(DecodeError::Malformed { place, reason }) => {
            assert_eq!(place, expected_place);
            assert!(reason.contains(expected_reason), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

fn critical(names: &[&str]) -> (&'static str, Vec<u8>) {
    let names: Vec<_> = names.iter().map(|name| text(name)).collect();
    ("critical", list(&names))
}

fn app() -> Fields<'static> {
    vec![
        ("kind", text("k")),
        ("version", number(1)),
        ("payload", octets(b"secret")),
    ]
}

fn ip() -> Fields<'static> {
    let end = |last| map(&[("address", octets(&[10, 0, 0, last])), ("port", number(80))]);
    vec![
        ("family", text("ipv4")),
        ("local", end(1)),
        ("remote", end(2)),
    ]
}

fn send() -> Fields<'static> {
    vec![
        ("snd_una", number(7)),
        ("sent", octets(b"sent")),
        ("unsent", octets(b"")),
    ]
}

fn tcp() -> Fields<'static> {
    let window = ["snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup"];
    let window: Fields<'_> = window.map(|name| (name, number(0))).into();
    let receive = [("rcv_nxt", number(0)), ("queue", octets(b""))];
    vec![
        ("state", number(1)),
        ("send", map(&send())),
        ("receive", map(&receive)),
        ("negotiated", map(&[("mss_clamp", number(1460))])),
        ("window", map(&window)),
    ]
}

/// The fields with one of them replaced.
fn with<'a>(mut fields: Fields<'a>, name: &str, value: Vec<u8>) -> Fields<'a> {
    fields.iter_mut().find(|(key, _)| *key == name).unwrap().1 = value;
    fields
}

fn layer(name: &'static str, fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    map(&[critical(&[name]), (name, map(fields))])
}

#[test]
fn the_smallest_layers_decode() {
    let image = decode(&map(&[
        critical(&[]),
        ("tcp", map(&tcp())),
        ("app", map(&app())),
        ("ip", map(&ip())),
    ]))
    .unwrap();
    let (ip, tcp, app) = (image.ip.unwrap(), image.tcp.unwrap(), image.app.unwrap());
    assert_eq!(ip.flow.to_string(), "10.0.0.1:80,10.0.0.2:80");
    assert!(!ip.transparent && !ip.freebind);
    assert_eq!(tcp.state(), TcpState::Established);
    assert_eq!(tcp.send().snd_nxt(), Seq::new(11));
    assert!(!tcp.negotiated().sack);
    assert_eq!(&*app.payload, b"secret");
    assert_eq!(decode(&map(&[critical(&[])])), Ok(Image::default()));
}

#[test]
fn nil_is_absent() {
    let mut fields = ip();
    fields.extend([("ttl", nil()), ("scope", nil())]);
    let image = decode(&map(&[
        critical(&[]),
        ("ip", map(&fields)),
        ("tcp", nil()),
        ("app", nil()),
    ]))
    .unwrap();
    assert_eq!(image.ip.unwrap().ttl, None);
    assert_eq!(image.tcp, None);
}

#[test]
fn unknown_fields_are_skipped() {
    let unknown = [
        number(1),
        text("t"),
        octets(b"o"),
        yes(),
        nil(),
        vec![0xff],
        vec![0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0xd4, 5, 1],
        list(&[map(&[("a", list(&[number(1)]))]), map(&[])]),
    ];
    for value in unknown {
        let mut fields = app();
        fields.insert(1, ("new_field", value.clone()));
        let payload = map(&[
            ("new_layer", value),
            critical(&["app"]),
            ("app", map(&fields)),
        ]);
        assert!(decode(&payload).unwrap().app.is_some());
        let newer = sealed_as(9, 1, &payload);
        assert!(Image::decode(&newer, &Limits::default()).is_ok());
    }
}

#[test]
fn critical_parts_must_be_known_and_there() {
    let part = |names| map(&[critical(names), ("app", map(&app()))]);
    assert_eq!(
        decode(&part(&["app", "tcp.fast_open"])),
        Err(DecodeError::UnknownCritical("tcp.fast_open".into()))
    );
    assert_eq!(
        decode(&part(&["app", "tcp"])),
        Err(DecodeError::MissingCritical("tcp"))
    );
    let many: Vec<_> = std::iter::repeat_n("app", 65).collect();
    malformed(&part(&many), "critical", "more than 64 names");
    assert!(decode(&part(&many[1..])).is_ok());
    malformed(&map(&[]), "payload", "missing field `critical`");
}

#[test]
fn errors_name_the_place() {
    let bad_send = with(send(), "sent", number(4));
    let tcp = with(tcp(), "send", map(&bad_send));
    malformed(&layer("tcp", &tcp), "tcp.send.sent", "expected octets");
    let bad_ip = with(ip(), "local", map(&[("port", number(1))]));
    malformed(&layer("ip", &bad_ip), "ip.local", "missing field `address`");
    let bad_app = with(app(), "version", number(1 << 32));
    malformed(&layer("app", &bad_app), "app.version", "expected u32");
    let mut new = app();
    new.push(("x".repeat(1000).leak(), vec![0xc1]));
    malformed(&layer("app", &new), "app.(unknown field)", "marker");
}

#[test]
fn errors_do_not_quote() {
    for wrong in [text("hunter2"), list(&[text("hunter2")])] {
        let payload = layer("app", &with(app(), "payload", wrong.clone()));
        let error = decode(&payload).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        let payload = layer("app", &with(app(), "version", wrong));
        let error = decode(&payload).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn only_the_described_types_are_taken() {
    // A list in place of a structure.
    let as_list = list(&[text("k"), number(1), octets(b"")]);
    malformed(
        &map(&[critical(&[]), ("app", as_list)]),
        "app",
        "expected a map",
    );
    // Text and octets in place of each other.
    let kind = with(app(), "kind", octets(b"k"));
    malformed(&layer("app", &kind), "app.kind", "expected text");
    let payload = with(app(), "payload", text("p"));
    malformed(&layer("app", &payload), "app.payload", "expected octets");
    // Octets in place of a list.
    malformed(
        &map(&[("critical", octets(b"app"))]),
        "critical",
        "a list of names",
    );
    // Text that is not UTF-8.
    let mut latin1 = text("k");
    *latin1.last_mut().unwrap() = 0xe9;
    let kind = with(app(), "kind", latin1);
    malformed(&layer("app", &kind), "app.kind", "utf8");
    // A number as key.
    let numbered = [vec![0x81, 0x00], list(&[])].concat();
    malformed(&numbered, "payload", "expected a text key");
    // A key twice.
    let mut twice = app();
    twice.push(("kind", text("other")));
    malformed(&layer("app", &twice), "app.kind", "duplicate field");
}

#[test]
fn octets_after_the_map_are_refused() {
    // One that is a value, one that is none, and the start of a list.
    for trailing in [&[0x00][..], &[0xc1], &[0x91], &[0xc6, 0xff]] {
        let payload = [&layer("app", &app())[..], trailing].concat();
        assert_eq!(decode(&payload), Err(DecodeError::TrailingPayload));
    }
    assert!(matches!(decode(&[]), Err(DecodeError::Malformed { .. })));
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let value = [vec![0x91; depth], nil()].concat();
        decode(&map(&[critical(&[]), ("new", value)]))
    };
    assert!(nested(30).is_ok());
    for depth in [31, 100_000] {
        assert!(matches!(
            nested(depth),
            Err(DecodeError::Malformed { reason, .. }) if reason.contains("depth")
        ));
    }
}

#[test]
fn promised_lengths_are_not_believed() {
    for huge in [
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0xdf, 0xff, 0xff, 0xff, 0xff],
        vec![0xc6, 0xff, 0xff, 0xff, 0xff],
        vec![0xdb, 0xff, 0xff, 0xff, 0xff],
        vec![0xc9, 0xff, 0xff, 0xff, 0xff, 0],
    ] {
        for field in ["critical", "tcp", "new"] {
            let payload = map(&[(field, huge.clone())]);
            assert!(matches!(
                decode(&payload),
                Err(DecodeError::Malformed { .. })
            ));
        }
    }
}

#[test]
fn limits_hold() {
    let bytes = common::full().encode().unwrap();
    let check = |limits: Limits, expected: &str| match Image::decode(&bytes, &limits) {
        Err(DecodeError::TooLong { what, len, limit }) => {
            assert_eq!(what, expected);
            assert_eq!(len, limit as u64 + 1);
        }
        other => panic!("{other:?}"),
    };
    let limits = Limits::default();
    let max_image = bytes.len() - 1;
    check(
        Limits {
            max_image,
            ..limits
        },
        "image",
    );
    let max_app = 9;
    check(Limits { max_app, ..limits }, "app.payload");
    let max_queue = 17;
    check(
        Limits {
            max_queue,
            ..limits
        },
        "tcp.send.sent",
    );
    let max_text = 15;
    check(Limits { max_text, ..limits }, "app.kind");
    let exact = Limits {
        max_image: bytes.len(),
        max_app: 10,
        max_queue: 18,
        max_text: 16,
    };
    assert!(Image::decode(&bytes, &exact).is_ok());
}

#[test]
fn values_must_have_a_meaning() {
    let unknown = |payload: &[u8], expected| match decode(payload) {
        Err(DecodeError::UnknownValue { place, .. }) => assert_eq!(place, expected),
        other => panic!("{other:?}"),
    };
    unknown(
        &layer("ip", &with(ip(), "family", text("ipx"))),
        "ip.family",
    );
    unknown(
        &layer("tcp", &with(tcp(), "state", number(12))),
        "tcp.state",
    );
    let timestamps = map(&[("value", number(1)), ("unit", text("ns"))]);
    let negotiated = map(&[("mss_clamp", number(9)), ("timestamps", timestamps)]);
    unknown(
        &layer("tcp", &with(tcp(), "negotiated", negotiated)),
        "tcp.negotiated.timestamps.unit",
    );
}

#[test]
fn values_must_agree() {
    let fields = with(tcp(), "state", number(10));
    assert!(matches!(
        decode(&layer("tcp", &fields)),
        Err(DecodeError::InvalidTcp(InvalidTcp::QueueInState {
            queue: "sent",
            ..
        }))
    ));
    let end = |address: &[u8]| map(&[("address", octets(address)), ("port", number(80))]);
    assert!(matches!(
        decode(&layer("ip", &with(ip(), "remote", end(&[0; 4])))),
        Err(DecodeError::InvalidFlow(_))
    ));
    // A mapped address in 16 octets is not how an IPv4 address is written.
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
    assert!(matches!(
        decode(&layer("ip", &with(ip(), "remote", end(&mapped)))),
        Err(DecodeError::AddressLength {
            place: "ip.remote.address",
            len: 16,
            expected: 4
        })
    ));
    let mut ipv6 = with(ip(), "family", text("ipv6"));
    for name in ["local", "remote"] {
        ipv6 = with(ipv6, name, end(&mapped));
    }
    assert!(matches!(
        decode(&layer("ip", &ipv6)),
        Err(DecodeError::InvalidIp(_))
    ));
}
