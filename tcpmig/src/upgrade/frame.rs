//! What goes over the Unix socket.
//!
//! A frame is a byte that says its kind, with which a descriptor may come; a number (eight bytes) and a length (four), both
//! in network byte order; and as many bytes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tcpmig_format::{Limits, SecretBytes};
use tcpmig_sys::process::passing;

use super::UpgradeError;

/// The version of this protocol.
pub(super) const VERSION: u16 = 1;
/// How long to wait when too many descriptors are on their way.
const FULL: Duration = Duration::from_millis(5);

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The new process: which version it speaks (as the number).
    Hello,
    /// The old one: a listener with this name.
    Listener,
    /// There are no more listeners; the number is the version.
    Welcome,
    /// The new one accepts from now on.
    Ready,
    /// The old one: a session, as an image of its layers.
    Session,
    /// The new one can go on with it.
    Taken,
    /// The new one cannot, for this reason.
    Refused,
    /// The new one has it from now on.
    Commit,
    /// It stays in the old one.
    Abort,
    /// The old one: there are no more.
    Finished,
}

impl Kind {
    const ALL: [(u8, Self); 10] = [
        (b'h', Self::Hello),
        (b'l', Self::Listener),
        (b'w', Self::Welcome),
        (b'r', Self::Ready),
        (b's', Self::Session),
        (b't', Self::Taken),
        (b'n', Self::Refused),
        (b'c', Self::Commit),
        (b'a', Self::Abort),
        (b'f', Self::Finished),
    ];

    fn byte(self) -> u8 {
        // INVARIANT: every kind is in the table.
        Self::ALL
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or(0, |(byte, _)| *byte)
    }

    fn of(byte: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == byte)
            .map(|(_, kind)| *kind)
    }
}

/// A frame that came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) number: u64,
    pub(super) descriptor: Option<OwnedFd>,
    pub(super) payload: SecretBytes,
}

/// Sends a frame; waits while the other end does not read.
pub(super) fn send(
    mut to: &UnixStream,
    kind: Kind,
    number: u64,
    descriptor: Option<BorrowedFd<'_>>,
    payload: &[u8],
) -> Result<(), UpgradeError> {
    loop {
        match passing::send_byte(to.as_fd(), kind.byte(), descriptor) {
            Ok(()) => break,
            // The other end takes some, and there is room again.
            Err(error) if passing::are_too_many(&error) => {
                std::thread::sleep(FULL);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let length = u32::try_from(payload.len())
        .map_err(|_| UpgradeError::Unexpected("a session of more than 4 GiB"))?;
    let mut head = [0; 12];
    head[..8].copy_from_slice(&number.to_be_bytes());
    head[8..].copy_from_slice(&length.to_be_bytes());
    let sent = to.write_all(&head).and_then(|()| to.write_all(payload));
    sent.map_err(UpgradeError::call("write to the other process"))
}

/// The next frame; none if the other end has closed the socket between two of them.
pub(super) fn receive(mut from: &UnixStream) -> Result<Option<Frame>, UpgradeError> {
    let Some((byte, descriptor)) = passing::receive_byte(from.as_fd())? else {
        return Ok(None);
    };
    let kind = Kind::of(byte).ok_or(UpgradeError::Unexpected("a frame of no known kind"))?;
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => UpgradeError::Gone,
        _ => UpgradeError::call("read from the other process")(error),
    };
    let mut head = [0; 12];
    from.read_exact(&mut head).map_err(cut)?;
    let (number, length) = head.split_at(8);
    // INVARIANT: they have eight and four bytes.
    let number = u64::from_be_bytes(number.try_into().unwrap_or_default());
    let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
    if length > Limits::DEFAULT.max_image {
        return Err(UpgradeError::Unexpected(
            "a frame that is longer than any image",
        ));
    }
    // In one piece: memory that grows leaves secrets behind where it was. The other end is of this user.
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).map_err(cut)?;
    Ok(Some(Frame {
        kind,
        number,
        descriptor,
        payload: payload.into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let (here, there) = UnixStream::pair().unwrap();
        let big = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (number, (_, kind)) in Kind::ALL.into_iter().enumerate() {
                    let descriptor = (number % 2 == 0).then(|| here.as_fd());
                    send(&here, kind, number as u64, descriptor, &big[..number]).unwrap();
                }
                send(&here, Kind::Session, u64::MAX, None, &big).unwrap();
                here.shutdown(std::net::Shutdown::Write).unwrap();
            });
            for (number, (_, kind)) in Kind::ALL.into_iter().enumerate() {
                let frame = receive(&there).unwrap().unwrap();
                assert_eq!((frame.kind, frame.number), (kind, number as u64));
                assert_eq!(frame.descriptor.is_some(), number % 2 == 0);
                assert_eq!(frame.payload.len(), number);
            }
            assert_eq!(receive(&there).unwrap().unwrap().payload[..], big);
            assert!(receive(&there).unwrap().is_none());
        });
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let cases: [(&[u8], &str); 4] = [
            (b"?", "no known kind"),
            (b"h\0\0\0", "gone"),
            (b"s\0\0\0\0\0\0\0\x01\0\0\0\x05abc", "gone"),
            (
                b"s\0\0\0\0\0\0\0\x01\xff\xff\xff\xff",
                "longer than any image",
            ),
        ];
        for (bytes, why) in cases {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            let error = receive(&there).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
