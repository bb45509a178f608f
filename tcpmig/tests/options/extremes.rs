//! Values at the limits of what is legal.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};
use tcpmig_format::{Image, Seq, TcpImage, TcpParts};
use tcpmig_sys::{Error, sockopt};

use crate::carried::Case;
use crate::scene::{activate, arrive, build, leave, locker};
use crate::support::{Family, Net, both_ways, expect, kernel_test, numbered, until};

macro_rules! cases {
    ($($get:ident, $set:ident: $($value:expr),+;)*) => {
        vec![$($(Case {
            name: concat!(stringify!($get), " = ", stringify!($value)),
            set: |fd| sockopt::$set(fd, $value),
            read: |fd| format!("{:?}", sockopt::$get(fd).unwrap()),
        }),+),*]
    };
}

/// As large as the kernel accounts at most: twice half of the largest int.
const LARGEST_BUFFER: u32 = i32::MAX.cast_unsigned();

fn of_sockets() -> Vec<Case> {
    cases! {
        keep_idle, set_keep_idle: 1, 32767;
        keep_interval, set_keep_interval: 1, 32767;
        keep_count, set_keep_count: 1, 127;
        syn_count, set_syn_count: 1, 127;
        user_timeout, set_user_timeout: i32::MAX.cast_unsigned();
        linger, set_linger: Some(0), Some(i32::MAX.cast_unsigned()), Some(u32::MAX);
        linger2, set_linger2: -1, 1, 120, i32::MAX;
        defer_accept, set_defer_accept: 1, i32::MAX.cast_unsigned();
        not_sent_low_water, set_not_sent_low_water: 1, u32::MAX;
        receive_low_water, set_receive_low_water: 2, i32::MAX.cast_unsigned();
        receive_timeout, set_receive_timeout: 1, 1 << 60, u64::MAX;
        send_timeout, set_send_timeout: 1, 1 << 60, u64::MAX;
        max_pacing_rate, set_max_pacing_rate: 1 << 20, u32::MAX.into(), u64::MAX - 1, u64::MAX;
        priority, set_priority: 6, i32::MAX.cast_unsigned();
        mark, set_mark: 1, u32::MAX;
        send_buffer, set_send_buffer: 0, 1;
        send_buffer, force_send_buffer: LARGEST_BUFFER;
        receive_buffer, set_receive_buffer: 0, 1;
        receive_buffer, force_receive_buffer: LARGEST_BUFFER;
        window_clamp, set_window_clamp: 1, i32::MAX.cast_unsigned();
        peek_offset, set_peek_offset: 0, i32::MAX;
        rto_max, set_rto_max: 1000, 120_000;
        rto_min, set_rto_min: 20_000, 200_000;
        delayed_ack_max, set_delayed_ack_max: 20_000, 200_000;
        local_port_range, set_local_port_range: 1 | 1 << 16, 0xffff_ffff;
    }
}

fn of_ipv4_packets() -> Vec<Case> {
    let mut all = cases! {
        ttl, set_ttl: 1, 255;
        mtu_discover, set_mtu_discover: 0, 5;
        // As many as there is room for: of no operation.
        ip_options, set_ip_options: &[1; 4], &[1; 40];
    };
    macro_rules! tos {
        ($($tos:literal)*) => { $(all.extend(cases! { tos, set_tos: $tos; });)* };
    }
    // All code points of Diffserv classes.
    tos!(0x04 0x20 0x28 0x30 0x38 0x40 0x60 0x80 0xa0 0xb8 0xc0 0xe0 0xfc);
    all
}

fn of_ipv6_sockets() -> Vec<Case> {
    cases! {
        hop_limit, set_hop_limit: 0, 1, 255;
        traffic_class, set_traffic_class: 4, 0xfc;
        mtu_discover_v6, set_mtu_discover_v6: 0, 5;
    }
}

/// Moves within host A. Nothing may be on its way meanwhile.
fn moves_on_a(net: &Net, server: TcpStream) -> TcpStream {
    let image = leave(&net.a, server);
    let flow = image.ip().unwrap().flow;
    locker(&net.a).force_unlock(&[flow]).unwrap();
    arrive(&net.a, image)
}

