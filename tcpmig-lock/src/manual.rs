//! What [`Nftables`](crate::Nftables) does exactly: when others change the host's rules, with many flows, with redirects and captures.
//! Documentation only.
//!
//! # Other people's rules
//!
//! Whoever flushes the host's rules (`nft flush ruleset`, with which the rules of a firewall often begin) also removes
//! these tables. A handle that has locked watches for that, with a thread of its own, and sets everything up again that
//! it holds, also what its guards left to their leases: within a millisecond or two on an idle host, in which packets may
//! pass and be answered. [`on_event`](crate::Nftables::on_event) tells of it. What is held by a process that is gone is lost; an
//! [owned table](crate::Nftables::with_owned_table) is not touched as long as its owner lives. Flows that another process unlocks,
//! or ends the redirect of, are left alone: that was on purpose.
//!
//! # Many flows
//!
//! A process without `CAP_NET_ADMIN` in the initial user namespace cannot raise its socket's send buffer above
//! `net.core.wmem_max`, and then more than some thousand flows go in several batches (3000 with the usual limit).
//! Calls are still all or none once they return; but not all flows fall silent at the same moment.
//!
//! # Redirects
//!
//! Packets of a redirected flow are sent on where they come in, on whatever device of this host that is (but `lo`),
//! before anything else of this host looks at them: no routing rule, reverse path filter, bridge, address translation or
//! `ip_forward` is involved, and each loses one from its TTL. A device that appears later is included as long as a
//! handle lives that has redirected. The target has to
//! take the packets for its own, which it does with the flow's local address on its `lo` (with `arp_ignore=1` and
//! `arp_announce=2`).
//!
//! - This host must have an address of its own on the way there beside the redirected one, or the target
//!   `accept_local=1` on its device: otherwise it does not answer ARP requests from an address that is its own too,
//!   and no packet arrives. (IPv6 asks from link-local addresses.)
//! - The end of a flow is noticed: from the peer's FIN or RST on, the redirect ends
//!   [`closing_time`](crate::Nftables::closing_time) after the flow's last packet, also if its lease is longer. Every packet
//!   prolongs it (by that time, not by the lease), because the other direction may stay open for hours, and because
//!   an RST may be forged. The target's own segments do not pass here and are not needed: the peer answers a FIN with
//!   its own, or with RST. Only a flow that the target aborts by an RST, which nobody answers, is not seen to end.
//! - As long as nothing of that is seen, each packet prolongs the redirect by its lease, or by up to a quarter more: a
//!   flow keeps its redirect as long as it lives, without anybody who renews it, if it is never idle for a whole lease.
//! - This host stays silent for a flow as long as it is redirected, or until the peer opens a new connection here with
//!   the same ports. From then on it can use the ports itself.
//! - No more than 262 144 flows of each family are redirected at once ([`LockError::TooMany`](crate::LockError::TooMany)).
//! - ICMP errors for the flow ("fragmentation needed") and IP fragments are not sent on.
//! - A flow that comes back: for a moment both hosts redirect it to each other. What the other host sends back is let in
//!   here, where a lock captures it, if this host knew the other's link-layer address when it began to redirect;
//!   otherwise it goes back and forth until its TTL ends. [`release`](crate::LockGuard::release) ends the older redirect.
//!
//! # Capture
//!
//! After [`capturing`](crate::Nftables::capturing) what arrives for locked flows is not only dropped but copied to this handle
//! (NFLOG), and handed over by [`LockGuard::captured`](crate::LockGuard::captured).
//!
//! - A packet is copied in the same step of the kernel that drops it, so what was dropped before the call is there: 10
//!   microseconds after a peer on a virtual link sends it, it can be read.
//! - No packet falls between lock and capture: the socket listens before the batch that locks is sent, and the lock's
//!   element is what makes the rules log.
//! - Each handle has a chain of its own in the table, named after its NFLOG group, which goes with the handle. That of
//!   a process that died is swept; its locks last as long as their leases, and nobody gets their packets.
//! - Without `CAP_NET_ADMIN` in the initial user namespace the buffer is not larger than `net.core.rmem_max`.
