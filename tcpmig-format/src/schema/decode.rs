//! From the wire to the types that users see, every value checked.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use super::critical::{Critical, Parts};
use super::layers::Layers;
use super::strict::Place;
use super::visit::Marker;
use super::{newest, v1, v2};
use crate::{
    ConnectionImage, DecodeError, FourTuple, Limits, SecretBytes, Seq, SocketFamily, Subject,
    TcpImage, TcpState, TimestampUnit,
};

/// Maps and lists inside each other, in parts that this version skips.
const MAX_DEPTH: usize = 32;

/// Where the bytes of queues come from.
pub(crate) enum Source<'a> {
    /// They are copied.
    Copied,
    /// They stay in these bytes, in which the payload is.
    Shared(&'a mut SecretBytes),
}

/// Decodes a payload as a reader of this version does; any version above the newest is read as that.
pub(crate) fn read(
    version: u16,
    payload: &[u8],
    source: Source<'_>,
    limits: &Limits,
) -> Result<crate::Image, DecodeError> {
    let mut reader = Reader { source, limits };
    let wire: newest::Image<'_> = match version {
        1 => reader.upgraded(parse::<v1::Image<'_>>(payload)?.into())?,
        2 => reader.upgraded(parse(payload)?)?,
        _ => {
            let wire: newest::Image<'_> = parse(payload)?;
            reader.check_critical(&wire.critical, &wire.parts())?;
            wire
        }
    };
    Ok(crate::Image {
        taken: wire.taken,
        subject: reader.subject(&wire.subject)?,
        layers: reader.layers(wire.layers.as_ref())?,
    })
}

fn parse<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, DecodeError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
    deserializer.set_max_depth(MAX_DEPTH);
    let place = Place::default();
    let wire = place
        .read(&mut deserializer)
        .map_err(|error| DecodeError::Malformed {
            place: place.to_string(),
            reason: error.to_string(),
        })?;
    // The deserializer does not tell how far it came.
    if Marker::deserialize(&mut deserializer).is_ok() {
        return Err(DecodeError::TrailingPayload);
    }
    Ok(wire)
}

struct Reader<'a> {
    source: Source<'a>,
    limits: &'a Limits,
}

