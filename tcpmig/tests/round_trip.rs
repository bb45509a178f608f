//! A connection that was captured, restored elsewhere and captured again is the same, on the real kernel.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use support::{END, Family, Net, both_ways, expect, kernel_test, numbered, until};
use tcpmig::capture::{Frozen, Plan};
use tcpmig::restore::{Prepared, Restored};
use tcpmig_format::{Image, Limits, SecretBytes, SocketFamily, TcpImage, TimestampUnit};
use tcpmig_lock::NoLock;
use tcpmig_sys::lab::calls;
use tcpmig_sys::sockopt;

/// The rules of the tests keep the packets away, in one direction or in both.
const LEASE: Duration = Duration::from_secs(60);

fn freeze(socket: impl Into<OwnedFd>) -> (Frozen, Image) {
    let socket = socket.into();
    let plan = Plan::read(socket.as_fd()).unwrap();
    let mut frozen = Frozen::freeze(socket, plan, &NoLock, LEASE).unwrap();
    let image = frozen.capture(None).unwrap();
    (frozen, image)
}

fn restore(image: Image) -> Restored {
    let prepared = Prepared::build(image, &NoLock, LEASE).unwrap();
    prepared.activate().unwrap().write()
}

/// Values that no new socket has.
fn set_unusual_options(fd: BorrowedFd<'_>, family: Family) {
    sockopt::set_no_delay(fd, true).unwrap();
    sockopt::set_keep_alive(fd, true).unwrap();
    sockopt::set_keep_idle(fd, 77).unwrap();
    sockopt::set_keep_interval(fd, 7).unwrap();
    sockopt::set_keep_count(fd, 5).unwrap();
    sockopt::set_user_timeout(fd, 54_321).unwrap();
    sockopt::set_linger(fd, Some(13)).unwrap();
    sockopt::set_linger2(fd, 17).unwrap();
    sockopt::set_oob_inline(fd, true).unwrap();
    sockopt::set_reuse_port(fd, true).unwrap();
    sockopt::set_receive_low_water(fd, 3).unwrap();
    let other = match sockopt::congestion(fd).unwrap().as_str() {
        "cubic" => "reno",
        _ => "cubic",
    };
    sockopt::set_congestion(fd, other).unwrap();
    sockopt::set_not_sent_low_water(fd, 123_456).unwrap();
    sockopt::set_receive_buffer(fd, 100_000).unwrap();
    sockopt::set_send_buffer(fd, 90_000).unwrap();
    if family == Family::V6 {
        sockopt::set_traffic_class(fd, 0x48).unwrap();
        sockopt::set_hop_limit(fd, 33).unwrap();
        sockopt::set_freebind_v6(fd, true).unwrap();
    } else {
        sockopt::set_tos(fd, 0x48).unwrap();
        sockopt::set_ttl(fd, 44).unwrap();
    }
    if family == Family::V4 {
        sockopt::set_freebind(fd, true).unwrap();
    }
    // After TOS, which sets it too.
    sockopt::set_priority(fd, 5).unwrap();
    sockopt::set_mark(fd, 0x1234).unwrap();
}

