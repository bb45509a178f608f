//! A socket that keeps this host silent for a connection that is still to come.

use tcpmig_format::IpImage;
use tcpmig_lock::route;
use tcpmig_sys::repair::RestoringSocket;

#[cfg(feature = "driver")]
use {
    super::{RestoreError, endpoint, open},
    crate::options::{self, Setter, Unsupported},
    std::os::fd::AsFd,
    tcpmig_format::SocketOptions,
    tcpmig_sys::repair::QueueStart,
};

/// A [mute](tcpmig_sys::repair::mute) socket with the connection's addresses and none of its numbers.
///
/// Packets of a connection may be steered here before it is built. Without any socket they draw an RST as soon as the lock has
/// ended: somebody flushed the packet filter, or this process is stopped for longer than the lease. Dropping it sends nothing.
#[cfg(feature = "driver")]
pub(crate) struct StandIn(RestoringSocket);

/// Nothing is ever sent with it.
#[cfg(feature = "driver")]
const MSS: u16 = 536;

#[cfg(feature = "driver")]
impl StandIn {
    /// On the calling thread's host.
    ///
    /// # Errors
    ///
    /// Those of rebuilding the connection as far as its addresses go; nothing is left behind.
    pub(crate) fn new(ip: &IpImage, options: &SocketOptions) -> Result<Self, RestoreError> {
        let scope = super::scope(ip)?;
        let closed = open(ip)?;
        // What cannot be set here is said when the connection is built.
        let mut not_set = Vec::new();
        let mut set = Setter::new(closed.as_fd(), Unsupported::Warn, &mut not_set);
        options::before_bind(&mut set, ip, options)?;
        let bound = closed.bind(endpoint(ip.flow.local(), ip, scope))?;
        let remote = endpoint(ip.flow.remote(), ip, scope);
        let start = QueueStart {
            snd_una: 0,
            copied_seq: 0,
        };
        Ok(Self(bound.connect(remote, start, MSS)?))
    }

    /// Lets the connection be built beside it; `None` if that is not possible, and then it is gone.
    pub(crate) fn step_aside(self, ip: &IpImage) -> Option<Self> {
        step_aside(self.0, ip).map(Self)
    }
}

/// Makes room for another socket with the same four-tuple. If this one can stay beside it until that is there, it is given
/// back: packets may come here already, and without any socket they draw an RST as soon as the lock has ended, which
/// it does if this process is stopped just now.
pub(super) fn step_aside(socket: RestoringSocket, ip: &IpImage) -> Option<RestoringSocket> {
    // Two sockets of one device cannot have the same four-tuple.
    if ip.bound_device.is_some() {
        return None;
    }
    let device = match &ip.scope {
        Some(name) => name.clone(),
        None => {
            let (remote, local) = (ip.flow.remote().ip(), ip.flow.local().ip());
            route::lookup(remote, Some(local)).ok()?.device
        }
    };
    socket.step_aside(&device).ok()?;
    Some(socket)
}
