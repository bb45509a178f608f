//! Unix sockets that keep the boundaries of messages (`SOCK_SEQPACKET`), with descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with, socketpair,
};

use crate::error::{Error, Result};

/// How many packets of the largest size fit into a socket's buffer, if the system's limits allow it.
const PACKETS_IN_BUFFER: usize = 4;

/// How many connections wait to be accepted.
const WAITING: i32 = 128;

/// A packet that came.
#[derive(Debug)]
#[non_exhaustive]
pub struct Received {
    /// How many bytes it has; 0 at the end.
    pub len: usize,
    /// It was longer than the buffer, or had more descriptors than one: the rest is lost.
    pub is_cut: bool,
    /// What came with it, close-on-exec. None if this process has no room for more.
    pub descriptor: Option<OwnedFd>,
}

fn call(name: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |error| Error::new(name, error.into())
}

fn socket(largest: usize) -> Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    let socket = socket.map_err(call("socket(AF_UNIX, SOCK_SEQPACKET)"))?;
    enlarge(socket.as_fd(), largest)?;
    Ok(socket)
}

/// A packet is sent only if it fits into the buffer. More than the system's limit is cut to that.
fn enlarge(socket: BorrowedFd<'_>, largest: usize) -> Result<()> {
    let size = largest * PACKETS_IN_BUFFER;
    set_socket_send_buffer_size(socket, size).map_err(call("setsockopt(SO_SNDBUF)"))?;
    set_socket_recv_buffer_size(socket, size).map_err(call("setsockopt(SO_RCVBUF)"))
}

fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(call("sockaddr_un (a path of up to 107 bytes)"))
}

/// A non-blocking socket that listens at this path, for packets of up to `largest` bytes.
///
/// # Errors
///
/// [`Error::Call`]; `EADDRINUSE` if there is a file.
pub fn listen_at(path: &Path, largest: usize) -> Result<OwnedFd> {
    let socket = socket(largest)?;
    bind(&socket, &address(path)?).map_err(call("bind"))?;
    listen(&socket, WAITING).map_err(call("listen"))?;
    Ok(socket)
}

/// The next that has connected, non-blocking.
///
/// # Errors
///
/// [`Error::Call`]; `EAGAIN` if there is none.
pub fn accept(listener: impl AsFd, largest: usize) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = accept_with(listener, flags).map_err(call("accept4"))?;
    enlarge(socket.as_fd(), largest)?;
    Ok(socket)
}

/// A non-blocking socket that is connected to the one at this path.
///
/// # Errors
///
/// [`Error::Call`]; `EAGAIN` if too many wait there to be accepted.
pub fn connect_to(path: &Path, largest: usize) -> Result<OwnedFd> {
    let socket = socket(largest)?;
    connect(&socket, &address(path)?).map_err(call("connect"))?;
    Ok(socket)
}

/// Two non-blocking ends of one connection.
///
/// # Errors
///
/// [`Error::Call`].
pub fn pair(largest: usize) -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(call("socketpair"))?;
    enlarge(a.as_fd(), largest)?;
    enlarge(b.as_fd(), largest)?;
    Ok((a, b))
}

/// Sends a packet, and with it a duplicate of a descriptor if there is one.
///
/// # Errors
///
/// [`Error::Call`]; nothing was sent. `EAGAIN` if the other end does not read;
/// [`are_too_many`](super::passing::are_too_many) while more descriptors are on their way than this user's processes may have.
pub fn send(to: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // INVARIANT: there is room for one.
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    let bytes = [IoSlice::new(bytes)];
    let sent = sendmsg(to, &bytes, &mut ancillary, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(call("sendmsg"))
}

/// Receives a packet into this buffer, also one that the other end had sent before it was closed.
///
/// # Errors
///
/// [`Error::Call`]; `EAGAIN` if there is none.
pub fn receive(from: impl AsFd, buffer: &mut [u8]) -> Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(buffer)];
    let mut receive = || recvmsg(&from, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let received = match receive() {
        // The other end was closed before it had read everything. That is said once, and before what it had sent.
        Err(rustix::io::Errno::CONNRESET) => receive(),
        received => received,
    };
    let received = received.map_err(call("recvmsg"))?;
    let mut descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let descriptor = descriptors.next();
    // The space for one is rounded up, and may be enough for two.
    let are_more = descriptors.next().is_some();
    // Without any it is this process that has no room.
    let were_more =
        are_more || received.flags.contains(ReturnFlags::CTRUNC) && descriptor.is_some();
    Ok(Received {
        len: received.bytes,
        is_cut: received.flags.contains(ReturnFlags::TRUNC) || were_more,
        descriptor,
    })
}

