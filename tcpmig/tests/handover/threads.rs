//! What waits holds up its own connection, and nothing else that its runtime does.
//!
//! Each host of these tests has one thread for everything. What waits here waits until that thread goes on with something
//! else: if the call were on it, that would never be.

mod blocking;

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tcpmig::driver::journal::Decision;
use tcpmig::driver::{Acceptor, Ending, Mover, Options, Outcome, Reason};
use tcpmig::handover::{Code, Fate, HandoverId, Message};
use tcpmig_lock::EntryKind;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::sockopt;

use blocking::{Blocking, Call, Calls, Heart, Noted, Planned};

use crate::support::{
    Fake, Family, Here, Net, Running, Site, Talk, both_ways, end_of, flow, kept, kept_by,
    kernel_test, open_from_a, until,
};

/// So short that it is renewed within a test.
fn options() -> Options {
    let mut options = Options::default();
    options.lease = Duration::from_secs(3);
    options.redirect_lease = Duration::from_secs(3);
    options.answer_within = Duration::from_millis(300);
    options.ask_for = Duration::from_millis(500);
    options.prepared_within = Duration::from_secs(20);
    options.commit_within = Duration::from_secs(20);
    options.settle = Duration::ZERO;
    options
}

/// For what is to be told in the end, however busy the machine is.
fn patient() -> Options {
    let mut options = options();
    // Four times as long as an answer: COMMIT goes along with a small image.
    options.lease = Duration::from_secs(60);
    options.answer_within = Duration::from_secs(10);
    options.ask_for = Duration::from_secs(60);
    options
}

/// A mover of a host whose every call waits.
fn mover(here: &Rc<Here>, calls: &Calls) -> Mover {
    let locker = Arc::new(Blocking::new(calls));
    let journal = Arc::new(Noted::new(calls));
    Mover::new(here.endpoint.clone(), locker, here.options.clone()).with_journal(journal)
}

/// Host A, and what of it waits.
fn source(a: &Site) -> Calls {
    a.call(|_| async { Calls::of(Heart::begin()) })
}

/// Host B takes connections in, and each of its calls waits.
fn target(b: &Site) -> Calls {
    b.call(|here| async move {
        let calls = Calls::of(Heart::begin());
        let locker = Arc::new(Blocking::new(&calls));
        let arrivals = Acceptor::new(here.endpoint.clone(), locker)
            .options(here.options.clone())
            .journal(Arc::new(Noted::new(&calls)))
            .serve();
        here.serves(arrivals).await;
        calls
    })
}

fn move_out(a: &Site, calls: &Calls, server: TcpStream) -> Running<Outcome> {
    let calls = calls.clone();
    a.begin(move |here| async move {
        let to = here.other_by(Arc::new(Planned::new(here.other().steer, &calls)));
        mover(&here, &calls)
            .move_out(server.into(), None, &to)
            .await
    })
}

kernel_test!(a_move_waits_on_neither_host, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &patient());
    let (ours, theirs) = (source(&a), target(&b));
    for family in [Family::V4, Family::V6] {
        let (peer, server) = net.connect(family);
        let outcome = move_out(&a, &ours, server).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        let server = TcpStream::from(b.arrival().socket);
        server.set_nonblocking(false).unwrap();
        both_ways(&peer, &server);
    }
    ours.went_on(&[
        Call::Plan,
        Call::Begin,
        Call::Lock,
        Call::Steer,
        Call::Redirect,
        Call::Captured,
        Call::Note,
    ]);
    until("the last of it is noted", || theirs.count(Call::Note) >= 4);
    theirs.went_on(&[Call::Lock, Call::Begin, Call::Release, Call::Note]);
});

kernel_test!(
    a_connection_that_is_given_back_waits_on_neither_host,
    || {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &options());
        let (ours, theirs) = (source(&a), target(&b));
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let ends = net.peer.count(&end_of(flow));
        // Its last step fails: the target has built it by then, and is told.
        ours.fail(Call::Steer);
        let (server, reason) = kept(move_out(&a, &ours, server).wait());
        assert!(reason.contains("for a test"), "{reason}");
        both_ways(&peer, &server);
        until("the target unlocks", || b.entries(flow).is_empty());
        ours.went_on(&[Call::Unlock]);
        theirs.went_on(&[Call::Lock, Call::Unlock]);
        assert_eq!(a.entries(flow), []);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }
);

