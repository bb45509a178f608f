//! Many redirects at once, and what others see of them.

use super::*;

#[test]
fn more_redirects_than_there_is_room_for_are_refused_by_name() {
    isolated(
        "many::more_redirects_than_there_is_room_for_are_refused_by_name",
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
fn many_flows_are_redirected_in_one_call() {
    isolated("many::many_flows_are_redirected_in_one_call", || {
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

/// A packet that comes while the kernel commits a redirect makes an element of its own, which packets find first.
#[test]
fn packets_that_come_while_flows_are_redirected_do_not_mislead_those_after_them() {
    const NAME: &str =
        "many::packets_that_come_while_flows_are_redirected_do_not_mislead_those_after_them";
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
            let _ends = Ends(&over);
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
                    let shown = net.source.nft("list map netdev tcpmig hop4");
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
    isolated("many::sweep_and_nft_know_the_redirects", || {
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
    isolated(
        "many::many_flows_are_redirected_or_renewed_all_or_none",
        || {
            let net = Net::new();
            let [_, target, peer] = families()[0];
            let hop = net.at_source.next_hop(target, peer).unwrap();
            let flow =
                |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
            let flows: Vec<_> = (0..10_000)
                .map(|number| flow(number).parse().unwrap())
                .collect();
            let mut guard = net.at_source.lock(&flows, LEASE).unwrap();
            // The last, so that without privileges, in several batches, most are done before it fails.
            net.at_source.force_unlock(&flows[9999..]).unwrap();
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
        },
    );
}

#[test]
fn several_guards_go_on_together_and_one_that_cannot_hinders_no_other() {
    const TEST: &str = "many::several_guards_go_on_together_and_one_that_cannot_hinders_no_other";
    isolated(TEST, || {
        let net = Net::new();
        let [_, target, _] = families()[0];
        let [service, ..] = families()[0];
        let mut connections = [(); 4].map(|()| net.connection(service));
        let flows = connections.each_ref().map(Connection::flow);
        let locker = &net.at_source;
        // Of each flow: locked, redirected, or neither.
        let kinds = || {
            let entries = locker.list().unwrap();
            let kind = |flow| match entries.iter().find(|entry| entry.flow == flow) {
                Some(entry) if entry.kind == EntryKind::Lock => "lock",
                Some(_) => "redirect",
                None => "-",
            };
            flows.map(kind)
        };

        // Somebody has one of them.
        let other = locker.lock(&flows[2..3], LEASE).unwrap();
        let mut guards = LockGuard::lock_each(locker, &flows, LEASE);
        let refused = guards.remove(2);
        assert!(matches!(refused, Err(LockError::AlreadyLocked(flow)) if flow == flows[2]));
        let mut guards: Vec<_> = guards.into_iter().map(Result::unwrap).collect();
        assert_eq!(kinds(), ["lock"; 4]);
        other.unlock().unwrap();
        guards.extend(
            LockGuard::lock_each(locker, &flows[2..3], LEASE)
                .into_iter()
                .map(Result::unwrap),
        );

        // Those of the connections 0 and 1; the peer's packets reach the target.
        let hop = locker.next_hop(target, flows[0].remote().ip()).unwrap();
        let [first, second, ..] = &mut guards[..] else {
            panic!("four guards");
        };
        let redirects = LockGuard::redirect_each(&mut [first, second], &hop, LEASE);
        let redirects: Vec<_> = redirects.into_iter().map(Result::unwrap).collect();
        assert_eq!(kinds(), ["redirect", "redirect", "lock", "lock"]);
        // They hold nothing any more: the others of the same call do not mind.
        let mut rest = guards.split_off(2);
        let [ended] = &mut guards[..1] else { panic!() };
        let again = LockGuard::redirect_each(&mut [ended, &mut rest[0]], &hop, LEASE);
        let [Err(LockError::NotHeld(_)), Ok(third)] = &again[..] else {
            panic!("{again:?}");
        };
        assert_eq!(third.flows().len(), 1);
        for redirect in redirects {
            redirect.end().unwrap();
        }
        drop(again);
        assert_eq!(kinds(), ["-", "-", "lock", "-"]);

        // Locked again, and released together.
        drop(rest);
        let guards = LockGuard::lock_each(locker, &flows, LEASE);
        let guards: Vec<_> = guards.into_iter().map(Result::unwrap).collect();
        for unlocked in LockGuard::release_each(guards) {
            drop(unlocked.unwrap());
        }
        assert_eq!(locker.list().unwrap(), []);
        for connection in &mut connections {
            connection.ping();
        }
    });
}
