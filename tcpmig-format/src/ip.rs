//! Addresses and the options that decide binding and routing.

use std::fmt;

use crate::{FourTuple, SecretBytes};

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
    /// Every family.
    pub const ALL: [Self; 3] = [Self::Ipv4, Self::Ipv6, Self::Ipv4Mapped];

    /// Its name in an image: `ipv4`, `ipv6` or `ipv4-mapped`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Ipv4Mapped => "ipv4-mapped",
        }
    }

    /// The family with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Whether the packets of such a socket are IPv4.
    #[must_use]
    pub const fn has_ipv4_packets(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Ipv4Mapped)
    }
}

/// Its name in an image.
impl fmt::Display for SocketFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

macro_rules! ip_image {
    ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= text($text:ty as $str:ty))? $(= bytes($bytes:ty as $byte:ty))? $(= always($always:ident))? $unit:literal $restored:tt;)*) => {
        /// The network layer of a connection.
        ///
        /// Options that are `None` are not carried: a restore leaves what the target
        /// host gives a new socket. [`IpImage::check`] finds contradictions; encoding
        /// and decoding call it.
        #[derive(Clone, PartialEq, Eq, Debug)]
        #[non_exhaustive]
        pub struct IpImage {
            /// The ends of the connection, as they are on the wire.
            pub flow: FourTuple,
            /// The family of the socket.
            pub family: SocketFamily,
            $(
                $(#[$doc])*
                pub $name: $($always)? $(Option<$plain>)? $(Option<$text>)? $(Option<$bytes>)?,
            )*
        }

        impl IpImage {
            /// The network layer of a socket with no option carried.
            #[must_use]
            pub fn new(flow: FourTuple, family: SocketFamily) -> Self {
                Self { flow, family, $($name: Default::default(),)* }
            }
        }
    };
}
ip_fields!(ip_image);

/// Why an [`IpImage`] contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIp {
    /// The family of the socket does not carry packets of these addresses.
    #[error("a socket of family {family} cannot hold {flow}")]
    Family {
        /// The family of the socket.
        family: SocketFamily,
        /// The addresses.
        flow: FourTuple,
    },
    /// `IPV6_V6ONLY` is on, the packets are IPv4.
    #[error("IPV6_V6ONLY is on, but {0} is IPv4")]
    V6Only(FourTuple),
    /// A device name is empty, longer than 15 bytes, `.`, `..`, or has a
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
    /// `flr_share` is not 1, 2, 3 or 255.
    #[error("flow label share {0} has no meaning")]
    FlowLabelShare(u8),
    /// A mode of path MTU discovery that there is not.
    #[error("{what} {mode} is above 5")]
    MtuDiscover {
        /// Which option.
        what: &'static str,
        /// Its value.
        mode: u8,
    },
    /// `IP_OPTIONS` is empty or longer than an IPv4 header takes.
    #[error("IP_OPTIONS has {0} bytes, not 1 to 40")]
    Options(usize),
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
        // IPV6_FL_S_EXCL, _PROCESS, _USER and _ANY (linux/in6.h).
        if let Some(share) = self.flow_label_share
            && !matches!(share, 1 | 2 | 3 | 255)
        {
            return Err(InvalidIp::FlowLabelShare(share));
        }
        for (what, mode) in [
            ("IP_MTU_DISCOVER", self.mtu_discover),
            ("IPV6_MTU_DISCOVER", self.mtu_discover_v6),
        ] {
            if let Some(mode) = mode.filter(|&mode| mode > 5) {
                return Err(InvalidIp::MtuDiscover { what, mode });
            }
        }
        if let Some(options) = &self.ip_options
            && !(1..=40).contains(&options.len())
        {
            return Err(InvalidIp::Options(options.len()));
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
        assert_eq!(
            check(|ip| ip.flow_label_share = Some(4)),
            Err(InvalidIp::FlowLabelShare(4))
        );
        assert!(matches!(
            check(|ip| ip.mtu_discover = Some(6)),
            Err(InvalidIp::MtuDiscover {
                what: "IP_MTU_DISCOVER",
                mode: 6
            })
        ));
        assert!(matches!(
            check(|ip| ip.mtu_discover_v6 = Some(6)),
            Err(InvalidIp::MtuDiscover {
                what: "IPV6_MTU_DISCOVER",
                ..
            })
        ));
        for len in [0, 41] {
            let mut ip = v4();
            ip.ip_options = Some(vec![1; len].into());
            assert_eq!(ip.check(), Err(InvalidIp::Options(len)));
        }
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
