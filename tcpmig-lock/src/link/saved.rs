//! What unplugging a device takes away, and how it is put back.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE, NetlinkHeader};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Unplug;
use crate::namespace::Namespace;
use crate::route::Routes;
use crate::{LockError, rtnl};

/// How long a device may take to be ready again before the rest is put back all the same.
const READY: Duration = Duration::from_millis(500);
/// How often the routes that are missing are tried: those through a router need the route to the router.
const ROUTE_ROUNDS: usize = 4;
/// The units of a route's age.
const CLOCK_TICKS: u32 = 100;

/// What puts a device back as it was: messages to the kernel, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Saved {
    pub(super) messages: Vec<RouteNetlinkMessage>,
    /// `net.ipv6.conf.DEVICE.accept_dad`.
    pub(super) accept_dad: Option<String>,
}

impl Saved {
    /// Reads what unplugging this device takes away. Changes nothing.
    pub(super) fn take(
        routes: &Routes,
        namespace: &Namespace,
        name: &str,
        unplug: Unplug,
    ) -> Result<Self, LockError> {
        let index = routes.device_index(name)?;
        let link = routes.device(index)?;
        match unplug {
            Unplug::Port => Self::take_port(routes, name, &link),
            Unplug::Down => Self::take_down(routes, namespace, name, &link),
        }
    }

