//! The socket calls that take raw pointers, each behind a checked function.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result};
use crate::seam;

/// Types that the kernel may fill with any bytes: plain integers and
/// `repr(C)` structs of them without padding.
///
/// # Safety
///
/// Every pattern of bytes, all zero included, is a valid value of the type.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer of any bytes is valid.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: three and two integers of 32 bits, no padding.
unsafe impl Plain for libc::linger {}
// SAFETY: two integers of the same size, no padding.
unsafe impl Plain for libc::timeval {}
// SAFETY: integers only, no padding (asserted where it is declared).
unsafe impl Plain for crate::uapi::RepairOption {}
// SAFETY: integers only, no padding (asserted where it is declared).
unsafe impl Plain for crate::uapi::RepairWindow {}

// SAFETY: integers only, all padding is a field (its size is asserted where it is declared).
unsafe impl Plain for crate::uapi::XfrmUserPolicy {}

/// `getsockopt` into `buffer`; the length that the kernel filled.
pub(crate) fn get_bytes(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    call: &'static str,
    buffer: &mut [u8],
) -> Result<usize> {
    seam::enter(call)?;
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `buffer`, which outlives the call.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if status < 0 {
        return Err(Error::last(call));
    }
    Ok(len as usize)
}

/// `getsockopt` of a value that has exactly the length of its type.
pub(crate) fn get<T: Plain>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    call: &'static str,
) -> Result<T> {
    seam::enter(call)?;
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if status < 0 {
        return Err(Error::last(call));
    }
    if len as usize != size_of::<T>() {
        return Err(Error::Length {
            call,
            got: len as usize,
            expected: size_of::<T>(),
        });
    }
    // SAFETY: zeroed and then filled by the kernel: a valid value, as `Plain` promises.
    Ok(unsafe { value.assume_init() })
}

/// `setsockopt` of any number of plain values.
pub(crate) fn set_slice<T: Plain>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    call: &'static str,
    values: &[T],
) -> Result<()> {
    seam::enter(call)?;
    // SAFETY: the pointer and the length describe `values`, which outlives the call.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            values.as_ptr().cast(),
            size_of_val(values) as libc::socklen_t,
        )
    };
    if status < 0 {
        return Err(Error::last(call));
    }
    Ok(())
}

/// `setsockopt` of one plain value.
pub(crate) fn set<T: Plain>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    call: &'static str,
    value: T,
) -> Result<()> {
    set_slice(fd, level, name, call, &[value])
}

/// `setsockopt` without a value.
pub(crate) fn set_nothing(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    call: &'static str,
) -> Result<()> {
    seam::enter(call)?;
    // SAFETY: no pointer is passed, and the length says so.
    let status = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::null(), 0) };
    if status < 0 {
        return Err(Error::last(call));
    }
    Ok(())
}

/// `getsockopt(SO_GET_FILTER)`, whose length counts instructions; how many there are.
pub(crate) fn get_filter(fd: BorrowedFd<'_>, buffer: &mut [libc::sock_filter]) -> Result<usize> {
    seam::enter("getsockopt(SO_GET_FILTER)")?;
    let mut count = buffer.len() as libc::socklen_t;
    // SAFETY: the pointer and the count describe `buffer`, of which the kernel writes at most that
    // many instructions (sk_get_filter), and it outlives the call.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            buffer.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    if status < 0 {
        return Err(Error::last("getsockopt(SO_GET_FILTER)"));
    }
    Ok(count as usize)
}

/// `setsockopt(SO_ATTACH_FILTER)`. At most 65535 instructions are passed on, of which the kernel takes 4096.
pub(crate) fn attach_filter(
    fd: BorrowedFd<'_>,
    instructions: &mut [libc::sock_filter],
) -> Result<()> {
    seam::enter("setsockopt(SO_ATTACH_FILTER)")?;
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).unwrap_or(u16::MAX),
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the program describes `instructions`, or the first part of them; the kernel copies
    // both during the call.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if status < 0 {
        return Err(Error::last("setsockopt(SO_ATTACH_FILTER)"));
    }
    Ok(())
}

/// `bpf(BPF_PROG_LOAD)` of a filter for sockets, each instruction a `struct bpf_insn`.
#[cfg(feature = "lab")]
pub(crate) fn load_filter(instructions: &[u64]) -> Result<OwnedFd> {
    // The beginning of `union bpf_attr` (linux/bpf.h); the kernel takes what is left out as zero.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const SOCKET_FILTER: u32 = 1;
    let load = Load {
        kind: SOCKET_FILTER,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the length is that of `load`, whose pointers are to instructions of that count and to a string with its
    // end; the kernel reads all of them during the call.
    let got = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of::<Load>(),
        )
    };
    if got < 0 {
        return Err(Error::last("bpf(BPF_PROG_LOAD)"));
    }
    // SAFETY: the kernel made this descriptor just now, for us alone; it is a small number.
    Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
}

