//! Which payloads a reader takes and which it refuses, written by hand.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::wire::{
    bin, connection, critical, decode, ip, layer, layered, layers, list, map, nil, number, part,
    sealed_as, send, tcp, text, with, yes,
};
use tcpmig_format::{DecodeError, Image, Layer, Limits, Seq, TcpState};

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
fn the_smallest_parts_decode() {
    let image = decode(&map(&[
        critical(&[]),
        layers(&[layer()]),
        connection(&[("tcp", map(&tcp())), ("ip", map(&ip()))]),
    ]))
    .unwrap();
    let (ip, tcp) = (image.ip().unwrap(), image.tcp().unwrap());
    assert_eq!(ip.flow.to_string(), "10.0.0.1:80,10.0.0.2:80");
    assert!(!ip.transparent && !ip.freebind);
    assert_eq!(tcp.state(), TcpState::Established);
    assert_eq!(tcp.send().snd_nxt(), Seq::new(11));
    assert!(!tcp.negotiated().sack);
    assert_eq!(image.layers, [Layer::new("k", 1, &b"secret"[..])]);
    let nothing = map(&[critical(&[]), connection(&[])]);
    assert_eq!(decode(&nothing), Ok(Image::default()));
    // Earlier versions had no subject that could be required.
    let nothing = sealed_as(2, 1, &map(&[critical(&[])]));
    assert_eq!(
        Image::decode(&nothing, &Limits::default()),
        Ok(Image::default())
    );
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
    let image = |ip, tcp, layers| {
        let subject = map(&[
            ("connection", map(&[("ip", ip), ("tcp", tcp)])),
            ("listener", nil()),
        ]);
        let fields = [critical(&[]), ("subject", subject), ("layers", layers)];
        decode(&map(&fields)).unwrap()
    };
    assert_eq!(
        image(map(&ip_fields), map(&tcp_fields), nil()),
        image(map(&ip()), map(&tcp()), list(&[]))
    );
    assert_eq!(image(nil(), nil(), nil()), Image::default());
}

#[test]
fn unknown_fields_are_skipped() {
    let unknown = [
        number(1),
        text("t"),
        bin(b"o"),
        yes(),
        nil(),
        vec![0xff],
        vec![0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0xd4, 5, 1],
        list(&[map(&[("a", list(&[number(1)]))]), map(&[])]),
    ];
    for value in unknown {
        let mut fields = layer();
        fields.insert(1, ("new_field", value.clone()));
        let payload = map(&[
            ("new_part", value),
            critical(&["layers"]),
            connection(&[]),
            layers(&[fields, layer()]),
        ]);
        assert_eq!(decode(&payload).unwrap().layers.len(), 2);
        let newer = sealed_as(9, 1, &payload);
        assert!(Image::decode(&newer, &Limits::default()).is_ok());
    }
}

#[test]
fn critical_parts_must_be_known_and_there() {
    let part = |names| map(&[critical(names), connection(&[]), layers(&[layer()])]);
    assert_eq!(
        decode(&part(&["layers", "tcp.fast_open"])),
        Err(DecodeError::UnknownCritical("tcp.fast_open".into()))
    );
    assert_eq!(
        decode(&part(&["layers", "tcp"])),
        Err(DecodeError::MissingCritical("tcp"))
    );
    let many: Vec<_> = std::iter::repeat_n("layers", 65).collect();
    malformed(&part(&many), "critical", "more than 64 names");
    assert!(decode(&part(&many[1..])).is_ok());
    malformed(&map(&[]), "payload", "missing field `critical`");
    let payload = map(&[critical(&[])]);
    malformed(&payload, "payload", "missing field `subject`");
}

#[test]
fn errors_name_the_place() {
    let bad_send = with(send(), "sent", number(4));
    let tcp = with(tcp(), "send", map(&bad_send));
    malformed(&part("tcp", &tcp), "tcp.send.sent", "expected bytes");
    let bad_ip = with(ip(), "local", map(&[("port", number(1))]));
    malformed(&part("ip", &bad_ip), "ip.local", "missing field `address`");
    let bad = with(layer(), "version", number(1 << 32));
    malformed(&layered(&bad), "layers[0].version", "expected u32");
    let second = map(&[critical(&[]), connection(&[]), layers(&[layer(), bad])]);
    malformed(&second, "layers[1].version", "expected u32");
    let mut new = layer();
    new.push(("x".repeat(1000).leak(), vec![0xc1]));
    malformed(&layered(&new), "layers[0].(unknown field)", "marker");
    malformed(
        &map(&[("critical", list(&[text("ip"), number(1)]))]),
        "critical[1]",
        "a name",
    );
    // What has no other name is called by its own.
    for (subject, place) in [
        (nil(), "subject"),
        (number(1), "subject"),
        (map(&[("connection", number(1))]), "connection"),
        (map(&[("listener", number(1))]), "listener"),
    ] {
        malformed(&map(&[critical(&[]), ("subject", subject)]), place, "");
    }
}

#[test]
fn errors_do_not_quote() {
    for wrong in [text("hunter2"), list(&[text("hunter2")])] {
        for payload in [
            layered(&with(layer(), "payload", wrong.clone())),
            layered(&with(layer(), "version", wrong.clone())),
            part("ip", &with(ip(), "local", wrong.clone())),
            map(&[("layers", wrong.clone())]),
            map(&[("subject", wrong.clone())]),
            map(&[("critical", bin(b"hunter2"))]),
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
    let as_list = list(&[text("k"), number(1), bin(b"")]);
    malformed(
        &map(&[critical(&[]), ("layers", list(&[as_list]))]),
        "layers[0]",
        "expected a map",
    );
    // Text and bytes in place of each other.
    let kind = with(layer(), "kind", bin(b"k"));
    malformed(&layered(&kind), "layers[0].kind", "expected text");
    let payload = with(layer(), "payload", text("p"));
    malformed(&layered(&payload), "layers[0].payload", "expected bytes");
    // Bytes and maps in place of a list.
    malformed(
        &map(&[("critical", bin(b"app"))]),
        "critical",
        "a list of names",
    );
    malformed(
        &map(&[("layers", map(&layer()))]),
        "layers",
        "a list of layers",
    );
    // Text that is not UTF-8.
    let mut latin1 = text("k");
    *latin1.last_mut().unwrap() = 0xe9;
    let kind = with(layer(), "kind", latin1);
    malformed(&layered(&kind), "layers[0].kind", "utf8");
    // A number as key.
    let numbered = [vec![0x81, 0x00], list(&[])].concat();
    malformed(&numbered, "payload", "expected a name");
    // A key twice.
    let mut twice = layer();
    twice.push(("kind", text("other")));
    malformed(&layered(&twice), "layers[0].kind", "duplicate field");
}

#[test]
fn bytes_after_the_map_are_refused() {
    // One that is a value, one that is none, and the start of a list.
    for trailing in [&[0x00][..], &[0xc1], &[0x91], &[0xc6, 0xff]] {
        let payload = [&layered(&layer())[..], trailing].concat();
        assert_eq!(decode(&payload), Err(DecodeError::TrailingPayload));
    }
    assert!(matches!(decode(&[]), Err(DecodeError::Malformed { .. })));
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let value = [vec![0x91; depth], nil()].concat();
        decode(&map(&[critical(&[]), connection(&[]), ("new", value)]))
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
        for field in ["critical", "subject", "layers", "new"] {
            let payload = map(&[(field, huge.clone())]);
            assert!(matches!(
                decode(&payload),
                Err(DecodeError::Malformed { .. })
            ));
        }
    }
}
