//! The rules that send the packets of redirected flows on, and those that keep their leases up.
//!
//! A packet is looked at where it comes in, on whatever device that is: each has two chains `in-DEVICE`. That of the
//! family `inet` goes first: it finds the flow in `gone*`, whose value is the [class](super::lease_class) of its lease, and
//! prolongs this host's silence for it. That of `netdev` finds it in `device*`, prolongs the redirect by the same
//! class, which it learns from the packet's mark, and sends the packet to the neighbour in `hop*`. So a redirect lasts
//! for its lease after the flow's last packet, and nobody has to be there who renews it.
//!
//! From a FIN or RST on (`closing*`, `ended*`) only the closing time is left after each packet: the other direction may
//! stay open for hours, and an RST may be forged. What another host sends back of a flow that is coming back (`back*`)
//! is let in; `hosts` has the link-layer addresses of those hosts.
//!
//! A rule can only set a lease anew, not prolong one, and makes an element that was removed a moment ago again, with
//! the values that it names, and one that is being added a second time. `Shared::remove` and
//! `Shared::look_for_doubles` see to that.

use nftnl::expr::{CmpOp, Meta, Verdict};
use nftnl::{Chain, Hook, MsgType, Rule};

use super::batch::{Batch, CREATE};
use super::expression;
use super::layout;
use super::lease_class::{self, Class, NO_CLASS};
use super::names::{FIN, HOSTS, PRIORITY, RST, Set, Table, VALUE, c_string};
use super::object::{self, add_rule};

/// Registers for the values of `device*` and `hop*`.
const DEVICE: u32 = VALUE;
const HOP: u32 = VALUE + 1;

/// The chains for packets of redirected flows.
fn redirected(v4: bool) -> &'static str {
    if v4 { "redirected4" } else { "redirected6" }
}

fn going(v4: bool) -> &'static str {
    if v4 { "going4" } else { "going6" }
}

fn send(v4: bool) -> &'static str {
    if v4 { "send4" } else { "send6" }
}

/// Adds the chains that all devices share, or makes them right: without one for a device they act on no packet. A
/// redirect whose flow is seen to end lasts for `closing_ms` after its last packet.
pub(super) fn set_up(batch: &mut Batch, name: &str, owned: bool, closing_ms: u64) {
    layout::set_up_maps(batch, name, owned);
    for which in [Table::Inet, Table::Netdev] {
        let table = which.object(name);
        lease_class::set_up(batch, which, &table);
        for v4 in [true, false] {
            if which == Table::Inet {
                fill(batch, which, name, going(v4), |chain| {
                    going_rules(chain, v4, closing_ms)
                });
            } else {
                fill(batch, which, name, send(v4), |chain| send_rules(chain, v4));
                fill(batch, which, name, redirected(v4), |chain| {
                    redirect_rules(chain, v4, closing_ms)
                });
            }
        }
    }
}

/// Adds a chain that others go to, with these rules and no others.
fn fill(
    batch: &mut Batch,
    which: Table,
    name: &str,
    chain_name: &str,
    rules: impl for<'c> FnOnce(&'c Chain<'c>) -> Vec<Rule<'c>>,
) {
    let table = which.object(name);
    let chain = Chain::new(c_string(chain_name), &table);
    batch.object("NFT_MSG_NEWCHAIN", which, &chain, MsgType::Add, CREATE);
    object::flush_chain(batch, which, name, chain_name);
    for rule in rules(&chain) {
        add_rule(batch, which, &rule);
    }
}

