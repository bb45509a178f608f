//! The demo's network: a peer and two hosts on a switch.

use std::net::{IpAddr, SocketAddr};

use tcpmig_sys::lab::{Host, Lab, LabError};

/// The network and its addresses.
pub(crate) struct Net {
    pub(crate) peer: Host,
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) addresses: Addresses,
    _lab: Lab,
}

/// Who has which address.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    /// Where the peer finds the web server: host A answers for it, host B holds it silently.
    pub(crate) service: SocketAddr,
    pub(crate) peer: IpAddr,
    pub(crate) a: SocketAddr,
    pub(crate) b: SocketAddr,
    prefix: u8,
    whole: u8,
}

/// Where the servers take connections from each other.
const MOVE_PORT: u16 = 7077;

impl Addresses {
    fn new(ipv6: bool) -> Self {
        let ip = |last: u8| -> IpAddr {
            if ipv6 {
                // A prefix for benchmarks (RFC 5180), as 198.18.0.0/15 is (RFC 2544).
                [0x2001, 2, 0, 0, 0, 0, 0, u16::from(last)].into()
            } else {
                [198, 18, 0, last].into()
            }
        };
        Self {
            service: (ip(80), 80).into(),
            peer: ip(9),
            a: (ip(1), MOVE_PORT).into(),
            b: (ip(2), MOVE_PORT).into(),
            prefix: if ipv6 { 64 } else { 24 },
            whole: if ipv6 { 128 } else { 32 },
        }
    }
}

impl Net {
    pub(crate) fn new(ipv6: bool) -> Result<Self, LabError> {
        let addresses = Addresses::new(ipv6);
        let prefix = addresses.prefix;
        let cidr = |ip: IpAddr| format!("{ip}/{prefix}");
        let service = addresses.service.ip();
        let mut lab = Lab::new()?;
        let peer = lab.host("peer", &[&cidr(addresses.peer)])?;
        let a = lab.host("A", &[&cidr(addresses.a.ip()), &cidr(service)])?;
        let b = lab.host("B", &[&cidr(addresses.b.ip())])?;
        b.hold_silently(&[&format!("{service}/{}", addresses.whole)])?;
        Ok(Self {
            peer,
            a,
            b,
            addresses,
            _lab: lab,
        })
    }
}
