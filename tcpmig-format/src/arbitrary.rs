//! `Arbitrary` for images that are valid by construction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arbitrary::{Arbitrary, Error, Result, Unstructured};

use crate::{
    ConnectionImage, FilterInstruction, FourTuple, Image, IpImage, KeepAlive, Layer, Linger,
    ListenImage, Negotiated, Octets, PendingError, ReceiveSpace, SendSpace, Seq, SocketFamily,
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

impl<'a> Arbitrary<'a> for Octets {
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

fn share(u: &mut Unstructured<'_>) -> Result<Option<u8>> {
    Ok(*u.choose(&[None, Some(1), Some(2), Some(3), Some(255)])?)
}

fn ip_options(u: &mut Unstructured<'_>) -> Result<Option<Octets>> {
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
        let v6_only: Option<bool> = u.arbitrary()?;
        Ok(Self {
            flow,
            family,
            v6_only: v6_only.map(|on| on && !flow.is_ipv4()),
            scope: name(u)?,
            ttl: u.arbitrary::<Option<u8>>()?.map(|ttl| ttl.max(1)),
            hop_limit: u.arbitrary()?,
            tos: u.arbitrary()?,
            traffic_class: u.arbitrary()?,
            flow_label: u.arbitrary::<Option<u32>>()?.map(|label| label & 0xf_ffff),
            bound_device: name(u)?,
            transparent: u.arbitrary()?,
            freebind: u.arbitrary()?,
            mark: u.arbitrary()?,
            priority: u.arbitrary()?,
            flow_label_share: share(u)?,
            flow_info_send: u.arbitrary()?,
            flow_label_reflect: u.arbitrary()?,
            auto_flow_label: u.arbitrary()?,
            mtu_discover: u.arbitrary::<Option<u8>>()?.map(|mode| mode % 6),
            mtu_discover_v6: u.arbitrary::<Option<u8>>()?.map(|mode| mode % 6),
            min_ttl: u.arbitrary()?,
            min_hop_limit: u.arbitrary()?,
            ip_options: ip_options(u)?,
            bind_address_no_port: u.arbitrary()?,
            local_port_range: u.arbitrary()?,
            receive_errors: u.arbitrary()?,
            receive_packet_info: u.arbitrary()?,
            receive_ttl: u.arbitrary()?,
            receive_tos: u.arbitrary()?,
            receive_errors_v6: u.arbitrary()?,
            receive_packet_info_v6: u.arbitrary()?,
            receive_hop_limit: u.arbitrary()?,
            receive_traffic_class: u.arbitrary()?,
            receive_flow_info: u.arbitrary()?,
            receive_hop_options: u.arbitrary()?,
            receive_routing_header: u.arbitrary()?,
            receive_destination_options: u.arbitrary()?,
        })
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

fn socket(u: &mut Unstructured<'_>) -> Result<SocketOptions> {
    let keep_alive = if u.arbitrary()? {
        Some(KeepAlive {
            on: u.arbitrary()?,
            idle: u.arbitrary()?,
            interval: u.arbitrary()?,
            count: u.arbitrary()?,
        })
    } else {
        None
    };
    let linger = if u.arbitrary()? {
        Some(Linger {
            on: u.arbitrary()?,
            seconds: u.arbitrary()?,
        })
    } else {
        None
    };
    Ok(SocketOptions {
        reuse_addr: u.arbitrary()?,
        reuse_port: u.arbitrary()?,
        no_delay: u.arbitrary()?,
        cork: u.arbitrary()?,
        oob_inline: u.arbitrary()?,
        non_blocking: u.arbitrary()?,
        keep_alive,
        linger,
        receive_buffer: u.arbitrary()?,
        send_buffer: u.arbitrary()?,
        buffer_lock: u.arbitrary::<Option<u8>>()?.map(|bits| bits & 3),
        receive_low_water: u.arbitrary()?,
        congestion: name(u)?,
        user_timeout: u.arbitrary()?,
        not_sent_low_water: u.arbitrary()?,
        quick_ack: u.arbitrary()?,
        linger2: u.arbitrary()?,
        syn_count: u.arbitrary()?,
        window_clamp: u.arbitrary()?,
        max_pacing_rate: u.arbitrary()?,
        shut_read: u.arbitrary()?,
        close_on_exec: u.arbitrary()?,
        receive_timeout: u.arbitrary()?,
        send_timeout: u.arbitrary()?,
        filter: filter(u)?,
        lock_filter: u.arbitrary()?,
        peek_offset: u.arbitrary()?,
        dont_route: u.arbitrary()?,
        busy_poll: u.arbitrary()?,
        prefer_busy_poll: u.arbitrary()?,
        zero_copy: u.arbitrary()?,
        select_error_queue: u.arbitrary()?,
        timestamp: u.arbitrary()?,
        timestamp_ns: u.arbitrary()?,
        timestamping: u.arbitrary()?,
        timestamp_new: u.arbitrary()?,
        tx_rehash: u.arbitrary()?,
        defer_accept: u.arbitrary()?,
        thin_linear_timeouts: u.arbitrary()?,
        tx_delay: u.arbitrary()?,
        inq: u.arbitrary()?,
        rto_max: u.arbitrary()?,
        rto_min: u.arbitrary()?,
        delayed_ack_max: u.arbitrary()?,
    })
}

impl<'a> Arbitrary<'a> for Layer {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind: &str = u.arbitrary()?;
        Ok(Self {
            // At most 255 octets, as a character has at most four.
            kind: kind.chars().take(63).collect(),
            version: u.arbitrary()?,
            payload: u.arbitrary()?,
        })
    }
}
