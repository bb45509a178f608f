//! Socket options.

/// The socket options of a connection, apart from those that name its
/// addresses ([`IpImage`](crate::IpImage)).
///
/// `None` means that the image does not carry the option and a restore leaves
/// what the target host gives a new socket.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SocketOptions {
    /// `SO_REUSEADDR`, as it was before repair mode, which overwrites it.
    pub reuse_addr: Option<bool>,
    /// `SO_REUSEPORT`.
    pub reuse_port: Option<bool>,
    /// `TCP_NODELAY`.
    pub no_delay: Option<bool>,
    /// `TCP_CORK`.
    pub cork: Option<bool>,
    /// `SO_OOBINLINE`.
    pub oob_inline: Option<bool>,
    /// `O_NONBLOCK` of the descriptor.
    pub non_blocking: Option<bool>,
    /// `SO_KEEPALIVE` and its times.
    pub keep_alive: Option<KeepAlive>,
    /// `SO_LINGER`.
    pub linger: Option<Linger>,
    /// Receive buffer in octets, as `SO_RCVBUF` reads it: twice what was asked for.
    pub receive_buffer: Option<u32>,
    /// Send buffer in octets, as `SO_SNDBUF` reads it: twice what was asked for.
    pub send_buffer: Option<u32>,
    /// `SO_BUF_LOCK`: bit 0 the send buffer, bit 1 the receive buffer was set
    /// by the application, so that the kernel does not tune it.
    pub buffer_lock: Option<u8>,
    /// `SO_RCVLOWAT`, in octets.
    pub receive_low_water: Option<u32>,
    /// `TCP_CONGESTION`: name of the congestion control algorithm.
    pub congestion: Option<String>,
    /// `TCP_USER_TIMEOUT`, in milliseconds; 0 is the host's default.
    pub user_timeout: Option<u32>,
    /// `TCP_NOTSENT_LOWAT`, in octets.
    pub not_sent_low_water: Option<u32>,
    /// `TCP_QUICKACK`.
    pub quick_ack: Option<bool>,
    /// `TCP_LINGER2`, in seconds; negative means not to wait in FIN-WAIT-2.
    pub linger2: Option<i32>,
    /// `TCP_SYNCNT`.
    pub syn_count: Option<u32>,
    /// `TCP_WINDOW_CLAMP`, in octets.
    pub window_clamp: Option<u32>,
    /// `SO_MAX_PACING_RATE`, in octets per second; all bits set is no limit.
    pub max_pacing_rate: Option<u64>,
    /// `shutdown(SHUT_RD)`: the application has shut the receiving direction, which the peer does not see.
    pub shut_read: Option<bool>,
    /// `FD_CLOEXEC` of the descriptor.
    pub close_on_exec: Option<bool>,
    /// `SO_RCVTIMEO`, in microseconds; 0 is none.
    pub receive_timeout: Option<u64>,
    /// `SO_SNDTIMEO`, in microseconds; 0 is none.
    pub send_timeout: Option<u64>,
    /// The classic filter of `SO_ATTACH_FILTER`, at most 4096 instructions.
    pub filter: Option<Vec<FilterInstruction>>,
    /// `SO_LOCK_FILTER`: the filter, or that there is none, cannot be changed.
    pub lock_filter: Option<bool>,
    /// `SO_PEEK_OFF`, in octets, if it is on.
    pub peek_offset: Option<u32>,
    /// `SO_DONTROUTE`.
    pub dont_route: Option<bool>,
    /// `SO_BUSY_POLL`, in microseconds.
    pub busy_poll: Option<u32>,
    /// `SO_PREFER_BUSY_POLL`.
    pub prefer_busy_poll: Option<bool>,
    /// `SO_ZEROCOPY`.
    pub zero_copy: Option<bool>,
    /// `SO_SELECT_ERR_QUEUE`.
    pub select_error_queue: Option<bool>,
    /// `SO_TIMESTAMP`.
    pub timestamp: Option<bool>,
    /// `SO_TIMESTAMPNS`.
    pub timestamp_ns: Option<bool>,
    /// The flags of `SO_TIMESTAMPING`, with the numbers of Linux.
    pub timestamping: Option<u32>,
    /// Whether these three were set by their `_NEW` variants, whose seconds have 64 bits everywhere.
    pub timestamp_new: Option<bool>,
    /// `SO_TXREHASH`.
    pub tx_rehash: Option<bool>,
    /// `TCP_DEFER_ACCEPT`, in seconds.
    pub defer_accept: Option<u32>,
    /// `TCP_THIN_LINEAR_TIMEOUTS`.
    pub thin_linear_timeouts: Option<bool>,
    /// `TCP_TX_DELAY`, in microseconds.
    pub tx_delay: Option<u32>,
    /// `TCP_INQ`.
    pub inq: Option<bool>,
    /// `TCP_RTO_MAX_MS`, in milliseconds.
    pub rto_max: Option<u32>,
    /// `TCP_RTO_MIN_US`, in microseconds.
    pub rto_min: Option<u32>,
    /// `TCP_DELACK_MAX_US`, in microseconds.
    pub delayed_ack_max: Option<u32>,
}

/// An instruction of a classic filter: `struct sock_filter`, numbers in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterInstruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if a comparison holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// `SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL` and `TCP_KEEPCNT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeepAlive {
    /// Whether probes are sent.
    pub on: bool,
    /// Seconds of silence before the first probe.
    pub idle: u32,
    /// Seconds between probes.
    pub interval: u32,
    /// Unanswered probes after which the connection is given up.
    pub count: u32,
}

/// `SO_LINGER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Linger {
    /// Whether `close` waits.
    pub on: bool,
    /// Seconds to wait; 0 makes `close` reset the connection.
    pub seconds: u32,
}
