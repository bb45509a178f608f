//! What only `sock_diag` tells of a socket, and what no option of it does.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::occupant::Occupant;
use crate::ends::Ends;
use crate::error::{Error, Result};
use crate::info::State;
use crate::{netns, raw, seam, sockopt};

/// `linux/netlink.h`, `linux/sock_diag.h` and `linux/inet_diag.h`.
pub(crate) const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_MD5SIG: u16 = 18;

/// `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// An answer with its extensions, of which `struct tcp_info` and the keys are the longest: it is cut off if it is longer.
const LONGEST_ANSWER: usize = 1 << 12;
/// In `struct inet_diag_sockid`, which the answer has after four bytes.
const COOKIE: usize = HEADER + 4 + 40;

/// In the answer: the socket's state.
const STATE: usize = HEADER + 1;

/// In the answer: which timer runs, and its milliseconds.
const TIMER: usize = HEADER + 2;
const EXPIRES: usize = HEADER + 4 + 48;
const RETRANSMISSION: u8 = 1;
const KEEPALIVE: u8 = 2;
const TIME_WAIT: u8 = 3;

/// In the answer: `struct inet_diag_sockid`, and the number of the file that a process has of it.
const ID: usize = HEADER + 4;
const INODE: usize = HEADER + 68;

/// `asm-generic/socket.h`.
const SO_NETNS_COOKIE: i32 = 71;

/// `linux/tcp.h`.
const TCP_AO_INFO: i32 = 40;

/// The kernel has no TCP-AO, so that no socket uses it.
static WITHOUT_AO: AtomicBool = AtomicBool::new(false);

