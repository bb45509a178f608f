//! Lockers by name.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use crate::namespace::Namespace;
#[cfg(feature = "nftables")]
use crate::{Flavour, Iptables, Nftables};
use crate::{Link, LockError, Locker, NoLock};

/// A locker by the name that users choose it by, for command lines and configurations.
///
/// ```no_run
/// # fn main() -> Result<(), tcpmig_lock::LockError> {
/// let locker = "link:eth1".parse::<tcpmig_lock::Backend>()?.open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// `nftables`: [`Nftables`].
    #[cfg(feature = "nftables")]
    Nftables,
    /// `iptables`, `iptables-nft`, `iptables-legacy`: [`Iptables`].
    #[cfg(feature = "nftables")]
    Iptables(Flavour),
    /// `link:DEVICE`: [`Link::of`] the device.
    Link(String),
    /// `none`: [`NoLock`].
    None,
}

/// What the lockers are called, and what each is, in a few words.
const HELP: &[(&str, &str)] = &[
    #[cfg(feature = "nftables")]
    (
        "nftables",
        "the kernel's packet filter; the only one that can redirect",
    ),
    #[cfg(feature = "nftables")]
    ("iptables", "rules of the host's iptables and ip6tables"),
    #[cfg(feature = "nftables")]
    ("iptables-nft", "the same, of its newer implementation"),
    #[cfg(feature = "nftables")]
    ("iptables-legacy", "the same, of its older implementation"),
    (
        "link:DEVICE",
        "unplugs a network device: all that uses it falls silent",
    ),
    ("none", "nothing: you keep the packets away yourself"),
];

impl Backend {
    /// What the lockers are called, and what each is, in a few words.
    #[must_use]
    pub fn help() -> &'static [(&'static str, &'static str)] {
        HELP
    }

    /// A handle in the network namespace of the calling thread, which neither captures nor exempts.
    ///
    /// # Errors
    ///
    /// As for [`Nftables::new`], [`Iptables::with_flavour`], [`Link::of`].
    pub fn open(&self) -> Result<Box<dyn Locker>, LockError> {
        Ok(match self {
            #[cfg(feature = "nftables")]
            Self::Nftables => Box::new(Nftables::new()?),
            #[cfg(feature = "nftables")]
            Self::Iptables(flavour) => Box::new(Iptables::with_flavour(*flavour)?),
            Self::Link(device) => Box::new(Link::of(device)?),
            Self::None => Box::new(NoLock),
        })
    }

    /// Like [`open`](Self::open), but in another network namespace: that of this descriptor, for example an open `/proc/PID/ns/net`
    /// or `/run/netns/NAME`. The handle stays in it, whatever thread uses it.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); [`LockError::Namespace`] if the namespace cannot be entered, which needs `CAP_SYS_ADMIN` in
    /// its user namespace and in this process's.
    pub fn open_in(&self, namespace: BorrowedFd<'_>) -> Result<Box<dyn Locker>, LockError> {
        Namespace::of(namespace)?.run(|| self.open())
    }

    /// Like [`open`](Self::open), but for moving connections: it captures what arrives for locked flows, up to
    /// `buffer_bytes`, and lets packets with the mark pass, if it can. Its [`Features`](crate::Features) tell.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_capturing(
        &self,
        mark: u32,
        buffer_bytes: usize,
    ) -> Result<Box<dyn Locker>, LockError> {
        #[cfg(not(feature = "nftables"))]
        let _ = (mark, buffer_bytes);
        // A kernel without nfnetlink_log can still lock.
        match self {
            #[cfg(feature = "nftables")]
            Self::Nftables => {
                let open = || Ok::<_, LockError>(Nftables::new()?.exempt_mark(mark));
                match open()?.capturing(buffer_bytes) {
                    Err(LockError::NoNftables { .. }) => Ok(Box::new(open()?)),
                    other => Ok(Box::new(other?)),
                }
            }
            #[cfg(feature = "nftables")]
            Self::Iptables(flavour) => {
                let open =
                    || Ok::<_, LockError>(Iptables::with_flavour(*flavour)?.exempt_mark(mark));
                match open()?.capturing(buffer_bytes) {
                    Err(LockError::NoNftables { .. }) => Ok(Box::new(open()?)),
                    other => Ok(Box::new(other?)),
                }
            }
            Self::Link(_) | Self::None => self.open(),
        }
    }
}

impl FromStr for Backend {
    type Err = LockError;

    fn from_str(name: &str) -> Result<Self, LockError> {
        Ok(match name {
            #[cfg(feature = "nftables")]
            "nftables" => Self::Nftables,
            #[cfg(feature = "nftables")]
            "iptables" => Self::Iptables(Flavour::Default),
            #[cfg(feature = "nftables")]
            "iptables-nft" => Self::Iptables(Flavour::Nft),
            #[cfg(feature = "nftables")]
            "iptables-legacy" => Self::Iptables(Flavour::Legacy),
            "none" => Self::None,
            _ => match name.strip_prefix("link:") {
                Some(device) if !device.is_empty() => Self::Link(device.to_owned()),
                _ => return Err(LockError::NoLocker(name.to_owned())),
            },
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "nftables")]
            Self::Nftables => f.write_str("nftables"),
            #[cfg(feature = "nftables")]
            Self::Iptables(Flavour::Default) => f.write_str("iptables"),
            #[cfg(feature = "nftables")]
            Self::Iptables(Flavour::Nft) => f.write_str("iptables-nft"),
            #[cfg(feature = "nftables")]
            Self::Iptables(Flavour::Legacy) => f.write_str("iptables-legacy"),
            Self::Link(device) => write!(f, "link:{device}"),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_shown() {
        for (name, _) in Backend::help() {
            assert_eq!(name.parse::<Backend>().unwrap().to_string(), *name);
        }
        for name in ["", "link", "link:", "Nftables", "iptables-x"] {
            let error = name.parse::<Backend>().unwrap_err();
            assert!(matches!(&error, LockError::NoLocker(wrong) if wrong == name));
            assert!(error.to_string().contains("link:DEVICE"));
        }
    }
}
