//! Addresses and the options that decide binding and routing.

use crate::FourTuple;

/// Address family of a socket, which is not always that of its packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SocketFamily {
    /// `AF_INET`.
    Ipv4,
    /// `AF_INET6` with IPv6 packets.
    Ipv6,
    /// `AF_INET6` with IPv4 packets: its addresses read as `::ffff:a.b.c.d`.
    Ipv4Mapped,
}

impl SocketFamily {
    /// Whether the packets of such a socket are IPv4.
    #[must_use]
    pub const fn has_ipv4_packets(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Ipv4Mapped)
    }
}

/// The network layer of a connection.
///
/// Options that are `None` are not carried: a restore leaves what the target
/// host gives a new socket. [`IpImage::check`] finds contradictions; encoding
/// and decoding call it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpImage {
    /// The ends of the connection, as they are on the wire.
    pub flow: FourTuple,
    /// The family of the socket.
    pub family: SocketFamily,
    /// `IPV6_V6ONLY`.
    pub v6_only: Option<bool>,
    /// The interface to which link-local addresses belong, by name, because
    /// its index differs from host to host.
    pub scope: Option<String>,
    /// `IP_TTL`.
    pub ttl: Option<u8>,
    /// `IPV6_UNICAST_HOPS`.
    pub hop_limit: Option<u8>,
    /// `IP_TOS`.
    pub tos: Option<u8>,
    /// `IPV6_TCLASS`.
    pub traffic_class: Option<u8>,
    /// The IPv6 flow label that the socket sends, 20 bits, host byte order.
    pub flow_label: Option<u32>,
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
}

/// Why an [`IpImage`] contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIp {
    /// The family of the socket does not carry packets of these addresses.
    #[error("a socket of family {family:?} cannot hold {flow}")]
    Family {
        /// The family of the socket.
        family: SocketFamily,
        /// The addresses.
        flow: FourTuple,
    },
    /// `IPV6_V6ONLY` is on, the packets are IPv4.
    #[error("IPV6_V6ONLY is on, but {0} is IPv4")]
    V6Only(FourTuple),
    /// A device name is empty, longer than 15 octets, `.`, `..`, or has a
    /// slash, a colon or white space (`dev_valid_name` in the kernel).
    #[error("{what}: {name:?} cannot be the name of a network device")]
    DeviceName {
        /// Which field.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A flow label has more than 20 bits.
    #[error("flow label {0:#x} has more than 20 bits")]
    FlowLabel(u32),
    /// The time to live is 0.
    #[error("time to live is 0")]
    Ttl,
}

pub(crate) fn is_device_name(name: &str) -> bool {
    // IFNAMSIZ counts the terminating zero.
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_ascii_whitespace())
}

impl IpImage {
    /// The network layer of a socket with no option carried.
    #[must_use]
    pub fn new(flow: FourTuple, family: SocketFamily) -> Self {
        Self {
            flow,
            family,
            v6_only: None,
            scope: None,
            ttl: None,
            hop_limit: None,
            tos: None,
            traffic_class: None,
            flow_label: None,
            bound_device: None,
            transparent: false,
            freebind: false,
            mark: None,
            priority: None,
        }
    }

    /// Looks for contradictions.
    ///
    /// # Errors
    ///
    /// [`InvalidIp`], the first one found.
    pub fn check(&self) -> Result<(), InvalidIp> {
        if self.family.has_ipv4_packets() != self.flow.is_ipv4() {
            return Err(InvalidIp::Family {
                family: self.family,
                flow: self.flow,
            });
        }
        if self.v6_only == Some(true) && self.flow.is_ipv4() {
            return Err(InvalidIp::V6Only(self.flow));
        }
        for (what, name) in [("scope", &self.scope), ("bound device", &self.bound_device)] {
            if let Some(name) = name.as_ref().filter(|name| !is_device_name(name)) {
                return Err(InvalidIp::DeviceName {
                    what,
                    name: name.clone(),
                });
            }
        }
        if let Some(label) = self.flow_label.filter(|label| label >> 20 != 0) {
            return Err(InvalidIp::FlowLabel(label));
        }
        if self.ttl == Some(0) {
            return Err(InvalidIp::Ttl);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4() -> IpImage {
        let flow = "10.0.0.1:80,10.0.0.2:9".parse().unwrap();
        IpImage::new(flow, SocketFamily::Ipv4)
    }

    #[test]
    fn contradictions_are_found() {
        assert_eq!(v4().check(), Ok(()));
        let check = |change: fn(&mut IpImage)| {
            let mut ip = v4();
            change(&mut ip);
            ip.check()
        };
        assert!(matches!(
            check(|ip| ip.family = SocketFamily::Ipv6),
            Err(InvalidIp::Family { .. })
        ));
        assert!(matches!(
            check(|ip| {
                ip.family = SocketFamily::Ipv4Mapped;
                ip.v6_only = Some(true);
            }),
            Err(InvalidIp::V6Only(_))
        ));
        assert!(matches!(
            check(|ip| ip.flow_label = Some(1 << 20)),
            Err(InvalidIp::FlowLabel(_))
        ));
        assert_eq!(check(|ip| ip.ttl = Some(0)), Err(InvalidIp::Ttl));
    }

    #[test]
    fn device_names_follow_the_kernel() {
        for name in ["lo", "eth0.100", "a23456789012345", "veth@x", "ü"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "eth0:1",
            "a b",
            "a\0",
            "a234567890123456",
        ] {
            assert!(!is_device_name(name), "{name:?}");
        }
    }
}
