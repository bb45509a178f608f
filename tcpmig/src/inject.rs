//! Packets that this host sends to itself for a connection.

use std::os::fd::BorrowedFd;

use tcpmig_format::FourTuple;
use tcpmig_lock::Packet;
use tcpmig_sys::repair::Delivery;

use crate::segments;

/// The firewall mark of packets that a restore sends to this host in the peer's name.
///
/// A connection that the peer has closed, or whose closing the peer has acknowledged, is rebuilt with
/// segments of the peer, sent from this host to itself while its packets are locked. The locker has to let
/// this mark pass (`Nftables::new()?.exempt_mark(INJECT_MARK)`), and so has the packet filter of the
/// host.
///
/// Because locks let it pass, no connection is captured or restored that has it as its `SO_MARK`.
pub const INJECT_MARK: u32 = 0x7463_706d;

/// Gives a connection that lives here packets that its lock had dropped. Failures cost the peer a retransmission, no more.
pub(crate) fn deliver(fd: BorrowedFd<'_>, flow: &FourTuple, packets: &[Packet]) {
    if packets.is_empty() {
        return;
    }
    let Ok(delivery) = Delivery::open(fd) else {
        return;
    };
    for packet in packets {
        if let Ok((segment, hops)) = segments::whole(&packet.bytes, flow) {
            let _ = delivery.deliver(segment, hops, INJECT_MARK);
        }
    }
}