/// `ioctl` that answers with one integer.
pub(crate) fn ioctl_int(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    call: &'static str,
) -> Result<i32> {
    seam::enter(call)?;
    let mut value: libc::c_int = 0;
    // SAFETY: the requests used here (SIOCINQ, SIOCOUTQ, SIOCOUTQNSD) write one int.
    let status = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) };
    if status < 0 {
        return Err(Error::last(call));
    }
    Ok(value)
}

/// `ioctl` that answers with a new descriptor.
pub(crate) fn ioctl_descriptor(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    call: &'static str,
) -> Result<OwnedFd> {
    seam::enter(call)?;
    // SAFETY: the request used here (SIOCGSKNS) takes no argument.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), request as _) };
    if got < 0 {
        return Err(Error::last(call));
    }
    // SAFETY: the kernel made this descriptor just now, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// `ioctl(TUNSETIFF)`: makes a TAP device of this name, whose frames are read and written here without any header.
#[cfg(feature = "lab")]
pub(crate) fn attach_tap(fd: BorrowedFd<'_>, device: &str) -> Result<()> {
    const CALL: &str = "ioctl(TUNSETIFF)";
    // SAFETY: all zero is a valid `ifreq`: an empty name and flags of 0.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if device.len() >= request.ifr_name.len() {
        return Err(Error::new(CALL, io::ErrorKind::InvalidInput.into()));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request reads and writes one `ifreq`, which outlives the call.
    let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if status < 0 {
        return Err(Error::last(CALL));
    }
    Ok(())
}

/// `recv(MSG_PEEK)` into the spare room of `buffer`, whose length becomes what
/// was filled. The kernel may answer with a length larger than the room (it
/// does so for a send queue): then nothing is taken and the length comes back
/// as the error.
pub(crate) fn peek(
    fd: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> io::Result<std::result::Result<usize, usize>> {
    seam::announce("recv(MSG_PEEK)")?;
    let room = buffer.spare_capacity_mut();
    let capacity = room.len();
    // SAFETY: the pointer and the length describe the spare room of `buffer`.
    let got = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            room.as_mut_ptr().cast(),
            capacity,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    if got > capacity {
        return Ok(Err(got));
    }
    let len = buffer.len() + got;
    // SAFETY: `got` bytes of the spare room were written, and they fit.
    unsafe { buffer.set_len(len) };
    Ok(Ok(got))
}

/// `recvmsg` of the first byte, which stays in the queue: what `TCP_INQ` says of the queue beside it, if it says anything.
pub(crate) fn peek_inq(fd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    seam::announce("recvmsg(MSG_PEEK)")?;
    // Timestamps may come beside it. `u64` for the alignment of `cmsghdr`.
    let mut control = [0_u64; 64];
    let mut byte = [0_u8; 1];
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: byte.len(),
    };
    // SAFETY: integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header describes `part`, which describes `byte`, and `control`; all outlive the call.
    let got = unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut header,
            libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled the header; the macros stay within its control bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: it is the header of a message that the kernel wrote into `control`, which is aligned for it.
        let message = unsafe { *next };
        if (message.cmsg_level, message.cmsg_type) == (libc::IPPROTO_TCP, libc::TCP_CM_INQ) {
            // SAFETY: it is the header of a message of `control`.
            let data = unsafe { libc::CMSG_DATA(next) };
            // SAFETY: the data of this message is an int (include/uapi/linux/tcp.h), in a place that may not be aligned.
            return Ok(Some(unsafe { data.cast::<i32>().read_unaligned() }));
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(None)
}

/// `connect` to `AF_UNSPEC`, which no address type of the standard library can say.
pub(crate) fn disconnect(fd: BorrowedFd<'_>) -> Result<()> {
    seam::enter("connect(AF_UNSPEC)")?;
    let unspec = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: the pointer and the length describe `unspec`, which outlives the call.
    let status = unsafe {
        libc::connect(
            fd.as_raw_fd(),
            &raw const unspec,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if status < 0 {
        return Err(Error::last("connect(AF_UNSPEC)"));
    }
    Ok(())
}
