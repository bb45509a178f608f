//! What the rows of the image's table mean for a socket (`tcpmig-format/src/fields.rs`).

use std::os::fd::BorrowedFd;

use tcpmig_sys::options::{Fate, Kind, KnownOption, Told};
use tcpmig_sys::{Error, sockopt};

/// Which sockets have an option.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// All.
    Any,
    /// Those with IPv4 packets.
    Ipv4,
    /// IPv6 sockets, those with IPv4 packets among them.
    Ipv6,
}

/// When a restore sets an option.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// On a new socket: it decides binding or routing.
    BeforeBind,
    /// On a connected socket that is still silent.
    Connected,
    /// When the connection lives: it would get in the way of its queues.
    Alive,
}

/// What a new socket has.
#[derive(Clone, Copy)]
pub(super) enum Default<T> {
    /// 0 or off, on any host.
    Off,
    /// This, on any host.
    Starts(T),
    /// What the host chooses.
    Host,
    /// Kernels without the option behave like this, so that a connection which never changed it can go there.
    Fixed(T),
}

/// The type that an image has for an option.
pub(super) trait Carried: Copy + PartialEq + std::default::Default + ToString {
    /// What the kernel has for it.
    type Kernel: sockopt::Value;
    const KIND: Kind = <Self::Kernel as sockopt::Value>::KIND;
    fn of_kernel(value: Self::Kernel) -> Option<Self>;
    fn for_kernel(self) -> Self::Kernel;
    /// From a number of 32 bits that the kernel has for it.
    fn of_number(number: u32) -> Option<Self>;
    /// As a manual page would have it.
    fn show(self) -> String {
        self.to_string()
    }
}

macro_rules! carried {
    ($($ty:ident: $of_number:expr;)*) => {$(
        impl Carried for $ty {
            type Kernel = Self;
            fn of_kernel(value: Self) -> Option<Self> {
                Some(value)
            }
            fn for_kernel(self) -> Self {
                self
            }
            fn of_number(number: u32) -> Option<Self> {
                Some($of_number(number))
            }
        }
    )*};
}
carried! {
    i32: u32::cast_signed;
    u32: std::convert::identity;
    u64: u64::from;
}

impl Carried for bool {
    type Kernel = Self;
    fn of_kernel(value: Self) -> Option<Self> {
        Some(value)
    }
    fn for_kernel(self) -> Self {
        self
    }
    fn of_number(number: u32) -> Option<Self> {
        Some(number != 0)
    }
    fn show(self) -> String {
        u8::from(self).to_string()
    }
}

impl Carried for u8 {
    type Kernel = i32;
    fn of_kernel(value: i32) -> Option<Self> {
        Self::try_from(value).ok()
    }
    fn for_kernel(self) -> i32 {
        self.into()
    }
    fn of_number(number: u32) -> Option<Self> {
        Self::try_from(number).ok()
    }
}

/// The row of an option that an image carries. In a constant: the build fails if the tables do not carry it, or
/// have another kind of value.
pub(super) const fn carried(name: &str, kind: Kind) -> &'static KnownOption {
    let option = KnownOption::of(name);
    assert!(matches!(option.fate, Fate::Carried), "it is not carried");
    assert!(option.takes(kind), "its value is of another kind");
    option
}

/// An option of newer kernels: `None` where it does not exist.
pub(super) fn known<T>(value: Result<T, Error>) -> Result<Option<T>, Error> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an image carries of an option.
pub(super) fn read<T: Carried>(
    fd: BorrowedFd<'_>,
    told: &Told,
    option: &'static KnownOption,
    default: Default<T>,
) -> Result<Option<T>, Error> {
    let value = match told.value(option) {
        Some(value) => T::of_number(value),
        None => known(sockopt::get(fd, option))?.and_then(T::of_kernel),
    };
    Ok(match default {
        Default::Off => value.filter(|value| *value != T::default()),
        _ => value,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tcpmig_format::{ip_fields, socket_fields};
    use tcpmig_sys::options;

    use super::*;

    /// Carried with code of their own: several make one field, their value is more than a number, or an order among
    /// them matters. Those of repair mode are the connection's own numbers.
    const OWN: [&str; 42] = [
        "SO_REUSEADDR",
        "SO_ERROR",
        "SO_SNDBUF",
        "SO_RCVBUF",
        "SO_KEEPALIVE",
        "SO_PRIORITY",
        "SO_LINGER",
        "SO_RCVTIMEO",
        "SO_SNDTIMEO",
        "SO_BINDTODEVICE",
        "SO_ATTACH_FILTER",
        "SO_PEERNAME",
        "SO_TIMESTAMP",
        "SO_SNDBUFFORCE",
        "SO_RCVBUFFORCE",
        "SO_TIMESTAMPNS",
        "SO_MARK",
        "SO_TIMESTAMPING",
        "SO_DOMAIN",
        "SO_PEEK_OFF",
        "SO_LOCK_FILTER",
        "SO_BINDTOIFINDEX",
        "SO_TIMESTAMP_NEW",
        "SO_TIMESTAMPNS_NEW",
        "SO_TIMESTAMPING_NEW",
        "SO_RCVTIMEO_NEW",
        "SO_SNDTIMEO_NEW",
        "SO_BUF_LOCK",
        "IP_OPTIONS",
        "IP_FREEBIND",
        "IP_TRANSPARENT",
        "IPV6_ADDRFORM",
        "IPV6_FLOWLABEL_MGR",
        "IPV6_FLOWINFO_SEND",
        "IPV6_TRANSPARENT",
        "IPV6_FREEBIND",
        "TCP_MAXSEG",
        "TCP_KEEPIDLE",
        "TCP_KEEPINTVL",
        "TCP_KEEPCNT",
        "TCP_CONGESTION",
        "TCP_QUEUE_SEQ",
    ];
    const OF_REPAIR: [&str; 3] = ["TCP_REPAIR_OPTIONS", "TCP_TIMESTAMP", "TCP_REPAIR_WINDOW"];

    fn of_rows() -> Vec<&'static str> {
        macro_rules! option {
            ({ own }) => {
                None
            };
            ({ $option:literal $($rest:tt)* }) => {
                Some($option)
            };
        }
        macro_rules! options {
            ($($(#[$doc:meta])* $name:ident $(: $plain:ident)? $(= $kind:ident $of:tt)? $unit:literal $restored:tt;)*) => {
                [$(option!($restored)),*]
            };
        }
        let socket = socket_fields!(options).into_iter();
        let rows: Vec<_> = socket.chain(ip_fields!(options)).flatten().collect();
        assert!(rows.len() > 40, "{rows:?}");
        rows
    }

    /// So that an option which the tables begin to carry is not forgotten here.
    #[test]
    fn every_option_that_is_carried_has_a_row_or_code_of_its_own() {
        let mut known = BTreeSet::new();
        for name in of_rows().into_iter().chain(OWN).chain(OF_REPAIR) {
            assert!(known.insert(name), "{name} is there twice");
        }
        let carried = options::all().filter(|option| option.fate == Fate::Carried);
        let carried: BTreeSet<_> = carried.map(|option| option.name).collect();
        assert_eq!(carried, known);
    }
}
