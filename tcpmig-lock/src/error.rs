//! Why a lock, a redirect or a look-up failed.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use tcpmig_format::FourTuple;

/// Why a lock, a redirect or a look-up failed.
///
/// A call that returns one of these has changed nothing, unless its documentation says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The process, or the thread that calls, may not change this network namespace.
    #[error(
        "{call}: not permitted (needs CAP_NET_ADMIN in the user namespace that owns the network namespace)"
    )]
    NoPermission {
        /// The call that was refused.
        call: &'static str,
    },
    /// The kernel lacks `nf_tables` or a part of it that is needed.
    #[error("{call}: {source} (the kernel lacks a part of nf_tables)")]
    NoNftables {
        /// The call that said so.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// Somebody holds a lock of this flow: another process, or this one.
    #[error("{0} is already locked")]
    AlreadyLocked(FourTuple),
    /// The flow appears twice in one call.
    #[error("{0} is named twice")]
    Duplicate(FourTuple),
    /// The lock or redirect of this flow is no longer there: its lease ended, or somebody ended it. Its packets may
    /// have passed since.
    #[error("{0} is not held any more: its lease ended, or somebody else ended it")]
    NotHeld(FourTuple),
    /// A lease of no time at all.
    #[error("a lease of zero")]
    LeaseZero,
    /// This host has no route to the address.
    #[error("no route to {0}")]
    NoRoute(IpAddr),
    /// The next host on the way to the target is a router, which would send the packets back here.
    #[error("{target} is not on link: the route to it leads through {gateway}")]
    NotOnLink {
        /// The target of the redirect.
        target: IpAddr,
        /// The router in between.
        gateway: IpAddr,
    },
    /// The target of a redirect is this host.
    #[error("{0} is an address of this host")]
    TargetIsLocal(IpAddr),
    /// The peer of a flow that was to be redirected is this host: its packets come from nowhere else.
    #[error("{0} is an address of this host: what it sends to itself cannot be sent on")]
    PeerIsLocal(IpAddr),
    /// There is no network device of this name (or with this index).
    #[error("no network device {0}")]
    NoDevice(String),
    /// The packets of a flow can only be sent to a next hop of their own family.
    #[error("{flow} cannot be redirected to {hop}, which is of the other family")]
    HopFamily {
        /// The flow.
        flow: FourTuple,
        /// The address of the next hop.
        hop: IpAddr,
    },
    /// So many flows of this family are redirected here that no other one can be.
    #[error(
        "{limit} flows of its family are redirected here, which is the limit (`tcpmig locks` lists them): move others when \
         some of these have ended, or have a load balancer or router send their packets elsewhere"
    )]
    TooMany {
        /// How many.
        limit: u32,
    },
    /// This locker has no such operation.
    #[error("the {locker} locker cannot {operation}")]
    Unsupported {
        /// [`Locker::name`](crate::Locker::name) of the locker.
        locker: &'static str,
        /// What it was asked for.
        operation: &'static str,
    },
    /// Not the name of a table: empty, longer than 200 bytes, or with other characters than ASCII letters, digits,
    /// `_` and `-`.
    #[error("{0:?} is not the name of a table")]
    TableName(String),
    /// Another process has the table of this name for itself.
    #[error("the table {0} is owned by another process")]
    TableOwned(String),
    /// There is a table of this name that another program laid out.
    #[error("{call}: {source} (the table {table} exists and is laid out otherwise)")]
    ForeignTable {
        /// The name of the table.
        table: String,
        /// The call that found out.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A program that this locker runs is not installed.
    #[error("no program {program} in {searched} (Debian, Ubuntu: apt-get install {package})")]
    NoProgram {
        /// Its name.
        program: String,
        /// The directories where it was looked for, with colons in between.
        searched: String,
        /// The package of Debian that has it.
        package: &'static str,
    },
    /// A program that this locker runs did not do what it was asked for.
    #[error("{program}: {message}")]
    Program {
        /// The program and its arguments.
        program: String,
        /// What it said, or how it ended.
        message: String,
    },
    /// The device cannot be unplugged in the way that was asked for.
    #[error("{device} cannot be unplugged: {reason}")]
    CannotUnplug {
        /// The name of the device.
        device: String,
        /// Why.
        reason: &'static str,
    },
    /// The way to an address that has to stay reachable leads through the device that would be unplugged.
    #[error("{address} is reached through {device}, which this lock would unplug")]
    CutsOff {
        /// The address.
        address: IpAddr,
        /// The device.
        device: String,
    },
    /// The device has the address that it was to get.
    #[error("{device} has {address} already")]
    AddressInUse {
        /// The address.
        address: IpAddr,
        /// The device.
        device: String,
    },
    /// The device does not have the address that it was to lose.
    #[error("{device} does not have {address}")]
    NoAddress {
        /// The address.
        address: IpAddr,
        /// The device.
        device: String,
    },
    /// An address could not be announced.
    #[error("announcing {address} on {device}: {source}")]
    Announce {
        /// The address.
        address: IpAddr,
        /// The device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file in which this locker keeps what others must know, see the crate documentation.
    #[error("{}: {source}", path.display())]
    StateFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The network namespace of the locker cannot be entered by this thread.
    #[error("setns(CLONE_NEWNET): {source}")]
    Namespace {
        /// What the kernel said; EPERM without `CAP_SYS_ADMIN`.
        source: io::Error,
    },
    /// No locker has this name.
    #[error(
        "no locker is called {0:?}; there are nftables, iptables, iptables-nft, iptables-legacy, link:DEVICE and none"
    )]
    NoLocker(String),
    /// Anything else that the kernel said.
    #[error("{call}: {source}")]
    Netlink {
        /// The call that failed.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The error of a locker outside this crate.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl LockError {
    /// For the error of a file.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::StateFile {
            path: path.into(),
            source,
        }
    }

    /// For the error of a system call that has no cause of its own above.
    pub(crate) fn call(call: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NoPermission { call },
            _ => Self::Netlink { call, source },
        }
    }

    /// For a netfilter socket that could not be opened.
    pub(crate) fn no_netfilter(source: io::Error) -> Self {
        const CALL: &str = "socket(NETLINK_NETFILTER)";
        match source.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                Self::NoNftables { call: CALL, source }
            }
            _ => Self::call(CALL)(source),
        }
    }
}
