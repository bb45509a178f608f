//! Options of the level `IPPROTO_TCP`.

use super::known_options;
use crate::uapi;

known_options! {
    /// Options of the level `IPPROTO_TCP`.
    TCP, Tcp:
    1 "TCP_NODELAY" Carried "" {
        /// Small segments go out at once.
        no_delay, set_no_delay: bool = libc::TCP_NODELAY
    };
    2 "TCP_MAXSEG" Carried "as what both ends negotiated; what it asked for acts on a handshake only" {
        /// Maximum segment size; in repair mode it reads `mss_clamp`.
        max_segment, set_max_segment: u32 = libc::TCP_MAXSEG
    };
    3 "TCP_CORK" Carried "" {
        /// Segments below the MSS are held back.
        cork, set_cork: bool = libc::TCP_CORK
    };
    4 "TCP_KEEPIDLE" Carried "" {
        /// Idle time before keepalive probes, in seconds.
        keep_idle, set_keep_idle: u32 = libc::TCP_KEEPIDLE
    };
    5 "TCP_KEEPINTVL" Carried "" {
        /// Time between keepalive probes, in seconds.
        keep_interval, set_keep_interval: u32 = libc::TCP_KEEPINTVL
    };
    6 "TCP_KEEPCNT" Carried "" {
        /// Unanswered keepalive probes before the connection is dropped.
        keep_count, set_keep_count: u32 = libc::TCP_KEEPCNT
    };
    7 "TCP_SYNCNT" Carried "" {
        /// Retransmissions of a SYN.
        syn_count, set_syn_count: u32 = libc::TCP_SYNCNT
    };
    8 "TCP_LINGER2" Carried "" {
        /// Time in `FIN_WAIT2` after the last descriptor is closed, in seconds.
        linger2, set_linger2: i32 = libc::TCP_LINGER2
    };
    9 "TCP_DEFER_ACCEPT" Carried "" {
        /// How long a listener waits for data before it hands a connection out, in seconds.
        defer_accept, set_defer_accept: u32 = libc::TCP_DEFER_ACCEPT
    };
    10 "TCP_WINDOW_CLAMP" Carried "" {
        /// Bound on the advertised window, in bytes; 0 for none.
        window_clamp, set_window_clamp: u32 = libc::TCP_WINDOW_CLAMP
    };
    11 "TCP_INFO" DoesNotMatter "it only tells; its counters start anew";
    12 "TCP_QUICKACK" Carried "as the kernel left it" {
        /// Acknowledgements are sent at once. The kernel changes it by itself.
        quick_ack, set_quick_ack: bool = libc::TCP_QUICKACK
    };
    13 "TCP_CONGESTION" Carried "the name; not what the algorithm has measured";
    14 "TCP_MD5SIG" Refused "the kernel does not hand the keys out";
    16 "TCP_THIN_LINEAR_TIMEOUTS" Carried "" {
        /// Retransmission timeouts of thin streams do not double.
        thin_linear_timeouts, set_thin_linear_timeouts: bool = libc::TCP_THIN_LINEAR_TIMEOUTS
    };
    17 "TCP_THIN_DUPACK" DoesNotMatter "the kernel ignores it";
    18 "TCP_USER_TIMEOUT" Carried "" {
        /// Time that sent data may stay unacknowledged, in milliseconds.
        user_timeout, set_user_timeout: u32 = libc::TCP_USER_TIMEOUT
    };
    19 "TCP_REPAIR" Refused "somebody else is reading or rebuilding the connection";
    20 "TCP_REPAIR_QUEUE" DoesNotMatter "of repair mode, by which connections are moved";
    21 "TCP_QUEUE_SEQ" Carried "as the connection's sequence numbers" {
        /// Sequence number of the selected queue's end; can be set in CLOSE only. Repair.
        queue_sequence, set_queue_sequence: u32 = libc::TCP_QUEUE_SEQ
    };
    22 "TCP_REPAIR_OPTIONS" Carried "as what both ends negotiated";
    23 "TCP_FASTOPEN" DoesNotMatter "of listeners, with which it is carried";
    24 "TCP_TIMESTAMP" Carried "as the clock of the timestamp option" {
        /// The clock of the timestamp option. Bit 0 tells and sets its unit: 1 for
        /// microseconds, 0 for milliseconds (Linux 6.7; on older ones it is part of the value).
        /// Setting it needs repair.
        timestamp, set_timestamp: u32 = libc::TCP_TIMESTAMP
    };
    25 "TCP_NOTSENT_LOWAT" Carried "" {
        /// Unsent bytes below which the socket is writable.
        not_sent_low_water, set_not_sent_low_water: u32 = libc::TCP_NOTSENT_LOWAT
    };
    26 "TCP_CC_INFO" DoesNotMatter "it only tells what the congestion control has measured";
    27 "TCP_SAVE_SYN" DoesNotMatter "of listeners: what it saves is of the connection's opening";
    28 "TCP_SAVED_SYN" DoesNotMatter "it only tells of the connection's opening, once";
    29 "TCP_REPAIR_WINDOW" Carried "as the connection's windows";
    30 "TCP_FASTOPEN_CONNECT" DoesNotMatter "it acts on `connect`; a connection with data in its SYN is refused while it is being opened";
    31 "TCP_ULP" Refused "the layer (kernel TLS, for example) has state of its own";
    32 "TCP_MD5SIG_EXT" Refused "as `TCP_MD5SIG`";
    33 "TCP_FASTOPEN_KEY" DoesNotMatter "of listeners: clients fall back to an ordinary handshake";
    34 "TCP_FASTOPEN_NO_COOKIE" DoesNotMatter "it acts on `connect` and on listeners";
    35 "TCP_ZEROCOPY_RECEIVE" DoesNotMatter "an action: it maps what was received into memory";
    36 "TCP_INQ" = "TCP_CM_INQ" Carried "" {
        /// What is received has the bytes that wait beside it (Linux 4.18).
        inq, set_inq: bool = libc::TCP_INQ
    };
    37 "TCP_TX_DELAY" Carried "" {
        /// Delay of outgoing packets, in microseconds (Linux 5.4).
        tx_delay, set_tx_delay: u32 = uapi::TCP_TX_DELAY
    };
    38 "TCP_AO_ADD_KEY", since "6.7" Refused "as `TCP_AO_INFO`";
    39 "TCP_AO_DEL_KEY", since "6.7" DoesNotMatter "an action";
    40 "TCP_AO_INFO", since "6.7" Refused "the kernel does not hand the keys out";
    41 "TCP_AO_GET_KEYS", since "6.7" DoesNotMatter "it only tells of keys, without the keys; a connection that has some is refused";
    42 "TCP_AO_REPAIR", since "6.7" DoesNotMatter "of repair mode; a connection that signs is refused";
    43 "TCP_IS_MPTCP", since "6.14" DoesNotMatter "it only tells whether the connection is one of multipath TCP, which is refused";
    44 "TCP_RTO_MAX_MS", since "6.15" Carried "from Linux 6.15 on; to an older kernel with the value that it has built in" {
        /// Longest retransmission timeout, in milliseconds (Linux 6.15).
        rto_max, set_rto_max: u32 = uapi::TCP_RTO_MAX_MS
    };
    45 "TCP_RTO_MIN_US", since "6.15" Carried "from Linux 6.15 on; to an older kernel with the value that it has built in" {
        /// Shortest retransmission timeout, in microseconds (Linux 6.15).
        rto_min, set_rto_min: u32 = uapi::TCP_RTO_MIN_US
    };
    46 "TCP_DELACK_MAX_US", since "6.15" Carried "from Linux 6.15 on; to an older kernel with the value that it has built in" {
        /// Longest delay of an acknowledgement, in microseconds (Linux 6.15).
        delayed_ack_max, set_delayed_ack_max: u32 = uapi::TCP_DELACK_MAX_US
    };
}
