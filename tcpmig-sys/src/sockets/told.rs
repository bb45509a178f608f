//! What one question to the kernel tells of a socket in place of a call for each option.

use std::os::fd::BorrowedFd;

use super::diag::{self, Asked, KEYS, extension};
use crate::error::Result;
use crate::options::KnownOption;
use crate::{fcntl, sockopt};

/// `linux/inet_diag.h`.
const CONG: u16 = 4;
const TOS: u16 = 5;
const TCLASS: u16 = 6;
const SKMEMINFO: u16 = 7;
const SHUTDOWN: u16 = 8;
const MARK: u16 = 15;
const SOCKOPT: u16 = 22;

/// What is told only if it is asked for, and the keys.
pub(crate) const ALL: u8 =
    KEYS | extension(CONG) | extension(TOS) | extension(TCLASS) | extension(SKMEMINFO);

/// `linux/sock_diag.h`: where the sizes of the buffers are among the words of `SKMEMINFO`.
const RECEIVE_BUFFER: usize = 1;
const SEND_BUFFER: usize = 3;

/// `RCV_SHUTDOWN` of the kernel.
const SHUT_READ: u8 = 1;

/// `struct inet_diag_sockopt`: byte and bit of each.
const RECEIVE_ERRORS: (usize, u8) = (0, 0);
const FREEBIND: (usize, u8) = (0, 2);
const TRANSPARENT: (usize, u8) = (0, 5);
const BIND_ADDRESS_NO_PORT: (usize, u8) = (1, 0);

/// Options of a socket that the kernel told in one answer. A method asks the socket for what is not among them: by default all,
/// before Linux 5.10 and without `CAP_NET_ADMIN` some.
#[derive(Debug, Default)]
pub struct Told {
    type_of_service: Option<u8>,
    traffic_class: Option<u8>,
    flags: Option<[u8; 2]>,
    mark: Option<u32>,
    /// Of the receive buffer and the send buffer.
    buffers: Option<(u32, u32)>,
    congestion: Option<String>,
    /// Neither the application nor a FIN of the peer has shut the receiving direction.
    is_read_open: bool,
}

impl Told {
    /// What is in an answer about the socket.
    pub(crate) fn in_answer(asked: &Asked) -> Self {
        let mut told = Self::default();
        let Some(answer) = asked.about() else {
            return told;
        };
        for (kind, content) in diag::attributes(answer) {
            let first = content.first().copied();
            match kind {
                TOS => told.type_of_service = first,
                TCLASS => told.traffic_class = first,
                SOCKOPT => {
                    let bytes = content.get(..2);
                    told.flags = bytes.and_then(|bytes| bytes.try_into().ok());
                }
                MARK => told.mark = word(content, 0),
                SKMEMINFO => {
                    told.buffers = word(content, RECEIVE_BUFFER).zip(word(content, SEND_BUFFER));
                }
                CONG => {
                    let name = content.strip_suffix(&[0]).unwrap_or(content);
                    told.congestion = String::from_utf8(name.to_vec()).ok();
                }
                SHUTDOWN => told.is_read_open = first.is_some_and(|shut| shut & SHUT_READ == 0),
                _ => {}
            }
        }
        told
    }

    /// The value of an option that is a number, or a switch (0 or 1). `None` if it has to be [read](sockopt::get).
    #[must_use]
    pub fn value(&self, option: &KnownOption) -> Option<u32> {
        match option.name {
            "IP_TOS" => self.type_of_service.map(u32::from),
            "IPV6_TCLASS" => self.traffic_class.map(u32::from),
            "IP_RECVERR" => self.flag(RECEIVE_ERRORS).map(u32::from),
            "IP_BIND_ADDRESS_NO_PORT" => self.flag(BIND_ADDRESS_NO_PORT).map(u32::from),
            _ => None,
        }
    }

    /// As [`sockopt::mark`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn mark(&self, fd: BorrowedFd<'_>) -> Result<u32> {
        self.mark.map_or_else(|| sockopt::mark(fd), Ok)
    }

    /// As [`sockopt::transparent`], or [`sockopt::transparent_v6`] of a socket of IPv6.
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn transparent(&self, fd: BorrowedFd<'_>, is_v6: bool) -> Result<bool> {
        match self.flag(TRANSPARENT) {
            Some(transparent) => Ok(transparent),
            None if is_v6 => sockopt::transparent_v6(fd),
            None => sockopt::transparent(fd),
        }
    }

    /// As [`sockopt::freebind`], or [`sockopt::freebind_v6`] of a socket of IPv6.
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn freebind(&self, fd: BorrowedFd<'_>, is_v6: bool) -> Result<bool> {
        match self.flag(FREEBIND) {
            Some(freebind) => Ok(freebind),
            None if is_v6 => sockopt::freebind_v6(fd),
            None => sockopt::freebind(fd),
        }
    }

    /// As [`sockopt::receive_buffer`], in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn receive_buffer(&self, fd: BorrowedFd<'_>) -> Result<u32> {
        match self.buffers {
            Some((receive, _)) => Ok(receive),
            None => sockopt::receive_buffer(fd),
        }
    }

    /// As [`sockopt::send_buffer`], in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn send_buffer(&self, fd: BorrowedFd<'_>) -> Result<u32> {
        match self.buffers {
            Some((_, send)) => Ok(send),
            None => sockopt::send_buffer(fd),
        }
    }

    /// As [`sockopt::congestion`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn congestion(&self, fd: BorrowedFd<'_>) -> Result<String> {
        match &self.congestion {
            Some(name) => Ok(name.clone()),
            None => sockopt::congestion(fd),
        }
    }

    /// As [`fcntl::read_shut`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`](crate::Error::Call).
    pub fn read_shut(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        // A FIN that arrived while the kernel answered would look like it.
        if self.is_read_open {
            return Ok(false);
        }
        fcntl::read_shut(fd)
    }

    fn flag(&self, (byte, bit): (usize, u8)) -> Option<bool> {
        // Fields of bits begin at the other end there.
        let bit = if cfg!(target_endian = "big") {
            7 - bit
        } else {
            bit
        };
        Some(self.flags?[byte] >> bit & 1 != 0)
    }
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let at = index * 4;
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}
