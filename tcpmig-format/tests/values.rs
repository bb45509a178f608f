//! Which values a reader takes, and how large they may be.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::wire::{
    bin, connection, critical, decode, end, ip, listener, map, number, part, tcp, text, with,
};
use tcpmig_format::{
    DecodeError, FilterInstruction, Image, InvalidTcp, Limits, SecretBytes, SocketFamily,
    TimestampUnit,
};

#[test]
fn limits_hold() {
    let bytes = common::full().encode().unwrap();
    let check = |lower: fn(&mut Limits, usize), to: usize, expected: &str| {
        let mut limits = Limits::default();
        lower(&mut limits, to);
        match Image::decode(&bytes, &limits) {
            Err(DecodeError::TooLong { what, len, limit }) => {
                assert_eq!(what, expected);
                assert_eq!(len, limit as u64 + 1);
            }
            other => panic!("{other:?}"),
        }
    };
    check(|limits, to| limits.max_image = to, bytes.len() - 1, "image");
    check(|limits, to| limits.max_layers = to, 9, "layers");
    check(|limits, to| limits.max_queue = to, 17, "tcp.send.sent");
    check(|limits, to| limits.max_text = to, 15, "layers.kind");
    let mut exact = Limits::default();
    exact.max_image = bytes.len();
    exact.max_layers = 10;
    exact.max_queue = 18;
    exact.max_text = 16;
    assert!(Image::decode(&bytes, &exact).is_ok());
}

#[test]
fn values_must_have_a_meaning() {
    let unknown = |payload: &[u8], expected| match decode(payload) {
        Err(DecodeError::UnknownValue { place, .. }) => assert_eq!(place, expected),
        other => panic!("{other:?}"),
    };
    unknown(&part("ip", &with(ip(), "family", text("ipx"))), "ip.family");
    unknown(&part("tcp", &with(tcp(), "state", number(12))), "tcp.state");
    let timestamps = map(&[("value", number(1)), ("unit", text("ns"))]);
    let negotiated = map(&[("mss_clamp", number(9)), ("timestamps", timestamps)]);
    unknown(
        &part("tcp", &with(tcp(), "negotiated", negotiated)),
        "tcp.negotiated.timestamps.unit",
    );
}

#[test]
fn values_must_agree() {
    let fields = with(tcp(), "state", number(10));
    assert!(matches!(
        decode(&part("tcp", &fields)),
        Err(DecodeError::InvalidTcp(InvalidTcp::QueueInState {
            queue: "sent",
            ..
        }))
    ));
    assert!(matches!(
        decode(&part("ip", &with(ip(), "remote", end(&[0; 4])))),
        Err(DecodeError::InvalidFlow(_))
    ));
    // A mapped address in 16 bytes is not how an IPv4 address is written.
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
    assert!(matches!(
        decode(&part("ip", &with(ip(), "remote", end(&mapped)))),
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
        decode(&part("ip", &ipv6)),
        Err(DecodeError::InvalidIp(_))
    ));
}

/// The limit is that of all layers together.
#[test]
fn layers_share_their_limit() {
    let bytes = common::layered().encode().unwrap();
    let mut limits = Limits::default();
    limits.max_layers = 15;
    let expected = DecodeError::TooLong {
        what: "layers",
        len: 16,
        limit: 15,
    };
    assert_eq!(Image::decode(&bytes, &limits), Err(expected));
}

#[test]
fn an_image_is_of_one_subject() {
    let listen = |address: &[u8]| [("local", end(address)), ("backlog", number(37))];
    let one = |address: &[u8]| decode(&map(&[critical(&["listener"]), listener(&listen(address))]));
    let image = one(&[0; 4]).unwrap();
    let any = "0.0.0.0:80".parse().unwrap();
    assert_eq!(image.listener().unwrap().local, any);
    assert!(image.connection().is_none() && image.ip().is_none() && image.tcp().is_none());
    assert!(one(&[0; 16]).unwrap().listener().unwrap().local.is_ipv6());
    assert!(matches!(
        one(&[0; 5]),
        Err(DecodeError::AddressLength {
            place: "listener.local.address",
            ..
        })
    ));
    let listener = map(&listen(&[0; 4]));
    let both = [("connection", map(&[])), ("listener", listener.clone())];
    for (subject, expected) in [
        (map(&both), DecodeError::TwoSubjects),
        (map(&[]), DecodeError::NoSubject),
        (map(&[("later", map(&[]))]), DecodeError::NoSubject),
    ] {
        let payload = map(&[critical(&[]), ("subject", subject)]);
        assert_eq!(decode(&payload), Err(expected));
    }
    // Earlier versions had no place for the subject, and the same rule.
    for (name, part) in [("ip", map(&ip())), ("tcp", map(&tcp()))] {
        let both = [critical(&[]), (name, part), ("listen", listener.clone())];
        let old = common::wire::sealed_as(2, 1, &map(&both));
        let error = Image::decode(&old, &Limits::default()).unwrap_err();
        assert_eq!(error, DecodeError::TwoSubjects);
    }
}