/// Ends both directions; whoever waits at the other end sees the end.
///
/// # Errors
///
/// [`Error::Call`].
pub fn shut_down(socket: impl AsFd) -> Result<()> {
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).map_err(call("shutdown"))
}

/// Whether a call on a socket of this kind failed because there is nothing to read, or no room to write.
#[must_use]
pub fn would_block(error: &Error) -> bool {
    error.errno() == Some(rustix::io::Errno::AGAIN.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const LARGEST: usize = 64 << 10;

    #[test]
    fn packets_keep_their_boundaries_and_descriptors() {
        let (here, there) = pair(LARGEST).unwrap();
        let (passed, _other) = UnixStream::pair().unwrap();
        let big = vec![7; LARGEST];
        send(&here, b"one", None).unwrap();
        send(&here, &big, Some(passed.as_fd())).unwrap();
        drop(here);
        let mut buffer = vec![0; LARGEST];
        let one = receive(&there, &mut buffer).unwrap();
        assert_eq!((&buffer[..one.len], one.is_cut), (&b"one"[..], false));
        assert!(one.descriptor.is_none());
        let two = receive(&there, &mut buffer).unwrap();
        assert_eq!((&buffer[..two.len], two.is_cut), (&big[..], false));
        assert!(two.descriptor.is_some());
        assert_eq!(receive(&there, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn what_was_sent_is_there_after_an_end_that_read_nothing() {
        let (here, there) = pair(LARGEST).unwrap();
        let (passed, _other) = UnixStream::pair().unwrap();
        send(&there, b"unread", None).unwrap();
        send(&here, b"last words", Some(passed.as_fd())).unwrap();
        drop(here);
        let mut buffer = vec![0; LARGEST];
        let last = receive(&there, &mut buffer).unwrap();
        assert_eq!(&buffer[..last.len], b"last words");
        assert!(last.descriptor.is_some());
        assert_eq!(receive(&there, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn what_is_longer_than_the_buffer_is_cut() {
        let (here, there) = pair(LARGEST).unwrap();
        send(&here, b"four", None).unwrap();
        let mut buffer = [0; 3];
        assert!(receive(&there, &mut buffer).unwrap().is_cut);
        assert!(would_block(&receive(&there, &mut buffer).unwrap_err()));
    }

    #[test]
    fn a_packet_with_several_descriptors_is_cut() {
        let (here, there) = pair(LARGEST).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        let both = [a.as_fd(), b.as_fd(), a.as_fd(), b.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&both)));
        let bytes = [IoSlice::new(b"x")];
        sendmsg(&here, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
        let mut buffer = [0; 8];
        assert!(receive(&there, &mut buffer).unwrap().is_cut);
    }

    #[test]
    fn who_connects_is_accepted() {
        let folder = std::env::temp_dir().join(format!("tcpmig-packets-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let listener = listen_at(&path, LARGEST).unwrap();
        assert!(would_block(&accept(&listener, LARGEST).unwrap_err()));
        let here = connect_to(&path, LARGEST).unwrap();
        let there = accept(&listener, LARGEST).unwrap();
        send(&there, b"hello", None).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive(&here, &mut buffer).unwrap().len, 5);
        shut_down(&there).unwrap();
        assert_eq!(receive(&here, &mut buffer).unwrap().len, 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
