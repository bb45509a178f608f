//! From a socket to the options of an image.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use tcpmig_format::{
    FilterInstruction, FourTuple, IpImage, KeepAlive, Linger, Octets, SocketFamily, SocketOptions,
};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::sockopt::FlowLabel;
use tcpmig_sys::{Error, flags, netns, sockopt};

use crate::capture::CaptureError;
use crate::inject::INJECT_MARK;

/// An option of newer kernels: `None` where it does not exist.
fn known<T>(value: Result<T, Error>) -> Result<Option<T>, Error> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An option that a new socket of any host has at 0 or off: carried if it is not.
fn unless_off<T: PartialEq + Default>(value: Result<T, Error>) -> Result<Option<T>, Error> {
    Ok(known(value)?.filter(|value| *value != T::default()))
}

fn octet(value: i32) -> Option<u8> {
    u8::try_from(value).ok()
}

/// Addresses, and the options that belong to them.
pub(crate) fn ip(fd: BorrowedFd<'_>) -> Result<IpImage, CaptureError> {
    let Ends { local, remote } = Ends::of(fd)?;
    let flow = FourTuple::new(local, remote)?;
    let family = match (local.is_ipv4(), flow.is_ipv4()) {
        (true, _) => SocketFamily::Ipv4,
        (false, true) => SocketFamily::Ipv4Mapped,
        (false, false) => SocketFamily::Ipv6,
    };
    let mut ip = IpImage::new(flow, family);
    if flow.is_ipv4() {
        of_ipv4_packets(fd, &mut ip)?;
    }
    if family == SocketFamily::Ipv4 {
        ip.transparent = sockopt::transparent(fd)?;
        ip.freebind = sockopt::freebind(fd)?;
    } else {
        of_ipv6_socket(fd, &mut ip)?;
    }
    ip.bind_address_no_port = unless_off(sockopt::bind_address_no_port(fd))?;
    ip.local_port_range = unless_off(sockopt::local_port_range(fd))?;
    if let SocketAddr::V6(address) = local
        && address.scope_id() != 0
    {
        ip.scope = Some(netns::device_name(address.scope_id())?);
    }
    ip.bound_device = sockopt::bound_device(fd)?;
    ip.mark = unless_off(sockopt::mark(fd))?;
    if ip.mark == Some(INJECT_MARK) {
        return Err(CaptureError::InjectMark);
    }
    // A type of service brings a priority with it, which an application may have taken back.
    let with_tos = ip.tos.is_some_and(|tos| tos != 0);
    ip.priority = Some(sockopt::priority(fd)?).filter(|&priority| priority != 0 || with_tos);
    Ok(ip)
}

fn of_ipv4_packets(fd: BorrowedFd<'_>, ip: &mut IpImage) -> Result<(), Error> {
    ip.ttl = octet(sockopt::ttl(fd)?);
    ip.tos = octet(sockopt::tos(fd)?);
    ip.mtu_discover = octet(sockopt::mtu_discover(fd)?);
    ip.min_ttl = unless_off(sockopt::min_ttl(fd))?.and_then(octet);
    ip.ip_options = Some(Octets::from(sockopt::ip_options(fd)?)).filter(|all| !all.is_empty());
    ip.receive_errors = unless_off(sockopt::receive_errors(fd))?;
    ip.receive_packet_info = unless_off(sockopt::receive_packet_info(fd))?;
    ip.receive_ttl = unless_off(sockopt::receive_ttl(fd))?;
    ip.receive_tos = unless_off(sockopt::receive_tos(fd))?;
    Ok(())
}

fn of_ipv6_socket(fd: BorrowedFd<'_>, ip: &mut IpImage) -> Result<(), Error> {
    ip.v6_only = Some(sockopt::v6_only(fd)?);
    ip.hop_limit = octet(sockopt::hop_limit(fd)?);
    ip.traffic_class = octet(sockopt::traffic_class(fd)?);
    ip.transparent = sockopt::transparent_v6(fd)?;
    ip.freebind = sockopt::freebind_v6(fd)?;
    ip.mtu_discover_v6 = octet(sockopt::mtu_discover_v6(fd)?);
    ip.min_hop_limit = unless_off(sockopt::min_hop_limit(fd))?.and_then(octet);
    ip.auto_flow_label = known(sockopt::auto_flow_label(fd))?;
    ip.flow_info_send = unless_off(sockopt::flow_info_send(fd))?;
    match known(sockopt::flow_label(fd))?.flatten() {
        Some(FlowLabel::Leased { label, share }) => {
            ip.flow_label = Some(label);
            ip.flow_label_share = Some(share);
        }
        Some(FlowLabel::Reflected { label }) => {
            ip.flow_label = Some(label);
            ip.flow_label_reflect = Some(true);
        }
        None => {}
    }
    ip.receive_errors_v6 = unless_off(sockopt::receive_errors_v6(fd))?;
    ip.receive_packet_info_v6 = unless_off(sockopt::receive_packet_info_v6(fd))?;
    ip.receive_hop_limit = unless_off(sockopt::receive_hop_limit(fd))?;
    ip.receive_traffic_class = unless_off(sockopt::receive_traffic_class(fd))?;
    ip.receive_flow_info = unless_off(sockopt::receive_flow_info(fd))?;
    ip.receive_hop_options = unless_off(sockopt::receive_hop_options(fd))?;
    ip.receive_routing_header = unless_off(sockopt::receive_routing_header(fd))?;
    ip.receive_destination_options = unless_off(sockopt::receive_destination_options(fd))?;
    Ok(())
}

