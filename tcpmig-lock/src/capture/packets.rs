//! What arrived for flows while they were locked.

use tcpmig_format::{FourTuple, SecretBytes};

/// What arrived for locked flows since their lock began or since it was last asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// The packets, in the order in which they arrived.
    pub packets: Vec<Packet>,
    /// Whether more arrived than there was room for. What is missing is as if it had been lost on the way; it may be
    /// of any flow, and from anywhere between the packets.
    pub overflowed: bool,
}

impl Captured {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// A packet that arrived for a locked flow and was not delivered. Its content does not print.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Packet {
    /// The flow, seen from this host.
    pub flow: FourTuple,
    /// The packet from its IP header on, as the host's network stack had it. It comes from the network and is
    /// checked by nobody yet. Segments that the device or the kernel joined (GRO, GSO) are one packet, and where a
    /// checksum is left to a device to fill in, it is not filled in. Of a packet above 65 531 bytes only so many are
    /// here.
    pub bytes: SecretBytes,
}

impl Packet {
    /// A packet of this flow.
    #[must_use]
    pub fn new(flow: FourTuple, bytes: SecretBytes) -> Self {
        Self { flow, bytes }
    }
}
