//! Images for tests: one with every field, and strategies for any.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

pub(crate) mod json;
pub(crate) mod strategy;
pub(crate) mod wire;

use tcpmig_format::*;

/// 2026-11-26 12:00:00.5 UTC.
const TAKEN: u64 = 1_795_694_400_500_000;

/// An image in which every field is there, each with its own value.
pub(crate) fn full() -> Image {
    let mut ip = IpImage::new(
        "[2001:db8::1]:443,[2001:db8::2]:50123".parse().unwrap(),
        SocketFamily::Ipv6,
    );
    ip.v6_only = Some(true);
    ip.scope = Some("eth0".into());
    ip.ttl = Some(63);
    ip.hop_limit = Some(62);
    ip.tos = Some(0x10);
    ip.traffic_class = Some(0x20);
    ip.flow_label = Some(0xf_edcb);
    ip.bound_device = Some("vrf-blue".into());
    ip.transparent = true;
    ip.freebind = true;
    ip.mark = Some(0xdead_beef);
    ip.priority = Some(6);
    let tcp = TcpImage::new(parts()).unwrap();
    let mut image = Image::new(ConnectionImage::new(ip, tcp));
    image.taken = Some(TAKEN);
    image.layers = vec![chat()];
    image
}

fn chat() -> Layer {
    Layer::new("org.example.chat", 3, &b"{\"room\":7}"[..])
}

/// Like [`full`], over TLS: earlier versions have no room for it.
pub(crate) fn layered() -> Image {
    let mut image = full();
    let tls = Layer::new("org.example.tls", 1, &b"\x13\x01keys"[..]);
    image.layers = vec![tls, chat()];
    image
}

/// A listener in which every field is there, each with its own value.
pub(crate) fn listener() -> Image {
    let mut listen = ListenImage::new("[2001:db8::1]:443".parse().unwrap(), 37);
    listen.v6_only = Some(true);
    listen.scope = Some("eth0".into());
    listen.bound_device = Some("vrf-blue".into());
    listen.transparent = true;
    listen.freebind = true;
    listen.mark = Some(0xdead_beef);
    listen.priority = Some(6);
    listen.defer_accept = 7;
    listen.fast_open = 5;
    listen.socket = socket();
    let mut image = Image::new(listen);
    image.taken = Some(TAKEN);
    image
}

/// A connection that the peer closed and then reset.
pub(crate) fn broken() -> Image {
    let mut parts = parts();
    parts.state = TcpState::Close;
    parts.send.sent = SecretBytes::default();
    parts.send.unsent = SecretBytes::default();
    parts.pending_error = Some(PendingError {
        errno: PendingError::BROKEN_PIPE,
        after_fin: true,
    });
    with_tcp(full(), parts)
}

/// TCP's part of the image.
pub(crate) fn parts_of(image: &Image) -> TcpParts {
    image.tcp().unwrap().parts().clone()
}

/// The image with another part of TCP.
pub(crate) fn with_tcp(mut image: Image, parts: TcpParts) -> Image {
    let tcp = TcpImage::new(parts).unwrap();
    image.connection_mut().unwrap().tcp = Some(tcp);
    image
}

fn parts() -> TcpParts {
    TcpParts {
        state: TcpState::CloseWait,
        send: SendSpace {
            snd_una: Seq::new(0xffff_fffc),
            sent: SecretBytes::from(&b"sent over the wrap"[..]),
            unsent: SecretBytes::from(&b"not sent"[..]),
        },
        receive: ReceiveSpace {
            rcv_nxt: Seq::new(0x8000_0010),
            queue: SecretBytes::from(&b"GET / HTTP/1.1\r\n\r\n"[..]),
        },
        negotiated: Negotiated {
            mss_clamp: 1440,
            window_scale: Some(WindowScale { snd: 7, rcv: 9 }),
            sack: true,
            timestamps: Some(Timestamps {
                value: 0x0102_0304,
                unit: TimestampUnit::Microseconds,
            }),
        },
        window: Window {
            snd_wl1: Seq::new(0x8000_0001),
            snd_wnd: 64_128,
            max_window: 65_536,
            rcv_wnd: 131_072,
            rcv_wup: Seq::new(0x8000_000f),
        },
        socket: socket(),
        pending_error: None,
    }
}

