//! What a target takes from whom. Closed by default.
//!
//! A host that is let in ([`Trust`](tcpmig_transport::Trust)) can put anything into the images that
//! it offers, and a process that restores them usually has privileges which that host has not. So a
//! target holds every image against [`Rules`] before it touches anything for it: by default it
//! takes connections of addresses that are its own at that moment, with options that a process
//! without privileges could set here itself. Everything else is opened by name.
//!
//! | In an image | Without a rule | Opened by |
//! |---|---|---|
//! | local address | one of this host | [`Rules::local`] narrows it; with [`Rules::freebind`] or [`Rules::transparent`] it opens others |
//! | local port | any | [`Rules::ports`] narrows it |
//! | remote address | any but this host's, broadcast and multicast ones | [`Rules::peers`] narrows it, and opens this host's own |
//! | layers | left to [`accept_if`](super::Acceptor::accept_if); without that, none | [`Rules::session`], [`Rules::plain`] |
//! | `SO_MARK` | none | [`Rules::mark`], [`Rules::any_mark`]; [`INJECT_MARK`] never |
//! | `SO_BINDTODEVICE`, scope of a link-local address | none | [`Rules::device`] |
//! | `IP_TRANSPARENT`, `IP_FREEBIND` | off | [`Rules::transparent`], [`Rules::freebind`] |
//! | `SO_PRIORITY` | up to 6 | [`Rules::priority_up_to`] |
//! | `IP_OPTIONS` (source routes among them) | none | [`Rules::ip_options`] |
//! | `SO_RCVBUF`, `SO_SNDBUF` that the application asked for | up to `net.core.rmem_max`, `wmem_max` | [`Rules::buffers_up_to`] |
//! | queues | as large as a connection of this host can have them (`tcp_rmem`, `tcp_wmem`) | [`Rules::buffers_up_to`] |
//! | `TCP_CONGESTION` | of `net.ipv4.tcp_allowed_congestion_control` | [`Rules::congestion`] |
//! | `SO_BUSY_POLL`, `SO_PREFER_BUSY_POLL` | up to `net.core.busy_read`; off | [`Rules::busy_poll`] |
//! | everything else | as in the image | |
//!
//! Everything else is what any process can set on a socket of its own: TTL, type of service and
//! DSCP, flow labels, time-outs, pacing, classic filters, windows. It acts on the connection alone, and an application has to expect
//! it: a socket that arrives can be blocking, linger on `close`, or lack `FD_CLOEXEC`, and its unread
//! bytes and the state beside it are as trustworthy as the source.
//!
//! What is refused names the rule and the value. With
//! [`Unsupported::Warn`](crate::options::Unsupported::Warn) an option that no rule opens is left out
//! like one that the host does not have, and reported in [`Arrived::not_set`](super::Arrived::not_set).
//!
//! The policy is the acceptor's. Whoever restores an image by hand ([`restore`](crate::restore),
//! `tcpmig restore`) has chosen it himself.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use tcpmig_format::{Image, IpImage, Layer};
use tcpmig_lock::route::AddressKind;

use crate::handover::Code;
use crate::options::NotSet;
#[allow(unused_imports, reason = "the documentation names it")]
use crate::restore::INJECT_MARK;

mod host;
mod prefix;
mod privileges;
mod recent;
#[cfg(test)]
mod tests;

pub use prefix::{InvalidPrefix, Prefix};

pub(super) use host::{Facts, ThisHost};

/// What a target takes from whom: [`Rules`] for the hosts that are named, and others for everybody
/// else.
///
/// ```
/// use tcpmig::driver::policy::{Policy, Rules};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // The load balancers may bring connections of the service, which they accepted transparently.
/// let balancer = Rules::new()
///     .local("198.51.100.0/24".parse()?)
///     .ports(443..=443)
///     .transparent()
///     .session("example", 1..=2);
/// let policy = Policy::new()
///     .host("lb1.example", balancer.clone())
///     .host("lb2.example", balancer);
/// # let _ = policy;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policy {
    others: Rules,
    hosts: HashMap<String, Rules>,
}

impl Policy {
    /// The closed [`Rules::new`] for everybody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is taken from hosts that are not named.
    #[must_use]
    pub fn others(mut self, rules: Rules) -> Self {
        self.others = rules;
        self
    }

