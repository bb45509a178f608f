//! From the options of an image to a socket.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use tcpmig_format::{
    FilterInstruction, IpImage, KeepAlive, SocketFamily, SocketOptions, ip_fields, socket_fields,
};
use tcpmig_sys::options::KnownOption;
use tcpmig_sys::sockopt::FlowLabel;
use tcpmig_sys::{Error, fcntl, sockopt};

use super::rows::{Carried, Default, Of, When, carried};
use super::{Fresh, NotSet, Unsupported};

/// A function of [`sockopt`].
type Set<T> = fn(BorrowedFd<'_>, T) -> Result<(), Error>;

/// Sets options and does with those that cannot be set what the policy says.
pub(crate) struct Setter<'a> {
    fd: BorrowedFd<'a>,
    policy: Unsupported,
    not_set: &'a mut Vec<NotSet>,
    /// What the socket has already.
    fresh: Option<Fresh>,
}

impl<'a> Setter<'a> {
    pub(crate) fn new(
        fd: BorrowedFd<'a>,
        policy: Unsupported,
        not_set: &'a mut Vec<NotSet>,
    ) -> Self {
        Self {
            fd,
            policy,
            not_set,
            fresh: None,
        }
    }

    /// Of a new socket of which it is known what it has.
    pub(crate) fn knowing(self, fresh: Option<Fresh>) -> Self {
        Self { fresh, ..self }
    }

    /// Whether it was set.
    fn done(
        &mut self,
        result: Result<(), Error>,
        value: impl FnOnce() -> String,
    ) -> Result<bool, NotSet> {
        let Err(error) = result else {
            return Ok(true);
        };
        let not_set = NotSet::new(error, value());
        match self.policy {
            Unsupported::Refuse => Err(not_set),
            Unsupported::Warn => {
                self.not_set.push(not_set);
                Ok(false)
            }
        }
    }

    fn set<T: Copy + Carried>(&mut self, value: Option<T>, set: Set<T>) -> Result<(), NotSet> {
        if let Some(value) = value {
            self.done(set(self.fd, value), || value.show())?;
        }
        Ok(())
    }

    fn set_name<'n>(&mut self, name: Option<&'n str>, set: Set<&'n str>) -> Result<(), NotSet> {
        if let Some(name) = name {
            self.done(set(self.fd, name), || name.to_owned())?;
        }
        Ok(())
    }

    /// The value of an option unless the socket is known to have it already.
    fn other<T: PartialEq>(
        &self,
        value: Option<T>,
        has: impl FnOnce(Fresh) -> Option<T>,
    ) -> Option<T> {
        let has = self.fresh.and_then(has);
        if value == has { None } else { value }
    }

    fn set_other<T: Carried>(
        &mut self,
        value: Option<T>,
        has: impl FnOnce(Fresh) -> Option<T>,
        set: Set<T>,
    ) -> Result<(), NotSet> {
        let value = self.other(value, has);
        self.set(value, set)
    }

    /// One that a new socket has at 0 or off, on any host: a call less where it is.
    fn set_unless_off<T: Carried>(&mut self, value: Option<T>, set: Set<T>) -> Result<(), NotSet> {
        self.set(value.filter(|value| *value != T::default()), set)
    }

    /// What the row of an option says.
    fn row<T: Carried>(
        &mut self,
        value: Option<T>,
        option: &'static KnownOption,
        default: Default<T>,
    ) -> Result<(), NotSet> {
        let has = |fresh: Fresh| T::of_number(fresh.number(option.name)?);
        let value = self.other(value, has);
        self.row_by(value, default, |fd, value| sockopt::set(fd, option, value))
    }

    fn row_by<T: Carried>(
        &mut self,
        value: Option<T>,
        default: Default<T>,
        set: impl Fn(BorrowedFd<'_>, T::Kernel) -> Result<(), Error>,
    ) -> Result<(), NotSet> {
        let Some(value) = value else { return Ok(()) };
        let has_it = match default {
            Default::Off => value == T::default(),
            Default::Starts(start) => value == start,
            Default::Host | Default::Fixed(_) => false,
        };
        if has_it {
            return Ok(());
        }
        match (set(self.fd, value.for_kernel()), default) {
            (Err(Error::Unsupported { .. }), Default::Fixed(fixed)) if value == fixed => Ok(()),
            (result, _) => self.done(result, || value.show()).map(drop),
        }
    }
}

