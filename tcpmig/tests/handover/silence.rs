//! A connection that stands still is silent, and goes on or moves afterwards, however its lock ended meanwhile.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::{Ending, InDoubt, Options, Outcome};
use tcpmig::handover::{Code, HandoverId, Message};
use tcpmig::restore::INJECT_MARK;
use tcpmig_format::FourTuple;
use tcpmig_sys::ends::Ends;
use tcpmig_sys::process::take;
use tcpmig_sys::repair::mute;
use tcpmig_sys::sockopt;

use crate::support::{
    Fake, Family, Net, Running, Site, Talk, both_ways, end_of, expect, flow, kept_by, kernel_test,
    until,
};

/// Short enough to end several times in a test.
const LEASE: Duration = Duration::from_millis(900);

/// For as long as the peer would wait for something.
const LONG: Duration = Duration::from_millis(3000);

fn options() -> Options {
    let mut options = Options::default();
    options.lease = LEASE;
    options.redirect_lease = LEASE;
    options.prepared_within = Duration::from_secs(10);
    options.answer_within = Duration::from_millis(300);
    options.ask_for = Duration::from_millis(500);
    options.commit_within = Duration::from_secs(10);
    options.settle = Duration::ZERO;
    options
}

/// An application that wants to know within three seconds that its peer is gone, and one that is not read from.
fn impatient(server: &TcpStream) {
    let fd = server.as_fd();
    sockopt::set_keep_alive(fd, true).unwrap();
    sockopt::set_keep_idle(fd, 1).unwrap();
    sockopt::set_keep_interval(fd, 2).unwrap();
    sockopt::set_keep_count(fd, 1).unwrap();
    sockopt::set_user_timeout(fd, 2500).unwrap();
}

/// Sends for a while, and nothing of the flow comes back.
struct Silence<'a> {
    net: &'a Net,
    peer: &'a TcpStream,
    flow: FourTuple,
    sent: Vec<u8>,
}

impl<'a> Silence<'a> {
    fn of(net: &'a Net, peer: &'a TcpStream, flow: FourTuple) -> Self {
        Self {
            net,
            peer,
            flow,
            sent: Vec::new(),
        }
    }

    fn lasts(&mut self, time: Duration) {
        let port = self.flow.local().port();
        let (other, end) = self.net.connect(Family::V4);
        let heard = self.net.peer.count(&format!("tcp sport {port}"));
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.peer.write_all(b"still there? ").unwrap();
            self.sent.extend(b"still there? ");
            std::thread::sleep(Duration::from_millis(50));
        }
        // What was sent to the peer before this connection's packets would be there before them.
        both_ways(&other, &end);
        assert_eq!(heard.packets(), 0, "a packet of the flow reached the peer");
        let waiting = sockopt::send_queue_len(self.peer.as_fd()).unwrap();
        assert_eq!(waiting as usize, self.sent.len(), "bytes were acknowledged");
    }
}

fn doubt(outcome: Outcome) -> InDoubt {
    match outcome.ending {
        Ending::InDoubt(doubt) => *doubt,
        other => panic!("{other:?}"),
    }
}

/// A target that has COMMIT and says nothing more until it is asked to.
struct Committed {
    fake: Fake,
    id: HandoverId,
}

fn commit_and_hang_up(b: &Site, wait: Duration) -> Running<Committed> {
    b.begin(move |here| async move {
        let mut fake = Fake::new(&here);
        let mut talk = fake.exchange().await;
        let id = talk.take().await;
        tokio::time::sleep(wait).await;
        talk.say(Message::Prepared { id, rebuild_us: 1 }).await;
        talk.commit(id).await;
        fake.hang_up();
        Committed { fake, id }
    })
}

/// Says ABORTED when it is asked next.
fn give_back(b: &Site, Committed { mut fake, id }: Committed) -> Running<()> {
    b.begin(move |_| async move {
        loop {
            let mut talk = fake.exchange().await;
            if matches!(talk.hear().await, Some(Message::Commit { id: about, .. }) if about == id) {
                let reason = "for a test".to_owned();
                talk.say(Message::Aborted {
                    id,
                    code: Code::Other,
                    reason,
                })
                .await;
                return talk.end().await;
            }
        }
    })
}