/// Adds the chains for what arrives on a device, called as this, or makes them right. The shared chains have to be
/// there.
pub(super) fn hook(batch: &mut Batch, name: &str, chain: &str, device: &str) {
    let chain_name = format!("in-{chain}");
    for which in [Table::Inet, Table::Netdev] {
        let table = which.object(name);
        let mut chain = Chain::new(c_string(&chain_name), &table);
        match which {
            // Of one hook, the lower number goes first.
            Table::Inet => chain.set_hook(Hook::Ingress, PRIORITY - 1),
            // The number of the hook is the only one of the family, 0, and not that of the family inet.
            Table::Netdev => chain.set_hook(Hook::PreRouting, PRIORITY),
        }
        chain.set_device(c_string(device));
        object::add_chain(batch, which, name, &chain_name, &mut chain);
        for tag in [libc::ETH_P_8021Q, libc::ETH_P_8021AD] {
            add_rule(batch, which, &pass_tagged(&chain, tag as u16));
        }
        for v4 in [true, false] {
            add_rule(batch, which, &ingress_rule(&chain, which, v4));
        }
    }
}

/// What carries a VLAN's tag comes once more, by the VLAN's own device and without it; if that is not of this network
/// namespace, neither is the flow. Devices without link-layer headers never match.
fn pass_tagged<'a>(chain: &'a Chain<'a>, tag: u16) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    expression::match_link_type(&mut rule, tag);
    rule.add_expr(&Verdict::Accept);
    rule
}

/// The only look-up for packets of other flows.
fn ingress_rule<'a>(chain: &'a Chain<'a>, which: Table, v4: bool) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    expression::match_tcp(&mut rule, which, v4);
    expression::load_flow(&mut rule, v4, false);
    let (set, chain) = match which {
        Table::Inet => (Set::Gone, going(v4)),
        Table::Netdev => (Set::Device, redirected(v4)),
    };
    // Linux 6.1 looks nothing up in a map without loading the value. `nft` does not show a value that nobody uses; a
    // rule set loaded from its text sends all packets to `redirected*`, which looks again.
    rule.add_expr(&expression::lookup(c_string(set.name(v4)), Some(VALUE)));
    if which == Table::Inet {
        rule.add_expr(&expression::set_mark(VALUE));
    }
    let chain = c_string(chain);
    rule.add_expr(&Verdict::Goto { chain });
    rule
}

/// Keeps the silence for a flow up. Its class stays in the packet's mark, for the chains of the other table.
fn going_rules<'a>(chain: &'a Chain<'a>, v4: bool, closing_ms: u64) -> Vec<Rule<'a>> {
    let gone = || c_string(Set::Gone.name(v4));
    let ended = || c_string(Set::Ended.name(v4));
    // Each names its protocol once more: without that, nft cannot show it.
    let new_rule = || {
        let mut rule = Rule::new(chain);
        expression::match_tcp(&mut rule, Table::Inet, v4);
        rule
    };
    let mut end = new_rule();
    expression::match_flags(&mut end, FIN | RST, CmpOp::Neq, 0);
    expression::load_flow(&mut end, v4, false);
    end.add_expr(&expression::update(ended(), closing_ms, None));

    let mut closing = new_rule();
    closing.add_expr(&expression::immediate(VALUE, NO_CLASS));
    expression::load_flow(&mut closing, v4, false);
    closing.add_expr(&expression::lookup(ended(), None));
    closing.add_expr(&expression::update(ended(), closing_ms, None));
    closing.add_expr(&expression::update(gone(), closing_ms, Some(VALUE)));
    closing.add_expr(&Verdict::Accept);

    let mut prolong = Rule::new(chain);
    prolong.add_expr(&Meta::Mark { set: false });
    prolong.add_expr(&lease_class::classes());
    vec![end, closing, prolong]
}

