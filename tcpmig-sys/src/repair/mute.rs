//! Sockets that take nothing in and send nothing, whatever the packet filters of the host do.
//!
//! Repair mode stops nothing in the kernel: what arrives is acknowledged, and timers transmit. A lock of its packets
//! keeps them from a connection, but a lock can be flushed, its lease can end, and its holder can stand still meanwhile. What is
//! acknowledged then is lost, because nobody reads it. So a connection that is frozen, or rebuilt and not
//! activated, is mute by itself, with two policies of IPsec that belong to this one socket and block
//! (`IP_XFRM_POLICY`, `IPV6_XFRM_POLICY`; `xfrm_user_policy` in `net/xfrm/xfrm_state.c`):
//!
//! - inwards `tcp_v4_rcv` and `tcp_v6_rcv` drop a segment before TCP looks at it, without an answer;
//! - outwards the route look-up of the socket fails, so that acknowledgements, retransmissions (RTO, TLP), probes of
//!   a closed window and of keepalive, FIN and RST are not sent. The kernel's state advances as if the network had
//!   lost them, no more.
//!
//! They need `CAP_NET_ADMIN` in the user namespace of the network namespace, as repair mode does, and
//! `CONFIG_XFRM_USER`, which a modular kernel loads when it is asked for. Both together cost about 2 µs.
//! Policies that the application had set itself are lost: no call reads them back.
//!
//! Without XFRM a classic filter of the socket drops what arrives, and **nothing but the lock keeps in what timers
//! send**: retransmissions, probes of a closed window, delayed acknowledgements ([`Means::Filter`]).
//!
//! A mute connection must not end by its own timers either: keepalive is off, `TCP_USER_TIMEOUT` out of
//! reach, SYNs are counted to the largest number. The limits that no option moves are left: a connection whose peer
//! has closed its window ends after `tcp_retries2` probes without an answer (some 13 minutes), or, with
//! bytes in flight, after four (`tcp_rtx_probe0_timed_out`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use socket2::{Domain, Protocol, Socket, Type};

use super::waiting::has_error;
use crate::ends::{Ends, is_mapped};
use crate::error::{Error, NotMigratable, Result};
use crate::raw;
use crate::sockopt::{self, FilterInstruction};
use crate::uapi::{self, XfrmUserPolicy};

/// How a socket is made mute on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Means {
    /// By policies: nothing comes in, nothing goes out.
    Policies,
    /// By a filter, for want of XFRM: nothing comes in. What timers send is stopped by the lock only.
    Filter,
}

/// How sockets are made mute on this kernel. The first call tries it, on a socket made for it, and loads the module.
///
/// # Errors
///
/// [`Error::NoPermission`] without `CAP_NET_ADMIN`, [`Error::Call`].
pub fn means() -> Result<Means> {
    // It is the kernel's, so it is the same for all threads, whatever namespace they are in.
    static MEANS: OnceLock<Means> = OnceLock::new();
    if let Some(means) = MEANS.get() {
        return Ok(*means);
    }
    let means = find_means()?;
    Ok(*MEANS.get_or_init(|| means))
}

fn find_means() -> Result<Means> {
    let socket = |domain, kind, protocol| {
        Socket::new(domain, kind, Some(protocol)).map_err(|e| Error::new("socket", e))
    };
    let scratch = socket(Domain::IPV4, Type::STREAM, Protocol::TCP)?;
    let wire = Wire::V4;
    let tried = wire.block(scratch.as_fd(), uapi::XFRM_POLICY_IN);
    let again = match tried {
        // Without a key manager nobody understands a policy. The module of the kernel's own is loaded by whoever asks.
        Err(Error::Call { .. }) => {
            let netlink = Domain::from(libc::AF_NETLINK);
            let kind = Protocol::from(libc::NETLINK_XFRM);
            let _ = Socket::new(netlink, Type::RAW, Some(kind));
            wire.block(scratch.as_fd(), uapi::XFRM_POLICY_IN)
        }
        other => other,
    };
    match again {
        Ok(()) => Ok(Means::Policies),
        Err(error @ Error::NoPermission { .. }) => Err(error),
        Err(_) => Ok(Means::Filter),
    }
}

