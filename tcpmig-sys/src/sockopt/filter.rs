//! The classic packet filter of a socket.

use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::raw;

/// `struct sock_filter`: an instruction of a classic filter, numbers in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterInstruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if a comparison holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
const MOST: usize = 4096;

const NOTHING: libc::sock_filter = libc::sock_filter {
    code: 0,
    jt: 0,
    jf: 0,
    k: 0,
};

/// `getsockopt(fd, SO_GET_FILTER)`: the filter that was attached with `SO_ATTACH_FILTER`.
///
/// # Errors
///
/// [`Error`] of the call: EACCES if the filter is an eBPF program (`SO_ATTACH_BPF`), which no
/// call reads back (`sk_get_filter` in `net/core/filter.c`).
#[doc(alias = "SO_GET_FILTER")]
pub fn filter(fd: BorrowedFd<'_>) -> Result<Option<Vec<FilterInstruction>>> {
    let count = raw::get_filter(fd, &mut [])?;
    if count == 0 {
        return Ok(None);
    }
    if count > MOST {
        return Err(Error::Length {
            call: "getsockopt(SO_GET_FILTER)",
            got: count,
            expected: MOST,
        });
    }
    let mut instructions = vec![NOTHING; count];
    let count = raw::get_filter(fd, &mut instructions)?;
    instructions.truncate(count);
    let ours = |i: &libc::sock_filter| FilterInstruction {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    Ok(Some(instructions.iter().map(ours).collect()))
}

/// `setsockopt(fd, SO_DETACH_FILTER)`: all packets are accepted.
///
/// # Errors
///
/// [`Error`] of the call: ENOENT if there is no filter, EPERM after `SO_LOCK_FILTER`.
#[doc(alias = "SO_DETACH_FILTER")]
pub fn detach_filter(fd: BorrowedFd<'_>) -> Result<()> {
    const CALL: &str = "setsockopt(SO_DETACH_FILTER)";
    // The kernel wants an int and does not look at it.
    raw::set(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, CALL, 0_i32)
}

/// `setsockopt(fd, SO_ATTACH_FILTER)`: packets that the filter does not accept are dropped.
///
/// # Errors
///
/// [`Error`] of the call: EINVAL for a program that the kernel does not accept, EPERM after
/// `SO_LOCK_FILTER`.
#[doc(alias = "SO_ATTACH_FILTER")]
pub fn attach_filter(
    fd: BorrowedFd<'_>,
    instructions: impl IntoIterator<Item = FilterInstruction>,
) -> Result<()> {
    let kernels = |i: FilterInstruction| libc::sock_filter {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    let mut instructions: Vec<_> = instructions.into_iter().map(kernels).collect();
    raw::attach_filter(fd, &mut instructions)
}
