//! The expressions that the rules are made of.

use std::ffi::CString;

use nftnl::Rule;
use nftnl::expr::{Bitwise, Cmp, CmpOp, Meta};
use nftnl::nftnl_sys as sys;

use super::ffi::{Expr, Value};
use super::names::Table;

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

/// Goes on only with segments that have one of these flags. Uses the first registers.
pub(super) fn match_flags(rule: &mut Rule<'_>, mask: u8, op: CmpOp, value: u8) {
    const FLAGS: u32 = 13;
    rule.add_expr(&payload(
        libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32,
        FLAGS,
        1,
        libc::NFT_REG32_00 as u32,
    ));
    rule.add_expr(&Bitwise::new(mask, 0u8));
    rule.add_expr(&Cmp::new(op, value));
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expr {
    Expr {
        name: c"payload",
        attributes: vec![
            (sys::NFTNL_EXPR_PAYLOAD_DREG, Value::U32(register)),
            (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::U32(base)),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::U32(offset)),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::U32(length)),
        ],
    }
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
        rule.add_expr(&payload(base, offset, length, register));
        register += length.div_ceil(4);
    }
}

/// Loads the index of the device that the packet came by.
pub(super) fn load_device(register: u32) -> Expr {
    Expr {
        name: c"meta",
        attributes: vec![
            (
                sys::NFTNL_EXPR_META_KEY,
                Value::U32(libc::NFT_META_IIF as u32),
            ),
            (sys::NFTNL_EXPR_META_DREG, Value::U32(register)),
        ],
    }
}

/// Loads the address that the packet is for.
pub(super) fn load_local(register: u32, v4: bool) -> Expr {
    let (offset, length) = if v4 { (16, 4) } else { (24, 16) };
    let network = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
    payload(network, offset, length, register)
}

/// Loads the link-layer address that the packet came from into the first registers.
pub(super) fn load_link_source() -> Expr {
    let register = libc::NFT_REG32_00 as u32;
    payload(libc::NFT_PAYLOAD_LL_HEADER as u32, 6, 6, register)
}

/// Goes on only with packets that have this type in their link-layer header: of those with the tag of a VLAN, the tag's.
pub(super) fn match_link_type(rule: &mut Rule<'_>, kind: u16) {
    const TYPE: u32 = 12;
    let link = libc::NFT_PAYLOAD_LL_HEADER as u32;
    rule.add_expr(&payload(link, TYPE, 2, libc::NFT_REG32_00 as u32));
    rule.add_expr(&Cmp::new(CmpOp::Eq, kind.to_be()));
}

/// Loads a number in host byte order.
pub(super) fn immediate(register: u32, value: u32) -> Expr {
    Expr {
        name: c"immediate",
        attributes: vec![
            (sys::NFTNL_EXPR_IMM_DREG, Value::U32(register)),
            (sys::NFTNL_EXPR_IMM_DATA, Value::U32(value)),
        ],
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

/// Has the element of the first registers in a set end so many milliseconds from now, and makes it if it is not there.
/// In a map, `data` is the register of its value.
pub(super) fn update(set: CString, timeout_ms: u64, data: Option<u32>) -> Expr {
    let mut expr = dynset(set, libc::NFT_DYNSET_OP_UPDATE as u32);
    let timeout = (sys::NFTNL_EXPR_DYNSET_TIMEOUT, Value::U64(timeout_ms));
    expr.attributes.push(timeout);
    if let Some(data) = data {
        let data = (sys::NFTNL_EXPR_DYNSET_SREG_DATA, Value::U32(data));
        expr.attributes.push(data);
    }
    expr
}

/// Removes the element of the first registers from a map, whatever value the register `data` holds.
pub(super) fn delete(map: CString, data: u32) -> Expr {
    /// `NFT_DYNSET_OP_DELETE`, since Linux 5.4; libc does not have it.
    const DELETE: u32 = 2;
    let mut expr = dynset(map, DELETE);
    let data = (sys::NFTNL_EXPR_DYNSET_SREG_DATA, Value::U32(data));
    expr.attributes.push(data);
    expr
}

fn dynset(set: CString, op: u32) -> Expr {
    let key = libc::NFT_REG32_00 as u32;
    Expr {
        name: c"dynset",
        attributes: vec![
            (sys::NFTNL_EXPR_DYNSET_OP, Value::U32(op)),
            (sys::NFTNL_EXPR_DYNSET_SREG_KEY, Value::U32(key)),
            (sys::NFTNL_EXPR_DYNSET_SET_NAME, Value::Str(set)),
        ],
    }
}

/// Numbers the packet with the value in the register.
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
        // Without NFTNL_EXPR_LOG_SNAPLEN, of which 0 means no byte, the copy is as long as the socket asks for.
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
