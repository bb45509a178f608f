//! Options of the level `SOL_SOCKET`, with the numbers of `asm-generic/socket.h`.

use super::known_options;
use crate::uapi;

known_options! {
    /// Options of the level `SOL_SOCKET`.
    SOCKET, Socket:
    1 "SO_DEBUG" DoesNotMatter "the kernel's own tracing on this host";
    2 "SO_REUSEADDR" Carried "as it was before repair mode, which overwrites it" {
        /// Local addresses may be bound again. In repair mode it reads 2, and 0 after
        /// it: read it before, set it after.
        reuse_addr, set_reuse_addr: i32 = libc::SO_REUSEADDR
    };
    3 "SO_TYPE" DoesNotMatter "it only tells: a stream";
    4 "SO_ERROR" Carried "the pending error of a connection that has ended";
    5 "SO_DONTROUTE" Carried "" {
        /// Packets go to neighbours only, by no route.
        dont_route, set_dont_route: bool = libc::SO_DONTROUTE
    };
    6 "SO_BROADCAST" DoesNotMatter "it permits datagrams to broadcast addresses";
    7 "SO_SNDBUF" Carried "the size above `net.core.wmem_max` only with `CAP_NET_ADMIN` in the initial user namespace" {
        /// Send buffer in bytes, as the kernel accounts (twice what was asked for).
        send_buffer, set_send_buffer: u32 = libc::SO_SNDBUF
    };
    8 "SO_RCVBUF" Carried "the size above `net.core.rmem_max` only with `CAP_NET_ADMIN` in the initial user namespace" {
        /// Receive buffer in bytes, as the kernel accounts (twice what was asked for).
        receive_buffer, set_receive_buffer: u32 = libc::SO_RCVBUF
    };
    9 "SO_KEEPALIVE" Carried "the time that has passed starts anew" {
        /// Keepalive probes are sent.
        keep_alive, set_keep_alive: bool = libc::SO_KEEPALIVE
    };
    10 "SO_OOBINLINE" Carried "" {
        /// Urgent data stays in the stream.
        oob_inline, set_oob_inline: bool = libc::SO_OOBINLINE
    };
    11 "SO_NO_CHECK" DoesNotMatter "it leaves out checksums of UDP, never those of TCP";
    12 "SO_PRIORITY" Carried "" {
        /// Priority of outgoing packets.
        priority, set_priority: u32 = libc::SO_PRIORITY
    };
    13 "SO_LINGER" Carried "";
    14 "SO_BSDCOMPAT" DoesNotMatter "the kernel ignores it";
    15 "SO_REUSEPORT" Carried "" {
        /// Several sockets share the port.
        reuse_port, set_reuse_port: bool = libc::SO_REUSEPORT
    };
    16 "SO_PASSCRED" DoesNotMatter "of UNIX sockets";
    17 "SO_PEERCRED" DoesNotMatter "of UNIX sockets";
    18 "SO_RCVLOWAT" Carried "" {
        /// Bytes that make the socket readable.
        receive_low_water, set_receive_low_water: u32 = libc::SO_RCVLOWAT
    };
    19 "SO_SNDLOWAT" DoesNotMatter "it only tells, and always 1";
    20 "SO_RCVTIMEO" = "SO_RCVTIMEO_OLD" Carried "";
    21 "SO_SNDTIMEO" = "SO_SNDTIMEO_OLD" Carried "";
    22 "SO_SECURITY_AUTHENTICATION" DoesNotMatter "the kernel does not have it";
    23 "SO_SECURITY_ENCRYPTION_TRANSPORT" DoesNotMatter "the kernel does not have it";
    24 "SO_SECURITY_ENCRYPTION_NETWORK" DoesNotMatter "the kernel does not have it";
    25 "SO_BINDTODEVICE" Carried "by the device's name";
    26 "SO_ATTACH_FILTER" = "SO_GET_FILTER" Carried "the classic filter";
    27 "SO_DETACH_FILTER" = "SO_DETACH_BPF" DoesNotMatter "an action";
    28 "SO_PEERNAME" Carried "as the address of the peer";
    29 "SO_TIMESTAMP" = "SO_TIMESTAMP_OLD" Carried "" {
        /// What is received has a timestamp in microseconds beside it.
        timestamps, set_timestamps: bool = libc::SO_TIMESTAMP
    };
    30 "SO_ACCEPTCONN" DoesNotMatter "it only tells whether the socket listens";
    31 "SO_PEERSEC" DoesNotMatter "it only tells the label that a security module gave the peer on this host";
    32 "SO_SNDBUFFORCE" Carried "as `SO_SNDBUF`";
    33 "SO_RCVBUFFORCE" Carried "as `SO_RCVBUF`";
    34 "SO_PASSSEC" DoesNotMatter "of UNIX sockets";
    35 "SO_TIMESTAMPNS" = "SO_TIMESTAMPNS_OLD" Carried "" {
        /// Like [`timestamps`], but in nanoseconds.
        timestamps_ns, set_timestamps_ns: bool = libc::SO_TIMESTAMPNS
    };
    36 "SO_MARK" Carried "before routing is decided" {
        /// Firewall mark of outgoing packets. Setting it needs a privilege.
        mark, set_mark: u32 = libc::SO_MARK
    };
    37 "SO_TIMESTAMPING" = "SO_TIMESTAMPING_OLD" Carried "not the numbers that `SOF_TIMESTAMPING_OPT_ID` counts, which start anew, nor unread notifications" {
        /// Which timestamps of packets are made and reported: flags of `linux/net_tstamp.h`.
        timestamping, set_timestamping: u32 = libc::SO_TIMESTAMPING
    };
    38 "SO_PROTOCOL" DoesNotMatter "it only tells: TCP (multipath TCP is refused)";
    39 "SO_DOMAIN" Carried "as the family of the socket";
    40 "SO_RXQ_OVFL" DoesNotMatter "it counts datagrams that were dropped";
    41 "SO_WIFI_STATUS" DoesNotMatter "it reports about datagrams";
    42 "SO_PEEK_OFF" Carried "from Linux 6.9 on (IPv6: 6.11)" {
        /// Offset that `recv(MSG_PEEK)` starts at; -1 for none. TCP has it from Linux 6.9 on, over IPv6 from 6.11.
        peek_offset, set_peek_offset: i32 = libc::SO_PEEK_OFF
    };
    43 "SO_NOFCS" DoesNotMatter "of packet sockets";
    44 "SO_LOCK_FILTER" Carried "" {
        /// The classic filter cannot be changed any more. It cannot be switched off.
        lock_filter, set_lock_filter: bool = uapi::SO_LOCK_FILTER
    };
    45 "SO_SELECT_ERR_QUEUE" Carried "" {
        /// `select` and `poll` report the error queue as an exception too.
        select_error_queue, set_select_error_queue: bool = uapi::SO_SELECT_ERR_QUEUE
    };
    46 "SO_BUSY_POLL" Carried "a longer time than the host's default with `CAP_NET_ADMIN` in the initial user namespace" {
        /// How long a reader polls the device, in microseconds. A longer time than before needs
        /// `CAP_NET_ADMIN`.
        busy_poll, set_busy_poll: u32 = libc::SO_BUSY_POLL
    };
    47 "SO_MAX_PACING_RATE" Carried "" {
        /// Upper bound on what is sent, in bytes per second; all bits set for none.
        max_pacing_rate, set_max_pacing_rate: u64 = uapi::SO_MAX_PACING_RATE
    };
    48 "SO_BPF_EXTENSIONS" DoesNotMatter "it only tells what the kernel can do";
    49 "SO_INCOMING_CPU" DoesNotMatter "each packet overwrites it with the CPU that handled it" {
        /// The CPU that handled the last packet of the connection. What is set lasts until the next packet.
        incoming_cpu, set_incoming_cpu: i32 = uapi::SO_INCOMING_CPU
    };
    50 "SO_ATTACH_BPF" Refused "no call reads the program back";
    51 "SO_ATTACH_REUSEPORT_CBPF" DoesNotMatter "it chooses among listeners";
    52 "SO_ATTACH_REUSEPORT_EBPF" DoesNotMatter "it chooses among listeners";
    53 "SO_CNX_ADVICE" DoesNotMatter "an action: it makes the kernel confirm the route of the moment";
    55 "SO_MEMINFO" DoesNotMatter "it only tells";
    56 "SO_INCOMING_NAPI_ID" DoesNotMatter "it only tells which queue of this host's devices the last packet came by";
    57 "SO_COOKIE" DoesNotMatter "it only tells the kernel's own number for the socket";
    59 "SO_PEERGROUPS" DoesNotMatter "of UNIX sockets";
    60 "SO_ZEROCOPY" Carried "not unread notifications" {
        /// `MSG_ZEROCOPY` may be used.
        zero_copy, set_zero_copy: bool = uapi::SO_ZEROCOPY
    };
    61 "SO_TXTIME" DoesNotMatter "TCP sets the times at which its segments leave by itself";
    62 "SO_BINDTOIFINDEX" Carried "as `SO_BINDTODEVICE`";
    63 "SO_TIMESTAMP_NEW" Carried "" {
        /// Like [`timestamps`], but with seconds of 64 bits everywhere (Linux 5.1).
        timestamps_new, set_timestamps_new: bool = libc::SO_TIMESTAMP_NEW
    };
    64 "SO_TIMESTAMPNS_NEW" Carried "" {
        /// Like [`timestamps_ns`], but with seconds of 64 bits everywhere (Linux 5.1).
        timestamps_ns_new, set_timestamps_ns_new: bool = libc::SO_TIMESTAMPNS_NEW
    };
    65 "SO_TIMESTAMPING_NEW" Carried "as `SO_TIMESTAMPING`" {
        /// Like [`timestamping`], but with seconds of 64 bits everywhere (Linux 5.1).
        timestamping_new, set_timestamping_new: u32 = libc::SO_TIMESTAMPING_NEW
    };
    66 "SO_RCVTIMEO_NEW" Carried "as `SO_RCVTIMEO`";
    67 "SO_SNDTIMEO_NEW" Carried "as `SO_SNDTIMEO`";
    68 "SO_DETACH_REUSEPORT_BPF" DoesNotMatter "an action on listeners";
    69 "SO_PREFER_BUSY_POLL" Carried "with `CAP_NET_ADMIN` in the initial user namespace" {
        /// Polling is preferred to interrupts (Linux 5.11). Switching it on needs `CAP_NET_ADMIN`.
        prefer_busy_poll, set_prefer_busy_poll: bool = uapi::SO_PREFER_BUSY_POLL
    };
    70 "SO_BUSY_POLL_BUDGET" NotSeen "how many packets a poll of the device takes: no call reads it back";
    71 "SO_NETNS_COOKIE" DoesNotMatter "it only tells this host's number for the network namespace";
    72 "SO_BUF_LOCK" Carried "" {
        /// Which buffer sizes are locked against autotuning: bit 0 send, bit 1 receive
        /// (Linux 5.14).
        buffer_lock, set_buffer_lock: u32 = uapi::SO_BUF_LOCK
    };
    73 "SO_RESERVE_MEM", since "5.16" DoesNotMatter "memory that this host keeps for the socket beforehand";
    74 "SO_TXREHASH", since "5.18" Carried "from Linux 5.18 on; to an older kernel if it is on" {
        /// The flow's hash, which chooses among paths, changes at a timeout (Linux 5.18).
        tx_rehash, set_tx_rehash: bool = uapi::SO_TXREHASH
    };
    75 "SO_RCVMARK", since "5.19" DoesNotMatter "it reports beside datagrams; TCP does not";
    76 "SO_PASSPIDFD", since "6.5" DoesNotMatter "of UNIX sockets";
    77 "SO_PEERPIDFD", since "6.5" DoesNotMatter "of UNIX sockets";
    78 "SO_DEVMEM_LINEAR", since "6.12" DoesNotMatter "the kind of a control message, not an option";
    79 "SO_DEVMEM_DMABUF", since "6.12" DoesNotMatter "the kind of a control message, not an option";
    80 "SO_DEVMEM_DONTNEED", since "6.12" DoesNotMatter "an action: it gives memory of a device back";
    82 "SO_RCVPRIORITY", since "6.14" DoesNotMatter "it reports beside datagrams; TCP does not";
    83 "SO_PASSRIGHTS", since "6.16" DoesNotMatter "of UNIX sockets";
    84 "SO_INQ", since "6.18" DoesNotMatter "of UNIX sockets";
}
