//! From the types that users see to the wire.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::critical::Critical;
use crate::{EncodeError, SocketFamily, TimestampUnit};

/// An address in network byte order, kept while the wire types borrow it.
enum AddressOctets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AddressOctets {
    fn new(end: SocketAddr) -> Self {
        match end.ip() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(ip.octets()),
        }
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}

/// Appends the payload of `image` to `bytes`.
pub(crate) fn write(image: &crate::Image, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
    let addresses = image.ip.as_ref().map(|ip| {
        let (local, remote) = (ip.flow.local(), ip.flow.remote());
        (AddressOctets::new(local), AddressOctets::new(remote))
    });
    let listening = image.listen.as_ref().map(|l| AddressOctets::new(l.local));
    let wire = super::Image {
        critical: critical(image),
        ip: image
            .ip
            .as_ref()
            .zip(addresses.as_ref())
            .map(|(ip, (local, remote))| ip_layer(ip, local.get(), remote.get())),
        tcp: image.tcp.as_ref().map(|tcp| tcp_layer(tcp.parts())),
        app: image.app.as_ref().map(app_layer),
        listen: image
            .listen
            .as_ref()
            .zip(listening.as_ref())
            .map(|(listen, local)| listen_part(listen, local.get())),
    };
    let mut serializer = rmp_serde::Serializer::new(bytes).with_struct_map();
    wire.serialize(&mut serializer)
        .map_err(|error| EncodeError::Serialize(error.to_string()))
}

/// Every layer that is there must be understood: a connection restored without
/// one of them would not be the same connection, and one without its error would seem to have ended in order.
fn critical(image: &crate::Image) -> Critical<'static> {
    let layers = [
        ("ip", image.ip.is_some()),
        ("tcp", image.tcp.is_some()),
        (
            "tcp.pending_error",
            image
                .tcp
                .as_ref()
                .is_some_and(|tcp| tcp.pending_error().is_some()),
        ),
        ("app", image.app.is_some()),
        ("listen", image.listen.is_some()),
    ];
    let present = layers.into_iter().filter(|(_, present)| *present);
    Critical(present.map(|(name, _)| name).collect())
}

fn ip_layer<'a>(ip: &'a crate::IpImage, local: &'a [u8], remote: &'a [u8]) -> super::Ip<'a> {
    super::Ip {
        family: match ip.family {
            SocketFamily::Ipv4 => "ipv4",
            SocketFamily::Ipv6 => "ipv6",
            SocketFamily::Ipv4Mapped => "ipv4-mapped",
        },
        local: super::End {
            address: local,
            port: ip.flow.local().port(),
        },
        remote: super::End {
            address: remote,
            port: ip.flow.remote().port(),
        },
        v6_only: ip.v6_only,
        scope: ip.scope.as_deref(),
        ttl: ip.ttl,
        hop_limit: ip.hop_limit,
        tos: ip.tos,
        traffic_class: ip.traffic_class,
        flow_label: ip.flow_label,
        bound_device: ip.bound_device.as_deref(),
        transparent: Some(ip.transparent),
        freebind: Some(ip.freebind),
        mark: ip.mark,
        priority: ip.priority,
    }
}

fn tcp_layer(tcp: &crate::TcpParts) -> super::Tcp<'_> {
    super::Tcp {
        state: tcp.state.number(),
        send: super::Send {
            snd_una: tcp.send.snd_una.get(),
            sent: &tcp.send.sent,
            unsent: &tcp.send.unsent,
        },
        receive: super::Receive {
            rcv_nxt: tcp.receive.rcv_nxt.get(),
            queue: &tcp.receive.queue,
        },
        negotiated: negotiated(&tcp.negotiated),
        window: super::Window {
            snd_wl1: tcp.window.snd_wl1.get(),
            snd_wnd: tcp.window.snd_wnd,
            max_window: tcp.window.max_window,
            rcv_wnd: tcp.window.rcv_wnd,
            rcv_wup: tcp.window.rcv_wup.get(),
        },
        socket: Some(socket(&tcp.socket)),
        pending_error: tcp.pending_error.map(|pending| super::PendingError {
            errno: pending.errno,
            after_fin: pending.after_fin,
        }),
    }
}

fn listen_part<'a>(listen: &'a crate::ListenImage, local: &'a [u8]) -> super::Listen<'a> {
    let unless_zero = |number: u32| (number != 0).then_some(number);
    super::Listen {
        local: super::End {
            address: local,
            port: listen.local.port(),
        },
        v6_only: listen.v6_only,
        scope: listen.scope.as_deref(),
        bound_device: listen.bound_device.as_deref(),
        transparent: Some(listen.transparent),
        freebind: Some(listen.freebind),
        mark: listen.mark,
        priority: listen.priority,
        backlog: listen.backlog,
        defer_accept: unless_zero(listen.defer_accept),
        fast_open: unless_zero(listen.fast_open),
        socket: Some(socket(&listen.socket)),
    }
}

fn negotiated(negotiated: &crate::Negotiated) -> super::Negotiated<'static> {
    super::Negotiated {
        mss_clamp: negotiated.mss_clamp,
        window_scale: negotiated.window_scale.map(|scale| super::WindowScale {
            snd: scale.snd,
            rcv: scale.rcv,
        }),
        sack: Some(negotiated.sack),
        timestamps: negotiated.timestamps.map(|timestamps| super::Timestamps {
            value: timestamps.value,
            unit: match timestamps.unit {
                TimestampUnit::Milliseconds => "ms",
                TimestampUnit::Microseconds => "us",
            },
        }),
    }
}

fn socket(socket: &crate::SocketOptions) -> super::Socket<'_> {
    super::Socket {
        reuse_addr: socket.reuse_addr,
        reuse_port: socket.reuse_port,
        no_delay: socket.no_delay,
        cork: socket.cork,
        oob_inline: socket.oob_inline,
        non_blocking: socket.non_blocking,
        keep_alive: socket.keep_alive.map(|keep_alive| super::KeepAlive {
            on: keep_alive.on,
            idle: keep_alive.idle,
            interval: keep_alive.interval,
            count: keep_alive.count,
        }),
        linger: socket.linger.map(|linger| super::Linger {
            on: linger.on,
            seconds: linger.seconds,
        }),
        receive_buffer: socket.receive_buffer,
        send_buffer: socket.send_buffer,
        buffer_lock: socket.buffer_lock,
        receive_low_water: socket.receive_low_water,
        congestion: socket.congestion.as_deref(),
        user_timeout: socket.user_timeout,
        not_sent_low_water: socket.not_sent_low_water,
        quick_ack: socket.quick_ack,
        linger2: socket.linger2,
        syn_count: socket.syn_count,
        window_clamp: socket.window_clamp,
        max_pacing_rate: socket.max_pacing_rate,
        shut_read: socket.shut_read,
    }
}

fn app_layer(app: &crate::AppImage) -> super::App<'_> {
    super::App {
        kind: &app.kind,
        version: app.version,
        payload: &app.payload,
    }
}