#[cfg(feature = "lab")]
thread_local! {
    static WITHOUT_POLICIES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Makes the calling thread do without policies, as on a kernel without XFRM: for tests.
#[cfg(feature = "lab")]
pub fn without_policies(without: bool) {
    WITHOUT_POLICIES.set(without);
}

fn means_here() -> Result<Means> {
    #[cfg(feature = "lab")]
    if WITHOUT_POLICIES.get() {
        return Ok(Means::Filter);
    }
    means()
}

/// Takes back what makes a socket mute, for one whose holder has died and left it so: its packets pass again. Its
/// keepalive and `TCP_USER_TIMEOUT` stay as they are.
///
/// # Errors
///
/// [`Error::NoPermission`] without `CAP_NET_ADMIN`, [`Error::Call`].
pub fn lift(fd: BorrowedFd<'_>) -> Result<()> {
    match means_here()? {
        // Which packets of a socket of IPv6 they are about does not matter, and one in CLOSE does not tell.
        Means::Policies => match sockopt::domain(fd)? {
            libc::AF_INET6 => Wire::V6.lift(fd),
            _ => Wire::V4.lift(fd),
        },
        Means::Filter => sockopt::detach_filter(fd),
    }
}

/// Refuses a socket that cannot be made mute, without touching it.
pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<()> {
    match means_here() {
        Ok(Means::Filter) if sockopt::lock_filter(fd)? => Err(NotMigratable::FilterLocked.into()),
        // Without the capability there are other reasons to fail.
        _ => Ok(()),
    }
}

/// Which options and which packets a socket's policies are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    V4,
    V6,
    /// A socket of IPv6 with packets of IPv4: a policy for others never applies to them (`xfrm_sk_policy_lookup`).
    Mapped,
}

impl Wire {
    fn of_socket(fd: BorrowedFd<'_>) -> Result<Self> {
        if sockopt::domain(fd)? != libc::AF_INET6 {
            return Ok(Self::V4);
        }
        let Ends { remote, .. } = Ends::of(fd)?;
        Ok(Self::of_v6(&remote))
    }

    fn of_v6(remote: &std::net::SocketAddr) -> Self {
        if is_mapped(*remote) {
            Self::Mapped
        } else {
            Self::V6
        }
    }

    fn option(self) -> (i32, i32, &'static str) {
        match self {
            Self::V4 => (
                libc::IPPROTO_IP,
                uapi::IP_XFRM_POLICY,
                "setsockopt(IP_XFRM_POLICY)",
            ),
            Self::V6 | Self::Mapped => (
                libc::IPPROTO_IPV6,
                uapi::IPV6_XFRM_POLICY,
                "setsockopt(IPV6_XFRM_POLICY)",
            ),
        }
    }

    fn set(self, fd: BorrowedFd<'_>, direction: u8, action: u8) -> Result<()> {
        let (level, option, call) = self.option();
        let family = match self {
            Self::V4 | Self::Mapped => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        };
        let policy = XfrmUserPolicy::for_all(family as u16, direction, action);
        raw::set(fd, level, option, call, policy)
    }

    fn block(self, fd: BorrowedFd<'_>, direction: u8) -> Result<()> {
        self.set(fd, direction, uapi::XFRM_POLICY_BLOCK)
    }

    /// Removes both policies.
    fn lift(self, fd: BorrowedFd<'_>) -> Result<()> {
        let (level, option, call) = self.option();
        raw::set_nothing(fd, level, option, call)
    }
}

/// What keeps one socket mute. It is lifted by [`Mute::lift`] only: dropped, the socket stays as it is.
#[derive(Debug)]
pub(crate) struct Mute(Kind);

#[derive(Debug)]
enum Kind {
    Policies(Wire),
    /// With the filter that the application had.
    Filter(Option<Vec<FilterInstruction>>),
}

impl Mute {
    /// Nothing comes in any more, and nothing goes out.
    ///
    /// After an error the socket is as it was.
    pub(crate) fn socket(fd: BorrowedFd<'_>) -> Result<Self> {
        match means_here()? {
            Means::Policies => {
                let wire = Wire::of_socket(fd)?;
                wire.block(fd, uapi::XFRM_POLICY_IN)?;
                wire.block(fd, uapi::XFRM_POLICY_OUT).or_else(|error| {
                    wire.lift(fd)?;
                    Err(error)
                })?;
                Ok(Self(Kind::Policies(wire)))
            }
            Means::Filter => Self::by_filter(fd),
        }
    }

    /// What keeps a socket mute whose holder left it so.
    pub(crate) fn left(fd: BorrowedFd<'_>) -> Result<Self> {
        match means_here()? {
            Means::Policies => Ok(Self(Kind::Policies(Wire::of_socket(fd)?))),
            Means::Filter => {
                let filter = sockopt::filter(fd)?;
                let mute = filter.as_deref() == Some(&NOTHING[..]);
                // The application's own filter is nowhere any more.
                Ok(Self(Kind::Filter(filter.filter(|_| !mute))))
            }
        }
    }