kernel_test!(a_doubt_waits_on_nobody, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    let ours = source(&a);
    let (_peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let (_other_peer, other) = net.connect(Family::V4);
    let other_flow = self::flow(&other);
    let targets = b.begin(|here| async move {
        let mut fake = Fake::new(&here);
        for _ in 0..2 {
            let (mut talk, id) = loop {
                let mut talk = fake.exchange().await;
                // The first asks again, in vain.
                if let Some(Message::Offer { id, .. }) = talk.hear().await {
                    let id = talk.take_image(id).await;
                    break (talk, id);
                }
            };
            talk.say(Message::Prepared { id, rebuild_us: 1 }).await;
            talk.commit(id).await;
            fake.hang_up();
        }
        here.keep(fake);
    });
    let doubts = [server, other].map(|server| {
        let ending = move_out(&a, &ours, server).wait().ending;
        match ending {
            Ending::InDoubt(doubt) => *doubt,
            other => panic!("{other:?}"),
        }
    });
    targets.wait();
    let renewed = ours.count(Call::Renew);
    until("both are renewed", || ours.count(Call::Renew) > renewed + 3);
    for flow in [flow, other_flow] {
        assert_eq!(a.entries(flow).len(), 1);
    }
    ours.went_on(&[Call::InDoubt, Call::Decided, Call::Renew]);
    // One is settled, the other is dropped, here and now.
    let [settled, dropped] = doubts;
    let before = ours.count(Call::Release);
    let ending = a.call(move |_| async move {
        drop(dropped);
        settled.settle(Decision::Lost).await.ending
    });
    assert!(matches!(ending, Ending::Lost(_)), "{ending:?}");
    assert_eq!(ours.count(Call::Release), before + 1);
    assert_eq!(a.entries(flow), [], "it redirects what is lost");
    let entries = a.entries(other_flow);
    assert!(
        matches!(&entries[..], [entry] if matches!(entry.kind, EntryKind::Redirect { .. })),
        "{entries:?}"
    );
    ours.went_on(&[Call::Release]);
});

kernel_test!(what_another_process_left_is_settled_without_waiting, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    let (ours, theirs) = (source(&a), target(&b));
    let id = HandoverId::from_bytes([7; 16]);
    ours.leave_open(id);
    theirs.recalls_as_active(id);
    let calls = ours.clone();
    let resolved = a.call(move |here| async move { mover(&here, &calls).resolve().await });
    let fates: Vec<Fate> = resolved.iter().map(|one| one.fate).collect();
    assert_eq!(fates, [Fate::Lost]);
    ours.went_on(&[Call::LeftOpen, Call::Lock, Call::Release, Call::Note]);
});

kernel_test!(a_cancelled_move_leaves_nothing_locked, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    for at in [Call::Begin, Call::Lock, Call::Steer, Call::Redirect] {
        let (ours, theirs) = (source(&a), target(&b));
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let ends = net.peer.count(&end_of(flow));
        let gate = ours.hold(at);
        let calls = ours.clone();
        let outcomes = a.call(move |here| async move {
            let to = here.other_by(Arc::new(Planned::new(here.other().steer, &calls)));
            let mover = mover(&here, &calls);
            let mut moving = mover.move_out(server.into(), None, &to);
            tokio::select! {
                outcome = &mut moving => panic!("{outcome:?}"),
                () = gate.reached() => {}
            }
            moving.cancel();
            drop(moving);
            // The call is still under way, and nobody waits for what it brings.
            let asked = tokio::time::timeout(Duration::from_millis(50), mover.unclaimed());
            assert!(asked.await.is_err(), "it was not under way");
            gate.open();
            mover.unclaimed().await
        });
        let [outcome]: [Outcome; 1] = outcomes.try_into().unwrap();
        assert_eq!(outcome.flow, Some(flow), "at {at:?}");
        let (server, reason) = kept(outcome);
        assert_eq!(reason, Reason::Cancelled.to_string(), "at {at:?}");
        both_ways(&peer, &server);
        assert_eq!(a.entries(flow), [], "at {at:?}");
        until("the target unlocks", || b.entries(flow).is_empty());
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer, at {at:?}");
        ours.went_on(&[at]);
        theirs.went_on(&[]);
        b.stop_serving();
    }
});

kernel_test!(a_call_that_panics_leaves_nothing_locked, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    for at in [Call::Lock, Call::Note] {
        let (ours, _theirs) = (source(&a), target(&b));
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        ours.panic(at);
        let calls = ours.clone();
        let outcomes = a.call(move |here| async move {
            let mover = mover(&here, &calls);
            let (moving, to) = (mover.clone(), here.other());
            let moved =
                tokio::spawn(async move { moving.move_out(server.into(), None, &to).await });
            assert!(moved.await.unwrap_err().is_panic());
            mover.unclaimed().await
        });
        let [outcome]: [Outcome; 1] = outcomes.try_into().unwrap();
        let (server, _) = kept(outcome);
        both_ways(&peer, &server);
        assert_eq!(a.entries(flow), [], "at {at:?}");
        until("the target unlocks", || b.entries(flow).is_empty());
        b.stop_serving();
    }
});