/// Every other option.
pub(crate) fn socket(fd: BorrowedFd<'_>) -> Result<SocketOptions, CaptureError> {
    let linger = sockopt::linger(fd)?;
    let mut options = SocketOptions {
        reuse_addr: Some(sockopt::reuse_addr(fd)? != 0),
        reuse_port: Some(sockopt::reuse_port(fd)?),
        no_delay: Some(sockopt::no_delay(fd)?),
        cork: Some(sockopt::cork(fd)?),
        oob_inline: Some(sockopt::oob_inline(fd)?),
        non_blocking: Some(flags::non_blocking(fd)?),
        close_on_exec: Some(flags::close_on_exec(fd)?),
        keep_alive: Some(KeepAlive {
            on: sockopt::keep_alive(fd)?,
            idle: sockopt::keep_idle(fd)?,
            interval: sockopt::keep_interval(fd)?,
            count: sockopt::keep_count(fd)?,
        }),
        linger: Some(Linger {
            on: linger.is_some(),
            seconds: linger.unwrap_or(0),
        }),
        receive_buffer: Some(sockopt::receive_buffer(fd)?),
        send_buffer: Some(sockopt::send_buffer(fd)?),
        buffer_lock: known(sockopt::buffer_lock(fd))?.and_then(|bits| u8::try_from(bits).ok()),
        receive_low_water: Some(sockopt::receive_low_water(fd)?),
        congestion: Some(sockopt::congestion(fd)?),
        user_timeout: Some(sockopt::user_timeout(fd)?),
        not_sent_low_water: Some(sockopt::not_sent_low_water(fd)?),
        quick_ack: Some(sockopt::quick_ack(fd)?),
        linger2: Some(sockopt::linger2(fd)?),
        syn_count: Some(sockopt::syn_count(fd)?),
        window_clamp: Some(sockopt::window_clamp(fd)?),
        max_pacing_rate: Some(sockopt::max_pacing_rate(fd)?),
        shut_read: Some(flags::read_shut(fd)?),
        ..SocketOptions::default()
    };
    rarer(fd, &mut options)?;
    options.filter = filter(fd)?;
    Ok(options)
}

fn rarer(fd: BorrowedFd<'_>, options: &mut SocketOptions) -> Result<(), Error> {
    options.receive_timeout = unless_off(sockopt::receive_timeout(fd))?;
    options.send_timeout = unless_off(sockopt::send_timeout(fd))?;
    options.lock_filter = unless_off(sockopt::lock_filter(fd))?;
    // Off is -1.
    options.peek_offset = known(sockopt::peek_offset(fd))?.and_then(|at| u32::try_from(at).ok());
    options.dont_route = unless_off(sockopt::dont_route(fd))?;
    options.busy_poll = unless_off(sockopt::busy_poll(fd))?;
    options.prefer_busy_poll = unless_off(sockopt::prefer_busy_poll(fd))?;
    options.zero_copy = unless_off(sockopt::zero_copy(fd))?;
    options.select_error_queue = unless_off(sockopt::select_error_queue(fd))?;
    timestamps(fd, options)?;
    options.tx_rehash = known(sockopt::tx_rehash(fd))?;
    options.defer_accept = unless_off(sockopt::defer_accept(fd))?;
    options.thin_linear_timeouts = unless_off(sockopt::thin_linear_timeouts(fd))?;
    options.tx_delay = unless_off(sockopt::tx_delay(fd))?;
    options.inq = unless_off(sockopt::inq(fd))?;
    options.rto_max = known(sockopt::rto_max(fd))?;
    options.rto_min = known(sockopt::rto_min(fd))?;
    options.delayed_ack_max = known(sockopt::delayed_ack_max(fd))?;
    Ok(())
}

/// Each variant reads as off while the other one is on.
fn timestamps(fd: BorrowedFd<'_>, options: &mut SocketOptions) -> Result<(), Error> {
    let micros = known(sockopt::timestamps_new(fd))?.unwrap_or(false);
    let nanos = known(sockopt::timestamps_ns_new(fd))?.unwrap_or(false);
    let packets = known(sockopt::timestamping_new(fd))?.unwrap_or(0);
    options.timestamp_new = Some(micros || nanos || packets != 0).filter(|new| *new);
    options.timestamp = unless_off(Ok(micros || sockopt::timestamps(fd)?))?;
    options.timestamp_ns = unless_off(Ok(nanos || sockopt::timestamps_ns(fd)?))?;
    options.timestamping = unless_off(sockopt::timestamping(fd))?;
    Ok(())
}

/// An eBPF program is refused before ([`tcpmig_sys::options::check`]).
fn filter(fd: BorrowedFd<'_>) -> Result<Option<Vec<FilterInstruction>>, Error> {
    let ours = |i: sockopt::FilterInstruction| FilterInstruction {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    Ok(sockopt::filter(fd)?.map(|all| all.into_iter().map(ours).collect()))
}
