//! What others do to the tables while locks and redirects are in use.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::capture::{Capture, RST};
use common::net::{Connection, Host, expect, expect_nothing, send, switch};
use common::{Ends, eventually, families, isolated, slowed};
use socket2::{Domain, Protocol, Socket, Type};
use tcpmig_lock::address::Adopted;
use tcpmig_lock::{Entry, EntryKind, Event, LockError, Locker, Nftables};

/// No test takes that long, on any machine.
const LEASE: Duration = Duration::from_secs(1200);

/// A switch with the source, the target, which is silent, and the peer.
struct Net {
    source: Host,
    target: Host,
    peer: Host,
    locker: Nftables,
    told: Receiver<String>,
    #[allow(dead_code)] // Held.
    switch: Host,
    #[allow(dead_code)] // Held.
    adopted: [Adopted; 2],
}

fn telling(host: &Host) -> (Nftables, Receiver<String>) {
    let (tell, told) = channel();
    let locker = host
        .run(|| Nftables::new().unwrap())
        .on_event(move |event| {
            let text = match event {
                Event::Restored {
                    locks, redirects, ..
                } => format!("{locks} {redirects}"),
                other => other.to_string(),
            };
            println!("{event}");
            let _ = tell.send(text);
        });
    (locker, told)
}

impl Net {
    fn new() -> Self {
        let (source, target, peer) = (Host::new(), Host::new(), Host::new());
        let switch = switch(&[(&source, 3), (&target, 2), (&peer, 9)]);
        source.ip("address add 10.0.0.1/24 dev eth0");
        source.ip("address add 2001:db8::1/64 dev eth0 nodad");
        let adopted = families().map(|[service, ..]| target.run(|| Adopted::new(service).unwrap()));
        // What arrives there is dropped, as by the future owner's lock.
        target.nft("add table inet silent");
        target.nft("add chain inet silent in { type filter hook prerouting priority -300; }");
        target.nft("add rule inet silent in tcp dport 1-65535 drop");
        let (locker, told) = telling(&source);
        Self {
            locker,
            told,
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

    /// For segments from the peer that its kernel knows nothing of.
    fn raw(&self) -> Socket {
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        self.peer.run(open)
    }

    /// What the rules of the source are, without leases.
    fn rules(&self) -> Vec<String> {
        let mut text = String::new();
        for table in ["inet tcpmig", "netdev tcpmig"] {
            let list = || {
                Command::new("nft")
                    .arg(format!("list table {table}"))
                    .output()
            };
            // It may not be there.
            text += &String::from_utf8(self.source.run(list).unwrap().stdout).unwrap();
        }
        let lease = |line: &&str| !line.contains("expires") && !line.contains("elements");
        let mut rules: Vec<_> = text.lines().filter(lease).map(str::to_owned).collect();
        rules.retain(|line| !line.trim_start().starts_with('}'));
        rules.sort();
        rules
    }

    /// Has the rules lost in this way, and waits until they are as before and until so many locks and redirects are told.
    /// One loss may be told more than once, because it may be seen in two parts; what was told of the one before may be
    /// heard now.
    fn loses(&self, loss: &str, text: &str) {
        let (rules, held) = (self.rules(), self.locker.list().unwrap().len());
        self.source.nft(loss);
        eventually("everything is there again", || {
            let same = self.locker.list().unwrap().len() == held && self.rules() == rules;
            same.then_some(())
        });
        let mut left = counts(text);
        while left.iter().any(|count| *count > 0) {
            let told = self.told.recv_timeout(Duration::from_secs(60));
            let told = counts(&told.expect("all of it is told"));
            for (left, told) in left.iter_mut().zip(told) {
                *left = left.saturating_sub(told);
            }
        }
    }
}

/// How many locks, and how many redirects.
fn counts(text: &str) -> [usize; 2] {
    let (locks, redirects) = text.split_once(' ').expect("two numbers");
    [locks, redirects].map(|count| count.parse().expect("a number"))
}

/// Sends an empty segment.
fn acknowledge(socket: &Socket, [from, to]: [SocketAddr; 2]) {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        panic!("IPv4 only");
    };
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = common::capture::ACK;
    let pseudo = [[0, 6, 0, 20], from.ip().octets(), to.ip().octets()].concat();
    let bytes = [pseudo.as_slice(), &segment].concat();
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let to = SocketAddr::from((*to.ip(), 0));
    socket.send_to(&segment, &to.into()).unwrap();
}

/// The ways in which rules of this crate are lost: by a firewall that starts again, and by people.
const LOSSES: [&str; 6] = [
    "flush ruleset",
    "add table inet host; flush ruleset; add table inet host",
    "delete table inet tcpmig",
    "flush table inet tcpmig",
    "flush table inet tcpmig; flush table netdev tcpmig",
    "delete table inet tcpmig; delete table netdev tcpmig",
];

#[test]
fn what_somebody_removes_is_set_up_again() {
    isolated("what_somebody_removes_is_set_up_again", || {
        let net = Net::new();
        for [service, target, peer] in families() {
            for loss in LOSSES {
                println!("{loss}");
                let mut locked = net.connection(service);
                let mut moved = net.connection(service);
                let mut neighbour = net.connection(service);
                let lock = net.locker.lock(&[locked.flow()], LEASE).unwrap();
                let hop = net.locker.next_hop(target, peer).unwrap();
                let guard = net.locker.lock(&[moved.flow()], LEASE).unwrap();
                let redirect = guard.redirect(&hop, LEASE * 2).unwrap();
                net.loses(loss, "1 1");
                let mut answers = Capture::new(&net.peer);
                let mut seen = Capture::new(&net.target);
                send(&mut locked.client, b'l');
                send(&mut locked.server, b'l');
                send(&mut moved.client, b'm');
                send(&mut moved.server, b'm');
                let from = moved.client.local_addr().unwrap();
                eventually("the moved one arrives at the target", || {
                    let mine = |segment: &common::capture::Segment| segment.from == from;
                    seen.segments().iter().any(mine).then_some(())
                });
                neighbour.ping();
                expect_nothing(&locked.server);
                expect_nothing(&locked.client);
                expect_nothing(&moved.server);
                expect_nothing(&moved.client);
                let reset = |segment: &common::capture::Segment| segment.flags & RST != 0;
                assert!(!answers.segments().iter().any(reset));
                // With what is left of the leases, and the guards still hold.
                for entry in net.locker.list().unwrap() {
                    // Traffic prolongs a redirect by up to a quarter more than its lease.
                    let is_lock = entry.flow == locked.flow();
                    let (lease, most) = if is_lock {
                        (LEASE, LEASE)
                    } else {
                        (LEASE * 2, LEASE * 5 / 2)
                    };
                    assert!(entry.remaining <= most, "{entry:?}");
                    assert!(entry.remaining > lease / 2, "{entry:?}");
                }
                assert_eq!(net.locker.list().unwrap().len(), 2);
                let mut lock = lock;
                lock.renew(LEASE).unwrap();
                lock.unlock().unwrap();
                redirect.end().unwrap();
                expect(&mut locked.server, b'l');
                expect(&mut locked.client, b'l');
                expect(&mut moved.server, b'm');
                expect(&mut moved.client, b'm');
                assert_eq!(net.locker.list().unwrap(), []);
            }
        }
    });
}

/// A firewall that is started again each few milliseconds, under traffic of a flow that has no socket here.
#[test]
fn what_guards_left_to_its_lease_is_set_up_again() {
    isolated("what_guards_left_to_its_lease_is_set_up_again", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let mut moved = net.connection(service);
        let hop = net.locker.next_hop(target, peer).unwrap();
        let guard = net.locker.lock(&[moved.flow()], LEASE).unwrap();
        guard.redirect(&hop, LEASE).unwrap().detach();
        let left = net.connection(service);
        net.locker.lock(&[left.flow()], LEASE).unwrap().detach();
        let from = moved.client.local_addr().unwrap();
        let ends = [from, moved.server.local_addr().unwrap()];
        let segments = net.raw();
        for _ in 0..20 {
            net.loses("flush ruleset", "1 1");
            let mut seen = Capture::new(&net.target);
            eventually("it arrives at the target", || {
                acknowledge(&segments, ends);
                let mine = |segment: &common::capture::Segment| segment.from == from;
                seen.segments().iter().any(mine).then_some(())
            });
        }
        // What has ended is not re-created.
        net.locker
            .force_unlock(&[moved.flow(), left.flow()])
            .unwrap();
        net.source.nft("flush ruleset");
        let lock = net.locker.lock(&[left.flow()], LEASE).unwrap();
        assert_eq!(net.locker.list().unwrap().len(), 1);
        drop(lock);
        send(&mut moved.client, b'm');
        expect(&mut moved.server, b'm');
    });
}

