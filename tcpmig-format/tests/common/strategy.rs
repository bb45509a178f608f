//! Any valid image.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use tcpmig_format::*;

pub(crate) fn image() -> impl Strategy<Value = Image> {
    let connection =
        (of(ip().boxed()), of(tcp().boxed()), of(app())).prop_map(|(ip, tcp, app)| Image {
            ip,
            tcp,
            app,
            listen: None,
        });
    let listener = (listen(), of(app())).prop_map(|(listen, app)| Image {
        app,
        listen: Some(listen),
        ..Image::default()
    });
    // Boxed: together they are too large for a test's stack.
    prop_oneof![3 => connection.boxed(), 1 => listener.boxed()]
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
            let listen = ListenImage {
                local: SocketAddr::new(ip, port),
                v6_only: flags.0.filter(|_| ip.is_ipv6()),
                scope: names.0,
                bound_device: names.1,
                transparent: flags.1[0],
                freebind: flags.1[1],
                mark: optional[0],
                priority: optional[1],
                backlog: numbers[0],
                defer_accept: numbers[1],
                fast_open: numbers[2],
                socket,
            };
            listen.check().is_ok().then_some(listen)
        },
    )
}

fn octets() -> impl Strategy<Value = Octets> {
    vec(any::<u8>(), 0..600).prop_map(Octets::from)
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
    )
        .prop_map(|(flow, mapped, names, small, large)| IpImage {
            flow,
            family: match (flow.is_ipv4(), mapped) {
                (true, true) => SocketFamily::Ipv4Mapped,
                (true, false) => SocketFamily::Ipv4,
                (false, _) => SocketFamily::Ipv6,
            },
            v6_only: small.0.map(|on| on && !flow.is_ipv4()),
            scope: names.0,
            ttl: small.1,
            hop_limit: small.2[0],
            tos: small.2[1],
            traffic_class: small.2[2],
            flow_label: large.0,
            bound_device: names.1,
            transparent: large.2[0],
            freebind: large.2[1],
            mark: large.1[0],
            priority: large.1[1],
        })
}

fn negotiated() -> impl Strategy<Value = Negotiated> {
    let scale = (0..=14u8, 0..=14u8).prop_map(|(snd, rcv)| WindowScale { snd, rcv });
    let unit = prop_oneof![
        Just(TimestampUnit::Milliseconds),
        Just(TimestampUnit::Microseconds)
    ];
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
    )
        .prop_map(
            |(flags, numbers, (linger2, rate), lock, congestion, keep, linger)| SocketOptions {
                reuse_addr: flags[0],
                reuse_port: flags[1],
                no_delay: flags[2],
                cork: flags[3],
                oob_inline: flags[4],
                non_blocking: flags[5],
                quick_ack: flags[6],
                shut_read: flags[7],
                keep_alive: keep.map(|(on, [idle, interval, count])| KeepAlive {
                    on,
                    idle,
                    interval,
                    count,
                }),
                linger: linger.map(|(on, seconds)| Linger { on, seconds }),
                receive_buffer: numbers[0],
                send_buffer: numbers[1],
                receive_low_water: numbers[2],
                user_timeout: numbers[3],
                not_sent_low_water: numbers[4],
                syn_count: numbers[5],
                window_clamp: numbers[6],
                buffer_lock: lock,
                congestion,
                linger2,
                max_pacing_rate: rate,
            },
        )
}

fn tcp() -> impl Strategy<Value = TcpImage> {
    let state = proptest::sample::select(&TcpState::ALL[..]);
    let state = (state, of((1..=4095u16, any::<bool>())));
    let queues = (octets(), octets(), octets());
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
            let empty = Octets::new;
            // Some states do not go with queues.
            TcpImage::new(parts(sent, unsent, queue))
                .or_else(|_| TcpImage::new(parts(empty(), empty(), empty())))
                .unwrap()
        },
    )
}

fn app() -> impl Strategy<Value = AppImage> {
    ("\\PC{0,60}", any::<u32>(), octets()).prop_map(|(kind, version, payload)| AppImage {
        kind,
        version,
        payload,
    })
}
