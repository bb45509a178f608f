//! The tables: which sets, chains and rules they hold, and how they are set up.
//!
//! Two tables of the same name. The one of family `inet` silences flows: the maps `locked*` (locks) and `gone*`
//! (redirected flows, for which this host must stay silent) are looked up on the way in and, with the tuple
//! reversed, on the way out. A lock's value in its map says who gets copies of what arrives, see [`capture`]. The one
//! of family `netdev` sends the packets of redirected flows on before anything else of this host sees them, see
//! [`forward`](super::forward).
//!
//! The tables belong to no process. Several of one host share them, each adding and removing only its own elements,
//! and the leases are what ends the locks of a process that died. (A table with the `owner` flag alone would vanish with
//! its process, and the host would then answer for connections that it no longer has; with `persist` beside it, it
//! stays, but only one process can lock: that is what an owned table is.)

use nftnl::expr::{CmpOp, Meta, Verdict};
use nftnl::nftnl_sys as sys;
use nftnl::{Chain, Hook, MsgType, Rule};

use super::batch::{Batch, CREATE};
use super::capture;
use super::element;
use super::expression;
use super::lease_class::NO_CLASS;
use super::names::{ACK, FIN, HOSTS, PRIORITY, RST, SYN, Set, Table, VALUE, c_string};
use super::object::{
    Flow4, Flow6, LinkAddress, Mark, NEW_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, TYPE_DEVICE,
    TYPE_IPV4, TYPE_IPV6, TYPE_MARK, add_chain, add_rule, add_set, add_table, host_order, set_id,
};
use crate::netlink::wire;

/// The set of packet marks that pass.
const EXEMPT: &str = "exempt";

/// Adds what makes the table for locks, or makes it right if it is there. Sets and their elements stay; rules are
/// replaced, in the same step, because they cannot be added only if they are missing. So two processes that do this
/// at once do not disturb each other, and a table whose rules somebody flushed works again.
pub(super) fn set_up_locks(batch: &mut Batch, name: &str, owned: bool, exempt: &[u32]) {
    let table = Table::Inet.object(name);
    add_table(batch, Table::Inet, name, owned);
    let mark = Some((TYPE_MARK, 4));
    for (set, data) in [(Set::Locked, mark), (Set::Gone, mark), (Set::Ended, None)] {
        add_set::<Flow4>(batch, &table, set, true, data);
        add_set::<Flow6>(batch, &table, set, false, data);
    }
    capture::set_up_locked(batch, name, &table);
    let mut marks = nftnl::set::Set::<Mark>::new_named(
        &c_string(EXEMPT),
        set_id(batch),
        &table,
        table.get_family(),
    );
    host_order(&mut marks, sys::NFTNL_UDATA_SET_KEYBYTEORDER);
    batch.object("NFT_MSG_NEWSET", Table::Inet, &marks, MsgType::Add, CREATE);
    for (chain_name, hook, reverse) in [
        ("prerouting", Hook::PreRouting, false),
        ("output", Hook::Out, true),
    ] {
        let mut chain = Chain::new(c_string(chain_name), &table);
        chain.set_hook(hook, PRIORITY);
        add_chain(batch, Table::Inet, name, chain_name, &mut chain);
        let mut rule = Rule::new(&chain);
        rule.add_expr(&Meta::Mark { set: false });
        rule.add_expr(&expression::lookup(c_string(EXEMPT), None));
        rule.add_expr(&Verdict::Accept);
        add_rule(batch, Table::Inet, &rule);
        for v4 in [true, false] {
            for set in [Set::Locked, Set::Gone] {
                if set == Set::Gone && !reverse {
                    add_rule(batch, Table::Inet, &new_connection(&chain, v4));
                }
                let mut rule = Rule::new(&chain);
                expression::match_tcp(&mut rule, Table::Inet, v4);
                expression::load_flow(&mut rule, v4, reverse);
                // Only packets that are dropped get the mark, which says of those of locked flows what is left to do. It
                // is set for the others because `nft` leaves a look-up out whose value nobody uses: a rule set that is
                // loaded from its text would drop everything.
                let name = c_string(set.name(v4));
                rule.add_expr(&expression::lookup(name, Some(VALUE)));
                rule.add_expr(&expression::set_mark(VALUE));
                if set == Set::Locked && !reverse {
                    let chain = c_string(capture::LOCKED);
                    rule.add_expr(&Verdict::Goto { chain });
                } else {
                    rule.add_expr(&Verdict::Drop);
                }
                add_rule(batch, Table::Inet, &rule);
            }
        }
    }
    add_exempt(batch, name, exempt);
}

