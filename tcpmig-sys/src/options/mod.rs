//! What becomes of every option of a socket when its connection moves.
//!
//! The tables [`SOCKET`], [`IP`], [`IPV6`] and [`TCP`] have each option that Linux 6.18 knows, with its [`Fate`]. The
//! functions of [`sockopt`] are checked against them when this crate is built, and [`check`] refuses a
//! connection by them.

mod ip;
mod ipv6;
mod socket;
mod tcp;

use std::os::fd::BorrowedFd;

pub use ip::IP;
pub use ipv6::IPV6;
pub use socket::SOCKET;
pub use tcp::TCP;

use crate::error::{Error, NotMigratable, Result};
use crate::sockets::diag;
use crate::{raw, sockopt};

/// The level of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// `SOL_SOCKET`.
    Socket,
    /// `IPPROTO_IP`.
    Ip,
    /// `IPPROTO_IPV6`.
    Ipv6,
    /// `IPPROTO_TCP`.
    Tcp,
}

impl Level {
    /// Its number in `getsockopt` and `setsockopt`.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Socket => libc::SOL_SOCKET,
            Self::Ip => libc::IPPROTO_IP,
            Self::Ipv6 => libc::IPPROTO_IPV6,
            Self::Tcp => libc::IPPROTO_TCP,
        }
    }
}

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The connection has it on the target as on the source. The target refuses it by its name if it cannot.
    Carried,
    /// A connection that uses it is not captured, and the error names it.
    Refused,
    /// It changes nothing of a connection that is open, or is not an option that a connection keeps.
    DoesNotMatter,
    /// It is lost: no call tells that it was set.
    NotSeen,
}

/// An option of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownOption {
    /// Its name, as in the kernel's headers.
    pub name: &'static str,
    /// Another name for the same number.
    pub alias: Option<&'static str>,
    /// Its level.
    pub level: Level,
    /// Its number on most architectures. Alpha, MIPS, PA-RISC and SPARC have others at [`Level::Socket`].
    pub number: i32,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, or how; empty if there is nothing to say.
    pub note: &'static str,
}

macro_rules! known_options {
    ($(#[$doc:meta])* $table:ident, $level:ident: $($number:literal $name:literal $(= $alias:literal)? $fate:ident $note:literal;)*) => {
        $(#[$doc])*
        #[doc = ""]
        #[doc = "| Number | Option | Fate | |"]
        #[doc = "|---|---|---|---|"]
        $(#[doc = concat!("| ", $number, " | `", $name, "`", $(" = `", $alias, "`",)? " | ", stringify!($fate), " | ", $note, " |")])*
        pub const $table: &[KnownOption] = &[$(KnownOption {
            name: $name,
            alias: known_options!(@alias $($alias)?),
            level: Level::$level,
            number: $number,
            fate: Fate::$fate,
            note: $note,
        },)*];
    };
    (@alias) => { None };
    (@alias $alias:literal) => { Some($alias) };
}
use known_options;

/// All tables.
const TABLES: [&[KnownOption]; 4] = [SOCKET, IP, IPV6, TCP];

/// Every option that is known.
pub fn all() -> impl Iterator<Item = &'static KnownOption> {
    TABLES.into_iter().flatten()
}

impl KnownOption {
    /// The option with this name.
    #[must_use]
    pub const fn named(name: &str) -> Option<&'static Self> {
        let mut table = 0;
        while table < TABLES.len() {
            let mut row = 0;
            while row < TABLES[table].len() {
                let option = &TABLES[table][row];
                if same(option.name, name)
                    || matches!(option.alias, Some(alias) if same(alias, name))
                {
                    return Some(option);
                }
                row += 1;
            }
            table += 1;
        }
        None
    }
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Fails the build if a function for an option disagrees with the tables.
pub(crate) const fn assert_known(name: &str, level: i32, number: i32) {
    let Some(option) = KnownOption::named(name) else {
        panic!("an option that is in no table");
    };
    assert!(option.level.number() == level, "its level");
    // The others number the options of sockets in their own way.
    let generic = cfg!(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "loongarch64",
    ));
    if generic || !matches!(option.level, Level::Socket) {
        assert!(option.number == number, "its number");
    }
}

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
    refuse(fd, |_| true)
}

/// As [`check`], of a connection that [`repair::check`](crate::repair::check) has found movable: without what that has seen.
///
/// # Errors
///
/// As [`check`].
pub fn check_further(fd: BorrowedFd<'_>) -> Result<()> {
    refuse(fd, |option| !SEEN_BY_CHECK.contains(&option.name))
}

/// What [`repair::check`](crate::repair::check) refuses.
const SEEN_BY_CHECK: [&str; 3] = ["TCP_AO_INFO", "TCP_REPAIR", "TCP_ULP"];

fn refuse(fd: BorrowedFd<'_>, looks_at: impl Fn(&KnownOption) -> bool) -> Result<()> {
    let is_v6 = sockopt::domain(fd)? == libc::AF_INET6;
    let refused = all().filter(|option| option.fate == Fate::Refused);
    for option in refused.filter(|option| is_v6 || option.level != Level::Ipv6) {
        if looks_at(option)
            && let Some(reason) = used(fd, option)?
        {
            return Err(reason.into());
        }
    }
    Ok(())
}

/// How the use of each option that is refused is found out.
fn used(fd: BorrowedFd<'_>, option: &KnownOption) -> Result<Option<NotMigratable>> {
    let reason = |used: bool, reason| Ok(used.then_some(reason));
    match option.name {
        "SO_ATTACH_BPF" => reason(has_bpf(fd)?, NotMigratable::Option(option.name)),
        "TCP_MD5SIG" => reason(diag::has_md5(fd)?, NotMigratable::Md5),
        "TCP_AO_INFO" => reason(diag::has_ao(fd)?, NotMigratable::Ao),
        "TCP_REPAIR" => reason(sockopt::repair(fd)?, NotMigratable::UnderRepair),
        "TCP_ULP" => reason(
            sockopt::upper_layer(fd)?.is_some(),
            NotMigratable::UpperLayer,
        ),
        // Seen by the ones before and the headers.
        "TCP_MD5SIG_EXT" | "TCP_AO_ADD_KEY" | "IPV6_2292PKTOPTIONS" => Ok(None),
        // What is read is empty unless it was set.
        _ => reason(has_content(fd, option)?, NotMigratable::Option(option.name)),
    }
}

fn has_bpf(fd: BorrowedFd<'_>) -> Result<bool> {
    match sockopt::filter(fd) {
        Ok(_) => Ok(false),
        // The kernel has no classic instructions to hand out.
        Err(error) if error.errno() == Some(libc::EACCES) => Ok(true),
        Err(error) => Err(error),
    }
}

fn has_content(fd: BorrowedFd<'_>, option: &KnownOption) -> Result<bool> {
    // A header of IPv6 has at most 2048 octets; the kernel cuts off what is too long.
    let mut octets = [0; 8];
    let (level, number) = (option.level.number(), option.number);
    match raw::get_octets(fd, level, number, "getsockopt(sticky header)", &mut octets) {
        Ok(len) => Ok(len > 0),
        // A kernel without the option.
        Err(Error::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
