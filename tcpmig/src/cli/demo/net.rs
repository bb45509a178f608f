//! The demo's network: a peer and two hosts on a switch.

use std::net::{IpAddr, SocketAddr};

use tcpmig_sys::lab::{Host, Lab, LabError};

/// The network and its addresses.
pub(crate) struct Net {
    pub(crate) peer: Host,
    pub(crate) a: Host,
    pub(crate) b: Host,
    pub(crate) addresses: Addresses,
    pub(crate) lab: Lab,
}

/// Who has which address.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    /// Where the peer finds the web server: host A answers for it, host B holds it silently.
    pub(crate) service: SocketAddr,
    pub(crate) peer: IpAddr,
    pub(crate) a: SocketAddr,
    pub(crate) b: SocketAddr,
    /// The hosts' addresses on the switch, which a redirect goes to.
    pub(crate) on_switch: [IpAddr; 2],
    prefix: u8,
    whole: u8,
}

/// Where the servers take connections from each other.
const MOVE_PORT: u16 = 7077;

impl Addresses {
    fn new(ipv6: bool, own_cable: bool) -> Self {
        let ip = |net: u8, last: u8| -> IpAddr {
            if ipv6 {
                // A prefix for benchmarks (RFC 5180), as 198.18.0.0/15 is (RFC 2544).
                [0x2001, 2, 0, u16::from(net), 0, 0, 0, u16::from(last)].into()
            } else {
                [198, 18, net, last].into()
            }
        };
        let between = u8::from(own_cable);
        Self {
            service: (ip(0, 80), 80).into(),
            peer: ip(0, 9),
            a: (ip(between, 1), MOVE_PORT).into(),
            b: (ip(between, 2), MOVE_PORT).into(),
            on_switch: [ip(0, 1), ip(0, 2)],
            prefix: if ipv6 { 64 } else { 24 },
            whole: if ipv6 { 128 } else { 32 },
        }
    }
}

impl Net {
    /// With a cable of their own the hosts reach each other while their places at the switch are unplugged.
    pub(crate) fn new(ipv6: bool, own_cable: bool) -> Result<Self, LabError> {
        let addresses = Addresses::new(ipv6, own_cable);
        let prefix = addresses.prefix;
        let cidr = |ip: IpAddr| format!("{ip}/{prefix}");
        let service = addresses.service.ip();
        let mut lab = Lab::new()?;
        let peer = lab.host("peer", &[&cidr(addresses.peer)])?;
        let [on_a, on_b] = addresses.on_switch;
        let a = lab.host("A", &[&cidr(on_a), &cidr(service)])?;
        let b = lab.host("B", &[&cidr(on_b)])?;
        if own_cable {
            let ends = [
                (&a, &*cidr(addresses.a.ip())),
                (&b, &*cidr(addresses.b.ip())),
            ];
            lab.cable("eth1", ends)?;
        }
        b.hold_silently(&[&format!("{service}/{}", addresses.whole)])?;
        Ok(Self {
            peer,
            a,
            b,
            addresses,
            lab,
        })
    }
}
