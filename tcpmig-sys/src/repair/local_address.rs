//! Why a local address cannot be bound.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::error::{Error, NotUsable, Result};
use crate::seam;

// `linux/if_addr.h`.
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// `bind`, whose error says what is wrong with an address that is on this host.
pub(crate) fn bind(socket: &socket2::Socket, local: SocketAddr) -> Result<()> {
    seam::enter("bind")?;
    match socket.bind(&local.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
            Err(reason(local, error))
        }
        other => other.map_err(|error| Error::new("bind", error)),
    }
}

fn reason(local: SocketAddr, error: io::Error) -> Error {
    // What cannot be found out does not hide the error.
    if let IpAddr::V6(address) = local.ip()
        && let Ok(table) = std::fs::read_to_string("/proc/thread-self/net/if_inet6")
        && let Some((device, because)) = look_up(&table, address)
    {
        return Error::NotUsable {
            address,
            device,
            because,
        };
    }
    Error::new("bind", error)
}

/// In a table of one address a line: the address, and in numbers of base 16 the interface's index, the length of the prefix,
/// the scope and the flags; then the interface's name.
fn look_up(table: &str, address: Ipv6Addr) -> Option<(String, NotUsable)> {
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let this = u128::from_str_radix(words.next()?, 16).ok()?;
        let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
        let device = words.next()?;
        let because = if flags & IFA_F_DADFAILED != 0 {
            NotUsable::Duplicate
        } else if flags & IFA_F_TENTATIVE != 0 {
            NotUsable::Tentative
        } else {
            return None;
        };
        (this == address.to_bits()).then(|| (device.to_owned(), because))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_with_their_device() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     20010002000000000000000000000080 3f 80 00 40     eth0\n\
                     20010002000000000000000000000081 3f 80 00 c8 with.dot\n\
                     20010002000000000000000000000082 3f 80 00 a0     eth0\n";
        let of = |address: &str| look_up(table, address.parse().unwrap());
        assert_eq!(of("::1"), None);
        let eth0 = "eth0".to_owned();
        assert_eq!(of("2001:2::80"), Some((eth0, NotUsable::Tentative)));
        let dotted = "with.dot".to_owned();
        assert_eq!(of("2001:2::81"), Some((dotted, NotUsable::Duplicate)));
        assert_eq!(of("2001:2::82"), None);
        assert_eq!(of("2001:2::83"), None);
    }
}
