//! Connections that have ended, in CLOSE: unread bytes, and an error that the application has not been told.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use super::numbers::{Numbers, Progress};
use super::queue;
use super::snapshot::{self, Ended, Snapshot};
use super::waiting::has_error;
use crate::error::{Error, Result};
use crate::info::tcp_info;
use crate::packet::inject::Injector;
use crate::raw;
use crate::sockopt::{self, Queue};
use crate::uapi::RepairWindow;

/// What there is in CLOSE. What was taken to be read is in `taken`, and is taken once.
pub(super) fn read(
    fd: BorrowedFd<'_>,
    numbers: Numbers,
    progress: Progress,
    taken: &OnceLock<Ended>,
) -> Result<Snapshot> {
    let receive_queue = unread(fd)?;
    let ended = match taken.get() {
        Some(ended) => *ended,
        None => {
            let ended = take(fd)?;
            *taken.get_or_init(|| ended)
        }
    };
    let (negotiated, timestamp) = snapshot::negotiated(fd, &tcp_info(fd)?)?;
    Ok(Snapshot {
        numbers,
        send_queue: Vec::new(),
        unsent: 0,
        receive_queue,
        window: RepairWindow::default(),
        negotiated,
        timestamp,
        ended: Some(ended),
        progress,
    })
}

/// The bytes that the application has not read.
pub(super) fn unread(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    // Also if nothing is unread: what follows looks past it.
    queue::peek_from_start(fd)?;
    sockopt::set_repair_queue(fd, Queue::Receive)?;
    let readable = sockopt::receive_queue_len(fd)? as usize;
    let bytes = queue::read(fd, "recv(receive queue)", readable);
    sockopt::set_repair_queue(fd, Queue::None)?;
    bytes
}

/// Takes the pending error, if there is one: no call shows it and leaves it.
fn take(fd: BorrowedFd<'_>) -> Result<Ended> {
    let in_order = Ended {
        error: None,
        after_fin: true,
    };
    if !has_error(fd)? {
        return Ok(in_order);
    }
    // Not without the means to put it back.
    Injector::open(fd)?.check_local(0)?;
    let shown = look_past(fd)?;
    if let Shown::Taken(error) = shown {
        return Ok(Ended {
            error: Some(error),
            after_fin: false,
        });
    }
    let error = sockopt::take_error(fd)?.and_then(|error| error.raw_os_error());
    Ok(match error {
        // Something else was reported: the error queue, for instance.
        None => in_order,
        Some(error) => Ended {
            error: Some(error),
            after_fin: matches!(shown, Shown::End) || error == libc::EPIPE,
        },
    })
}

/// What an application would be told once it has read all bytes.
enum Shown {
    /// The end: the peer had closed.
    End,
    /// The pending error, which was taken by looking.
    Taken(i32),
    /// The pending error, which is still there.
    Error,
}

/// Two counts of the receive queue differ by the FIN: `TCP_INQ` includes it, and is never 0 once there was one; `SIOCINQ`
/// leaves it out (`tcp_inq_hint` and `tcp_inq` of the kernel). A peek behind the bytes would say it as well, but the offset
/// for it came with Linux 6.9.
fn look_past(fd: BorrowedFd<'_>) -> Result<Shown> {
    let asked = sockopt::inq(fd)?;
    sockopt::set_inq(fd, true)?;
    sockopt::set_repair_queue(fd, Queue::Receive)?;
    let with_fin = raw::peek_inq(fd);
    sockopt::set_repair_queue(fd, Queue::None)?;
    sockopt::set_inq(fd, asked)?;
    let without = sockopt::receive_queue_len(fd)?;
    match with_fin {
        Ok(Some(with_fin)) if with_fin.unsigned_abs() > without => Ok(Shown::End),
        Ok(_) => Ok(Shown::Error),
        Err(error) => match error.raw_os_error() {
            Some(number) => Ok(Shown::Taken(number)),
            None => Err(Error::new("recvmsg(MSG_PEEK)", error)),
        },
    }
}
