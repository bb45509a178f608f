//! The option of sockets for which no safe wrapper has a function.

use std::os::fd::AsRawFd;

/// `getsockopt(SO_NETNS_COOKIE)` (Linux 5.14): a number of the socket's network namespace that no other one ever gets.
pub(crate) fn namespace_cookie(socket: &impl AsRawFd) -> Option<u64> {
    /// `asm-generic/socket.h`.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes 64 bits, and the pointers are valid for them and for their length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}
