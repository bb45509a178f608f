//! Descriptors that go from one process to another (`SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::{Error, Result};

/// Sends a duplicate of a descriptor, with one byte. It is there as long as it was not received: a socket that is on its way
/// is not closed by the end of the process that sent it.
///
/// # Errors
///
/// [`Error::Call`]; nothing was sent.
pub fn send(to: &UnixStream, descriptor: BorrowedFd<'_>) -> Result<()> {
    send_byte(to, b'd', Some(descriptor))
}

/// Receives what [`send`] has sent, close-on-exec. `None` if the other end was closed and nothing is left, or if a byte
/// came without a descriptor. Waits for it unless the stream is non-blocking.
///
/// # Errors
///
/// [`Error::Call`].
pub fn receive(from: &UnixStream) -> Result<Option<OwnedFd>> {
    Ok(receive_byte(from)?.and_then(|(_, descriptor)| descriptor))
}

/// Sends one byte, and with it a duplicate of a descriptor if there is one.
///
/// # Errors
///
/// [`Error::Call`]; nothing was sent. `EAGAIN` if the stream is non-blocking and full; [`are_too_many`] while more descriptors are
/// on their way than this user's processes may have (`RLIMIT_NOFILE`), until some of them are received.
pub fn send_byte(to: impl AsFd, byte: u8, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // INVARIANT: there is room for one.
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    let bytes = [byte];
    sendmsg(
        to,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(|error| Error::new("sendmsg(SCM_RIGHTS)", error.into()))
}

/// Whether [`send_byte`] failed because too many descriptors are on their way (`ETOOMANYREFS`).
#[must_use]
pub fn are_too_many(error: &Error) -> bool {
    error.errno() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}

/// Receives what [`send_byte`] has sent; the descriptor is close-on-exec. `None` at the end of the stream.
///
/// A descriptor that this process has no room for is lost on its way: the byte comes without it.
///
/// # Errors
///
/// [`Error::Call`].
pub fn receive_byte(from: impl AsFd) -> Result<Option<(u8, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| Error::new("recvmsg(SCM_RIGHTS)", error.into()))?;
    let descriptors = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.and_then(|mut descriptors| descriptors.next());
    Ok((received.bytes > 0).then_some((byte[0], descriptor)))
}

/// The most descriptors that go with one message (`SCM_MAX_FD`).
pub const MOST: usize = 253;

/// Sends a message with duplicates of these descriptors, over a socket that keeps messages apart.
///
/// # Errors
///
/// [`Error::Call`]; nothing was sent. `EINVAL` if there are more than [`MOST`].
pub fn send_message(to: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Error::new(
            "sendmsg(SCM_RIGHTS)",
            rustix::io::Errno::INVAL.into(),
        ));
    }
    sendmsg(
        to,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(|error| Error::new("sendmsg(SCM_RIGHTS)", error.into()))
}

/// Receives what [`send_message`] has sent, as much of the message as fits; the descriptors are close-on-exec.
///
/// # Errors
///
/// [`Error::Call`].
pub fn receive_message(from: impl AsFd, message: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(message)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| Error::new("recvmsg(SCM_RIGHTS)", error.into()))?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, descriptors.flatten().collect()))
}

/// The user and the process at the other end of a connected socket, as they were when it was connected (`SO_PEERCRED`).
///
/// # Errors
///
/// [`Error::Call`].
pub fn peer(of: impl AsFd) -> Result<(u32, u32)> {
    let peer = rustix::net::sockopt::socket_peercred(of)
        .map_err(|error| Error::new("getsockopt(SO_PEERCRED)", error.into()))?;
    let process = peer.pid.as_raw_nonzero().get().cast_unsigned();
    Ok((peer.uid.as_raw(), process))
}

/// The user that this process acts as (`geteuid`).
#[must_use]
pub fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_on_its_way_outlives_its_sender() {
        let (here, there) = UnixStream::pair().unwrap();
        let (passed, mut other) = UnixStream::pair().unwrap();
        send(&here, passed.as_fd()).unwrap();
        drop((here, passed));
        let got = receive(&there).unwrap().expect("a descriptor");
        UnixStream::from(got).write_all(b"x").unwrap();
        let mut byte = [0];
        other.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert!(receive(&there).unwrap().is_none());
    }

    #[test]
    fn bytes_come_with_and_without_descriptors() {
        let (here, there) = UnixStream::pair().unwrap();
        let (passed, _other) = UnixStream::pair().unwrap();
        send_byte(&here, 1, None).unwrap();
        send_byte(&here, 2, Some(passed.as_fd())).unwrap();
        drop(here);
        let next = || receive_byte(&there).unwrap();
        assert!(matches!(next(), Some((1, None))));
        assert!(matches!(next(), Some((2, Some(_)))));
        assert!(next().is_none());
        assert_eq!(peer(&there).unwrap(), (own_user(), std::process::id()));
    }

    #[test]
    fn messages_come_with_their_descriptors() {
        let (here, there) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (passed, _other) = UnixStream::pair().unwrap();
        for count in [0, 1, MOST] {
            send_message(&here, b"message", &vec![passed.as_fd(); count]).unwrap();
            let mut message = [0; 100];
            let (len, descriptors) = receive_message(&there, &mut message).unwrap();
            assert_eq!(
                (&message[..len], descriptors.len()),
                (&b"message"[..], count)
            );
        }
        let error = send_message(&here, b"message", &[passed.as_fd(); MOST + 1]).unwrap_err();
        assert_eq!(error.errno(), Some(22));
    }

    #[test]
    fn a_byte_alone_is_no_descriptor() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"d").unwrap();
        assert!(receive(&there).unwrap().is_none());
    }
}
