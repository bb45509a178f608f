//! The addresses and ports of a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::BorrowedFd;

use socket2::SockRef;

use crate::error::{Error, Result};
use crate::{raw, seam, sockopt};

/// The two ends of a connection, as its socket has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// This host's.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

impl Ends {
    /// The local and the remote address of a TCP socket that is connected, that is being connected, or whose connection
    /// has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] of `getsockname` or `getpeername`; ENOTCONN if there never was a connection.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let socket = SockRef::from(&fd);
        let not_ip = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        seam::enter("getsockname")?;
        let local = socket
            .local_addr()
            .and_then(|a| a.as_socket().ok_or_else(not_ip))
            .map_err(|e| Error::new("getsockname", e))?;
        seam::enter("getpeername")?;
        let remote = match socket.peer_addr() {
            // It tells no address in SYN_SENT and CLOSE.
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => peer_name(fd)?,
            other => other
                .and_then(|a| a.as_socket().ok_or_else(not_ip))
                .map_err(|e| Error::new("getpeername", e))?,
        };
        Ok(Self { local, remote })
    }
}

/// `getsockopt(fd, SO_PEERNAME)`, which tells the address in every state, as long as the socket has one.
pub(crate) fn peer_name(fd: BorrowedFd<'_>) -> Result<SocketAddr> {
    const CALL: &str = "getsockopt(SO_PEERNAME)";
    // The kernel refuses a buffer that is longer than the address.
    let v6 = sockopt::domain(fd)? == libc::AF_INET6;
    let mut bytes = [0_u8; 28];
    let len = if v6 { 28 } else { 16 };
    let got = raw::get_bytes(
        fd,
        libc::SOL_SOCKET,
        libc::SO_PEERNAME,
        CALL,
        &mut bytes[..len],
    )?;
    if got != len {
        return Err(Error::Length {
            call: CALL,
            got,
            expected: len,
        });
    }
    // `struct sockaddr_in` and `sockaddr_in6`: family, port, then address or flow information, address and scope.
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if !v6 {
        return Ok(SocketAddrV4::new(Ipv4Addr::from(word(4)), port).into());
    }
    let mut address = [0; 16];
    address.copy_from_slice(&bytes[8..24]);
    let scope = u32::from_ne_bytes(word(24));
    Ok(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
}

pub(crate) fn is_mapped(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The address as it is on the wire.
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4_on_the_wire() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(unmapped(mapped), "192.0.2.1:80".parse().unwrap());
    }
}