macro_rules! set_row {
    ($set:ident $has:ident $now:ident $place:expr, $plain:ident { $option:literal $of:ident, $when:ident, $default:ident $(($value:expr))? }) => {{
        const OPTION: &KnownOption = carried($option, <$plain as Carried>::KIND);
        if $now == When::$when && $has(Of::$of) {
            $set.row($place, OPTION, Default::$default $(($value))?)?;
        }
    }};
    // Below, each in its way.
    ($set:ident $has:ident $now:ident $place:expr, $($plain:ident)? { own }) => {};
}

macro_rules! ip_rows {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
        /// What the rows of the table have for now, of the options that the socket has.
        fn ip_rows(set: &mut Setter<'_>, ip: &IpImage, now: When) -> Result<(), NotSet> {
            let has = |of| match of {
                Of::Any => true,
                Of::Ipv4 => ip.flow.is_ipv4(),
                Of::Ipv6 => ip.family != SocketFamily::Ipv4,
            };
            $(set_row!(set has now ip.$name, $($plain)? $restored);)*
            Ok(())
        }
    };
}
ip_fields!(ip_rows);

macro_rules! socket_rows {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
        /// Like [`ip_rows`]: every socket has these options.
        fn socket_rows(set: &mut Setter<'_>, options: &SocketOptions, now: When) -> Result<(), NotSet> {
            let has = |_| true;
            $(set_row!(set has now options.$name, $($plain)? $restored);)*
            Ok(())
        }
    };
}
socket_fields!(socket_rows);

/// What decides binding and routing: on a new socket. The flow label with which to connect, if there is one.
pub(crate) fn before_bind(
    set: &mut Setter<'_>,
    ip: &IpImage,
    options: &SocketOptions,
) -> Result<Option<u32>, NotSet> {
    set.set_name(ip.bound_device.as_deref(), sockopt::set_bound_device)?;
    set.set(ip.mark, sockopt::set_mark)?;
    socket_rows(set, options, When::BeforeBind)?;
    ip_rows(set, ip, When::BeforeBind)?;
    if let Some(options) = &ip.ip_options
        && ip.flow.is_ipv4()
    {
        let result = sockopt::set_ip_options(set.fd, options);
        set.done(result, || format!("{:02x?}", &options[..]))?;
    }
    // After TOS, which changes the priority too.
    set.set(ip.priority, sockopt::set_priority)?;
    if ip.family == SocketFamily::Ipv4 {
        let transparent = ip.transparent || is_lent_transparent(ip);
        set.set_unless_off(Some(transparent), sockopt::set_transparent)?;
        set.set_unless_off(Some(ip.freebind), sockopt::set_freebind)?;
        return Ok(None);
    }
    let transparent = ip.transparent || is_lent_transparent(ip);
    set.set_unless_off(Some(transparent), sockopt::set_transparent_v6)?;
    set.set_unless_off(Some(ip.freebind), sockopt::set_freebind_v6)?;
    flow_label(set, ip)
}

/// With `IP_FREEBIND` alone an address that is not there can be bound, but IPv4 finds no route from it:
/// until `connect` the socket is transparent as well.
fn is_lent_transparent(ip: &IpImage) -> bool {
    ip.freebind && !ip.transparent && ip.flow.is_ipv4()
}

/// `IPV6_FL_S_ANY`: anybody may lease the label as well.
const SHARED: u8 = 255;

fn flow_label(set: &mut Setter<'_>, ip: &IpImage) -> Result<Option<u32>, NotSet> {
    let reflect = ip.flow_label_reflect == Some(true);
    let label = ip.flow_label.filter(|&label| label != 0);
    // A label that is reflected was taken from the peer's SYN: here `connect` has to bring it.
    let share = ip.flow_label_share.or(reflect.then_some(SHARED));
    let send = ip.flow_info_send == Some(true) || reflect && label.is_some();
    set.set_unless_off(Some(send), sockopt::set_flow_info_send)?;
    let (SocketAddr::V6(remote), Some(label), Some(share)) = (ip.flow.remote(), label, share)
    else {
        return Ok(None);
    };
    let lease = FlowLabel::Leased { label, share };
    let result = sockopt::set_flow_label(set.fd, lease, *remote.ip());
    let leased = set.done(result, || format!("{label:#07x}"))?;
    // Without this option `connect` does not look at the label.
    Ok((leased && send).then_some(label))
}

/// What of a flow label comes after `connect`.
fn reflect(set: &mut Setter<'_>, ip: &IpImage) -> Result<(), NotSet> {
    let (SocketAddr::V6(remote), Some(true)) = (ip.flow.remote(), ip.flow_label_reflect) else {
        return Ok(());
    };
    let label = ip.flow_label.unwrap_or(0);
    let reflected = FlowLabel::Reflected { label };
    let result = sockopt::set_flow_label(set.fd, reflected, *remote.ip());
    set.done(result, || "reflect".to_owned())?;
    if label != 0 && ip.flow_info_send != Some(true) {
        set.set(Some(false), sockopt::set_flow_info_send)?;
    }
    Ok(())
}