/// Fills both queues of the server's socket, the send queue with bytes that are on their way and with ones that were
/// not sent; how many. Nothing passes host A afterwards.
fn fill(net: &Net, peer: &TcpStream, server: &TcpStream, up: &[u8]) -> usize {
    (&*peer).write_all(up).unwrap();
    until("the peer's bytes arrive", || {
        sockopt::receive_queue_len(server.as_fd()).unwrap() as usize == up.len()
    });
    until("the peer has its acknowledgements", || {
        sockopt::send_queue_len(peer.as_fd()).unwrap() == 0
    });
    // What the server sends arrives, and is not acknowledged.
    net.a.cut(&["prerouting"]);
    server.set_nonblocking(true).unwrap();
    let mut written = 0;
    loop {
        match (&*server).write(&numbered(written as u64, 5000)) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    net.a.cut(&["output"]);
    written
}

/// What may differ between the image and that of the restored connection is made equal, after a look
/// at how it differs.
fn level(first: &Image, mut second: Image) -> Image {
    let old = first.tcp().unwrap();
    let mut tcp = second.tcp().unwrap().parts().clone();

    // Clocks go on.
    assert!(first.taken.is_some() && first.taken <= second.taken);
    second.taken = first.taken;
    let (was, is) = (old.negotiated().timestamps, tcp.negotiated.timestamps);
    let (was, is) = (was.unwrap(), is.unwrap());
    assert_eq!(was.unit, is.unit);
    assert!(
        is.value.wrapping_sub(was.value) < 1 << 31,
        "it runs backwards"
    );
    tcp.negotiated.timestamps = Some(was);

    second.connection_mut().unwrap().tcp = Some(TcpImage::new(tcp).unwrap());
    second
}

fn round_trip(family: Family) {
    let net = Net::new();
    let (peer, server) = net.connect(family);
    let ends = net.peer.count(END);
    set_unusual_options(server.as_fd(), family);
    let up = numbered(0, 40_000);
    let written = fill(&net, &peer, &server, &up);

    let (frozen, first) = freeze(server);
    let bytes = first.encode().unwrap();
    let decoded = Image::decode(&bytes, &Limits::default()).unwrap();
    assert_eq!(decoded, first);
    is_what_was_made(&first, family, &up, written);

    net.b.cut(&["prerouting", "output"]);
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    net.point_peer_at_b();
    let restored = net.b.run(|| restore(decoded)).unwrap();
    assert_eq!(restored.unwritten, SecretBytes::new());
    let (again, second) = net.b.run(|| freeze(restored.socket)).unwrap();
    assert_eq!(level(&first, second), first);

    // And it is the connection of the peer still.
    net.b.mend();
    let server = TcpStream::from(again.keep().unwrap());
    server.set_nonblocking(false).unwrap();
    expect(&server, &up);
    expect(&peer, &numbered(0, written));
    support::both_ways(&peer, &server);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
}

/// The image shows the connection, so that equal images do not both lack something.
fn is_what_was_made(image: &Image, family: Family, up: &[u8], written: usize) {
    let (ip, tcp) = (image.ip().unwrap(), image.tcp().unwrap());
    let (socket, class) = match family {
        Family::V4 => (SocketFamily::Ipv4, ip.tos),
        Family::Mapped => (SocketFamily::Ipv4Mapped, ip.tos),
        Family::V6 => (SocketFamily::Ipv6, ip.traffic_class),
    };
    assert_eq!((ip.family, class), (socket, Some(0x48)));
    assert_eq!((ip.mark, ip.priority), (Some(0x1234), Some(5)));
    assert_eq!(ip.freebind, family != Family::Mapped);
    let hops = if family == Family::V6 {
        ip.hop_limit
    } else {
        ip.ttl
    };
    assert_eq!(hops, Some(if family == Family::V6 { 33 } else { 44 }));

    assert!(tcp.receive().queue[..] == *up);
    let (sent, unsent) = (&tcp.send().sent, &tcp.send().unsent);
    assert!(
        !sent.is_empty() && !unsent.is_empty(),
        "{sent:?} {unsent:?}"
    );
    assert!([&sent[..], &unsent[..]].concat() == numbered(0, written));

    let options = tcp.socket();
    let keep = options.keep_alive.unwrap();
    assert_eq!(
        (keep.on, keep.idle, keep.interval, keep.count),
        (true, 77, 7, 5)
    );
    assert_eq!(
        options.linger.map(|linger| (linger.on, linger.seconds)),
        Some((true, 13))
    );
    assert_eq!(options.user_timeout, Some(54_321));
    assert_eq!(options.not_sent_low_water, Some(123_456));
    assert_eq!(options.buffer_lock, Some(3));
    assert_eq!(options.receive_buffer, Some(200_000));
    assert_eq!(options.send_buffer, Some(180_000));
    assert_eq!(
        (options.no_delay, options.reuse_addr),
        (Some(true), Some(true))
    );
    assert_eq!(options.reuse_port, Some(true));
    assert_eq!(options.non_blocking, Some(true));
}

kernel_test!(an_ipv4_connection_is_the_same_after_a_round_trip, || {
    round_trip(Family::V4);
});

kernel_test!(an_ipv6_connection_is_the_same_after_a_round_trip, || {
    round_trip(Family::V6);
});

kernel_test!(
    an_ipv4_connection_of_a_dual_stack_socket_is_the_same_after_a_round_trip,
    || {
        round_trip(Family::Mapped);
    }
);

/// As if the image had waited in a file.
fn a_clock_goes_on_while_a_connection_stands_still(family: Family) {
    const STOOD: u32 = 5000;
    let net = Net::new();
    let (peer, server) = net.connect(family);
    net.a.cut(&["prerouting", "output"]);
    let (frozen, mut image) = net.a.run(|| freeze(server)).unwrap();
    let (unit, clock) = clock_of(&image);
    let begin = Instant::now();
    frozen.discard().unwrap();
    image.taken = image.taken.map(|taken| taken - u64::from(STOOD) * 1000);
    net.point_peer_at_b();
    let restored = net.b.run(|| restore(image)).unwrap();
    let fd = restored.socket.as_fd();
    let value = sockopt::timestamp(fd).unwrap() & !1;
    let most = STOOD + u32::try_from(begin.elapsed().as_millis()).unwrap() + 1000;
    let per_millisecond = match unit {
        TimestampUnit::Milliseconds => 1,
        TimestampUnit::Microseconds => 1000,
    };
    let advanced = value.wrapping_sub(clock);
    assert!(
        (STOOD * per_millisecond..=most * per_millisecond).contains(&advanced),
        "advanced by {advanced}"
    );
    let server = TcpStream::from(restored.socket);
    server.set_nonblocking(false).unwrap();
    both_ways(&peer, &server);
}

fn clock_of(image: &Image) -> (TimestampUnit, u32) {
    let timestamps = image.tcp().unwrap().negotiated().timestamps.unwrap();
    (timestamps.unit, timestamps.value)
}

kernel_test!(a_clock_goes_on_of_ipv4, || {
    a_clock_goes_on_while_a_connection_stands_still(Family::V4);
});
kernel_test!(a_clock_goes_on_of_ipv6, || {
    a_clock_goes_on_while_a_connection_stands_still(Family::V6);
});

/// What an idle connection costs in calls on its socket, all of its options among them. More of them are noticed here.
fn an_idle_connection_takes_few_calls(
    family: Family,
    [most_at_source, most_at_target]: [usize; 2],
) {
    let net = Net::new();
    // The first one opens what is kept for those after it.
    let connections = [(); 2].map(|()| net.connect(family));
    for host in [&net.a, &net.b] {
        host.cut(&["prerouting", "output"]);
    }
    let mut last = (Vec::new(), Vec::new());
    let mut alive = Vec::new();
    for (_, server) in &connections {
        let server = server.try_clone().unwrap();
        let leave = || {
            let (frozen, image) = freeze(server);
            frozen.check_unchanged().unwrap();
            frozen.discard().unwrap();
            image
        };
        let (image, source) = net.a.run(|| calls::made(leave)).unwrap();
        let arrive = || calls::made(|| restore(image));
        let (restored, target) = net.b.run(arrive).unwrap();
        alive.push(restored);
        last = (source, target);
    }
    let (source, target) = last;
    println!("source {}: {source:?}", source.len());
    println!("target {}: {target:?}", target.len());
    assert!(source.len() <= most_at_source, "{source:?}");
    assert!(target.len() <= most_at_target, "{target:?}");
}

kernel_test!(an_idle_connection_takes_few_calls_v4, || {
    an_idle_connection_takes_few_calls(Family::V4, [118, 56]);
});
kernel_test!(an_idle_connection_takes_few_calls_v6, || {
    an_idle_connection_takes_few_calls(Family::V6, [130, 58]);
});
