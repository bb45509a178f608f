//! Addresses that come to a host together with connections.
//!
//! A host that gets single connections by a [redirect](crate::Redirect) has to take packets for an address that stays
//! where it is: it [adopts](Adopted) it. A host that gets all connections of an address gets the address too: it
//! [takes](Taken) it, and the host that had it [yields](Yielded) it. In this order, which loses least:
//!
//! 1. All connections are locked, on both hosts: what arrives meanwhile at either is captured or sent again, and
//!    neither answers for a connection that the other has.
//! 2. The new host takes the address ([`Taken::new`]): it adds it, without asking whether somebody else has it, and
//!    tells everybody on the link. From here on peers send there.
//! 3. The old host yields it ([`Yielded::new`]). Not before, or else there would be a time when nobody answers for the
//!    address.
//! 4. The new host announces it once more ([`Taken::announce`]), for a peer that asked between 2 and 3 and believed the
//!    old host.
//!
//! Everything here acts on the network namespace of the thread that begins it, and is undone there. It needs
//! `CAP_NET_ADMIN` (and `CAP_NET_RAW` to announce) in the user namespace that owns the network namespace. What a
//! process that is killed has done stays.

mod packet;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{LinkAttribute, LinkLayerType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::LockError;
use crate::link::Rest;
use crate::namespace::Namespace;
use crate::route::Routes;

const LOOPBACK: &str = "lo";
/// What keeps a host from answering ARP requests for an address on `lo`, and from asking in its name: each with the
/// least value that does.
const ARP: [(&str, u32); 2] = [
    ("/proc/sys/net/ipv4/conf/all/arp_ignore", 1),
    ("/proc/sys/net/ipv4/conf/all/arp_announce", 2),
];

/// The namespace in which an address is held, and the way to the kernel there.
struct Place {
    routes: Routes,
    namespace: Namespace,
}

impl Place {
    fn here() -> Result<Self, LockError> {
        Ok(Self {
            routes: Routes::new()?,
            namespace: Namespace::current()?,
        })
    }

    /// Adds an address; false if the device has it.
    fn add(&self, message: &AddressMessage) -> Result<bool, LockError> {
        let message = RouteNetlinkMessage::NewAddress(message.clone());
        match self.routes.rtnl.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true).map_err(LockError::call("RTM_NEWADDR")),
        }
    }

    /// Removes an address; false if the device does not have it.
    fn remove(&self, message: &AddressMessage) -> Result<bool, LockError> {
        let message = RouteNetlinkMessage::DelAddress(message.clone());
        match self.routes.rtnl.change(message, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(false),
            other => other.map(|()| true).map_err(LockError::call("RTM_DELADDR")),
        }
    }
}

