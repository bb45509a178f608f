//! What becomes of every option of a socket when its connection moves.
//!
//! The tables [`SOCKET`], [`IP`], [`IPV6`] and [`TCP`] have each option that Linux 6.18 knows, with its [`Fate`]. They are
//! the tables from which the functions of [`sockopt`] are made, and [`check`] refuses a connection by them.

use std::os::fd::BorrowedFd;

pub use crate::sockets::told::Told;
pub use crate::sockopt::table::{Fate, IP, IPV6, Kind, KnownOption, Level, SOCKET, TCP, all};

use crate::ends::Ends;
use crate::error::{Error, NotMigratable, Result};
use crate::sockets::diag::{self, Asked};
use crate::sockets::told;
use crate::sockopt::FilterInstruction;
use crate::{raw, sockopt};

/// Refuses a connection that uses an option which the tables call [`Fate::Refused`], without touching it.
///
/// Only `sock_diag` tells of MD5 keys, in about 9 µs, so this is apart from [`repair::check`](crate::repair::check), which
/// is run again when a connection is frozen. The thread has to be in the network namespace of the socket. A kernel
/// without `CONFIG_INET_TCP_DIAG` tells nothing of the keys, and nothing is refused for them then.
///
/// # Errors
///
/// [`Error::NotMigratable`] with the reason; [`Error::Call`].
pub fn check(fd: BorrowedFd<'_>) -> Result<()> {
    look(fd, |_| true).map(drop)
}

/// Like [`check`], of a connection that [`repair::check`](crate::repair::check) has found movable: without what that has seen.
///
/// # Errors
///
/// Those of [`check`].
pub fn check_further(fd: BorrowedFd<'_>) -> Result<Seen> {
    look(fd, |option| !SEEN_BY_CHECK.contains(&option.name))
}

/// What [`check_further`] has seen of a connection on its way, so that no call has to be made for it again.
#[derive(Debug)]
#[non_exhaustive]
pub struct Seen {
    /// As [`Ends::of`].
    pub ends: Ends,
    /// As [`sockopt::bound_device`].
    pub bound_device: Option<String>,
    /// The number of its network namespace, which no other one ever gets: `getsockopt(fd, SO_NETNS_COOKIE)`. `None` before
    /// Linux 5.14.
    pub namespace: Option<u64>,
    /// As [`sockopt::filter`].
    pub filter: Option<Vec<FilterInstruction>>,
    /// What the kernel told besides.
    pub told: Told,
}

/// What [`repair::check`](crate::repair::check) refuses.
const SEEN_BY_CHECK: [&str; 3] = ["TCP_AO_INFO", "TCP_REPAIR", "TCP_ULP"];

fn look(fd: BorrowedFd<'_>, looks_at: impl Fn(&KnownOption) -> bool) -> Result<Seen> {
    let filter = match sockopt::filter(fd) {
        // The kernel has no classic instructions to hand out.
        Err(error) if error.errno() == Some(libc::EACCES) => {
            return Err(NotMigratable::Option("SO_ATTACH_BPF").into());
        }
        filter => filter?,
    };
    let asked = diag::ask(fd, told::ALL)?;
    let is_v6 = asked.ends.local.is_ipv6();
    let refused = all().filter(|option| option.fate == Fate::Refused);
    for option in refused.filter(|option| is_v6 || option.level != Level::Ipv6) {
        if looks_at(option)
            && let Some(reason) = used(fd, option, &asked)?
        {
            return Err(reason.into());
        }
    }
    Ok(Seen {
        told: Told::in_answer(&asked),
        ends: asked.ends,
        bound_device: asked.bound_device,
        namespace: asked.namespace,
        filter,
    })
}

/// How the use of each option that is refused is found out.
fn used(fd: BorrowedFd<'_>, option: &KnownOption, asked: &Asked) -> Result<Option<NotMigratable>> {
    let reason = |used: bool, reason| Ok(used.then_some(reason));
    match option.name {
        "TCP_MD5SIG" => reason(asked.has_md5(), NotMigratable::Md5),
        "TCP_AO_INFO" => reason(diag::has_ao(fd)?, NotMigratable::Ao),
        "TCP_REPAIR" => reason(sockopt::repair(fd)?, NotMigratable::InRepairMode),
        "TCP_ULP" => reason(
            sockopt::upper_layer(fd)?.is_some(),
            NotMigratable::UpperLayer,
        ),
        // Seen with the filter, by the ones before, and by the headers.
        "SO_ATTACH_BPF" | "TCP_MD5SIG_EXT" | "TCP_AO_ADD_KEY" | "IPV6_2292PKTOPTIONS" => Ok(None),
        // What is read is empty unless it was set.
        _ => reason(has_content(fd, option)?, NotMigratable::Option(option.name)),
    }
}

fn has_content(fd: BorrowedFd<'_>, option: &KnownOption) -> Result<bool> {
    // A header of IPv6 has at most 2048 bytes; the kernel cuts off what is too long.
    let mut bytes = [0; 8];
    let (level, number) = (option.level.number(), option.number);
    match raw::get_bytes(fd, level, number, "getsockopt(sticky header)", &mut bytes) {
        Ok(len) => Ok(len > 0),
        // A kernel without the option.
        Err(Error::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
