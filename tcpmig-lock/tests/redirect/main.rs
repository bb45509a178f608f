//! Redirects: the packets of one flow are sent on, this host stays silent for it, and its neighbours stay.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod ending;
mod flows;
mod many;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::capture::{ACK, Capture, FIN, PSH, RST, Segment};
use common::net::{Connection, Host, expect, expect_nothing, send, switch};
use common::{Ends, eventually, families, injector, ip, isolated, slowed};
use tcpmig_lock::address::Adopted;
use tcpmig_lock::{EntryKind, LockError, LockGuard, Locker, NextHop, Nftables, NoLock, Redirect};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);

/// A switch with the source, the target and the peer. Source and target have the address of the service beside their
/// own: a target to which the source's only address is local would not answer its ARP requests.
struct Net {
    source: Host,
    target: Host,
    peer: Host,
    at_source: Nftables,
    at_target: Nftables,
    switch: Host,
    #[allow(dead_code)] // Held.
    adopted: [Adopted; 2],
}

impl Net {
    fn new() -> Self {
        let (source, target, peer) = (Host::new(), Host::new(), Host::new());
        let switch = switch(&[(&source, 3), (&target, 2), (&peer, 9)]);
        source.ip("address add 10.0.0.1/24 dev eth0");
        source.ip("address add 2001:db8::1/64 dev eth0 nodad");
        let adopted = families().map(|[service, ..]| target.run(|| Adopted::new(service).unwrap()));
        Self {
            at_source: source.run(|| Nftables::new().unwrap()),
            at_target: target.run(|| Nftables::new().unwrap()),
            source,
            target,
            peer,
            switch,
            adopted,
        }
    }

    fn connection(&self, address: IpAddr) -> Connection {
        Connection::new(&self.source, &self.peer, address)
    }

    /// Locks a flow on the source and, as its future owner does, on the target.
    fn lock(&self, connection: &Connection) -> (LockGuard, LockGuard) {
        let flow = [connection.flow()];
        let at_target = self.at_target.lock(&flow, LEASE).unwrap();
        (self.at_source.lock(&flow, LEASE).unwrap(), at_target)
    }

    fn redirect(&self, guard: LockGuard, target: IpAddr) -> Redirect {
        let peer = guard.flows()[0].remote().ip();
        let hop = self.at_source.next_hop(target, peer).unwrap();
        guard.redirect(&hop, LEASE).unwrap()
    }
}

/// Waits until a segment with data of this flow is there.
fn data_from(capture: &mut Capture, peer: SocketAddr) {
    eventually("data of the flow", || {
        let data = |segment: &Segment| segment.from == peer && segment.flags & PSH != 0;
        capture.segments().iter().any(data).then_some(())
    });
}

/// What this host is silent for.
fn gone(host: &Host) -> String {
    let list = || {
        Command::new("nft")
            .args(["list", "map", "inet", "tcpmig", "gone4"])
            .output()
    };
    String::from_utf8(host.run(list).unwrap().stdout).unwrap()
}

/// Sends a segment that the receiver would not take.
fn inject(host: &Host, flags: u8, from: SocketAddr, to: SocketAddr) {
    injector(host, flags, from, to)();
}