/// What the peer sends goes nowhere at host B, which has no connection.
fn silence_b(net: &Net, flow: FourTuple) {
    let port = flow.local().port();
    net.b.nft(&format!(
            "table inet deaf {{ chain i {{ type filter hook prerouting priority raw; tcp dport {port} drop; }}; }}"
        ),
    );
}

kernel_test!(a_doubt_is_silent_for_as_long_as_it_is_there, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    silence_b(&net, flow);
    // Unacknowledged at the peer, and with it for longer than several timers.
    let port = flow.local().port();
    let deaf = format!(
        "table inet deaf {{ chain i {{ type filter hook prerouting priority raw; tcp sport {port} drop; }}; }}"
    );
    net.peer.nft(&deaf);
    (&server).write_all(b"on its way").unwrap();
    impatient(&server);
    let target = commit_and_hang_up(&b, Duration::ZERO);
    let doubt = doubt(a.move_out(server, None).wait());
    let committed = target.wait();
    net.peer.nft("delete table inet deaf");

    let mut silence = Silence::of(&net, &peer, flow);
    silence.lasts(LONG);
    assert_eq!(a.entries(flow).len(), 1, "it was not renewed");
    // By force: a firewall that is loaded again.
    net.a.nft("flush ruleset");
    silence.lasts(LEASE * 2);
    until("the redirect is there again", || a.entries(flow).len() == 1);
    let sent = silence.sent;

    // It is settled, and goes on: every byte once, and this end at once.
    let target = give_back(&b, committed);
    let begin = Instant::now();
    let mut ending = a.call(|_| async { doubt.ask().await.ending });
    while let Ending::InDoubt(again) = ending {
        ending = a.call(|_| async { again.ask().await.ending });
    }
    let ends = net.peer.count(&end_of(flow));
    let (server, _) = kept_by(ending);
    target.wait();
    expect(&peer, b"on its way");
    println!(
        "in doubt, then settled and heard within {:?}",
        begin.elapsed()
    );
    expect(&server, &sent);
    both_ways(&peer, &server);
    assert_eq!(sockopt::user_timeout(server.as_fd()).unwrap(), 2500);
    assert!(sockopt::keep_alive(server.as_fd()).unwrap());
    assert!(server.take_error().unwrap().is_none());
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    assert_eq!(a.entries(flow), []);
});

kernel_test!(a_doubt_that_is_dropped_leaves_silence, || {
    let net = Net::new();
    let mut options = options();
    options.redirect_lease = Duration::from_secs(3600);
    let (a, b) = Site::pair(&net, &options);
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    silence_b(&net, flow);
    let target = commit_and_hang_up(&b, Duration::ZERO);
    let doubt = doubt(a.move_out(server, None).wait());
    let _committed = target.wait();
    let mut silence = Silence::of(&net, &peer, flow);
    silence.lasts(LEASE * 2);
    drop(doubt);
    silence.lasts(LEASE * 2);
});

kernel_test!(
    a_connection_waits_for_prepared_for_longer_than_a_lease,
    || {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &options());
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        silence_b(&net, flow);
        let target = commit_and_hang_up(&b, LONG);
        let moving = a.move_out(server, None);
        until("it is locked", || !a.entries(flow).is_empty());
        let mut silence = Silence::of(&net, &peer, flow);
        silence.lasts(LONG / 2);
        // The lock was there still when its packets were steered: COMMIT was sent.
        let doubt = doubt(moving.wait());
        let target = give_back(&b, target.wait());
        let sent = silence.sent;
        let mut ending = a.call(|_| async { doubt.ask().await.ending });
        while let Ending::InDoubt(again) = ending {
            ending = a.call(|_| async { again.ask().await.ending });
        }
        let (server, _) = kept_by(ending);
        target.wait();
        expect(&server, &sent);
        both_ways(&peer, &server);
    }
);

/// A connection that is frozen on host A, whose source is played by hand, and prepared on host B.
struct Prepared {
    net: Net,
    a: Site,
    b: Site,
    peer: TcpStream,
    frozen: Frozen,
    flow: FourTuple,
}