/// Everything else that repair mode keeps and that does not act on the queues: on a connected socket.
pub(crate) fn connected(
    set: &mut Setter<'_>,
    ip: &IpImage,
    options: &SocketOptions,
) -> Result<(), NotSet> {
    if is_lent_transparent(ip) {
        let back = match ip.family {
            SocketFamily::Ipv4 => sockopt::set_transparent,
            _ => sockopt::set_transparent_v6,
        };
        set.set(Some(false), back)?;
    }
    reflect(set, ip)?;
    ip_rows(set, ip, When::Connected)?;
    of_socket(set, options)
}

/// What a new listener gets besides its addresses.
pub(crate) fn listener(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    of_socket(set, options)?;
    set_alive(set, options)?;
    set.set(options.non_blocking, fcntl::set_non_blocking)
}

fn of_socket(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    socket_rows(set, options, When::Connected)?;
    congestion(set, options)?;
    if let Some(linger) = options.linger.filter(|linger| linger.on) {
        let result = sockopt::set_linger(set.fd, Some(linger.seconds));
        set.done(result, || linger.seconds.to_string())?;
    }
    if let Some(keep) = options.keep_alive {
        let KeepAlive {
            idle,
            interval,
            count,
            ..
        } = keep;
        set.set_other(
            Some(idle),
            |fresh| Some(fresh.keep_idle),
            sockopt::set_keep_idle,
        )?;
        set.set_other(
            Some(interval),
            |fresh| Some(fresh.keep_interval),
            sockopt::set_keep_interval,
        )?;
        set.set_other(
            Some(count),
            |fresh| Some(fresh.keep_count),
            sockopt::set_keep_count,
        )?;
        set.set_unless_off(Some(keep.on), sockopt::set_keep_alive)?;
    }
    set.set_unless_off(options.receive_timeout, sockopt::set_receive_timeout)?;
    set.set_unless_off(options.send_timeout, sockopt::set_send_timeout)?;
    timestamps(set, options)?;
    peek_offset_is_known(set, options)?;
    if options.shut_read == Some(true) {
        set.done(fcntl::shut_read(set.fd), || "SHUT_RD".to_owned())?;
    }
    filter(set, options)
}

/// To set it begins it anew, which takes longer than to ask: a route can have chosen another one than a new socket has.
fn congestion(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    let Some(name) = options.congestion.as_deref() else {
        return Ok(());
    };
    let has = set.fresh.and_then(|_| sockopt::congestion(set.fd).ok());
    if has.as_deref() == Some(name) {
        return Ok(());
    }
    set.set_name(Some(name), sockopt::set_congestion)
}

fn timestamps(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    if options.timestamp_new == Some(true) {
        set.set_unless_off(options.timestamp, sockopt::set_timestamps_new)?;
        set.set_unless_off(options.timestamp_ns, sockopt::set_timestamps_ns_new)?;
        set.set_unless_off(options.timestamping, sockopt::set_timestamping_new)
    } else {
        set.set_unless_off(options.timestamp, sockopt::set_timestamps)?;
        set.set_unless_off(options.timestamp_ns, sockopt::set_timestamps_ns)?;
        set.set_unless_off(options.timestamping, sockopt::set_timestamping)
    }
}

fn filter(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    if let Some(filter) = &options.filter {
        let kernels = |i: &FilterInstruction| sockopt::FilterInstruction {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        };
        let result = sockopt::attach_filter(set.fd, filter.iter().map(kernels));
        set.done(result, || format!("{} instructions", filter.len()))?;
    }
    // After the filter, which it would keep away.
    set.set_unless_off(options.lock_filter, sockopt::set_lock_filter)
}

/// What has to wait until the connection lives and its queues are written: an option that cannot be set
/// must not end it any more.
pub(crate) fn alive(fd: BorrowedFd<'_>, options: &SocketOptions, not_set: &mut Vec<NotSet>) {
    let mut set = Setter::new(fd, Unsupported::Warn, not_set);
    // With this policy there is no error.
    let _ = set_alive(&mut set, options);
}

