//! What the calling thread's network namespace lets a process without privileges set.
//!
//! Nothing here needs a privilege or changes anything.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use socket2::{Domain, Socket, Type};

use crate::error::{Error, Result};
use crate::sockopt;

/// Sizes of buffers in bytes, as the kernel accounts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Of the receive buffer.
    pub receive: u32,
    /// Of the send buffer.
    pub send: u32,
}

/// The largest buffers that a process can ask for without `CAP_NET_ADMIN`: twice
/// `net.core.rmem_max` and `wmem_max`. Tried on a new socket, because older kernels show these two
/// only in the initial namespace.
///
/// # Errors
///
/// [`Error::Call`].
pub fn unprivileged_buffers() -> Result<Buffers> {
    let any = socket()?;
    let fd = any.as_fd();
    // The kernel doubles it, in an `int`.
    const LARGEST: u32 = i32::MAX as u32 / 2;
    sockopt::set_receive_buffer(fd, LARGEST)?;
    sockopt::set_send_buffer(fd, LARGEST)?;
    Ok(Buffers {
        receive: sockopt::receive_buffer(fd)?,
        send: sockopt::send_buffer(fd)?,
    })
}

/// How large the kernel makes buffers by itself: the last of `net.ipv4.tcp_rmem` and `tcp_wmem`, which
/// are for IPv6 too.
///
/// # Errors
///
/// [`Error::Call`] if `/proc` cannot be read.
pub fn tuned_buffers() -> Result<Buffers> {
    Ok(Buffers {
        receive: last_number("tcp_rmem")?,
        send: last_number("tcp_wmem")?,
    })
}

/// The names of the congestion controls that every process may choose
/// (`net.ipv4.tcp_allowed_congestion_control`). A kernel that does not show them in this namespace
/// allows at least its default one and `reno`.
///
/// # Errors
///
/// [`Error::Call`] if `/proc` cannot be read.
pub fn allowed_congestion_controls() -> Result<Vec<String>> {
    match read("tcp_allowed_congestion_control") {
        Ok(names) => Ok(words(&names)),
        Err(Error::Call { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let mut names = words(&read("tcp_congestion_control")?);
            names.push("reno".to_owned());
            Ok(names)
        }
        Err(error) => Err(error),
    }
}

/// The names of the congestion controls that are there without loading a module
/// (`net.ipv4.tcp_available_congestion_control`).
///
/// # Errors
///
/// [`Error::Call`] if `/proc` cannot be read.
pub fn available_congestion_controls() -> Result<Vec<String>> {
    read("tcp_available_congestion_control").map(|names| words(&names))
}

/// `SO_BUSY_POLL` of a new socket, in microseconds (`net.core.busy_read`): a process without privileges
/// cannot set more. 0 on a kernel without it.
///
/// # Errors
///
/// [`Error::Call`].
pub fn busy_read() -> Result<u32> {
    match sockopt::busy_poll(socket()?.as_fd()) {
        Err(Error::Unsupported { .. }) => Ok(0),
        other => other,
    }
}

fn socket() -> Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, None).map_err(|e| Error::new("socket", e))
}

fn read(setting: &str) -> Result<String> {
    let path = format!("/proc/sys/net/ipv4/{setting}");
    fs::read_to_string(path).map_err(|e| Error::new("read(/proc/sys/net/ipv4)", e))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn last_number(setting: &str) -> Result<u32> {
    let text = read(setting)?;
    let last = text.split_whitespace().next_back();
    last.and_then(|last| last.parse().ok()).ok_or_else(|| {
        let source = io::Error::from(io::ErrorKind::InvalidData);
        Error::new("read(/proc/sys/net/ipv4)", source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_can_be_set() {
        let any = socket().unwrap();
        let fd = any.as_fd();
        let Buffers { receive, send } = unprivileged_buffers().unwrap();
        sockopt::set_receive_buffer(fd, receive / 2).unwrap();
        sockopt::set_send_buffer(fd, send / 2).unwrap();
        assert_eq!(sockopt::receive_buffer(fd).unwrap(), receive);
        assert_eq!(sockopt::send_buffer(fd).unwrap(), send);
        let allowed = allowed_congestion_controls().unwrap();
        let available = available_congestion_controls().unwrap();
        assert!(allowed.contains(&"reno".to_owned()), "{allowed:?}");
        for name in allowed {
            assert!(available.contains(&name), "{name} of {available:?}");
            sockopt::set_congestion(fd, &name).unwrap();
        }
        let tuned = tuned_buffers().unwrap();
        assert!(tuned.receive > 4096 && tuned.send > 4096, "{tuned:?}");
        busy_read().unwrap();
    }
}