fn socket() -> SocketOptions {
    {
        let mut options = SocketOptions::default();
        options.reuse_addr = Some(true);
        options.reuse_port = Some(false);
        options.no_delay = Some(true);
        options.cork = Some(false);
        options.oob_inline = Some(true);
        options.non_blocking = Some(true);
        options.keep_alive = Some(KeepAlive {
            on: true,
            idle: 7200,
            interval: 75,
            count: 9,
        });
        options.linger = Some(Linger {
            on: true,
            seconds: 5,
        });
        options.receive_buffer = Some(131_072);
        options.send_buffer = Some(87_040);
        options.buffer_lock = Some(1);
        options.receive_low_water = Some(2);
        options.congestion = Some("cubic".into());
        options.user_timeout = Some(30_000);
        options.not_sent_low_water = Some(16_384);
        options.quick_ack = Some(false);
        options.linger2 = Some(-1);
        options.syn_count = Some(6);
        options.window_clamp = Some(4_194_304);
        options.max_pacing_rate = Some(u64::MAX);
        options.shut_read = Some(true);
        options
    }
}

/// A LISTEN socket says the least.
pub(crate) fn smallest_tcp() -> Image {
    let parts = TcpParts {
        state: TcpState::Listen,
        send: SendSpace::default(),
        receive: ReceiveSpace::default(),
        negotiated: Negotiated::default(),
        window: Window::default(),
        socket: SocketOptions::default(),
        pending_error: None,
    };
    Image::new(TcpImage::new(parts).unwrap())
}

/// A connection with what is required in each layer, and nothing else.
pub(crate) fn smallest() -> Image {
    let flow = "10.0.0.1:80,10.0.0.2:1025".parse().unwrap();
    let mut image = smallest_tcp();
    image.connection_mut().unwrap().ip = Some(IpImage::new(flow, SocketFamily::Ipv4));
    image.layers = vec![Layer::default()];
    image
}

/// A listener with what is required, and nothing else.
pub(crate) fn smallest_listener() -> Image {
    Image::new(ListenImage::new("0.0.0.0:80".parse().unwrap(), 1))
}

/// Like [`full`], with every option of the socket and of IP that it does not have.
pub(crate) fn options() -> Image {
    let mut image = full();
    let ip = image.ip_mut().unwrap();
    ip.flow_label_share = Some(255);
    ip.flow_info_send = Some(true);
    ip.flow_label_reflect = Some(true);
    ip.auto_flow_label = Some(true);
    ip.mtu_discover = Some(5);
    ip.mtu_discover_v6 = Some(1);
    ip.min_ttl = Some(2);
    ip.min_hop_limit = Some(3);
    ip.ip_options = Some(SecretBytes::from(&[7, 7, 4, 0, 0, 0, 0, 1][..]));
    ip.bind_address_no_port = Some(true);
    ip.local_port_range = Some(1010);
    ip.receive_errors = Some(true);
    ip.receive_packet_info = Some(true);
    ip.receive_ttl = Some(true);
    ip.receive_tos = Some(true);
    ip.receive_errors_v6 = Some(true);
    ip.receive_packet_info_v6 = Some(true);
    ip.receive_hop_limit = Some(true);
    ip.receive_traffic_class = Some(true);
    ip.receive_flow_info = Some(true);
    ip.receive_hop_options = Some(true);
    ip.receive_routing_header = Some(true);
    ip.receive_destination_options = Some(true);
    let mut tcp = parts_of(&image);
    tcp.socket = {
        let mut options = tcp.socket;
        options.close_on_exec = Some(true);
        options.receive_timeout = Some(5000000001);
        options.send_timeout = Some(5000000002);
        options.filter = Some(vec![
            FilterInstruction {
                code: 0x30,
                jt: 0,
                jf: 0,
                k: 13,
            },
            FilterInstruction {
                code: 0x06,
                jt: 1,
                jf: 2,
                k: 0xffff_ffff,
            },
        ]);
        options.lock_filter = Some(true);
        options.peek_offset = Some(1005);
        options.dont_route = Some(true);
        options.busy_poll = Some(1007);
        options.prefer_busy_poll = Some(true);
        options.zero_copy = Some(true);
        options.select_error_queue = Some(true);
        options.timestamp = Some(true);
        options.timestamp_ns = Some(true);
        options.timestamping = Some(1013);
        options.timestamp_new = Some(true);
        options.tx_rehash = Some(true);
        options.defer_accept = Some(1016);
        options.thin_linear_timeouts = Some(true);
        options.tx_delay = Some(1018);
        options.inq = Some(true);
        options.rto_max = Some(1020);
        options.rto_min = Some(1021);
        options.delayed_ack_max = Some(1022);
        options
    };
    with_tcp(image, tcp)
}