fn all_move(family: Family, cases: Vec<Case>) {
    let net = Net::new();
    for case in cases {
        let (peer, server) = net.connect(family);
        match (case.set)(server.as_fd()) {
            Ok(()) => {}
            // An older kernel, or an ordinary user.
            Err(Error::Unsupported { .. } | Error::NoPermission { .. }) => continue,
            Err(error) => panic!("{}: {error}", case.name),
        }
        let was = (case.read)(server.as_fd());
        println!("{}: {was}", case.name);
        let moved = moves_on_a(&net, server);
        assert_eq!((case.read)(moved.as_fd()), was, "{}", case.name);
        both_ways(&peer, &moved);
    }
}

kernel_test!(options_of_sockets_move_with_extreme_values, || {
    all_move(Family::V4, of_sockets());
});

kernel_test!(options_of_packets_move_with_extreme_values, || {
    all_move(Family::V4, of_ipv4_packets());
    all_move(Family::V6, of_ipv6_sockets());
    all_move(Family::Mapped, of_ipv6_sockets());
});

/// Moves a connection to host B with its peer, and compares what was negotiated.
fn negotiated_moves(net: &Net, peer: &TcpStream, server: TcpStream) -> Image {
    let image = leave(&net.a, server);
    net.point_peer_at_b();
    let moved = arrive(&net.b, image.clone());
    both_ways(peer, &moved);
    let again = leave(&net.b, moved);
    let (first, second) = (image.tcp().unwrap(), again.tcp().unwrap());
    let (first, second) = (first.negotiated(), second.negotiated());
    assert_eq!(first.mss_clamp, second.mss_clamp);
    assert_eq!(first.window_scale, second.window_scale);
    image
}

kernel_test!(the_smallest_segments_move, || {
    for mss in [1, 48, 87, 88, 536] {
        for family in [Family::V4, Family::V6] {
            println!("{mss} {family:?}");
            let net = Net::new();
            net.peer
                .ip(&format!(
                    "route add 198.18.0.80 dev eth0 advmss {mss}\nroute add 2001:2::80 dev eth0 advmss {mss}"
                ))
                .unwrap();
            let (peer, server) = net.connect(family);
            let image = negotiated_moves(&net, &peer, server);
            let clamp = image.tcp().unwrap().negotiated().mss_clamp;
            assert_eq!(clamp, mss, "what the peer told");
        }
    }
});

kernel_test!(the_largest_segments_move, || {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let net = Net::new();
        let open = || {
            let listener = TcpListener::bind(address).unwrap();
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (peer, listener.accept().unwrap().0)
        };
        let (peer, server) = net.a.run(open).unwrap();
        let moved = moves_on_a(&net, server);
        both_ways(&peer, &moved);
        let image = leave(&net.a, moved);
        let tcp = image.tcp().unwrap();
        let mss = tcp.negotiated().mss_clamp;
        assert!(mss >= 65_463, "{mss}");
    }
});

/// A connection of the peer with host A, whose sockets have these bounds of their windows.
fn scaled(net: &Net, ours: Option<u32>, theirs: Option<u32>) -> (TcpStream, TcpStream) {
    let socket = |clamp: Option<u32>| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        if let Some(clamp) = clamp {
            sockopt::set_window_clamp(socket.as_fd(), clamp).unwrap();
        }
        socket
    };
    let listen = || {
        let socket = socket(ours);
        let at: SocketAddr = "198.18.0.80:0".parse().unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(1).unwrap();
        TcpListener::from(socket)
    };
    let listener = net.a.run(listen).unwrap();
    let to = listener.local_addr().unwrap();
    let connect = || {
        let socket = socket(theirs);
        socket.connect(&to.into()).unwrap();
        TcpStream::from(socket)
    };
    let peer = net.peer.run(connect).unwrap();
    (peer, listener.accept().unwrap().0)
}

kernel_test!(the_extreme_window_scales_move, || {
    const UNSCALED: Option<u32> = Some(65_535);
    for (ours, theirs) in [
        (UNSCALED, None),
        (None, UNSCALED),
        (None, None),
        (UNSCALED, UNSCALED),
    ] {
        let net = Net::new();
        for host in [&net.a, &net.peer] {
            let largest = "4096 131072 1073741824";
            host.set("net/ipv4/tcp_rmem", largest).unwrap();
        }
        let (peer, server) = scaled(&net, ours, theirs);
        let image = negotiated_moves(&net, &peer, server);
        let scale = image.tcp().unwrap().negotiated().window_scale.unwrap();
        let expected = |clamp: Option<u32>| if clamp.is_some() { 0 } else { 14 };
        assert_eq!((scale.rcv, scale.snd), (expected(ours), expected(theirs)));
    }
});

