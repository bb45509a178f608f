//! IPv6 flow labels, which a socket has to lease before it sends them (RFC 3697,
//! `net/ipv6/ip6_flowlabel.c`).

use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IPV6, IPV6_FLOWLABEL_MGR};

#[allow(unused_imports, reason = "the documentation names it")]
use crate::error::Error;
use crate::error::Result;
use crate::raw;

/// The flow label that a socket sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowLabel {
    /// A label that the socket leased.
    Leased {
        /// The label, 20 bits, host byte order.
        label: u32,
        /// `flr_share`, who may lease it as well: 1 nobody, 2 this process, 3 this user, 255 anybody.
        share: u8,
    },
    /// `IPV6_FL_F_REFLECT`: the label that the peer sent when the connection was opened.
    Reflected {
        /// The label, 20 bits, host byte order; setting does not look at it.
        label: u32,
    },
}

// `struct in6_flowlabel_req` of `linux/in6.h`: 16 bytes flr_dst, 4 flr_label (network byte order),
// flr_action, flr_share, 2 flr_flags, 2 flr_expires, 2 flr_linger, 4 of padding.
const REQUEST: usize = 32;
const LABEL: std::ops::Range<usize> = 16..20;
const SHARE: usize = 21;
const FLAGS: std::ops::Range<usize> = 22..24;

/// The action `IPV6_FL_A_GET` is 0.
const IPV6_FL_F_CREATE: u16 = 1;
const IPV6_FL_F_REFLECT: u16 = 4;
const IPV6_FL_F_REMOTE: u16 = 8;
const LABEL_BITS: u32 = 0xf_ffff;

fn get(fd: BorrowedFd<'_>, flags: u16) -> Result<Option<[u8; REQUEST]>> {
    const CALL: &str = "getsockopt(IPV6_FLOWLABEL_MGR)";
    let mut request = [0; REQUEST];
    request[FLAGS].copy_from_slice(&flags.to_ne_bytes());
    match raw::get_bytes(fd, IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, CALL, &mut request) {
        Ok(_) => Ok(Some(request)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn label_of(request: &[u8; REQUEST]) -> u32 {
    let label = &request[LABEL];
    u32::from_be_bytes([label[0], label[1], label[2], label[3]]) & LABEL_BITS
}

/// `getsockopt(fd, IPV6_FLOWLABEL_MGR)`: the flow label that an application chose for the connection.
///
/// `None` if the kernel makes it ([`auto_flow_label`](super::auto_flow_label)) or there is none.
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "IPV6_FLOWLABEL_MGR")]
pub fn flow_label(fd: BorrowedFd<'_>) -> Result<Option<FlowLabel>> {
    let leased = get(fd, 0)?.map(|request| match request[SHARE] {
        // A lease is shared in some way.
        0 => FlowLabel::Reflected {
            label: label_of(&request),
        },
        share => FlowLabel::Leased {
            label: label_of(&request),
            share,
        },
    });
    Ok(leased)
}

/// `getsockopt(fd, IPV6_FLOWLABEL_MGR)` with `IPV6_FL_F_REMOTE`: the flow label that the peer sends, as
/// far as the kernel keeps it: for one that reports it ([`receive_flow_info`](super::receive_flow_info)).
///
/// # Errors
///
/// [`Error`] of the call.
#[doc(alias = "IPV6_FLOWLABEL_MGR")]
pub fn remote_flow_label(fd: BorrowedFd<'_>) -> Result<u32> {
    Ok(get(fd, IPV6_FL_F_REMOTE)?.map_or(0, |request| label_of(&request)))
}

/// `setsockopt(fd, IPV6_FLOWLABEL_MGR)`: leases a flow label to this destination, or reflects the peer's.
///
/// A leased one is sent if [`flow_info_send`](super::flow_info_send) is on and the
/// address that `connect` is given has it. The kernel holds the lease for as long as the socket.
///
/// # Errors
///
/// [`Error`] of the call: EPERM if another has leased it and does not share it.
#[doc(alias = "IPV6_FLOWLABEL_MGR")]
pub fn set_flow_label(fd: BorrowedFd<'_>, label: FlowLabel, to: Ipv6Addr) -> Result<()> {
    const CALL: &str = "setsockopt(IPV6_FLOWLABEL_MGR)";
    let mut request = [0_u8; REQUEST];
    let flags = match label {
        FlowLabel::Leased { label, share } => {
            request[..16].copy_from_slice(&to.octets());
            request[LABEL].copy_from_slice(&(label & LABEL_BITS).to_be_bytes());
            request[SHARE] = share;
            IPV6_FL_F_CREATE
        }
        FlowLabel::Reflected { .. } => IPV6_FL_F_REFLECT,
    };
    request[FLAGS].copy_from_slice(&flags.to_ne_bytes());
    raw::set_slice(fd, IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, CALL, &request)
}
