//! The four-tuple that names a connection.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::str::FromStr;

/// The four-tuple of a TCP connection, seen from the host that holds it: the
/// local end and the remote end (the peer).
///
/// Both ends are of one family, with a port and an address that a connection
/// can have (not unspecified, not multicast, not broadcast). Addresses are
/// kept as they are on the wire: an IPv4-mapped IPv6 address becomes the IPv4
/// address that its packets carry, and flow labels and scope ids, which are
/// local to a host, are dropped.
///
/// ```
/// use tcpmig_format::FourTuple;
///
/// let flow: FourTuple = "10.0.0.1:80,10.0.0.9:51234".parse()?;
/// assert_eq!(flow.local().port(), 80);
/// assert_eq!(flow.reversed().to_string(), "10.0.0.9:51234,10.0.0.1:80");
/// # Ok::<(), tcpmig_format::FlowError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FourTuple {
    local: SocketAddr,
    remote: SocketAddr,
}

/// Why two socket addresses are not the two ends of a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// One end is IPv4, the other IPv6.
    #[error("{local} and {remote} are of different families")]
    MixedFamilies {
        /// The local end.
        local: SocketAddr,
        /// The remote end.
        remote: SocketAddr,
    },
    /// The port is 0.
    #[error("{0} has no port")]
    NoPort(SocketAddr),
    /// The address is unspecified, multicast or the IPv4 broadcast address.
    #[error("{0} is not the address of one host")]
    NotUnicast(SocketAddr),
    /// The text is not `LOCAL,REMOTE`.
    #[error("{0:?} is not LOCAL,REMOTE, for example 10.0.0.1:80,10.0.0.9:51234")]
    Syntax(String),
}

fn canonical(addr: SocketAddr) -> Result<SocketAddr, FlowError> {
    let ip = addr.ip().to_canonical();
    let canonical = match ip {
        std::net::IpAddr::V4(ip) => SocketAddrV4::new(ip, addr.port()).into(),
        std::net::IpAddr::V6(ip) => SocketAddrV6::new(ip, addr.port(), 0, 0).into(),
    };
    let broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || broadcast {
        return Err(FlowError::NotUnicast(canonical));
    }
    if addr.port() == 0 {
        return Err(FlowError::NoPort(canonical));
    }
    Ok(canonical)
}

impl FourTuple {
    /// The four-tuple with these ends.
    ///
    /// # Errors
    ///
    /// [`FlowError`] if they cannot be the two ends of one connection.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Result<Self, FlowError> {
        let (local, remote) = (canonical(local)?, canonical(remote)?);
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(FlowError::MixedFamilies { local, remote });
        }
        Ok(Self { local, remote })
    }

    /// The end on the host that holds the connection.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The peer's end.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether the packets are IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.local.is_ipv4()
    }

    /// The same connection as its peer sees it.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
        }
    }
}

impl fmt::Display for FourTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.local, self.remote)
    }
}

impl fmt::Debug for FourTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FourTuple({self})")
    }
}

impl FromStr for FourTuple {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        let syntax = || FlowError::Syntax(text.to_owned());
        let (local, remote) = text.split_once(',').ok_or_else(syntax)?;
        let end = |text: &str| text.trim().parse::<SocketAddr>().map_err(|_| syntax());
        Self::new(end(local)?, end(remote)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_kept_as_on_the_wire() {
        let flow: FourTuple = "[::ffff:10.0.0.1]:80,[::ffff:10.0.0.2]:9".parse().unwrap();
        assert!(flow.is_ipv4());
        assert_eq!(flow, "10.0.0.1:80,10.0.0.2:9".parse().unwrap());
    }

    #[test]
    fn ends_that_no_connection_has_are_refused() {
        let parse = |text: &str| text.parse::<FourTuple>();
        assert!(matches!(
            parse("10.0.0.1:80,[2001:db8::1]:9"),
            Err(FlowError::MixedFamilies { .. })
        ));
        assert!(matches!(
            parse("10.0.0.1:0,10.0.0.2:9"),
            Err(FlowError::NoPort(_))
        ));
        for address in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert!(matches!(
                parse(&format!("10.0.0.1:80,{address}:9")),
                Err(FlowError::NotUnicast(_))
            ));
        }
        assert!(matches!(parse("10.0.0.1:80"), Err(FlowError::Syntax(_))));
    }
}
