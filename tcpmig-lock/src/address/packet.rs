//! Announcements: who has an address now.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

const ETHERNET: u16 = 1;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// `NEIGHBOR_ADVERTISEMENT` of RFC 4861, its flag "override", and the option with the link-layer address.
const ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER: u8 = 2;
/// Receivers take no other.
const HOP_LIMIT: u32 = 255;

/// Tells everybody on the link of a device that this station has an address: gratuitous ARP (as request and as reply,
/// because there are receivers that take only one of them), or an unsolicited neighbour advertisement. In the calling
/// thread's network namespace; an IPv6 address has to be there.
pub(super) fn announce(address: IpAddr, index: u32, station: [u8; 6]) -> io::Result<()> {
    match address {
        IpAddr::V4(address) => {
            let protocol = i32::from((libc::ETH_P_ARP as u16).to_be());
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(protocol)))?;
            let everybody = link_layer(index, libc::ETH_P_ARP as u16, [0xff; 6])?;
            for operation in [REQUEST, REPLY] {
                socket.send_to(&arp(address, station, operation), &everybody)?;
            }
        }
        IpAddr::V6(address) => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
            socket.set_multicast_hops_v6(HOP_LIMIT)?;
            socket.set_multicast_if_v6(index)?;
            // Its own scope: a link-local address is one of this device.
            socket.bind(&SocketAddrV6::new(address, 0, 0, index).into())?;
            let everybody = SocketAddrV6::new(ALL_NODES, 0, 0, index);
            socket.send_to(&advertisement(address, station), &everybody.into())?;
        }
    }
    Ok(())
}

fn arp(address: Ipv4Addr, station: [u8; 6], operation: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(28);
    packet.extend_from_slice(&ETHERNET.to_be_bytes());
    packet.extend_from_slice(&(libc::ETH_P_IP as u16).to_be_bytes());
    packet.extend_from_slice(&[6, 4]);
    packet.extend_from_slice(&operation.to_be_bytes());
    packet.extend_from_slice(&station);
    packet.extend_from_slice(&address.octets());
    // In a request nobody is asked for.
    packet.extend_from_slice(&if operation == REQUEST {
        [0; 6]
    } else {
        station
    });
    packet.extend_from_slice(&address.octets());
    packet
}

/// The kernel fills the checksum in.
fn advertisement(address: Ipv6Addr, station: [u8; 6]) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    message.extend_from_slice(&[TARGET_LINK_LAYER, 1]);
    message.extend_from_slice(&station);
    message
}

/// The address of a station, `sockaddr_ll`.
fn link_layer(index: u32, protocol: u16, station: [u8; 6]) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&station);
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: bytes,
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is large enough for any kind of address, a `sockaddr_ll` among them, and aligned for it.
    *unsafe { storage.view_as::<libc::sockaddr_ll>() } = address;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: a `sockaddr_ll` was just written, and the length is that of one.
    Ok(unsafe { SockAddr::new(storage, length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_laid_out_as_on_the_wire() {
        let station = [2, 0, 0, 0, 0, 9];
        let request = arp("10.0.0.1".parse().unwrap(), station, REQUEST);
        let expected = [
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
        ];
        assert_eq!(request, expected);
        let message = advertisement("2001:db8::1".parse().unwrap(), station);
        assert_eq!(message.len(), 32);
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }
}