fn id() -> HandoverId {
    HandoverId::from_bytes([7; 16])
}

impl Prepared {
    fn new(options: &Options) -> Self {
        let net = Net::new();
        let (a, b) = Site::pair(&net, options);
        b.serve();
        let (peer, server) = net.connect(Family::V4);
        impatient(&server);
        let flow = flow(&server);
        let socket: OwnedFd = server.into();
        let frozen = a.call(move |here| async move {
            let plan = Plan::read(socket.as_fd()).unwrap();
            let lease = Duration::from_secs(60);
            let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
            let image: Bytes = frozen.capture(None).unwrap().encode().unwrap().into();
            let mut talk = Talk::with_other(&here).await;
            let answer = talk.give(id(), image).await;
            assert_eq!(answer.name(), "PREPARED", "{answer:?}");
            let hop = here
                .locker
                .next_hop("198.18.0.2".parse().unwrap(), flow.remote().ip());
            frozen.redirect(&hop.unwrap(), lease).unwrap();
            frozen
        });
        Self {
            net,
            a,
            b,
            peer,
            frozen,
            flow,
        }
    }

    /// COMMIT in an exchange of its own.
    fn commit(&self) -> Message {
        self.a.call(|here| async move {
            let mut talk = Talk::with_other(&here).await;
            talk.ask(Message::commit(id())).await
        })
    }

    fn abort(&self) {
        self.a.call(|here| async move {
            let mut talk = Talk::with_other(&here).await;
            talk.say(Message::Abort { id: id() }).await;
            talk.ask(Message::commit(id())).await;
        });
    }
}

kernel_test!(what_is_prepared_waits_for_longer_than_its_lease, || {
    let case = Prepared::new(&options());
    let mut silence = Silence::of(&case.net, &case.peer, case.flow);
    silence.lasts(LONG);
    assert_eq!(case.b.entries(case.flow).len(), 1, "it was not renewed");
    case.net.b.nft("flush ruleset");
    silence.lasts(LEASE * 2);
    until("it is locked again", || {
        case.b.entries(case.flow).len() == 1
    });
    let sent = silence.sent;
    let ends = case.net.peer.count(&end_of(case.flow));
    let answer = case.commit();
    assert_eq!(answer.name(), "ACTIVE", "{answer:?}");
    let server = TcpStream::from(case.b.arrival().socket);
    server.set_nonblocking(false).unwrap();
    case.frozen.discard().unwrap();
    expect(&server, &sent);
    both_ways(&case.peer, &server);
    assert_eq!(sockopt::user_timeout(server.as_fd()).unwrap(), 2500);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

/// Has what is locked on host B let through, as if it were not locked: locks let this mark pass, if it is set before them.
fn pass_locks(net: &Net, flow: FourTuple) {
    let port = flow.local().port();
    let passing = format!(
        "table inet passing {{
            chain to {{
                type filter hook prerouting priority -400;
                tcp dport {port} meta mark set {INJECT_MARK}
            }}
            chain from {{
                type filter hook output priority -400;
                tcp sport {port} meta mark set {INJECT_MARK}
            }}
        }}"
    );
    net.b.nft(&passing);
}

