//! Capture: what arrives for a locked flow is handed over, whole, in order, and to nobody else.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::capture::Capture;
use common::net::{Connection, Host, expect, expect_nothing};
use common::{Ends, addresses, eventually, hosts, isolated, slowed};
use tcpmig_lock::{
    EntryKind, FourTuple, LockError, LockGuard, Locker, NextHop, Nftables, NoLock, Packet, Redirect,
};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);
const BUFFER: usize = 8 << 20;

fn capturing(host: &Host, buffer: usize) -> Nftables {
    host.run(|| Nftables::new().unwrap().capturing(buffer).unwrap())
}

/// Bytes after the headers; the tests' packets have no IP options or extension headers.
fn payload(packet: &Packet) -> &[u8] {
    let ip = if packet.flow.is_ipv4() { 20 } else { 40 };
    let tcp = usize::from(packet.bytes[ip + 12] >> 4) * 4;
    &packet.bytes[ip + tcp..]
}

/// Asks until packets with so many bytes of data in all are there.
fn packets(guard: &mut LockGuard, bytes: usize) -> Vec<Packet> {
    let mut packets = Vec::new();
    eventually("the packets", || {
        let captured = guard.captured().unwrap();
        assert!(!captured.overflowed);
        packets.extend(captured.packets);
        let there: usize = packets.iter().map(|packet| payload(packet).len()).sum();
        (there >= bytes).then_some(())
    });
    packets
}

#[test]
fn what_arrives_is_captured_byte_for_byte_and_in_order() {
    isolated(
        "what_arrives_is_captured_byte_for_byte_and_in_order",
        || {
            let (server, client) = hosts();
            let locker = capturing(&server, BUFFER);
            for address in addresses() {
                let mut flow = Connection::new(&server, &client, address);
                let mut neighbour = Connection::new(&server, &client, address);
                flow.ping();
                let mut wire = Capture::new(&server);
                let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
                assert_eq!(guard.captured().unwrap().packets, []);
                // Four times: the first three are small, the last is as much as a window lets out at once.
                let data: Vec<u8> = (0..60_000u32)
                    .map(|at| at as u8 ^ (at >> 8) as u8)
                    .collect();
                for part in [0..1, 1..3, 3..103, 103..data.len()] {
                    flow.client.write_all(&data[part]).unwrap();
                }
                // Nor is what the locked end sends among the packets.
                flow.server.write_all(b"unheard").unwrap();
                neighbour.ping();
                let first = guard.captured().unwrap();
                assert!(!first.overflowed);
                let mut packets = first.packets;
                let sent: Vec<Vec<u8>> = wire.packets_from(flow.flow().remote());
                packets.extend(guard.captured().unwrap().packets);
                let captured: Vec<&[u8]> = packets.iter().map(|packet| &*packet.bytes).collect();
                assert!(captured.len() >= 4 && captured.len() >= sent.len());
                assert_eq!(captured[..sent.len()], sent);
                assert!(packets.iter().all(|packet| packet.flow == flow.flow()));
                let largest = captured.iter().map(|bytes| bytes.len()).max().unwrap();
                assert!(
                    largest > 5000,
                    "no joined segments, the largest packet is {largest}"
                );
                let mut stream = Vec::new();
                for packet in &packets[..sent.len()] {
                    stream.extend_from_slice(payload(packet));
                }
                assert_eq!(stream, data[..stream.len()]);
                expect_nothing(&flow.server);
                expect_nothing(&flow.client);
                guard.unlock().unwrap();
                // The connection goes on, and nothing of it is captured.
                expect(&mut flow.server, data[0]);
            }
        },
    );
}