/// Whether the socket signs with keys of TCP-AO (Linux 6.7).
pub(crate) fn has_ao(fd: BorrowedFd<'_>) -> Result<bool> {
    if WITHOUT_AO.load(Ordering::Relaxed) {
        return Ok(false);
    }
    // Long enough for `struct tcp_ao_info_opt`, which has to be zero where nothing is asked for.
    let mut bytes = [0; 56];
    match raw::get_bytes(
        fd,
        libc::IPPROTO_TCP,
        TCP_AO_INFO,
        "getsockopt(TCP_AO_INFO)",
        &mut bytes,
    ) {
        Ok(_) => Ok(true),
        Err(Error::Unsupported { .. }) => {
            // One of another protocol, such as MPTCP, says nothing about the kernel.
            if matches!(sockopt::protocol(fd), Ok(libc::IPPROTO_TCP)) {
                WITHOUT_AO.store(true, Ordering::Relaxed);
            }
            Ok(false)
        }
        // It does not use it.
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How long it takes until the socket sends again what it sent last, to a tick of the kernel. `None` if its timer does not
/// run, or the kernel cannot tell.
pub(crate) fn until_retransmission(fd: BorrowedFd<'_>) -> Result<Option<Duration>> {
    let asked = ask(fd, KEYS)?;
    Ok(asked.about().and_then(|answer| {
        let millis = u64::from(word(answer, EXPIRES)?);
        (answer.get(TIMER) == Some(&RETRANSMISSION)).then(|| Duration::from_millis(millis))
    }))
}

/// Whether the socket is the one that the kernel finds by its addresses and ports. `None` if the kernel cannot tell.
pub(crate) fn is_found_by_its_addresses(fd: BorrowedFd<'_>) -> Result<Option<bool>> {
    if !matches!(sockopt::protocol(fd), Ok(libc::IPPROTO_TCP)) {
        return Ok(Some(false));
    }
    let asked = ask(fd, KEYS)?;
    Ok((!asked.answer.is_empty()).then(|| asked.about().is_some()))
}

/// `getsockopt(fd, SO_COOKIE)`: a number that no other socket of this host ever has, and that stays with it whatever becomes of its
/// connection.
///
/// # Errors
///
/// [`Error::Call`].
#[doc(alias = "SO_COOKIE")]
pub fn cookie(fd: BorrowedFd<'_>) -> Result<u64> {
    raw::get(
        fd,
        libc::SOL_SOCKET,
        libc::SO_COOKIE,
        "getsockopt(SO_COOKIE)",
    )
}

/// The extension without which keys are not listed.
pub(crate) const KEYS: u8 = extension(INET_DIAG_INFO);

/// In a request: what the answer is to tell besides.
pub(crate) const fn extension(number: u16) -> u8 {
    1 << (number - 1)
}

/// What the kernel says about a socket, and what had to be known of it to ask.
pub(crate) struct Asked {
    pub(crate) ends: Ends,
    pub(crate) bound_device: Option<String>,
    /// The cookie of its network namespace (Linux 5.14).
    pub(crate) namespace: Option<u64>,
    /// The socket's, which is in an answer about it.
    cookie: u64,
    answer: Vec<u8>,
}

impl Asked {
    /// The answer, if it is about this socket: another one may have its addresses and ports.
    pub(crate) fn about(&self) -> Option<&[u8]> {
        about(&self.answer, self.cookie)
    }

    /// Whether the socket has MD5 keys. False if the kernel cannot tell.
    pub(crate) fn has_md5(&self) -> bool {
        let mut attributes = self.about().into_iter().flat_map(attributes);
        attributes.any(|(kind, _)| kind == INET_DIAG_MD5SIG)
    }
}

/// Asks the kernel about a socket.
pub(crate) fn ask(fd: BorrowedFd<'_>, extensions: u8) -> Result<Asked> {
    const CALL: &str = "netlink(SOCK_DIAG_BY_FAMILY)";
    let failed = |source| Error::new(CALL, source);
    let ends = Ends::of(fd)?;
    let cookie = cookie(fd)?;
    let bound_device = sockopt::bound_device(fd)?;
    let device = match (&bound_device, ends.local) {
        (Some(name), _) => netns::device_index(name)?,
        (None, SocketAddr::V6(v6)) => v6.scope_id(),
        (None, SocketAddr::V4(_)) => 0,
    };
    let namespace = netns_cookie(fd).ok();
    let asked = with_netlink(namespace, |mut netlink| {
        seam::announce(CALL)?;
        netlink.write_all(&request(ends, device, extensions))?;
        let mut answer = [0; LONGEST_ANSWER];
        let len = netlink.read(&mut answer)?;
        Ok(answer[..len].to_vec())
    });
    let answer = match asked {
        Ok(answer) => answer,
        // A kernel without CONFIG_INET_DIAG.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    Ok(Asked {
        ends,
        bound_device,
        namespace,
        cookie,
        answer,
    })
}

thread_local! {
    /// This thread's socket and the cookie of its network namespace: making one costs more than asking.
    static NETLINK: RefCell<Option<(u64, Socket)>> = const { RefCell::new(None) };
}

/// Asks by a socket in the network namespace with this cookie, which is the thread's.
fn with_netlink<T>(here: Option<u64>, ask: impl FnOnce(&Socket) -> io::Result<T>) -> io::Result<T> {
    let kept = NETLINK.take();
    let (cookie, socket) = match kept {
        Some((cookie, socket)) if Some(cookie) == here => (Some(cookie), socket),
        _ => {
            let socket = Socket::new(
                Domain::from(libc::AF_NETLINK),
                Type::RAW,
                Some(Protocol::from(NETLINK_SOCK_DIAG)),
            )?;
            (netns_cookie(socket.as_fd()).ok(), socket)
        }
    };
    // After an error the answer may be to come: the socket is not used again.
    let answer = ask(&socket)?;
    NETLINK.set(cookie.map(|cookie| (cookie, socket)));
    Ok(answer)
}

/// A number of the socket's network namespace that no other one ever gets (Linux 5.14).
pub(crate) fn netns_cookie(fd: BorrowedFd<'_>) -> Result<u64> {
    raw::get(
        fd,
        libc::SOL_SOCKET,
        SO_NETNS_COOKIE,
        "getsockopt(SO_NETNS_COOKIE)",
    )
}

pub(crate) fn request(Ends { local, remote }: Ends, device: u32, extensions: u8) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port.
    request.extend([0; 8]);
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // Padding, and every state.
    request.extend([family as u8, libc::IPPROTO_TCP as u8, extensions, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        match address {
            IpAddr::V4(v4) => {
                request.extend(v4.octets());
                request.extend([0; 12]);
            }
            IpAddr::V6(v6) => request.extend(v6.octets()),
        }
    }
    request.extend(device.to_ne_bytes());
    // Any cookie: the answer's is compared.
    request.extend([0xff; 8]);
    request
}

/// A request for all TCP sockets of a family, in every state.
pub(crate) fn dump_request(family: u8) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.resize(HEADER + REQUEST, 0);
    request
}

