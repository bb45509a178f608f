//! `Arbitrary` for images that are valid by construction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arbitrary::{Arbitrary, Error, Result, Unstructured};

use crate::{
    ConnectionImage, FilterInstruction, FourTuple, Image, IpImage, KeepAlive, Layer, Linger,
    ListenImage, Negotiated, PendingError, ReceiveSpace, SecretBytes, SendSpace, Seq, SocketFamily,
    SocketOptions, TcpImage, TcpParts, TcpState, TimestampUnit, Timestamps, Window, WindowScale,
};

impl<'a> Arbitrary<'a> for Image {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let subject = match u.arbitrary::<Option<ListenImage>>()? {
            Some(listener) => listener.into(),
            None => u.arbitrary::<ConnectionImage>()?.into(),
        };
        let count = u.int_in_range(0..=3)?;
        Ok(Self {
            taken: u.arbitrary()?,
            subject,
            layers: (0..count).map(|_| u.arbitrary()).collect::<Result<_>>()?,
        })
    }
}

impl<'a> Arbitrary<'a> for ConnectionImage {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            ip: u.arbitrary()?,
            tcp: u.arbitrary()?,
        })
    }
}

impl<'a> Arbitrary<'a> for ListenImage {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let ipv4 = u.arbitrary()?;
        let mut local = end(u, ipv4)?;
        if u.arbitrary()? {
            local.set_ip(match local.ip() {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            });
        }
        let ip = local.ip();
        let mut listen = Self::new(local, u.arbitrary()?);
        listen.v6_only = if ip.is_ipv6() { u.arbitrary()? } else { None };
        listen.scope = name(u)?;
        listen.bound_device = name(u)?;
        listen.transparent = u.arbitrary()?;
        listen.freebind = u.arbitrary()?;
        listen.mark = u.arbitrary()?;
        listen.priority = u.arbitrary()?;
        listen.defer_accept = u.arbitrary()?;
        listen.fast_open = u.arbitrary()?;
        listen.socket = socket(u)?;
        listen.check().map_err(|_| Error::IncorrectFormat)?;
        Ok(listen)
    }
}

impl<'a> Arbitrary<'a> for SecretBytes {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(u.arbitrary::<&[u8]>()?.into())
    }
}

impl<'a> Arbitrary<'a> for FourTuple {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let ipv4 = u.arbitrary()?;
        let (local, remote) = (end(u, ipv4)?, end(u, ipv4)?);
        // Of two IPv6 addresses one can be a mapped one.
        Self::new(local, remote).map_err(|_| Error::IncorrectFormat)
    }
}

/// An end that a connection can have. Inputs are not rejected for it, because most would be.
fn end(u: &mut Unstructured<'_>, ipv4: bool) -> Result<SocketAddr> {
    let (any, host): (IpAddr, IpAddr) = if ipv4 {
        (IpAddr::V4(u.arbitrary()?), Ipv4Addr::LOCALHOST.into())
    } else {
        (IpAddr::V6(u.arbitrary()?), Ipv6Addr::LOCALHOST.into())
    };
    let ip = any.to_canonical();
    let one = !ip.is_unspecified() && !ip.is_multicast() && ip != Ipv4Addr::BROADCAST;
    let port: u16 = u.arbitrary()?;
    Ok(SocketAddr::new(if one { any } else { host }, port.max(1)))
}

/// A name that the kernel takes for a device and a congestion control.
fn name(u: &mut Unstructured<'_>) -> Result<Option<String>> {
    if !u.arbitrary()? {
        return Ok(None);
    }
    let len = u.int_in_range(1..=15)?;
    let letter = |_| u.int_in_range(b'a'..=b'z').map(char::from);
    (0..len).map(letter).collect::<Result<_>>().map(Some)
}

fn ip_options(u: &mut Unstructured<'_>) -> Result<Option<SecretBytes>> {
    if !u.arbitrary()? {
        return Ok(None);
    }
    let len = u.int_in_range(1..=40)?;
    Ok(Some(u.bytes(len)?.into()))
}

fn filter(u: &mut Unstructured<'_>) -> Result<Option<Vec<FilterInstruction>>> {
    if !u.arbitrary()? {
        return Ok(None);
    }
    let instruction = |_| {
        Ok(FilterInstruction {
            code: u.arbitrary()?,
            jt: u.arbitrary()?,
            jf: u.arbitrary()?,
            k: u.arbitrary()?,
        })
    };
    (0..3).map(instruction).collect::<Result<_>>().map(Some)
}