#[test]
fn what_was_dropped_is_there_at_once() {
    isolated("what_was_dropped_is_there_at_once", || {
        let (server, client) = hosts();
        let locker = capturing(&server, BUFFER);
        let mut times = Vec::new();
        for _ in 0..10 {
            let mut flow = Connection::new(&server, &client, addresses()[0]);
            let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            // Less than a new connection may send without an answer.
            for _ in 0..5 {
                let start = Instant::now();
                flow.client.write_all(b"x").unwrap();
                while guard.captured().unwrap().packets.is_empty() {
                    assert!(start.elapsed() < Duration::from_secs(120));
                }
                times.push(start.elapsed());
            }
        }
        times.sort_unstable();
        println!("from send to captured: {:?}, {:?}", times[0], times[25]);
    });
}

#[test]
fn each_lock_has_its_own_packets_whoever_asks_first() {
    isolated("each_lock_has_its_own_packets_whoever_asks_first", || {
        let (server, client) = hosts();
        let (one, two) = (capturing(&server, BUFFER), capturing(&server, BUFFER));
        let mut flows: Vec<_> = (0..4)
            .map(|number| Connection::new(&server, &client, addresses()[number % 2]))
            .collect();
        let lockers = [&one, &one, &two, &two];
        let mut guards: Vec<_> = lockers
            .iter()
            .zip(&flows)
            .map(|(locker, flow)| locker.lock(&[flow.flow()], LEASE).unwrap())
            .collect();
        for (number, flow) in flows.iter_mut().enumerate() {
            flow.client.write_all(&vec![b'x'; 10 + number]).unwrap();
        }
        for (number, guard) in guards.iter_mut().enumerate().rev() {
            let packets = packets(guard, 10 + number);
            assert!(packets.iter().all(|packet| packet.flow == guard.flows()[0]));
            assert_eq!(payload(&packets[0]), vec![b'x'; 10 + number]);
        }
        // Across handles a flow is locked once, in whichever way it is.
        let plain = server.run(|| Nftables::new().unwrap());
        for locker in [&one, &two, &plain] {
            for flow in &flows {
                let error = locker.lock(&[flow.flow()], LEASE).unwrap_err();
                assert!(
                    matches!(error, LockError::AlreadyLocked(locked) if locked == flow.flow()),
                    "{error}"
                );
            }
        }
    });
}

#[test]
fn a_lock_that_is_split_has_its_packets_split() {
    isolated("a_lock_that_is_split_has_its_packets_split", || {
        let (server, client) = hosts();
        let locker = capturing(&server, BUFFER);
        let mut flows: Vec<_> = (0..4)
            .map(|number| Connection::new(&server, &client, addresses()[number % 2]))
            .collect();
        let all: Vec<_> = flows.iter().map(Connection::flow).collect();
        let guard = locker.lock(&all, LEASE).unwrap();
        let write = |flows: &mut [Connection], from: usize| {
            for (number, flow) in flows.iter_mut().enumerate() {
                flow.client.write_all(&vec![b'x'; from + number]).unwrap();
            }
        };
        write(&mut flows, 10);
        let mut guards = guard.split().unwrap();
        write(&mut flows, 20);
        assert_eq!(guards.len(), all.len());
        for (number, guard) in guards.iter_mut().enumerate().rev() {
            assert_eq!(guard.flows(), &all[number..=number]);
            // Before the split, and after it; retransmissions of either may be among them.
            let packets = packets(guard, 30 + 2 * number);
            assert!(packets.iter().all(|packet| packet.flow == all[number]));
            assert_eq!(payload(&packets[0]), vec![b'x'; 10 + number]);
        }
        // Each goes its own way.
        let hop = NextHop {
            device: "eth0".to_owned(),
            address: "10.0.0.7".parse().unwrap(),
            ingress: "eth0".to_owned(),
        };
        let mut first = guards.remove(0);
        let redirect = first.try_redirect(&hop, LEASE).unwrap();
        let second = guards.remove(0);
        second.unlock().unwrap();
        expect(&mut flows[1].server, b'x');
        let mut held: Vec<_> = locker.list().unwrap();
        held.sort_by_key(|entry| all.iter().position(|flow| *flow == entry.flow));
        let flows_held: Vec<_> = held.iter().map(|entry| entry.flow).collect();
        assert_eq!(flows_held, [all[0], all[2], all[3]]);
        assert!(held[1..].iter().all(|entry| entry.kind == EntryKind::Lock));
        drop(guards);
        redirect.end().unwrap();
        assert_eq!(locker.list().unwrap(), []);
    });
}

