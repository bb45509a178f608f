//! Every option is the same after a move.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Socket, Type};
use tcpmig_sys::sockopt::{self, FilterInstruction};
use tcpmig_sys::{Error, fcntl};

use crate::scene::{arrive, assert_same, freeze, leave, moves};
use crate::support::{END, Family, Net, both_ways, kernel_test, until};

/// An option with a value that no new socket has.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) set: fn(BorrowedFd<'_>) -> Result<(), Error>,
    pub(crate) read: fn(BorrowedFd<'_>) -> String,
}

macro_rules! cases {
    ($($get:ident, $set:ident: $value:expr;)*) => {
        vec![$(Case {
            name: stringify!($get),
            set: |fd| sockopt::$set(fd, $value),
            read: |fd| format!("{:?}", sockopt::$get(fd).unwrap()),
        }),*]
    };
}

/// `SOF_TIMESTAMPING_*` of `linux/net_tstamp.h`: software timestamps of both directions, numbered.
const PACKETS: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 7;

/// A filter of more than one kind of instruction, which accepts every packet: `if (k & 0) skip` and
/// `return`.
fn accepts_all() -> [FilterInstruction; 3] {
    let instruction = |code, jt, jf, k| FilterInstruction { code, jt, jf, k };
    [
        // BPF_LD | BPF_IMM, BPF_JMP | BPF_JSET | BPF_K, BPF_RET | BPF_K.
        instruction(0x00, 0, 0, 0x1234_5678),
        instruction(0x45, 0, 0, 0xff00_0000),
        instruction(0x06, 0, 0, 0xffff_ffff),
    ]
}

fn of_sockets() -> Vec<Case> {
    cases! {
        reuse_addr, set_reuse_addr: 0;
        reuse_port, set_reuse_port: true;
        keep_alive, set_keep_alive: true;
        keep_idle, set_keep_idle: 77;
        keep_interval, set_keep_interval: 7;
        keep_count, set_keep_count: 5;
        oob_inline, set_oob_inline: true;
        mark, set_mark: 0x1234;
        linger, set_linger: Some(13);
        receive_low_water, set_receive_low_water: 3;
        receive_timeout, set_receive_timeout: 7_500_000;
        send_timeout, set_send_timeout: 4_250_000;
        receive_buffer, set_receive_buffer: 100_000;
        send_buffer, set_send_buffer: 90_000;
        dont_route, set_dont_route: true;
        zero_copy, set_zero_copy: true;
        select_error_queue, set_select_error_queue: true;
        timestamps_ns, set_timestamps_ns: true;
        timestamping, set_timestamping: PACKETS;
        max_pacing_rate, set_max_pacing_rate: 50_000_000;
        filter, attach_filter: accepts_all();
        lock_filter, set_lock_filter: true;
        no_delay, set_no_delay: true;
        cork, set_cork: true;
        user_timeout, set_user_timeout: 54_321;
        linger2, set_linger2: 17;
        syn_count, set_syn_count: 3;
        defer_accept, set_defer_accept: 7;
        window_clamp, set_window_clamp: 30_000;
        not_sent_low_water, set_not_sent_low_water: 123_456;
        quick_ack, set_quick_ack: false;
        thin_linear_timeouts, set_thin_linear_timeouts: true;
        tx_delay, set_tx_delay: 1500;
        inq, set_inq: true;
        bind_address_no_port, set_bind_address_no_port: true;
    }
}

fn of_ipv4_packets() -> Vec<Case> {
    cases! {
        tos, set_tos: 0x48;
        ttl, set_ttl: 44;
        mtu_discover, set_mtu_discover: 2;
        min_ttl, set_min_ttl: 60;
        receive_errors, set_receive_errors: true;
        receive_packet_info, set_receive_packet_info: true;
        receive_ttl, set_receive_ttl: true;
        receive_tos, set_receive_tos: true;
        // Three of no operation and the end of the list.
        ip_options, set_ip_options: &[1, 1, 1, 0];
    }
}

fn of_ipv6_sockets() -> Vec<Case> {
    cases! {
        traffic_class, set_traffic_class: 0x48;
        hop_limit, set_hop_limit: 33;
        mtu_discover_v6, set_mtu_discover_v6: 2;
        min_hop_limit, set_min_hop_limit: 60;
        auto_flow_label, set_auto_flow_label: false;
        flow_info_send, set_flow_info_send: true;
        receive_errors_v6, set_receive_errors_v6: true;
        receive_packet_info_v6, set_receive_packet_info_v6: true;
        receive_hop_limit, set_receive_hop_limit: true;
        receive_traffic_class, set_receive_traffic_class: true;
        receive_flow_info, set_receive_flow_info: true;
        receive_hop_options, set_receive_hop_options: true;
        receive_routing_header, set_receive_routing_header: true;
        receive_destination_options, set_receive_destination_options: true;
    }
}

