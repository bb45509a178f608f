//! What a target takes of what an image can hold, on the real host.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use tcpmig::capture::{CaptureError, Plan};
use tcpmig::driver::policy::Rules;
use tcpmig::driver::{Ending, Options};
use tcpmig::handover::HandoverId;
use tcpmig::restore::{INJECT_MARK, Prepared, RestoreError};
use tcpmig_format::{Image, IpImage, Layer, SocketOptions, TcpImage};
use tcpmig_sys::sockopt;

use crate::hostile::{image_of, refusal, serve_counting};
use crate::support::{Family, Net, Site, Talk, both_ways, flow, kept, kernel_test};

type Change = Box<dyn Fn(&mut Image)>;

fn ip(change: impl Fn(&mut IpImage) + 'static) -> Change {
    Box::new(move |image| change(image.ip_mut().unwrap()))
}

fn between(flow: &str) -> Change {
    let flow = flow.parse().unwrap();
    ip(move |ip| ip.flow = flow)
}

fn options(change: impl Fn(&mut SocketOptions) + 'static) -> Change {
    Box::new(move |image| {
        let mut parts = image.tcp().unwrap().parts().clone();
        change(&mut parts.socket);
        image.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());
    })
}

/// What an allowed host put into images, and what it is refused for.
fn hostile() -> Vec<(Change, &'static str)> {
    let foreign = "203.0.113.77:443,198.18.0.9:1234";
    vec![
        (between(foreign), "Rules::local"),
        (
            Box::new(move |image| {
                between(foreign)(image);
                image.ip_mut().unwrap().transparent = true;
            }),
            "Rules::local",
        ),
        // A broadcast address can be bound.
        (between("198.18.0.255:443,198.18.0.9:1234"), "Rules::local"),
        (between("198.18.0.80:443,198.18.0.255:1234"), "broadcast"),
        (
            between("198.18.0.80:443,198.18.0.2:1234"),
            "this host itself",
        ),
        (
            between("198.18.0.80:443,127.0.0.1:1234"),
            "this host itself",
        ),
        (ip(|ip| ip.transparent = true), "IP_TRANSPARENT=1"),
        (ip(|ip| ip.freebind = true), "IP_FREEBIND=1"),
        (ip(|ip| ip.mark = Some(INJECT_MARK)), "no rule allows it"),
        (ip(|ip| ip.mark = Some(1)), "SO_MARK=0x1"),
        (ip(|ip| ip.priority = Some(7)), "SO_PRIORITY=7"),
        (
            ip(|ip| ip.bound_device = Some("eth0".to_owned())),
            "SO_BINDTODEVICE=eth0",
        ),
        (
            // A loose source route through another host.
            ip(|ip| ip.ip_options = Some(vec![0x83, 7, 4, 198, 18, 0, 1, 0].into())),
            "IP_OPTIONS",
        ),
        (
            options(|options| {
                options.buffer_lock = Some(2);
                options.receive_buffer = Some(0x7fff_ffff);
            }),
            "SO_RCVBUF=2147483647",
        ),
        (
            options(|options| {
                options.buffer_lock = Some(1);
                options.send_buffer = Some(0x7fff_ffff);
            }),
            "SO_SNDBUF=2147483647",
        ),
        (
            options(|options| options.congestion = Some("elsewhere".to_owned())),
            "TCP_CONGESTION=elsewhere",
        ),
        (
            options(|options| options.busy_poll = Some(100_000)),
            "SO_BUSY_POLL=100000",
        ),
        (
            options(|options| options.prefer_busy_poll = Some(true)),
            "SO_PREFER_BUSY_POLL=1",
        ),
        (
            Box::new(|image: &mut Image| {
                image.layers = vec![Layer::new("unheard-of", 1, vec![1])];
            }),
            "the layer \"unheard-of\" version 1 (Rules::session)",
        ),
    ]
}

kernel_test!(what_a_source_may_not_bring_is_refused_by_name, || {
    let net = Net::new();
    // With this the kernel itself refuses no address.
    net.b.set("net/ipv4/ip_nonlocal_bind", "1").unwrap();
    let (a, b) = Site::pair(&net, &Options::default());
    let locks = serve_counting(&b);
    let (peer, server) = net.connect(Family::V4);
    let (frozen, image) = image_of(&a, server);
    for (change, expected) in hostile() {
        let mut image = image.clone();
        change(&mut image);
        let image = image.encode().unwrap().into();
        let answer = a.call(|here| async move {
            let mut talk = Talk::with_other(&here).await;
            let id = HandoverId::random().unwrap();
            talk.give(id, image).await
        });
        let reason = refusal(answer);
        assert!(
            reason.contains(expected),
            "{expected:?} is not in {reason:?}"
        );
        assert_eq!(locks.load(Ordering::Relaxed), 0, "locked for {expected}");
    }
    // As it was it would have been taken.
    let image = image.encode().unwrap().into();
    let answer = a.call(|here| async move {
        let mut talk = Talk::with_other(&here).await;
        let id = HandoverId::random().unwrap();
        talk.give(id, image).await
    });
    assert_eq!(answer.name(), "PREPARED", "{answer:?}");
    drop(b);
    both_ways(&peer, &frozen.keep().unwrap().into());
});

