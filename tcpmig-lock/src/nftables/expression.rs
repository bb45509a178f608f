//! The expressions that the rules are made of.

use std::ffi::CString;

use nftnl::Rule;
use nftnl::expr::{Cmp, CmpOp, Meta};
use nftnl::nftnl_sys as sys;

use super::ffi::{Expr, Value};
use super::layout::Table;

fn nf_proto(v4: bool) -> u8 {
    (if v4 {
        libc::NFPROTO_IPV4
    } else {
        libc::NFPROTO_IPV6
    }) as u8
}

pub(super) fn match_tcp(rule: &mut Rule<'_>, table: Table, v4: bool) {
    match table {
        Table::Inet => {
            rule.add_expr(&Meta::NfProto);
            rule.add_expr(&Cmp::new(CmpOp::Eq, nf_proto(v4)));
        }
        Table::Netdev => {
            let ether_type = if v4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 } as u16;
            rule.add_expr(&Meta::Protocol);
            rule.add_expr(&Cmp::new(CmpOp::Eq, ether_type.to_be()));
        }
    }
    rule.add_expr(&Meta::L4Proto);
    rule.add_expr(&Cmp::new(CmpOp::Eq, libc::IPPROTO_TCP as u8));
}

/// Loads the four-tuple of the packet into the registers from the first on, as elements have it: peer first.
pub(super) fn load_flow(rule: &mut Rule<'_>, v4: bool, reverse: bool) {
    let (source, destination, length) = if v4 { (12, 16, 4) } else { (8, 24, 16) };
    let network = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
    let transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
    let mut loads = [
        (network, source, length),
        (transport, 0, 2),
        (network, destination, length),
        (transport, 2, 2),
    ];
    if reverse {
        loads.rotate_left(2);
    }
    let mut register = libc::NFT_REG32_00 as u32;
    for (base, offset, length) in loads {
        rule.add_expr(&Expr {
            name: c"payload",
            attributes: vec![
                (sys::NFTNL_EXPR_PAYLOAD_DREG, Value::U32(register)),
                (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::U32(base)),
                (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::U32(offset)),
                (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::U32(length)),
            ],
        });
        register += length.div_ceil(4);
    }
}

/// Looks the first registers up; in a map, the value goes to the register `to`.
pub(super) fn lookup(set: CString, to: Option<u32>) -> Expr {
    let mut attributes = vec![
        (
            sys::NFTNL_EXPR_LOOKUP_SREG,
            Value::U32(libc::NFT_REG32_00 as u32),
        ),
        (sys::NFTNL_EXPR_LOOKUP_SET, Value::Str(set)),
    ];
    if let Some(to) = to {
        attributes.push((sys::NFTNL_EXPR_LOOKUP_DREG, Value::U32(to)));
    }
    Expr {
        name: c"lookup",
        attributes,
    }
}

/// Marks the packet with the value in the register.
pub(super) fn set_mark(register: u32) -> Expr {
    Expr {
        name: c"meta",
        attributes: vec![
            (
                sys::NFTNL_EXPR_META_KEY,
                Value::U32(libc::NFT_META_MARK as u32),
            ),
            (sys::NFTNL_EXPR_META_SREG, Value::U32(register)),
        ],
    }
}

/// Copies the packet to this group of NFLOG.
pub(super) fn log(group: u16) -> Expr {
    Expr {
        name: c"log",
        // Without NFTNL_EXPR_LOG_SNAPLEN, of which 0 means no octet, the copy is as long as the socket asks for.
        attributes: vec![(sys::NFTNL_EXPR_LOG_GROUP, Value::U16(group))],
    }
}

/// Sends the packet to the address in the register `hop`, by the device whose index is in the register `device`.
pub(super) fn forward(device: u32, hop: u32, v4: bool) -> Expr {
    Expr {
        name: c"fwd",
        attributes: vec![
            (sys::NFTNL_EXPR_FWD_SREG_DEV, Value::U32(device)),
            (sys::NFTNL_EXPR_FWD_SREG_ADDR, Value::U32(hop)),
            (sys::NFTNL_EXPR_FWD_NFPROTO, Value::U32(nf_proto(v4).into())),
        ],
    }
}
