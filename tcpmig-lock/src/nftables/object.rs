//! Tables, sets, chains and rules as they go into a batch.

use nftnl::nftnl_sys as sys;
use nftnl::set::SetKey;
use nftnl::{Chain, ChainType, MsgType, Policy, Rule};

use super::batch::{APPEND, Batch, CREATE};
use super::ffi;
use super::names::{MAX_REDIRECTS, Set, Table, c_string};
use crate::netlink::wire;

/// Type numbers of `nft`, by which it shows a set's keys and values; the kernel does not look at them.
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_ETHER: u32 = 9;
pub(super) const TYPE_PORT: u32 = 13;
pub(super) const TYPE_MARK: u32 = 19;
pub(super) const TYPE_DEVICE: u32 = 20;

const fn concat(ip: u32) -> u32 {
    (((ip << 6 | TYPE_PORT) << 6 | ip) << 6) | TYPE_PORT
}

pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;

/// The call that refuses to make a table that is owned.
pub(super) const NEW_TABLE: &str = "NFT_MSG_NEWTABLE";
/// `NFT_TABLE_F_OWNER`, since Linux 5.12, and `NFT_TABLE_F_PERSIST`, since 6.9; libc has neither.
pub(super) const OWNED: u32 = 2;
const PERSISTENT: u32 = 4;
/// Key of the IPv4 sets: saddr . sport . daddr . dport, each padded to a register.
pub(super) struct Flow4;
/// Key of the IPv6 sets.
pub(super) struct Flow6;
/// Key of the set of marks.
pub(super) struct Mark;
/// Key of the set of hosts.
pub(super) struct LinkAddress;

// nftnl asks for the type and the length only; elements are written in `element`.
impl SetKey for Flow4 {
    const TYPE: u32 = concat(TYPE_IPV4);
    const LEN: u32 = 16;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

impl SetKey for Flow6 {
    const TYPE: u32 = concat(TYPE_IPV6);
    const LEN: u32 = 40;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

impl SetKey for LinkAddress {
    const TYPE: u32 = TYPE_ETHER;
    const LEN: u32 = 6;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

impl SetKey for Mark {
    const TYPE: u32 = TYPE_MARK;
    const LEN: u32 = 4;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

/// Adds a table if it is missing. One that is owned can be changed by this socket only, and outlives it; it has to be
/// named so each time.
pub(super) fn add_table(batch: &mut Batch, which: Table, name: &str, owned: bool) {
    let message = libc::NFT_MSG_NEWTABLE as u16;
    batch.message(NEW_TABLE, which, message, CREATE, |bytes| {
        wire::put_str(bytes, NFTA_TABLE_NAME, name);
        if owned {
            wire::put(bytes, NFTA_TABLE_FLAGS, &(OWNED | PERSISTENT).to_be_bytes());
        }
    });
}

/// A number by which messages of one batch can name a set; any that differs from the others will do.
pub(super) fn set_id(batch: &Batch) -> u32 {
    batch.last_seq()
}

pub(super) fn add_set<K: SetKey>(
    batch: &mut Batch,
    table: &nftnl::Table,
    which: Set,
    v4: bool,
    data: Option<(u32, u32)>,
) {
    let name = c_string(which.name(v4));
    let mut set = nftnl::set::Set::<K>::new_named(&name, set_id(batch), table, table.get_family());
    let mut flags = libc::NFT_SET_TIMEOUT as u32;
    if !matches!(which, Set::Locked | Set::Back) {
        // Rules change it.
        flags |= libc::NFT_SET_EVAL as u32;
        ffi::set_u32(&mut set, sys::NFTNL_SET_DESC_SIZE, MAX_REDIRECTS);
    }
    if let Some((kind, length)) = data {
        flags |= libc::NFT_SET_MAP as u32;
        ffi::set_u32(&mut set, sys::NFTNL_SET_DATA_TYPE, kind);
        ffi::set_u32(&mut set, sys::NFTNL_SET_DATA_LEN, length);
        if kind == TYPE_DEVICE || kind == TYPE_MARK {
            host_order(&mut set, sys::NFTNL_UDATA_SET_DATABYTEORDER);
        }
    }
    ffi::set_u32(&mut set, sys::NFTNL_SET_FLAGS, flags);
    batch.object("NFT_MSG_NEWSET", which.table(), &set, MsgType::Add, CREATE);
}

/// Tells `nft` that the keys or the values of a set are in host byte order; the kernel does not look at it.
pub(super) fn host_order<K>(set: &mut nftnl::set::Set<'_, K>, which: u32) {
    const HOST_ENDIAN: u32 = 1;
    let mut data = vec![which.to_le_bytes()[0], 4];
    data.extend_from_slice(&HOST_ENDIAN.to_ne_bytes());
    ffi::set_bytes(set, sys::NFTNL_SET_USERDATA, &data);
}

/// Adds a chain and removes the rules that it may have.
pub(super) fn add_chain(
    batch: &mut Batch,
    which: Table,
    table_name: &str,
    chain_name: &str,
    chain: &mut Chain<'_>,
) {
    chain.set_type(ChainType::Filter);
    chain.set_policy(Policy::Accept);
    batch.object("NFT_MSG_NEWCHAIN", which, chain, MsgType::Add, CREATE);
    flush_chain(batch, which, table_name, chain_name);
}

/// Removes the rules of a chain.
pub(super) fn flush_chain(batch: &mut Batch, which: Table, table_name: &str, chain_name: &str) {
    batch.message(
        "NFT_MSG_DELRULE",
        which,
        libc::NFT_MSG_DELRULE as u16,
        0,
        |bytes| {
            wire::put_str(bytes, NFTA_RULE_TABLE, table_name);
            wire::put_str(bytes, NFTA_RULE_CHAIN, chain_name);
        },
    );
}

pub(super) fn add_rule(batch: &mut Batch, which: Table, rule: &Rule<'_>) {
    batch.object(
        "NFT_MSG_NEWRULE",
        which,
        rule,
        MsgType::Add,
        CREATE | APPEND,
    );
}