/// An address as the kernel is told of it. One of IPv6 can be used at once.
fn message(address: IpAddr, prefix: u8, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// An address of another host that this host takes packets for, without telling anybody: what the target of a
/// [redirect](crate::Redirect) needs.
///
/// It is an address of `lo`. For IPv4, `net.ipv4.conf.all.arp_ignore` is set to 1 and `arp_announce` to 2 before it, if
/// they are less, so that this host does not answer ARP requests for it; they are set back when no address is adopted
/// any more in this namespace by this process. Dropping it removes the address, and an error of that is lost:
/// [`undo`](Self::undo) reports it.
///
/// An address that `lo` has already is left there by both.
#[must_use = "dropping it removes the address"]
pub struct Adopted {
    address: IpAddr,
    message: AddressMessage,
    /// None once it is undone.
    place: Option<Place>,
    added: bool,
}

/// What the settings for ARP were, by network namespace, and how many adopted addresses need them.
static SETTINGS: Mutex<Option<HashMap<u64, Settings>>> = Mutex::new(None);

struct Settings {
    users: usize,
    before: Vec<(&'static str, String)>,
}

impl Adopted {
    /// Adopts an address in the calling thread's network namespace. One that this process has adopted already can be
    /// adopted again; it goes with the first of them.
    ///
    /// # Errors
    ///
    /// [`LockError::NoPermission`], [`LockError::StateFile`] if the settings for ARP cannot be written. Nothing is
    /// changed then.
    pub fn new(address: IpAddr) -> Result<Self, LockError> {
        let place = Place::here()?;
        let index = place.routes.device_index(LOOPBACK)?;
        let message = message(address, whole(address), index);
        if address.is_ipv4() {
            settle(&place)?;
        }
        let added = place.add(&message);
        if added.is_err() && address.is_ipv4() {
            unsettle(&place)?;
        }
        Ok(Self {
            address,
            message,
            added: added?,
            place: Some(place),
        })
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Removes the address.
    ///
    /// # Errors
    ///
    /// What the kernel says; the address is then still there.
    pub fn undo(mut self) -> Result<(), LockError> {
        self.end()
    }

    /// Keeps the address for good: nothing is undone here any more.
    pub fn detach(mut self) {
        self.place = None;
    }

    fn end(&mut self) -> Result<(), LockError> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        if self.added {
            place.remove(&self.message)?;
        }
        if self.address.is_ipv4() {
            unsettle(&place)?;
        }
        Ok(())
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // Nobody is there to tell.
        let _ = self.end();
    }
}

/// Removes an address from `lo` that a process adopted and did not live to give back, in the calling thread's network
/// namespace. The settings for ARP stay. False if it is not there.
///
/// # Errors
///
/// [`LockError::NoPermission`], or what else the kernel says.
pub fn disown(address: IpAddr) -> Result<bool, LockError> {
    let place = Place::here()?;
    let index = place.routes.device_index(LOOPBACK)?;
    place.remove(&message(address, whole(address), index))
}

fn settle(place: &Place) -> Result<(), LockError> {
    let mut all = SETTINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let key = place.namespace.inode();
    if let Some(settings) = all.get_mut(&key) {
        settings.users += 1;
        return Ok(());
    }
    let before = place.namespace.run(|| {
        let mut before = Vec::new();
        for (path, least) in ARP {
            let value = std::fs::read_to_string(path).map_err(LockError::file(path))?;
            if value.trim().parse().is_ok_and(|value: u32| value >= least) {
                continue;
            }
            if let Err(error) = std::fs::write(path, least.to_string()) {
                for (path, value) in before {
                    let _ = std::fs::write(path, value);
                }
                return Err(LockError::file(path)(error));
            }
            before.push((path, value));
        }
        Ok(before)
    })?;
    all.insert(key, Settings { users: 1, before });
    Ok(())
}

fn unsettle(place: &Place) -> Result<(), LockError> {
    let mut all = SETTINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let key = place.namespace.inode();
    let Some(settings) = all.get_mut(&key) else {
        return Ok(());
    };
    settings.users -= 1;
    if settings.users > 0 {
        return Ok(());
    }
    let before = all.remove(&key).map(|settings| settings.before);
    place.namespace.run(|| {
        for (path, value) in before.into_iter().flatten() {
            std::fs::write(path, value).map_err(LockError::file(path))?;
        }
        Ok(())
    })
}

/// An address that this host has taken over, with all who send to it on the link.
///
/// Dropping it removes it again, and an error of that is lost: [`undo`](Self::undo) reports it. Once the move is
/// certain, [`keep`](Self::keep) it.
#[must_use = "dropping it removes the address"]
pub struct Taken {
    address: IpAddr,
    device: String,
    message: AddressMessage,
    /// None once it is undone.
    place: Option<Place>,
}

impl Taken {
    /// Adds an address to a device of the calling thread's network namespace, with this prefix length, and announces
    /// it. Nobody is asked whether it is in use, because it is.
    ///
    /// # Errors
    ///
    /// [`LockError::NoDevice`], [`LockError::AddressInUse`] if the device has it already, [`LockError::NoPermission`],
    /// [`LockError::Announce`]. Nothing is changed then.
    pub fn new(address: IpAddr, prefix: u8, device: &str) -> Result<Self, LockError> {
        let place = Place::here()?;
        let index = place.routes.device_index(device)?;
        let message = message(address, prefix, index);
        if !place.add(&message)? {
            return Err(LockError::AddressInUse {
                address,
                device: device.to_owned(),
            });
        }
        let taken = Self {
            address,
            device: device.to_owned(),
            message,
            place: Some(place),
        };
        // An error drops it, and so removes the address.
        taken.announce()?;
        Ok(taken)
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Tells everybody on the link once more that the address is here: by gratuitous ARP, or by an unsolicited
    /// neighbour advertisement. On a device that is not Ethernet there is nobody to tell.
    ///
    /// # Errors
    ///
    /// [`LockError::Announce`], [`LockError::NoPermission`].
    pub fn announce(&self) -> Result<(), LockError> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let index = self.message.header.index;
        let link = place.routes.device(index)?;
        if link.header.link_layer_type != LinkLayerType::Ether {
            return Ok(());
        }
        let station = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                _ => None,
            });
        let Some(station) = station else {
            return Ok(());
        };
        place.namespace.run(|| {
            packet::announce(self.address, index, station).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => LockError::NoPermission {
                        call: "socket(SOCK_RAW)",
                    },
                    _ => LockError::Announce {
                        address: self.address,
                        device: self.device.clone(),
                        source,
                    },
                }
            })
        })
    }

    /// Removes the address: the other host has it still, or takes it back.
    ///
    /// # Errors
    ///
    /// What the kernel says; the address is then still there.
    pub fn undo(mut self) -> Result<(), LockError> {
        self.end()
    }

    /// Keeps the address for good: nothing is undone here any more.
    pub fn keep(mut self) {
        self.place = None;
    }

    fn end(&mut self) -> Result<(), LockError> {
        match self.place.take() {
            Some(place) => place.remove(&self.message).map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Nobody is there to tell.
        let _ = self.end();
    }
}

