//! What all that speaks netlink to the packet filter and to connection tracking shares.

pub(crate) mod buffers;
pub(crate) mod socket;
pub(crate) mod wire;
