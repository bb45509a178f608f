//! Options of the level `IPPROTO_IP`.

use super::known_options;
use crate::uapi;

known_options! {
    /// Options of the level `IPPROTO_IP`. A connection with IPv6 packets has them too, where those that are about packets
    /// act on none; of those only `IP_FREEBIND`, `IP_TRANSPARENT`, `IP_BIND_ADDRESS_NO_PORT` and `IP_LOCAL_PORT_RANGE` are
    /// carried.
    IP, Ip:
    1 "IP_TOS" Carried "" {
        /// Type of service of IPv4 packets.
        tos, set_tos: i32 = libc::IP_TOS
    };
    2 "IP_TTL" Carried "" {
        /// Time to live of IPv4 packets.
        ttl, set_ttl: i32 = libc::IP_TTL
    };
    3 "IP_HDRINCL" DoesNotMatter "of raw sockets";
    4 "IP_OPTIONS" Carried "what the socket sends";
    5 "IP_ROUTER_ALERT" DoesNotMatter "of raw sockets";
    6 "IP_RECVOPTS" DoesNotMatter "it reports beside datagrams; TCP does not";
    7 "IP_RETOPTS" = "IP_RECVRETOPTS" DoesNotMatter "it reports beside datagrams; TCP does not";
    8 "IP_PKTINFO" Carried "" {
        /// The interface and the addresses of IPv4 packets are reported.
        receive_packet_info, set_receive_packet_info: bool = libc::IP_PKTINFO
    };
    9 "IP_PKTOPTIONS" DoesNotMatter "it only tells of the packet that opened the connection";
    10 "IP_MTU_DISCOVER" Carried "" {
        /// Path MTU discovery of IPv4 packets: `IP_PMTUDISC_DONT` (0) to `IP_PMTUDISC_OMIT` (5).
        mtu_discover, set_mtu_discover: i32 = libc::IP_MTU_DISCOVER
    };
    11 "IP_RECVERR" Carried "" {
        /// Errors of IPv4 packets are queued for the application.
        receive_errors, set_receive_errors: bool = libc::IP_RECVERR
    };
    12 "IP_RECVTTL" Carried "" {
        /// The time to live of IPv4 packets is reported.
        receive_ttl, set_receive_ttl: bool = libc::IP_RECVTTL
    };
    13 "IP_RECVTOS" Carried "" {
        /// The type of service of IPv4 packets is reported.
        receive_tos, set_receive_tos: bool = libc::IP_RECVTOS
    };
    14 "IP_MTU" DoesNotMatter "it only tells the path MTU, which the target finds out anew";
    15 "IP_FREEBIND" Carried "" {
        /// Addresses that are not yet on this host may be bound.
        freebind, set_freebind: bool = libc::IP_FREEBIND
    };
    16 "IP_IPSEC_POLICY" DoesNotMatter "the kernel does not have it";
    17 "IP_XFRM_POLICY" NotSeen "the socket's own policies of IPsec: no call reads them back";
    18 "IP_PASSSEC" DoesNotMatter "it reports beside datagrams; TCP does not";
    19 "IP_TRANSPARENT" Carried "" {
        /// Addresses that are not on this host may be bound (`CAP_NET_ADMIN`).
        transparent, set_transparent: bool = libc::IP_TRANSPARENT
    };
    20 "IP_ORIGDSTADDR" = "IP_RECVORIGDSTADDR" DoesNotMatter "it reports beside datagrams; TCP does not";
    21 "IP_MINTTL" Carried "" {
        /// IPv4 packets with a lower time to live are dropped (RFC 5082).
        min_ttl, set_min_ttl: i32 = libc::IP_MINTTL
    };
    22 "IP_NODEFRAG" DoesNotMatter "of raw sockets";
    23 "IP_CHECKSUM" DoesNotMatter "it reports beside datagrams; TCP does not";
    24 "IP_BIND_ADDRESS_NO_PORT" Carried "" {
        /// `bind` leaves the choice of a port to `connect`.
        bind_address_no_port, set_bind_address_no_port: bool = libc::IP_BIND_ADDRESS_NO_PORT
    };
    25 "IP_RECVFRAGSIZE" DoesNotMatter "of datagrams";
    26 "IP_RECVERR_RFC4884" DoesNotMatter "of errors about datagrams";
    32 "IP_MULTICAST_IF" DoesNotMatter "no TCP connection is multicast";
    33 "IP_MULTICAST_TTL" DoesNotMatter "no TCP connection is multicast";
    34 "IP_MULTICAST_LOOP" DoesNotMatter "no TCP connection is multicast";
    35 "IP_ADD_MEMBERSHIP" DoesNotMatter "no TCP connection is multicast";
    36 "IP_DROP_MEMBERSHIP" DoesNotMatter "no TCP connection is multicast";
    37 "IP_UNBLOCK_SOURCE" DoesNotMatter "no TCP connection is multicast";
    38 "IP_BLOCK_SOURCE" DoesNotMatter "no TCP connection is multicast";
    39 "IP_ADD_SOURCE_MEMBERSHIP" DoesNotMatter "no TCP connection is multicast";
    40 "IP_DROP_SOURCE_MEMBERSHIP" DoesNotMatter "no TCP connection is multicast";
    41 "IP_MSFILTER" DoesNotMatter "no TCP connection is multicast";
    42 "MCAST_JOIN_GROUP" DoesNotMatter "no TCP connection is multicast";
    43 "MCAST_BLOCK_SOURCE" DoesNotMatter "no TCP connection is multicast";
    44 "MCAST_UNBLOCK_SOURCE" DoesNotMatter "no TCP connection is multicast";
    45 "MCAST_LEAVE_GROUP" DoesNotMatter "no TCP connection is multicast";
    46 "MCAST_JOIN_SOURCE_GROUP" DoesNotMatter "no TCP connection is multicast";
    47 "MCAST_LEAVE_SOURCE_GROUP" DoesNotMatter "no TCP connection is multicast";
    48 "MCAST_MSFILTER" DoesNotMatter "no TCP connection is multicast";
    49 "IP_MULTICAST_ALL" DoesNotMatter "no TCP connection is multicast";
    50 "IP_UNICAST_IF" DoesNotMatter "it chooses the device of datagrams";
    51 "IP_LOCAL_PORT_RANGE", since "6.3" Carried "from Linux 6.3 on" {
        /// From which ports the kernel chooses: the lowest in the low 16 bits, the highest in the high
        /// ones; 0 for those of the host (Linux 6.3).
        local_port_range, set_local_port_range: u32 = uapi::IP_LOCAL_PORT_RANGE
    };
    52 "IP_PROTOCOL", since "6.4" DoesNotMatter "it only tells: TCP";
    // Tables of the host that are reached through any socket.
    64 "IPT_SO_SET_REPLACE" = "IPT_SO_GET_INFO" DoesNotMatter "the packet filter of the host";
    65 "IPT_SO_SET_ADD_COUNTERS" = "IPT_SO_GET_ENTRIES" DoesNotMatter "the packet filter of the host";
    66 "IPT_SO_GET_REVISION_MATCH" DoesNotMatter "the packet filter of the host";
    67 "IPT_SO_GET_REVISION_TARGET" DoesNotMatter "the packet filter of the host";
    80 "SO_ORIGINAL_DST" DoesNotMatter "it only tells what the host's connection tracking translated; such a connection is refused";
    83 "SO_IP_SET" DoesNotMatter "the sets of the host's packet filter";
    96 "ARPT_SO_SET_REPLACE" = "ARPT_SO_GET_INFO" DoesNotMatter "the packet filter of the host";
    97 "ARPT_SO_SET_ADD_COUNTERS" = "ARPT_SO_GET_ENTRIES" DoesNotMatter "the packet filter of the host";
    99 "ARPT_SO_GET_REVISION_TARGET" DoesNotMatter "the packet filter of the host";
}