kernel_test!(a_layer_that_nobody_consumes_is_refused_by_name, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve_if(|offered| {
        let mut layers = offered.read_layers();
        layers.next_of("below").ok_or("it has no such layer")?;
        layers.finish().map_err(|left| left.to_string())
    });
    let (peer, server) = net.connect(Family::V4);
    let layer = |kind, version| Layer::new(kind, version, vec![7]);
    let both = vec![layer("below", 1), layer("above", 3)];
    let outcome = a.move_out(server, both.clone()).wait();
    assert!(
        matches!(&outcome.ending, Ending::Kept { layers, .. } if *layers == both),
        "{outcome:?}"
    );
    let (server, reason) = kept(outcome);
    let left = "nothing here consumes the layer \"above\" version 3";
    assert!(reason.contains(left), "{reason}");
    both_ways(&peer, &server);
    let outcome = a.move_out(server, Some(layer("below", 1))).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    let arrived = b.arrival();
    assert_eq!(arrived.layers, [layer("below", 1)]);
    both_ways(&peer, &TcpStream::from(arrived.socket));
});

kernel_test!(what_a_rule_opens_moves, || {
    for family in [Family::V4, Family::V6] {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &Options::default());
        b.serve_on(
            Rules::new()
                .mark(0x77)
                .device("eth0")
                .priority_up_to(9)
                .freebind()
                .peers("198.18.0.0/24".parse().unwrap())
                .peers("2001:2::/64".parse().unwrap())
                .local("198.18.0.80".parse().unwrap())
                .local("2001:2::80".parse().unwrap()),
        );
        let (peer, server) = net.connect(family);
        let fd = server.as_fd();
        sockopt::set_mark(fd, 0x77).unwrap();
        sockopt::set_bound_device(fd, "eth0").unwrap();
        sockopt::set_priority(fd, 9).unwrap();
        match family {
            Family::V6 => sockopt::set_freebind_v6(fd, true).unwrap(),
            _ => sockopt::set_freebind(fd, true).unwrap(),
        }
        let outcome = a.move_out(server, None).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        let arrived = b.arrival();
        assert!(arrived.not_set.is_empty(), "{:?}", arrived.not_set);
        let moved = TcpStream::from(arrived.socket);
        let fd = moved.as_fd();
        assert_eq!(sockopt::mark(fd).unwrap(), 0x77);
        assert_eq!(sockopt::bound_device(fd).unwrap().as_deref(), Some("eth0"));
        assert_eq!(sockopt::priority(fd).unwrap(), 9);
        both_ways(&peer, &moved);
    }
});

kernel_test!(a_privilege_is_left_out_by_choice_and_reported, || {
    let net = Net::new();
    let mut options = Options::default();
    options.unsupported = tcpmig::options::Unsupported::Warn;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    sockopt::set_mark(server.as_fd(), 0x77).unwrap();
    let outcome = a.move_out(server, None).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    let arrived = b.arrival();
    let texts: Vec<_> = arrived.not_set.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["SO_MARK=0x77: this process may not set it (EPERM)"]);
    let moved = TcpStream::from(arrived.socket);
    assert_eq!(sockopt::mark(moved.as_fd()).unwrap(), 0);
    both_ways(&peer, &moved);
});

kernel_test!(the_mark_of_injected_packets_does_not_leave_a_host, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve_on(Rules::new().any_mark());
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    sockopt::set_mark(server.as_fd(), INJECT_MARK).unwrap();
    let planned = Plan::read(server.as_fd()).unwrap_err();
    assert!(matches!(planned, CaptureError::InjectMark), "{planned}");
    assert!(planned.is_not_migratable());
    let (server, reason) = kept(a.move_out(server, None).wait());
    assert!(reason.contains("SO_MARK=0x7463706d"), "{reason}");
    assert_eq!(a.entries(flow), []);
    both_ways(&peer, &server);
});

kernel_test!(the_mark_of_injected_packets_is_not_restored, || {
    let net = Net::new();
    let (a, _b) = Site::pair(&net, &Options::default());
    let (peer, server) = net.connect(Family::V4);
    let (frozen, mut image) = image_of(&a, server);
    image.ip_mut().unwrap().mark = Some(INJECT_MARK);
    let built = net.b.run(|| {
        let locker = tcpmig::locker::nftables().unwrap();
        let lease = std::time::Duration::from_secs(10);
        Prepared::build(image, &locker, lease).unwrap_err()
    });
    let built = built.unwrap();
    assert!(matches!(built, RestoreError::InjectMark), "{built}");
    let server: OwnedFd = frozen.keep().unwrap();
    both_ways(&peer, &server.into());
});