#[test]
fn what_another_process_ends_is_not_made_again() {
    isolated("what_another_process_ends_is_not_made_again", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let connections = [(); 3].map(|()| net.connection(service));
        let flows = connections.each_ref().map(Connection::flow);
        let mut locks = net.locker.lock(&flows[..1], LEASE).unwrap();
        let hop = net.locker.next_hop(target, peer).unwrap();
        let guard = net.locker.lock(&flows[1..2], LEASE).unwrap();
        let mut redirect = guard.redirect(&hop, LEASE).unwrap();
        let _kept = net.locker.lock(&flows[2..], LEASE).unwrap();
        // An operator, or the one who takes a connection that comes back.
        let (other, _) = telling(&net.source);
        other.force_unlock(&flows[..1]).unwrap();
        let back = other.lock(&flows[1..2], LEASE).unwrap();
        back.release().unwrap();
        net.source.nft("flush ruleset");
        let told = net.told.recv_timeout(Duration::from_secs(20));
        assert_eq!(told.expect("it is told"), "1 0");
        let entries = net.locker.list().unwrap();
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert_eq!(entries[0].flow, flows[2]);
        let ended = [locks.renew(LEASE), redirect.check(), redirect.renew(LEASE)];
        for error in ended {
            assert!(matches!(error, Err(LockError::NotHeld(_))), "{error:?}");
        }
        assert_eq!(redirect.closed().unwrap(), []);
    });
}

