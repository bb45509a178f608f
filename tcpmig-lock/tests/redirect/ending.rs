//! How redirects end: by their leases, with their flows, and the silence behind them.

use super::*;

#[test]
fn a_redirect_has_a_lease() {
    isolated("ending::a_redirect_has_a_lease", || {
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
    isolated("ending::traffic_keeps_a_redirect_and_its_silence", || {
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
        guard.redirect(&hop, lease).unwrap().detach();
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

/// Nobody lives who would notice the end of the flow.
#[test]
fn the_silence_for_a_flow_ends_soon_after_it() {
    isolated("ending::the_silence_for_a_flow_ends_soon_after_it", || {
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
            guard.redirect(&hop, LEASE).unwrap().detach();
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
    isolated("ending::silence_for_nothing_is_listed_and_swept", || {
        let net = Net::new();
        for [service, target, peer] in families() {
            let [stale, moved] = [(); 2].map(|()| net.connection(service));
            let flows = [stale.flow(), moved.flow()];
            let holder = net.source.run(|| Nftables::new().unwrap());
            let _at_target = net.at_target.lock(&flows, LEASE).unwrap();
            let hop = holder.next_hop(target, peer).unwrap();
            let guard = holder.lock(&flows, LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().detach();
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
            net.at_source.end_redirects(&flows).unwrap();
        }
    });
}

#[test]
fn a_renewal_never_shortens_a_redirect() {
    isolated("ending::a_renewal_never_shortens_a_redirect", || {
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
fn a_flow_that_closes_takes_its_redirect_along() {
    isolated(
        "ending::a_flow_that_closes_takes_its_redirect_along",
        || {
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
        },
    );
}

#[test]
fn a_redirect_that_ended_before_its_rules_were_removed_is_not_held() {
    isolated(
        "ending::a_redirect_that_ended_before_its_rules_were_removed_is_not_held",
        || {
            let net = Net::new();
            let [service, target, peer] = families()[0];
            let flow = net.connection(service).flow();
            let hop = net.at_source.next_hop(target, peer).unwrap();
            let short = Duration::from_millis(100);
            let guard = net.at_source.lock(&[flow], LEASE).unwrap();
            let mut redirect = guard.redirect(&hop, short).unwrap();
            // By the kernel's clock, and by that of the handle, which counts a little longer.
            let over = Instant::now() + short * 10;
            eventually("its lease ends", || {
                let none = net.at_source.list().unwrap().is_empty();
                (none && Instant::now() > over).then_some(())
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
        "ending::traffic_after_one_end_has_closed_keeps_the_redirect",
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
            redirect.detach();
            return None;
        }
        assert_eq!(entries.len(), 1, "after {:?}", start.elapsed());
    }
    send(&mut flow.client, b'x');
    data_from(&mut seen, address);
    redirect.detach();
    Some(())
}

#[test]
fn a_new_connection_with_the_same_ports_ends_the_silence() {
    isolated(
        "ending::a_new_connection_with_the_same_ports_ends_the_silence",
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
                guard.redirect(&hop, LEASE).unwrap().detach();
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

/// A handle that has seen no redirect does not look for one when it ends a lock, until it sees one.
#[test]
fn a_release_ends_what_others_have_redirected_since() {
    isolated(
        "ending::a_release_ends_what_others_have_redirected_since",
        || {
            let net = Net::new();
            let [service, target, peer] = families()[0];
            let [first, second] = [(); 2].map(|()| net.connection(service).flow());
            // From here on it watches, and there is none.
            let watching = &net.at_source;
            watching.lock(&[first], LEASE).unwrap().release().unwrap();
            let other = net.source.run(|| Nftables::new().unwrap());
            let hop = other.next_hop(target, peer).unwrap();
            let guard = other.lock(&[second], LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().detach();
            assert_eq!(watching.list().unwrap().len(), 1);
            watching.lock(&[second], LEASE).unwrap().release().unwrap();
            assert_eq!(watching.list().unwrap(), []);
            // One that begins to watch when there is one already.
            let guard = other.lock(&[second], LEASE).unwrap();
            guard.redirect(&hop, LEASE).unwrap().detach();
            let late = net.source.run(|| Nftables::new().unwrap());
            late.lock(&[second], LEASE).unwrap().release().unwrap();
            assert_eq!(watching.list().unwrap(), []);
        },
    );
}