    /// What is taken from the host with this name, instead of what the others may: the name in its certificate by
    /// which it was let in ([`Peer::name`](tcpmig_transport::Peer::name)).
    #[must_use]
    pub fn host(mut self, name: impl AsRef<str>, rules: Rules) -> Self {
        self.hosts.insert(name.as_ref().to_ascii_lowercase(), rules);
        self
    }

    /// The rules for a host.
    #[must_use]
    pub fn rules(&self, name: &str) -> &Rules {
        let rules = self.hosts.get(&name.to_ascii_lowercase());
        rules.unwrap_or(&self.others)
    }
}

/// What is taken from one host. Each method opens or narrows one thing; see the [table](self).
#[derive(Debug, Clone, Default)]
pub struct Rules {
    local: Vec<Prefix>,
    ports: Vec<RangeInclusive<u16>>,
    peers: Vec<Prefix>,
    sessions: Vec<(String, RangeInclusive<u32>)>,
    plain: bool,
    marks: Vec<u32>,
    any_mark: bool,
    devices: Vec<String>,
    transparent: bool,
    freebind: bool,
    priority: u32,
    ip_options: bool,
    buffers: u32,
    congestion: Vec<String>,
    busy_poll: bool,
}

/// What kept an image from being taken, and which rule would have to say otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// Something other than an option of the socket.
    #[error("policy: {value} ({rule})")]
    Image {
        /// The rule.
        rule: &'static str,
        /// What the image has, and why not.
        value: String,
    },
    /// An option that a process without privileges could not set.
    #[error("policy: {option}={value} is not allowed ({rule})")]
    Option {
        /// The rule.
        rule: &'static str,
        /// Its name, as in the manual pages.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// An option that this host does not have: finding that out by setting it could load a module.
    #[error("{0}")]
    Missing(NotSet),
    /// This host could not be asked what is its own.
    #[error("policy: {0}")]
    Unknown(String),
}

/// The rule about application state.
const SESSION: &str = "Rules::session";

impl Denied {
    /// Its kind, for the source.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Image { rule, .. } if *rule == SESSION => Code::Session,
            Self::Image { .. } | Self::Option { .. } => Code::Policy,
            Self::Missing(_) => Code::Option,
            Self::Unknown(_) => Code::Other,
        }
    }
}

impl Rules {
    /// Nothing that needs a rule.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes connections whose local address is in this prefix, and in no other that is not named. It
    /// still has to be an address of this host, unless [`freebind`](Self::freebind) or
    /// [`transparent`](Self::transparent) is allowed and the image has that option.
    #[must_use]
    pub fn local(mut self, prefix: Prefix) -> Self {
        self.local.push(prefix);
        self
    }