    fn take_port(routes: &Routes, name: &str, link: &LinkMessage) -> Result<Self, LockError> {
        let index = link.header.index;
        let Some(bridge) = master(link) else {
            return Err(cannot(name, "it is not a port of a bridge"));
        };
        let settings = port_settings(link)
            .ok_or_else(|| cannot(name, "what it is a port of is not a bridge"))?;
        if filters_vlans(&routes.device(bridge)?) {
            return Err(cannot(
                name,
                "its bridge filters VLANs, and the port would lose its own",
            ));
        }
        let mut back = LinkMessage::default();
        back.header.index = index;
        back.attributes = vec![LinkAttribute::Controller(bridge)];
        let mut set = LinkMessage::default();
        set.header.index = index;
        set.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)),
        ])];
        let mut messages = vec![
            RouteNetlinkMessage::SetLink(back),
            RouteNetlinkMessage::NewLink(set),
        ];
        let stations = neighbours(routes, AddressFamily::Bridge, NeighbourFlags::empty())?;
        messages.extend(
            stations
                .into_iter()
                .filter(|entry| entry.header.ifindex == index)
                // Those that somebody entered; the others are learned again.
                .filter(|entry| entry.header.state == NeighbourState::Noarp)
                .map(|mut entry| {
                    entry.header.flags |= NeighbourFlags::Controller;
                    strip(&mut entry);
                    RouteNetlinkMessage::NewNeighbour(entry)
                }),
        );
        Ok(Self {
            messages,
            accept_dad: None,
        })
    }

    fn take_down(
        routes: &Routes,
        namespace: &Namespace,
        name: &str,
        link: &LinkMessage,
    ) -> Result<Self, LockError> {
        let index = link.header.index;
        if link.header.flags.contains(LinkFlags::Loopback) {
            return Err(cannot(name, "it is the loopback device"));
        }
        if !link.header.flags.contains(LinkFlags::Up) {
            return Err(cannot(name, "it is down"));
        }
        let mut messages = vec![up_or_down(index, true)];
        messages.extend(
            addresses(routes, index)?
                .into_iter()
                .map(RouteNetlinkMessage::NewAddress),
        );
        messages.extend(
            all_routes(routes, index)?
                .into_iter()
                .map(RouteNetlinkMessage::NewRoute),
        );
        for flags in [NeighbourFlags::empty(), NeighbourFlags::Proxy] {
            let known = neighbours(routes, AddressFamily::Unspec, flags)?;
            let mine = known
                .into_iter()
                .filter(|entry| entry.header.ifindex == index);
            messages.extend(mine.filter_map(kept).map(RouteNetlinkMessage::NewNeighbour));
        }
        let path = accept_dad(name);
        let dad = namespace.run(|| Ok(std::fs::read_to_string(&path).ok()))?;
        Ok(Self {
            messages,
            accept_dad: dad.map(|text| text.trim().to_owned()),
        })
    }

    /// Puts the device back, also if it is only half unplugged, or not at all.
    pub(super) fn put_back(
        &self,
        routes: &Routes,
        namespace: &Namespace,
        name: &str,
        index: u32,
    ) -> Result<(), LockError> {
        if let Some(dad) = &self.accept_dad {
            // Without it an IPv6 address cannot be used for a second, as if somebody else might have it. Where this
            // cannot be set, it takes that second.
            let set = |value: &str| {
                namespace.run(|| {
                    let _ = std::fs::write(accept_dad(name), value);
                    Ok(())
                })
            };
            set("0")?;
            let result = self
                .apply(routes, index)
                .and_then(|()| wait_until_usable(routes, index));
            set(dad)?;
            return result;
        }
        self.apply(routes, index)
    }

    fn apply(&self, routes: &Routes, index: u32) -> Result<(), LockError> {
        let rtnl = &routes.rtnl;
        let present: Vec<_> = addresses(routes, index)?.iter().map(identity).collect();
        for message in &self.messages {
            let (flags, call) = match message {
                RouteNetlinkMessage::NewAddress(address) => {
                    if present.contains(&identity(address)) {
                        continue;
                    }
                    (NLM_F_CREATE | NLM_F_REPLACE, "RTM_NEWADDR")
                }
                RouteNetlinkMessage::NewRoute(_) => continue,
                RouteNetlinkMessage::NewNeighbour(_) => {
                    (NLM_F_CREATE | NLM_F_REPLACE, "RTM_NEWNEIGH")
                }
                _ => (0, "RTM_SETLINK"),
            };
            let changed = rtnl.change(message.clone(), flags);
            match (message, changed) {
                (_, Ok(())) => {}
                // The rest is worth more than a neighbour, which is asked for again.
                (RouteNetlinkMessage::NewNeighbour(_), Err(_)) => {}
                (_, Err(source)) => return Err(LockError::call(call)(source)),
            }
            if matches!(message, RouteNetlinkMessage::SetLink(_)) {
                wait_until_ready(routes, index)?;
            }
        }
        self.apply_routes(routes, index)
    }

    fn apply_routes(&self, routes: &Routes, index: u32) -> Result<(), LockError> {
        let mut last = None;
        for _ in 0..ROUTE_ROUNDS {
            let present = all_routes(routes, index)?;
            let missing: Vec<_> = self
                .messages
                .iter()
                .filter_map(|message| match message {
                    RouteNetlinkMessage::NewRoute(route) => Some(route),
                    _ => None,
                })
                .filter(|route| !present.iter().any(|other| same(other, route)))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            for route in missing {
                let multipath =
                    |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::MultiPath(_));
                let flags = if route.attributes.iter().any(multipath) {
                    NLM_F_CREATE | NLM_F_REPLACE
                } else {
                    NLM_F_CREATE | NLM_F_APPEND
                };
                let message = RouteNetlinkMessage::NewRoute(route.clone());
                match routes.rtnl.change(message, flags) {
                    Err(error) if error.raw_os_error() != Some(libc::EEXIST) => last = Some(error),
                    _ => {}
                }
            }
        }
        last.map_or(Ok(()), |error| Err(LockError::call("RTM_NEWROUTE")(error)))
    }

    /// The messages as bytes.
    pub(super) fn encode(&self) -> impl Iterator<Item = Vec<u8>> {
        let encode = |message: &RouteNetlinkMessage| {
            let mut header = NetlinkHeader::default();
            header.message_type = message.message_type();
            rtnl::encode(header, message.clone())
        };
        self.messages.iter().map(encode)
    }

    /// Adds a message from its bytes.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> io::Result<()> {
        match rtnl::decode(bytes)?.payload {
            netlink_packet_core::NetlinkPayload::InnerMessage(message) => {
                self.messages.push(message);
                Ok(())
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// What a device keeps when it loses one address, although the kernel takes some of it away with that.
pub(crate) struct Rest(Saved);

impl Rest {
    /// The message that is about the address, if the device has it, and the rest.
    pub(crate) fn without(
        routes: &Routes,
        index: u32,
        address: IpAddr,
    ) -> Result<(Option<AddressMessage>, Self), LockError> {
        let all = addresses(routes, index)?;
        let (mut mine, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|message| identity(message).1 == Some(address));
        let preferred = |route: &RouteMessage| {
            route.attributes.iter().any(|attribute| match attribute {
                RouteAttribute::PrefSource(source) => *source == address.into(),
                _ => false,
            })
        };
        let mut kept = all_routes(routes, index)?;
        // The kernel has made those for the prefixes of addresses, and makes them again with the addresses.
        kept.retain(|route| !preferred(route) && route.header.protocol != RouteProtocol::Kernel);
        let mut rest = Saved::default();
        rest.messages
            .extend(others.into_iter().map(RouteNetlinkMessage::NewAddress));
        rest.messages
            .extend(kept.into_iter().map(RouteNetlinkMessage::NewRoute));
        Ok((mine.pop(), Self(rest)))
    }

    /// Adds what is missing, and can be there without the address.
    pub(crate) fn put_back(&self, routes: &Routes, index: u32) -> Result<(), LockError> {
        match self.0.apply(routes, index) {
            // A route through a router that only the address led to.
            Err(LockError::Netlink {
                call: "RTM_NEWROUTE",
                ..
            }) => Ok(()),
            other => other,
        }
    }
}

fn cannot(device: &str, reason: &'static str) -> LockError {
    LockError::CannotUnplug {
        device: device.to_owned(),
        reason,
    }
}

fn accept_dad(name: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/accept_dad")
}

/// The message that takes a device up or down.
fn up_or_down(index: u32, up: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    RouteNetlinkMessage::SetLink(message)
}

/// Unplugs a device.
pub(super) fn unplug(routes: &Routes, index: u32, how: Unplug) -> Result<(), LockError> {
    let message = match how {
        Unplug::Down => up_or_down(index, false),
        Unplug::Port => {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::Controller(0)];
            RouteNetlinkMessage::SetLink(message)
        }
    };
    let changed = routes.rtnl.change(message, 0);
    changed.map_err(LockError::call("RTM_SETLINK"))
}

/// Waits for a device that has just been taken up, whose addresses and routes the kernel makes meanwhile.
fn wait_until_ready(routes: &Routes, index: u32) -> Result<(), LockError> {
    let end = Instant::now() + READY;
    loop {
        let link = routes.device(index)?;
        let up = LinkAttribute::OperState(State::Up);
        let unknown = LinkAttribute::OperState(State::Unknown);
        if link.attributes.contains(&up) || link.attributes.contains(&unknown) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the kernel has found out, a moment after an address was added, that it need not ask for it.
fn wait_until_usable(routes: &Routes, index: u32) -> Result<(), LockError> {
    let end = Instant::now() + READY;
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    loop {
        let dump = routes
            .rtnl
            .dump(&request)
            .map_err(LockError::call("RTM_GETADDR"))?;
        let tentative = dump.iter().any(|message| match message {
            RouteNetlinkMessage::NewAddress(AddressMessage { header, .. }) => {
                header.index == index && header.flags.contains(AddressHeaderFlags::Tentative)
            }
            _ => false,
        });
        if !tentative || Instant::now() >= end {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The index of the bridge, or what else, that a device is a port of.
pub(super) fn master(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        })
}

/// The index of the device that this one is on top of, in the same namespace.
pub(super) fn lower(link: &LinkMessage) -> Option<u32> {
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    if link.attributes.iter().any(elsewhere) {
        return None;
    }
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        })
}

fn infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    link.attributes
        .iter()
        .flat_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.as_slice(),
            _ => &[],
        })
}