/// Whoever makes sure of a redirect need not wait for the thread that watches.
#[test]
fn what_is_checked_is_there_afterwards() {
    isolated("what_is_checked_is_there_afterwards", || {
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let connection = net.connection(service);
        let hop = net.locker.next_hop(target, peer).unwrap();
        let guard = net.locker.lock(&[connection.flow()], LEASE).unwrap();
        let mut redirect = guard.redirect(&hop, LEASE).unwrap();
        for _ in 0..50 {
            net.source.nft("flush ruleset");
            redirect.check().unwrap();
            let entries = net.locker.list().unwrap();
            assert_eq!(entries.len(), 1, "{entries:?}");
        }
    });
}

/// Several handles of one table do not set it up in turns for ever.
/// Whoever asks in the same moment, in whatever way, does not take for ended what somebody else has removed and the handle sets up again.
#[test]
fn what_is_removed_while_it_is_asked_about_has_not_ended() {
    isolated(
        "what_is_removed_while_it_is_asked_about_has_not_ended",
        || {
            let net = Net::new();
            let [service, target, peer] = families()[0];
            let moved = net.connection(service);
            let locked = net.connection(service);
            let hop = net.locker.next_hop(target, peer).unwrap();
            let lease = Duration::from_secs(60);
            let mut lock = net.locker.lock(&[locked.flow()], lease).unwrap();
            let guard = net.locker.lock(&[moved.flow()], lease).unwrap();
            let mut redirect = guard.redirect(&hop, lease).unwrap();
            let ends = [
                moved.client.local_addr().unwrap(),
                moved.server.local_addr().unwrap(),
            ];
            let segments = net.raw();
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                let _over = Ends(&over);
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        acknowledge(&segments, ends);
                    }
                });
                let flushes = scope.spawn(|| {
                    for _ in 0..40 {
                        net.source.nft("flush ruleset");
                        eventually("everything is there again", || {
                            (net.locker.list().unwrap().len() == 2).then_some(())
                        });
                    }
                });
                let mut longer = lease;
                while !flushes.is_finished() {
                    // A renewal that has something to do, and what asks without one.
                    longer += Duration::from_millis(1);
                    redirect.renew(longer).unwrap();
                    redirect.check().unwrap();
                    assert_eq!(redirect.closed().unwrap(), []);
                    lock.renew(longer).unwrap();
                }
            });
            redirect.check().unwrap();
            lock.renew(lease).unwrap();
            assert_eq!(net.locker.list().unwrap().len(), 2);
            let failed = |told: &String| !told.starts_with(|first: char| first.is_ascii_digit());
            assert_eq!(net.told.try_iter().find(failed), None);
        },
    );
}