/// Adds marks to those that pass.
pub(super) fn add_exempt(batch: &mut Batch, name: &str, marks: &[u32]) {
    if !marks.is_empty() {
        batch.message(
            "NFT_MSG_NEWSETELEM",
            Table::Inet,
            libc::NFT_MSG_NEWSETELEM as u16,
            CREATE,
            |bytes| element::put_marks(bytes, name, EXEMPT, marks),
        );
    }
}

/// Adds the table for redirects with its maps, if they are missing. It acts on no packet without a chain.
pub(super) fn set_up_maps(batch: &mut Batch, name: &str, owned: bool) {
    let table = Table::Netdev.object(name);
    add_table(batch, Table::Netdev, name, owned);
    let hosts = nftnl::set::Set::<LinkAddress>::new_named(
        &c_string(HOSTS),
        set_id(batch),
        &table,
        table.get_family(),
    );
    batch.object(
        "NFT_MSG_NEWSET",
        Table::Netdev,
        &hosts,
        MsgType::Add,
        CREATE,
    );
    for set in [Set::Device, Set::Hop, Set::Closing, Set::Back] {
        for v4 in [true, false] {
            let data = match (set, v4) {
                (Set::Hop, true) => Some((TYPE_IPV4, 4)),
                (Set::Hop, false) => Some((TYPE_IPV6, 16)),
                (Set::Device, _) => Some((TYPE_DEVICE, 4)),
                _ => None,
            };
            if v4 {
                add_set::<Flow4>(batch, &table, set, v4, data);
            } else {
                add_set::<Flow6>(batch, &table, set, v4, data);
            }
        }
    }
}

/// Adds the link-layer address of a host that packets are sent to.
pub(super) fn add_host(batch: &mut Batch, name: &str, link: [u8; 6]) {
    let message = libc::NFT_MSG_NEWSETELEM as u16;
    batch.message(
        "NFT_MSG_NEWSETELEM",
        Table::Netdev,
        message,
        CREATE,
        |bytes| {
            element::put_link_address(bytes, name, HOSTS, link);
        },
    );
}

/// Adds what removes a table with all it holds.
pub(super) fn delete_table(batch: &mut Batch, table: Table, name: &str) {
    batch.object(
        "NFT_MSG_DELTABLE",
        table,
        &table.object(name),
        MsgType::Del,
        0,
    );
}

/// Adds both tables as owned ones.
pub(super) fn own(batch: &mut Batch, name: &str) {
    add_table(batch, Table::Inet, name, true);
    add_table(batch, Table::Netdev, name, true);
}

/// Has tables that somebody put to sleep work again.
pub(super) fn wake(batch: &mut Batch, name: &str) {
    for which in [Table::Inet, Table::Netdev] {
        let message = libc::NFT_MSG_NEWTABLE as u16;
        batch.message(NEW_TABLE, which, message, CREATE, |bytes| {
            wire::put_str(bytes, NFTA_TABLE_NAME, name);
            wire::put(bytes, NFTA_TABLE_FLAGS, &0_u32.to_be_bytes());
        });
    }
}

/// The rule that ends this host's silence for a flow when its peer opens a new connection with the same ports here:
/// as long as the old one was redirected, its packets did not come so far.
fn new_connection<'a>(chain: &'a Chain<'a>, v4: bool) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    expression::match_tcp(&mut rule, Table::Inet, v4);
    expression::match_flags(&mut rule, FIN | SYN | RST | ACK, CmpOp::Eq, SYN);
    // The kernel wants a value to be named where an element of a map is removed.
    rule.add_expr(&expression::immediate(VALUE, NO_CLASS));
    expression::load_flow(&mut rule, v4, false);
    let gone = c_string(Set::Gone.name(v4));
    rule.add_expr(&expression::delete(gone, VALUE));
    rule
}