/// The settings of a bridge's port that can be set; none if it is not a port of a bridge.
fn port_settings(link: &LinkMessage) -> Option<Vec<InfoBridgePort>> {
    let data = infos(link).find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => Some(data),
        _ => None,
    })?;
    let settable = |setting: &&InfoBridgePort| {
        use InfoBridgePort as Port;
        matches!(
            setting,
            Port::Priority(_)
                | Port::Cost(_)
                | Port::HairpinMode(_)
                | Port::Guard(_)
                | Port::Protect(_)
                | Port::FastLeave(_)
                | Port::Learning(_)
                | Port::UnicastFlood(_)
                | Port::ProxyARP(_)
                | Port::ProxyARPWifi(_)
                | Port::MulticastRouter(_)
                | Port::MulticastFlood(_)
                | Port::MulticastToUnicast(_)
                | Port::BroadcastFlood(_)
                | Port::GroupFwdMask(_)
                | Port::NeighSupress(_)
                | Port::Isolated(_)
                | Port::Locked(_)
        )
    };
    Some(data.iter().filter(settable).cloned().collect())
}

fn filters_vlans(bridge: &LinkMessage) -> bool {
    infos(bridge).any(|info| match info {
        LinkInfo::Data(InfoData::Bridge(settings)) => {
            settings.contains(&InfoBridge::VlanFiltering(true))
        }
        _ => false,
    })
}