#[test]
fn handles_that_share_a_table_leave_each_other_in_peace() {
    isolated(
        "handles_that_share_a_table_leave_each_other_in_peace",
        || {
            let net = Net::new();
            let (other, told) = telling(&net.source);
            let [service, target, peer] = families()[0];
            let connections = [(); 4].map(|()| net.connection(service));
            let flows = connections.each_ref().map(Connection::flow);
            let hop = net.locker.next_hop(target, peer).unwrap();
            let _held = [
                net.locker.lock(&flows[..1], LEASE).unwrap(),
                other.lock(&flows[1..2], LEASE).unwrap(),
            ];
            let _moved = [(&net.locker, 2), (&other, 3)].map(|(locker, n)| {
                let guard = locker.lock(&flows[n..=n], LEASE).unwrap();
                guard.redirect(&hop, LEASE).unwrap()
            });
            // A third sets the rules up anew, which the others see as removed and made.
            for _ in 0..5 {
                let (third, _) = telling(&net.source);
                third.prepare().unwrap();
            }
            net.loses("flush ruleset", "1 1");
            told.recv_timeout(Duration::from_secs(20)).unwrap();
            // Whatever the first repair of the one looked like to the other has been dealt with after this.
            let news = || net.told.try_iter().count() + told.try_iter().count();
            let mut quiet = Instant::now();
            eventually("nothing more is said", || {
                if news() > 0 {
                    quiet = Instant::now();
                }
                (quiet.elapsed() > Duration::from_millis(500)).then_some(())
            });
            assert_eq!(net.locker.list().unwrap().len(), 4);
        },
    );
}

/// As after `tcpmig dump`, with one that stays beside it.
#[test]
fn what_dead_processes_left_is_kept_by_one_that_stays() {
    isolated("what_dead_processes_left_is_kept_by_one_that_stays", || {
        let net = Net::new();
        net.locker.keep_all().unwrap();
        for [service, target, peer] in families() {
            let locked = net.connection(service);
            let moved = net.connection(service);
            let (from, flows) = (
                moved.client.local_addr().unwrap(),
                [locked.flow(), moved.flow()],
            );
            let (holder, _) = telling(&net.source);
            holder.lock(&flows[..1], LEASE).unwrap().detach();
            let hop = holder.next_hop(target, peer).unwrap();
            let guard = holder.lock(&flows[1..], LEASE).unwrap();
            guard.redirect(&hop, LEASE * 2).unwrap().detach();
            drop(holder);
            let held = |text: &str| text.matches("comment").count();
            let before = net.source.nft("list ruleset");
            // Its copy is made within moments, which nobody is told of.
            let mut pause = Duration::from_millis(20);
            loop {
                std::thread::sleep(pause);
                net.source.nft("flush ruleset");
                let told = net.told.recv_timeout(Duration::from_secs(10));
                let kept = net.locker.list().unwrap();
                // What was copied before the redirect was whole is its silence.
                let is_whole = |entry: &Entry| entry.kind != EntryKind::Silent;
                if told.is_ok() && kept.len() == 2 && kept.iter().all(is_whole) {
                    break;
                }
                pause *= 2;
                assert!(pause < Duration::from_secs(5), "nothing is kept");
                let (holder, _) = telling(&net.source);
                holder.force_unlock(&flows).unwrap();
                holder.lock(&flows[..1], LEASE).unwrap().detach();
                let guard = holder.lock(&flows[1..], LEASE).unwrap();
                guard.redirect(&hop, LEASE * 2).unwrap().detach();
            }
            let after = net.source.nft("list ruleset");
            assert_eq!(held(&before), held(&after), "{before} became {after}");
            for entry in net.locker.list().unwrap() {
                let lease = if entry.flow == flows[0] {
                    LEASE
                } else {
                    LEASE * 2
                };
                assert!(
                    entry.remaining <= lease && entry.remaining > lease / 2,
                    "{entry:?}"
                );
                assert_eq!(entry.owner, Some(std::process::id()));
            }
            let mut seen = Capture::new(&net.target);
            let mut client = moved.client;
            send(&mut client, b'm');
            eventually("the moved one arrives at the target", || {
                let mine = |segment: &common::capture::Segment| segment.from == from;
                seen.segments().iter().any(mine).then_some(())
            });
            expect_nothing(&moved.server);
            // What ends meanwhile is not kept.
            net.locker.force_unlock(&flows).unwrap();
            eventually("nothing is left", || {
                net.source.nft("flush ruleset");
                net.locker.list().unwrap().is_empty().then_some(())
            });
        }
    });
}

