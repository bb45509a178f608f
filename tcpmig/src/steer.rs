//! How a connection's packets reach the host that it moves to.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tcpmig_format::FourTuple;
use tcpmig_lock::route::Routes;
use tcpmig_lock::{LockError, Locker, NextHop};

use crate::capture::Frozen;

/// A way to bring a connection's packets to the target.
///
/// What [waits](Steer::waits) is called from a thread that is in the network namespace of the mover and on which nothing else of
/// the program runs, anything else from the task that moves the connection.
pub trait Steer: Send + Sync {
    /// Whether [`Steer::plan`] or [`Steering::steer`] can wait: for another host, a program, a lock that others hold. True unless it
    /// is implemented.
    fn waits(&self) -> bool {
        true
    }

    /// Everything that takes time, before the connection stands still. `locker` is the one that will lock it.
    ///
    /// # Errors
    ///
    /// [`SteerError`]: the connection is then not touched.
    fn plan(&self, flow: FourTuple, locker: &dyn Locker) -> Result<Box<dyn Steering>, SteerError>;
}

/// A planned [`Steer`].
pub trait Steering: Send {
    /// Steers the packets of a frozen connection, from the moment this returns.
    ///
    /// # Errors
    ///
    /// [`SteerError`]: the connection is then kept.
    fn steer(self: Box<Self>, frozen: &mut Frozen) -> Result<(), SteerError>;

    /// Where to and for how long [`Steering::steer`] [redirects](Frozen::redirect) the packets, if it does that and no more: then many
    /// connections are redirected in one step of the locker, and it is not called. `None` unless it is implemented.
    fn redirects_to(&self) -> Option<(&NextHop, Duration)> {
        None
    }
}

/// Why packets could not be steered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteerError {
    /// The locker or the routes refused it.
    #[error("redirect: {0}")]
    Redirect(#[from] LockError),
    /// Another way of steering failed.
    #[error("steer: {0}")]
    Other(String),
}

/// Something else brings the packets to the target: a load balancer, or a router.
#[derive(Debug, Clone, Copy, Default)]
pub struct External;

impl Steer for External {
    fn waits(&self) -> bool {
        false
    }

    fn plan(&self, _: FourTuple, _: &dyn Locker) -> Result<Box<dyn Steering>, SteerError> {
        Ok(Box::new(Self))
    }
}

impl Steering for External {
    fn steer(self: Box<Self>, _: &mut Frozen) -> Result<(), SteerError> {
        Ok(())
    }
}

/// This host forwards the connection's packets to the target, which is its neighbour.
///
/// The target needs the connection's local address on one of its devices, silently (on
/// `lo`, with `arp_ignore=1` and `arp_announce=2`), and answers the peer directly. Nothing else on
/// the network changes.
#[derive(Debug)]
pub struct Redirected {
    target: IpAddr,
    lease: Duration,
    routes: Routes,
    asked: Mutex<Asked>,
}

/// What the routes of this host said lately, by the peer.
#[derive(Debug)]
struct Asked {
    since: Instant,
    hops: HashMap<IpAddr, NextHop>,
}

/// For so long they are taken to say the same. A plan can wait for longer than that until its connection is steered.
const LASTS: Duration = Duration::from_millis(50);

impl Redirected {
    /// Forwards to the host with the address `target`, for `lease`, from the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`SteerError::Redirect`] if the routes of this host cannot be asked.
    pub fn new(target: IpAddr, lease: Duration) -> Result<Self, SteerError> {
        Ok(Self {
            target,
            lease,
            routes: Routes::new()?,
            asked: Mutex::new(Asked {
                since: Instant::now(),
                hops: HashMap::new(),
            }),
        })
    }

    /// On the way from this peer.
    fn hop(&self, peer: IpAddr) -> Result<NextHop, LockError> {
        // Every change is one call, so that it is whole after a panic.
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.since.elapsed() > LASTS {
            asked.hops.clear();
            asked.since = Instant::now();
        }
        if let Some(hop) = asked.hops.get(&peer) {
            return Ok(hop.clone());
        }
        let hop = self.routes.next_hop(self.target, peer)?;
        asked.hops.insert(peer, hop.clone());
        Ok(hop)
    }
}

struct Planned {
    hop: NextHop,
    lease: Duration,
}

impl Steer for Redirected {
    /// A question to the kernel, and then a call of the locker, which has its own word on that.
    fn waits(&self) -> bool {
        false
    }

    fn plan(&self, flow: FourTuple, locker: &dyn Locker) -> Result<Box<dyn Steering>, SteerError> {
        if self.target.is_ipv4() != flow.is_ipv4() {
            return Err(LockError::HopFamily {
                flow,
                hop: self.target,
            }
            .into());
        }
        let hop = self.hop(flow.remote().ip())?;
        locker.get_ready(&hop, self.lease)?;
        Ok(Box::new(Planned {
            hop,
            lease: self.lease,
        }))
    }
}

impl Steering for Planned {
    fn steer(self: Box<Self>, frozen: &mut Frozen) -> Result<(), SteerError> {
        Ok(frozen.redirect(&self.hop, self.lease)?)
    }

    fn redirects_to(&self) -> Option<(&NextHop, Duration)> {
        Some((&self.hop, self.lease))
    }
}
