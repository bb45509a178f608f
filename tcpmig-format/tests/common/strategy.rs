//! Any valid image.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use tcpmig_format::*;

pub(crate) fn image() -> impl Strategy<Value = Image> {
    let connection = (of(ip().boxed()), of(tcp().boxed())).prop_map(|(ip, tcp)| {
        let mut connection = ConnectionImage::default();
        connection.ip = ip;
        connection.tcp = tcp;
        Subject::from(connection)
    });
    let listener = listen().prop_map(Subject::from);
    // Boxed: together they are too large for a test's stack.
    let subject = prop_oneof![3 => connection.boxed(), 1 => listener.boxed()];
    let layers = vec(layer(), 0..4);
    (subject, layers, any::<Option<u64>>()).prop_map(|(subject, layers, taken)| {
        let mut image = Image::new(subject);
        image.layers = layers;
        image.taken = taken;
        image
    })
}

fn listen() -> impl Strategy<Value = ListenImage> {
    let name = || of("[a-z][a-z0-9.@-]{0,14}");
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
    ];
    let numbers = (any::<[Option<u32>; 2]>(), any::<[u32; 3]>());
    let flags = (any::<Option<bool>>(), any::<[bool; 2]>());
    (ip, 1..=u16::MAX, (name(), name()), numbers, flags, socket()).prop_filter_map(
        "not where one can listen",
        |(ip, port, names, (optional, numbers), flags, socket)| {
            let mut listen = ListenImage::new(SocketAddr::new(ip, port), numbers[0]);
            listen.v6_only = flags.0.filter(|_| ip.is_ipv6());
            listen.scope = names.0;
            listen.bound_device = names.1;
            listen.transparent = flags.1[0];
            listen.freebind = flags.1[1];
            listen.mark = optional[0];
            listen.priority = optional[1];
            listen.defer_accept = numbers[1];
            listen.fast_open = numbers[2];
            listen.socket = socket;
            listen.check().is_ok().then_some(listen)
        },
    )
}

fn bytes() -> impl Strategy<Value = SecretBytes> {
    vec(any::<u8>(), 0..600).prop_map(SecretBytes::from)
}

fn seq() -> impl Strategy<Value = Seq> {
    any::<u32>().prop_map(Seq::new)
}

fn flow() -> impl Strategy<Value = FourTuple> {
    let v4 = |_| any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)));
    let v6 = |_| any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)));
    let ends = prop_oneof![(v4(()), v4(())).boxed(), (v6(()), v6(())).boxed()];
    (ends, any::<[u16; 2]>()).prop_filter_map("not two ends", |((local, remote), ports)| {
        let local = SocketAddr::new(local, ports[0]);
        FourTuple::new(local, SocketAddr::new(remote, ports[1])).ok()
    })
}

fn ip() -> impl Strategy<Value = IpImage> {
    let name = || of("[a-z][a-z0-9.@-]{0,14}");
    (
        flow(),
        any::<bool>(),
        (name(), name()),
        (
            any::<Option<bool>>(),
            of(1..=u8::MAX),
            any::<[Option<u8>; 3]>(),
        ),
        (
            of(0..1u32 << 20),
            any::<[Option<u32>; 2]>(),
            any::<[bool; 2]>(),
        ),
        more_ip(),
    )
        .prop_map(|(flow, mapped, names, small, large, more)| {
            let mut ip = more;
            ip.flow = flow;
            ip.family = match (flow.is_ipv4(), mapped) {
                (true, true) => SocketFamily::Ipv4Mapped,
                (true, false) => SocketFamily::Ipv4,
                (false, _) => SocketFamily::Ipv6,
            };
            ip.v6_only = small.0.map(|on| on && !flow.is_ipv4());
            ip.scope = names.0;
            ip.ttl = small.1;
            ip.hop_limit = small.2[0];
            ip.tos = small.2[1];
            ip.traffic_class = small.2[2];
            ip.flow_label = large.0;
            ip.bound_device = names.1;
            ip.transparent = large.2[0];
            ip.freebind = large.2[1];
            ip.mark = large.1[0];
            ip.priority = large.1[1];
            ip
        })
}

