//! What a host's device sees, and when.

use std::io::{ErrorKind, IoSliceMut};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{Host, LabError, Result};

/// So many bytes of each frame are kept: all headers.
const KEPT: u32 = 160;
/// For so many bytes of frames there is room until they are taken.
const ROOM: usize = 256 << 20;

/// The frames that a host sends and receives from a moment on.
#[derive(Debug)]
pub struct Seen {
    socket: Socket,
    control: Vec<u8>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// When the device saw it.
    pub at: SystemTime,
    /// The beginning of it, from its hardware addresses on.
    pub bytes: Vec<u8>,
}

impl Seen {
    /// Begins now, on all devices of the host.
    ///
    /// # Errors
    ///
    /// [`LabError`].
    pub fn by(host: &Host) -> Result<Self> {
        let open = || {
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
            // `BPF_RET | BPF_K`: the rest of a frame is cut off.
            socket.attach_filter(&[SockFilter::new(6, 0, 0, KEPT)])?;
            // Without the room, what comes too fast is not seen.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &ROOM);
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            Ok(socket)
        };
        let socket = host.run(open)?.map_err(|source| LabError::Start {
            program: "a packet socket",
            source,
        })?;
        Ok(Self {
            socket,
            control: nix::cmsg_space!(nix::sys::time::TimeSpec),
        })
    }

    /// The next frame; none if none comes in this time.
    ///
    /// # Errors
    ///
    /// [`LabError::Start`] if the socket says one.
    pub fn next(&mut self, within: Duration) -> Result<Option<Frame>> {
        let failed = |source| LabError::Start {
            program: "a packet socket",
            source,
        };
        // No time at all would be for ever.
        let within = within.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(within)).map_err(failed)?;
        let mut bytes = [0; KEPT as usize];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut self.control),
            MsgFlags::empty(),
        );
        let received = match received.map_err(std::io::Error::from) {
            Ok(received) => received,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let mut at = SystemTime::now();
        for message in received.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmTimestampns(time) = message {
                at = SystemTime::UNIX_EPOCH + Duration::from(time);
            }
        }
        let length = received.bytes;
        Ok(Some(Frame {
            at,
            bytes: bytes[..length].to_vec(),
        }))
    }
}