kernel_test!(a_target_that_stops_while_it_locks_leaves_nothing, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &options());
    let theirs = target(&b);
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let gate = theirs.hold(Call::Lock);
    let moving = a.move_out(server, None);
    b.call(move |here| async move {
        gate.reached().await;
        here.serves_no_more().await;
        gate.open();
    });
    let (server, _) = kept(moving.wait());
    both_ways(&peer, &server);
    // What had begun is done, and undone.
    until("it is locked", || theirs.count(Call::Lock) == 1);
    until("the lock ends", || b.entries(flow).is_empty());
    theirs.went_on(&[Call::Lock]);
});

/// What the target's thread does meanwhile, with a locker that does not wait.
fn serve_counting(b: &Site) -> Calls {
    b.call(|here| async move {
        let calls = Calls::that_count(Heart::begin());
        let locker = Arc::new(Blocking::new(&calls));
        let arrivals = Acceptor::new(here.endpoint.clone(), locker)
            .options(here.options.clone())
            .journal(Arc::new(Noted::new(&calls)))
            .serve();
        here.serves(arrivals).await;
        calls
    })
}

kernel_test!(a_connection_that_is_being_opened_is_built_aside, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &patient());
    let theirs = serve_counting(&b);
    // The peer does not hear the SYN.
    net.peer.nft("table inet deaf { chain i { type filter hook prerouting priority raw; meta l4proto tcp drop; }; }",
    );
    let opening = open_from_a(&net, "198.18.0.9:9".parse().unwrap());
    let outcome = a.move_out(opening, None).wait();
    assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
    // It takes 100 ms.
    let still = theirs.heart().stood_still();
    println!("it stood still for {still} ms at the most");
    assert!(still < 60, "the runtime stood still for {still} ms");
});

kernel_test!(what_is_injected_is_injected_aside, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &patient());
    let theirs = serve_counting(&b);
    // It is sent again and again.
    net.b.nft("table inet strict { chain i { type filter hook input priority 0; iif lo tcp sport != 1 drop; }; }",
    );
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    until("the end of the peer arrives", || {
        tcp_info(server.as_fd()).unwrap().state == State::CloseWait
    });
    let (_server, reason) = kept(a.move_out(server, None).wait());
    assert!(reason.contains("gave it up"), "{reason}");
    until("the target unlocks", || b.entries(flow).is_empty());
    // It takes 200 ms until it is given up.
    let still = theirs.heart().stood_still();
    println!("it stood still for {still} ms at the most");
    assert!(still < 60, "the runtime stood still for {still} ms");
});

kernel_test!(a_thaw_that_listens_for_the_peer_waits_aside, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &patient());
    let ours = a.call(|_| async { Calls::that_count(Heart::begin()) });
    let (_peer, server) = net.connect(Family::V4);
    let port = flow(&server).local().port();
    net.peer.nft(&format!(
            "table inet deaf {{ chain i {{ type filter hook prerouting priority raw; tcp sport {port} drop; }}; }}"
        ),
    );
    sockopt::set_user_timeout(server.as_fd(), 100_000).unwrap();
    std::io::Write::write_all(&mut &server, b"on its way").unwrap();
    until("it is sent again", || {
        // The first can be a probe of the tail.
        tcp_info(server.as_fd()).unwrap().total_retrans > 2
    });
    let target = b.begin(|here| async move {
        let mut talk: Talk = Fake::new(&here).exchange().await;
        let id = talk.take().await;
        let reason = "for a test".to_owned();
        talk.say(Message::Refused {
            id,
            code: Code::Full,
            reason,
        })
        .await;
        talk.end().await;
    });
    let calls = ours.clone();
    let ending = a.call(move |here| async move {
        let to = here.other();
        let outcome = mover(&here, &calls)
            .move_out(server.into(), None, &to)
            .await;
        outcome.ending
    });
    let (_server, reason) = kept_by(ending);
    assert!(reason.contains("for a test"), "{reason}");
    target.wait();
    let (unlocked, noted) = (ours.beats(Call::Unlock), ours.beats(Call::Note));
    println!("{} beats meanwhile", noted - unlocked);
    assert!(noted > unlocked, "the runtime stood still");
});
