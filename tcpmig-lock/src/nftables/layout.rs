//! The tables: which sets, chains and rules they hold, and how they are set up.
//!
//! Two tables of the same name. The one of family `inet` silences flows: the maps `locked*` (locks) and the sets
//! `gone*` (redirected flows, for which this host must stay silent) are looked up on the way in and, with the tuple
//! reversed, on the way out. A lock's value in its map says who gets copies of what arrives, see [`capture`]. The one
//! of family `netdev` sends the packets of redirected flows on before anything else of this host sees them: for each
//! device on which such packets arrive, a chain that looks the flow up in the maps `device*` and `hop*`. What another
//! host sends back of a flow that is coming back (`back*`) is let in; `hosts` has the link-layer addresses of those
//! hosts. The rules also notice the end of a flow: its redirect then ends soon after its last packet
//! (`closing*`).
//!
//! The tables belong to no process. Several of one host share them, each adding and removing only its own elements,
//! and the leases are what ends the locks of a process that died. (A table with the `owner` flag alone would vanish with
//! its process, and the host would then answer for connections that it no longer has; with `persist` beside it, it
//! stays, but only one process can lock: that is what an owned table is.)

use std::ffi::CString;

use nftnl::expr::{CmpOp, Meta, Verdict};
use nftnl::nftnl_sys as sys;
use nftnl::set::SetKey;
use nftnl::{Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule};

use super::batch::{APPEND, Batch, CREATE};
use super::capture;
use super::element;
use super::expression;
use super::ffi;
use super::wire;

/// Before everything that rules of others usually do: the priority `raw`.
const PRIORITY: i32 = -300;

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

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;

/// The register behind those that an IPv6 flow fills, ten of four octets.
const VALUE: u32 = libc::NFT_REG32_10 as u32;
/// How many flows of each family can be redirected. Sets that rules change are of a limited size, and 65 535 if none is
/// given; a kernel may take memory for all at once, 16 octets for each.
const MAX_REDIRECTS: u32 = 1 << 18;
/// Flags of a segment.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// The call that refuses to make a table that is owned.
pub(super) const NEW_TABLE: &str = "NFT_MSG_NEWTABLE";
/// The set of packet marks that pass.
const EXEMPT: &str = "exempt";
/// The set of link-layer addresses of the hosts that packets are sent to.
const HOSTS: &str = "hosts";

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
}