// Packets are steered to a target that has accepted a connection before it has the image.
kernel_test!(what_is_accepted_is_silent_without_its_lock, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let socket: OwnedFd = server.into();
    let (accepted, is_accepted) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = tokio::sync::oneshot::channel();
    let giving = a.begin(move |here| async move {
        let plan = Plan::read(socket.as_fd()).unwrap();
        let lease = Duration::from_secs(60);
        let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
        let image: Bytes = frozen.capture(None).unwrap().encode().unwrap().into();
        let mut talk = Talk::with_other(&here).await;
        let (id, queued, draft) = (id(), 0, image.clone());
        let answer = talk.ask(Message::Offer { id, queued, draft }).await;
        assert_eq!(answer.name(), "ACCEPTED", "{answer:?}");
        let hop = here
            .locker
            .next_hop("198.18.0.2".parse().unwrap(), flow.remote().ip());
        frozen.redirect(&hop.unwrap(), lease).unwrap();
        accepted.send(()).unwrap();
        goes_on.await.unwrap();
        let waits = true;
        let answer = talk.ask(Message::Image { id, waits, image }).await;
        assert_eq!(answer.name(), "PREPARED", "{answer:?}");
        let answer = talk.ask(Message::commit(id)).await;
        assert_eq!(answer.name(), "ACTIVE", "{answer:?}");
        frozen
    });
    is_accepted.blocking_recv().unwrap();
    pass_locks(&net, flow);
    let mut silence = Silence::of(&net, &peer, flow);
    silence.lasts(Duration::from_millis(500));
    let sent = silence.sent;
    let ends = net.peer.count(&end_of(flow));
    net.b.nft("delete table inet passing");
    go_on.send(()).unwrap();
    let frozen = giving.wait();
    let server = TcpStream::from(b.arrival().socket);
    server.set_nonblocking(false).unwrap();
    frozen.discard().unwrap();
    expect(&server, &sent);
    both_ways(&peer, &server);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

kernel_test!(what_a_target_gave_up_stays_silent_until_abort, || {
    let mut options = options();
    options.commit_within = Duration::from_millis(500);
    let case = Prepared::new(&options);
    let mut silence = Silence::of(&case.net, &case.peer, case.flow);
    // Past the deadline, and then past the lease.
    silence.lasts(LONG);
    let answer = case.commit();
    assert_eq!(answer.name(), "ABORTED", "{answer:?}");
    silence.lasts(LEASE * 2);
    let sent = silence.sent;
    let ends = case.net.peer.count(&end_of(case.flow));
    let frozen = case.frozen;
    // On the host that it goes on at: what arrived there is delivered from there.
    let server = case.net.a.run(|| frozen.keep().unwrap()).unwrap();
    let server = TcpStream::from(server);
    case.a.call(|here| async move {
        let mut talk = Talk::with_other(&here).await;
        talk.say(Message::Abort { id: id() }).await;
        talk.ask(Message::commit(id())).await;
    });
    until("host B unlocks", || case.b.entries(case.flow).is_empty());
    expect(&server, &sent);
    both_ways(&case.peer, &server);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

/// Takes away from the socket with these addresses, one of this process, what makes it mute.
fn make_it_hear(flow: FourTuple) {
    let addresses = |fd: &OwnedFd| Ends::of(fd.as_fd()).ok();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let number: i32 = entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let Ok(fd) = take::descriptor(std::process::id(), number) else {
            continue;
        };
        let is_it = |Ends { local, remote }| (local, remote) == (flow.local(), flow.remote());
        if addresses(&fd).is_some_and(is_it) && sockopt::repair(fd.as_fd()).unwrap_or(false) {
            mute::lift(fd.as_fd()).unwrap();
            assert!(fd.as_raw_fd() >= 0);
        }
    }
}

/// Bytes that the target has taken before it owned the connection, against all that it does.
fn moves_on(case: &Prepared) {
    pass_locks(&case.net, case.flow);
    make_it_hear(case.flow);
    (&case.peer).write_all(b"?").unwrap();
    until("host B acknowledges it", || {
        sockopt::send_queue_len(case.peer.as_fd()).unwrap() == 0
    });
}

kernel_test!(
    a_target_whose_socket_moved_on_says_lost_at_its_deadline,
    || {
        let mut options = options();
        options.commit_within = Duration::from_secs(8);
        let case = Prepared::new(&options);
        moves_on(&case);
        std::thread::sleep(options.commit_within);
        until("it is given up", || case.commit().name() != "ACTIVE");
        let answer = case.commit();
        assert_eq!(answer.name(), "LOST", "{answer:?}");
        case.frozen.discard().unwrap();
    }
);

kernel_test!(a_target_whose_socket_moved_on_says_lost_after_abort, || {
    let case = Prepared::new(&options());
    moves_on(&case);
    case.abort();
    let answer = case.commit();
    assert_eq!(answer.name(), "LOST", "{answer:?}");
    case.b.no_arrival();
    case.frozen.discard().unwrap();
});
