//! The options that an image carries: one row each, from which everything else about them follows.
//!
//! A row has the field, its type, the unit that `tcpmig inspect` shows, and how a restore brings the option back. The
//! structures that users see, those of the wire, decoding and encoding, `Arbitrary`, what `tcpmig` reads and sets, and
//! `inspect` are made of these rows. Their order is that of the wire.
//!
//! ```text
//! /// what it is                          into the documentation of the field
//! field: type "unit" { "OPTION" of, when, default };
//! field = kind(type) "unit" { own };      with code of its own
//! ```
//!
//! * *type*: `bool` or a number; or by its *kind* a text, bytes, a map of its own, or a flag that is always there.
//! * *OPTION*: its name in the tables of `tcpmig_sys::options`, which have its level, its number, the kind of its value
//!   and the kernel that first had it. One that is not `Carried` there fails the build of `tcpmig`.
//! * *of*: which sockets have it. `Any`, `Ipv4` (those with IPv4 packets) or `Ipv6` (IPv6 sockets).
//! * *when*: a restore sets it `BeforeBind`, when the socket is `Connected` and still silent, or when it is `Alive`.
//! * *default*: what decides whether it is read and set.
//!   - `Off`: every new socket has it at 0. It is carried, and set, if it is not 0.
//!   - `Starts(value)`: every new socket has this value. It is carried, and set if it differs.
//!   - `Host`: the host chooses what a new socket has. It is carried and set.
//!   - `Fixed(value)`: kernels without the option behave like this. It is carried where it exists, and one with this
//!     value goes to an older kernel.

