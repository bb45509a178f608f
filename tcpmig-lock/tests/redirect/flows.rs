//! What becomes of the packets of a redirected flow.

use super::*;

#[test]
fn a_redirected_flow_arrives_at_the_target_and_its_neighbours_stay() {
    isolated(
        "flows::a_redirected_flow_arrives_at_the_target_and_its_neighbours_stay",
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
        "flows::redirects_that_are_split_end_one_by_one_also_by_their_flows",
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
    isolated("flows::without_a_socket_the_source_says_nothing", || {
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
        redirect.detach();
        assert_eq!(net.at_source.list().unwrap().len(), 1);
    });
}

#[test]
fn a_flow_that_comes_back_is_locked_and_released() {
    isolated(
        "flows::a_flow_that_comes_back_is_locked_and_released",
        || {
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
                net.at_source.end_redirects(&[flow.flow()]).unwrap();
                net.at_source.end_redirects(&[flow.flow()]).unwrap();
                assert_eq!(net.at_source.list().unwrap(), []);
                newer.end().unwrap();
                at_target.unlock().unwrap();
            }
        },
    );
}

#[test]
fn a_lock_that_ended_is_not_redirected() {
    isolated("flows::a_lock_that_ended_is_not_redirected", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let connections = [(); 3].map(|()| net.connection(service));
        let flows = connections.each_ref().map(Connection::flow);
        let mut guard = net.at_source.lock(&flows, LEASE).unwrap();
        net.at_source.force_unlock(&flows[1..2]).unwrap();
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
        "flows::what_cannot_be_redirected_is_refused_and_stays_locked",
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
    isolated(
        "flows::what_the_target_sends_back_is_let_in_and_captured",
        || {
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
                guard.redirect(&hop, LEASE).unwrap().detach();
                let mut lock = capturing.lock(&[flow.flow()], LEASE).unwrap();
                let hop = net.at_target.next_hop(own, peer).unwrap();
                let back = at_target.redirect(&hop, LEASE).unwrap();
                send(&mut flow.client, b'x');
                let packet = eventually("the packet is captured", || {
                    lock.captured().unwrap().packets.into_iter().next()
                });
                assert_eq!(packet.bytes.last(), Some(&b'x'));
                // Nobody has to say so when it is over here.
                back.end().unwrap();
                lock.release().unwrap();
                expect(&mut flow.server, b'x');
            }
        },
    );
}

#[test]
fn a_device_that_went_and_came_again_is_hooked_again() {
    isolated(
        "flows::a_device_that_went_and_came_again_is_hooked_again",
        || {
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
        },
    );
}

#[test]
fn a_source_with_no_other_address_needs_accept_local_on_the_target() {
    isolated(
        "flows::a_source_with_no_other_address_needs_accept_local_on_the_target",
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

/// What a locker does before its first lock needs no call before it.
#[test]
fn a_new_handle_gets_ready_and_tells_what_is_redirected() {
    isolated(
        "flows::a_new_handle_gets_ready_and_tells_what_is_redirected",
        || {
            let net = Net::new();
            for [service, target, peer] in families() {
                let connection = net.connection(service);
                let flow = connection.flow();
                let other = net.source.run(|| Nftables::new().unwrap());
                assert!(!other.redirects(&flow).unwrap());
                let new = net.source.run(|| Nftables::new().unwrap());
                let hop = new.next_hop(target, peer).unwrap();
                new.get_ready(&hop, LEASE).unwrap();
                let (guard, _at_target) = net.lock(&connection);
                assert!(!other.redirects(&flow).unwrap(), "it is locked");
                let redirect = net.redirect(guard, target);
                // Whoever made it.
                assert!(other.redirects(&flow).unwrap());
                assert!(net.at_source.redirects(&flow).unwrap());
                assert!(!net.at_target.redirects(&flow).unwrap());
                // Also by what any locker does that does not look for one flow.
                let listed = other.list().unwrap();
                assert!(listed.iter().any(|entry| entry.flow == flow));
                redirect.end().unwrap();
                assert!(!other.redirects(&flow).unwrap());
            }
        },
    );
}