#[test]
fn a_new_lock_has_nothing_of_an_older_one() {
    isolated("a_new_lock_has_nothing_of_an_older_one", || {
        let (server, client) = hosts();
        let locker = capturing(&server, BUFFER);
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        flow.client.write_all(b"old").unwrap();
        neighbour.ping();
        guard.unlock().unwrap();
        expect(&mut flow.server, b'o');
        let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        flow.client.write_all(b"new").unwrap();
        let packets = packets(&mut guard, 3);
        assert_eq!(payload(&packets[0]), b"new");
    });
}

#[test]
fn after_a_redirect_what_came_before_is_there_and_nothing_else() {
    isolated(
        "after_a_redirect_what_came_before_is_there_and_nothing_else",
        || {
            let (server, client) = hosts();
            let locker = capturing(&server, BUFFER);
            let mut flow = Connection::new(&server, &client, addresses()[0]);
            let mut neighbour = Connection::new(&server, &client, addresses()[0]);
            let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            flow.client.write_all(b"one").unwrap();
            assert_eq!(payload(&packets(&mut guard, 3)[0]), b"one");
            flow.client.write_all(b"two").unwrap();
            neighbour.ping();
            let hop = NextHop {
                device: "eth0".to_owned(),
                address: "10.0.0.7".parse().unwrap(),
                ingress: "eth0".to_owned(),
            };
            let mut redirect: Redirect = guard.try_redirect(&hop, LEASE).unwrap();
            assert!(matches!(guard.captured(), Err(LockError::NotHeld(_))));
            flow.client.write_all(b"three").unwrap();
            neighbour.ping();
            let captured = redirect.captured().unwrap();
            assert_eq!(payload(&captured.packets[0]), b"two");
            assert!(captured.packets.iter().all(|packet| {
                // Retransmissions of what came before may be among them.
                !payload(packet).ends_with(b"three")
            }));
            assert_eq!(redirect.captured().unwrap().packets, []);
        },
    );
}

#[test]
fn a_buffer_that_is_too_small_is_noticed() {
    isolated("a_buffer_that_is_too_small_is_noticed", || {
        let (server, client) = hosts();
        // Too small for the packets' bytes; and for what the kernel needs beside them.
        for (buffer, size) in [(1, 700), (3000, 1)] {
            let locker = capturing(&server, buffer);
            let mut flow = Connection::new(&server, &client, addresses()[0]);
            let mut neighbour = Connection::new(&server, &client, addresses()[0]);
            let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            for _ in 0..20 {
                flow.client.write_all(&vec![b'x'; size]).unwrap();
            }
            neighbour.ping();
            let captured = guard.captured().unwrap();
            assert!(captured.overflowed, "{} packets", captured.packets.len());
            // The lock holds all the same, and the next answer says nothing of a loss before it.
            expect_nothing(&flow.server);
            assert!(!guard.captured().unwrap().overflowed);
        }
    });
}

#[test]
fn guards_that_do_not_capture_say_so() {
    isolated("guards_that_do_not_capture_say_so", || {
        let flow: FourTuple = "10.0.0.1:80,10.0.0.9:1025".parse().unwrap();
        let locker = Nftables::new().unwrap();
        for mut guard in [
            locker.lock(&[flow], LEASE).unwrap(),
            NoLock.lock(&[flow], LEASE).unwrap(),
        ] {
            let error = guard.captured().unwrap_err();
            assert!(matches!(error, LockError::Unsupported { .. }), "{error}");
        }
    });
}

