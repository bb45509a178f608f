//! Where packets of redirected flows come in: by other devices than routes suggest, through bridges, before filters.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::capture::{Capture, PSH, RST, Segment};
use common::net::{Connection, Host, eventually, expect, expect_nothing, send, switch};
use common::{ip, isolated};
use tcpmig_lock::address::Adopted;
use tcpmig_lock::{LockError, Locker, Nftables};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);

struct Net {
    source: Host,
    target: Host,
    peer: Host,
    #[allow(dead_code)] // Held.
    switch: Host,
    #[allow(dead_code)] // Held.
    adopted: [Adopted; 2],
}

/// Service address and target address of each family.
fn families() -> [[IpAddr; 2]; 2] {
    [
        [ip("10.0.0.1"), ip("10.0.0.2")],
        [ip("2001:db8::1"), ip("2001:db8::2")],
    ]
}

impl Net {
    fn new() -> Self {
        let (source, target, peer) = (Host::new(), Host::new(), Host::new());
        let switch = switch(&[(&source, 3), (&target, 2), (&peer, 9)]);
        let adopted = families().map(|[service, _]| target.run(|| Adopted::new(service).unwrap()));
        Self {
            source,
            target,
            peer,
            switch,
            adopted,
        }
    }

    /// Gives the source the address of the service, on `eth0`.
    fn serve(&self) {
        self.source.ip("address add 10.0.0.1/24 dev eth0");
        self.source.ip("address add 2001:db8::1/64 dev eth0 nodad");
    }

    /// Gives the source its addresses, on this device only.
    fn addresses(&self, device: &str) {
        for address in ["10.0.0.3/24", "10.0.0.1/24"] {
            self.source
                .ip(&format!("address add {address} dev {device}"));
        }
        for address in ["2001:db8::3/64", "2001:db8::1/64"] {
            self.source
                .ip(&format!("address add {address} dev {device} nodad"));
        }
    }

    /// Redirects flows of both families; `after` is called when that is done.
    fn moves(&self, after: impl Fn()) {
        for [service, target] in families() {
            let locker = self.source.run(|| Nftables::new().unwrap());
            let at_target = self.target.run(|| Nftables::new().unwrap());
            let mut flow = Connection::new(&self.source, &self.peer, service);
            let mut neighbour = Connection::new(&self.source, &self.peer, service);
            flow.ping();
            let peer = flow.client.local_addr().unwrap();
            let _at_target = at_target.lock(&[flow.flow()], LEASE).unwrap();
            let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            let hop = locker.next_hop(target, peer.ip()).unwrap();
            let redirect = guard.redirect(&hop, LEASE).unwrap();
            after();
            let mut seen = Capture::new(&self.target);
            let mut answers = Capture::new(&self.peer);
            send(&mut flow.client, b'x');
            eventually("data of the flow arrives at the target", || {
                let data = |segment: &Segment| segment.from == peer && segment.flags & PSH != 0;
                seen.segments().iter().any(data).then_some(())
            });
            expect_nothing(&flow.server);
            let reset = |segment: &Segment| segment.to == peer && segment.flags & RST != 0;
            assert!(!answers.segments().iter().any(reset));
            redirect.end().unwrap();
            expect(&mut flow.server, b'x');
            neighbour.ping();
        }
    }
}

/// As Docker has it: packets pass the rules of `inet` before the bridge's own device sees them.
#[test]
fn through_a_bridge_that_filters() {
    isolated("through_a_bridge_that_filters", || {
        for settings in [
            "nf_call_iptables 1 nf_call_ip6tables 1",
            "nf_call_iptables 0 nf_call_ip6tables 0",
        ] {
            let net = Net::new();
            net.source.ip("address flush dev eth0");
            net.source
                .ip(&format!("link add br0 type bridge {settings}"));
            net.source.ip("link set br0 address 02:00:00:00:00:77");
            net.source.ip("link set eth0 master br0");
            net.source.ip("link set br0 up");
            net.addresses("br0");
            net.moves(|| {});
        }
    });
}

