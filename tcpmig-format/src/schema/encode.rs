//! From the types that users see to the wire.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::critical::Critical;
use super::layers::Layers;
#[cfg(any(test, feature = "arbitrary"))]
use super::v2;
use super::{Writer, newest, v1};
use crate::EncodeError;

/// An address in network byte order, kept while the wire types borrow it.
enum AddressBytes {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AddressBytes {
    fn new(end: SocketAddr) -> Self {
        match end.ip() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(ip.octets()),
        }
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

/// Writes the payload of `image`.
pub(crate) fn write(image: &crate::Image, to: &mut Writer<'_>) -> Result<(), EncodeError> {
    with_wire(image, |wire| serialize(&wire, to))
}

/// Writes the payload of `image` as the writer of this version did, without what came later.
#[cfg(any(test, feature = "arbitrary"))]
pub(crate) fn write_as(
    version: u16,
    image: &crate::Image,
    to: &mut Writer<'_>,
) -> Result<(), EncodeError> {
    with_wire(image, |wire| match version {
        1 => serialize(&v1::Image::from(v2::Image::from(wire)), to),
        2 => serialize(&v2::Image::from(wire), to),
        _ => serialize(&wire, to),
    })
}

fn serialize(wire: &impl Serialize, to: &mut Writer<'_>) -> Result<(), EncodeError> {
    let mut serializer = rmp_serde::Serializer::new(to).with_struct_map();
    wire.serialize(&mut serializer)
        .map_err(|error| EncodeError::Serialize(error.to_string()))
}

/// Calls `with` with the wire's form of `image`, which borrows from what is made here.
fn with_wire<T>(image: &crate::Image, with: impl FnOnce(newest::Image<'_>) -> T) -> T {
    let whole = |subject| {
        with(newest::Image {
            critical: critical(image),
            taken: image.taken,
            subject,
            layers: layers(&image.layers),
        })
    };
    match &image.subject {
        crate::Subject::Connection(connection) => {
            let addresses = connection.ip.as_ref().map(|ip| {
                let (local, remote) = (ip.flow.local(), ip.flow.remote());
                (ip, AddressBytes::new(local), AddressBytes::new(remote))
            });
            let ip = addresses.as_ref();
            let tcp = connection.tcp.as_ref();
            let filter = tcp.and_then(|tcp| filter(tcp.socket()));
            whole(newest::Subject {
                connection: Some(newest::Connection {
                    ip: ip.map(|(ip, local, remote)| ip_layer(ip, local.get(), remote.get())),
                    tcp: tcp.map(|tcp| Box::new(tcp_layer(tcp.parts(), filter.as_deref()))),
                }),
                listener: None,
            })
        }
        crate::Subject::Listener(listener) => {
            let local = AddressBytes::new(listener.local);
            let filter = filter(&listener.socket);
            whole(newest::Subject {
                connection: None,
                listener: Some(Box::new(listen_part(
                    listener,
                    local.get(),
                    filter.as_deref(),
                ))),
            })
        }
    }
}

/// Every part that is there must be understood: a connection restored without one of them would
/// not be the same connection, and one without its error would seem to have ended in order.
fn critical(image: &crate::Image) -> Critical<'static> {
    let tcp = image.tcp();
    let parts = [
        ("ip", image.ip().is_some()),
        ("tcp", tcp.is_some()),
        (
            "tcp.pending_error",
            tcp.is_some_and(|tcp| tcp.pending_error().is_some()),
        ),
        ("listener", image.listener().is_some()),
        ("layers", !image.layers.is_empty()),
    ];
    let present = parts.into_iter().filter(|(_, present)| *present);
    Critical(present.map(|(name, _)| name).collect())
}

fn ip_layer<'a>(ip: &'a crate::IpImage, local: &'a [u8], remote: &'a [u8]) -> v1::Ip<'a> {
    macro_rules! layer {
        ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= always($always:ident))? $unit:literal $restored:tt;)*) => {
            v1::Ip {
                family: ip.family.name(),
                local: v1::End { address: local, port: ip.flow.local().port() },
                remote: v1::End { address: remote, port: ip.flow.remote().port() },
                $(
                    $name: {
                        $(let value: Option<$plain> = ip.$name;)?
                        $(let value: Option<&$text> = ip.$name.as_deref();)?
                        $(let value: Option<&[$bytes]> = ip.$name.as_deref();)?
                        $(let value: Option<$always> = Some(ip.$name);)?
                        value
                    },
                )*
            }
        };
    }
    ip_fields!(layer)
}