/// Writes until nothing more is taken; how much that was.
fn fill(mut from: &TcpStream) -> usize {
    from.set_nonblocking(true).unwrap();
    let mut sent = 0;
    loop {
        match from.write(&numbered(sent as u64, 1 << 16)) {
            Ok(taken) => sent += taken,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    from.set_nonblocking(false).unwrap();
    sent
}

fn settle(fd: BorrowedFd<'_>) {
    let mut last = None;
    until("the queues stand still", || {
        let now = (
            sockopt::receive_queue_len(fd).unwrap(),
            sockopt::send_queue_len(fd).unwrap(),
            sockopt::unsent_len(fd).unwrap(),
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
        last.replace(now) == Some(now)
    });
}

/// Brings a connection to host B whose peer sends meanwhile: its packets come there when they are locked.
fn arrive_under_traffic(net: &Net, image: Image) -> TcpStream {
    let prepared = build(&net.b, image).unwrap();
    net.point_peer_at_b();
    TcpStream::from(activate(prepared).socket)
}

/// Both directions are full, so that both ends tell a window of 0; then both are read.
fn full_queues_move(size: Option<u32>) {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    if let Some(size) = size {
        for stream in [&peer, &server] {
            sockopt::set_send_buffer(stream.as_fd(), size).unwrap();
            sockopt::set_receive_buffer(stream.as_fd(), size).unwrap();
        }
    }
    let (down, up) = (fill(&server), fill(&peer));
    settle(server.as_fd());
    println!("{size:?}: {down} down, {up} up");
    let image = leave(&net.a, server);
    let moved = arrive_under_traffic(&net, image);
    std::thread::scope(|scope| {
        scope.spawn(|| expect(&peer, &numbered(0, down)));
        scope.spawn(|| expect(&moved, &numbered(0, up)));
    });
    both_ways(&peer, &moved);
}

kernel_test!(queues_that_fill_their_buffers_move, || {
    for size in [None, Some(0), Some(4096), Some(100_000)] {
        full_queues_move(size);
    }
});

fn with_parts(mut image: Image, change: impl FnOnce(&mut TcpParts)) -> Image {
    let mut parts = image.tcp().unwrap().parts().clone();
    change(&mut parts);
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(parts).unwrap());
    image
}

/// Another number for the next byte that an end sends, and for the next one that it receives.
fn renumber(image: Image, sent: u32, received: u32) -> Image {
    with_parts(image, |tcp| {
        tcp.send.snd_una = Seq::new(sent);
        tcp.receive.rcv_nxt = Seq::new(received);
        tcp.window.snd_wl1 = Seq::new(received);
        tcp.window.rcv_wup = Seq::new(received);
    })
}

kernel_test!(sequence_numbers_wrap_in_the_queues, || {
    for (down, up) in [
        (u32::MAX - 1499, u32::MAX - 1499),
        (u32::MAX, 0),
        (0, u32::MAX),
        (0x7fff_fa00, 0x7fff_ffff),
    ] {
        println!("{down:#x} {up:#x}");
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        // Both ends are made anew with these numbers.
        let images = [leave(&net.a, server), leave(&net.peer, peer)];
        for (host, image) in [&net.a, &net.peer].into_iter().zip(&images) {
            let flow = image.ip().unwrap().flow;
            locker(host).force_unlock(&[flow]).unwrap();
        }
        let [server, peer] = images;
        net.a.cut(&["prerouting", "output"]);
        let server = arrive(&net.a, renumber(server, down, up));
        let mut peer = arrive(&net.peer, renumber(peer, up, down));
        net.a.mend();
        peer.write_all(&numbered(0, 3000)).unwrap();
        until("the bytes wait to be read", || {
            sockopt::receive_queue_len(server.as_fd()).unwrap() == 3000
        });
        // A host that drops its own packets would count none as sent.
        net.peer.cut(&["prerouting", "output"]);
        (&server).write_all(&numbered(5000, 3000)).unwrap();
        until("it was sent", || {
            sockopt::unsent_len(server.as_fd()).unwrap() == 0
        });
        let image = leave(&net.a, server);
        net.peer.mend();
        let moved = arrive_under_traffic(&net, image);
        expect(&moved, &numbered(0, 3000));
        expect(&peer, &numbered(5000, 3000));
        both_ways(&peer, &moved);
    }
});
