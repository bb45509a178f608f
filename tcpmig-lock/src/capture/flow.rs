//! Which flow a captured packet is of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tcpmig_format::FourTuple;

/// Extension headers of IPv6.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const TCP: u8 = 6;

/// The flow of a TCP packet that arrived here, seen from this host. It reads what the rules look up and nothing more;
/// none for bytes that the rules cannot have let through.
pub(super) fn flow_of(packet: &[u8]) -> Option<FourTuple> {
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let at = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
            let header = usize::from(packet.first()? & 15) * 4;
            (at(12)?.into(), at(16)?.into(), packet.get(header..)?)
        }
        6 => {
            let at = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
            let segment = skip_extensions(*packet.get(6)?, packet.get(40..)?)?;
            (at(8)?.into(), at(24)?.into(), segment)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    let (remote, local) = ((source, port(0)?), (destination, port(2)?));
    FourTuple::new(local.into(), remote.into()).ok()
}

fn skip_extensions(mut kind: u8, mut rest: &[u8]) -> Option<&[u8]> {
    while kind != TCP {
        let [next, length, ..] = *rest else {
            return None;
        };
        let length = match kind {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(length) + 1) * 8,
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => return None,
        };
        rest = rest.get(length..)?;
        kind = next;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(mut packet: Vec<u8>) -> Vec<u8> {
        packet.extend_from_slice(&[0xc8, 0, 0, 80, 1, 2, 3]);
        packet
    }

    #[test]
    fn ports_are_found_behind_options_and_extensions() {
        let mut v4 = vec![0; 28];
        v4[0] = 0x47;
        v4[12..16].copy_from_slice(&[10, 0, 0, 9]);
        v4[16..20].copy_from_slice(&[10, 0, 0, 1]);
        let flow = "10.0.0.1:80,10.0.0.9:51200".parse().unwrap();
        assert_eq!(flow_of(&ports(v4)), Some(flow));

        let mut v6 = vec![0; 40];
        v6[0] = 0x60;
        v6[6] = HOP_BY_HOP;
        v6[8..24].copy_from_slice(&"2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
        v6[24..40].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        for (next, words, length) in [(ROUTING, 1, 16), (AUTHENTICATION, 0, 8), (TCP, 1, 12)] {
            v6.extend_from_slice(&[next, words]);
            v6.resize(v6.len() + length - 2, 0);
        }
        let flow = "[2001:db8::1]:80,[2001:db8::9]:51200".parse().unwrap();
        assert_eq!(flow_of(&ports(v6)), Some(flow));
    }

    #[test]
    fn cut_packets_have_no_flow() {
        let mut v6 = [0; 48];
        v6[0] = 0x60;
        v6[6] = HOP_BY_HOP;
        v6[41] = 200;
        for length in 0..=v6.len() {
            assert_eq!(flow_of(&v6[..length]), None);
        }
        for length in 0..24 {
            let mut v4 = vec![0; length];
            if let Some(first) = v4.first_mut() {
                *first = 0x45;
            }
            assert_eq!(flow_of(&v4), None);
        }
    }
}
