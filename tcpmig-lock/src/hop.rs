//! Where the packets of a redirected flow go.

use std::net::IpAddr;

use crate::LockError;
use crate::route::Routes;

/// Where the packets of a redirected flow go: a neighbour on a device of this host.
///
/// It serves flows of one family; flows of both are locked with one guard for each if they are to be redirected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The device by which the packets leave.
    pub device: String,
    /// The neighbour's address on that device. It must be of the family of the flows.
    pub address: IpAddr,
    /// A device on which the peer's packets arrive. They are looked for on all others as well, but for `lo`.
    pub ingress: String,
}

impl NextHop {
    /// The way to `target` for packets that `peer` sends to this host, in the network namespace of the calling
    /// thread.
    ///
    /// # Errors
    ///
    /// [`LockError::NotOnLink`] if a router is between this host and `target`: it would send the packets back here.
    /// [`LockError::TargetIsLocal`], [`LockError::PeerIsLocal`], [`LockError::NoRoute`] (also for `peer`).
    pub fn toward(target: IpAddr, peer: IpAddr) -> Result<Self, LockError> {
        Routes::new()?.next_hop(target, peer)
    }
}