#[test]
fn a_lease_that_ended_is_told() {
    isolated("a_lease_that_ended_is_told", || {
        let flow: FourTuple = "10.0.0.1:80,10.0.0.9:1025".parse().unwrap();
        let locker = Nftables::new().unwrap().capturing(BUFFER).unwrap();
        let lease = slowed(Duration::from_secs(1));
        let mut guard = locker.lock(&[flow], lease).unwrap();
        assert_eq!(guard.captured().unwrap().packets, []);
        let error = eventually("the lease ends", || guard.captured().err());
        assert!(matches!(error, LockError::NotHeld(ended) if ended == flow));
    });
}

#[test]
fn a_table_made_again_by_others_captures_again() {
    isolated("a_table_made_again_by_others_captures_again", || {
        let (server, client) = hosts();
        let locker = capturing(&server, BUFFER);
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        drop(locker.lock(&[flow.flow()], LEASE).unwrap());
        server.run(|| {
            let nft = Command::new("nft").args(["flush", "ruleset"]).status();
            assert!(nft.unwrap().success());
            Nftables::new().unwrap().prepare().unwrap();
        });
        let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
        flow.client.write_all(b"x").unwrap();
        assert_eq!(payload(&packets(&mut guard, 1)[0]), b"x");
    });
}

/// The process that tests start beside themselves: this binary once more, with this variable.
const HOLDER: &str = "TCPMIG_LOCK_TEST_CAPTURING";

