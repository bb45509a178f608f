//! Which payloads a reader takes and which it refuses, written by hand.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::wire::{
    app, critical, decode, ip, layer, list, map, nil, number, octets, sealed_as, send, tcp, text,
    with, yes,
};
use tcpmig_format::{DecodeError, Image, Limits, Seq, TcpState};

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
    let mut ip_fields = ip();
    ip_fields.extend(["ttl", "scope", "transparent", "freebind"].map(|name| (name, nil())));
    let negotiated = map(&[
        ("mss_clamp", number(1460)),
        ("sack", nil()),
        ("window_scale", nil()),
    ]);
    let mut tcp_fields = with(tcp(), "negotiated", negotiated);
    tcp_fields.push(("socket", nil()));
    let layers = |ip, tcp, app| {
        let fields = [critical(&[]), ("ip", ip), ("tcp", tcp), ("app", app)];
        decode(&map(&fields)).unwrap()
    };
    assert_eq!(
        layers(map(&ip_fields), map(&tcp_fields), nil()),
        layers(map(&ip()), map(&tcp()), nil())
    );
    assert_eq!(layers(nil(), nil(), nil()), Image::default());
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
        for payload in [
            layer("app", &with(app(), "payload", wrong.clone())),
            layer("app", &with(app(), "version", wrong.clone())),
            layer("ip", &with(ip(), "local", wrong.clone())),
            map(&[("app", wrong.clone())]),
            map(&[("critical", octets(b"hunter2"))]),
            map(&[("critical", text("hunter2"))]),
            wrong.clone(),
        ] {
            let error = decode(&payload).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed { .. }));
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
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
    malformed(&numbered, "payload", "expected a name");
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
