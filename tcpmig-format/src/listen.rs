//! A listener, which carries no connection.

use std::net::SocketAddr;

use crate::SocketOptions;
use crate::ip::is_device_name;

/// A socket that waits for connections: enough to make one like it on another host.
///
/// Options that are `None` are not carried: a restore leaves what the target host gives a new socket.
/// [`ListenImage::check`] finds contradictions; encoding and decoding call it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ListenImage {
    /// Where it listens; the address may be unspecified. An IPv6 address, also a mapped one, is that of an `AF_INET6`
    /// socket. Its scope and flow information are not carried.
    pub local: SocketAddr,
    /// `IPV6_V6ONLY`.
    pub v6_only: Option<bool>,
    /// The interface to which a link-local address belongs, by name.
    pub scope: Option<String>,
    /// `SO_BINDTODEVICE`, by name.
    pub bound_device: Option<String>,
    /// `IP_TRANSPARENT` or `IPV6_TRANSPARENT`.
    pub transparent: bool,
    /// `IP_FREEBIND` or `IPV6_FREEBIND`.
    pub freebind: bool,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// `SO_PRIORITY`.
    pub priority: Option<u32>,
    /// How many connections may wait to be accepted, as the kernel has it: at most the `net.core.somaxconn` of the host
    /// that took the image.
    pub backlog: u32,
    /// `TCP_DEFER_ACCEPT`, in seconds; 0 is off.
    pub defer_accept: u32,
    /// `TCP_FASTOPEN`: how many connections that carry data in their SYN may wait; 0 is off. The key of the cookies is
    /// not carried.
    pub fast_open: u32,
    /// Its socket options, which accepted connections inherit.
    pub socket: SocketOptions,
}

/// Why a [`ListenImage`] contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidListen {
    /// Nobody can connect to port 0.
    #[error("the port is 0")]
    Port,
    /// A multicast or broadcast address.
    #[error("{0} is not an address to listen on")]
    Address(std::net::IpAddr),
    /// `IPV6_V6ONLY` of an `AF_INET` socket, or on with a mapped address.
    #[error("IPV6_V6ONLY cannot go with {0}")]
    V6Only(std::net::IpAddr),
    /// A name that no device can have.
    #[error("{what}: {name:?} cannot be the name of a network device")]
    DeviceName {
        /// Which field.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A socket option without a meaning.
    #[error(transparent)]
    Socket(#[from] crate::InvalidTcp),
}

impl ListenImage {
    /// A listener with no option carried.
    #[must_use]
    pub fn new(local: SocketAddr, backlog: u32) -> Self {
        Self {
            local,
            v6_only: None,
            scope: None,
            bound_device: None,
            transparent: false,
            freebind: false,
            mark: None,
            priority: None,
            backlog,
            defer_accept: 0,
            fast_open: 0,
            socket: SocketOptions::default(),
        }
    }

    /// Looks for contradictions.
    ///
    /// # Errors
    ///
    /// [`InvalidListen`], the first one found.
    pub fn check(&self) -> Result<(), InvalidListen> {
        use std::net::{IpAddr, Ipv4Addr};
        let ip = self.local.ip();
        if self.local.port() == 0 {
            return Err(InvalidListen::Port);
        }
        let mapped = match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        };
        if ip.to_canonical().is_multicast() || ip.to_canonical() == Ipv4Addr::BROADCAST {
            return Err(InvalidListen::Address(ip));
        }
        let impossible = match self.v6_only {
            None => false,
            Some(on) => ip.is_ipv4() || on && mapped.is_some(),
        };
        if impossible {
            return Err(InvalidListen::V6Only(ip));
        }
        for (what, name) in [("scope", &self.scope), ("bound device", &self.bound_device)] {
            if let Some(name) = name.as_ref().filter(|name| !is_device_name(name)) {
                return Err(InvalidListen::DeviceName {
                    what,
                    name: name.clone(),
                });
            }
        }
        Ok(crate::check::check_socket(&self.socket)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_found() {
        let check = |local: &str, change: fn(&mut ListenImage)| {
            let mut listen = ListenImage::new(local.parse().unwrap(), 37);
            change(&mut listen);
            listen.check()
        };
        for local in ["0.0.0.0:80", "[::]:80", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(check(local, |_| {}), Ok(()));
        }
        assert_eq!(check("[::]:1", |l| l.v6_only = Some(true)), Ok(()));
        assert_eq!(check("10.0.0.1:0", |_| {}), Err(InvalidListen::Port));
        for local in ["224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1"] {
            let refused = check(local, |_| {});
            assert!(matches!(refused, Err(InvalidListen::Address(_))), "{local}");
        }
        for local in ["10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let refused = check(local, |l| l.v6_only = Some(true));
            assert!(matches!(refused, Err(InvalidListen::V6Only(_))), "{local}");
        }
        assert!(matches!(
            check("[::]:1", |l| l.bound_device = Some("a/b".into())),
            Err(InvalidListen::DeviceName { .. })
        ));
        assert!(matches!(
            check("[::]:1", |l| l.socket.buffer_lock = Some(4)),
            Err(InvalidListen::Socket(_))
        ));
    }
}