/// The options of which there are many more than a tuple takes.
fn more_socket() -> BoxedStrategy<SocketOptions> {
    let instruction = any::<(u16, u8, u8, u32)>();
    let instruction =
        instruction.prop_map(|(code, jt, jf, k)| FilterInstruction { code, jt, jf, k });
    (
        any::<[Option<bool>; 12]>(),
        any::<[Option<u32>; 8]>(),
        any::<[Option<u64>; 2]>(),
        of(vec(instruction, 1..9)),
    )
        .prop_map(|(flags, numbers, times, filter)| {
            let mut options = SocketOptions::default();
            options.filter = filter;
            options.close_on_exec = flags[0];
            options.lock_filter = flags[1];
            options.dont_route = flags[2];
            options.prefer_busy_poll = flags[3];
            options.zero_copy = flags[4];
            options.select_error_queue = flags[5];
            options.timestamp = flags[6];
            options.timestamp_ns = flags[7];
            options.timestamp_new = flags[8];
            options.tx_rehash = flags[9];
            options.thin_linear_timeouts = flags[10];
            options.inq = flags[11];
            options.peek_offset = numbers[0];
            options.busy_poll = numbers[1];
            options.timestamping = numbers[2];
            options.defer_accept = numbers[3];
            options.tx_delay = numbers[4];
            options.rto_max = numbers[5];
            options.rto_min = numbers[6];
            options.delayed_ack_max = numbers[7];
            options.receive_timeout = times[0];
            options.send_timeout = times[1];
            options
        })
        .boxed()
}

/// Sets the options of an IP layer of which there are many more than a tuple takes.
fn more_ip() -> BoxedStrategy<IpImage> {
    let share = proptest::sample::select(&[1_u8, 2, 3, 255][..]);
    let flow = "10.0.0.1:80,10.0.0.2:9".parse().unwrap();
    (
        any::<[Option<bool>; 16]>(),
        (of(0..=5_u8), of(0..=5_u8), any::<[Option<u8>; 2]>()),
        of(share),
        of(vec(any::<u8>(), 1..=40)),
        any::<Option<u32>>(),
    )
        .prop_map(move |(flags, small, share, options, range)| {
            let mut ip = IpImage::new(flow, SocketFamily::Ipv4);
            ip.flow_label_share = share;
            ip.mtu_discover = small.0;
            ip.mtu_discover_v6 = small.1;
            ip.min_ttl = small.2[0];
            ip.min_hop_limit = small.2[1];
            ip.ip_options = options.map(SecretBytes::from);
            ip.local_port_range = range;
            ip.flow_info_send = flags[0];
            ip.flow_label_reflect = flags[1];
            ip.auto_flow_label = flags[2];
            ip.bind_address_no_port = flags[3];
            ip.receive_errors = flags[4];
            ip.receive_packet_info = flags[5];
            ip.receive_ttl = flags[6];
            ip.receive_tos = flags[7];
            ip.receive_errors_v6 = flags[8];
            ip.receive_packet_info_v6 = flags[9];
            ip.receive_hop_limit = flags[10];
            ip.receive_traffic_class = flags[11];
            ip.receive_flow_info = flags[12];
            ip.receive_hop_options = flags[13];
            ip.receive_routing_header = flags[14];
            ip.receive_destination_options = flags[15];
            ip
        })
        .boxed()
}

fn negotiated() -> impl Strategy<Value = Negotiated> {
    let scale = (0..=14u8, 0..=14u8).prop_map(|(snd, rcv)| WindowScale { snd, rcv });
    let unit = proptest::sample::select(&TimestampUnit::ALL[..]);
    let timestamps = (any::<u32>(), unit).prop_map(|(value, unit)| Timestamps { value, unit });
    (1..=u16::MAX, of(scale), any::<bool>(), of(timestamps)).prop_map(
        |(mss_clamp, window_scale, sack, timestamps)| Negotiated {
            mss_clamp,
            window_scale,
            sack,
            timestamps,
        },
    )
}

