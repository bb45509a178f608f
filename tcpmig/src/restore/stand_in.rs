//! A socket that keeps this host silent for a connection that is still to come.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tcpmig_format::IpImage;
use tcpmig_lock::route::{self, Routes};
use tcpmig_sys::repair::RestoringSocket;

#[cfg(feature = "driver")]
use {
    super::{RestoreError, endpoint, open},
    crate::options::{self, Setter, Unsupported},
    std::os::fd::AsFd,
    tcpmig_format::SocketOptions,
};

/// A [mute](tcpmig_sys::repair::mute) socket with the connection's addresses and none of its numbers.
///
/// Packets of a connection may be steered here before it is built. Without any socket they draw an RST as soon as the lock has
/// ended: somebody flushed the packet filter, or this process is stopped for longer than the lease. Dropping it sends nothing.
#[cfg(feature = "driver")]
pub(crate) struct StandIn {
    socket: RestoringSocket,
    /// Where the connection's packets leave, if it is not bound there. Found out before the connection stands still.
    device: Option<String>,
}

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
        let namespace = closed.namespace();
        // What cannot be set here is said when the connection is built.
        let mut not_set = Vec::new();
        let fresh = options::fresh(namespace, ip.family);
        let mut set = Setter::new(closed.as_fd(), Unsupported::Warn, &mut not_set).knowing(fresh);
        options::before_bind(&mut set, ip, options)?;
        let bound = closed.bind(endpoint(ip.flow.local(), ip, scope))?;
        let remote = endpoint(ip.flow.remote(), ip, scope);
        Ok(Self {
            socket: bound.stand_in(remote)?,
            device: device(ip, namespace),
        })
    }

    /// Lets the connection be built beside it; `None` if that is not possible, and then it is gone.
    pub(crate) fn step_aside(self) -> Option<Self> {
        self.socket.step_aside(self.device.as_deref()?).ok()?;
        Some(self)
    }
}

/// Makes room for another socket with the same four-tuple. If this one can stay beside it until that is there, it is given
/// back: packets may come here already, and without any socket they draw an RST as soon as the lock has ended, which
/// it does if this process is stopped just now.
pub(super) fn step_aside(socket: RestoringSocket, ip: &IpImage) -> Option<RestoringSocket> {
    socket.step_aside(&device(ip, None)?).ok()?;
    Some(socket)
}

/// The device that a socket can be bound to while another one has its four-tuple, by which the connection's packets leave. Two sockets of
/// one device cannot have the same. `namespace` is the cookie of the thread's network namespace.
fn device(ip: &IpImage, namespace: Option<u64>) -> Option<String> {
    if ip.bound_device.is_some() {
        return None;
    }
    if let Some(name) = &ip.scope {
        return Some(name.clone());
    }
    let (to, from) = (ip.flow.remote().ip(), ip.flow.local().ip());
    let Some(namespace) = namespace else {
        return Some(route::lookup(to, Some(from)).ok()?.device);
    };
    LOOKED.with_borrow_mut(|looked| {
        let is_here = |looked: &&mut Looked| looked.namespace == namespace;
        let looked = match looked.as_mut().filter(is_here) {
            Some(here) => here,
            None => looked.insert(Looked::new(namespace)?),
        };
        looked.device(to, from)
    })
}

/// For so long routes are taken to be the same.
const LASTS: Duration = Duration::from_millis(50);

thread_local! {
    /// To ask costs less than to open a socket for asking, and many connections come from one host.
    static LOOKED: RefCell<Option<Looked>> = const { RefCell::new(None) };
}

/// What the routes of a network namespace said lately.
struct Looked {
    namespace: u64,
    routes: Routes,
    since: Instant,
    devices: HashMap<(IpAddr, IpAddr), String>,
}

impl Looked {
    /// In the network namespace of the calling thread, with this cookie.
    fn new(namespace: u64) -> Option<Self> {
        Some(Self {
            namespace,
            routes: Routes::new().ok()?,
            since: Instant::now(),
            devices: HashMap::new(),
        })
    }

    fn device(&mut self, to: IpAddr, from: IpAddr) -> Option<String> {
        if self.since.elapsed() > LASTS {
            self.devices.clear();
            self.since = Instant::now();
        }
        if let Some(device) = self.devices.get(&(to, from)) {
            return Some(device.clone());
        }
        let device = self.routes.lookup(to, Some(from)).ok()?.device;
        self.devices.insert((to, from), device.clone());
        Some(device)
    }
}
