//! Options of the level `IPPROTO_IPV6`.

use super::{Fate, KnownOption, Level, known_options};

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
    11 "IPV6_FLOWINFO" Carried "";
    16 "IPV6_UNICAST_HOPS" Carried "";
    17 "IPV6_MULTICAST_IF" DoesNotMatter "no TCP connection is multicast";
    18 "IPV6_MULTICAST_HOPS" DoesNotMatter "no TCP connection is multicast";
    19 "IPV6_MULTICAST_LOOP" DoesNotMatter "no TCP connection is multicast";
    20 "IPV6_ADD_MEMBERSHIP" = "IPV6_JOIN_GROUP" DoesNotMatter "no TCP connection is multicast";
    21 "IPV6_DROP_MEMBERSHIP" = "IPV6_LEAVE_GROUP" DoesNotMatter "no TCP connection is multicast";
    22 "IPV6_ROUTER_ALERT" DoesNotMatter "of raw sockets";
    23 "IPV6_MTU_DISCOVER" Carried "";
    24 "IPV6_MTU" DoesNotMatter "it cuts datagrams; reading only tells the path MTU, which the target finds out anew";
    25 "IPV6_RECVERR" Carried "";
    26 "IPV6_V6ONLY" Carried "";
    27 "IPV6_JOIN_ANYCAST" DoesNotMatter "no TCP connection has an anycast address";
    28 "IPV6_LEAVE_ANYCAST" DoesNotMatter "no TCP connection has an anycast address";
    29 "IPV6_MULTICAST_ALL" DoesNotMatter "no TCP connection is multicast";
    30 "IPV6_ROUTER_ALERT_ISOLATE" DoesNotMatter "of raw sockets";
    31 "IPV6_RECVERR_RFC4884" DoesNotMatter "of errors about datagrams";
    32 "IPV6_FLOWLABEL_MGR" Carried "the label that the connection sends, leased or reflected; one that `connect` took while another socket's lease allowed it is not seen";
    33 "IPV6_FLOWINFO_SEND" Carried "";
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
    49 "IPV6_RECVPKTINFO" Carried "";
    50 "IPV6_PKTINFO" DoesNotMatter "it chooses the source of datagrams";
    51 "IPV6_RECVHOPLIMIT" Carried "";
    52 "IPV6_HOPLIMIT" DoesNotMatter "the kind of a control message, not an option";
    53 "IPV6_RECVHOPOPTS" Carried "";
    54 "IPV6_HOPOPTS" Refused "each segment that the socket sends has the header";
    55 "IPV6_RTHDRDSTOPTS" Refused "each segment that the socket sends has the header";
    56 "IPV6_RECVRTHDR" Carried "";
    57 "IPV6_RTHDR" Refused "each segment that the socket sends has the header";
    58 "IPV6_RECVDSTOPTS" Carried "";
    59 "IPV6_DSTOPTS" Refused "each segment that the socket sends has the header";
    60 "IPV6_RECVPATHMTU" DoesNotMatter "it reports beside datagrams; TCP does not";
    61 "IPV6_PATHMTU" DoesNotMatter "it only tells the path MTU, which the target finds out anew";
    62 "IPV6_DONTFRAG" DoesNotMatter "of datagrams";
    63 "IPV6_USE_MIN_MTU" DoesNotMatter "the kernel does not have it";
    // Tables of the host that are reached through any socket.
    64 "IP6T_SO_SET_REPLACE" = "IP6T_SO_GET_INFO" DoesNotMatter "the packet filter of the host";
    65 "IP6T_SO_SET_ADD_COUNTERS" = "IP6T_SO_GET_ENTRIES" DoesNotMatter "the packet filter of the host";
    66 "IPV6_RECVTCLASS" Carried "";
    67 "IPV6_TCLASS" Carried "";
    68 "IP6T_SO_GET_REVISION_MATCH" DoesNotMatter "the packet filter of the host";
    69 "IP6T_SO_GET_REVISION_TARGET" DoesNotMatter "the packet filter of the host";
    70 "IPV6_AUTOFLOWLABEL" Carried "";
    72 "IPV6_ADDR_PREFERENCES" DoesNotMatter "it chooses an address when a socket without one is connected";
    73 "IPV6_MINHOPCOUNT" Carried "";
    74 "IPV6_ORIGDSTADDR" = "IPV6_RECVORIGDSTADDR" DoesNotMatter "it reports beside datagrams; TCP does not";
    75 "IPV6_TRANSPARENT" Carried "";
    76 "IPV6_UNICAST_IF" DoesNotMatter "it chooses the device of datagrams";
    77 "IPV6_RECVFRAGSIZE" DoesNotMatter "of datagrams";
    78 "IPV6_FREEBIND" Carried "";
    80 "IP6T_SO_ORIGINAL_DST" DoesNotMatter "it only tells what the host's connection tracking translated; such a connection is refused";
}
