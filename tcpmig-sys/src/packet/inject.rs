//! Segments made by hand: what the peer once sent, injected into a connection that is rebuilt here.
//!
//! Needs `CAP_NET_RAW`. A segment to this host goes out through `OUTPUT` and comes in through
//! `PREROUTING` and `INPUT` on the loopback device with the peer's address as its source. Its route is the
//! one it left by, so reverse-path filters do not look at it; packet filters do.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Ip, Segment, fill_checksum, packet, tcp};
use crate::ends::{Ends, unmapped};
use crate::error::{Error, Result};
use crate::sockets::diag::netns_cookie;
use crate::{seam, sockopt};

/// Speaks for both ends of one connection.
#[derive(Debug)]
pub(crate) struct Injector {
    local: SocketAddr,
    remote: SocketAddr,
    device: Option<String>,
    /// The cookie of the connection's network namespace, if the kernel tells it.
    namespace: Option<u64>,
}

/// A raw socket, of no connection.
#[derive(Debug)]
struct Raw {
    socket: Socket,
    v4: bool,
    namespace: Option<u64>,
    /// The firewall mark that it has.
    mark: u32,
}

/// Raw sockets that nobody uses just now: to make one for each connection costs more than the segments. Each keeps its network
/// namespace.
static KEPT: Mutex<Vec<Raw>> = Mutex::new(Vec::new());
const KEEP: usize = 4;

