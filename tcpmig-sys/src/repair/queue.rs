//! Reading and writing the queues of a socket in repair mode.

use std::io;
use std::os::fd::BorrowedFd;

use socket2::SockRef;

use crate::error::{Error, Result};
use crate::seam;
use crate::{raw, sockopt};

/// A partly acknowledged segment at the head of the send queue is peeked whole:
/// room for the largest segment that segmentation offload builds.
const HEAD_SLACK: usize = 1 << 16;

/// The kernel takes about 68 KiB of receive queue per call.
const CHUNK: usize = 1 << 16;

/// Has peeks begin at the start of the queue, whatever `SO_PEEK_OFF` the application set.
pub(super) fn peek_from_start(fd: BorrowedFd<'_>) -> Result<()> {
    match sockopt::set_peek_offset(fd, -1) {
        // Before Linux 6.9 (IPv6: 6.11) TCP does not have the option: they begin there anyway.
        Err(Error::Unsupported { .. }) => Ok(()),
        other => other,
    }
}

/// Peeks the last `len` bytes of the selected queue. `SO_PEEK_OFF` is off after it.
pub(super) fn read(fd: BorrowedFd<'_>, call: &'static str, len: usize) -> Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    peek_from_start(fd)?;
    let mut slack = HEAD_SLACK;
    loop {
        let mut bytes = Vec::with_capacity(len + slack);
        match raw::peek(fd, &mut bytes) {
            Ok(Ok(got)) if got >= len => {
                bytes.drain(..got - len);
                return Ok(bytes);
            }
            Ok(Ok(got)) => {
                return Err(Error::Length {
                    call,
                    got,
                    expected: len,
                });
            }
            Ok(Err(wanted)) => slack = wanted - len + HEAD_SLACK,
            // The head segment did not fit into the room.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) && slack < 1 << 24 => {
                slack *= 4;
            }
            Err(error) => return Err(Error::new(call, error)),
        }
    }
}

/// Appends `bytes` to the selected queue until the socket takes no more;
/// how many it took.
pub(super) fn append(fd: BorrowedFd<'_>, call: &'static str, bytes: &[u8]) -> Result<usize> {
    let socket = SockRef::from(&fd);
    let mut done = 0;
    while done < bytes.len() {
        let end = bytes.len().min(done + CHUNK);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let sent =
            seam::announce(call).and_then(|()| socket.send_with_flags(&bytes[done..end], flags));
        match sent {
            Ok(sent) => done += sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)
                ) =>
            {
                break;
            }
            Err(error) => return Err(Error::new(call, error)),
        }
    }
    Ok(done)
}
