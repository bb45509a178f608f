//! From the options of an image to a socket.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use tcpmig_format::{FilterInstruction, IpImage, KeepAlive, SocketFamily, SocketOptions};
use tcpmig_sys::sockopt::FlowLabel;
use tcpmig_sys::{Error, flags, sockopt};

use super::{Fresh, NotSet, Unsupported};

/// A function of [`sockopt`].
type Set<T> = fn(BorrowedFd<'_>, T) -> Result<(), Error>;

/// The value of an option, as a manual page would have it.
trait Value: Copy {
    fn show(self) -> String;
}

impl Value for bool {
    fn show(self) -> String {
        u8::from(self).to_string()
    }
}

macro_rules! values {
    ($($ty:ty)*) => {$(
        impl Value for $ty {
            fn show(self) -> String {
                self.to_string()
            }
        }
    )*};
}
values!(u32 i32 u64 &str);

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

    fn set<T: Value>(&mut self, value: Option<T>, set: Set<T>) -> Result<(), NotSet> {
        if let Some(value) = value {
            self.done(set(self.fd, value), || value.show())?;
        }
        Ok(())
    }

    /// An option of newer kernels that a socket always has a value of. A kernel that does not know it behaves like
    /// `fixed`, so that a connection which never changed it can go there.
    fn set_or_fixed<T: Value + PartialEq>(
        &mut self,
        value: Option<T>,
        fixed: T,
        set: Set<T>,
    ) -> Result<(), NotSet> {
        let Some(value) = value else { return Ok(()) };
        match set(self.fd, value) {
            Err(Error::Unsupported { .. }) if value == fixed => Ok(()),
            result => self.done(result, || value.show()).map(drop),
        }
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

    fn set_other<T: Value + PartialEq>(
        &mut self,
        value: Option<T>,
        has: impl FnOnce(Fresh) -> Option<T>,
        set: Set<T>,
    ) -> Result<(), NotSet> {
        let value = self.other(value, has);
        self.set(value, set)
    }

    /// One that a new socket has at 0 or off, on any host: a call less where it is.
    fn set_unless_off<T: Value + PartialEq + Default>(
        &mut self,
        value: Option<T>,
        set: Set<T>,
    ) -> Result<(), NotSet> {
        self.set(value.filter(|value| *value != T::default()), set)
    }
}

/// What decides binding and routing: on a new socket. The flow label with which to connect, if there is one.
pub(crate) fn before_bind(
    set: &mut Setter<'_>,
    ip: &IpImage,
    options: &SocketOptions,
) -> Result<Option<u32>, NotSet> {
    set.set(ip.bound_device.as_deref(), sockopt::set_bound_device)?;
    set.set(ip.mark, sockopt::set_mark)?;
    set.set_unless_off(options.dont_route, sockopt::set_dont_route)?;
    if ip.flow.is_ipv4() {
        set.set(ip.ttl.map(i32::from), sockopt::set_ttl)?;
        set.set_unless_off(ip.tos.map(i32::from), sockopt::set_tos)?;
        let mtu_discover = ip.mtu_discover.map(i32::from);
        set.set_other(
            mtu_discover,
            |fresh| fresh.mtu_discover,
            sockopt::set_mtu_discover,
        )?;
        set.set(ip.min_ttl.map(i32::from), sockopt::set_min_ttl)?;
        if let Some(options) = &ip.ip_options {
            let result = sockopt::set_ip_options(set.fd, options);
            set.done(result, || format!("{:02x?}", &options[..]))?;
        }
    }
    // After TOS, which changes the priority too.
    set.set(ip.priority, sockopt::set_priority)?;
    set.set_unless_off(ip.bind_address_no_port, sockopt::set_bind_address_no_port)?;
    if ip.family == SocketFamily::Ipv4 {
        let transparent = ip.transparent || is_lent_transparent(ip);
        set.set_unless_off(Some(transparent), sockopt::set_transparent)?;
        set.set_unless_off(Some(ip.freebind), sockopt::set_freebind)?;
        return Ok(None);
    }
    set.set(ip.v6_only, sockopt::set_v6_only)?;
    set.set(ip.hop_limit.map(i32::from), sockopt::set_hop_limit)?;
    set.set_unless_off(ip.traffic_class.map(i32::from), sockopt::set_traffic_class)?;
    let transparent = ip.transparent || is_lent_transparent(ip);
    set.set_unless_off(Some(transparent), sockopt::set_transparent_v6)?;
    set.set_unless_off(Some(ip.freebind), sockopt::set_freebind_v6)?;
    set.set_other(
        ip.mtu_discover_v6.map(i32::from),
        |fresh| fresh.mtu_discover_v6,
        sockopt::set_mtu_discover_v6,
    )?;
    set.set(ip.min_hop_limit.map(i32::from), sockopt::set_min_hop_limit)?;
    set.set(ip.auto_flow_label, sockopt::set_auto_flow_label)?;
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
    received_beside(set, ip)?;
    of_socket(set, options)
}

/// What a new listener gets besides its addresses.
pub(crate) fn listener(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    of_socket(set, options)?;
    set_alive(set, options)?;
    set.set(options.non_blocking, flags::set_non_blocking)
}

fn of_socket(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    set.set_unless_off(options.reuse_port, sockopt::set_reuse_port)?;
    set.set_unless_off(options.oob_inline, sockopt::set_oob_inline)?;
    set.set_unless_off(options.no_delay, sockopt::set_no_delay)?;
    // 1 is what a new socket has.
    let low_water = options.receive_low_water.filter(|&octets| octets != 1);
    set.set(low_water, sockopt::set_receive_low_water)?;
    set.set_unless_off(options.user_timeout, sockopt::set_user_timeout)?;
    set.set_unless_off(options.not_sent_low_water, sockopt::set_not_sent_low_water)?;
    set.set_other(
        options.linger2,
        |fresh| Some(fresh.linger2),
        sockopt::set_linger2,
    )?;
    set.set_other(
        options.syn_count,
        |fresh| Some(fresh.syn_count),
        sockopt::set_syn_count,
    )?;
    // All bits set is what a new socket has.
    let rate = options.max_pacing_rate.filter(|&rate| rate != u64::MAX);
    set.set(rate, sockopt::set_max_pacing_rate)?;
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
    rarer(set, options)?;
    peek_offset_is_known(set, options)?;
    if options.shut_read == Some(true) {
        set.done(flags::shut_read(set.fd), || "SHUT_RD".to_owned())?;
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
    set.set(Some(name), sockopt::set_congestion)
}

fn received_beside(set: &mut Setter<'_>, ip: &IpImage) -> Result<(), NotSet> {
    if ip.flow.is_ipv4() {
        set.set_unless_off(ip.receive_errors, sockopt::set_receive_errors)?;
        set.set_unless_off(ip.receive_packet_info, sockopt::set_receive_packet_info)?;
        set.set_unless_off(ip.receive_ttl, sockopt::set_receive_ttl)?;
        set.set_unless_off(ip.receive_tos, sockopt::set_receive_tos)?;
    }
    set.set_unless_off(ip.local_port_range, sockopt::set_local_port_range)?;
    if ip.family != SocketFamily::Ipv4 {
        set.set_unless_off(ip.receive_errors_v6, sockopt::set_receive_errors_v6)?;
        set.set_unless_off(
            ip.receive_packet_info_v6,
            sockopt::set_receive_packet_info_v6,
        )?;
        set.set_unless_off(ip.receive_hop_limit, sockopt::set_receive_hop_limit)?;
        set.set_unless_off(ip.receive_traffic_class, sockopt::set_receive_traffic_class)?;
        set.set_unless_off(ip.receive_flow_info, sockopt::set_receive_flow_info)?;
        set.set_unless_off(ip.receive_hop_options, sockopt::set_receive_hop_options)?;
        set.set_unless_off(
            ip.receive_routing_header,
            sockopt::set_receive_routing_header,
        )?;
        set.set_unless_off(
            ip.receive_destination_options,
            sockopt::set_receive_destination_options,
        )?;
    }
    Ok(())
}

/// `SOCK_TXREHASH_ENABLED`: before Linux 5.18 every timeout changes the hash.
const TX_REHASH: bool = true;

// What the kernel has built in before Linux 6.15 (`include/net/tcp.h`): TCP_RTO_MAX in milliseconds, TCP_RTO_MIN and
// TCP_DELACK_MAX in microseconds.
const RTO_MAX: u32 = 120_000;
const RTO_MIN: u32 = 200_000;
const DELAYED_ACK_MAX: u32 = 200_000;

fn rarer(set: &mut Setter<'_>, options: &SocketOptions) -> Result<(), NotSet> {
    set.set_unless_off(options.receive_timeout, sockopt::set_receive_timeout)?;
    set.set_unless_off(options.send_timeout, sockopt::set_send_timeout)?;
    set.set_unless_off(options.busy_poll, sockopt::set_busy_poll)?;
    set.set_unless_off(options.prefer_busy_poll, sockopt::set_prefer_busy_poll)?;
    set.set_unless_off(options.zero_copy, sockopt::set_zero_copy)?;
    set.set_unless_off(options.select_error_queue, sockopt::set_select_error_queue)?;
    timestamps(set, options)?;
    set.set_or_fixed(options.tx_rehash, TX_REHASH, sockopt::set_tx_rehash)?;
    set.set_unless_off(options.defer_accept, sockopt::set_defer_accept)?;
    set.set_unless_off(
        options.thin_linear_timeouts,
        sockopt::set_thin_linear_timeouts,
    )?;
    set.set_unless_off(options.tx_delay, sockopt::set_tx_delay)?;
    set.set_unless_off(options.inq, sockopt::set_inq)?;
    let rto_max = set.other(options.rto_max, |fresh| fresh.rto_max);
    set.set_or_fixed(rto_max, RTO_MAX, sockopt::set_rto_max)?;
    let rto_min = set.other(options.rto_min, |fresh| fresh.rto_min);
    set.set_or_fixed(rto_min, RTO_MIN, sockopt::set_rto_min)?;
    let delayed_ack_max = set.other(options.delayed_ack_max, |fresh| fresh.delayed_ack_max);
    set.set_or_fixed(
        delayed_ack_max,
        DELAYED_ACK_MAX,
        sockopt::set_delayed_ack_max,
    )
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
    set.set(options.window_clamp, sockopt::set_window_clamp)?;
    set.set_unless_off(options.cork, sockopt::set_cork)?;
    // The kernel switches it off by itself, for instance when the peer closes.
    set.set(options.quick_ack, sockopt::set_quick_ack)?;
    match peek_offset(options).map(|at| sockopt::set_peek_offset(set.fd, at)) {
        // Refused or left out before (`peek_offset_is_known`).
        None | Some(Err(Error::Unsupported { .. })) => {}
        Some(result) => drop(set.done(result, || peek_offset(options).unwrap_or(-1).show())?),
    }
    // A rebuilt socket has both.
    let off = |flag: Option<bool>| flag.filter(|on| !on);
    set.set(off(options.non_blocking), flags::set_non_blocking)?;
    set.set(off(options.close_on_exec), flags::set_close_on_exec)
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
    if let Some(octets) = options.send_buffer {
        let mut result = sockopt::set_send_buffer(set.fd, octets / 2);
        if lock & SEND != 0 {
            result = result.and_then(|()| {
                let force = sockopt::force_send_buffer;
                reaches(set.fd, octets, sockopt::send_buffer, force)
            });
        }
        set.done(result, || octets.to_string())?;
    }
    if let Some(octets) = options.receive_buffer {
        let mut result = sockopt::set_receive_buffer(set.fd, octets / 2);
        if lock & RECEIVE != 0 {
            result = result.and_then(|()| {
                let force = sockopt::force_receive_buffer;
                reaches(set.fd, octets, sockopt::receive_buffer, force)
            });
        }
        set.done(result, || octets.to_string())?;
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
    octets: u32,
    get: fn(BorrowedFd<'_>) -> Result<u32, Error>,
    force: fn(BorrowedFd<'_>, u32) -> Result<(), Error>,
) -> Result<(), Error> {
    if get(fd)? < octets {
        force(fd, octets / 2)?;
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

    fn unknown<T>(_: BorrowedFd<'_>, _: T) -> Result<(), Error> {
        let source = std::io::Error::from_raw_os_error(crate::options::ERRNO_NOPROTOOPT);
        let call = "setsockopt(TCP_RTO_MAX_MS)";
        Err(Error::Unsupported { call, source })
    }

    fn set_unknown(policy: Unsupported, value: Option<u32>) -> (Result<(), NotSet>, Vec<NotSet>) {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let mut not_set = Vec::new();
        let mut set = Setter::new(socket.as_fd(), policy, &mut not_set);
        let done = set.set_or_fixed(value, RTO_MAX, unknown);
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
