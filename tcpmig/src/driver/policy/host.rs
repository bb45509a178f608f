//! What has to be known of this host to judge an image.

use std::net::IpAddr;
use std::sync::OnceLock;

use tcpmig_format::IpImage;
use tcpmig_lock::route::{AddressKind, Routes};
use tcpmig_sys::netns;
use tcpmig_sys::settings::{self, Buffers};

use super::Denied;
use super::recent::Recent;

/// What this host is and allows, at this moment.
pub(in crate::driver) trait Facts {
    /// What an address is here, for a socket with the scope and the device of the image.
    fn kind(&self, address: IpAddr, ip: &IpImage) -> Result<AddressKind, Denied>;

    /// How large buffers a process without privileges can ask for.
    fn buffers(&self) -> Result<Buffers, Denied>;

    /// How large buffers become by themselves.
    fn tuned(&self) -> Result<Buffers, Denied>;

    /// The congestion controls that every process may choose.
    fn congestion(&self) -> Result<Vec<String>, Denied>;

    /// Those that can be chosen without loading a module.
    fn loaded_congestion(&self) -> Result<Vec<String>, Denied>;

    /// The `SO_BUSY_POLL` of a new socket, in microseconds.
    fn busy_read(&self) -> Result<u32, Denied>;
}

/// The host of the calling thread. Addresses and limits can change, so what is asked for each image is asked again after a
/// second, and the rest each time.
#[derive(Default)]
pub(in crate::driver) struct ThisHost {
    /// Made at the first question, in the network namespace of the task that asks it.
    routes: OnceLock<Routes>,
    kinds: Recent<(IpAddr, Option<u32>), AddressKind>,
    congestion: Recent<(), Vec<String>>,
}

#[expect(clippy::needless_pass_by_value, reason = "it is for `map_err`")]
fn unknown(error: impl ToString) -> Denied {
    Denied::Unknown(error.to_string())
}

impl ThisHost {
    /// Finds out now what the next image will be asked about, whatever it is.
    pub(in crate::driver) fn freshen(&self) {
        let ask = || settings::allowed_congestion_controls();
        self.congestion.freshen((), ask);
    }

    fn routes(&self) -> Result<&Routes, Denied> {
        match self.routes.get() {
            Some(routes) => Ok(routes),
            None => {
                let routes = Routes::new().map_err(unknown)?;
                Ok(self.routes.get_or_init(|| routes))
            }
        }
    }
}

impl Facts for ThisHost {
    fn kind(&self, address: IpAddr, ip: &IpImage) -> Result<AddressKind, Denied> {
        let routes = self.routes()?;
        let kind = |device| {
            let ask = || routes.kind(address, device).map_err(unknown);
            self.kinds.get((address, device), ask)
        };
        let by = |device: &Option<String>| {
            // A device that is not here has no addresses; restoring says which one is missing.
            let index = device
                .as_deref()
                .and_then(|name| netns::device_index(name).ok());
            index.map(|index| kind(Some(index)))
        };
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if is_link_local {
            return by(&ip.scope).unwrap_or(Ok(AddressKind::Unreachable));
        }
        match kind(None)? {
            // The addresses of a VRF are in a routing table of its own.
            AddressKind::Unicast | AddressKind::Unreachable => {
                by(&ip.bound_device).unwrap_or(Ok(AddressKind::Unicast))
            }
            kind => Ok(kind),
        }
    }

    fn buffers(&self) -> Result<Buffers, Denied> {
        settings::unprivileged_buffers().map_err(unknown)
    }

    fn tuned(&self) -> Result<Buffers, Denied> {
        settings::tuned_buffers().map_err(unknown)
    }

    fn congestion(&self) -> Result<Vec<String>, Denied> {
        let ask = || settings::allowed_congestion_controls().map_err(unknown);
        self.congestion.get((), ask)
    }

    fn loaded_congestion(&self) -> Result<Vec<String>, Denied> {
        settings::available_congestion_controls().map_err(unknown)
    }

    fn busy_read(&self) -> Result<u32, Denied> {
        settings::busy_read().map_err(unknown)
    }
}
