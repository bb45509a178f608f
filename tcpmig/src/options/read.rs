//! From a socket to the options of an image.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use tcpmig_format::{
    FilterInstruction, FourTuple, IpImage, KeepAlive, Linger, SecretBytes, SocketFamily,
    SocketOptions, ip_fields, socket_fields,
};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::options::{KnownOption, Seen, Told};
use tcpmig_sys::sockopt::FlowLabel;
use tcpmig_sys::{Error, fcntl, netns, sockopt};

use super::rows::{self, Carried, Default, Of, carried, known};
use crate::capture::CaptureError;
use crate::inject::INJECT_MARK;

macro_rules! read_row {
    ($fd:ident $told:ident $has:ident $place:expr, $plain:ident { $option:literal $of:ident, $when:ident, $default:ident $(($value:expr))? }) => {{
        const OPTION: &KnownOption = carried($option, <$plain as Carried>::KIND);
        if $has(Of::$of) {
            $place = rows::read($fd, $told, OPTION, Default::$default $(($value))?)?;
        }
    }};
    // Below, each in its way.
    ($fd:ident $told:ident $has:ident $place:expr, $($plain:ident)? { own }) => {};
}

macro_rules! ip_rows {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
        /// What the rows of the table say, of the options that the socket has.
        fn ip_rows(fd: BorrowedFd<'_>, told: &Told, has: impl Fn(Of) -> bool, ip: &mut IpImage) -> Result<(), Error> {
            $(read_row!(fd told has ip.$name, $($plain)? $restored);)*
            Ok(())
        }
    };
}
ip_fields!(ip_rows);

macro_rules! socket_rows {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
        /// Like [`ip_rows`]: every socket has these options.
        fn socket_rows(fd: BorrowedFd<'_>, told: &Told, options: &mut SocketOptions) -> Result<(), Error> {
            let has = |_| true;
            $(read_row!(fd told has options.$name, $($plain)? $restored);)*
            Ok(())
        }
    };
}
socket_fields!(socket_rows);

/// An option that a new socket of any host has at 0 or off: carried if it is not.
fn unless_off<T: PartialEq + std::default::Default>(
    value: Result<T, Error>,
) -> Result<Option<T>, Error> {
    Ok(known(value)?.filter(|value| *value != T::default()))
}

/// Addresses, and the options that belong to them.
pub(crate) fn ip(fd: BorrowedFd<'_>, seen: &Seen) -> Result<IpImage, CaptureError> {
    let Ends { local, remote } = seen.ends;
    let told = &seen.told;
    let flow = FourTuple::new(local, remote)?;
    let family = match (local.is_ipv4(), flow.is_ipv4()) {
        (true, _) => SocketFamily::Ipv4,
        (false, true) => SocketFamily::Ipv4Mapped,
        (false, false) => SocketFamily::Ipv6,
    };
    let mut ip = IpImage::new(flow, family);
    let has = |of| match of {
        Of::Any => true,
        Of::Ipv4 => flow.is_ipv4(),
        Of::Ipv6 => family != SocketFamily::Ipv4,
    };
    ip_rows(fd, told, has, &mut ip)?;
    if flow.is_ipv4() {
        let options = SecretBytes::from(sockopt::ip_options(fd)?);
        ip.ip_options = Some(options).filter(|all| !all.is_empty());
    }
    let is_v6 = family != SocketFamily::Ipv4;
    ip.transparent = told.transparent(fd, is_v6)?;
    ip.freebind = told.freebind(fd, is_v6)?;
    if is_v6 {
        of_ipv6_socket(fd, &mut ip)?;
    }
    if let SocketAddr::V6(address) = local
        && address.scope_id() != 0
    {
        ip.scope = Some(netns::device_name(address.scope_id())?);
    }
    ip.bound_device = seen.bound_device.clone();
    ip.mark = unless_off(told.mark(fd))?;
    if ip.mark == Some(INJECT_MARK) {
        return Err(CaptureError::InjectMark);
    }
    // A type of service brings a priority with it, which an application may have taken back.
    let with_tos = ip.tos.is_some_and(|tos| tos != 0);
    ip.priority = Some(sockopt::priority(fd)?).filter(|&priority| priority != 0 || with_tos);
    Ok(ip)
}

fn of_ipv6_socket(fd: BorrowedFd<'_>, ip: &mut IpImage) -> Result<(), Error> {
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
    Ok(())
}

/// Every other option.
pub(crate) fn socket(
    fd: BorrowedFd<'_>,
    told: &Told,
    filter: Option<&[sockopt::FilterInstruction]>,
) -> Result<SocketOptions, CaptureError> {
    let linger = sockopt::linger(fd)?;
    let mut options = SocketOptions::default();
    options.reuse_addr = Some(sockopt::reuse_addr(fd)? != 0);
    options.non_blocking = Some(fcntl::non_blocking(fd)?);
    options.close_on_exec = Some(fcntl::close_on_exec(fd)?);
    options.keep_alive = Some(KeepAlive {
        on: sockopt::keep_alive(fd)?,
        idle: sockopt::keep_idle(fd)?,
        interval: sockopt::keep_interval(fd)?,
        count: sockopt::keep_count(fd)?,
    });
    options.linger = Some(Linger {
        on: linger.is_some(),
        seconds: linger.unwrap_or(0),
    });
    options.receive_buffer = Some(told.receive_buffer(fd)?);
    options.send_buffer = Some(told.send_buffer(fd)?);
    options.buffer_lock = known(sockopt::buffer_lock(fd))?.and_then(|bits| u8::try_from(bits).ok());
    options.congestion = Some(told.congestion(fd)?);
    options.shut_read = Some(told.read_shut(fd)?);
    options.receive_timeout = unless_off(sockopt::receive_timeout(fd))?;
    options.send_timeout = unless_off(sockopt::send_timeout(fd))?;
    options.filter = filter.map(in_image);
    options.lock_filter = unless_off(sockopt::lock_filter(fd))?;
    // Off is -1.
    options.peek_offset = known(sockopt::peek_offset(fd))?.and_then(|at| u32::try_from(at).ok());
    socket_rows(fd, told, &mut options)?;
    timestamps(fd, &mut options)?;
    Ok(options)
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

fn in_image(instructions: &[sockopt::FilterInstruction]) -> Vec<FilterInstruction> {
    let ours = |i: &sockopt::FilterInstruction| FilterInstruction {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    instructions.iter().map(ours).collect()
}
