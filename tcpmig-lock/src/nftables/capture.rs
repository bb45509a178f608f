//! The rules that log what arrives for locked flows, one chain for each group of NFLOG.
//!
//! The value of a locked flow in its map is the group of the handle that locked it (0: none). What arrives for the flow
//! is marked with it, and the map `capture` leads from the mark to the chain of the group, which logs and drops; what
//! the map does not know is dropped only. One look-up is all that packets of other connections cost, as without capture,
//! and one element all that a lock costs.

use nftnl::expr::{Meta, Verdict};
use nftnl::nftnl_sys as sys;
use nftnl::{Chain, MsgType, Rule, Table as NftTable};

use super::batch::{Batch, CREATE};
use super::connection::Connection;
use super::names::{Table, c_string};
use super::object::{self, Mark};
use super::{element, expression, ffi};
use crate::LockError;
use crate::netlink::wire;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

/// The chain for what arrives for locked flows.
pub(super) const LOCKED: &str = "locked";
/// The map from groups of NFLOG to chains.
const CAPTURE: &str = "capture";

/// The group of flows whose packets nobody wants.
pub(super) const NO_GROUP: u16 = 0;

/// The chain for the packets of a group.
pub(super) fn chain_name(group: u16) -> String {
    format!("capture-{group}")
}

/// Adds the chain for what arrives for locked flows, marked with their group: a map says which chain is that of the
/// group, and what it does not know is dropped.
pub(super) fn set_up_locked(batch: &mut Batch, name: &str, table: &NftTable) {
    let map_name = c_string(CAPTURE);
    let id = object::set_id(batch);
    let mut map = nftnl::set::Set::<Mark>::new_named(&map_name, id, table, table.get_family());
    ffi::set_u32(&mut map, sys::NFTNL_SET_FLAGS, libc::NFT_SET_MAP as u32);
    ffi::set_u32(&mut map, sys::NFTNL_SET_DATA_TYPE, libc::NFT_DATA_VERDICT);
    object::host_order(&mut map, sys::NFTNL_UDATA_SET_KEYBYTEORDER);
    batch.object("NFT_MSG_NEWSET", Table::Inet, &map, MsgType::Add, CREATE);
    let verdict = Some(libc::NFT_REG_VERDICT as u32);
    add_chain(batch, name, table, LOCKED, |chain| {
        let mut known = Rule::new(chain);
        known.add_expr(&Meta::Mark { set: false });
        known.add_expr(&expression::lookup(map_name.clone(), verdict));
        let mut others = Rule::new(chain);
        others.add_expr(&Verdict::Drop);
        [known, others]
    });
}

/// Adds the chain of a group, or makes it right, and its entry in the map.
pub(super) fn set_up(batch: &mut Batch, name: &str, group: u16) {
    let table = Table::Inet.object(name);
    add_chain(batch, name, &table, &chain_name(group), |chain| {
        let mut rule = Rule::new(chain);
        rule.add_expr(&expression::log(group));
        rule.add_expr(&Verdict::Drop);
        [rule]
    });
    check(batch, name, group);
}

/// Adds a chain that others jump to, with these rules and no others.
fn add_chain<'a, const N: usize>(
    batch: &mut Batch,
    table_name: &str,
    table: &'a NftTable,
    chain_name: &str,
    rules: impl for<'c> FnOnce(&'c Chain<'a>) -> [Rule<'c>; N],
) {
    let chain = Chain::new(c_string(chain_name), table);
    let inet = Table::Inet;
    batch.object("NFT_MSG_NEWCHAIN", inet, &chain, MsgType::Add, CREATE);
    object::flush_chain(batch, inet, table_name, chain_name);
    for rule in rules(&chain) {
        object::add_rule(batch, inet, &rule);
    }
}

/// Adds the entry of a group in the map, or makes sure that it is there: the batch fails with ENOENT if the chain is
/// not.
pub(super) fn check(batch: &mut Batch, name: &str, group: u16) {
    let chain = chain_name(group);
    batch.message(
        "NFT_MSG_NEWSETELEM",
        Table::Inet,
        libc::NFT_MSG_NEWSETELEM as u16,
        CREATE,
        |bytes| {
            element::put_one(bytes, name, CAPTURE, |bytes| {
                put_key(bytes, group);
                element::put_chain(bytes, libc::NFT_GOTO, &chain);
            });
        },
    );
}

fn put_key(bytes: &mut Vec<u8>, group: u16) {
    element::put_value(bytes, element::NFTA_SET_ELEM_KEY, |bytes| {
        bytes.extend_from_slice(&element::group_data(group));
    });
}

/// Removes a group's entry and its chain. Fails with ENOENT if they are not there.
pub(super) fn remove(batch: &mut Batch, name: &str, group: u16) {
    batch.message(
        "NFT_MSG_DELSETELEM",
        Table::Inet,
        libc::NFT_MSG_DELSETELEM as u16,
        0,
        |bytes| element::put_one(bytes, name, CAPTURE, |bytes| put_key(bytes, group)),
    );
    batch.message(
        "NFT_MSG_DELCHAIN",
        Table::Inet,
        libc::NFT_MSG_DELCHAIN as u16,
        0,
        |bytes| {
            wire::put_str(bytes, NFTA_CHAIN_TABLE, name);
            wire::put_str(bytes, NFTA_CHAIN_NAME, &chain_name(group));
        },
    );
}

/// The groups in the map; none if there is no table.
pub(super) fn groups(connection: &mut Connection, name: &str) -> Result<Vec<u16>, LockError> {
    let found = connection.dump(
        Table::Inet,
        |bytes| element::put_set(bytes, name, CAPTURE),
        element::read_groups,
    )?;
    Ok(found.unwrap_or_default())
}