fn socket() -> impl Strategy<Value = SocketOptions> {
    (
        any::<[Option<bool>; 8]>(),
        any::<[Option<u32>; 7]>(),
        any::<(Option<i32>, Option<u64>)>(),
        of(0..=3u8),
        of("[a-z]{1,15}"),
        of(any::<(bool, [u32; 3])>()),
        of(any::<(bool, u32)>()),
        more_socket(),
    )
        .prop_map(
            |(flags, numbers, (linger2, rate), lock, congestion, keep, linger, more)| {
                let mut options = more;
                options.reuse_addr = flags[0];
                options.reuse_port = flags[1];
                options.no_delay = flags[2];
                options.cork = flags[3];
                options.oob_inline = flags[4];
                options.non_blocking = flags[5];
                options.quick_ack = flags[6];
                options.shut_read = flags[7];
                options.keep_alive = keep.map(|(on, [idle, interval, count])| KeepAlive {
                    on,
                    idle,
                    interval,
                    count,
                });
                options.linger = linger.map(|(on, seconds)| Linger { on, seconds });
                options.receive_buffer = numbers[0];
                options.send_buffer = numbers[1];
                options.receive_low_water = numbers[2];
                options.user_timeout = numbers[3];
                options.not_sent_low_water = numbers[4];
                options.syn_count = numbers[5];
                options.window_clamp = numbers[6];
                options.buffer_lock = lock;
                options.congestion = congestion;
                options.linger2 = linger2;
                options.max_pacing_rate = rate;
                options
            },
        )
}

fn tcp() -> impl Strategy<Value = TcpImage> {
    let state = proptest::sample::select(&TcpState::ALL[..]);
    let state = (state, of((1..=4095u16, any::<bool>())));
    let queues = (bytes(), bytes(), bytes());
    let numbers = (seq(), seq());
    let window = (
        any::<[u32; 2]>(),
        0..=1u32 << 30,
        [0..1u32 << 31, 0..1u32 << 31],
    );
    (state, queues, numbers, negotiated(), window, socket()).prop_map(
        |(
            (state, pending),
            (sent, unsent, queue),
            (snd_una, rcv_nxt),
            negotiated,
            window,
            socket,
        )| {
            let (sizes, rcv_wnd, back) = window;
            let limit = 0xffff << negotiated.window_scale.unwrap_or_default().snd;
            let max_window = sizes[0] % (limit + 1);
            let window = Window {
                snd_wl1: rcv_nxt + rcv_wnd - back[0],
                snd_wnd: sizes[1] % (max_window + 1),
                max_window,
                rcv_wnd,
                rcv_wup: rcv_nxt - back[1],
            };
            let pending_error = pending
                .filter(|_| state == TcpState::Close)
                .map(|(errno, fin)| PendingError {
                    errno,
                    after_fin: fin || errno == PendingError::BROKEN_PIPE,
                });
            let parts = |sent, unsent, queue| TcpParts {
                state,
                pending_error,
                send: SendSpace {
                    snd_una,
                    sent,
                    unsent,
                },
                receive: ReceiveSpace { rcv_nxt, queue },
                negotiated,
                window,
                socket: socket.clone(),
            };
            let empty = SecretBytes::new;
            // Some states do not go with queues.
            TcpImage::new(parts(sent, unsent, queue))
                .or_else(|_| TcpImage::new(parts(empty(), empty(), empty())))
                .unwrap()
        },
    )
}

fn layer() -> impl Strategy<Value = Layer> {
    ("\\PC{0,60}", any::<u32>(), bytes())
        .prop_map(|(kind, version, payload)| Layer::new(kind, version, payload))
}