impl Set {
    pub(super) fn table(self) -> Table {
        match self {
            Self::Locked | Self::Gone => Table::Inet,
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
    for (set, data) in [(Set::Locked, Some((TYPE_MARK, 4))), (Set::Gone, None)] {
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
                let set_name = c_string(set.name(v4));
                match set {
                    Set::Locked => {
                        // Only packets that are dropped get the mark, which says what of them is left to do.
                        rule.add_expr(&expression::lookup(set_name, Some(VALUE)));
                        rule.add_expr(&expression::set_mark(VALUE));
                    }
                    _ => rule.add_expr(&expression::lookup(set_name, None)),
                }
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

/// The rule that ends this host's silence for a flow when its peer opens a new connection with the same ports here:
/// as long as the old one was redirected, its packets did not come so far.
fn new_connection<'a>(chain: &'a Chain<'a>, v4: bool) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    expression::match_tcp(&mut rule, Table::Inet, v4);
    expression::match_flags(&mut rule, FIN | SYN | RST | ACK, CmpOp::Eq, SYN);
    expression::load_flow(&mut rule, v4, false);
    let gone = c_string(Set::Gone.name(v4));
    rule.add_expr(&expression::lookup(gone.clone(), None));
    rule.add_expr(&expression::delete(gone));
    rule
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

/// Adds what makes the table for redirects with the chain for one device, or makes it right if it is there. A redirect
/// whose flow is seen to end lasts for `closing_ms` after its last packet.
pub(super) fn set_up_redirects(
    batch: &mut Batch,
    name: &str,
    owned: bool,
    ingress: &str,
    closing_ms: u64,
) {
    set_up_maps(batch, name, owned);
    let table = Table::Netdev.object(name);
    for v4 in [true, false] {
        let chain_name = redirected(v4);
        let chain = Chain::new(c_string(chain_name), &table);
        let netdev = Table::Netdev;
        batch.object("NFT_MSG_NEWCHAIN", netdev, &chain, MsgType::Add, CREATE);
        flush_chain(batch, netdev, name, chain_name);
        for rule in redirect_rules(&chain, v4, closing_ms) {
            add_rule(batch, netdev, &rule);
        }
    }
    let chain_name = ingress_chain(ingress);
    let mut chain = Chain::new(c_string(&chain_name), &table);
    // The number of the hook is the only one of the family, 0, and not that of the family inet.
    chain.set_hook(Hook::PreRouting, PRIORITY);
    chain.set_device(c_string(ingress));
    add_chain(batch, Table::Netdev, name, &chain_name, &mut chain);
    for v4 in [true, false] {
        // The only look-up for packets of other flows.
        let mut rule = Rule::new(&chain);
        expression::match_tcp(&mut rule, Table::Netdev, v4);
        expression::load_flow(&mut rule, v4, false);
        let device = c_string(Set::Device.name(v4));
        rule.add_expr(&expression::lookup(device, None));
        let chain = c_string(redirected(v4));
        rule.add_expr(&Verdict::Goto { chain });
        add_rule(batch, Table::Netdev, &rule);
    }
}

/// The chain for what arrives on a device. It is there only together with its rules.
pub(super) fn ingress_chain(ingress: &str) -> String {
    format!("in-{ingress}")
}

/// The chain for packets of redirected flows.
fn redirected(v4: bool) -> &'static str {
    if v4 { "redirected4" } else { "redirected6" }
}

fn redirect_rules<'a>(chain: &'a Chain<'a>, v4: bool, closing_ms: u64) -> [Rule<'a>; 4] {
    let (device, hop) = (VALUE, VALUE + 1);
    let name = |set: Set| c_string(set.name(v4));
    // Each names its protocol once more: without that, nft cannot show it.
    let new_rule = || {
        let mut rule = Rule::new(chain);
        expression::match_tcp(&mut rule, Table::Netdev, v4);
        rule
    };
    let mut end = new_rule();
    expression::match_flags(&mut end, FIN | RST, CmpOp::Neq, 0);
    expression::load_flow(&mut end, v4, false);
    end.add_expr(&expression::update(name(Set::Closing), closing_ms, None));

    // What still comes prolongs it: the other direction may stay open for long, and an RST may be forged. The values
    // in the maps stay as they are. Those that are named here would be taken if an element were removed just now
    // (`Shared::remove` sees to that): nft cannot show a rule that names those which it looked up.
    let mut closing = new_rule();
    closing.add_expr(&expression::load_device(device));
    closing.add_expr(&expression::load_local(hop, v4));
    expression::load_flow(&mut closing, v4, false);
    for set in [Set::Closing, Set::Device, Set::Hop] {
        closing.add_expr(&expression::lookup(name(set), None));
    }
    for (set, data) in [
        (Set::Closing, None),
        (Set::Device, Some(device)),
        (Set::Hop, Some(hop)),
    ] {
        closing.add_expr(&expression::update(name(set), closing_ms, data));
    }

    let mut back = new_rule();
    expression::load_flow(&mut back, v4, false);
    back.add_expr(&expression::lookup(name(Set::Back), None));
    back.add_expr(&expression::load_link_source());
    back.add_expr(&expression::lookup(c_string(HOSTS), None));
    back.add_expr(&Verdict::Accept);

    let mut send = new_rule();
    expression::load_flow(&mut send, v4, false);
    send.add_expr(&expression::lookup(name(Set::Device), Some(device)));
    send.add_expr(&expression::lookup(name(Set::Hop), Some(hop)));
    send.add_expr(&expression::forward(device, hop, v4));
    [back, end, closing, send]
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

/// Adds a table if it is missing. One that is owned can be changed by this socket only, and outlives it; it has to be
/// named so each time.
fn add_table(batch: &mut Batch, which: Table, name: &str, owned: bool) {
    const NFTA_TABLE_NAME: u16 = 1;
    const NFTA_TABLE_FLAGS: u16 = 2;
    /// `NFT_TABLE_F_OWNER`, since Linux 5.12, and `NFT_TABLE_F_PERSIST`, since 6.9; libc has neither.
    const OWNER_PERSIST: u32 = 2 | 4;
    let message = libc::NFT_MSG_NEWTABLE as u16;
    batch.message(NEW_TABLE, which, message, CREATE, |bytes| {
        wire::put_str(bytes, NFTA_TABLE_NAME, name);
        if owned {
            wire::put(bytes, NFTA_TABLE_FLAGS, &OWNER_PERSIST.to_be_bytes());
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
fn add_chain(
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