/// FORMAT.md, `Display` and images say the same.
#[test]
fn names_have_one_spelling() {
    let page = include_str!("../FORMAT.md");
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    for state in tcpmig_format::TcpState::ALL {
        let described = format!("{} {state}", state.number());
        assert!(page.contains(&described), "{described}");
    }
    for family in SocketFamily::ALL {
        assert!(page.contains(&format!("`{family}`")), "{family}");
        assert_eq!(SocketFamily::from_name(&family.to_string()), Some(family));
    }
    for unit in TimestampUnit::ALL {
        assert!(page.contains(&format!("`{unit}`")), "{unit}");
        assert_eq!(TimestampUnit::from_name(&unit.to_string()), Some(unit));
    }
}

#[test]
fn a_reader_cannot_miss_what_must_not_be_skipped() {
    // Their names are in the list of critical parts, at its beginning.
    for (image, name) in [
        (common::listener(), "listener"),
        (common::broken(), "tcp.pending_error"),
        (common::layered(), "layers"),
    ] {
        let payload = &image.encode().unwrap()[tcpmig_format::Envelope::LEN..];
        let head = String::from_utf8_lossy(&payload[..64]);
        assert!(head.contains("critical") && head.contains(name), "{head}");
    }
    let missing = map(&[
        critical(&["tcp.pending_error"]),
        connection(&[("tcp", map(&tcp()))]),
    ]);
    assert_eq!(
        decode(&missing),
        Err(DecodeError::MissingCritical("tcp.pending_error"))
    );
}

#[test]
fn an_error_waits_only_in_closed() {
    let mut fields = tcp();
    let pending = map(&[("errno", number(104)), ("after_fin", common::wire::yes())]);
    fields.push(("pending_error", pending));
    assert!(matches!(
        decode(&part("tcp", &fields)),
        Err(DecodeError::InvalidTcp(InvalidTcp::PendingErrorInState(_)))
    ));
}

#[test]
fn a_filter_has_whole_instructions() {
    let decoded = |filter: &[u8]| {
        let mut fields = tcp();
        fields.push(("socket", map(&[("filter", bin(filter))])));
        decode(&part("tcp", &fields))
    };
    let image = decoded(&[0, 6, 1, 2, 0xff, 0, 0, 3]).unwrap();
    let instruction = FilterInstruction {
        code: 6,
        jt: 1,
        jf: 2,
        k: 0xff00_0003,
    };
    assert_eq!(
        image.tcp().unwrap().socket().filter,
        Some(vec![instruction])
    );
    for len in [1, 7, 9] {
        match decoded(&vec![0; len]) {
            Err(DecodeError::Malformed { place, .. }) => assert_eq!(place, "tcp.socket.filter"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_image_prints_no_byte_of_its_queues() {
    let image = common::full();
    let mut parts = common::parts_of(&image);
    let secret = || SecretBytes::from(&b"hunter2"[..]);
    parts.send.sent = secret();
    parts.send.unsent = secret();
    parts.receive.queue = secret();
    let mut image = common::with_tcp(image, parts);
    image.layers[0].payload = secret();
    let encoded = image.encode().unwrap();
    for printed in [format!("{image:?} {image:#?}"), format!("{encoded:?}")] {
        assert!(!printed.contains("hunter2"), "{printed}");
        // Nor as numbers.
        assert!(!printed.contains("104, 117, 110"), "{printed}");
    }
    assert!(format!("{image:?}").contains("SecretBytes(7)"));
}
