//! Listeners, which carry no connection: they are read and re-created.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::error::{Error, NotMigratable, Result};
use crate::info::{State, counters, tcp_info};
use crate::repair::local_address;
use crate::{raw, sockopt};

/// Connections that wait in a listener to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptQueue {
    /// How many wait. The handshake of others may be under way.
    pub waiting: u32,
    /// How many may wait: what `listen` was called with, or `net.core.somaxconn` if that was less.
    pub backlog: u32,
}

/// Refuses what is not a listening TCP socket.
///
/// # Errors
///
/// [`Error::NotMigratable`] with [`NotMigratable::NotTcp`], [`NotMigratable::Mptcp`] or, for a socket that does not listen,
/// [`NotMigratable::State`].
pub fn check(fd: BorrowedFd<'_>) -> Result<()> {
    match sockopt::protocol(fd) {
        Ok(libc::IPPROTO_TCP) => {}
        Ok(libc::IPPROTO_MPTCP) => return Err(NotMigratable::Mptcp.into()),
        Ok(_) => return Err(NotMigratable::NotTcp.into()),
        Err(error) if error.errno() == Some(libc::ENOTSOCK) => {
            return Err(NotMigratable::NotTcp.into());
        }
        Err(error) => return Err(error),
    }
    match tcp_info(fd)?.state {
        State::Listen => Ok(()),
        state => Err(NotMigratable::State(state).into()),
    }
}

/// `getsockopt(fd, TCP_INFO)`: what waits in a listener (`tcpi_unacked`, `tcpi_sacked`).
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_INFO")]
pub fn accept_queue(fd: BorrowedFd<'_>) -> Result<AcceptQueue> {
    let counters = counters(fd)?;
    Ok(AcceptQueue {
        waiting: counters.unacked,
        backlog: counters.sacked,
    })
}

/// `getsockname`: where a socket listens.
///
/// # Errors
///
/// [`Error::Call`].
pub fn local(fd: BorrowedFd<'_>) -> Result<SocketAddr> {
    let not_ip = || std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
    SockRef::from(&fd)
        .local_addr()
        .and_then(|address| address.as_socket().ok_or_else(not_ip))
        .map_err(|e| Error::new("getsockname", e))
}

/// `accept4`, until nothing waits: the connections, in the order of their coming, close-on-exec.
///
/// Whether the listener blocks is as it was when this returns.
///
/// # Errors
///
/// [`Error::Call`], with what was accepted before it.
pub fn accept_waiting(fd: BorrowedFd<'_>) -> (Vec<OwnedFd>, Result<()>) {
    let mut accepted = Vec::new();
    let done = accept_into(fd, &mut accepted);
    (accepted, done)
}

fn accept_into(fd: BorrowedFd<'_>, accepted: &mut Vec<OwnedFd>) -> Result<()> {
    use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};

    let non_blocking = crate::fcntl::non_blocking(fd)?;
    crate::fcntl::set_non_blocking(fd, true)?;
    let done = loop {
        match SockRef::from(&fd).accept() {
            Ok((socket, _)) => accepted.push(socket.into()),
            Err(error) if error.kind() == WouldBlock => break Ok(()),
            // One that its peer took back is of no interest to anybody.
            Err(error) if matches!(error.kind(), Interrupted | ConnectionAborted) => {}
            Err(error) => break Err(Error::new("accept4", error)),
        }
    };
    crate::fcntl::set_non_blocking(fd, non_blocking).and(done)
}

/// `getsockopt(fd, TCP_DEFER_ACCEPT)`: the seconds for which a connection without data does not wake the application; 0 is
/// off.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_DEFER_ACCEPT")]
pub fn defer_accept(fd: BorrowedFd<'_>) -> Result<u32> {
    const CALL: &str = "getsockopt(TCP_DEFER_ACCEPT)";
    raw::get(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, CALL)
}

/// `setsockopt(fd, TCP_DEFER_ACCEPT)`: the kernel rounds the seconds up to a number of retransmissions.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_DEFER_ACCEPT")]
pub fn set_defer_accept(fd: BorrowedFd<'_>, seconds: u32) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_DEFER_ACCEPT)";
    raw::set(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, CALL, seconds)
}

/// `getsockopt(fd, TCP_FASTOPEN)`: how many connections with data in their SYN may wait; 0 is off.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_FASTOPEN")]
pub fn fast_open(fd: BorrowedFd<'_>) -> Result<u32> {
    const CALL: &str = "getsockopt(TCP_FASTOPEN)";
    raw::get(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, CALL)
}

/// `setsockopt(fd, TCP_FASTOPEN)`.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "TCP_FASTOPEN")]
pub fn set_fast_open(fd: BorrowedFd<'_>, waiting: u32) -> Result<()> {
    const CALL: &str = "setsockopt(TCP_FASTOPEN)";
    raw::set(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, CALL, waiting)
}

/// A socket that will listen. Set its options, then [`NewListener::listen`].
#[derive(Debug)]
#[must_use = "dropping closes the socket"]
pub struct NewListener(Socket);

impl NewListener {
    /// `socket`, close-on-exec and blocking; `v6` makes an `AF_INET6` socket.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn open(v6: bool) -> Result<Self> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
            .map(Self)
            .map_err(|e| Error::new("socket", e))
    }

    /// `bind` and `listen`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], with EADDRINUSE if another socket has the port; [`Error::NotUsable`] if the address is not ready;
    /// [`Error::NotAsAsked`] if the host allows fewer
    /// connections to wait (`net.core.somaxconn`). The socket is closed.
    pub fn listen(self, local: SocketAddr, backlog: u32) -> Result<OwnedFd> {
        local_address::bind(&self.0, local)?;
        self.0
            .listen(i32::try_from(backlog).unwrap_or(i32::MAX))
            .map_err(|e| Error::new("listen", e))?;
        let got = accept_queue(self.as_fd())?.backlog;
        if got != backlog {
            return Err(Error::NotAsAsked {
                what: "the backlog (raise net.core.somaxconn)",
                asked: backlog.to_string(),
                got: got.to_string(),
            });
        }
        Ok(self.0.into())
    }
}

impl AsFd for NewListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