    /// Nothing will come in, of a socket that is about to be connected to `remote`. What it sends passes until
    /// [`Mute::connected`], because the look-up of the connection's route is the same as that of its packets.
    pub(crate) fn before_connect(
        fd: BorrowedFd<'_>,
        remote: &std::net::SocketAddr,
    ) -> Result<Self> {
        match means_here()? {
            Means::Policies => {
                // A socket is connected to an address of its own family.
                let wire = if remote.is_ipv6() {
                    Wire::of_v6(remote)
                } else {
                    Wire::V4
                };
                wire.block(fd, uapi::XFRM_POLICY_IN)?;
                Ok(Self(Kind::Policies(wire)))
            }
            Means::Filter => Self::by_filter(fd),
        }
    }

    /// Nothing goes out any more.
    pub(crate) fn connected(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match &self.0 {
            Kind::Policies(wire) => wire.block(fd, uapi::XFRM_POLICY_OUT),
            Kind::Filter(_) => Ok(()),
        }
    }

    fn by_filter(fd: BorrowedFd<'_>) -> Result<Self> {
        let filter = sockopt::filter(fd)?;
        if sockopt::lock_filter(fd)? {
            return Err(NotMigratable::FilterLocked.into());
        }
        sockopt::attach_filter(fd, NOTHING)?;
        Ok(Self(Kind::Filter(filter)))
    }

    /// What has this firewall mark comes in. The mark is not on the wire: nothing but what this host injects has it.
    pub(crate) fn let_in(&self, fd: BorrowedFd<'_>, mark: u32) -> Result<()> {
        sockopt::attach_filter(fd, marked(mark))?;
        match &self.0 {
            Kind::Policies(wire) => wire.set(fd, uapi::XFRM_POLICY_IN, uapi::XFRM_POLICY_ALLOW),
            Kind::Filter(_) => Ok(()),
        }
    }

    /// Nothing comes in again.
    pub(crate) fn shut(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match &self.0 {
            Kind::Policies(wire) => {
                wire.block(fd, uapi::XFRM_POLICY_IN)?;
                sockopt::detach_filter(fd)
            }
            Kind::Filter(_) => sockopt::attach_filter(fd, NOTHING),
        }
    }

    /// After the application's options were set, one of which may be a filter of its own.
    pub(crate) fn optioned(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        if let Kind::Filter(_) = self.0 {
            let filter = sockopt::filter(fd)?;
            let mute = filter.as_deref() == Some(&NOTHING[..]);
            if !mute {
                *self = Self::by_filter(fd)?;
            }
        }
        Ok(())
    }

    /// What arrives is delivered, and what is to be sent leaves.
    ///
    /// After an error the socket is as open as it could be made. It is tried twice: one that stayed mute would be lost, and look alive.
    pub(crate) fn lift(self, fd: BorrowedFd<'_>) -> Result<()> {
        self.lift_if_sent(fd, true)
    }

    /// The same; `sent` says whether the socket can have tried to send something while it was mute.
    pub(crate) fn lift_if_sent(self, fd: BorrowedFd<'_>, sent: bool) -> Result<()> {
        match self.0 {
            Kind::Policies(wire) => {
                wire.lift(fd).or_else(|_| wire.lift(fd))?;
                if sent {
                    // It is open, whatever its error says.
                    let _ = forget_soft_error(fd);
                }
                Ok(())
            }
            Kind::Filter(None) => sockopt::detach_filter(fd),
            Kind::Filter(Some(filter)) => {
                sockopt::attach_filter(fd, filter).or_else(|_| sockopt::detach_filter(fd))
            }
        }
    }
}

/// Each attempt to send left an error for `SO_ERROR` that no call would have returned (`sk_err_soft`).
fn forget_soft_error(fd: BorrowedFd<'_>) -> Result<()> {
    // A real one is the application's.
    if !has_error(fd)? {
        sockopt::take_error(fd)?;
    }
    Ok(())
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
/// `SKF_AD_OFF + SKF_AD_MARK` of `linux/filter.h`.
const MARK: u32 = 0xffff_f000 + 20;

const fn instruction(code: u16, jf: u8, k: u32) -> FilterInstruction {
    FilterInstruction { code, jt: 0, jf, k }
}

const NOTHING: [FilterInstruction; 1] = [instruction(RETURN, 0, 0)];

fn marked(mark: u32) -> [FilterInstruction; 4] {
    [
        instruction(LOAD, 0, MARK),
        instruction(JUMP_IF_EQUAL, 1, mark),
        instruction(RETURN, 0, u32::MAX),
        instruction(RETURN, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_means_are_found() {
        // Without the capability there is an answer too.
        match means() {
            Ok(_) | Err(Error::NoPermission { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        assert_eq!(marked(7)[1].k, 7);
    }
}