/// A firewall that is started again, under traffic of a flow that has no socket here: each packet that comes before
/// the rules are back draws an RST.
#[test]
fn few_packets_come_before_the_rules_are_back() {
    isolated("few_packets_come_before_the_rules_are_back", || {
        const FLUSHES: usize = 10;
        let net = Net::new();
        let [service, target, peer] = families()[0];
        let moved = net.connection(service);
        let from = moved.client.local_addr().unwrap();
        let ends = [from, moved.server.local_addr().unwrap()];
        let hop = net.locker.next_hop(target, peer).unwrap();
        let guard = net.locker.lock(&[moved.flow()], LEASE).unwrap();
        let _redirect = guard.redirect(&hop, LEASE).unwrap();
        let socket = socket2::SockRef::from(&moved.server);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(moved.server);
        let (mut sent, mut reset) = (0, 0);
        let rules = net.rules();
        for _ in 0..FLUSHES {
            let mut answers = Capture::new(&net.peer);
            let segments = net.raw();
            std::thread::scope(|scope| {
                scope.spawn(|| net.source.nft("flush ruleset"));
                let begin = Instant::now();
                while net.told.try_recv().is_err() {
                    assert!(
                        begin.elapsed() < slowed(Duration::from_secs(20)),
                        "not told"
                    );
                    acknowledge(&segments, ends);
                    sent += 1;
                }
            });
            let to_peer = |segment: &&common::capture::Segment| segment.to == from;
            reset += answers.segments().iter().filter(to_peer).count();
            // And none once they are.
            eventually("everything is there again", || {
                (net.rules() == rules).then_some(())
            });
            while net.told.try_recv().is_ok() {}
            answers.segments();
            for _ in 0..100 {
                acknowledge(&segments, ends);
            }
            net.connection(service).ping();
            assert_eq!(answers.segments().iter().filter(to_peer).count(), 0);
        }
        println!("{sent} segments during {FLUSHES} flushes, {reset} answered with RST");
    });
}

/// Whoever locks may be the first to see that somebody has removed the rules.
#[test]
fn locks_that_are_made_while_the_rules_are_removed_are_made() {
    isolated(
        "locks_that_are_made_while_the_rules_are_removed_are_made",
        || {
            let host = Host::new();
            let open = || Nftables::new().unwrap().capturing(1 << 20).unwrap();
            let locker = Arc::new(host.run(open));
            let flow = |port: u16| format!("10.0.0.1:80,10.0.0.9:{port}").parse().unwrap();
            let mut held = locker.lock(&[flow(1)], LEASE).unwrap();
            let (sender, made) = channel();
            let (other, beside) = (flow(2), locker.clone());
            std::thread::spawn(move || {
                loop {
                    beside.lock(&[other], LEASE).unwrap().unlock().unwrap();
                    if sender.send(()).is_err() {
                        break;
                    }
                }
            });
            for _ in 0..30 {
                host.nft("flush ruleset");
                while made.try_recv().is_ok() {}
                // Several, so that the last one was begun after the flush.
                for _ in 0..3 {
                    let one = made.recv_timeout(Duration::from_secs(120));
                    one.expect("a lock is made");
                }
            }
            held.renew(LEASE).unwrap();
        },
    );
}
