//! The sockets of `files.img`: addresses and options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tcpmig_format::{
    FilterInstruction, FourTuple, IpImage, KeepAlive, Linger, SocketFamily, SocketOptions, TcpState,
};

use super::messages::{InetSkEntry, SkOptsEntry, TcpStreamEntry};
use super::read::{self, FILES_FILE};
use super::{CriuError, Lack};

/// `INETSK` of `fd_types`.
const INETSK: i32 = 4;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
/// `O_NONBLOCK`, on all machines that CRIU runs on but MIPS.
const O_NONBLOCK: u32 = 0o4000;
/// `READ` of `sk_shutdown`.
const SHUT_READ: i32 = 1;

/// A connection of `files.img`.
#[derive(Debug, Clone, PartialEq)]
pub struct Socket {
    /// The number that is part of the name of its `tcp-stream-INODE.img`, in hexadecimal.
    pub inode: u32,
    /// The state.
    pub state: TcpState,
    /// Its ends.
    pub flow: FourTuple,
    family: SocketFamily,
    entry: InetSkEntry,
}

/// The connections of a `files.img`, in its order. Listeners, and sockets that have no peer, are left out.
///
/// # Errors
///
/// [`CriuError`] if it is another file, or damaged.
pub fn sockets(files: &[u8]) -> Result<Vec<Socket>, CriuError> {
    let mut sockets = Vec::new();
    for file in read::files(files)? {
        let file = file?;
        if file.kind == Some(INETSK)
            && let Some(entry) = file.isk
            && let Some(socket) = Socket::new(entry)?
        {
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

impl Socket {
    fn new(entry: InetSkEntry) -> Result<Option<Self>, CriuError> {
        let need = |value: Option<u32>, field| {
            value.ok_or(CriuError::Missing {
                file: FILES_FILE,
                field,
            })
        };
        let wrong = |field, value| CriuError::Value {
            file: FILES_FILE,
            field,
            value,
        };
        let kind = need(entry.kind, "type")?;
        let proto = need(entry.proto, "proto")?;
        if kind != SOCK_STREAM || !matches!(proto, 0 | IPPROTO_TCP) {
            return Ok(None);
        }
        let state = need(entry.state, "state")?;
        let state = u8::try_from(state)
            .ok()
            .and_then(TcpState::from_number)
            .ok_or(wrong("state", state))?;
        let (src_port, dst_port) = (
            need(entry.src_port, "src_port")?,
            need(entry.dst_port, "dst_port")?,
        );
        if state == TcpState::Listen || dst_port == 0 {
            return Ok(None);
        }
        let family = need(entry.family, "family")?;
        let end = |words: &[u32], port: u32, field| -> Result<SocketAddr, CriuError> {
            let port = u16::try_from(port).map_err(|_| wrong(field, port))?;
            let address = address(family, words).ok_or(CriuError::Address {
                words: words.len(),
                family,
            })?;
            Ok(SocketAddr::new(address, port))
        };
        let local = end(&entry.src_addr, src_port, "src_port")?;
        let remote = end(&entry.dst_addr, dst_port, "dst_port")?;
        let flow = FourTuple::new(local, remote)?;
        let family = match (family, flow.is_ipv4()) {
            (AF_INET, _) => SocketFamily::Ipv4,
            (_, true) => SocketFamily::Ipv4Mapped,
            (_, false) => SocketFamily::Ipv6,
        };
        Ok(Some(Self {
            inode: need(entry.ino, "ino")?,
            state,
            flow,
            family,
            entry,
        }))
    }

    /// Addresses and the options that have to do with them.
    pub(super) fn ip(&self) -> IpImage {
        let mut ip = IpImage::new(self.flow, self.family);
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if self.family != SocketFamily::Ipv4 {
            ip.v6_only = self.entry.v6only;
            ip.scope = text(&self.entry.ifname);
        }
        if let Some(of_ip) = &self.entry.ip_opts {
            ip.freebind = of_ip.freebind.unwrap_or_default();
            // 0 stands for an option that the socket does not have.
            let byte = |value: Option<u32>| value.and_then(|value| u8::try_from(value).ok());
            if self.family == SocketFamily::Ipv4 {
                ip.ttl = byte(of_ip.ttl).filter(|ttl| *ttl != 0);
                ip.tos = byte(of_ip.tos);
                ip.receive_packet_info = of_ip.pktinfo;
            } else {
                ip.receive_packet_info_v6 = of_ip.pktinfo;
            }
        }
        if let Some(of_socket) = &self.entry.opts {
            ip.bound_device = text(&of_socket.so_bound_dev);
            ip.mark = of_socket.so_mark;
            ip.priority = of_socket.so_priority;
        }
        ip
    }

    /// The other options, of which the stream has two in images of earlier versions.
    pub(super) fn options(&self, stream: &TcpStreamEntry) -> SocketOptions {
        let mut options = SocketOptions::default();
        let of_tcp = self.entry.tcp_opts.clone().unwrap_or_default();
        options.no_delay = of_tcp.nodelay.or(stream.nodelay);
        options.cork = of_tcp.cork.or(stream.cork);
        options.non_blocking = self.entry.flags.map(|flags| flags & O_NONBLOCK != 0);
        // A FIN of the peer has this bit set too.
        let shut = self.entry.shutdown.unwrap_or_default() & SHUT_READ != 0;
        options.shut_read = (shut && !self.state.fin_received()).then_some(true);
        if let Some(of_socket) = &self.entry.opts {
            set_socket_level(&mut options, of_socket);
            let (idle, interval, count) = (
                of_tcp.keepidle.or(of_socket.tcp_keepidle),
                of_tcp.keepintvl.or(of_socket.tcp_keepintvl),
                of_tcp.keepcnt.or(of_socket.tcp_keepcnt),
            );
            options.keep_alive = of_socket.so_keepalive.and_then(|on| {
                Some(KeepAlive {
                    on,
                    idle: idle?,
                    interval: interval?,
                    count: count?,
                })
            });
        }
        options
    }

    /// What the files do not have, of what an image of ours has.
    pub(super) fn lacks(ip: &IpImage, options: &SocketOptions) -> Vec<Lack> {
        [
            (true, Lack::Taken),
            (true, Lack::CongestionControl),
            (ip.ttl.is_none(), Lack::Hops),
            (options.keep_alive.is_none(), Lack::KeepAlive),
            (options.linger.is_none(), Lack::Linger),
            (options.buffer_lock.is_none(), Lack::BufferLock),
            (true, Lack::OtherOptions),
        ]
        .into_iter()
        .filter_map(|(lacks, what)| lacks.then_some(what))
        .collect()
    }
}

fn set_socket_level(options: &mut SocketOptions, from: &SkOptsEntry) {
    options.send_buffer = from.so_sndbuf;
    options.receive_buffer = from.so_rcvbuf;
    options.buffer_lock = from.so_buf_lock.and_then(|bits| u8::try_from(bits).ok());
    options.send_timeout = timeout(from.so_snd_tmo_sec, from.so_snd_tmo_usec);
    options.receive_timeout = timeout(from.so_rcv_tmo_sec, from.so_rcv_tmo_usec);
    options.reuse_addr = from.reuseaddr;
    options.reuse_port = from.so_reuseport;
    options.receive_low_water = from.so_rcvlowat;
    options.dont_route = from.so_dontroute;
    options.oob_inline = from.so_oobinline.map(|on| on != 0);
    options.linger = from.so_linger.map(|seconds| Linger { on: true, seconds });
    let filter: Vec<_> = from.so_filter.iter().copied().map(instruction).collect();
    options.filter = (!filter.is_empty()).then_some(filter);
}

/// Microseconds.
fn timeout(seconds: Option<u64>, microseconds: Option<u64>) -> Option<u64> {
    seconds?.checked_mul(1_000_000)?.checked_add(microseconds?)
}

fn instruction(packed: u64) -> FilterInstruction {
    let [code_high, code_low, jt, jf, k @ ..] = packed.to_be_bytes();
    FilterInstruction {
        code: u16::from_be_bytes([code_high, code_low]),
        jt,
        jf,
        k: u32::from_be_bytes(k),
    }
}

/// An address: its bytes are in the order of the network, in words of a little-endian machine.
fn address(family: u32, words: &[u32]) -> Option<IpAddr> {
    match (family, words) {
        (AF_INET, [word]) => Some(Ipv4Addr::from(word.to_le_bytes()).into()),
        (AF_INET6, words) => {
            let words: [u32; 4] = words.try_into().ok()?;
            let mut bytes = [0; 16];
            for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}
