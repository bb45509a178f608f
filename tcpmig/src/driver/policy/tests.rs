//! Each rule, with a host that is not asked.

use std::collections::HashMap;
use std::net::IpAddr;

use tcpmig_format::{
    ConnectionImage, Image, IpImage, Layer, Negotiated, ReceiveSpace, SecretBytes, SendSpace, Seq,
    SocketFamily, SocketOptions, TcpImage, TcpParts, TcpState, Window,
};
use tcpmig_lock::route::AddressKind;
use tcpmig_sys::settings::Buffers;

use super::{Denied, Facts, Policy, Prefix, Rules};
use crate::restore::INJECT_MARK;

/// A host with some addresses.
struct Fake(HashMap<IpAddr, AddressKind>);

impl Fake {
    fn new() -> Self {
        let kinds = [
            ("198.51.100.1", AddressKind::Local),
            ("2001:db8::1", AddressKind::Local),
            ("198.51.100.255", AddressKind::Broadcast),
            ("2001:db8::", AddressKind::Anycast),
        ];
        let kinds = kinds.map(|(address, kind)| (address.parse().unwrap(), kind));
        Self(kinds.into())
    }
}

impl Facts for Fake {
    fn kind(&self, address: IpAddr, _: &IpImage) -> Result<AddressKind, Denied> {
        Ok(self
            .0
            .get(&address)
            .copied()
            .unwrap_or(AddressKind::Unicast))
    }

    fn buffers(&self) -> Result<Buffers, Denied> {
        Ok(Buffers {
            receive: 400_000,
            send: 300_000,
        })
    }

    fn tuned(&self) -> Result<Buffers, Denied> {
        Ok(Buffers {
            receive: 6 << 20,
            send: 4 << 20,
        })
    }

    fn congestion(&self) -> Result<Vec<String>, Denied> {
        Ok(vec!["cubic".to_owned()])
    }

    fn loaded_congestion(&self) -> Result<Vec<String>, Denied> {
        Ok(vec!["cubic".to_owned(), "bbr".to_owned()])
    }

    fn busy_read(&self) -> Result<u32, Denied> {
        Ok(20)
    }
}

fn image() -> Image {
    with_flow("198.51.100.1:443,203.0.113.9:50000")
}

fn with_flow(flow: &str) -> Image {
    let flow: tcpmig_format::FourTuple = flow.parse().unwrap();
    let family = if flow.is_ipv4() {
        SocketFamily::Ipv4
    } else {
        SocketFamily::Ipv6
    };
    let tcp = TcpImage::new(parts()).unwrap();
    Image::new(ConnectionImage::new(IpImage::new(flow, family), tcp))
}

fn parts() -> TcpParts {
    TcpParts {
        state: TcpState::Established,
        send: SendSpace {
            snd_una: Seq::new(1),
            sent: SecretBytes::default(),
            unsent: SecretBytes::default(),
        },
        receive: ReceiveSpace {
            rcv_nxt: Seq::new(1 << 30),
            queue: SecretBytes::default(),
        },
        negotiated: Negotiated {
            mss_clamp: 1460,
            window_scale: None,
            sack: true,
            timestamps: None,
        },
        window: Window {
            snd_wl1: Seq::new(1),
            snd_wnd: 1000,
            max_window: 1000,
            rcv_wnd: 1000,
            rcv_wup: Seq::new(1),
        },
        socket: SocketOptions::default(),
        pending_error: None,
    }
}

fn with_ip(change: impl FnOnce(&mut IpImage)) -> Image {
    let mut image = image();
    change(image.ip_mut().unwrap());
    image
}

fn with_tcp(change: impl FnOnce(&mut TcpParts)) -> Image {
    let mut image = image();
    let mut parts = parts();
    change(&mut parts);
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());
    image
}

fn check(rules: &Rules, mut image: Image) -> Result<(), String> {
    let left_out = rules
        .check(&mut image, &Fake::new(), true, false)
        .map_err(|denied| denied.to_string())?;
    assert!(left_out.is_empty());
    Ok(())
}

