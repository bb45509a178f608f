//! The messages inside CRIU's images, as far as a connection needs them.
//!
//! Every field is optional here, although most are required there: prost reads a required field that is missing as 0, and a
//! sequence number of 0 is a legal one. Source of names and numbers: `images/*.proto` of CRIU 3.17 to 4.1.

use prost::Message;

/// `tcp_stream_entry`: what repair mode read.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TcpStreamEntry {
    #[prost(uint32, optional, tag = "1")]
    pub(super) inq_len: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) inq_seq: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub(super) outq_len: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) outq_seq: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub(super) opt_mask: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub(super) snd_wscale: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub(super) mss_clamp: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub(super) rcv_wscale: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub(super) timestamp: Option<u32>,
    #[prost(bool, optional, tag = "10")]
    pub(super) cork: Option<bool>,
    #[prost(bool, optional, tag = "11")]
    pub(super) nodelay: Option<bool>,
    #[prost(uint32, optional, tag = "12")]
    pub(super) unsq_len: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub(super) snd_wl1: Option<u32>,
    #[prost(uint32, optional, tag = "14")]
    pub(super) snd_wnd: Option<u32>,
    #[prost(uint32, optional, tag = "15")]
    pub(super) max_window: Option<u32>,
    #[prost(uint32, optional, tag = "16")]
    pub(super) rcv_wnd: Option<u32>,
    #[prost(uint32, optional, tag = "17")]
    pub(super) rcv_wup: Option<u32>,
}

/// `file_entry`: an open file of any kind.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FileEntry {
    #[prost(int32, optional, tag = "1")]
    pub(super) kind: Option<i32>,
    #[prost(message, optional, tag = "4")]
    pub(super) isk: Option<InetSkEntry>,
}

/// `inet_sk_entry`: a socket of IPv4 or IPv6.
#[derive(Clone, PartialEq, Message)]
pub(super) struct InetSkEntry {
    #[prost(uint32, optional, tag = "2")]
    pub(super) ino: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub(super) family: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) kind: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub(super) proto: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub(super) state: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub(super) src_port: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub(super) dst_port: Option<u32>,
    /// Those of `fcntl(F_GETFL)`.
    #[prost(uint32, optional, tag = "9")]
    pub(super) flags: Option<u32>,
    /// Words in the byte order of the machine, which hold addresses in that of the network.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub(super) src_addr: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub(super) dst_addr: Vec<u32>,
    #[prost(message, optional, tag = "14")]
    pub(super) opts: Option<SkOptsEntry>,
    #[prost(bool, optional, tag = "15")]
    pub(super) v6only: Option<bool>,
    #[prost(message, optional, tag = "16")]
    pub(super) ip_opts: Option<IpOptsEntry>,
    #[prost(string, optional, tag = "17")]
    pub(super) ifname: Option<String>,
    /// Bit 0: nothing is received any more, by `shutdown` or by a FIN.
    #[prost(int32, optional, tag = "19")]
    pub(super) shutdown: Option<i32>,
    #[prost(message, optional, tag = "20")]
    pub(super) tcp_opts: Option<TcpOptsEntry>,
}

/// `sk_opts_entry`: options of `SOL_SOCKET`, and at first those of keep-alive too.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SkOptsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub(super) so_sndbuf: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) so_rcvbuf: Option<u32>,
    #[prost(uint64, optional, tag = "3")]
    pub(super) so_snd_tmo_sec: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub(super) so_snd_tmo_usec: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) so_rcv_tmo_sec: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) so_rcv_tmo_usec: Option<u64>,
    #[prost(bool, optional, tag = "7")]
    pub(super) reuseaddr: Option<bool>,
    #[prost(uint32, optional, tag = "8")]
    pub(super) so_priority: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub(super) so_rcvlowat: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    pub(super) so_mark: Option<u32>,
    #[prost(bool, optional, tag = "13")]
    pub(super) so_dontroute: Option<bool>,
    #[prost(string, optional, tag = "15")]
    pub(super) so_bound_dev: Option<String>,
    #[prost(fixed64, repeated, packed = "false", tag = "16")]
    pub(super) so_filter: Vec<u64>,
    #[prost(bool, optional, tag = "17")]
    pub(super) so_reuseport: Option<bool>,
    #[prost(bool, optional, tag = "19")]
    pub(super) so_keepalive: Option<bool>,
    #[prost(uint32, optional, tag = "20")]
    pub(super) tcp_keepcnt: Option<u32>,
    #[prost(uint32, optional, tag = "21")]
    pub(super) tcp_keepidle: Option<u32>,
    #[prost(uint32, optional, tag = "22")]
    pub(super) tcp_keepintvl: Option<u32>,
    #[prost(uint32, optional, tag = "23")]
    pub(super) so_oobinline: Option<u32>,
    /// Seconds, if it is on.
    #[prost(uint32, optional, tag = "24")]
    pub(super) so_linger: Option<u32>,
    #[prost(uint32, optional, tag = "25")]
    pub(super) so_buf_lock: Option<u32>,
}

/// `ip_opts_entry`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct IpOptsEntry {
    #[prost(bool, optional, tag = "1")]
    pub(super) freebind: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(super) pktinfo: Option<bool>,
    #[prost(uint32, optional, tag = "6")]
    pub(super) tos: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub(super) ttl: Option<u32>,
}

/// `tcp_opts_entry`, which later versions write.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TcpOptsEntry {
    #[prost(bool, optional, tag = "1")]
    pub(super) cork: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(super) nodelay: Option<bool>,
    #[prost(uint32, optional, tag = "3")]
    pub(super) keepcnt: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) keepidle: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub(super) keepintvl: Option<u32>,
}
