//! Packets that were kept from a socket, delivered to it later.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::packet::inject::Injector;

/// Delivers packets of the peer to one connection on this host, as if they came in now.
///
/// They go through `OUTPUT`, `PREROUTING` and `INPUT` on the loopback device, with the firewall mark that they are
/// given. Needs `CAP_NET_RAW`, the connection's local address on this host and, when it is made and used, a thread in
/// the network namespace of the connection.
#[derive(Debug)]
pub struct Delivery(Injector);

impl Delivery {
    /// For the connection of this socket.
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call), with EPERM for want of `CAP_NET_RAW`.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Self> {
        Injector::open(fd).map(Self)
    }

    /// Sends a packet of the connection's peer to this host: `tcp` is its TCP segment, header and data, whose
    /// checksum is filled in anew; `hops` its time to live or hop limit. That it was sent does not mean that it
    /// arrives.
    ///
    /// # Errors
    ///
    /// [`Error::NotLocal`](crate::Error::NotLocal); [`Error::Call`](crate::Error::Call), with EMSGSIZE for a packet
    /// above 64 KiB.
    pub fn deliver(&self, tcp: &[u8], hops: u8, mark: u32) -> Result<()> {
        self.0.forward(tcp, hops, mark)
    }
}
