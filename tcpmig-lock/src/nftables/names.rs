//! How tables and sets are called, and what rules and sets agree on.

use std::ffi::CString;

use nftnl::ProtoFamily;

/// Before everything that rules of others usually do: the priority `raw`.
pub(super) const PRIORITY: i32 = -300;

/// The register behind those that an IPv6 flow fills, ten of four bytes.
pub(super) const VALUE: u32 = libc::NFT_REG32_10 as u32;
/// How many flows of each family can be redirected. Sets that rules change are of a limited size, and 65 535 if none is
/// given; a kernel may take memory for all at once, 16 bytes for each.
pub(super) const MAX_REDIRECTS: u32 = 1 << 18;
/// Flags of a segment.
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;
/// The set of link-layer addresses of the hosts that packets are sent to.
pub(super) const HOSTS: &str = "hosts";

/// One of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Inet,
    Netdev,
}

impl Table {
    pub(super) fn family(self) -> u8 {
        (match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Netdev => libc::NFPROTO_NETDEV,
        }) as u8
    }

    pub(super) fn family_name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }

    pub(super) fn object(self, name: &str) -> nftnl::Table {
        let family = match self {
            Self::Inet => ProtoFamily::Inet,
            Self::Netdev => ProtoFamily::NetDev,
        };
        nftnl::Table::new(c_string(name), family)
    }
}

/// A pair of sets (IPv4 and IPv6) that is keyed by four-tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// Silent flows.
    Locked,
    /// Redirected flows, for which this host stays silent.
    Gone,
    /// Redirected flows, and the index of the device they leave by.
    Device,
    /// Redirected flows, and the address they are sent to.
    Hop,
    /// Redirected flows whose end was seen.
    Closing,
    /// Redirected flows that are locked again, because they come back.
    Back,
    /// Redirected flows whose end was seen, for the silence of this host: as `Closing`, which another table has.
    Ended,
}

impl Set {
    pub(super) fn table(self) -> Table {
        match self {
            Self::Locked | Self::Gone | Self::Ended => Table::Inet,
            Self::Device | Self::Hop | Self::Closing | Self::Back => Table::Netdev,
        }
    }

    pub(super) fn name(self, v4: bool) -> &'static str {
        match (self, v4) {
            (Self::Locked, true) => "locked4",
            (Self::Locked, false) => "locked6",
            (Self::Gone, true) => "gone4",
            (Self::Gone, false) => "gone6",
            (Self::Device, true) => "device4",
            (Self::Device, false) => "device6",
            (Self::Hop, true) => "hop4",
            (Self::Hop, false) => "hop6",
            (Self::Closing, true) => "closing4",
            (Self::Closing, false) => "closing6",
            (Self::Back, true) => "back4",
            (Self::Back, false) => "back6",
            (Self::Ended, true) => "ended4",
            (Self::Ended, false) => "ended6",
        }
    }
}

/// All sets of a redirect.
pub(super) const REDIRECT: [Set; 6] = [
    Set::Gone,
    Set::Device,
    Set::Hop,
    Set::Closing,
    Set::Back,
    Set::Ended,
];

/// Names were checked to be ASCII letters, digits and the like, or come from the kernel.
pub(super) fn c_string(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}
