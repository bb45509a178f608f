//! The ends of a connection.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use tcpmig_format::FourTuple;
use tcpmig_sys::ends::Ends;

use crate::border::{Code, Done, Failure, enter};
use crate::sized::{descriptor, given};

/// `struct tcpmig_flow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the header says what each is")]
#[repr(C)]
pub struct Flow {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
    pub family: u16,
    pub reserved: u16,
}

/// `TCPMIG_FLOW_TEXT`.
pub const FLOW_TEXT: usize = 108;

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
    }
}

impl From<FourTuple> for Flow {
    fn from(flow: FourTuple) -> Self {
        let family = if flow.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        Self {
            local: bytes(flow.local().ip()),
            remote: bytes(flow.remote().ip()),
            local_port: flow.local().port(),
            remote_port: flow.remote().port(),
            // Both are below 11.
            family: family as u16,
            reserved: 0,
        }
    }
}

impl Flow {
    fn four_tuple(&self) -> Done<FourTuple> {
        let address = |bytes: [u8; 16]| match c_int::from(self.family) {
            libc::AF_INET6 => Ok(IpAddr::from(Ipv6Addr::from(bytes))),
            libc::AF_INET => {
                let [a, b, c, d, ..] = bytes;
                Ok(IpAddr::from(Ipv4Addr::new(a, b, c, d)))
            }
            other => Err(Failure::invalid(format_args!(
                "{other} is not a family of addresses"
            ))),
        };
        let local = SocketAddr::new(address(self.local)?, self.local_port);
        let remote = SocketAddr::new(address(self.remote)?, self.remote_port);
        FourTuple::new(local, remote).map_err(Failure::invalid)
    }
}

/// The ends of the connection of this socket.
pub(crate) fn flow_of(fd: BorrowedFd<'_>) -> Done<FourTuple> {
    let ends = Ends::of(fd)?;
    FourTuple::new(ends.local, ends.remote).map_err(Failure::invalid)
}

exported! {
    /// `tcpmig_flow_of`.
    fn tcpmig_flow_of(fd: c_int, flow: Option<&mut MaybeUninit<Flow>>) -> c_int {
        enter(|| {
            let flow = given(flow, "flow")?;
            // SAFETY: the caller closes it after the call, if at all.
            let fd = unsafe { descriptor(fd) }?;
            flow.write(flow_of(fd)?.into());
            Ok(())
        })
    }
}

exported! {
    /// `tcpmig_flow_text`.
    fn tcpmig_flow_text(
        flow: Option<&Flow>,
        text: Option<&mut [MaybeUninit<c_char>; FLOW_TEXT]>,
    ) -> c_int {
        enter(|| {
            let flow = given(flow, "flow")?.four_tuple()?.to_string();
            let text = given(text, "text")?;
            if flow.len() >= text.len() {
                return Err(Failure::new(Code::Internal, "a text of a flow that is too long"));
            }
            let ended = flow.bytes().chain([0]);
            for (to, byte) in text.iter_mut().zip(ended) {
                to.write(byte as c_char);
            }
            Ok(())
        })
    }
}