/// Without the rule it is refused for this reason; with it it is taken.
fn opens(image: &Image, reason: &str, rules: &Rules) {
    assert_eq!(check(&Rules::new(), image.clone()), Err(reason.to_owned()));
    assert_eq!(check(rules, image.clone()), Ok(()));
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn what_is_ordinary_needs_no_rule() {
    check(&Rules::new(), image()).unwrap();
    let ipv6 = with_flow("[2001:db8::1]:443,[2001:db8:9::9]:50000");
    check(&Rules::new(), ipv6).unwrap();
    let harmless = with_ip(|ip| {
        ip.mark = Some(0);
        ip.priority = Some(6);
        ip.ttl = Some(1);
        ip.tos = Some(0xfc);
    });
    check(&Rules::new(), harmless).unwrap();
    let tuned = with_tcp(|tcp| {
        tcp.socket.receive_buffer = Some(6 << 20);
        tcp.socket.congestion = Some("cubic".to_owned());
        tcp.socket.busy_poll = Some(20);
        tcp.socket.prefer_busy_poll = Some(false);
        tcp.receive.queue = vec![0; 6 << 20].into();
    });
    check(&Rules::new(), tuned).unwrap();
}

#[test]
fn local_addresses_are_of_this_host() {
    let foreign = with_flow("203.0.113.77:443,203.0.113.9:50000");
    let why = "policy: the local address 203.0.113.77 is not on this host (Rules::local)";
    assert_eq!(check(&Rules::new(), foreign.clone()), Err(why.to_owned()));
    // A prefix does not make an address one of this host.
    let named = Rules::new().local(prefix("203.0.113.0/24"));
    assert_eq!(check(&named, foreign.clone()), Err(why.to_owned()));
    let elsewhere = "policy: the local address 198.51.100.1 is in no prefix (Rules::local)";
    assert_eq!(check(&named, image()), Err(elsewhere.to_owned()));
    for broadcast in [
        "198.51.100.255:1,203.0.113.9:1",
        "[2001:db8::]:1,[2001:db8:9::9]:1",
    ] {
        assert!(check(&Rules::new(), with_flow(broadcast)).is_err());
    }
}

#[test]
fn other_local_addresses_need_their_option_and_a_prefix() {
    let with = |change: fn(&mut IpImage)| {
        let mut image = with_flow("203.0.113.77:443,203.0.113.9:50000");
        change(image.ip_mut().unwrap());
        image
    };
    let (transparent, freebind) = (
        with(|ip| ip.transparent = true),
        with(|ip| ip.freebind = true),
    );
    let named = Rules::new().local(prefix("203.0.113.0/24"));
    for rules in [
        Rules::new(),
        Rules::new().transparent().freebind(),
        named.clone(),
        named.clone().freebind(),
    ] {
        assert!(check(&rules, transparent.clone()).is_err(), "{rules:?}");
    }
    check(&named.clone().transparent(), transparent).unwrap();
    assert!(check(&named.clone().transparent(), freebind.clone()).is_err());
    check(&named.freebind(), freebind).unwrap();
}

#[test]
fn options_for_other_addresses_need_a_rule_for_own_ones_too() {
    opens(
        &with_ip(|ip| ip.transparent = true),
        "policy: IP_TRANSPARENT=1 is not allowed (Rules::transparent)",
        &Rules::new().transparent(),
    );
    opens(
        &with_ip(|ip| ip.freebind = true),
        "policy: IP_FREEBIND=1 is not allowed (Rules::freebind)",
        &Rules::new().freebind(),
    );
}

#[test]
fn ports_are_narrowed() {
    let rules = Rules::new().ports(80..=80).ports(443..=444);
    check(&rules, image()).unwrap();
    let other = with_flow("198.51.100.1:22,203.0.113.9:50000");
    check(&Rules::new(), other.clone()).unwrap();
    assert_eq!(
        check(&rules, other),
        Err("policy: the local port 22 (Rules::ports)".to_owned())
    );
}

#[test]
fn the_peer_is_another_host() {
    let remote = |address: &str| with_flow(&format!("198.51.100.1:443,{address}:50000"));
    let all = Rules::new().peers(prefix("0.0.0.0/0"));
    let why = |what: &str| format!("policy: the remote address {what} (Rules::peers)");
    opens(
        &remote("198.51.100.1"),
        &why("198.51.100.1 is of this host itself"),
        &all,
    );
    let broadcast = remote("198.51.100.255");
    for rules in [Rules::new(), all.clone()] {
        let expected = why("198.51.100.255 is a broadcast address here");
        assert_eq!(check(&rules, broadcast.clone()), Err(expected));
    }
    let narrow = Rules::new().peers(prefix("203.0.113.9"));
    check(&narrow, image()).unwrap();
    let other = remote("203.0.113.10");
    assert_eq!(
        check(&narrow, other),
        Err(why("203.0.113.10 is in no prefix"))
    );
    let anycast = with_flow("[2001:db8::1]:443,[2001:db8::]:50000");
    assert!(check(&Rules::new(), anycast).is_err());
}

#[test]
fn marks_are_named_and_the_injected_one_is_never_taken() {
    let marked = |mark| with_ip(|ip| ip.mark = Some(mark));
    let why = "policy: SO_MARK=0x77 is not allowed (Rules::mark)";
    opens(&marked(0x77), why, &Rules::new().mark(0x77));
    opens(&marked(0x77), why, &Rules::new().any_mark());
    assert!(check(&Rules::new().mark(0x78), marked(0x77)).is_err());
    for rules in [
        Rules::new(),
        Rules::new().any_mark(),
        Rules::new().mark(INJECT_MARK),
    ] {
        let injected = || marked(INJECT_MARK);
        let error = check(&rules, injected()).unwrap_err();
        assert!(error.contains("SO_MARK=0x7463706d"), "{error}");
        // It is not left out either.
        let left_out = rules.check(&mut injected(), &Fake::new(), true, true);
        assert!(left_out.is_err(), "{left_out:?}");
    }
}

#[test]
fn devices_are_named() {
    let rules = Rules::new().device("eth1").device("eth0");
    opens(
        &with_ip(|ip| ip.bound_device = Some("eth0".to_owned())),
        "policy: SO_BINDTODEVICE=eth0 is not allowed (Rules::device)",
        &rules,
    );
    opens(
        &with_ip(|ip| ip.scope = Some("eth0".to_owned())),
        "policy: an address of the device eth0 (Rules::device)",
        &rules,
    );
}

#[test]
fn options_of_privileged_processes_need_a_rule() {
    opens(
        &with_ip(|ip| ip.priority = Some(7)),
        "policy: SO_PRIORITY=7 is not allowed (Rules::priority_up_to)",
        &Rules::new().priority_up_to(7),
    );
    opens(
        &with_ip(|ip| ip.ip_options = Some(vec![0x83, 3, 4, 0].into())),
        "policy: IP_OPTIONS=[83, 03, 04, 00] is not allowed (Rules::ip_options)",
        &Rules::new().ip_options(),
    );
    opens(
        &with_tcp(|tcp| tcp.socket.congestion = Some("bbr".to_owned())),
        "policy: TCP_CONGESTION=bbr is not allowed (Rules::congestion)",
        &Rules::new().congestion("bbr"),
    );
    opens(
        &with_tcp(|tcp| tcp.socket.congestion = Some("elsewhere".to_owned())),
        "TCP_CONGESTION=elsewhere: this host does not have it (ENOENT)",
        &Rules::new().congestion("elsewhere"),
    );
    opens(
        &with_tcp(|tcp| tcp.socket.busy_poll = Some(21)),
        "policy: SO_BUSY_POLL=21 is not allowed (Rules::busy_poll)",
        &Rules::new().busy_poll(),
    );
    opens(
        &with_tcp(|tcp| tcp.socket.prefer_busy_poll = Some(true)),
        "policy: SO_PREFER_BUSY_POLL=1 is not allowed (Rules::busy_poll)",
        &Rules::new().busy_poll(),
    );
}

#[test]
fn buffers_that_were_asked_for_have_the_limits_of_this_host() {
    let receive = with_tcp(|tcp| {
        tcp.socket.buffer_lock = Some(2);
        tcp.socket.receive_buffer = Some(0x7fff_ffff);
    });
    opens(
        &receive,
        "policy: SO_RCVBUF=2147483647 (this host allows 400000) is not allowed (Rules::buffers_up_to)",
        &Rules::new().buffers_up_to(u32::MAX),
    );
    let send = with_tcp(|tcp| {
        tcp.socket.buffer_lock = Some(1);
        tcp.socket.send_buffer = Some(300_001);
        tcp.socket.receive_buffer = Some(0x7fff_ffff);
    });
    opens(
        &send,
        "policy: SO_SNDBUF=300001 (this host allows 300000) is not allowed (Rules::buffers_up_to)",
        &Rules::new().buffers_up_to(300_001),
    );
}

#[test]
fn queues_have_the_limits_of_this_host() {
    let queue = |bytes: usize| SecretBytes::from(vec![0; bytes]);
    opens(
        &with_tcp(|tcp| tcp.receive.queue = queue((7 << 20) + 1)),
        "policy: a receive queue of 7340033 bytes, more than the 7340032 that a connection of this host can have (Rules::buffers_up_to)",
        &Rules::new().buffers_up_to(7 << 20),
    );
    let sent_and_unsent = with_tcp(|tcp| {
        tcp.send.sent = queue(3 << 20);
        tcp.send.unsent = queue(3 << 20);
    });
    assert!(check(&Rules::new(), sent_and_unsent).is_err());
}

#[test]
fn sessions_are_left_to_the_application_or_named() {
    let of = |layers: &[(&str, u32)]| {
        let mut image = image();
        let layers = layers
            .iter()
            .map(|&(kind, version)| Layer::new(kind, version, SecretBytes::new()));
        image.layers = layers.collect();
        image
    };
    let takes = |rules: &Rules, mut image: Image, asked| {
        rules.check(&mut image, &Fake::new(), asked, false).is_ok()
    };
    let open = Rules::new();
    assert!(takes(&open, image(), false) && takes(&open, image(), true));
    assert!(takes(&open, of(&[("a", 1)]), true));
    assert!(!takes(&open, of(&[("a", 1)]), false));
    let named = Rules::new().session("a", 2..=3);
    for (version, is_taken) in [(1, false), (2, true), (3, true), (4, false)] {
        assert_eq!(takes(&named, of(&[("a", version)]), true), is_taken);
    }
    assert!(!takes(&named, of(&[("b", 2)]), true));
    assert!(!takes(&named, image(), true));
    assert!(takes(&named.clone().plain(), image(), true));
    // Of two layers both have to be named, in any order.
    let both = of(&[("tls", 1), ("a", 2)]);
    assert!(takes(&open, both.clone(), true) && !takes(&open, both.clone(), false));
    let refused = check(&named, both.clone()).unwrap_err();
    assert_eq!(
        refused,
        "policy: the layer \"tls\" version 1 (Rules::session)"
    );
    let upper = check(&Rules::new().session("tls", 1..=1), both.clone()).unwrap_err();
    assert_eq!(upper, "policy: the layer \"a\" version 2 (Rules::session)");
    assert!(takes(&named.session("tls", 1..=1), both, false));
    assert!(!takes(&Rules::new().plain(), of(&[("a", 1)]), true));
}

#[test]
fn what_is_left_out_is_gone_and_reported() {
    let mut image = with_tcp(|tcp| {
        tcp.socket.buffer_lock = Some(3);
        tcp.socket.receive_buffer = Some(1 << 30);
        tcp.socket.send_buffer = Some(1 << 16);
        tcp.socket.congestion = Some("bbr".to_owned());
    });
    let ip = image.ip_mut().unwrap();
    ip.mark = Some(0x77);
    ip.transparent = true;
    let left_out = Rules::new()
        .check(&mut image, &Fake::new(), true, true)
        .unwrap();
    let texts: Vec<_> = left_out.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "SO_MARK=0x77: this process may not set it (EPERM)",
            "IP_TRANSPARENT=1: this process may not set it (EPERM)",
            "SO_RCVBUF=1073741824 (this host allows 400000): above net.core.rmem_max of this host (EPERM)",
            "TCP_CONGESTION=bbr: this process may not set it (EPERM)",
        ]
    );
    let ip = image.ip().unwrap();
    assert_eq!((ip.mark, ip.transparent), (None, false));
    let socket = image.tcp().unwrap().socket();
    assert_eq!(socket.receive_buffer, None);
    assert_eq!(socket.send_buffer, Some(1 << 16));
    assert_eq!(socket.buffer_lock, Some(1));
    assert_eq!(socket.congestion, None);
}

