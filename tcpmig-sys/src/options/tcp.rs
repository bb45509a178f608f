//! Options of the level `IPPROTO_TCP`.

use super::{Fate, KnownOption, Level, known_options};

known_options! {
    /// Options of the level `IPPROTO_TCP`.
    TCP, Tcp:
    1 "TCP_NODELAY" Carried "";
    2 "TCP_MAXSEG" Carried "as what both ends negotiated; what it asked for acts on a handshake only";
    3 "TCP_CORK" Carried "";
    4 "TCP_KEEPIDLE" Carried "";
    5 "TCP_KEEPINTVL" Carried "";
    6 "TCP_KEEPCNT" Carried "";
    7 "TCP_SYNCNT" Carried "";
    8 "TCP_LINGER2" Carried "";
    9 "TCP_DEFER_ACCEPT" Carried "";
    10 "TCP_WINDOW_CLAMP" Carried "";
    11 "TCP_INFO" DoesNotMatter "it only tells; its counters start anew";
    12 "TCP_QUICKACK" Carried "as the kernel left it";
    13 "TCP_CONGESTION" Carried "the name; not what the algorithm has measured";
    14 "TCP_MD5SIG" Refused "the kernel does not hand the keys out";
    16 "TCP_THIN_LINEAR_TIMEOUTS" Carried "";
    17 "TCP_THIN_DUPACK" DoesNotMatter "the kernel ignores it";
    18 "TCP_USER_TIMEOUT" Carried "";
    19 "TCP_REPAIR" Refused "somebody else is reading or rebuilding the connection";
    20 "TCP_REPAIR_QUEUE" DoesNotMatter "of repair mode, by which connections are moved";
    21 "TCP_QUEUE_SEQ" Carried "as the connection's sequence numbers";
    22 "TCP_REPAIR_OPTIONS" Carried "as what both ends negotiated";
    23 "TCP_FASTOPEN" DoesNotMatter "of listeners, with which it is carried";
    24 "TCP_TIMESTAMP" Carried "as the clock of the timestamp option";
    25 "TCP_NOTSENT_LOWAT" Carried "";
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
    36 "TCP_INQ" = "TCP_CM_INQ" Carried "";
    37 "TCP_TX_DELAY" Carried "";
    38 "TCP_AO_ADD_KEY" Refused "as `TCP_AO_INFO`";
    39 "TCP_AO_DEL_KEY" DoesNotMatter "an action";
    40 "TCP_AO_INFO" Refused "the kernel does not hand the keys out";
    41 "TCP_AO_GET_KEYS" DoesNotMatter "it only tells of keys, without the keys; a connection that has some is refused";
    42 "TCP_AO_REPAIR" DoesNotMatter "of repair mode; a connection that signs is refused";
    43 "TCP_IS_MPTCP" DoesNotMatter "it only tells whether the connection is one of multipath TCP, which is refused";
    44 "TCP_RTO_MAX_MS" Carried "from Linux 6.15 on; to an older kernel with the value that it has built in";
    45 "TCP_RTO_MIN_US" Carried "from Linux 6.15 on; to an older kernel with the value that it has built in";
    46 "TCP_DELACK_MAX_US" Carried "from Linux 6.15 on; to an older kernel with the value that it has built in";
}
