//! A range of addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Addresses with the same first bits: `198.51.100.0/24`, `2001:db8::/32`, or a single address. An
/// IPv4-mapped address of IPv6 counts as the IPv4 address that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// The text is not an address or `ADDRESS/LENGTH`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or ADDRESS/LENGTH, for example 198.51.100.0/24")]
pub struct InvalidPrefix(String);

impl Prefix {
    /// Whether the address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, bits) = number(self.address);
        let (other, other_bits) = number(address.to_canonical());
        // Shifting by all bits is what a length of 0 means.
        let beyond = u32::from(bits - self.length);
        let same = own.checked_shr(beyond) == other.checked_shr(beyond);
        bits == other_bits && (same || self.length == 0)
    }
}

/// The address as a number, and how many bits it has.
fn number(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let (_, length) = number(address);
        Self { address, length }
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let invalid = || InvalidPrefix(text.to_owned());
        let Some((address, length)) = text.split_once('/') else {
            return Ok(text.parse::<IpAddr>().map_err(|_| invalid())?.into());
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let length = length.parse().map_err(|_| invalid())?;
        // A mapped address with a length would leave open which of the two lengths is meant.
        if length > number(address).1 || address.to_canonical() != address {
            return Err(invalid());
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}
