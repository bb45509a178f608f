//! Every option of a socket, one row each: level, number, name, the version of Linux that first had it, what becomes
//! of it when its connection moves and why, and, for those whose value is a number, the functions that read and set it.
//!
//! ```text
//! 51 "IP_LOCAL_PORT_RANGE", since "6.3" Carried "why, or how" {
//!     /// What it does.
//!     local_port_range, set_local_port_range: u32 = uapi::IP_LOCAL_PORT_RANGE
//! };
//! ```

pub(crate) mod ip;
pub(crate) mod ipv6;
pub(crate) mod socket;
pub(crate) mod tcp;

pub use ip::IP;
pub use ipv6::IPV6;
pub use socket::SOCKET;
pub use tcp::TCP;

use std::os::fd::BorrowedFd;

pub use super::value::Kind;
use super::value::Value;
use crate::error::Result;
use crate::raw;

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
#[non_exhaustive]
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
    /// The version of Linux that first had it, if that is newer than 5.14.
    pub since: Option<&'static str>,
    /// What [`sockopt::get`](crate::sockopt::get) and [`sockopt::set`](crate::sockopt::set) take for it; `None` if its value
    /// is more than a number, or if only `getsockopt` itself reads it.
    pub value: Option<Kind>,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, or how; empty if there is nothing to say.
    pub note: &'static str,
    /// Its number on this architecture.
    here: i32,
    /// The calls, as errors name them.
    read: &'static str,
    write: &'static str,
}

macro_rules! known_options {
    ($(#[$doc:meta])* $table:ident, $level:ident: $(
        $number:literal $name:literal $(= $alias:literal)? $(, since $since:literal)? $fate:ident $note:literal
        $({ $(#[$says:meta])* $get:ident, $set:ident: $ty:ty = $constant:expr })?;
    )*) => {
        $(#[$doc])*
        #[doc = ""]
        #[doc = "| Number | Option | Fate | |"]
        #[doc = "|---|---|---|---|"]
        $(#[doc = concat!(
            "| ", $number, " | `", $name, "`", $(" = `", $alias, "`",)? $(", Linux ", $since,)? " | ", stringify!($fate), " | ", $note, " |"
        )])*
        pub const $table: &[$crate::sockopt::table::KnownOption] = &[$($crate::sockopt::table::KnownOption {
            name: $name,
            alias: known_options!(@option $($alias)?),
            level: $crate::sockopt::table::Level::$level,
            number: $number,
            since: known_options!(@option $($since)?),
            value: known_options!(@option $(<$ty as $crate::sockopt::Value>::KIND)?),
            fate: $crate::sockopt::table::Fate::$fate,
            note: $note,
            here: known_options!(@number $number $(, $constant)?),
            read: concat!("getsockopt(", $name, ")"),
            write: concat!("setsockopt(", $name, ")"),
        },)*];

        $($(const _: () = $crate::sockopt::table::assert_number($name, $constant);)?)*

        /// The functions of the rows that have one.
        pub(crate) mod calls {
            use std::os::fd::BorrowedFd;

            #[allow(unused_imports, reason = "the documentation names them")]
            use crate::{error::{Error, Result}, sockopt::*};

            $($(
                #[doc = concat!("`getsockopt(fd, ", $name, ")`")]
                #[doc = ""]
                $(#[$says])*
                #[doc = ""]
                #[doc = "# Errors"]
                #[doc = ""]
                #[doc = "[`Error`] of the call."]
                #[doc(alias = $name)]
                pub fn $get(fd: BorrowedFd<'_>) -> Result<$ty> {
                    const OPTION: &$crate::sockopt::table::KnownOption = $crate::sockopt::table::KnownOption::of($name);
                    $crate::sockopt::get(fd, OPTION)
                }

                #[doc = concat!("`setsockopt(fd, ", $name, ")`")]
                #[doc = ""]
                $(#[$says])*
                #[doc = ""]
                #[doc = "# Errors"]
                #[doc = ""]
                #[doc = "[`Error`] of the call; the option is then as it was."]
                #[doc(alias = $name)]
                pub fn $set(fd: BorrowedFd<'_>, value: $ty) -> Result<()> {
                    const OPTION: &$crate::sockopt::table::KnownOption = $crate::sockopt::table::KnownOption::of($name);
                    $crate::sockopt::set(fd, OPTION, value)
                }
            )?)*
        }
    };
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
    (@number $number:literal) => { $number };
    (@number $number:literal, $constant:expr) => { $constant };
}
use known_options;

/// All tables.
const TABLES: [&[KnownOption]; 4] = [SOCKET, IP, IPV6, TCP];

/// Every option that is known.
pub fn all() -> impl Iterator<Item = &'static KnownOption> {
    TABLES.into_iter().flatten()
}

impl KnownOption {
    /// The option with this name, in constants.
    ///
    /// # Panics
    ///
    /// If no table has it: in a constant, the build fails.
    #[must_use]
    pub const fn of(name: &str) -> &'static Self {
        let Some(option) = Self::named(name) else {
            panic!("an option that is in no table");
        };
        option
    }

    /// Whether its value is of this kind.
    #[must_use]
    pub const fn takes(&self, kind: Kind) -> bool {
        matches!(self.value, Some(own) if own as u8 == kind as u8)
    }

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

/// Fails the build if the number of a row is not that of the constant beside it.
const fn assert_number(name: &str, constant: i32) {
    // The others number the options of sockets in their own way.
    let generic = cfg!(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "loongarch64",
    ));
    let option = KnownOption::of(name);
    if generic || !matches!(option.level, Level::Socket) {
        assert!(option.number == constant, "its number");
    }
}

/// Reads an option by its row. `T` is as its [`Kind`] says: `bool`, `i32`, `u32` or `u64`.
///
/// # Errors
///
/// [`Error`](crate::Error) of the call, which has the option's name.
pub fn get<T: Value>(fd: BorrowedFd<'_>, option: &'static KnownOption) -> Result<T> {
    let raw = raw::get(fd, option.level.number(), option.here, option.read)?;
    Ok(T::cook(raw))
}

/// Sets an option by its row, as [`get`] reads it.
///
/// # Errors
///
/// [`Error`](crate::Error) of the call, which has the option's name; the option is then as it was.
pub fn set<T: Value>(fd: BorrowedFd<'_>, option: &'static KnownOption, value: T) -> Result<()> {
    raw::set(
        fd,
        option.level.number(),
        option.here,
        option.write,
        value.raw(),
    )
}

#[cfg(test)]
mod tests;
