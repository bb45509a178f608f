//! What this host would do with a packet: look-ups in its routing tables, which need no privileges.

use std::fmt;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netdevice;

use crate::rtnl::Rtnl;
use crate::{LockError, NextHop};

/// How this host reaches an address.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// The device by which packets leave; `lo` if the address is one of this host.
    pub device: String,
    /// The index of that device.
    pub index: u32,
    /// The router in between, if the address is not on link.
    pub gateway: Option<IpAddr>,
    /// The address that this host uses as source: the one asked for, or the one it prefers.
    pub source: Option<IpAddr>,
    /// Whether the address is one of this host.
    pub local: bool,
}

/// What an address is for a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressKind {
    /// One of its own, also if it is so only by a local route.
    Local,
    /// One of another host.
    Unicast,
    /// All hosts of a subnet that it is in.
    Broadcast,
    /// A group.
    Multicast,
    /// Any router of a subnet, which it is itself.
    Anycast,
    /// It has no route there, or one that forbids it.
    Unreachable,
}

/// How the calling thread's network namespace reaches `to`, with `from` (an address of this host) as source if it is
/// given.
///
/// # Errors
///
/// [`LockError::NoRoute`] if it does not.
pub fn lookup(to: IpAddr, from: Option<IpAddr>) -> Result<Route, LockError> {
    Routes::new()?.lookup(to, from)
}

/// A network device.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) loopback: bool,
}

/// A handle for look-ups in one network namespace: the one of the thread that made it, whatever thread uses it.
pub struct Routes {
    pub(crate) rtnl: Rtnl,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

impl Routes {
    /// A handle for the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`LockError::Netlink`] if the kernel gives no netlink socket.
    pub fn new() -> Result<Self, LockError> {
        Ok(Self {
            rtnl: Rtnl::open()?,
        })
    }