impl<'a> Arbitrary<'a> for IpImage {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let flow: FourTuple = u.arbitrary()?;
        let family = match (flow.is_ipv4(), u.arbitrary()?) {
            (true, true) => SocketFamily::Ipv4,
            (true, false) => SocketFamily::Ipv4Mapped,
            (false, _) => SocketFamily::Ipv6,
        };
        macro_rules! image {
            ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= always($always:ident))? $unit:literal $restored:tt;)*) => {
                Self { flow, family, $($name: {
                    $(let value: Option<$plain> = u.arbitrary()?;)?
                    $(let value: Option<$of> = name(u)?;)?
                    $(let value: Option<$all> = ip_options(u)?;)?
                    $(let value: $always = u.arbitrary()?;)?
                    value
                },)*}
            };
        }
        let mut image = ip_fields!(image);
        image.v6_only = image.v6_only.map(|on| on && !flow.is_ipv4());
        image.ttl = image.ttl.map(|ttl| ttl.max(1));
        image.flow_label = image.flow_label.map(|label| label & 0xf_ffff);
        // Exclusive, of a process, of a user, of anybody.
        let share = |any: u8| [1, 2, 3, 255][usize::from(any % 4)];
        image.flow_label_share = image.flow_label_share.map(share);
        image.mtu_discover = image.mtu_discover.map(|mode| mode % 6);
        image.mtu_discover_v6 = image.mtu_discover_v6.map(|mode| mode % 6);
        Ok(image)
    }
}

impl<'a> Arbitrary<'a> for TcpImage {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let negotiated = negotiated(u)?;
        let receive = ReceiveSpace {
            rcv_nxt: Seq::new(u.arbitrary()?),
            queue: u.arbitrary()?,
        };
        let state = *u.choose(&TcpState::ALL)?;
        let pending_error = if state == TcpState::Close && u.arbitrary()? {
            let errno = u.int_in_range(1..=4095)?;
            Some(PendingError {
                errno,
                after_fin: errno == PendingError::BROKEN_PIPE || u.arbitrary()?,
            })
        } else {
            None
        };
        let parts = TcpParts {
            state,
            pending_error,
            send: SendSpace {
                snd_una: Seq::new(u.arbitrary()?),
                sent: u.arbitrary()?,
                unsent: u.arbitrary()?,
            },
            window: window(u, &negotiated, receive.rcv_nxt)?,
            receive,
            negotiated,
            socket: socket(u)?,
        };
        // Some states do not go with queues. This one goes with all.
        let established = TcpParts {
            state: TcpState::Established,
            pending_error: None,
            ..parts.clone()
        };
        Self::new(parts)
            .or_else(|_| Self::new(established))
            .map_err(|_| Error::IncorrectFormat)
    }
}

fn negotiated(u: &mut Unstructured<'_>) -> Result<Negotiated> {
    let window_scale = if u.arbitrary()? {
        Some(WindowScale {
            snd: u.int_in_range(0..=14)?,
            rcv: u.int_in_range(0..=14)?,
        })
    } else {
        None
    };
    let timestamps = if u.arbitrary()? {
        Some(Timestamps {
            value: u.arbitrary()?,
            unit: *u.choose(&TimestampUnit::ALL)?,
        })
    } else {
        None
    };
    Ok(Negotiated {
        mss_clamp: u.int_in_range(1..=u16::MAX)?,
        window_scale,
        sack: u.arbitrary()?,
        timestamps,
    })
}

fn window(u: &mut Unstructured<'_>, negotiated: &Negotiated, rcv_nxt: Seq) -> Result<Window> {
    let limit = 0xffff << negotiated.window_scale.unwrap_or_default().snd;
    let max_window = u.int_in_range(0..=limit)?;
    let rcv_wnd = u.int_in_range(0..=1 << 30)?;
    // Any distance below 2^31 back from the latest number that is allowed.
    let back = 0..=(1 << 31) - 1;
    Ok(Window {
        snd_wl1: rcv_nxt + rcv_wnd - u.int_in_range(back.clone())?,
        snd_wnd: u.int_in_range(0..=max_window)?,
        max_window,
        rcv_wnd,
        rcv_wup: rcv_nxt - u.int_in_range(back)?,
    })
}

impl<'a> Arbitrary<'a> for KeepAlive {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            on: u.arbitrary()?,
            idle: u.arbitrary()?,
            interval: u.arbitrary()?,
            count: u.arbitrary()?,
        })
    }
}

impl<'a> Arbitrary<'a> for Linger {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            on: u.arbitrary()?,
            seconds: u.arbitrary()?,
        })
    }
}

fn socket(u: &mut Unstructured<'_>) -> Result<SocketOptions> {
    macro_rules! options {
        ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($of:ty as $text:ty))? $(= bytes($all:ty as $bytes:ty))? $(= map($map:ident))? $unit:literal $restored:tt;)*) => {
            SocketOptions {$($name: {
                $(let value: Option<$plain> = u.arbitrary()?;)?
                $(let value: Option<$of> = name(u)?;)?
                $(let value: Option<$all> = filter(u)?;)?
                $(let value: Option<$map> = u.arbitrary()?;)?
                value
            },)*}
        };
    }
    let mut options = socket_fields!(options);
    options.buffer_lock = options.buffer_lock.map(|bits| bits & 3);
    Ok(options)
}

impl<'a> Arbitrary<'a> for Layer {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind: &str = u.arbitrary()?;
        Ok(Self {
            // At most 255 bytes, as a character has at most four.
            kind: kind.chars().take(63).collect(),
            version: u.arbitrary()?,
            payload: u.arbitrary()?,
        })
    }
}