fn tcp_layer<'a>(tcp: &'a crate::TcpParts, filter: Option<&'a [u8]>) -> v1::Tcp<'a> {
    v1::Tcp {
        state: tcp.state.number(),
        send: v1::Send {
            snd_una: tcp.send.snd_una.get(),
            sent: &tcp.send.sent,
            unsent: &tcp.send.unsent,
        },
        receive: v1::Receive {
            rcv_nxt: tcp.receive.rcv_nxt.get(),
            queue: &tcp.receive.queue,
        },
        negotiated: negotiated(&tcp.negotiated),
        window: v1::Window {
            snd_wl1: tcp.window.snd_wl1.get(),
            snd_wnd: tcp.window.snd_wnd,
            max_window: tcp.window.max_window,
            rcv_wnd: tcp.window.rcv_wnd,
            rcv_wup: tcp.window.rcv_wup.get(),
        },
        socket: Some(socket(&tcp.socket, filter)),
        pending_error: tcp.pending_error.map(|pending| v1::PendingError {
            errno: pending.errno,
            after_fin: pending.after_fin,
        }),
    }
}

fn listen_part<'a>(
    listen: &'a crate::ListenImage,
    local: &'a [u8],
    filter: Option<&'a [u8]>,
) -> v1::Listen<'a> {
    let unless_zero = |number: u32| (number != 0).then_some(number);
    v1::Listen {
        local: v1::End {
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
        socket: Some(socket(&listen.socket, filter)),
    }
}

fn negotiated(negotiated: &crate::Negotiated) -> v1::Negotiated<'static> {
    v1::Negotiated {
        mss_clamp: negotiated.mss_clamp,
        window_scale: negotiated.window_scale.map(|scale| v1::WindowScale {
            snd: scale.snd,
            rcv: scale.rcv,
        }),
        sack: Some(negotiated.sack),
        timestamps: negotiated.timestamps.map(|timestamps| v1::Timestamps {
            value: timestamps.value,
            unit: timestamps.unit.name(),
        }),
    }
}

/// The instructions as the wire has them.
fn filter(socket: &crate::SocketOptions) -> Option<Vec<u8>> {
    let bytes = |i: &crate::FilterInstruction| {
        let [code, k] = [u32::from(i.code), i.k].map(u32::to_be_bytes);
        [code[2], code[3], i.jt, i.jf, k[0], k[1], k[2], k[3]]
    };
    let filter = socket.filter.as_ref()?;
    Some(filter.iter().flat_map(bytes).collect())
}

/// A filter's instructions are in `filter`, as the wire has them.
fn socket<'a>(socket: &'a crate::SocketOptions, filter: Option<&'a [u8]>) -> v1::Socket<'a> {
    macro_rules! options {
        ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= map($map:ident))? $unit:literal $restored:tt;)*) => {
            v1::Socket {$(
                $name: {
                    $(let value: Option<$plain> = socket.$name;)?
                    $(let value: Option<&$text> = socket.$name.as_deref();)?
                    $(let value: Option<&[$bytes]> = filter;)?
                    $(let value = socket.$name.map(|map: crate::$map| (&map).into());)?
                    value
                },
            )*}
        };
    }
    socket_fields!(options)
}

/// None without layers.
fn layers(layers: &[crate::Layer]) -> Option<Layers<'_>> {
    (!layers.is_empty()).then(|| Layers(layers.iter().map(layer).collect()))
}

fn layer(layer: &crate::Layer) -> v1::App<'_> {
    v1::App {
        kind: &layer.kind,
        version: layer.version,
        payload: &layer.payload,
    }
}