fn set_alive(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    buffers(set, options)?;
    socket_rows(set, options, When::Alive)?;
    match peek_offset(options).map(|at| sockopt::set_peek_offset(set.fd, at)) {
        // Refused or left out before (`peek_offset_is_known`).
        None | Some(Err(Error::Unsupported { .. })) => {}
        Some(result) => drop(set.done(result, || peek_offset(options).unwrap_or(-1).show())?),
    }
    // A rebuilt socket has both.
    let off = |flag: Option<bool>| flag.filter(|on| !on);
    set.set(off(options.non_blocking), fcntl::set_non_blocking)?;
    set.set(off(options.close_on_exec), fcntl::set_close_on_exec)
}

fn peek_offset(options: &SocketOptions) -> Option<i32> {
    options.peek_offset.and_then(|at| i32::try_from(at).ok())
}

/// It is set last, when nothing can be refused any more; that TCP does not have it before Linux 6.9 is found out here.
fn peek_offset_is_known(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    let Some(at) = peek_offset(options) else {
        return Ok(());
    };
    match sockopt::peek_offset(set.fd) {
        Err(error @ Error::Unsupported { .. }) => set.done(Err(error), || at.show()).map(drop),
        _ => Ok(()),
    }
}

const SEND: u8 = 1;
const RECEIVE: u8 = 2;

/// Buffers as large as they were. One that tuned itself goes on doing so.
fn buffers(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    let lock = options.buffer_lock.unwrap_or(0);
    // The kernel doubles what it is given.
    if let Some(bytes) = options.send_buffer {
        let mut result = sockopt::set_send_buffer(set.fd, bytes / 2);
        if lock & SEND != 0 {
            result = result.and_then(|()| {
                let force = sockopt::force_send_buffer;
                reaches(set.fd, bytes, sockopt::send_buffer, force)
            });
        }
        set.done(result, || bytes.to_string())?;
    }
    if let Some(bytes) = options.receive_buffer {
        let mut result = sockopt::set_receive_buffer(set.fd, bytes / 2);
        if lock & RECEIVE != 0 {
            result = result.and_then(|()| {
                let force = sockopt::force_receive_buffer;
                reaches(set.fd, bytes, sockopt::receive_buffer, force)
            });
        }
        set.done(result, || bytes.to_string())?;
    }
    match sockopt::set_buffer_lock(set.fd, u32::from(lock)) {
        // An older kernel: the buffers stay as they are set.
        Err(Error::Unsupported { .. }) => Ok(()),
        other => set.done(other, || lock.to_string()).map(drop),
    }
}

/// Passes the limit of `net.core.rmem_max` or `wmem_max` for a buffer that an application asked for.
fn reaches(
    fd: BorrowedFd<'_>,
    bytes: u32,
    get: fn(BorrowedFd<'_>) -> Result<u32, Error>,
    force: fn(BorrowedFd<'_>, u32) -> Result<(), Error>,
) -> Result<(), Error> {
    if get(fd)? < bytes {
        force(fd, bytes / 2)?;
    }
    Ok(())
}

/// What reading a connection changed: for one that stays.
pub(crate) fn kept(fd: BorrowedFd<'_>, options: &SocketOptions) -> Result<(), Error> {
    match peek_offset(options) {
        Some(offset) => sockopt::set_peek_offset(fd, offset),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    /// Of kernels before Linux 6.15.
    const RTO_MAX: u32 = 120_000;

    fn unknown<T>(_: BorrowedFd<'_>, _: T) -> Result<(), Error> {
        let source = std::io::Error::from_raw_os_error(crate::options::ERRNO_NOPROTOOPT);
        let call = "setsockopt(TCP_RTO_MAX_MS)";
        Err(Error::Unsupported { call, source })
    }

    fn set_unknown(policy: Unsupported, value: Option<u32>) -> (Result<(), NotSet>, Vec<NotSet>) {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let mut not_set = Vec::new();
        let mut set = Setter::new(socket.as_fd(), policy, &mut not_set);
        let done = set.row_by(value, Default::Fixed(RTO_MAX), unknown);
        (done, not_set)
    }

    #[test]
    fn what_older_kernels_do_anyway_needs_no_option() {
        for value in [None, Some(RTO_MAX)] {
            let (done, not_set) = set_unknown(Unsupported::Refuse, value);
            assert!(done.is_ok() && not_set.is_empty(), "{value:?}");
        }
    }

    #[test]
    fn what_older_kernels_do_otherwise_is_refused_or_left_out_by_name() {
        let text = "TCP_RTO_MAX_MS=5000: this kernel does not know it (ENOPROTOOPT)";
        let (done, _) = set_unknown(Unsupported::Refuse, Some(5000));
        assert_eq!(done.expect_err("refused").to_string(), text);
        let (done, not_set) = set_unknown(Unsupported::Warn, Some(5000));
        assert!(done.is_ok());
        assert_eq!(not_set[0].to_string(), text);
    }
}
