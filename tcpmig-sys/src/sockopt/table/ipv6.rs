//! Options of the level `IPPROTO_IPV6`.

use super::known_options;

known_options! {
    /// Options of the level `IPPROTO_IPV6`, of IPv6 sockets.
    IPV6, Ipv6:
    1 "IPV6_ADDRFORM" Carried "an action, which makes an IPv4 socket of one with IPv4 packets: as the family of the socket";
    2 "IPV6_2292PKTINFO" DoesNotMatter "it reports beside datagrams; TCP tells it of its last packet only (`IPV6_2292PKTOPTIONS`)";
    3 "IPV6_2292HOPOPTS" DoesNotMatter "as `IPV6_2292PKTINFO`";
    4 "IPV6_2292DSTOPTS" DoesNotMatter "as `IPV6_2292PKTINFO`";
    5 "IPV6_2292RTHDR" DoesNotMatter "as `IPV6_2292PKTINFO`";
    6 "IPV6_2292PKTOPTIONS" Refused "as `IPV6_HOPOPTS` and the like, if it has set one of them; reading tells of the last packet only";
    7 "IPV6_CHECKSUM" DoesNotMatter "of raw sockets";
    8 "IPV6_2292HOPLIMIT" DoesNotMatter "as `IPV6_2292PKTINFO`";
    9 "IPV6_NEXTHOP" DoesNotMatter "the kernel does not have it as an option";
    10 "IPV6_AUTHHDR" DoesNotMatter "the kernel does not have it";
    11 "IPV6_FLOWINFO" Carried "" {
        /// The traffic class and flow label of IPv6 packets are reported.
        receive_flow_info, set_receive_flow_info: bool = libc::IPV6_FLOWINFO
    };
    16 "IPV6_UNICAST_HOPS" Carried "" {
        /// Hop limit of IPv6 packets.
        hop_limit, set_hop_limit: i32 = libc::IPV6_UNICAST_HOPS
    };
    17 "IPV6_MULTICAST_IF" DoesNotMatter "no TCP connection is multicast";
    18 "IPV6_MULTICAST_HOPS" DoesNotMatter "no TCP connection is multicast";
    19 "IPV6_MULTICAST_LOOP" DoesNotMatter "no TCP connection is multicast";
    20 "IPV6_ADD_MEMBERSHIP" = "IPV6_JOIN_GROUP" DoesNotMatter "no TCP connection is multicast";
    21 "IPV6_DROP_MEMBERSHIP" = "IPV6_LEAVE_GROUP" DoesNotMatter "no TCP connection is multicast";
    22 "IPV6_ROUTER_ALERT" DoesNotMatter "of raw sockets";
    23 "IPV6_MTU_DISCOVER" Carried "" {
        /// Path MTU discovery of IPv6 packets, as [`mtu_discover`].
        mtu_discover_v6, set_mtu_discover_v6: i32 = libc::IPV6_MTU_DISCOVER
    };
    24 "IPV6_MTU" DoesNotMatter "it cuts datagrams; reading only tells the path MTU, which the target finds out anew";
    25 "IPV6_RECVERR" Carried "" {
        /// Errors of IPv6 packets are queued for the application.
        receive_errors_v6, set_receive_errors_v6: bool = libc::IPV6_RECVERR
    };
    26 "IPV6_V6ONLY" Carried "" {
        /// An IPv6 socket that does not take IPv4 connections.
        v6_only, set_v6_only: bool = libc::IPV6_V6ONLY
    };
    27 "IPV6_JOIN_ANYCAST" DoesNotMatter "no TCP connection has an anycast address";
    28 "IPV6_LEAVE_ANYCAST" DoesNotMatter "no TCP connection has an anycast address";
    29 "IPV6_MULTICAST_ALL" DoesNotMatter "no TCP connection is multicast";
    30 "IPV6_ROUTER_ALERT_ISOLATE" DoesNotMatter "of raw sockets";
    31 "IPV6_RECVERR_RFC4884" DoesNotMatter "of errors about datagrams";
    32 "IPV6_FLOWLABEL_MGR" Carried "the label that the connection sends, leased or reflected; one that `connect` took while another socket's lease allowed it is not seen";
    33 "IPV6_FLOWINFO_SEND" Carried "" {
        /// `connect` takes the flow label of the address, and `getpeername` tells it.
        flow_info_send, set_flow_info_send: bool = libc::IPV6_FLOWINFO_SEND
    };
    34 "IPV6_IPSEC_POLICY" DoesNotMatter "the kernel does not have it";
    35 "IPV6_XFRM_POLICY" NotSeen "the socket's own policies of IPsec: no call reads them back";
    36 "IPV6_HDRINCL" DoesNotMatter "of raw sockets";
    42 "MCAST_JOIN_GROUP" DoesNotMatter "no TCP connection is multicast";
    43 "MCAST_BLOCK_SOURCE" DoesNotMatter "no TCP connection is multicast";
    44 "MCAST_UNBLOCK_SOURCE" DoesNotMatter "no TCP connection is multicast";
    45 "MCAST_LEAVE_GROUP" DoesNotMatter "no TCP connection is multicast";
    46 "MCAST_JOIN_SOURCE_GROUP" DoesNotMatter "no TCP connection is multicast";
    47 "MCAST_LEAVE_SOURCE_GROUP" DoesNotMatter "no TCP connection is multicast";
    48 "MCAST_MSFILTER" DoesNotMatter "no TCP connection is multicast";
    49 "IPV6_RECVPKTINFO" Carried "" {
        /// The interface and the address of IPv6 packets are reported.
        receive_packet_info_v6, set_receive_packet_info_v6: bool = libc::IPV6_RECVPKTINFO
    };
    50 "IPV6_PKTINFO" DoesNotMatter "it chooses the source of datagrams";
    51 "IPV6_RECVHOPLIMIT" Carried "" {
        /// The hop limit of IPv6 packets is reported.
        receive_hop_limit, set_receive_hop_limit: bool = libc::IPV6_RECVHOPLIMIT
    };
    52 "IPV6_HOPLIMIT" DoesNotMatter "the kind of a control message, not an option";
    53 "IPV6_RECVHOPOPTS" Carried "" {
        /// Hop-by-hop options of IPv6 packets are reported. `CAP_NET_RAW`.
        receive_hop_options, set_receive_hop_options: bool = libc::IPV6_RECVHOPOPTS
    };
    54 "IPV6_HOPOPTS" Refused "each segment that the socket sends has the header";
    55 "IPV6_RTHDRDSTOPTS" Refused "each segment that the socket sends has the header";
    56 "IPV6_RECVRTHDR" Carried "" {
        /// Routing headers of IPv6 packets are reported. `CAP_NET_RAW`.
        receive_routing_header, set_receive_routing_header: bool = libc::IPV6_RECVRTHDR
    };
    57 "IPV6_RTHDR" Refused "each segment that the socket sends has the header";
    58 "IPV6_RECVDSTOPTS" Carried "" {
        /// Destination options of IPv6 packets are reported. `CAP_NET_RAW`.
        receive_destination_options, set_receive_destination_options: bool = libc::IPV6_RECVDSTOPTS
    };
    59 "IPV6_DSTOPTS" Refused "each segment that the socket sends has the header";
    60 "IPV6_RECVPATHMTU" DoesNotMatter "it reports beside datagrams; TCP does not";
    61 "IPV6_PATHMTU" DoesNotMatter "it only tells the path MTU, which the target finds out anew";
    62 "IPV6_DONTFRAG" DoesNotMatter "of datagrams";
    63 "IPV6_USE_MIN_MTU" DoesNotMatter "the kernel does not have it";
    // Tables of the host that are reached through any socket.
    64 "IP6T_SO_SET_REPLACE" = "IP6T_SO_GET_INFO" DoesNotMatter "the packet filter of the host";
    65 "IP6T_SO_SET_ADD_COUNTERS" = "IP6T_SO_GET_ENTRIES" DoesNotMatter "the packet filter of the host";
    66 "IPV6_RECVTCLASS" Carried "" {
        /// The traffic class of IPv6 packets is reported.
        receive_traffic_class, set_receive_traffic_class: bool = libc::IPV6_RECVTCLASS
    };
    67 "IPV6_TCLASS" Carried "" {
        /// Traffic class of IPv6 packets.
        traffic_class, set_traffic_class: i32 = libc::IPV6_TCLASS
    };
    68 "IP6T_SO_GET_REVISION_MATCH" DoesNotMatter "the packet filter of the host";
    69 "IP6T_SO_GET_REVISION_TARGET" DoesNotMatter "the packet filter of the host";
    70 "IPV6_AUTOFLOWLABEL" Carried "" {
        /// The kernel makes flow labels from the flow's hash.
        auto_flow_label, set_auto_flow_label: bool = libc::IPV6_AUTOFLOWLABEL
    };
    72 "IPV6_ADDR_PREFERENCES" DoesNotMatter "it chooses an address when a socket without one is connected";
    73 "IPV6_MINHOPCOUNT" Carried "" {
        /// IPv6 packets with a lower hop limit are dropped (RFC 5082).
        min_hop_limit, set_min_hop_limit: i32 = libc::IPV6_MINHOPCOUNT
    };
    74 "IPV6_ORIGDSTADDR" = "IPV6_RECVORIGDSTADDR" DoesNotMatter "it reports beside datagrams; TCP does not";
    75 "IPV6_TRANSPARENT" Carried "" {
        /// Like [`transparent`], but for an IPv6 socket.
        transparent_v6, set_transparent_v6: bool = libc::IPV6_TRANSPARENT
    };
    76 "IPV6_UNICAST_IF" DoesNotMatter "it chooses the device of datagrams";
    77 "IPV6_RECVFRAGSIZE" DoesNotMatter "of datagrams";
    78 "IPV6_FREEBIND" Carried "" {
        /// Like [`freebind`], but for an IPv6 socket.
        freebind_v6, set_freebind_v6: bool = libc::IPV6_FREEBIND
    };
    80 "IP6T_SO_ORIGINAL_DST" DoesNotMatter "it only tells what the host's connection tracking translated; such a connection is refused";
}