/// The addresses of a device, as they can be added again.
fn addresses(routes: &Routes, index: u32) -> Result<Vec<AddressMessage>, LockError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let dump = routes
        .rtnl
        .dump(&request)
        .map_err(LockError::call("RTM_GETADDR"))?;
    let mine = dump.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(address) if address.header.index == index => Some(address),
        _ => None,
    });
    let (mut last_first, in_order): (Vec<_>, Vec<_>) = mine
        .map(|mut address| {
            address.header.flags &= AddressHeaderFlags::Nodad | AddressHeaderFlags::Homeaddress;
            for attribute in &mut address.attributes {
                if let AddressAttribute::Flags(flags) = attribute {
                    *flags &= AddressFlags::Nodad
                        | AddressFlags::Homeaddress
                        | AddressFlags::Noprefixroute
                        | AddressFlags::Managetempaddr
                        | AddressFlags::Mcautojoin;
                }
            }
            address
        })
        .partition(|address| address.header.family == AddressFamily::Inet6);
    // The kernel puts an address of IPv6 before those that it has, and chooses the source of a packet by that order.
    last_first.reverse();
    Ok([in_order, last_first].concat())
}

/// What makes an address another than the next.
fn identity(address: &AddressMessage) -> (u8, Option<IpAddr>) {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        address.attributes.iter().find_map(wanted)
    };
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let ip = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    });
    (address.header.prefix_len, ip)
}

/// The routes that lead through a device, in all tables, as they can be added again.
fn all_routes(routes: &Routes, index: u32) -> Result<Vec<RouteMessage>, LockError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let request = RouteNetlinkMessage::GetRoute(request);
        let dump = routes
            .rtnl
            .dump(&request)
            .map_err(LockError::call("RTM_GETROUTE"))?;
        found.extend(dump.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if leads_through(&route, index) => Some(route),
            _ => None,
        }));
    }
    // Those that the kernel made for one destination (exceptions, for example a path MTU) are re-created.
    found.retain(|route| !route.header.flags.contains(RouteFlags::Cloned));
    // So are those of the addresses themselves.
    found.retain(|route| {
        let header = &route.header;
        header.table != libc::RT_TABLE_LOCAL || header.protocol != RouteProtocol::Kernel
    });
    found.iter_mut().for_each(normalize);
    Ok(found)
}

fn leads_through(route: &RouteMessage, index: u32) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(oif) => *oif == index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
        _ => false,
    })
}

/// Leaves of a route what can be asked for.
fn normalize(route: &mut RouteMessage) {
    route.header.flags &= RouteFlags::Onlink;
    let mut expires = None;
    for attribute in &mut route.attributes {
        match attribute {
            RouteAttribute::CacheInfo(info) if info.expires as i32 > 0 => {
                expires = Some((info.expires / CLOCK_TICKS).max(1));
            }
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    hop.flags &= RouteNextHopFlags::Onlink;
                }
            }
            _ => {}
        }
    }
    let asked = |attribute: &RouteAttribute| {
        !matches!(
            attribute,
            RouteAttribute::CacheInfo(_) | RouteAttribute::MulticastExpires(_)
        )
    };
    route.attributes.retain(asked);
    route
        .attributes
        .extend(expires.map(RouteAttribute::Expires));
}

/// Whether two routes are the same but for how long they last.
fn same(one: &RouteMessage, other: &RouteMessage) -> bool {
    let lasting = |route: &RouteMessage| {
        let mut route = route.clone();
        let lasts = |attribute: &RouteAttribute| !matches!(attribute, RouteAttribute::Expires(_));
        route.attributes.retain(lasts);
        route
    };
    lasting(one) == lasting(other)
}

/// The neighbours in all tables of a family.
pub(super) fn neighbours(
    routes: &Routes,
    family: AddressFamily,
    flags: NeighbourFlags,
) -> Result<Vec<NeighbourMessage>, LockError> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    request.header.flags = flags;
    let request = RouteNetlinkMessage::GetNeighbour(request);
    let dump = routes
        .rtnl
        .dump(&request)
        .map_err(LockError::call("RTM_GETNEIGH"))?;
    let found = dump.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
        _ => None,
    });
    Ok(found.collect())
}

/// A neighbour as it can be added again; none if it is not known yet, or of no use.
fn kept(mut neighbour: NeighbourMessage) -> Option<NeighbourMessage> {
    let proxy = neighbour.header.flags.contains(NeighbourFlags::Proxy);
    match neighbour.header.state {
        _ if proxy => {}
        NeighbourState::Permanent => {}
        // Used at once, and asked for again while it is used.
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe => neighbour.header.state = NeighbourState::Stale,
        _ => return None,
    }
    strip(&mut neighbour);
    Some(neighbour)
}

/// Leaves of a neighbour what can be asked for.
fn strip(neighbour: &mut NeighbourMessage) {
    neighbour.attributes.retain(|attribute| {
        matches!(
            attribute,
            NeighbourAttribute::Destination(_)
                | NeighbourAttribute::LinkLayerAddress(_)
                | NeighbourAttribute::Vlan(_)
                | NeighbourAttribute::Protocol(_)
        )
    });
}