fn redirect_rules<'a>(chain: &'a Chain<'a>, v4: bool, closing_ms: u64) -> Vec<Rule<'a>> {
    let name = |set: Set| c_string(set.name(v4));
    let new_rule = || {
        let mut rule = Rule::new(chain);
        expression::match_tcp(&mut rule, Table::Netdev, v4);
        rule
    };
    let mut back = new_rule();
    expression::load_flow(&mut back, v4, false);
    back.add_expr(&expression::lookup(name(Set::Back), None));
    back.add_expr(&expression::load_link_source());
    back.add_expr(&expression::lookup(c_string(HOSTS), None));
    back.add_expr(&expression::immediate(VALUE, 0));
    back.add_expr(&expression::set_mark(VALUE));
    back.add_expr(&Verdict::Accept);

    let mut end = new_rule();
    expression::match_flags(&mut end, FIN | RST, CmpOp::Neq, 0);
    expression::load_flow(&mut end, v4, false);
    // Once more, see `ingress_rule`: else a rule set loaded from text would note the end of every flow.
    end.add_expr(&expression::lookup(name(Set::Device), Some(DEVICE)));
    end.add_expr(&expression::update(name(Set::Closing), closing_ms, None));

    let mut closing = new_rule();
    expression::load_flow(&mut closing, v4, false);
    closing.add_expr(&expression::lookup(name(Set::Closing), None));
    prolong_redirect(&mut closing, v4, closing_ms);
    closing.add_expr(&expression::update(name(Set::Closing), closing_ms, None));
    closing.add_expr(&Verdict::Goto {
        chain: c_string(send(v4)),
    });

    let mut prolong = Rule::new(chain);
    prolong.add_expr(&Meta::Mark { set: false });
    prolong.add_expr(&lease_class::classes());

    let mut rest = Rule::new(chain);
    rest.add_expr(&Verdict::Goto {
        chain: c_string(send(v4)),
    });
    vec![back, end, closing, prolong, rest]
}

/// Has the flow's redirect last for so long from now, if it is there. The values in the maps stay as they are; those
/// that are named would be taken if an element were removed just now: nft cannot show a rule that names those which it
/// looked up.
fn prolong_redirect(rule: &mut Rule<'_>, v4: bool, ms: u64) {
    expression::load_flow(rule, v4, false);
    for (set, register) in [(Set::Device, DEVICE), (Set::Hop, HOP)] {
        rule.add_expr(&expression::lookup(c_string(set.name(v4)), Some(register)));
    }
    rule.add_expr(&expression::load_device(DEVICE));
    rule.add_expr(&expression::load_local(HOP, v4));
    for (set, register) in [(Set::Device, DEVICE), (Set::Hop, HOP)] {
        let set = c_string(set.name(v4));
        rule.add_expr(&expression::update(set, ms, Some(register)));
    }
}

fn send_rules<'a>(chain: &'a Chain<'a>, v4: bool) -> Vec<Rule<'a>> {
    // It meant something in these tables only.
    let mut unmark = Rule::new(chain);
    unmark.add_expr(&expression::immediate(VALUE, 0));
    unmark.add_expr(&expression::set_mark(VALUE));
    let mut send = Rule::new(chain);
    expression::match_tcp(&mut send, Table::Netdev, v4);
    expression::load_flow(&mut send, v4, false);
    for (set, register) in [(Set::Device, DEVICE), (Set::Hop, HOP)] {
        send.add_expr(&expression::lookup(c_string(set.name(v4)), Some(register)));
    }
    send.add_expr(&expression::forward(DEVICE, HOP, v4));
    vec![unmark, send]
}

/// Adds what keeps leases of a class up, in both tables.
pub(super) fn set_up_class(batch: &mut Batch, name: &str, class: Class) {
    for which in [Table::Inet, Table::Netdev] {
        fill(batch, which, name, &class.chain_name(), |chain| {
            let mut rules = Vec::new();
            for v4 in [true, false] {
                let mut rule = Rule::new(chain);
                expression::match_tcp(&mut rule, which, v4);
                match which {
                    Table::Inet => {
                        rule.add_expr(&expression::immediate(VALUE, class.id()));
                        expression::load_flow(&mut rule, v4, false);
                        let gone = c_string(Set::Gone.name(v4));
                        rule.add_expr(&expression::update(gone, class.ms(), Some(VALUE)));
                    }
                    Table::Netdev => prolong_redirect(&mut rule, v4, class.ms()),
                }
                rules.push(rule);
            }
            rules
        });
        class.add_to_map(batch, which, name);
    }
}