/// The options of [`SocketOptions`](crate::SocketOptions).
#[doc(hidden)]
#[macro_export]
macro_rules! socket_fields {
    ($then:ident) => {
        $then! {
            /// `SO_REUSEADDR`, as it was before repair mode, which overwrites it.
            reuse_addr: bool "" { own };
            /// `SO_REUSEPORT`.
            reuse_port: bool "" { "SO_REUSEPORT" Any, Connected, Starts(false) };
            /// `TCP_NODELAY`.
            no_delay: bool "" { "TCP_NODELAY" Any, Connected, Starts(false) };
            /// `TCP_CORK`.
            cork: bool "" { "TCP_CORK" Any, Alive, Starts(false) };
            /// `SO_OOBINLINE`.
            oob_inline: bool "" { "SO_OOBINLINE" Any, Connected, Starts(false) };
            /// `O_NONBLOCK` of the descriptor.
            non_blocking: bool "" { own };
            /// `SO_KEEPALIVE` and its times.
            keep_alive = map(KeepAlive) "" { own };
            /// `SO_LINGER`.
            linger = map(Linger) "" { own };
            /// Receive buffer in bytes, as `SO_RCVBUF` reads it: twice what was asked for.
            receive_buffer: u32 "" { own };
            /// Send buffer in bytes, as `SO_SNDBUF` reads it: twice what was asked for.
            send_buffer: u32 "" { own };
            /// `SO_BUF_LOCK`: bit 0 the send buffer, bit 1 the receive buffer was set
            /// by the application, so that the kernel does not tune it.
            buffer_lock: u8 "" { own };
            /// `SO_RCVLOWAT`, in bytes.
            receive_low_water: u32 "" { "SO_RCVLOWAT" Any, Connected, Starts(1) };
            /// `TCP_CONGESTION`: name of the congestion control algorithm.
            congestion = text(String as str) "" { own };
            /// `TCP_USER_TIMEOUT`, in milliseconds; 0 is the host's default.
            user_timeout: u32 "_ms" { "TCP_USER_TIMEOUT" Any, Connected, Starts(0) };
            /// `TCP_NOTSENT_LOWAT`, in bytes.
            not_sent_low_water: u32 "" { "TCP_NOTSENT_LOWAT" Any, Connected, Starts(0) };
            /// `TCP_QUICKACK`.
            quick_ack: bool "" { "TCP_QUICKACK" Any, Alive, Host };
            /// `TCP_LINGER2`, in seconds; negative means not to wait in FIN-WAIT-2.
            linger2: i32 "_seconds" { "TCP_LINGER2" Any, Connected, Host };
            /// `TCP_SYNCNT`.
            syn_count: u32 "" { "TCP_SYNCNT" Any, Connected, Host };
            /// `TCP_WINDOW_CLAMP`, in bytes.
            window_clamp: u32 "" { "TCP_WINDOW_CLAMP" Any, Alive, Host };
            /// `SO_MAX_PACING_RATE`, in bytes per second; all bits set means no limit.
            max_pacing_rate: u64 "" { "SO_MAX_PACING_RATE" Any, Connected, Starts(u64::MAX) };
            /// `shutdown(SHUT_RD)`: the application has shut the receiving direction, which the peer does not see.
            shut_read: bool "" { own };
            /// `FD_CLOEXEC` of the descriptor.
            close_on_exec: bool "" { own };
            /// `SO_RCVTIMEO`, in microseconds; 0 is none.
            receive_timeout: u64 "_us" { own };
            /// `SO_SNDTIMEO`, in microseconds; 0 is none.
            send_timeout: u64 "_us" { own };
            /// The classic filter of `SO_ATTACH_FILTER`, at most 4096 instructions.
            filter = bytes(Vec<FilterInstruction> as u8) "_instructions" { own };
            /// `SO_LOCK_FILTER`: the filter, or that there is none, cannot be changed.
            lock_filter: bool "" { own };
            /// `SO_PEEK_OFF`, in bytes, if it is on.
            peek_offset: u32 "" { own };
            /// `SO_DONTROUTE`.
            dont_route: bool "" { "SO_DONTROUTE" Any, BeforeBind, Off };
            /// `SO_BUSY_POLL`, in microseconds.
            busy_poll: u32 "_us" { "SO_BUSY_POLL" Any, Connected, Off };
            /// `SO_PREFER_BUSY_POLL`.
            prefer_busy_poll: bool "" { "SO_PREFER_BUSY_POLL" Any, Connected, Off };
            /// `SO_ZEROCOPY`.
            zero_copy: bool "" { "SO_ZEROCOPY" Any, Connected, Off };
            /// `SO_SELECT_ERR_QUEUE`.
            select_error_queue: bool "" { "SO_SELECT_ERR_QUEUE" Any, Connected, Off };
            /// `SO_TIMESTAMP`.
            timestamp: bool "" { own };
            /// `SO_TIMESTAMPNS`.
            timestamp_ns: bool "" { own };
            /// The flags of `SO_TIMESTAMPING`, with the numbers of Linux.
            timestamping: u32 "" { own };
            /// Whether these three were set by their `_NEW` variants, whose seconds have 64 bits everywhere.
            timestamp_new: bool "" { own };
            /// `SO_TXREHASH`.
            tx_rehash: bool "" { "SO_TXREHASH" Any, Connected, Fixed(true) };
            /// `TCP_DEFER_ACCEPT`, in seconds.
            defer_accept: u32 "_seconds" { "TCP_DEFER_ACCEPT" Any, Connected, Off };
            /// `TCP_THIN_LINEAR_TIMEOUTS`.
            thin_linear_timeouts: bool "" { "TCP_THIN_LINEAR_TIMEOUTS" Any, Connected, Off };
            /// `TCP_TX_DELAY`, in microseconds.
            tx_delay: u32 "_us" { "TCP_TX_DELAY" Any, Connected, Off };
            /// `TCP_INQ`.
            inq: bool "" { "TCP_INQ" Any, Connected, Off };
            /// `TCP_RTO_MAX_MS`, in milliseconds.
            rto_max: u32 "_ms" { "TCP_RTO_MAX_MS" Any, Connected, Fixed(120_000) };
            /// `TCP_RTO_MIN_US`, in microseconds.
            rto_min: u32 "_us" { "TCP_RTO_MIN_US" Any, Connected, Fixed(200_000) };
            /// `TCP_DELACK_MAX_US`, in microseconds.
            delayed_ack_max: u32 "_us" { "TCP_DELACK_MAX_US" Any, Connected, Fixed(200_000) };
        }
    };
}

