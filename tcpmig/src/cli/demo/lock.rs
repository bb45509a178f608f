//! The lockers that the demo can show.

use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tcpmig::locker;
use tcpmig_lock::{Backend, Flavour, Link, Locker, RedirectedBy, Unplug};
use tcpmig_sys::netns::Namespace;

use super::messages::Setup;

/// How packets are kept away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lock {
    /// The kernel's packet filter
    Nftables,
    /// Rules of iptables and ip6tables; nftables redirects
    Iptables,
    /// The server's host is unplugged from the switch; images travel over a second cable, and nftables redirects
    Link,
}

/// The locker, in the network namespace of the calling thread.
pub(crate) fn open(setup: &Setup) -> anyhow::Result<Arc<dyn Locker>> {
    let redirects = Arc::new(locker::nftables()?);
    let locks: Box<dyn Locker> = match setup.lock {
        Lock::Nftables => return Ok(redirects),
        Lock::Iptables => locker::open(&Backend::Iptables(Flavour::Default))?,
        Lock::Link => {
            let switch = Namespace::open(&setup.switch)?;
            let entered = switch.enter()?;
            let link = Link::new(&setup.port, Unplug::Port);
            drop(entered);
            Box::new(link.with_context(|| format!("port {} of the switch", setup.port))?)
        }
    };
    Ok(Arc::new(RedirectedBy::boxed(locks, redirects)))
}