impl Reader<'_> {
    fn limit(what: &'static str, len: usize, limit: usize) -> Result<(), DecodeError> {
        if len > limit {
            return Err(DecodeError::TooLong {
                what,
                len: len as u64,
                limit,
            });
        }
        Ok(())
    }

    fn text(&self, what: &'static str, text: &str) -> Result<String, DecodeError> {
        Self::limit(what, text.len(), self.limits.max_text)?;
        Ok(text.to_owned())
    }

    fn bytes(&mut self, bytes: &[u8]) -> SecretBytes {
        match &mut self.source {
            Source::Copied => bytes.into(),
            Source::Shared(whole) => whole.part(bytes),
        }
    }

    fn queue(&mut self, what: &'static str, bytes: &[u8]) -> Result<SecretBytes, DecodeError> {
        Self::limit(what, bytes.len(), self.limits.max_queue)?;
        Ok(self.bytes(bytes))
    }

    fn unknown(&self, place: &'static str, value: &str) -> DecodeError {
        self.text(place, value).map_or_else(
            |too_long| too_long,
            |value| DecodeError::UnknownValue { place, value },
        )
    }

    /// An image of version 2, whose names of critical parts are not those of version 3.
    fn upgraded<'w>(&self, wire: v2::Image<'w>) -> Result<newest::Image<'w>, DecodeError> {
        self.check_critical(&wire.critical, &wire.parts())?;
        Ok(wire.into())
    }

    fn check_critical(&self, critical: &Critical<'_>, parts: &Parts) -> Result<(), DecodeError> {
        for name in &critical.0 {
            match parts.iter().find(|(known, _)| known == name) {
                Some((_, true)) => {}
                Some((name, false)) => return Err(DecodeError::MissingCritical(name)),
                None => {
                    let name = self.text("critical", name)?;
                    return Err(DecodeError::UnknownCritical(name));
                }
            }
        }
        Ok(())
    }

    fn subject(&mut self, subject: &newest::Subject<'_>) -> Result<Subject, DecodeError> {
        match (&subject.connection, &subject.listener) {
            (Some(connection), None) => {
                let ip = connection.ip.as_ref().map(|ip| self.ip(ip));
                let tcp = connection.tcp.as_ref().map(|tcp| self.tcp(tcp));
                let (ip, tcp) = (ip.transpose()?, tcp.transpose()?);
                Ok(ConnectionImage { ip, tcp }.into())
            }
            (None, Some(listener)) => {
                let listener = self.listen(listener)?;
                listener.check()?;
                Ok(listener.into())
            }
            (None, None) => Err(DecodeError::NoSubject),
            (Some(_), Some(_)) => Err(DecodeError::TwoSubjects),
        }
    }

    fn ip(&self, ip: &v1::Ip<'_>) -> Result<crate::IpImage, DecodeError> {
        let family = SocketFamily::from_name(ip.family)
            .ok_or_else(|| self.unknown("ip.family", ip.family))?;
        let flow = FourTuple::new(
            end("ip.local.address", &ip.local, family)?,
            end("ip.remote.address", &ip.remote, family)?,
        )?;
        macro_rules! image {
            ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= always($always:ident))? $unit:literal $restored:tt;)*) => {
                crate::IpImage { flow, family, $(
                    $name: {
                        $(let value: Option<$plain> = ip.$name;)?
                        $(let value = ip.$name.map(|text: &$text| self.text(concat!("ip.", stringify!($name)), text)).transpose()?;)?
                        $(let value = ip.$name.map(|bytes: &[$bytes]| bytes.into());)?
                        $(let value: $always = ip.$name.unwrap_or_default();)?
                        value
                    },
                )*}
            };
        }
        let image = ip_fields!(image);
        image.check()?;
        Ok(image)
    }

    fn tcp(&mut self, tcp: &v1::Tcp<'_>) -> Result<TcpImage, DecodeError> {
        let parts = crate::TcpParts {
            state: TcpState::from_number(tcp.state)
                .ok_or_else(|| self.unknown("tcp.state", &tcp.state.to_string()))?,
            send: crate::SendSpace {
                snd_una: Seq::new(tcp.send.snd_una),
                sent: self.queue("tcp.send.sent", tcp.send.sent)?,
                unsent: self.queue("tcp.send.unsent", tcp.send.unsent)?,
            },
            receive: crate::ReceiveSpace {
                rcv_nxt: Seq::new(tcp.receive.rcv_nxt),
                queue: self.queue("tcp.receive.queue", tcp.receive.queue)?,
            },
            negotiated: self.negotiated(&tcp.negotiated)?,
            window: crate::Window {
                snd_wl1: Seq::new(tcp.window.snd_wl1),
                snd_wnd: tcp.window.snd_wnd,
                max_window: tcp.window.max_window,
                rcv_wnd: tcp.window.rcv_wnd,
                rcv_wup: Seq::new(tcp.window.rcv_wup),
            },
            socket: match &tcp.socket {
                Some(socket) => self.socket(socket)?,
                None => crate::SocketOptions::default(),
            },
            pending_error: tcp
                .pending_error
                .as_ref()
                .map(|pending| crate::PendingError {
                    errno: pending.errno,
                    after_fin: pending.after_fin,
                }),
        };
        Ok(TcpImage::new(parts)?)
    }

    fn listen(&self, listen: &v1::Listen<'_>) -> Result<crate::ListenImage, DecodeError> {
        // The length alone tells the family: a mapped address is that of an IPv6 socket.
        let address = listen.local.address;
        let ip = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
            (Ok(v4), _) => IpAddr::from(v4),
            (_, Ok(v6)) => IpAddr::from(v6),
            _ => {
                return Err(DecodeError::AddressLength {
                    place: "listener.local.address",
                    len: address.len(),
                    expected: 16,
                });
            }
        };
        Ok(crate::ListenImage {
            local: SocketAddr::new(ip, listen.local.port),
            v6_only: listen.v6_only,
            scope: listen
                .scope
                .map(|name| self.text("listener.scope", name))
                .transpose()?,
            bound_device: listen
                .bound_device
                .map(|name| self.text("listener.bound_device", name))
                .transpose()?,
            transparent: listen.transparent.unwrap_or_default(),
            freebind: listen.freebind.unwrap_or_default(),
            mark: listen.mark,
            priority: listen.priority,
            backlog: listen.backlog,
            defer_accept: listen.defer_accept.unwrap_or_default(),
            fast_open: listen.fast_open.unwrap_or_default(),
            socket: match &listen.socket {
                Some(socket) => self.socket(socket)?,
                None => crate::SocketOptions::default(),
            },
        })
    }

    fn negotiated(&self, wire: &v1::Negotiated<'_>) -> Result<crate::Negotiated, DecodeError> {
        let timestamps = match &wire.timestamps {
            None => None,
            Some(timestamps) => Some(crate::Timestamps {
                value: timestamps.value,
                unit: TimestampUnit::from_name(timestamps.unit).ok_or_else(|| {
                    self.unknown("tcp.negotiated.timestamps.unit", timestamps.unit)
                })?,
            }),
        };
        Ok(crate::Negotiated {
            mss_clamp: wire.mss_clamp,
            window_scale: wire.window_scale.as_ref().map(|scale| crate::WindowScale {
                snd: scale.snd,
                rcv: scale.rcv,
            }),
            sack: wire.sack.unwrap_or_default(),
            timestamps,
        })
    }

    fn socket(&self, wire: &v1::Socket<'_>) -> Result<crate::SocketOptions, DecodeError> {
        macro_rules! options {
            ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= map($map:ident))? $unit:literal $restored:tt;)*) => {
                crate::SocketOptions {$(
                    $name: {
                        $(let value: Option<$plain> = wire.$name;)?
                        $(let value = wire.$name.map(|text: &$text| self.text(concat!("tcp.socket.", stringify!($name)), text)).transpose()?;)?
                        $(let value = wire.$name.map(|bytes: &[$bytes]| filter(bytes)).transpose()?;)?
                        $(let value: Option<crate::$map> = wire.$name.as_ref().map(Into::into);)?
                        value
                    },
                )*}
            };
        }
        Ok(socket_fields!(options))
    }

    fn layers(&mut self, wire: Option<&Layers<'_>>) -> Result<Vec<crate::Layer>, DecodeError> {
        let Some(Layers(wire)) = wire else {
            return Ok(Vec::new());
        };
        let payloads = wire.iter().map(|layer| layer.payload.len()).sum();
        Self::limit("layers", payloads, self.limits.max_layers)?;
        let layer = |layer: &v1::App<'_>| {
            Ok(crate::Layer {
                kind: self.text("layers.kind", layer.kind)?,
                version: layer.version,
                payload: self.bytes(layer.payload),
            })
        };
        wire.iter().map(layer).collect()
    }
}

/// The instructions of a filter, of eight bytes each.
fn filter(bytes: &[u8]) -> Result<Vec<crate::FilterInstruction>, DecodeError> {
    let (instructions, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(DecodeError::Malformed {
            place: "tcp.socket.filter".to_owned(),
            reason: format!("{} bytes are not whole instructions", bytes.len()),
        });
    }
    let instruction = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| crate::FilterInstruction {
        code: u16::from_be_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_be_bytes([k0, k1, k2, k3]),
    };
    Ok(instructions.iter().map(instruction).collect())
}

fn end(
    place: &'static str,
    end: &v1::End<'_>,
    family: SocketFamily,
) -> Result<SocketAddr, DecodeError> {
    let length = |expected| DecodeError::AddressLength {
        place,
        len: end.address.len(),
        expected,
    };
    let ip = if family.has_ipv4_packets() {
        IpAddr::from(<[u8; 4]>::try_from(end.address).map_err(|_| length(4))?)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(end.address).map_err(|_| length(16))?)
    };
    Ok(SocketAddr::new(ip, end.port))
}