#[test]
fn hosts_have_rules_of_their_own() {
    let policy = Policy::new()
        .others(Rules::new().ports(1..=1))
        .host("LB.example", Rules::new());
    check(policy.rules("lb.EXAMPLE"), image()).unwrap();
    assert!(check(policy.rules("other.example"), image()).is_err());
    // Nobody is in a policy without rules.
    assert!(check(Policy::new().rules("x"), with_ip(|ip| ip.mark = Some(1))).is_err());
}

#[test]
fn prefixes() {
    let contains = |text: &str, address: &str| prefix(text).contains(address.parse().unwrap());
    assert!(contains("198.51.100.0/24", "198.51.100.255"));
    assert!(contains("198.51.100.0/24", "::ffff:198.51.100.1"));
    assert!(!contains("198.51.100.0/24", "198.51.101.0"));
    assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "::1"));
    assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "203.0.113.9"));
    assert!(contains("2001:db8::1", "2001:db8::1") && !contains("2001:db8::1", "2001:db8::2"));
    for text in [
        "",
        "a",
        "1.2.3.4/33",
        "::/129",
        "::ffff:1.2.3.4/24",
        "1.2.3.4/-1",
    ] {
        assert!(text.parse::<Prefix>().is_err(), "{text}");
    }
    assert_eq!(prefix("198.51.100.0/24").to_string(), "198.51.100.0/24");
}