fn kept() -> MutexGuard<'static, Vec<Raw>> {
    // What a panic left is whole: every change is one call.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Injector {
    /// For the connection of this socket, in the network namespace of the calling thread.
    ///
    /// Fails for want of `CAP_NET_RAW`.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> Result<Self> {
        Self::between(fd, netns_cookie(fd).ok(), Ends::of(fd)?)
    }

    /// The same where it is known between which ends the connection is, and in which network namespace.
    pub(crate) fn between(
        fd: BorrowedFd<'_>,
        namespace: Option<u64>,
        Ends { local, remote }: Ends,
    ) -> Result<Self> {
        let injector = Self {
            local: unmapped(local),
            remote: unmapped(remote),
            device: sockopt::bound_device(fd)?,
            namespace,
        };
        let raw = injector.raw()?;
        injector.give_back(raw);
        Ok(injector)
    }

    /// A raw socket in the network namespace of the connection, bound to its device.
    fn raw(&self) -> Result<Raw> {
        let (v4, namespace) = (self.is_ipv4(), self.namespace);
        if self.device.is_none() && namespace.is_some() {
            let mut kept = kept();
            let found = kept
                .iter()
                .rposition(|raw| raw.v4 == v4 && raw.namespace == namespace);
            if let Some(at) = found {
                return Ok(kept.swap_remove(at));
            }
        }
        const CALL: &str = "socket(SOCK_RAW) (needs CAP_NET_RAW)";
        seam::enter(CALL)?;
        let socket = Socket::new(
            Domain::for_address(self.local),
            Type::RAW.nonblocking(),
            // Sends headers as they are given, and receives nothing.
            Some(Protocol::from(libc::IPPROTO_RAW)),
        )
        .map_err(|source| privileged(CALL, source))?;
        if let Some(device) = &self.device {
            sockopt::set_bound_device(socket.as_fd(), device)?;
        }
        if namespace.is_some() && netns_cookie(socket.as_fd()).ok() != namespace {
            // It would speak on another host.
            return Err(privileged(CALL, io::Error::from_raw_os_error(libc::EXDEV)));
        }
        Ok(Raw {
            socket,
            v4,
            namespace,
            mark: 0,
        })
    }

    fn give_back(&self, raw: Raw) {
        if self.device.is_some() || raw.namespace.is_none() {
            return;
        }
        let mut kept = kept();
        kept.push(raw);
        let closed = (kept.len() > KEEP).then(|| kept.remove(0));
        drop(kept);
        drop(closed);
    }

    /// Whether the packets of the connection are of IPv4.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.remote.is_ipv4()
    }

    /// Sends a segment from the peer to this host, with a firewall mark that lets it pass a lock.
    ///
    /// That it was sent does not mean that it arrives.
    pub(crate) fn inject(&self, segment: &Segment, payload: &[u8], mark: u32) -> Result<()> {
        let tcp = tcp(self.remote, self.local, segment, payload);
        self.deliver(&tcp, segment.ip, mark)
    }

    /// Like [`Injector::inject`], but with a segment that exists; its checksum is filled in anew.
    pub(crate) fn forward(&self, tcp: &[u8], hops: u8, mark: u32) -> Result<()> {
        let mut tcp = tcp.to_vec();
        if tcp.len() < 20 {
            return Err(Error::Length {
                call: "TCP header",
                got: tcp.len(),
                expected: 20,
            });
        }
        fill_checksum(self.remote, self.local, &mut tcp);
        self.deliver(&tcp, Ip::of_peer(hops), mark)
    }

    fn deliver(&self, tcp: &[u8], ip: Ip, mark: u32) -> Result<()> {
        // Else it would leave for the host that has the address.
        self.check_local(mark)?;
        match self.transmit(self.remote, self.local, tcp, ip, mark) {
            // What a packet filter drops on its way out.
            Err(error) if error.errno() == Some(libc::EPERM) => Ok(()),
            other => other,
        }
    }

    /// Whether a segment with this firewall mark could be injected.
    ///
    /// [`Error::NotLocal`] if not.
    pub(crate) fn check_local(&self, mark: u32) -> Result<()> {
        if self.local_is_here(mark)? {
            return Ok(());
        }
        Err(Error::NotLocal {
            address: self.local.ip(),
        })
    }

    /// Sends a segment from this host to the peer, with the connection's own mark.
    pub(crate) fn send(&self, segment: &Segment, payload: &[u8], mark: u32) -> Result<()> {
        let tcp = tcp(self.local, self.remote, segment, payload);
        self.transmit(self.local, self.remote, &tcp, segment.ip, mark)
    }

    fn transmit(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        tcp: &[u8],
        ip: Ip,
        mark: u32,
    ) -> Result<()> {
        let mut raw = self.raw()?;
        if raw.mark != mark {
            sockopt::set_mark(raw.socket.as_fd(), mark)?;
            raw.mark = mark;
        }
        let packet = packet(from, to, tcp, ip);
        let mut to = to;
        // In a raw socket's address the port is the protocol.
        to.set_port(0);
        let sent = seam::announce("sendto(SOCK_RAW)")
            .and_then(|()| raw.socket.send_to(&packet, &SockAddr::from(to)));
        self.give_back(raw);
        sent.map(drop)
            .map_err(|source| privileged("sendto(SOCK_RAW)", source))
    }

    /// Whether packets to the local address are delivered on this host.
    ///
    /// Then routing chooses the address itself as the source on the way to it, unless it is a secondary one (the
    /// kernel's `fib_add_ifaddr`). That can be bound, as can any address where `ip_nonlocal_bind` is set.
    fn local_is_here(&self, mark: u32) -> Result<bool> {
        seam::enter("socket(SOCK_DGRAM)")?;
        let socket = Socket::new(
            Domain::for_address(self.local),
            Type::DGRAM,
            Some(Protocol::UDP),
        )
        .map_err(|e| Error::new("socket(SOCK_DGRAM)", e))?;
        sockopt::set_mark(socket.as_fd(), mark)?;
        if let Some(device) = &self.device {
            sockopt::set_bound_device(socket.as_fd(), device)?;
        }
        if socket.connect(&SockAddr::from(self.local)).is_err() {
            return Ok(false);
        }
        let source = socket
            .local_addr()
            .map_err(|e| Error::new("getsockname", e))?;
        if source
            .as_socket()
            .is_some_and(|source| source.ip() == self.local.ip())
        {
            return Ok(true);
        }
        let version = if self.local.is_ipv4() { "ipv4" } else { "ipv6" };
        let any = fs::read_to_string(format!("/proc/sys/net/{version}/ip_nonlocal_bind"));
        let only_local = any.is_ok_and(|value| value.trim() == "0");
        Ok(only_local && UdpSocket::bind((self.local.ip(), 0)).is_ok())
    }
}

/// A missing capability, which is not the one that [`Error::new`] names.
fn privileged(call: &'static str, source: io::Error) -> Error {
    Error::Call { call, source }
}