/// An address that this host has given away.
///
/// Dropping it adds the address again and announces it, because without a word to the contrary the connections are
/// still here; an error of that is lost, [`undo`](Self::undo) reports it. Once the move is certain,
/// [`detach`](Self::detach) it.
#[must_use = "dropping it takes the address back"]
pub struct Yielded {
    address: IpAddr,
    device: String,
    message: AddressMessage,
    place: Option<Place>,
}

impl Yielded {
    /// Removes an address from a device of the calling thread's network namespace. Other addresses and routes of the
    /// device stay (those that the kernel takes away with it are put back), but routes that prefer it as source go.
    /// Connections that use it are not touched: what they send does not leave.
    ///
    /// # Errors
    ///
    /// [`LockError::NoDevice`], [`LockError::NoAddress`] if the device does not have it, [`LockError::NoPermission`].
    pub fn new(address: IpAddr, device: &str) -> Result<Self, LockError> {
        let place = Place::here()?;
        let index = place.routes.device_index(device)?;
        let (message, rest) = Rest::without(&place.routes, index, address)?;
        let message = message.ok_or_else(|| LockError::NoAddress {
            address,
            device: device.to_owned(),
        })?;
        place.remove(&message)?;
        let yielded = Self {
            address,
            device: device.to_owned(),
            message,
            place: Some(place),
        };
        if let Some(place) = &yielded.place {
            rest.put_back(&place.routes, index)?;
        }
        Ok(yielded)
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Adds the address again, and announces it.
    ///
    /// # Errors
    ///
    /// As for [`Taken::new`].
    pub fn undo(mut self) -> Result<(), LockError> {
        self.end()
    }

    /// Leaves the address to the other host for good: nothing is undone here any more.
    pub fn detach(mut self) {
        self.place = None;
    }

    fn end(&mut self) -> Result<(), LockError> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        let mut message = self.message.clone();
        if self.address.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        place.add(&message)?;
        let taken = Taken {
            address: self.address,
            device: self.device.clone(),
            message,
            place: Some(place),
        };
        let announced = taken.announce();
        taken.keep();
        announced
    }
}

impl Drop for Yielded {
    fn drop(&mut self) {
        // Nobody is there to tell.
        let _ = self.end();
    }
}

impl fmt::Debug for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Adopted").field(&self.address).finish()
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Taken")
            .field(&self.address)
            .field(&self.device)
            .finish()
    }
}

impl fmt::Debug for Yielded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Yielded")
            .field(&self.address)
            .field(&self.device)
            .finish()
    }
}