fn congestion() -> Vec<Case> {
    vec![Case {
        name: "congestion",
        set: |fd| {
            let other = match sockopt::congestion(fd)?.as_str() {
                "cubic" => "reno",
                _ => "cubic",
            };
            sockopt::set_congestion(fd, other)
        },
        read: |fd| sockopt::congestion(fd).unwrap(),
    }]
}

/// Options that came with Linux 5.18 and later, as far as this kernel knows them for sockets of a family.
fn of_newer_kernels(family: Family) -> Vec<Case> {
    let domain = if family == Family::V4 {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    let mut all = cases! {
        tx_rehash, set_tx_rehash: false;
        local_port_range, set_local_port_range: 50_000 | 60_000 << 16;
        peek_offset, set_peek_offset: 5;
        rto_max, set_rto_max: 5000;
        rto_min, set_rto_min: 100_000;
        delayed_ack_max, set_delayed_ack_max: 100_000;
    };
    all.retain(|case| match (case.set)(socket.as_fd()) {
        Ok(()) => true,
        Err(Error::Unsupported { .. }) => false,
        Err(error) => panic!("{}: {error}", case.name),
    });
    all
}

/// The priority comes last: a type of service changes it.
fn priority() -> Vec<Case> {
    cases! { priority, set_priority: 5; }
}

fn cases(family: Family) -> Vec<Case> {
    let mut all = of_sockets();
    all.extend(congestion());
    if family != Family::V6 {
        all.extend(of_ipv4_packets());
    }
    if family != Family::V4 {
        all.extend(of_ipv6_sockets());
    }
    all.extend(of_newer_kernels(family));
    all.extend(priority());
    all
}

fn read(cases: &[Case], fd: BorrowedFd<'_>) -> Vec<String> {
    let read = |case: &Case| format!("{} = {}", case.name, (case.read)(fd));
    cases.iter().map(read).collect()
}

/// Sets every option, moves, and reads; captures once more while no packet passes, and compares the images.
fn all_move(family: Family) {
    let net = Net::new();
    let (peer, server) = net.connect(family);
    let ends = net.peer.count(END);
    let cases = cases(family);
    let fresh = read(&cases, server.as_fd());
    for case in &cases {
        (case.set)(server.as_fd()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    }
    let unusual = read(&cases, server.as_fd());
    for (fresh, unusual) in fresh.iter().zip(&unusual) {
        assert_ne!(fresh, unusual, "the test sets what every socket has");
    }

    let first = leave(&net.a, server);
    net.point_peer_at_b();
    net.b.cut(&["prerouting", "output"]);
    let moved = arrive(&net.b, first.clone());
    assert_eq!(read(&cases, moved.as_fd()), unusual);
    let (again, second) = freeze(&net.b, moved);
    assert_same(&first, second);
    net.b.mend();
    let moved = TcpStream::from(again.keep().unwrap());
    assert_eq!(read(&cases, moved.as_fd()), unusual, "kept");
    // It would keep each answer back for a retransmission timeout.
    sockopt::set_cork(moved.as_fd(), false).unwrap();
    both_ways(&peer, &moved);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
}

kernel_test!(options_of_an_ipv4_connection_move, || all_move(Family::V4));
kernel_test!(options_of_an_ipv6_connection_move, || all_move(Family::V6));
kernel_test!(options_of_a_mapped_connection_move, || all_move(
    Family::Mapped
));

/// What nobody set is not set by a move.
fn none_appears(family: Family) {
    let net = Net::new();
    let (peer, server) = net.connect(family);
    let mut cases = cases(family);
    cases.extend(cases! {
        transparent, set_transparent: true;
        freebind, set_freebind: true;
        bound_device, set_bound_device: "eth0";
        timestamps, set_timestamps: true;
        timestamps_new, set_timestamps_new: true;
        timestamps_ns_new, set_timestamps_ns_new: true;
    });
    let fresh = read(&cases, server.as_fd());
    let image = leave(&net.a, server);
    net.point_peer_at_b();
    let moved = arrive(&net.b, image);
    assert_eq!(read(&cases, moved.as_fd()), fresh);
    both_ways(&peer, &moved);
}

kernel_test!(no_option_appears_by_a_move, || {
    for family in [Family::V4, Family::V6, Family::Mapped] {
        none_appears(family);
    }
});

kernel_test!(both_kinds_of_timestamps_move, || {
    let net = Net::new();
    let reads = cases! {
        timestamps, set_timestamps: true;
        timestamps_new, set_timestamps_new: true;
        timestamps_ns, set_timestamps_ns: true;
        timestamps_ns_new, set_timestamps_ns_new: true;
        timestamping, set_timestamping: PACKETS;
        timestamping_new, set_timestamping_new: PACKETS;
    };
    for case in &reads {
        let (peer, server) = net.connect(Family::V4);
        (case.set)(server.as_fd()).unwrap();
        let were = read(&reads, server.as_fd());
        let (frozen, image) = freeze(&net.a, server);
        frozen.discard().unwrap();
        crate::scene::locker(&net.a)
            .force_unlock(&[image.ip().unwrap().flow])
            .unwrap();
        let moved = arrive(&net.a, image);
        assert_eq!(read(&reads, moved.as_fd()), were, "{}", case.name);
        both_ways(&peer, &moved);
    }
});

kernel_test!(
    a_priority_that_is_not_that_of_the_type_of_service_moves,
    || {
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        sockopt::set_tos(server.as_fd(), 0x10).unwrap();
        assert_ne!(sockopt::priority(server.as_fd()).unwrap(), 0);
        sockopt::set_priority(server.as_fd(), 0).unwrap();
        let moved = moves(&net, server);
        assert_eq!(sockopt::tos(moved.as_fd()).unwrap(), 0x10);
        assert_eq!(sockopt::priority(moved.as_fd()).unwrap(), 0);
        both_ways(&peer, &moved);
    }
);

kernel_test!(the_filter_filters_after_the_move, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    // Accepts what has at most a header: BPF_LD | BPF_LEN, JGT 60, RET 0, RET all.
    let instruction = |code, jt, jf, k| FilterInstruction { code, jt, jf, k };
    let program = [
        instruction(0x80, 0, 0, 0),
        instruction(0x25, 0, 1, 60),
        instruction(0x06, 0, 0, 0),
        instruction(0x06, 0, 0, 0xffff_ffff),
    ];
    sockopt::attach_filter(server.as_fd(), program).unwrap();
    let moved = moves(&net, server);
    std::io::Write::write_all(&mut &peer, &[7; 500]).unwrap();
    let came = net.b.run(|| {
        until("the peer sends it again", || {
            tcpmig_sys::info::tcp_info(peer.as_fd())
                .unwrap()
                .total_retrans
                > 0
        });
        sockopt::receive_queue_len(moved.as_fd()).unwrap()
    });
    assert_eq!(came.unwrap(), 0, "the filter lets it pass");
    // Without it the connection goes on.
    let all = instruction(0x06, 0, 0, 0xffff_ffff);
    sockopt::attach_filter(moved.as_fd(), [all]).unwrap();
    crate::support::expect(&moved, &[7; 500]);
    both_ways(&peer, &moved);
});

kernel_test!(descriptor_flags_move, || {
    let net = Net::new();
    for non_blocking in [false, true] {
        for close_on_exec in [false, true] {
            let (peer, server) = net.connect(Family::V4);
            fcntl::set_non_blocking(server.as_fd(), non_blocking).unwrap();
            fcntl::set_close_on_exec(server.as_fd(), close_on_exec).unwrap();
            let image = leave(&net.a, server);
            let flow = image.ip().unwrap().flow;
            crate::scene::locker(&net.a).force_unlock(&[flow]).unwrap();
            let prepared = crate::scene::build(&net.a, image).unwrap();
            // Until the application takes it, it neither waits nor goes to a program that is started.
            let activated = prepared.activate().unwrap();
            let fd = activated.as_fd();
            assert!(fcntl::non_blocking(fd).unwrap() && fcntl::close_on_exec(fd).unwrap());
            let restored = activated.write();
            let fd = restored.socket.as_fd();
            assert_eq!(fcntl::non_blocking(fd).unwrap(), non_blocking);
            assert_eq!(fcntl::close_on_exec(fd).unwrap(), close_on_exec);
            let moved = TcpStream::from(restored.socket);
            moved.set_nonblocking(false).unwrap();
            both_ways(&peer, &moved);
        }
    }
});

kernel_test!(
    an_image_that_says_nothing_gets_what_new_sockets_have,
    || {
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        let image = leave(&net.a, server);
        net.point_peer_at_b();
        let bare = crate::scene::with_options(image, |options| *options = Default::default());
        let moved = arrive(&net.b, bare);
        let fd = moved.as_fd();
        assert!(fcntl::close_on_exec(fd).unwrap());
        assert!(!sockopt::no_delay(fd).unwrap());
        moved.set_nonblocking(false).unwrap();
        both_ways(&peer, &moved);
    }
);

kernel_test!(
    the_cpu_of_the_last_packet_is_not_carried_because_it_does_not_last,
    || {
        let net = Net::new();
        let (peer, server) = net.connect(Family::V4);
        const NONE: i32 = 4095;
        sockopt::set_incoming_cpu(server.as_fd(), NONE).unwrap();
        assert_eq!(sockopt::incoming_cpu(server.as_fd()).unwrap(), NONE);
        both_ways(&peer, &server);
        assert_ne!(sockopt::incoming_cpu(server.as_fd()).unwrap(), NONE);
    }
);
