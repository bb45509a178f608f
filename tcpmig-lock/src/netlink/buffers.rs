//! The buffers of netlink sockets, also beyond the limits that processes without privileges have.

use std::os::fd::AsRawFd;

use netlink_sys::Socket;

/// `setsockopt(SO_SNDBUFFORCE)`, or `SO_SNDBUF` where that is not permitted; then `getsockopt(SO_SNDBUF)`. Gives the
/// size that the kernel granted, 0 if it does not say.
pub(crate) fn raise_send_buffer(socket: &Socket, wanted: usize) -> usize {
    raise_buffer(socket, wanted, [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF]);
    send_buffer(socket)
}

/// `setsockopt(SO_RCVBUFFORCE)`, or `SO_RCVBUF` where that is not permitted; then `getsockopt(SO_RCVBUF)`. Gives the
/// size that the kernel granted, 0 if it does not say.
pub(crate) fn raise_receive_buffer(socket: &Socket, wanted: usize) -> usize {
    raise_buffer(socket, wanted, [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF]);
    buffer(socket, libc::SO_RCVBUF)
}

/// Sets the first of these options that is permitted.
fn raise_buffer(socket: &Socket, wanted: usize, options: [libc::c_int; 2]) {
    // The kernel doubles the value.
    let half = libc::c_int::try_from(wanted / 2 + 1).unwrap_or(libc::c_int::MAX / 2);
    for option in options {
        // SAFETY: the option takes an int, and the pointer and length are those of one.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const half).cast(),
                INT,
            )
        };
        if result == 0 {
            break;
        }
    }
}

const INT: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;

/// `getsockopt(SO_SNDBUF)`, 0 if the kernel does not say.
pub(crate) fn send_buffer(socket: &Socket) -> usize {
    buffer(socket, libc::SO_SNDBUF)
}

fn buffer(socket: &Socket, option: libc::c_int) -> usize {
    let mut size: libc::c_int = 0;
    let mut length = INT;
    // SAFETY: the option writes an int, and the pointers are valid for one and for its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut size).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        usize::try_from(size).unwrap_or(0)
    } else {
        0
    }
}
