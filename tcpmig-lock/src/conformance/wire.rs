//! What a host's network devices see.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc::ETH_P_ALL;
use socket2::{Domain, Protocol, Socket, Type};

use super::lab::Host;

/// The flag of a segment that ends one direction.
pub const FIN: u8 = 1;
/// The flag of a segment that aborts the connection.
pub const RST: u8 = 4;
/// The flag of a segment that acknowledges.
pub const ACK: u8 = 16;
/// The flag of a segment with data that ends a write.
pub const PSH: u8 = 8;

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it comes from.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its flags, as in the header.
    pub flags: u8,
}

/// All TCP segments that a host sends or receives from now on, on any device.
pub struct Capture(Socket);

impl Capture {
    /// Begins now.
    pub fn new(host: &Host) -> Self {
        let protocol = i32::from(u16::try_from(ETH_P_ALL).expect("16 bits").to_be());
        let socket = host.run(|| {
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(protocol)))
                .expect("a packet socket")
        });
        socket.set_nonblocking(true).expect("nonblocking");
        Self(socket)
    }

    /// The segments since the last call.
    pub fn segments(&mut self) -> Vec<Segment> {
        self.packets().iter().filter_map(|p| parse(p)).collect()
    }

    /// The packets from this end of a connection since the last call, from their IP header on.
    pub fn packets_from(&mut self, from: SocketAddr) -> Vec<Vec<u8>> {
        let mut packets = self.packets();
        packets.retain(|packet| parse(packet).is_some_and(|segment| segment.from == from));
        packets
    }

    fn packets(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        while let Ok(length) = self.0.read(&mut buffer) {
            packets.push(buffer[..length].to_vec());
        }
        packets
    }
}

fn parse(packet: &[u8]) -> Option<Segment> {
    let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if *packet.get(9)? == 6 => {
            let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
            let header = usize::from(packet[0] & 15) * 4;
            (
                address(12)?.into(),
                address(16)?.into(),
                packet.get(header..)?,
            )
        }
        6 if *packet.get(6)? == 6 => {
            let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?));
            (address(8)?.into(), address(24)?.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
    Some(Segment {
        from: (from, port(0)?).into(),
        to: (to, port(2)?).into(),
        flags: *tcp.get(13)?,
    })
}
