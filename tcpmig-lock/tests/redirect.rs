//! Redirects: the packets of one flow are sent on, this host stays silent for it, and its neighbours stay.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::capture::{ACK, Capture, FIN, PSH, RST, Segment};
use common::net::{Connection, Host, expect, expect_nothing, send, switch};
use common::{eventually, injector, isolated, slowed};
use tcpmig_lock::address::Adopted;
use tcpmig_lock::{EntryKind, LockError, LockGuard, Locker, NextHop, Nftables, NoLock, Redirect};

const LEASE: Duration = Duration::from_secs(60);

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

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Service address, target address and peer address of each family.
fn families() -> [[IpAddr; 3]; 2] {
    [
        [ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.9")],
        [ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8::9")],
    ]
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

#[test]
fn a_redirected_flow_arrives_at_the_target_and_its_neighbours_stay() {
    isolated(
        "a_redirected_flow_arrives_at_the_target_and_its_neighbours_stay",
        || {
            let net = Net::new();
            for [service, target, _] in families() {
                let mut flow = net.connection(service);
                let mut neighbour = net.connection(service);
                flow.ping();
                let peer = flow.client.local_addr().unwrap();
                let mut seen = Capture::new(&net.target);
                let mut answers = Capture::new(&net.peer);
                let (guard, _at_target) = net.lock(&flow);
                let redirect = net.redirect(guard, target);
                send(&mut flow.client, b'x');
                // What this host would send for the flow, with its socket still open, does not leave.
                send(&mut flow.server, b's');
                data_from(&mut seen, peer);
                neighbour.ping();
                expect_nothing(&flow.server);
                expect_nothing(&flow.client);
                // Nobody answered for the flow, and no segment of the neighbour came along.
                let answered = answers
                    .segments()
                    .into_iter()
                    .any(|segment| segment.to == peer || segment.flags & RST != 0);
                assert!(!answered);
                let neighbour_port = neighbour.client.local_addr().unwrap().port();
                for segment in seen.segments() {
                    assert_ne!(segment.from.port(), neighbour_port);
                }

                let entries = net.at_source.list().unwrap();
                assert_eq!(entries.len(), 1);
                assert_eq!(entries[0].flow, flow.flow());
                let kind = EntryKind::Redirect {
                    address: target,
                    device: "eth0".to_owned(),
                };
                assert_eq!(entries[0].kind, kind);

                // Nothing was lost: after the redirect the same connection goes on here.
                redirect.end().unwrap();
                expect(&mut flow.server, b'x');
                expect(&mut flow.client, b's');
                assert_eq!(net.at_source.list().unwrap(), []);
            }
        },
    );
}

#[test]
fn redirects_that_are_split_end_one_by_one_also_by_their_flows() {
    isolated(
        "redirects_that_are_split_end_one_by_one_also_by_their_flows",
        || {
            let net = Net::new();
            let [service, target, peer] = families()[0];
            let mut flows: Vec<_> = (0..3).map(|_| net.connection(service)).collect();
            let all: Vec<_> = flows.iter().map(Connection::flow).collect();
            let hop = net.at_source.next_hop(target, peer).unwrap();
            let guard = net.at_source.lock(&all, LEASE).unwrap();
            let redirect = guard.redirect(&hop, LEASE).unwrap();
            let mut parts = redirect.split().unwrap();
            let held = || {
                let mut held = net.at_source.list().unwrap();
                held.sort_by_key(|entry| all.iter().position(|flow| *flow == entry.flow));
                held.into_iter().map(|entry| entry.flow).collect::<Vec<_>>()
            };
            assert_eq!(held(), all);
            parts.remove(0).end().unwrap();
            assert_eq!(held(), all[1..]);
            flows[0].ping();
            for part in &mut parts {
                part.renew(LEASE).unwrap();
            }
            // Whoever has no guard of it knows the flow.
            net.at_source.end_redirects(&all[1..2]).unwrap();
            assert_eq!(held(), all[2..]);
            flows[1].ping();
            let gone = parts.remove(0).renew(LEASE);
            assert!(matches!(gone, Err(LockError::NotHeld(flow)) if flow == all[1]));
            net.at_source.end_redirects(&all).unwrap();
            assert_eq!(held(), []);
            flows[2].ping();
        },
    );
}

#[test]
fn without_a_socket_the_source_says_nothing() {
    isolated("without_a_socket_the_source_says_nothing", || {
        let net = Net::new();
        let [service, target, _] = families()[0];
        let mut flow = net.connection(service);
        let mut neighbour = net.connection(service);
        flow.ping();
        let peer = flow.client.local_addr().unwrap();
        let mut seen = Capture::new(&net.target);
        let mut answers = Capture::new(&net.peer);
        let (guard, _at_target) = net.lock(&flow);
        let redirect = net.redirect(guard, target);
        // Unread data makes the kernel send RST at once, and the peer's segments would draw more.
        drop(flow.server);
        send(&mut flow.client, b'x');
        data_from(&mut seen, peer);
        neighbour.ping();
        let said = answers
            .segments()
            .into_iter()
            .find(|segment| segment.to == peer);
        assert_eq!(said, None);
        redirect.leave();
        assert_eq!(net.at_source.list().unwrap().len(), 1);
    });
}

#[test]
fn a_flow_that_comes_back_is_locked_and_released() {
    isolated("a_flow_that_comes_back_is_locked_and_released", || {
        let net = Net::new();
        for [service, target, _] in families() {
            let mut flow = net.connection(service);
            let mut neighbour = net.connection(service);
            let peer = flow.client.local_addr().unwrap();
            let (guard, at_target) = net.lock(&flow);
            let redirect = net.redirect(guard, target);

            // The lock here does not stop the forwarding.
            let guard = net.at_source.lock(&[flow.flow()], LEASE).unwrap();
            let mut seen = Capture::new(&net.target);
            send(&mut flow.client, b'x');
            data_from(&mut seen, peer);
            // Given up: still redirected.
            guard.unlock().unwrap();
            neighbour.ping();
            expect_nothing(&flow.server);

            let guard = net.at_source.lock(&[flow.flow()], LEASE).unwrap();
            assert_eq!(net.at_source.list().unwrap().len(), 2);
            guard.release().unwrap();
            expect(&mut flow.server, b'x');
            flow.ping();
            assert_eq!(net.at_source.list().unwrap(), []);

            // The old guard does not touch a newer redirect of the flow.
            let guard = net.at_source.lock(&[flow.flow()], LEASE).unwrap();
            let newer = net.redirect(guard, target);
            let mut redirect = redirect;
            assert!(matches!(redirect.renew(LEASE), Err(LockError::NotHeld(_))));
            drop(redirect);
            assert_eq!(net.at_source.list().unwrap().len(), 1);
            net.at_source.end_redirect(&[flow.flow()]).unwrap();
            net.at_source.end_redirect(&[flow.flow()]).unwrap();
            assert_eq!(net.at_source.list().unwrap(), []);
            newer.end().unwrap();
            at_target.unlock().unwrap();
        }
    });
}

#[test]
fn a_redirect_has_a_lease() {
    isolated("a_redirect_has_a_lease", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let mut flow = net.connection(service);
        let (guard, _at_target) = net.lock(&flow);
        let hop = net.at_source.next_hop(target, peer).unwrap();
        let mut redirect = guard
            .redirect(&hop, slowed(Duration::from_secs(1)))
            .unwrap();
        redirect.check().unwrap();
        send(&mut flow.client, b'x');
        expect(&mut flow.server, b'x');
        assert_eq!(net.at_source.list().unwrap(), []);
        for ended in [redirect.check(), redirect.renew(LEASE)] {
            assert!(matches!(ended, Err(LockError::NotHeld(_))), "{ended:?}");
        }
        redirect.end().unwrap();
    });
}

/// A lease that is shorter than the time between two looks, kept up by what comes: nobody renews it.
#[test]
fn traffic_keeps_a_redirect_and_its_silence() {
    isolated("traffic_keeps_a_redirect_and_its_silence", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        // Longer than a busy machine sends nothing.
        let lease = slowed(Duration::from_secs(2));
        let idle = net.connection(service);
        let flow = net.connection(service);
        let address = flow.client.local_addr().unwrap();
        let flows = [flow.flow(), idle.flow()];
        let _at_target = net.at_target.lock(&flows, LEASE).unwrap();
        // The holder is gone, as after `tcpmig dump`.
        let holder = net.source.run(|| Nftables::new().unwrap());
        let hop = holder.next_hop(target, peer).unwrap();
        let guard = holder.lock(&flows, LEASE).unwrap();
        guard.redirect(&hop, lease).unwrap().leave();
        drop(holder);
        let start = Instant::now();
        while start.elapsed() < lease * 3 {
            inject(&net.peer, ACK, address, flow.flow().local());
            std::thread::sleep(Duration::from_millis(20));
            let entries = net.at_source.list().unwrap();
            assert!(
                entries.iter().any(|entry| entry.flow == flows[0]),
                "after {:?}: {entries:?}",
                start.elapsed()
            );
            let silent = gone(&net.source);
            assert!(silent.contains(&address.port().to_string()), "{silent}");
        }
        let entries = net.at_source.list().unwrap();
        assert_eq!(entries.len(), 1, "{entries:?}");
        eventually("it ends when nothing more comes", || {
            net.at_source.list().unwrap().is_empty().then_some(())
        });
        assert!(!gone(&net.source).contains("elements"));
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

/// Nobody lives who would notice the end of the flow.
#[test]
fn the_silence_for_a_flow_ends_soon_after_it() {
    isolated("the_silence_for_a_flow_ends_soon_after_it", || {
        let net = Net::new();
        let closing = slowed(Duration::from_millis(300));
        for [service, target, peer] in families() {
            let holder = net
                .source
                .run(|| Nftables::new().unwrap().closing_time(closing).unwrap());
            let listener = net
                .source
                .run(|| std::net::TcpListener::bind((service, 0)).unwrap());
            let to = listener.local_addr().unwrap();
            let Connection { server, client } = Connection::to(&listener, &net.peer, to);
            let (local, remote) = (to, client.local_addr().unwrap());
            let flow = tcpmig_lock::FourTuple::new(local, remote).unwrap();
            let _at_target = net.at_target.lock(&[flow], LEASE).unwrap();
            let hop = holder.next_hop(target, peer).unwrap();
            let guard = holder.lock(&[flow], LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().leave();
            drop(holder);
            for socket in [&client, &server] {
                let socket = socket2::SockRef::from(socket);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(client);
            drop(server);
            drop(listener);
            eventually("all of it ends", || {
                net.at_source.list().unwrap().is_empty().then_some(())
            });
            // This host can use the port again, towards the same peer.
            let theirs = net.peer.run(|| {
                use socket2::{Domain, Socket, Type};
                let socket = Socket::new(Domain::for_address(remote), Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&remote.into()).unwrap();
                socket.listen(1).unwrap();
                socket
            });
            let ours = net.source.run(|| {
                use socket2::{Domain, Socket, Type};
                let socket = Socket::new(Domain::for_address(local), Type::STREAM, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&local.into()).unwrap();
                socket
                    .connect_timeout(&remote.into(), Duration::from_secs(10))
                    .unwrap();
                socket
            });
            drop((theirs, ours));
        }
    });
}

/// The redirect of a flow is lost and the silence for it is not, as where somebody removes the one table.
#[test]
fn silence_for_nothing_is_listed_and_swept() {
    isolated("silence_for_nothing_is_listed_and_swept", || {
        let net = Net::new();
        for [service, target, peer] in families() {
            let [stale, moved] = [(); 2].map(|()| net.connection(service));
            let flows = [stale.flow(), moved.flow()];
            let holder = net.source.run(|| Nftables::new().unwrap());
            let _at_target = net.at_target.lock(&flows, LEASE).unwrap();
            let hop = holder.next_hop(target, peer).unwrap();
            let guard = holder.lock(&flows, LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().leave();
            drop(holder);
            let v = if service.is_ipv4() { 4 } else { 6 };
            let (remote, local) = (flows[0].remote(), flows[0].local());
            let key = format!(
                "{} . {} . {} . {}",
                remote.ip(),
                remote.port(),
                local.ip(),
                local.port()
            );
            for map in ["device", "hop"] {
                let script = format!("delete element netdev tcpmig {map}{v} {{ {key} }}");
                let run = || Command::new("nft").arg(&script).output().unwrap();
                let output = net.source.run(run);
                assert!(output.status.success(), "{output:?}");
            }
            let entries = net.at_source.list().unwrap();
            let kind = |flow| entries.iter().find(|entry| entry.flow == flow).unwrap();
            assert_eq!(kind(flows[0]).kind, EntryKind::Silent, "{entries:?}");
            assert!(kind(flows[0]).remaining > LEASE / 2);
            assert!(matches!(kind(flows[1]).kind, EntryKind::Redirect { .. }));
            assert_eq!(net.at_source.sweep().unwrap().flows, flows[..1]);
            assert_eq!(net.at_source.sweep().unwrap().flows, []);
            let entries = net.at_source.list().unwrap();
            assert_eq!(entries.len(), 1, "what is alive stays: {entries:?}");
            let Connection {
                mut server,
                mut client,
            } = stale;
            send(&mut client, b'x');
            expect(&mut server, b'x');
            send(&mut server, b'y');
            expect(&mut client, b'y');
            net.at_source.end_redirect(&flows).unwrap();
        }
    });
}

#[test]
fn more_redirects_than_there_is_room_for_are_refused_by_name() {
    isolated(
        "more_redirects_than_there_is_room_for_are_refused_by_name",
        || {
            const LIMIT: u32 = 1 << 18;
            let net = Net::new();
            let [_, target, peer] = families()[0];
            let flow = |n: u32| {
                let [_, high, middle, low] = n.to_be_bytes();
                format!("10.0.0.1:80,10.{high}.{middle}.{low}:1025")
                    .parse()
                    .unwrap()
            };
            let hop = net.at_source.next_hop(target, peer).unwrap();
            let numbers: Vec<u32> = (0x0001_0000..0x0001_0000 + LIMIT).collect();
            let mut redirects: Vec<Redirect> = numbers
                .chunks(1 << 14)
                .map(|part| {
                    let flows: Vec<_> = part.iter().map(|n| flow(*n)).collect();
                    let guard = net.at_source.lock(&flows, LEASE * 60).unwrap();
                    guard.redirect(&hop, LEASE * 60).unwrap()
                })
                .collect();
            let more = [flow(1), flow(2)];
            let mut guard = net.at_source.lock(&more, LEASE).unwrap();
            let error = guard.try_redirect(&hop, LEASE).unwrap_err();
            assert!(
                matches!(error, LockError::TooMany { limit: LIMIT }),
                "{error}"
            );
            let text = error.to_string();
            for said in ["262144", "tcpmig locks", "move others when"] {
                assert!(text.contains(said), "{text}");
            }
            // They stay locked, and can go when others have ended.
            redirects.pop().unwrap().end().unwrap();
            let redirect = eventually("there is room", || guard.try_redirect(&hop, LEASE).ok());
            assert_eq!(redirect.flows(), more);
        },
    );
}

#[test]
fn a_renewal_never_shortens_a_redirect() {
    isolated("a_renewal_never_shortens_a_redirect", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let mut flow = net.connection(service);
        let (guard, _at_target) = net.lock(&flow);
        let hop = net.at_source.next_hop(target, peer).unwrap();
        let mut redirect = guard.redirect(&hop, LEASE).unwrap();
        let short = Duration::from_millis(300);
        for lease in [short, LEASE * 2, short] {
            redirect.renew(lease).unwrap();
            redirect.check().unwrap();
        }
        let mut seen = Capture::new(&net.target);
        std::thread::sleep(short * 2);
        let entries = net.at_source.list().unwrap();
        assert!(entries[0].remaining > LEASE, "{entries:?}");
        send(&mut flow.client, b'x');
        data_from(&mut seen, flow.client.local_addr().unwrap());
    });
}

#[test]
fn a_lock_that_ended_is_not_redirected() {
    isolated("a_lock_that_ended_is_not_redirected", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let connections = [(); 3].map(|()| net.connection(service));
        let flows = connections.each_ref().map(Connection::flow);
        let mut guard = net.at_source.lock(&flows, LEASE).unwrap();
        net.at_source.release(&flows[1..2]).unwrap();
        let hop = net.at_source.next_hop(target, peer).unwrap();
        let error = guard.try_redirect(&hop, LEASE).unwrap_err();
        assert!(
            matches!(error, LockError::NotHeld(flow) if flow == flows[1]),
            "{error}"
        );
        // None was redirected, and the others are locked as before.
        let entries = net.at_source.list().unwrap();
        assert_eq!(entries.len(), 2);
        assert!(entries.iter().all(|entry| entry.kind == EntryKind::Lock));
        // Consumed by a failed redirect, the locks stay.
        guard.redirect(&hop, LEASE).unwrap_err();
        assert_eq!(net.at_source.list().unwrap().len(), 2);
    });
}

#[test]
fn what_cannot_be_redirected_is_refused_and_stays_locked() {
    isolated(
        "what_cannot_be_redirected_is_refused_and_stays_locked",
        || {
            let net = Net::new();
            let [[service, target, peer], [_, target6, _]] = families();
            let flow = net.connection(service);
            let (mut guard, _at_target) = net.lock(&flow);
            let hop = net.at_source.next_hop(target, peer).unwrap();
            let other_family = NextHop {
                address: target6,
                ..hop.clone()
            };
            let error = guard.try_redirect(&other_family, LEASE).unwrap_err();
            assert!(matches!(error, LockError::HopFamily { .. }), "{error}");
            for (device, ingress) in [("none0", "eth0"), ("eth0", "none0")] {
                let hop = NextHop {
                    device: device.to_owned(),
                    ingress: ingress.to_owned(),
                    ..hop.clone()
                };
                let error = guard.try_redirect(&hop, LEASE).unwrap_err();
                assert!(
                    matches!(&error, LockError::NoDevice(name) if name == "none0"),
                    "{error}"
                );
            }
            assert_eq!(net.at_source.list().unwrap()[0].kind, EntryKind::Lock);
            let mut unlocked = NoLock.lock(&[flow.flow()], LEASE).unwrap();
            let error = unlocked.try_redirect(&hop, LEASE).unwrap_err();
            assert!(
                matches!(error, LockError::Unsupported { locker: "none", .. }),
                "{error}"
            );
        },
    );
}

/// A flow that comes back is for a moment redirected by both hosts to each other.
#[test]
fn what_the_target_sends_back_is_let_in_and_captured() {
    isolated("what_the_target_sends_back_is_let_in_and_captured", || {
        let net = Net::new();
        let capturing = net
            .source
            .run(|| Nftables::new().unwrap().capturing(1 << 20).unwrap());
        let own = [ip("10.0.0.3"), ip("2001:db8::3")];
        for ([service, target, peer], own) in families().into_iter().zip(own) {
            let mut flow = net.connection(service);
            flow.ping();
            // It is refused; then the source knows the target's link-layer address.
            let known = net.source.run(|| UdpSocket::bind((own, 0)).unwrap());
            known.connect((target, 9)).unwrap();
            known.send(b"?").unwrap();
            known.recv(&mut [0]).unwrap_err();
            let at_target = net.at_target.lock(&[flow.flow()], LEASE).unwrap();
            let hop = capturing.next_hop(target, peer).unwrap();
            let guard = capturing.lock(&[flow.flow()], LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().leave();
            let mut lock = capturing.lock(&[flow.flow()], LEASE).unwrap();
            let hop = net.at_target.next_hop(own, peer).unwrap();
            let back = at_target.redirect(&hop, LEASE).unwrap();
            send(&mut flow.client, b'x');
            let packet = eventually("the packet is captured", || {
                lock.captured().unwrap().packets.into_iter().next()
            });
            assert_eq!(packet.octets.last(), Some(&b'x'));
            // Nobody has to say so when it is over here.
            back.end().unwrap();
            lock.release().unwrap();
            expect(&mut flow.server, b'x');
        }
    });
}

#[test]
fn a_flow_that_closes_takes_its_redirect_along() {
    isolated("a_flow_that_closes_takes_its_redirect_along", || {
        let net = Net::new();
        let closing = Duration::from_millis(700);
        let locker = net
            .source
            .run(|| Nftables::new().unwrap().closing_time(closing).unwrap());
        for [service, target, peer] in families() {
            for abort in [false, true] {
                let mut open = net.connection(service);
                let flow = net.connection(service);
                let mut seen = Capture::new(&net.target);
                let flows = [flow.flow(), open.flow()];
                let _at_target = net.at_target.lock(&flows, LEASE).unwrap();
                let hop = locker.next_hop(target, peer).unwrap();
                let guard = locker.lock(&flows, LEASE).unwrap();
                let mut redirect = guard.redirect(&hop, LEASE).unwrap();
                assert_eq!(redirect.closed().unwrap(), []);
                if abort {
                    socket2::SockRef::from(&flow.client)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                }
                let ends = flow.client.local_addr().unwrap();
                drop(flow.client);
                eventually("its end is seen at the target", || {
                    let end = |segment: &Segment| {
                        segment.from == ends && segment.flags & (FIN | RST) != 0
                    };
                    seen.segments().iter().any(end).then_some(())
                });
                assert_eq!(redirect.closed().unwrap(), [flows[0]]);
                let entries = locker.list().unwrap();
                assert_eq!(entries.len(), 2);
                for entry in entries {
                    assert_eq!(entry.closing, entry.flow == flows[0], "{entry:?}");
                    assert_eq!(entry.remaining <= closing, entry.closing, "{entry:?}");
                }
                // Renewing leaves it alone.
                redirect.renew(LEASE).unwrap();
                let entries = locker.list().unwrap();
                let mine = entries.iter().find(|entry| entry.flow == flows[0]).unwrap();
                assert!(mine.remaining <= closing, "{mine:?}");
                if abort {
                    eventually("its redirect ends", || {
                        (locker.list().unwrap().len() == 1).then_some(())
                    });
                } else {
                    // The peer asks for an answer to its FIN again and again, and each time prolongs the redirect;
                    // its retransmissions are soon further apart than that.
                    eventually("its redirect ends", || {
                        (locker.list().unwrap().len() == 1).then_some(())
                    });
                }
                // The other stays, and renewing goes on.
                redirect.renew(LEASE).unwrap();
                assert_eq!(redirect.closed().unwrap(), [flows[0]]);
                send(&mut open.client, b'x');
                data_from(&mut seen, open.client.local_addr().unwrap());
                redirect.end().unwrap();
                assert_eq!(locker.list().unwrap(), []);
                expect(&mut open.server, b'x');
            }
        }
    });
}

#[test]
fn a_redirect_that_ended_before_its_rules_were_removed_is_not_held() {
    isolated(
        "a_redirect_that_ended_before_its_rules_were_removed_is_not_held",
        || {
            let net = Net::new();
            let [service, target, peer] = families()[0];
            let flow = net.connection(service).flow();
            let hop = net.at_source.next_hop(target, peer).unwrap();
            let short = Duration::from_millis(100);
            let guard = net.at_source.lock(&[flow], LEASE).unwrap();
            let mut redirect = guard.redirect(&hop, short).unwrap();
            eventually("its lease ends", || {
                net.at_source.list().unwrap().is_empty().then_some(())
            });
            let flush = || Command::new("nft").args(["flush", "ruleset"]).status();
            assert!(net.source.run(flush).unwrap().success());
            // Whoever counts on it takes it again.
            let error = redirect.renew(LEASE).unwrap_err();
            assert!(
                matches!(error, LockError::NotHeld(ended) if ended == flow),
                "{error}"
            );
            let guard = net.at_source.lock(&[flow], LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().end().unwrap();
        },
    );
}

#[test]
fn traffic_after_one_end_has_closed_keeps_the_redirect() {
    isolated(
        "traffic_after_one_end_has_closed_keeps_the_redirect",
        || {
            let net = Net::new();
            let closing = Duration::from_secs(2);
            let locker = net
                .source
                .run(|| Nftables::new().unwrap().closing_time(closing).unwrap());
            // A busy machine may send nothing for as long as that, and then it ends rightly: once more.
            eventually("nothing but the test ends it", || {
                traffic_keeps_the_redirect(&net, &locker, closing)
            });
        },
    );
}

/// `None` if there was none for the closing time.
fn traffic_keeps_the_redirect(net: &Net, locker: &Nftables, closing: Duration) -> Option<()> {
    let [service, target, peer] = families()[0];
    let mut flow = net.connection(service);
    let address = flow.client.local_addr().unwrap();
    let _at_target = net.at_target.lock(&[flow.flow()], LEASE).unwrap();
    let hop = locker.next_hop(target, peer).unwrap();
    let mut seen = Capture::new(&net.target);
    let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
    let redirect = guard.redirect(&hop, Duration::from_secs(2)).unwrap();
    let start = Instant::now();
    let (mut sent, mut pause) = (start, Duration::ZERO);
    // A forged RST: the connection lives on, and its segments come more often than the redirect would end.
    inject(&net.peer, RST, address, flow.flow().local());
    eventually("the end is seen", || {
        let entries = locker.list().unwrap();
        entries
            .first()
            .is_none_or(|entry| entry.closing)
            .then_some(())
    });
    while start.elapsed() < closing * 2 {
        pause = pause.max(sent.elapsed());
        sent = Instant::now();
        // The target does not answer here, and so the peer's kernel would soon send less.
        inject(&net.peer, ACK, address, flow.flow().local());
        std::thread::sleep(Duration::from_millis(50));
        // Past the lease, too.
        let entries = locker.list().unwrap();
        if entries.is_empty() && pause.max(sent.elapsed()) >= closing {
            redirect.leave();
            return None;
        }
        assert_eq!(entries.len(), 1, "after {:?}", start.elapsed());
    }
    send(&mut flow.client, b'x');
    data_from(&mut seen, address);
    redirect.leave();
    Some(())
}

/// Sends a segment that the receiver would not take.
fn inject(host: &Host, flags: u8, from: SocketAddr, to: SocketAddr) {
    injector(host, flags, from, to)();
}

fn nft_lists(host: &Host, what: &str) -> String {
    let output = host.run(|| {
        let mut command = Command::new("nft");
        command.arg("list").args(what.split(' ')).output().unwrap()
    });
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_new_connection_with_the_same_ports_ends_the_silence() {
    isolated(
        "a_new_connection_with_the_same_ports_ends_the_silence",
        || {
            let net = Net::new();
            let closing = Duration::from_millis(50);
            let locker = net
                .source
                .run(|| Nftables::new().unwrap().closing_time(closing).unwrap());
            for [service, target, peer] in families() {
                let listener = net
                    .source
                    .run(|| std::net::TcpListener::bind((service, 0)).unwrap());
                let to = listener.local_addr().unwrap();
                let flow = Connection::to(&listener, &net.peer, to);
                let from = flow.client.local_addr().unwrap();
                let at_target = net.at_target.lock(&[flow.flow()], LEASE).unwrap();
                let hop = locker.next_hop(target, peer).unwrap();
                let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
                guard.redirect(&hop, LEASE).unwrap().leave();
                // The connection is not here any more.
                let Connection { server, client } = flow;
                for socket in [&client, &server] {
                    let socket = socket2::SockRef::from(socket);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                }
                drop(client);
                eventually("its redirect ends", || {
                    locker.list().unwrap().is_empty().then_some(())
                });
                drop(server);
                at_target.unlock().unwrap();
                // The holder is gone; the silence for the flow is not.
                let again = net.peer.run(|| {
                    use socket2::{Domain, Socket, Type};
                    let socket =
                        Socket::new(Domain::for_address(from), Type::STREAM, None).unwrap();
                    socket.set_reuse_address(true).unwrap();
                    socket.bind(&from.into()).unwrap();
                    socket
                        .connect_timeout(&to.into(), Duration::from_secs(120))
                        .unwrap();
                    socket
                });
                let mut accepted = listener.accept().unwrap().0;
                again.send(b"x").unwrap();
                expect(&mut accepted, b'x');
            }
        },
    );
}

#[test]
fn a_device_that_went_and_came_again_is_hooked_again() {
    isolated("a_device_that_went_and_came_again_is_hooked_again", || {
        let net = Net::new();
        let [service, target, _] = families()[0];
        let flow = net.connection(service);
        let (guard, at_target) = net.lock(&flow);
        drop(net.redirect(guard, target));
        at_target.unlock().unwrap();
        drop(flow);
        net.source.ip("link delete eth0");
        net.switch.ip(&format!(
            "link add again type veth peer name eth0 netns {}",
            net.source.path()
        ));
        net.switch.ip("link set again master br0 up");
        common::net::address(&net.source, 3);
        net.source.wait_for("eth0");
        net.source.ip("address add 10.0.0.1/24 dev eth0");
        net.peer.ip("neighbour flush all");
        let mut flow = net.connection(service);
        let (guard, _at_target) = net.lock(&flow);
        let _redirect = net.redirect(guard, target);
        let mut seen = Capture::new(&net.target);
        send(&mut flow.client, b'x');
        data_from(&mut seen, flow.client.local_addr().unwrap());
    });
}

#[test]
fn many_flows_are_redirected_in_one_call() {
    isolated("many_flows_are_redirected_in_one_call", || {
        let net = Net::new();
        let [_, target, peer] = families()[0];
        let hop = net.at_source.next_hop(target, peer).unwrap();
        for count in [1, 1000, 10_000] {
            let flow =
                |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
            let flows: Vec<_> = (0..count)
                .map(|number| flow(number).parse().unwrap())
                .collect();
            let guard = net.at_source.lock(&flows, LEASE).unwrap();
            let start = Instant::now();
            let redirect = guard.redirect(&hop, LEASE).unwrap();
            println!("{count} flows: redirect {:?}", start.elapsed());
            assert_eq!(net.at_source.list().unwrap().len(), flows.len());
            let again = net.at_source.lock(&flows, LEASE).unwrap();
            let start = Instant::now();
            again.release().unwrap();
            println!("{count} flows: release {:?}", start.elapsed());
            assert_eq!(net.at_source.list().unwrap(), []);
            redirect.end().unwrap();
        }
    });
}

/// Set when it is dropped, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A packet that comes while the kernel commits a redirect makes an element of its own, which packets find first.
#[test]
fn packets_that_come_while_flows_are_redirected_do_not_mislead_those_after_them() {
    const NAME: &str =
        "packets_that_come_while_flows_are_redirected_do_not_mislead_those_after_them";
    isolated(NAME, || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let hop = net.at_source.next_hop(target, peer).unwrap();
        let flow = net.connection(service);
        let ends = (flow.client.local_addr().unwrap(), flow.flow().local());
        // The more there are, the longer the kernel takes; a slow one takes long enough for few.
        let count = 1000 / slowed(Duration::from_secs(1)).as_secs() as u16;
        let other = |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
        let mut flows: Vec<_> = (0..count)
            .map(|number| other(number).parse().unwrap())
            .collect();
        flows.insert(flows.len() / 2, flow.flow());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Over(&over);
            scope.spawn(|| {
                let send = injector(&net.peer, ACK, ends.0, ends.1);
                while !over.load(Ordering::Relaxed) {
                    send();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            let mut doubles = 0;
            for _ in 0..10 {
                let guard = net.at_source.lock(&flows, LEASE).unwrap();
                let mut redirect = guard.redirect(&hop, LEASE).unwrap();
                let port = ends.0.port().to_string();
                let elements = || {
                    let shown = nft_lists(&net.source, "map netdev tcpmig hop4");
                    let lines = shown.lines().filter(|line| line.contains(&port));
                    lines.map(str::to_owned).collect::<Vec<String>>()
                };
                doubles += usize::from(elements().len() > 1);
                eventually("there is one, and it is right", || {
                    let elements = elements();
                    let is_right = elements.len() == 1 && elements[0].contains(&target.to_string());
                    is_right.then_some(())
                });
                redirect.check().unwrap();
                redirect.end().unwrap();
                eventually("there is none", || {
                    let none = elements().is_empty() && !gone(&net.source).contains(&port);
                    none.then_some(())
                });
            }
            println!("{doubles} of 10 had a double at first");
        });
    });
}

#[test]
fn sweep_and_nft_know_the_redirects() {
    isolated("sweep_and_nft_know_the_redirects", || {
        let net = Net::new();
        let [service, target, _] = families()[0];
        let flow = net.connection(service);
        let (guard, _at_target) = net.lock(&flow);
        let redirect = net.redirect(guard, target);
        assert!(net.at_source.sweep().unwrap().is_empty());
        let output = net.source.run(|| {
            Command::new("nft")
                .args(["list", "ruleset"])
                .output()
                .unwrap()
        });
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        println!("{text}");
        assert!(text.contains("map @hop4 device ip saddr"), "{text}");
        redirect.end().unwrap();
        let swept = net.at_source.sweep().unwrap();
        assert_eq!(swept.structures, ["inet tcpmig", "netdev tcpmig"]);
    });
}

#[test]
fn many_flows_are_redirected_or_renewed_all_or_none() {
    isolated("many_flows_are_redirected_or_renewed_all_or_none", || {
        let net = Net::new();
        let [_, target, peer] = families()[0];
        let hop = net.at_source.next_hop(target, peer).unwrap();
        let flow = |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
        let flows: Vec<_> = (0..10_000)
            .map(|number| flow(number).parse().unwrap())
            .collect();
        let mut guard = net.at_source.lock(&flows, LEASE).unwrap();
        // The last, so that without privileges, in several batches, most are done before it fails.
        net.at_source.release(&flows[9999..]).unwrap();
        let error = guard.try_redirect(&hop, LEASE * 10).unwrap_err();
        assert!(
            matches!(error, LockError::NotHeld(flow) if flow == flows[9999]),
            "{error}"
        );
        let error = guard.renew(LEASE * 10).unwrap_err();
        assert!(
            matches!(error, LockError::NotHeld(flow) if flow == flows[9999]),
            "{error}"
        );
        let entries = net.at_source.list().unwrap();
        assert_eq!(entries.len(), 9999);
        for entry in entries {
            assert_eq!(entry.kind, EntryKind::Lock);
            assert!(entry.remaining <= LEASE, "{entry:?}");
        }
        guard.unlock().unwrap();
        assert_eq!(net.at_source.list().unwrap(), []);
    });
}

#[test]
fn a_source_with_no_other_address_needs_accept_local_on_the_target() {
    isolated(
        "a_source_with_no_other_address_needs_accept_local_on_the_target",
        || {
            let net = Net::new();
            let [service, target, _] = families()[0];
            net.source.ip("address delete 10.0.0.3/24 dev eth0");
            net.source.ip("address replace 10.0.0.1/24 dev eth0");
            net.target.sysctl("ipv4/conf/eth0/accept_local", "1");
            let mut flow = net.connection(service);
            let (guard, _at_target) = net.lock(&flow);
            let _redirect = net.redirect(guard, target);
            let mut seen = Capture::new(&net.target);
            send(&mut flow.client, b'x');
            data_from(&mut seen, flow.client.local_addr().unwrap());
        },
    );
}