/// Locks a flow, says so, and prints what arrives for it, if it is this process that is to do that.
fn be_holder() {
    let Ok(flow) = std::env::var(HOLDER) else {
        return;
    };
    let locker = Nftables::new().unwrap().capturing(BUFFER).unwrap();
    let flow = flow.parse().unwrap();
    let mut guard = locker.lock(&[flow], LEASE).unwrap();
    println!("locked");
    loop {
        for packet in guard.captured().unwrap().packets {
            println!("captured {}", String::from_utf8_lossy(payload(&packet)));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn holder(test: &str, host: &Host, flow: FourTuple) -> (Child, impl Iterator<Item = String>) {
    let mut child = host.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(HOLDER, flow.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let out = BufReader::new(child.stdout.take().unwrap());
    let mut lines = out.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("locked")));
    (child, lines)
}

#[test]
fn each_process_has_its_own_packets() {
    be_holder();
    const NAME: &str = "each_process_has_its_own_packets";
    isolated(NAME, || {
        let (server, client) = hosts();
        let locker = capturing(&server, BUFFER);
        let mut mine = Connection::new(&server, &client, addresses()[0]);
        let mut theirs = Connection::new(&server, &client, addresses()[0]);
        let (mut child, mut lines) = holder(NAME, &server, theirs.flow());
        let mut guard = locker.lock(&[mine.flow()], LEASE).unwrap();
        mine.client.write_all(b"mine").unwrap();
        theirs.client.write_all(b"theirs").unwrap();
        assert_eq!(payload(&packets(&mut guard, 4)[0]), b"mine");
        let first = lines.find(|line| line.starts_with("captured"));
        assert_eq!(first.unwrap(), "captured theirs");
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn a_killed_process_is_swept_and_its_lock_holds() {
    be_holder();
    const NAME: &str = "a_killed_process_is_swept_and_its_lock_holds";
    isolated(NAME, || {
        let (server, client) = hosts();
        let mut flow = Connection::new(&server, &client, addresses()[0]);
        let mut neighbour = Connection::new(&server, &client, addresses()[0]);
        let (mut child, _lines) = holder(NAME, &server, flow.flow());
        let locker = capturing(&server, BUFFER);
        locker.prepare().unwrap();
        let chains = |swept: Vec<String>| -> usize {
            swept
                .iter()
                .filter(|name| name.contains("capture-"))
                .count()
        };
        assert_eq!(chains(locker.sweep().unwrap().structures), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        // One, not that of this handle, and from any network namespace.
        let swept = client.run(|| locker.sweep().unwrap());
        assert_eq!(chains(swept.structures), 1);
        assert_eq!(chains(locker.sweep().unwrap().structures), 0);

        flow.client.write_all(b"x").unwrap();
        neighbour.ping();
        expect_nothing(&flow.server);
        let error = locker.lock(&[flow.flow()], LEASE).unwrap_err();
        assert!(matches!(error, LockError::AlreadyLocked(_)), "{error}");
        // What this handle captures, it still does.
        let mut guard = locker.lock(&[neighbour.flow()], LEASE).unwrap();
        neighbour.client.write_all(b"y").unwrap();
        assert_eq!(payload(&packets(&mut guard, 1)[0]), b"y");
    });
}

#[test]
fn a_handle_takes_its_chain_along() {
    isolated("a_handle_takes_its_chain_along", || {
        let host = Host::new();
        let flow: FourTuple = "10.0.0.1:80,10.0.0.9:1025".parse().unwrap();
        let other = capturing(&host, BUFFER);
        let guard = other.lock(&[flow], LEASE).unwrap();
        // The guard is what keeps it.
        drop(other);
        let text = || {
            let output = host.run(|| Command::new("nft").args(["list", "ruleset"]).output());
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        assert!(text().contains("chain capture-"), "{}", text());
        assert!(text().contains("goto capture-"), "{}", text());
        guard.detach();
        assert!(!text().contains("chain capture-"), "{}", text());
        assert!(!text().contains("goto capture-"), "{}", text());
        assert!(text().contains("10.0.0.9 . 1025"), "{}", text());
    });
}

/// How many packets a counter of the table `count` has seen.
fn counted(host: &Host, counter: &str) -> usize {
    let output = host.run(|| {
        let arguments = ["list", "counter", "inet", "count", counter];
        Command::new("nft").args(arguments).output().unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words.nth(1).expect("a counter").parse().unwrap()
}

#[test]
fn what_arrives_while_the_lock_ends_passes_or_is_handed_over() {
    isolated(
        "what_arrives_while_the_lock_ends_passes_or_is_handed_over",
        || {
            let (server, client) = hosts();
            let locker = capturing(&server, BUFFER);
            let flow = Connection::new(&server, &client, addresses()[0]);
            let port = flow.flow().local().port();
            let rules = format!(
                "table inet count {{ counter came {{ }}; counter passed {{ }}; \
                 chain p {{ type filter hook prerouting priority -500; tcp dport {port} counter name came; }}; \
                 chain i {{ type filter hook input priority 500; tcp dport {port} counter name passed drop; }}; }}"
            );
            let done = server.run(|| Command::new("nft").arg(rules).status().unwrap());
            assert!(done.success());
            let over = AtomicBool::new(false);
            let is_over = || over.load(Ordering::Relaxed);
            let (mut captured, mut late) = (0, 0);
            let mut ended = Vec::new();
            std::thread::scope(|scope| {
                let _ends = Ends(&over);
                scope.spawn(|| {
                    let send =
                        common::injector(&client, 0x10, flow.flow().remote(), flow.flow().local());
                    while !is_over() {
                        (0..8).for_each(|_| send());
                        // A slow machine has to do something else, too.
                        std::thread::sleep(Duration::from_micros(50));
                    }
                });
                for _ in 0..300 / slowed(Duration::from_secs(1)).as_secs() {
                    let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
                    let mut of_this = 0;
                    eventually("packets arrive", || {
                        let packets = guard.captured().unwrap();
                        assert!(!packets.overflowed);
                        of_this += packets.packets.len();
                        (of_this > 0).then_some(())
                    });
                    captured += of_this;
                    let mut unlocked = guard.unlocked().unwrap();
                    late += unlocked.captured().unwrap().packets.len();
                    ended.push(unlocked);
                }
            });
            // All have come, and what another processor was dropping is there.
            let still = ended
                .iter_mut()
                .map(|unlocked| unlocked.captured().unwrap().packets.len());
            let still: usize = still.sum();
            println!(
                "{captured} captured, {late} more when the lock had ended, {still} a moment later"
            );
            let (came, passed) = (counted(&server, "came"), counted(&server, "passed"));
            assert_eq!(came - passed, captured + late + still);
        },
    );
}
