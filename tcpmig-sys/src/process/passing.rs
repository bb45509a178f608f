//! Descriptors that go from one process to another (`SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::{Error, Result};

/// Sends a duplicate of a descriptor, with one octet. It is there as long as it was not received: a socket that is on its way
/// is not closed by the end of the process that sent it.
///
/// # Errors
///
/// [`Error::Call`]; nothing was sent.
pub fn send(to: &UnixStream, descriptor: BorrowedFd<'_>) -> Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // INVARIANT: there is room for one.
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(
        to,
        &[IoSlice::new(b"d")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(|error| Error::new("sendmsg(SCM_RIGHTS)", error.into()))
}

/// Receives what [`send`] has sent, close-on-exec. `None` if the other end was closed and nothing is left, or if an octet
/// came without a descriptor. Waits for it unless the stream is non-blocking.
///
/// # Errors
///
/// [`Error::Call`].
pub fn receive(from: &UnixStream) -> Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut octet = [0];
    recvmsg(
        from,
        &mut [IoSliceMut::new(&mut octet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| Error::new("recvmsg(SCM_RIGHTS)", error.into()))?;
    let descriptors = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.and_then(|mut descriptors| descriptors.next()))
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
        let mut octet = [0];
        other.read_exact(&mut octet).unwrap();
        assert_eq!(octet, *b"x");
        assert!(receive(&there).unwrap().is_none());
    }

    #[test]
    fn an_octet_alone_is_no_descriptor() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"d").unwrap();
        assert!(receive(&there).unwrap().is_none());
    }
}
