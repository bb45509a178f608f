//! One safe function per socket option.
//!
//! Every function is the one call that its first line names. None of them
//! changes anything besides. Reading needs no privilege; the options of repair
//! mode need `CAP_NET_ADMIN` in the user namespace that owns the socket's
//! network namespace.

use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;
use crate::uapi::{self, RepairOption, RepairWindow};

/// Whether a socket is under repair, and how to leave repair mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// `TCP_REPAIR_ON`.
    On,
    /// `TCP_REPAIR_OFF`: in ESTABLISHED one ACK at `snd_una - 1` goes out, which makes the
    /// peer answer with its own acknowledgement and window.
    Off,
    /// `TCP_REPAIR_OFF_NO_WP`: nothing is sent (Linux 4.19).
    OffQuiet,
}

/// The queue that the queue calls of repair mode act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// `TCP_NO_QUEUE`.
    None,
    /// `TCP_RECV_QUEUE`.
    Receive,
    /// `TCP_SEND_QUEUE`.
    Send,
}

macro_rules! options {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $ty:ty as $raw:ty = $level:ident, $name:expr, $text:literal;)*) => {$(
        #[doc = concat!("`getsockopt(fd, ", $text, ")`")]
        #[doc = ""]
        $(#[$doc])*
        #[doc = ""]
        #[doc = "# Errors"]
        #[doc = ""]
        #[doc = "[`Error`] of the call."]
        #[doc(alias = $text)]
        pub fn $get(fd: BorrowedFd<'_>) -> Result<$ty> {
            let value: $raw = raw::get(fd, $level, $name, concat!("getsockopt(", $text, ")"))?;
            Ok(<$ty as Cooked<$raw>>::cook(value))
        }

        #[doc = concat!("`setsockopt(fd, ", $text, ")`")]
        #[doc = ""]
        $(#[$doc])*
        #[doc = ""]
        #[doc = "# Errors"]
        #[doc = ""]
        #[doc = "[`Error`] of the call; the option is then as it was."]
        #[doc(alias = $text)]
        pub fn $set(fd: BorrowedFd<'_>, value: $ty) -> Result<()> {
            raw::set(fd, $level, $name, concat!("setsockopt(", $text, ")"), <$ty as Cooked<$raw>>::raw(value))
        }
    )*};
}

/// The value of an option as its type of Rust and as the kernel's.
trait Cooked<R> {
    fn cook(raw: R) -> Self;
    fn raw(self) -> R;
}

impl Cooked<i32> for bool {
    fn cook(raw: i32) -> Self {
        raw != 0
    }
    fn raw(self) -> i32 {
        i32::from(self)
    }
}

impl Cooked<i32> for i32 {
    fn cook(raw: i32) -> Self {
        raw
    }
    fn raw(self) -> i32 {
        self
    }
}

impl Cooked<u32> for u32 {
    fn cook(raw: u32) -> Self {
        raw
    }
    fn raw(self) -> u32 {
        self
    }
}

impl Cooked<u64> for u64 {
    fn cook(raw: u64) -> Self {
        raw
    }
    fn raw(self) -> u64 {
        self
    }
}

options! {
    /// Local addresses may be bound again. In repair mode it reads 2, and 0 after
    /// it: read it before, set it after.
    reuse_addr, set_reuse_addr: i32 as i32 = SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR";
    /// Several sockets share the port.
    reuse_port, set_reuse_port: bool as i32 = SOL_SOCKET, libc::SO_REUSEPORT, "SO_REUSEPORT";
    /// Keepalive probes are sent.
    keep_alive, set_keep_alive: bool as i32 = SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE";
    /// Urgent data stays in the stream.
    oob_inline, set_oob_inline: bool as i32 = SOL_SOCKET, libc::SO_OOBINLINE, "SO_OOBINLINE";
    /// Priority of outgoing packets.
    priority, set_priority: u32 as u32 = SOL_SOCKET, libc::SO_PRIORITY, "SO_PRIORITY";
    /// Firewall mark of outgoing packets. Setting it needs a privilege.
    mark, set_mark: u32 as u32 = SOL_SOCKET, libc::SO_MARK, "SO_MARK";
    /// Receive buffer in octets, as the kernel accounts (twice what was asked for).
    receive_buffer, set_receive_buffer: u32 as u32 = SOL_SOCKET, libc::SO_RCVBUF, "SO_RCVBUF";
    /// Send buffer in octets, as the kernel accounts (twice what was asked for).
    send_buffer, set_send_buffer: u32 as u32 = SOL_SOCKET, libc::SO_SNDBUF, "SO_SNDBUF";
    /// Which buffer sizes are locked against autotuning: bit 0 send, bit 1 receive
    /// (Linux 5.14).
    buffer_lock, set_buffer_lock: u32 as u32 = SOL_SOCKET, uapi::SO_BUF_LOCK, "SO_BUF_LOCK";
    /// Octets that make the socket readable.
    receive_low_water, set_receive_low_water: u32 as u32 = SOL_SOCKET, libc::SO_RCVLOWAT, "SO_RCVLOWAT";
    /// Offset that `recv(MSG_PEEK)` starts at; -1 for none.
    peek_offset, set_peek_offset: i32 as i32 = SOL_SOCKET, libc::SO_PEEK_OFF, "SO_PEEK_OFF";

    /// Addresses that are not on this host may be bound (`CAP_NET_ADMIN`).
    transparent, set_transparent: bool as i32 = IPPROTO_IP, libc::IP_TRANSPARENT, "IP_TRANSPARENT";
    /// Addresses that are not yet on this host may be bound.
    freebind, set_freebind: bool as i32 = IPPROTO_IP, libc::IP_FREEBIND, "IP_FREEBIND";
    /// Type of service of IPv4 packets.
    tos, set_tos: i32 as i32 = IPPROTO_IP, libc::IP_TOS, "IP_TOS";
    /// Time to live of IPv4 packets.
    ttl, set_ttl: i32 as i32 = IPPROTO_IP, libc::IP_TTL, "IP_TTL";
    /// As [`transparent`], for an IPv6 socket.
    transparent_v6, set_transparent_v6: bool as i32 = IPPROTO_IPV6, libc::IPV6_TRANSPARENT, "IPV6_TRANSPARENT";
    /// As [`freebind`], for an IPv6 socket.
    freebind_v6, set_freebind_v6: bool as i32 = IPPROTO_IPV6, libc::IPV6_FREEBIND, "IPV6_FREEBIND";
    /// An IPv6 socket that does not take IPv4 connections.
    v6_only, set_v6_only: bool as i32 = IPPROTO_IPV6, libc::IPV6_V6ONLY, "IPV6_V6ONLY";
    /// Traffic class of IPv6 packets.
    traffic_class, set_traffic_class: i32 as i32 = IPPROTO_IPV6, libc::IPV6_TCLASS, "IPV6_TCLASS";
    /// Hop limit of IPv6 packets.
    hop_limit, set_hop_limit: i32 as i32 = IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS";

    /// Small segments go out at once.
    no_delay, set_no_delay: bool as i32 = IPPROTO_TCP, libc::TCP_NODELAY, "TCP_NODELAY";
    /// Segments below the MSS are held back.
    cork, set_cork: bool as i32 = IPPROTO_TCP, libc::TCP_CORK, "TCP_CORK";
    /// Idle time before keepalive probes, in seconds.
    keep_idle, set_keep_idle: u32 as u32 = IPPROTO_TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE";
    /// Time between keepalive probes, in seconds.
    keep_interval, set_keep_interval: u32 as u32 = IPPROTO_TCP, libc::TCP_KEEPINTVL, "TCP_KEEPINTVL";
    /// Unanswered keepalive probes before the connection is dropped.
    keep_count, set_keep_count: u32 as u32 = IPPROTO_TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT";
    /// Time that sent data may stay unacknowledged, in milliseconds.
    user_timeout, set_user_timeout: u32 as u32 = IPPROTO_TCP, libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT";
    /// Time in `FIN_WAIT2` after the last descriptor is closed, in seconds.
    linger2, set_linger2: i32 as i32 = IPPROTO_TCP, libc::TCP_LINGER2, "TCP_LINGER2";
    /// Retransmissions of a SYN.
    syn_count, set_syn_count: u32 as u32 = IPPROTO_TCP, libc::TCP_SYNCNT, "TCP_SYNCNT";
    /// Bound on the advertised window, in octets; 0 for none.
    window_clamp, set_window_clamp: u32 as u32 = IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP";
    /// Unsent octets below which the socket is writable.
    not_sent_low_water, set_not_sent_low_water: u32 as u32 = IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT";
    /// Maximum segment size; under repair it reads `mss_clamp`.
    max_segment, set_max_segment: u32 as u32 = IPPROTO_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG";
    /// Sequence number of the selected queue's end; can be set in CLOSE only. Repair.
    queue_sequence, set_queue_sequence: u32 as u32 = IPPROTO_TCP, libc::TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ";
    /// The clock of the timestamp option. Bit 0 tells and sets its unit: 1 for
    /// microseconds, 0 for milliseconds (Linux 6.7; on older ones it is part of the value).
    /// Setting it needs repair.
    timestamp, set_timestamp: u32 as u32 = IPPROTO_TCP, libc::TCP_TIMESTAMP, "TCP_TIMESTAMP";
}

/// `getsockopt(fd, SO_ERROR)`: the pending error, which it clears.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_ERROR")]
pub fn take_error(fd: BorrowedFd<'_>) -> Result<Option<std::io::Error>> {
    let code: i32 = raw::get(fd, SOL_SOCKET, libc::SO_ERROR, "getsockopt(SO_ERROR)")?;
    Ok((code != 0).then(|| std::io::Error::from_raw_os_error(code)))
}

/// `getsockopt(fd, SO_DOMAIN)`: `AF_INET` or `AF_INET6`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_DOMAIN")]
pub fn domain(fd: BorrowedFd<'_>) -> Result<i32> {
    raw::get(fd, SOL_SOCKET, libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")
}

/// `getsockopt(fd, SO_PROTOCOL)`: `IPPROTO_TCP`, or `IPPROTO_MPTCP`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_PROTOCOL")]
pub fn protocol(fd: BorrowedFd<'_>) -> Result<i32> {
    raw::get(fd, SOL_SOCKET, libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")
}

/// `getsockopt(fd, SO_LINGER)`: the seconds, if lingering is on.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_LINGER")]
pub fn linger(fd: BorrowedFd<'_>) -> Result<Option<u32>> {
    let value: libc::linger = raw::get(fd, SOL_SOCKET, libc::SO_LINGER, "getsockopt(SO_LINGER)")?;
    Ok((value.l_onoff != 0).then_some(value.l_linger.unsigned_abs()))
}

/// `setsockopt(fd, SO_LINGER)`: the seconds, or off.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_LINGER")]
pub fn set_linger(fd: BorrowedFd<'_>, seconds: Option<u32>) -> Result<()> {
    let value = libc::linger {
        l_onoff: i32::from(seconds.is_some()),
        l_linger: i32::try_from(seconds.unwrap_or(0)).unwrap_or(i32::MAX),
    };
    raw::set(
        fd,
        SOL_SOCKET,
        libc::SO_LINGER,
        "setsockopt(SO_LINGER)",
        value,
    )
}

/// `setsockopt(fd, SO_RCVBUFFORCE)`: past the limit of `net.core.rmem_max`.
///
/// # Errors
///
/// [`Error`] of the call; it needs `CAP_NET_ADMIN` in the initial user namespace.
#[doc(alias = "SO_RCVBUFFORCE")]
pub fn force_receive_buffer(fd: BorrowedFd<'_>, octets: u32) -> Result<()> {
    const CALL: &str = "setsockopt(SO_RCVBUFFORCE)";
    raw::set(fd, SOL_SOCKET, libc::SO_RCVBUFFORCE, CALL, octets)
}

/// `setsockopt(fd, SO_SNDBUFFORCE)`: past the limit of `net.core.wmem_max`.
///
/// # Errors
///
/// [`Error`] of the call; it needs `CAP_NET_ADMIN` in the initial user namespace.
#[doc(alias = "SO_SNDBUFFORCE")]
pub fn force_send_buffer(fd: BorrowedFd<'_>, octets: u32) -> Result<()> {
    const CALL: &str = "setsockopt(SO_SNDBUFFORCE)";
    raw::set(fd, SOL_SOCKET, libc::SO_SNDBUFFORCE, CALL, octets)
}

fn text(fd: BorrowedFd<'_>, level: i32, name: i32, call: &'static str) -> Result<String> {
    let mut buffer = [0_u8; 64];
    let len = raw::get_octets(fd, level, name, call, &mut buffer)?.min(buffer.len());
    let octets = &buffer[..len];
    let end = octets.iter().position(|&c| c == 0).unwrap_or(len);
    Ok(String::from_utf8_lossy(&octets[..end]).into_owned())
}

/// `getsockopt(fd, TCP_CONGESTION)`: the name of the congestion control.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_CONGESTION")]
pub fn congestion(fd: BorrowedFd<'_>) -> Result<String> {
    text(
        fd,
        IPPROTO_TCP,
        libc::TCP_CONGESTION,
        "getsockopt(TCP_CONGESTION)",
    )
}

/// `setsockopt(fd, TCP_CONGESTION)`
///
/// # Errors
///
/// [`Error`] of the call: ENOENT if the kernel does not have it.
#[doc(alias = "TCP_CONGESTION")]
pub fn set_congestion(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_CONGESTION)";
    raw::set_slice(fd, IPPROTO_TCP, libc::TCP_CONGESTION, CALL, name.as_bytes())
}

/// `getsockopt(fd, SO_BINDTODEVICE)`: the device that the socket is bound to.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "SO_BINDTODEVICE")]
pub fn bound_device(fd: BorrowedFd<'_>) -> Result<Option<String>> {
    const CALL: &str = "getsockopt(SO_BINDTODEVICE)";
    let name = text(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, CALL)?;
    Ok((!name.is_empty()).then_some(name))
}

/// `setsockopt(fd, SO_BINDTODEVICE)`
///
/// # Errors
///
/// [`Error`] of the call: ENODEV if there is no such device.
#[doc(alias = "SO_BINDTODEVICE")]
pub fn set_bound_device(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    const CALL: &str = "setsockopt(SO_BINDTODEVICE)";
    raw::set_slice(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, CALL, name.as_bytes())
}

/// `getsockopt(fd, TCP_ULP)`: the upper-layer protocol attached (`tls`, …).
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_ULP")]
pub fn upper_layer(fd: BorrowedFd<'_>) -> Result<Option<String>> {
    let name = text(fd, IPPROTO_TCP, libc::TCP_ULP, "getsockopt(TCP_ULP)")?;
    Ok((!name.is_empty()).then_some(name))
}

/// `getsockopt(fd, TCP_REPAIR)`: whether the socket is under repair.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_REPAIR")]
pub fn repair(fd: BorrowedFd<'_>) -> Result<bool> {
    let value: i32 = raw::get(fd, IPPROTO_TCP, libc::TCP_REPAIR, "getsockopt(TCP_REPAIR)")?;
    Ok(value != 0)
}

/// `setsockopt(fd, TCP_REPAIR)`
///
/// Repair stops nothing in the kernel: data that arrives is queued and
/// acknowledged, timers transmit. `SO_REUSEADDR` is 0 after it, whatever it was.
///
/// # Errors
///
/// [`Error::NoPermission`] without `CAP_NET_ADMIN`, and for a listener;
/// [`Error::Unsupported`] for a multipath socket.
#[doc(alias = "TCP_REPAIR")]
pub fn set_repair(fd: BorrowedFd<'_>, repair: Repair) -> Result<()> {
    let value = match repair {
        Repair::On => uapi::TCP_REPAIR_ON,
        Repair::Off => uapi::TCP_REPAIR_OFF,
        Repair::OffQuiet => uapi::TCP_REPAIR_OFF_NO_WP,
    };
    raw::set(
        fd,
        IPPROTO_TCP,
        libc::TCP_REPAIR,
        "setsockopt(TCP_REPAIR)",
        value,
    )
}

/// `setsockopt(fd, TCP_REPAIR_QUEUE)`: selects the queue. Repair.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_REPAIR_QUEUE")]
pub fn set_repair_queue(fd: BorrowedFd<'_>, queue: Queue) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_REPAIR_QUEUE)";
    let value = match queue {
        Queue::None => uapi::TCP_NO_QUEUE,
        Queue::Receive => uapi::TCP_RECV_QUEUE,
        Queue::Send => uapi::TCP_SEND_QUEUE,
    };
    raw::set(fd, IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, CALL, value)
}

/// `getsockopt(fd, TCP_REPAIR_WINDOW)`: the windows. Repair.
///
/// # Errors
///
/// [`Error`] of the call; [`Error::Length`] from a kernel with another layout.
#[doc(alias = "TCP_REPAIR_WINDOW")]
pub fn repair_window(fd: BorrowedFd<'_>) -> Result<RepairWindow> {
    const CALL: &str = "getsockopt(TCP_REPAIR_WINDOW)";
    raw::get(fd, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, CALL)
}

/// `setsockopt(fd, TCP_REPAIR_WINDOW)`: the windows. Repair.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL if `max_window` is below `snd_wnd`, `snd_wl1` after
/// `rcv_nxt + rcv_wnd`, or `rcv_wup` after `rcv_nxt`.
#[doc(alias = "TCP_REPAIR_WINDOW")]
pub fn set_repair_window(fd: BorrowedFd<'_>, window: RepairWindow) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_REPAIR_WINDOW)";
    raw::set(fd, IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, CALL, window)
}

/// `setsockopt(fd, TCP_REPAIR_OPTIONS)`: what the handshake negotiated. Repair,
/// ESTABLISHED only.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_REPAIR_OPTIONS")]
pub fn set_repair_options(fd: BorrowedFd<'_>, negotiated: &Negotiated) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_REPAIR_OPTIONS)";
    let mut options = Vec::with_capacity(4);
    let mut push = |opt_code, opt_val| options.push(RepairOption { opt_code, opt_val });
    push(uapi::TCPOPT_MSS, u32::from(negotiated.mss_clamp));
    if let Some((snd, rcv)) = negotiated.window_scale {
        push(uapi::TCPOPT_WINDOW, u32::from(snd) | u32::from(rcv) << 16);
    }
    if negotiated.sack {
        push(uapi::TCPOPT_SACK_PERMITTED, 0);
    }
    if negotiated.timestamps {
        push(uapi::TCPOPT_TIMESTAMP, 0);
    }
    raw::set_slice(fd, IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, CALL, &options)
}

/// What the two ends agreed on in the handshake (RFC 9293 section 3.2, RFC 7323,
/// RFC 2018).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Largest segment that the peer takes, in octets.
    pub mss_clamp: u16,
    /// Window scale of the peer's windows and of ours, as shifts.
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// The timestamp option.
    pub timestamps: bool,
}

/// `ioctl(fd, SIOCINQ)`: octets that can be read, up to the urgent mark.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a listener.
#[doc(alias = "SIOCINQ")]
pub fn receive_queue_len(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(raw::ioctl_int(fd, libc::FIONREAD, "ioctl(SIOCINQ)")?.unsigned_abs())
}

/// `ioctl(fd, SIOCOUTQ)`: octets written and not yet acknowledged, a FIN counted as one.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a listener.
#[doc(alias = "SIOCOUTQ")]
pub fn send_queue_len(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(raw::ioctl_int(fd, libc::TIOCOUTQ, "ioctl(SIOCOUTQ)")?.unsigned_abs())
}

/// `ioctl(fd, SIOCOUTQNSD)`: octets written and not yet sent, a FIN counted as one.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a listener.
#[doc(alias = "SIOCOUTQNSD")]
pub fn unsent_len(fd: BorrowedFd<'_>) -> Result<u32> {
    const SIOCOUTQNSD: libc::c_ulong = 0x894B;
    Ok(raw::ioctl_int(fd, SIOCOUTQNSD, "ioctl(SIOCOUTQNSD)")?.unsigned_abs())
}
