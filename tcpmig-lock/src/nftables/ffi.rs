//! The calls into libnftnl and libc for which their safe wrappers have no function: all unsafe code of this crate.

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use netlink_sys::Socket;
use nftnl::expr::Expression;
use nftnl::nftnl_sys as sys;
use nftnl::set::Set;
use nftnl::{MsgType, NlMsg, Rule};

/// The value of an expression's attribute.
#[derive(Debug, Clone)]
pub(super) enum Value {
    U16(u16),
    U32(u32),
    U64(u64),
    Str(CString),
}

/// An expression that nftnl cannot make: its name and the attributes of libnftnl's `NFTNL_EXPR_*`.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub(super) name: &'static CStr,
    pub(super) attributes: Vec<(u32, Value)>,
}

/// Attribute numbers of libnftnl are small; its setters take them as u16.
fn number(attribute: u32) -> u16 {
    u16::try_from(attribute).unwrap_or(u16::MAX)
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string, which the function only reads.
        let expr = unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) };
        // As nftnl does: an allocation that small fails only when nothing is left.
        let Some(expr) = NonNull::new(expr) else {
            std::process::abort()
        };
        for (attribute, value) in &self.attributes {
            match value {
                Value::U16(value) => {
                    // SAFETY: `expr` was just allocated and nobody else has it.
                    unsafe { sys::nftnl_expr_set_u16(expr.as_ptr(), number(*attribute), *value) };
                }
                Value::U32(value) => {
                    // SAFETY: as above.
                    unsafe { sys::nftnl_expr_set_u32(expr.as_ptr(), number(*attribute), *value) };
                }
                Value::U64(value) => {
                    // SAFETY: as above.
                    unsafe { sys::nftnl_expr_set_u64(expr.as_ptr(), number(*attribute), *value) };
                }
                Value::Str(value) => {
                    // SAFETY: as above; the function copies the C string.
                    unsafe {
                        sys::nftnl_expr_set_str(expr.as_ptr(), number(*attribute), value.as_ptr());
                    };
                }
            }
        }
        expr
    }
}

/// Sets a number of a set, `NFTNL_SET_*`.
pub(super) fn set_u32<K>(set: &mut Set<'_, K>, attribute: u32, value: u32) {
    // SAFETY: `set` owns the object, and the exclusive borrow keeps others away.
    unsafe { sys::nftnl_set_set_u32(set.as_ptr().as_ptr(), number(attribute), value) };
}

/// Sets octets of a set, `NFTNL_SET_*`.
pub(super) fn set_octets<K>(set: &mut Set<'_, K>, attribute: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(0);
    // SAFETY: as for `set_u32`; the function copies the octets, whose number is given.
    unsafe {
        sys::nftnl_set_set_data(
            set.as_ptr().as_ptr(),
            number(attribute),
            value.as_ptr().cast(),
            length,
        );
    };
}

/// The octets of a message.
pub(super) fn encode(message: &impl NlMsg, kind: MsgType) -> Vec<u8> {
    let mut buffer = vec![0u8; nftnl::nft_nlmsg_maxsize() as usize];
    // SAFETY: the buffer has the size that the trait asks for.
    unsafe { message.write(buffer.as_mut_ptr().cast(), 0, kind) };
    let length = buffer
        .first_chunk()
        .map_or(0, |length| u32::from_ne_bytes(*length));
    buffer.truncate(length as usize);
    buffer
}

/// `setsockopt(SO_SNDBUFFORCE)`, or `SO_SNDBUF` where that is not permitted; then `getsockopt(SO_SNDBUF)`. Gives the
/// size that the kernel granted, 0 if it does not say.
pub(super) fn raise_send_buffer(socket: &Socket, wanted: usize) -> usize {
    raise_buffer(socket, wanted, [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF]);
    send_buffer(socket)
}

/// `setsockopt(SO_RCVBUFFORCE)`, or `SO_RCVBUF` where that is not permitted; then `getsockopt(SO_RCVBUF)`. Gives the
/// size that the kernel granted, 0 if it does not say.
pub(super) fn raise_receive_buffer(socket: &Socket, wanted: usize) -> usize {
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
pub(super) fn send_buffer(socket: &Socket) -> usize {
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