    /// Takes connections with these local ports, and no others that are not named.
    #[must_use]
    pub fn ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ports.push(ports);
        self
    }

    /// Takes connections with peers in this prefix, and in no other that is not named; also if the
    /// peer is an address of this host.
    #[must_use]
    pub fn peers(mut self, prefix: Prefix) -> Self {
        self.peers.push(prefix);
        self
    }

    /// Takes layers of this kind and these versions, and no other that is not named: of a session of two layers,
    /// name both.
    #[must_use]
    pub fn session(mut self, kind: impl Into<String>, versions: RangeInclusive<u32>) -> Self {
        self.sessions.push((kind.into(), versions));
        self
    }

    /// Takes connections without a layer, and with layers only if each is named as a
    /// [`session`](Self::session).
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Takes this `SO_MARK`, which may choose routes and pass firewalls here.
    #[must_use]
    pub fn mark(mut self, mark: u32) -> Self {
        self.marks.push(mark);
        self
    }

    /// Takes every `SO_MARK` but [`INJECT_MARK`].
    #[must_use]
    pub fn any_mark(mut self) -> Self {
        self.any_mark = true;
        self
    }

    /// Takes sockets that are bound to the device with this name, and link-local addresses of it.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.devices.push(name.into());
        self
    }

    /// Takes `IP_TRANSPARENT` (`IPV6_TRANSPARENT`), and with it local addresses that are not of this host, if a
    /// [`local`](Self::local) prefix names them.
    #[must_use]
    pub fn transparent(mut self) -> Self {
        self.transparent = true;
        self
    }

    /// Like [`transparent`](Self::transparent), but for `IP_FREEBIND` (`IPV6_FREEBIND`).
    #[must_use]
    pub fn freebind(mut self) -> Self {
        self.freebind = true;
        self
    }

    /// Takes `SO_PRIORITY` up to this.
    #[must_use]
    pub fn priority_up_to(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// Takes `IP_OPTIONS`: a source route among them makes this host send elsewhere than to the peer.
    #[must_use]
    pub fn ip_options(mut self) -> Self {
        self.ip_options = true;
        self
    }

    /// Takes `SO_RCVBUF` and `SO_SNDBUF`, and queues, of up to so many bytes as the kernel
    /// accounts them (twice what an application asks for), whatever the limits of this host are.
    #[must_use]
    pub fn buffers_up_to(mut self, bytes: u32) -> Self {
        self.buffers = bytes;
        self
    }

    /// Takes this congestion control, even if it is for privileged processes.
    #[must_use]
    pub fn congestion(mut self, name: impl Into<String>) -> Self {
        self.congestion.push(name.into());
        self
    }

    /// Takes `SO_BUSY_POLL` and `SO_PREFER_BUSY_POLL`: a reader then polls its device.
    #[must_use]
    pub fn busy_poll(mut self) -> Self {
        self.busy_poll = true;
        self
    }

    /// Holds an image against the rules. `asked` says whether the application has a say in what states it
    /// takes. With `leave_out`, options that are not allowed are taken out of the image and returned.
    pub(super) fn check(
        &self,
        image: &mut Image,
        host: &dyn Facts,
        asked: bool,
        leave_out: bool,
    ) -> Result<Vec<NotSet>, Denied> {
        if let Some(ip) = image.ip() {
            self.check_local(ip, host)?;
            self.check_remote(ip, host)?;
        }
        self.check_layers(&image.layers, asked)?;
        privileges::check(self, image, host, leave_out)
    }

    fn check_local(&self, ip: &IpImage, host: &dyn Facts) -> Result<(), Denied> {
        const RULE: &str = "Rules::local";
        let local = ip.flow.local();
        let named = self.local.iter().any(|prefix| prefix.contains(local.ip()));
        if !self.local.is_empty() && !named {
            let value = format!("the local address {} is in no prefix", local.ip());
            return Err(Denied::Image { rule: RULE, value });
        }
        let may_be_foreign = ip.transparent && self.transparent || ip.freebind && self.freebind;
        if !(named && may_be_foreign) && host.kind(local.ip(), ip)? != AddressKind::Local {
            let value = format!("the local address {} is not on this host", local.ip());
            return Err(Denied::Image { rule: RULE, value });
        }
        if !self.ports.is_empty() && !self.ports.iter().any(|all| all.contains(&local.port())) {
            return Err(Denied::Image {
                rule: "Rules::ports",
                value: format!("the local port {}", local.port()),
            });
        }
        Ok(())
    }

    fn check_remote(&self, ip: &IpImage, host: &dyn Facts) -> Result<(), Denied> {
        let remote = ip.flow.remote().ip();
        let named = self.peers.iter().any(|prefix| prefix.contains(remote));
        let why = match host.kind(remote, ip)? {
            AddressKind::Broadcast => "is a broadcast address here",
            AddressKind::Multicast => "is a multicast address",
            AddressKind::Local | AddressKind::Anycast if !named => "is of this host itself",
            _ if !self.peers.is_empty() && !named => "is in no prefix",
            _ => return Ok(()),
        };
        Err(Denied::Image {
            rule: "Rules::peers",
            value: format!("the remote address {remote} {why}"),
        })
    }

    fn check_layers(&self, layers: &[Layer], asked: bool) -> Result<(), Denied> {
        let left_to_application = self.sessions.is_empty() && !self.plain;
        let is_taken = |layer: &Layer| {
            let is_named = |(kind, versions): &(String, RangeInclusive<u32>)| {
                *kind == layer.kind && versions.contains(&layer.version)
            };
            left_to_application && asked || self.sessions.iter().any(is_named)
        };
        let value = match layers.iter().find(|layer| !is_taken(layer)) {
            Some(layer) => format!("the layer {layer}"),
            None if layers.is_empty() && !left_to_application && !self.plain => {
                "a connection without a layer".to_owned()
            }
            None => return Ok(()),
        };
        let rule = SESSION;
        Err(Denied::Image { rule, value })
    }
}