/// The fields of [`IpImage`](crate::IpImage), apart from the addresses and the family.
#[doc(hidden)]
#[macro_export]
macro_rules! ip_fields {
    ($then:ident) => {
        $then! {
            /// `IPV6_V6ONLY`.
            v6_only: bool "" { "IPV6_V6ONLY" Ipv6, BeforeBind, Host };
            /// The interface to which link-local addresses belong, by name, because
            /// its index differs from host to host.
            scope = text(String as str) "" { own };
            /// `IP_TTL`.
            ttl: u8 "" { "IP_TTL" Ipv4, BeforeBind, Host };
            /// `IPV6_UNICAST_HOPS`.
            hop_limit: u8 "" { "IPV6_UNICAST_HOPS" Ipv6, BeforeBind, Host };
            /// `IP_TOS`.
            tos: u8 "" { "IP_TOS" Ipv4, BeforeBind, Starts(0) };
            /// `IPV6_TCLASS`.
            traffic_class: u8 "" { "IPV6_TCLASS" Ipv6, BeforeBind, Starts(0) };
            /// The IPv6 flow label that the socket sends, 20 bits, host byte order.
            flow_label: u32 "" { own };
            /// `SO_BINDTODEVICE`, by name.
            bound_device = text(String as str) "" { own };
            /// `IP_TRANSPARENT` or `IPV6_TRANSPARENT`.
            transparent = always(bool) "" { own };
            /// `IP_FREEBIND` or `IPV6_FREEBIND`.
            freebind = always(bool) "" { own };
            /// `SO_MARK`.
            mark: u32 "" { own };
            /// `SO_PRIORITY`.
            priority: u32 "" { own };
            /// How a leased flow label is shared (`flr_share`): 1 exclusive, 2 process, 3 user, 255 any.
            flow_label_share: u8 "" { own };
            /// `IPV6_FLOWINFO_SEND`.
            flow_info_send: bool "" { own };
            /// `IPV6_FL_F_REFLECT`: the socket sends the flow label that it receives.
            flow_label_reflect: bool "" { own };
            /// `IPV6_AUTOFLOWLABEL`.
            auto_flow_label: bool "" { "IPV6_AUTOFLOWLABEL" Ipv6, BeforeBind, Host };
            /// `IP_MTU_DISCOVER`, 0 to 5.
            mtu_discover: u8 "" { "IP_MTU_DISCOVER" Ipv4, BeforeBind, Host };
            /// `IPV6_MTU_DISCOVER`, 0 to 5.
            mtu_discover_v6: u8 "" { "IPV6_MTU_DISCOVER" Ipv6, BeforeBind, Host };
            /// `IP_MINTTL`.
            min_ttl: u8 "" { "IP_MINTTL" Ipv4, BeforeBind, Off };
            /// `IPV6_MINHOPCOUNT`.
            min_hop_limit: u8 "" { "IPV6_MINHOPCOUNT" Ipv6, BeforeBind, Off };
            /// `IP_OPTIONS` that the socket sends, 1 to 40 bytes as in the IPv4 header.
            ip_options = bytes(SecretBytes as u8) "" { own };
            /// `IP_BIND_ADDRESS_NO_PORT`.
            bind_address_no_port: bool "" { "IP_BIND_ADDRESS_NO_PORT" Any, BeforeBind, Off };
            /// `IP_LOCAL_PORT_RANGE`: the lowest port in the low 16 bits, the highest in the high ones; 0 means no bound.
            local_port_range: u32 "" { "IP_LOCAL_PORT_RANGE" Any, Connected, Off };
            /// `IP_RECVERR`.
            receive_errors: bool "" { "IP_RECVERR" Ipv4, Connected, Off };
            /// `IP_PKTINFO`.
            receive_packet_info: bool "" { "IP_PKTINFO" Ipv4, Connected, Off };
            /// `IP_RECVTTL`.
            receive_ttl: bool "" { "IP_RECVTTL" Ipv4, Connected, Off };
            /// `IP_RECVTOS`.
            receive_tos: bool "" { "IP_RECVTOS" Ipv4, Connected, Off };
            /// `IPV6_RECVERR`.
            receive_errors_v6: bool "" { "IPV6_RECVERR" Ipv6, Connected, Off };
            /// `IPV6_RECVPKTINFO`.
            receive_packet_info_v6: bool "" { "IPV6_RECVPKTINFO" Ipv6, Connected, Off };
            /// `IPV6_RECVHOPLIMIT`.
            receive_hop_limit: bool "" { "IPV6_RECVHOPLIMIT" Ipv6, Connected, Off };
            /// `IPV6_RECVTCLASS`.
            receive_traffic_class: bool "" { "IPV6_RECVTCLASS" Ipv6, Connected, Off };
            /// `IPV6_FLOWINFO`.
            receive_flow_info: bool "" { "IPV6_FLOWINFO" Ipv6, Connected, Off };
            /// `IPV6_RECVHOPOPTS`.
            receive_hop_options: bool "" { "IPV6_RECVHOPOPTS" Ipv6, Connected, Off };
            /// `IPV6_RECVRTHDR`.
            receive_routing_header: bool "" { "IPV6_RECVRTHDR" Ipv6, Connected, Off };
            /// `IPV6_RECVDSTOPTS`.
            receive_destination_options: bool "" { "IPV6_RECVDSTOPTS" Ipv6, Connected, Off };
        }
    };
}
