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

use std::ffi::CString;

use nftnl::expr::{Meta, Verdict};
use nftnl::nftnl_sys as sys;
use nftnl::set::SetKey;
use nftnl::{Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule};

use super::batch::{APPEND, Batch, CREATE};
use super::capture;
use super::element;
use super::expression;
use super::ffi;
use super::forward;
use crate::netlink::wire;

/// Before everything that rules of others usually do: the priority `raw`.
pub(super) const PRIORITY: i32 = -300;

/// Type numbers of `nft`, by which it shows a set's keys and values; the kernel does not look at them.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_ETHER: u32 = 9;
const TYPE_PORT: u32 = 13;
pub(super) const TYPE_MARK: u32 = 19;
const TYPE_DEVICE: u32 = 20;

const fn concat(ip: u32) -> u32 {
    (((ip << 6 | TYPE_PORT) << 6 | ip) << 6) | TYPE_PORT
}

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;

/// The register behind those that an IPv6 flow fills, ten of four octets.
pub(super) const VALUE: u32 = libc::NFT_REG32_10 as u32;
/// How many flows of each family can be redirected. Sets that rules change are of a limited size, and 65 535 if none is
/// given; a kernel may take memory for all at once, 16 octets for each.
pub(super) const MAX_REDIRECTS: u32 = 1 << 18;
/// Flags of a segment.
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;
/// The call that refuses to make a table that is owned.
pub(super) const NEW_TABLE: &str = "NFT_MSG_NEWTABLE";
/// `NFT_TABLE_F_OWNER`, since Linux 5.12, and `NFT_TABLE_F_PERSIST`, since 6.9; libc has neither.
pub(super) const OWNED: u32 = 2;
const PERSISTENT: u32 = 4;
/// The set of packet marks that pass.
const EXEMPT: &str = "exempt";
/// The set of link-layer addresses of the hosts that packets are sent to.
pub(super) const HOSTS: &str = "hosts";

/// One of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Inet,
    Netdev,
}

impl Table {
    pub(super) fn family(self) -> u8 {
        (match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Netdev => libc::NFPROTO_NETDEV,
        }) as u8
    }

    pub(super) fn family_name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }

    pub(super) fn object(self, name: &str) -> nftnl::Table {
        let family = match self {
            Self::Inet => ProtoFamily::Inet,
            Self::Netdev => ProtoFamily::NetDev,
        };
        nftnl::Table::new(c_string(name), family)
    }
}

/// A pair of sets (IPv4 and IPv6) that is keyed by four-tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// Silent flows.
    Locked,
    /// Redirected flows, for which this host stays silent.
    Gone,
    /// Redirected flows, and the index of the device they leave by.
    Device,
    /// Redirected flows, and the address they are sent to.
    Hop,
    /// Redirected flows whose end was seen.
    Closing,
    /// Redirected flows that are locked again, because they come back.
    Back,
    /// Redirected flows whose end was seen, for the silence of this host: as `Closing`, which another table has.
    Ended,
}

impl Set {
    pub(super) fn table(self) -> Table {
        match self {
            Self::Locked | Self::Gone | Self::Ended => Table::Inet,
            Self::Device | Self::Hop | Self::Closing | Self::Back => Table::Netdev,
        }
    }

    pub(super) fn name(self, v4: bool) -> &'static str {
        match (self, v4) {
            (Self::Locked, true) => "locked4",
            (Self::Locked, false) => "locked6",
            (Self::Gone, true) => "gone4",
            (Self::Gone, false) => "gone6",
            (Self::Device, true) => "device4",
            (Self::Device, false) => "device6",
            (Self::Hop, true) => "hop4",
            (Self::Hop, false) => "hop6",
            (Self::Closing, true) => "closing4",
            (Self::Closing, false) => "closing6",
            (Self::Back, true) => "back4",
            (Self::Back, false) => "back6",
            (Self::Ended, true) => "ended4",
            (Self::Ended, false) => "ended6",
        }
    }
}

/// Key of the IPv4 sets: saddr . sport . daddr . dport, each padded to a register.
struct Flow4;
/// Key of the IPv6 sets.
struct Flow6;
/// Key of the set of marks.
pub(super) struct Mark;
/// Key of the set of hosts.
struct LinkAddress;

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

/// Names were checked to be ASCII letters, digits and the like, or come from the kernel.
pub(super) fn c_string(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

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
                    add_rule(batch, Table::Inet, &forward::new_connection(&chain, v4));
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

/// Adds a table if it is missing. One that is owned can be changed by this socket only, and outlives it; it has to be
/// named so each time.
fn add_table(batch: &mut Batch, which: Table, name: &str, owned: bool) {
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

fn add_set<K: SetKey>(
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
    ffi::set_octets(set, sys::NFTNL_SET_USERDATA, &data);
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