    /// As the function [`lookup`].
    ///
    /// # Errors
    ///
    /// [`LockError::NoRoute`] if the address cannot be reached.
    pub fn lookup(&self, to: IpAddr, from: Option<IpAddr>) -> Result<Route, LockError> {
        let mut request = request(to);
        if let Some(from) = from {
            request.header.source_prefix_length = request.header.destination_prefix_length;
            request.attributes.push(RouteAttribute::Source(from.into()));
        }
        let reply = self.ask(to, request)?;
        let mut found = Route {
            device: String::new(),
            index: 0,
            gateway: None,
            source: from,
            local: reply.header.kind == RouteType::Local,
        };
        for attribute in &reply.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.index = *index,
                RouteAttribute::Gateway(address) => found.gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => {
                    found.gateway = Some((*address).into());
                }
                RouteAttribute::Via(RouteVia::Inet6(address)) => {
                    found.gateway = Some((*address).into());
                }
                RouteAttribute::PrefSource(address) => found.source = ip(address),
                _ => {}
            }
        }
        if !matches!(reply.header.kind, RouteType::Local | RouteType::Unicast) || found.index == 0 {
            return Err(LockError::NoRoute(to));
        }
        found.device = self.device_name(found.index)?;
        Ok(found)
    }

    /// What an address is for this host; `device`, the index of one, if it is a link-local address or one of a VRF.
    ///
    /// # Errors
    ///
    /// [`LockError::Netlink`].
    pub fn kind(&self, address: IpAddr, device: Option<u32>) -> Result<AddressKind, LockError> {
        let mut request = request(address);
        request.attributes.extend(device.map(RouteAttribute::Oif));
        let reply = match self.ask(address, request) {
            Err(LockError::NoRoute(_)) => return Ok(AddressKind::Unreachable),
            other => other?,
        };
        Ok(match reply.header.kind {
            RouteType::Local => AddressKind::Local,
            RouteType::Unicast => AddressKind::Unicast,
            RouteType::Broadcast => AddressKind::Broadcast,
            RouteType::Multicast => AddressKind::Multicast,
            RouteType::Anycast => AddressKind::Anycast,
            _ => AddressKind::Unreachable,
        })
    }

    fn ask(&self, to: IpAddr, request: RouteMessage) -> Result<RouteMessage, LockError> {
        const CALL: &str = "RTM_GETROUTE";
        let reply = self
            .rtnl
            .ask(RouteNetlinkMessage::GetRoute(request))
            .map_err(|source| match source.raw_os_error() {
                Some(
                    libc::ENETUNREACH
                    | libc::EHOSTUNREACH
                    | libc::EACCES
                    | libc::EINVAL
                    | libc::ENONET,
                ) => LockError::NoRoute(to),
                _ => LockError::call(CALL)(source),
            })?;
        match reply {
            RouteNetlinkMessage::NewRoute(reply) => Ok(reply),
            _ => Err(unexpected(CALL)),
        }
    }

    /// Those of [`NextHop::toward`].
    ///
    /// # Errors
    ///
    /// As for [`NextHop::toward`].
    pub fn next_hop(&self, target: IpAddr, peer: IpAddr) -> Result<NextHop, LockError> {
        let route = self.lookup(target, None)?;
        if route.local {
            return Err(LockError::TargetIsLocal(target));
        }
        if let Some(gateway) = route.gateway {
            return Err(LockError::NotOnLink { target, gateway });
        }
        let back = self.lookup(peer, None)?;
        if back.local {
            return Err(LockError::PeerIsLocal(peer));
        }
        Ok(NextHop {
            device: route.device,
            address: target,
            ingress: back.device,
        })
    }

    /// The link-layer address of a neighbour, of six bytes, if this host knows it.
    pub(crate) fn neighbour(
        &self,
        device: u32,
        address: IpAddr,
    ) -> Result<Option<[u8; 6]>, LockError> {
        const CALL: &str = "RTM_GETNEIGH";
        let mut request = NeighbourMessage::default();
        request.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        request.header.ifindex = device;
        request
            .attributes
            .push(NeighbourAttribute::Destination(address.into()));
        let reply = match self.rtnl.ask(RouteNetlinkMessage::GetNeighbour(request)) {
            Ok(RouteNetlinkMessage::NewNeighbour(reply)) => reply,
            Ok(_) => return Err(unexpected(CALL)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(LockError::call(CALL)(error)),
        };
        Ok(reply.attributes.iter().find_map(|attribute| {
            if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
                bytes.as_slice().try_into().ok()
            } else {
                None
            }
        }))
    }

    /// All devices.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, LockError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let dump = self.rtnl.dump(&request);
        let links = dump.map_err(LockError::call("RTM_GETLINK"))?;
        let device = |message| {
            let RouteNetlinkMessage::NewLink(link) = message else {
                return None;
            };
            let name = link
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })?;
            Some(Device {
                index: link.header.index,
                name,
                loopback: link.header.link_layer_type == LinkLayerType::Loopback,
            })
        };
        Ok(links.into_iter().filter_map(device).collect())
    }

    // Asking for the whole link would take the kernel longer than locking a flow.
    /// The index of the device with this name.
    pub(crate) fn device_index(&self, name: &str) -> Result<u32, LockError> {
        self.rtnl
            .with_socket(|socket| netdevice::name_to_index(socket, name))
            .map_err(|error| no_device("ioctl(SIOCGIFINDEX)", name)(error.into()))
    }

    /// The name of the device with this index.
    pub(crate) fn device_name(&self, index: u32) -> Result<String, LockError> {
        self.rtnl
            .with_socket(|socket| netdevice::index_to_name(socket, index))
            .map_err(|error| no_device("ioctl(SIOCGIFNAME)", index)(error.into()))
    }

    /// What the kernel says of the device with this index.
    pub(crate) fn device(&self, index: u32) -> Result<LinkMessage, LockError> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        const CALL: &str = "RTM_GETLINK";
        let reply = self
            .rtnl
            .ask(RouteNetlinkMessage::GetLink(request))
            .map_err(no_device(CALL, index))?;
        match reply {
            RouteNetlinkMessage::NewLink(link) => Ok(link),
            _ => Err(unexpected(CALL)),
        }
    }
}

/// A look-up of the route to an address.
fn request(to: IpAddr) -> RouteMessage {
    let mut request = RouteMessage::default();
    let (family, length) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request
        .attributes
        .push(RouteAttribute::Destination(to.into()));
    request
}

fn no_device(call: &'static str, which: impl ToString) -> impl FnOnce(io::Error) -> LockError {
    move |source| match source.raw_os_error() {
        // EINVAL: a number that no device can have.
        Some(libc::ENODEV | libc::ENXIO | libc::EINVAL) => LockError::NoDevice(which.to_string()),
        _ => LockError::call(call)(source),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn unexpected(call: &'static str) -> LockError {
    LockError::Netlink {
        call,
        source: io::Error::new(io::ErrorKind::InvalidData, "an answer of another kind"),
    }
}