/// The answer goes another way than the question came.
#[test]
fn by_another_device_than_the_route_says() {
    isolated("by_another_device_than_the_route_says", || {
        let net = Net::new();
        net.serve();
        let peer = net.peer.path();
        net.source.ip(&format!(
            "link add eth1 type veth peer name eth1 netns {peer}"
        ));
        net.source.ip("link set eth1 up");
        net.source.ip("address add 2001:db8::1/128 dev eth1 nodad");
        net.peer.ip("link set eth1 up");
        for host in [&net.source, &net.peer] {
            host.wait_for("eth1");
        }
        net.peer.ip("route add 10.0.0.1 dev eth1 src 10.0.0.9");
        net.peer
            .ip("route add 2001:db8::1 dev eth1 src 2001:db8::9");
        net.moves(|| {});
    });
}

/// A filter that would drop what comes by another device has no say in what only passes.
#[test]
fn where_the_reverse_path_is_filtered() {
    isolated("where_the_reverse_path_is_filtered", || {
        let net = Net::new();
        net.serve();
        for host in [&net.source, &net.target] {
            host.sysctl("ipv4/conf/all/rp_filter", "1");
        }
        net.moves(|| {});
    });
}

#[test]
fn by_a_macvlan() {
    isolated("by_a_macvlan", || {
        let net = Net::new();
        net.source.ip("address flush dev eth0");
        net.source
            .ip("link add mac0 link eth0 type macvlan mode bridge");
        net.source.ip("link set mac0 up");
        net.addresses("mac0");
        net.moves(|| {});
    });
}

/// The path changes after the move, to a device that was not there.
#[test]
fn by_a_device_that_appears_later() {
    isolated("by_a_device_that_appears_later", || {
        let net = Net::new();
        net.serve();
        let [service, target] = families()[0];
        let locker = net.source.run(|| Nftables::new().unwrap());
        let at_target = net.target.run(|| Nftables::new().unwrap());
        let mut flow = Connection::new(&net.source, &net.peer, service);
        let peer = flow.client.local_addr().unwrap();
        let _at_target = at_target.lock(&[flow.flow()], LEASE).unwrap();
        let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        let hop = locker.next_hop(target, peer.ip()).unwrap();
        // Its guard is not needed for that.
        guard.redirect(&hop, LEASE).unwrap().detach();
        let other = net.peer.path();
        net.source.ip(&format!(
            "link add eth7 type veth peer name eth7 netns {other}"
        ));
        net.source.ip("link set eth7 up");
        net.peer.ip("link set eth7 up");
        for host in [&net.source, &net.peer] {
            host.wait_for("eth7");
        }
        net.peer.ip("route add 10.0.0.1 dev eth7 src 10.0.0.9");
        let mut seen = Capture::new(&net.target);
        send(&mut flow.client, b'x');
        eventually("data of the flow arrives at the target", || {
            let data = |segment: &Segment| segment.from == peer && segment.flags & PSH != 0;
            seen.segments().iter().any(data).then_some(())
        });
    });
}

/// Its packets never leave this host, and could not be answered by another one.
#[test]
fn a_peer_on_this_host_is_refused() {
    isolated("a_peer_on_this_host_is_refused", || {
        let net = Net::new();
        let locker = net.source.run(|| Nftables::new().unwrap());
        let error = locker.next_hop(ip("10.0.0.2"), ip("10.0.0.3")).unwrap_err();
        assert!(matches!(error, LockError::PeerIsLocal(_)), "{error}");
        assert!(error.to_string().contains("10.0.0.3"), "{error}");
    });
}

/// What carries a tag comes by the parent first. Needs a kernel with 8021q.
#[test]
#[ignore = "needs a kernel with VLANs"]
fn by_a_vlan() {
    isolated("by_a_vlan", || {
        let net = Net::new();
        for (host, number) in [(&net.source, 3), (&net.target, 2), (&net.peer, 9)] {
            host.ip("address flush dev eth0");
            host.ip("link add link eth0 name eth0.5 type vlan id 5");
            host.ip("link set eth0.5 up");
            if number != 3 {
                host.ip(&format!("address add 10.0.0.{number}/24 dev eth0.5"));
                host.ip(&format!(
                    "address add 2001:db8::{number}/64 dev eth0.5 nodad"
                ));
            }
        }
        net.addresses("eth0.5");
        net.moves(|| {});
    });
}