/// Gives each message about a socket in a part of a dump; true if that was the last part.
///
/// # Errors
///
/// What the kernel says, or `InvalidData`.
pub(crate) fn each(mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    while let Some(len) = word(bytes, 0) {
        let len = len as usize;
        let Some(message) = bytes.get(..len).filter(|_| len >= HEADER) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match half(message, 4) {
            Some(NLMSG_DONE) => return Ok(true),
            Some(NLMSG_ERROR) => {
                answered(message)?;
                return Ok(true);
            }
            _ => take(message),
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// What a message says about a socket.
pub(crate) struct About {
    pub(crate) family: u8,
    pub(crate) state: u8,
    /// Its own, and the other one.
    pub(crate) ports: [u16; 2],
    pub(crate) addresses: [[u8; 16]; 2],
    pub(crate) device: u32,
    pub(crate) cookie: u64,
    /// What was received and not read, and what was written and not acknowledged.
    pub(crate) queues: [u32; 2],
    pub(crate) user: u32,
    pub(crate) inode: u32,
}

impl About {
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let port = |at: usize| {
            let bytes = message.get(ID + at..ID + at + 2)?.try_into().ok()?;
            Some(u16::from_be_bytes(bytes))
        };
        let address = |at: usize| message.get(ID + at..ID + at + 16)?.try_into().ok();
        Some(Self {
            family: *message.get(HEADER)?,
            state: *message.get(STATE)?,
            ports: [port(0)?, port(2)?],
            addresses: [address(4)?, address(20)?],
            device: word(message, ID + 36)?,
            cookie: cookie_in(message)?,
            // `idiag_rqueue`, `idiag_wqueue` and `idiag_uid`, which precede `idiag_inode`.
            queues: [word(message, INODE - 12)?, word(message, INODE - 8)?],
            user: word(message, INODE - 4)?,
            inode: word(message, INODE)?,
        })
    }
}

/// In `struct nlmsghdr`.
const SEQUENCE: usize = 8;

/// Gives a request a number, which its answer has too.
pub(crate) fn number(request: &mut [u8], sequence: u32) {
    request[SEQUENCE..SEQUENCE + 4].copy_from_slice(&sequence.to_ne_bytes());
}

/// Whether this is the answer to the request with that number.
pub(crate) fn is_numbered(answer: &[u8], sequence: u32) -> bool {
    word(answer, SEQUENCE) == Some(sequence)
}

/// What an answer is about, or the kernel's error. Nothing if it only says that the request was carried out.
pub(crate) fn answered(answer: &[u8]) -> io::Result<Option<Occupant>> {
    match half(answer, 4) {
        Some(NLMSG_ERROR) => match word(answer, HEADER) {
            Some(0) => Ok(None),
            negated => {
                let errno = negated.map_or(0, |negated| (negated as i32).wrapping_neg());
                Err(io::Error::from_raw_os_error(errno))
            }
        },
        Some(SOCK_DIAG_BY_FAMILY) if answer.len() >= HEADER + ANSWER => Ok(occupant(answer)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn occupant(answer: &[u8]) -> Option<Occupant> {
    let state = State::from_number(answer[STATE])?;
    let expires = word(answer, EXPIRES)?;
    let stays = matches!(answer[TIMER], KEEPALIVE | TIME_WAIT)
        .then(|| Duration::from_millis(expires.into()));
    Some(Occupant {
        state,
        owned: word(answer, INODE)? != 0,
        stays,
        id: (answer[HEADER], answer.get(ID..ID + 48)?.try_into().ok()?),
    })
}

/// A request to end the socket with this `struct inet_diag_sockid`, of either family.
pub(crate) fn end_request(family: u8, id: &[u8; 48]) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(id);
    request
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// The answer, if it is one about the socket with this cookie.
fn about(answer: &[u8], cookie: u64) -> Option<&[u8]> {
    let kind = half(answer, 4)?;
    (kind == SOCK_DIAG_BY_FAMILY && cookie_in(answer)? == cookie).then_some(answer)
}

/// Two words, the low one first.
fn cookie_in(message: &[u8]) -> Option<u64> {
    let low = u64::from(word(message, COOKIE)?);
    let high = u64::from(word(message, COOKIE + 4)?);
    Some(high << 32 | low)
}

/// What an answer tells besides, each with its number.
pub(crate) fn attributes(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = HEADER + ANSWER;
    std::iter::from_fn(move || {
        let (len, kind) = half(answer, at).zip(half(answer, at + 2))?;
        // An attribute has its header at least, and begins at a multiple of four. A long answer is cut off.
        let len = usize::from(len).max(4);
        let end = answer.len().min(at + len);
        let content = answer.get(at + 4..end).unwrap_or_default();
        at += len.next_multiple_of(4);
        Some((kind, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_that_it_names() {
        for (local, remote) in [("10.0.0.1:1", "10.0.0.2:2"), ("[::1]:1", "[::2]:2")] {
            let ends = Ends {
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
            };
            let request = request(ends, 0, KEYS);
            assert_eq!(request.len(), HEADER + REQUEST);
            assert_eq!(request[..4], (request.len() as u32).to_ne_bytes());
        }
    }

    #[test]
    fn answers_are_not_trusted_to_be_whole() {
        let mut answer = vec![0; HEADER + ANSWER];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[COOKIE] = 7;
        let names_keys = |answer: &[u8], cookie| {
            let mut attributes = about(answer, cookie).into_iter().flat_map(attributes);
            attributes.any(|(kind, _)| kind == INET_DIAG_MD5SIG)
        };
        for (len, kind) in [(5_u16, 1_u16), (0, 2), (12, INET_DIAG_MD5SIG)] {
            assert!(!names_keys(&answer, 7));
            answer.extend(len.to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            let content = usize::from(len).saturating_sub(4).next_multiple_of(4);
            answer.extend(vec![0; content]);
        }
        assert!(names_keys(&answer, 7));
        assert!(!names_keys(&answer, 8));
        for len in 0..HEADER + ANSWER + 16 {
            assert!(!names_keys(&answer[..len], 7), "{len}");
        }
    }
}
