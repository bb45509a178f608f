//! Many connections in one call, and calls that nobody waits for any longer.

use std::collections::HashMap;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tcpmig::driver::{Ending, Options, Outcome, Reason};
use tcpmig::handover::{Code, Fate, Message};
use tcpmig_format::FourTuple;

use crate::support::{
    Fake, Family, Net, PATIENCE, Site, both_ways, end_of, flow, kernel_test, until,
};

/// Connections, by their flow the peer's ends.
fn connections(net: &Net, count: usize) -> (HashMap<FourTuple, TcpStream>, Vec<OwnedFd>) {
    let mut peers = HashMap::new();
    let mut servers = Vec::new();
    for at in 0..count {
        let family = [Family::V4, Family::V6, Family::Mapped][at % 3];
        let (peer, server) = net.connect(family);
        peers.insert(flow(&server), peer);
        servers.push(server.into());
    }
    (peers, servers)
}

fn move_all(a: &Site, servers: Vec<OwnedFd>) -> Vec<Outcome> {
    a.call(|here| async move {
        let mut moves = here.mover().move_all(servers, &here.other());
        let mut outcomes = Vec::new();
        while let Some(outcome) = moves.next().await {
            outcomes.push(outcome);
        }
        outcomes
    })
}

kernel_test!(one_bad_connection_among_many_stops_no_other, || {
    let net = Net::new();
    let mut options = Options::default();
    options.in_flight = 4;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (mut peers, mut servers) = connections(&net, 30);
    let udp = net.a.run(|| UdpSocket::bind("198.18.0.80:0")).unwrap();
    servers.insert(3, udp.unwrap().into());
    // One whose addresses are taken on the target.
    let (_, other) = net.connect(Family::V4);
    let taken = flow(&other);
    let lock = b.call(move |here| async move {
        use tcpmig_lock::Locker;
        here.locker.lock(&[taken], Duration::from_secs(60)).unwrap()
    });
    servers.insert(7, other.into());
    let mut kept = Vec::new();
    for outcome in move_all(&a, servers) {
        match outcome.ending {
            Ending::Moved => {}
            Ending::Kept { reason, .. } => kept.push((outcome.flow, reason.to_string())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(
        kept.iter()
            .any(|(flow, why)| flow.is_none() && why.contains("not a TCP")),
        "{kept:?}"
    );
    assert!(
        kept.iter()
            .any(|(flow, why)| *flow == Some(taken) && why.contains("refused")),
        "{kept:?}"
    );
    for _ in 0..30 {
        let arrived = b.arrival();
        let peer = peers.remove(&arrived.flow).expect("each arrives once");
        both_ways(&peer, &arrived.socket.into());
    }
    drop(lock);
});

kernel_test!(a_batch_that_is_dropped_loses_none, || {
    let net = Net::new();
    let mut options = Options::default();
    options.in_flight = 4;
    options.ask_for = Duration::from_secs(2);
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (mut peers, servers) = connections(&net, 60);
    let count = peers.len();
    // Cancelled after some have moved; what was on its way is given back, or in doubt and asked for.
    let (moved, back) = a.call(move |here| async move {
        let mover = here.mover();
        let mut moves = mover.move_all(servers, &here.other());
        let mut settled = 0;
        let mut moved = 0;
        while settled < 7 {
            let outcome = moves.next().await.unwrap();
            assert_eq!(outcome.ending.fate(), Fate::Moved);
            settled += 1;
            moved += 1;
        }
        moves.cancel();
        drop(moves);
        let mut kept = Vec::new();
        while settled < count {
            tokio::task::yield_now().await;
            for outcome in mover.unclaimed().await {
                settled += 1;
                let ending = match outcome.ending {
                    Ending::InDoubt(doubt) => doubt.ask().await.ending,
                    other => other,
                };
                match ending {
                    Ending::Moved => moved += 1,
                    Ending::Kept { socket, reason, .. } => {
                        assert!(matches!(reason, Reason::Cancelled), "{reason}");
                        kept.push((outcome.flow, socket));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        (moved, kept)
    });
    assert!(!back.is_empty() && moved >= 7, "{moved} moved");
    for _ in 0..moved {
        let arrived = b.arrival();
        let peer = peers.remove(&arrived.flow).expect("each arrives once");
        both_ways(&peer, &arrived.socket.into());
    }
    b.no_arrival();
    for (flow, server) in back {
        let server = TcpStream::from(server);
        let flow = flow.unwrap_or_else(|| self::flow(&server));
        both_ways(&peers.remove(&flow).unwrap(), &server);
    }
    assert!(peers.is_empty());
});

kernel_test!(what_nobody_waits_for_moves_all_the_same, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let (mut peers, mut servers) = connections(&net, 20);
    let alone = servers.pop().unwrap();
    let outcomes = a.call(move |here| async move {
        let mover = here.mover();
        let mut moves = mover.move_all(servers, &here.other());
        let first = moves.next().await.unwrap();
        drop(moves);
        drop(mover.move_out(alone, None, &here.other()));
        let mut outcomes = mover.unclaimed().await;
        outcomes.push(first);
        outcomes
    });
    assert_eq!(outcomes.len(), 20);
    for outcome in outcomes {
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        let arrived = b.arrival();
        let peer = peers.remove(&arrived.flow).expect("each arrives once");
        both_ways(&peer, &arrived.socket.into());
    }
    assert!(peers.is_empty());
});

kernel_test!(a_batch_that_is_stopped_keeps_the_rest, || {
    let net = Net::new();
    let mut options = Options::default();
    options.in_flight = 1;
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let (_peers, servers) = connections(&net, 20);
    let fates = a.call(|here| async move {
        let mut moves = here.mover().move_all(servers, &here.other());
        let mut fates = vec![moves.next().await.unwrap().ending.fate()];
        moves.stop();
        while let Some(outcome) = moves.next().await {
            fates.push(outcome.ending.fate());
        }
        fates
    });
    assert_eq!(fates.len(), 20);
    assert!(
        fates.contains(&Fate::Moved) && fates.contains(&Fate::Kept),
        "{fates:?}"
    );
});

kernel_test!(a_move_that_is_cancelled_before_commit_is_kept, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    let (peer, server) = net.connect(Family::V4);
    let flow = flow(&server);
    let ends = net.peer.count(&end_of(flow));
    let (got_offer, target_has_it) = tokio::sync::oneshot::channel();
    // The target gets the offer and says nothing.
    let offered = b.begin(|here| async move {
        let mut talk = Fake::new(&here).exchange().await;
        let id = talk.take().await;
        got_offer.send(()).unwrap();
        let abort = talk.answer().await;
        assert_eq!(abort, Message::Abort { id });
    });
    let server = a.call(|here| async move {
        let mover = here.mover();
        // Not even begun.
        let moving = mover.move_out(server.into(), None, &here.other());
        moving.cancel();
        drop(moving);
        let server = only_kept(mover.unclaimed().await);
        let to = here.other();
        let mut offering = mover.move_out(server, None, &to);
        tokio::select! {
            outcome = &mut offering => panic!("{outcome:?}"),
            offered = target_has_it => offered.unwrap(),
        }
        offering.cancel();
        only_kept(vec![offering.await])
    });
    offered.wait();
    until("nothing is locked", || a.entries(flow).is_empty());
    let server = TcpStream::from(server);
    both_ways(&peer, &server);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

fn only_kept(mut outcomes: Vec<Outcome>) -> OwnedFd {
    assert_eq!(outcomes.len(), 1);
    match outcomes.remove(0).ending {
        Ending::Kept { socket, reason, .. } => {
            assert!(matches!(reason, Reason::Cancelled), "{reason}");
            socket
        }
        other => panic!("{other:?}"),
    }
}

kernel_test!(a_move_that_is_cancelled_after_commit_is_in_doubt, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    let (peer, server) = net.connect(Family::V4);
    let (got_commit, target_has_it) = tokio::sync::oneshot::channel();
    // The target gets COMMIT and says nothing; asked again it never had it.
    let committed = b.begin(|here| async move {
        let mut fake = Fake::new(&here);
        let mut talk = fake.exchange().await;
        let id = talk.take().await;
        talk.say(Message::Prepared { id, rebuild_us: 1 }).await;
        talk.commit(id).await;
        got_commit.send(()).unwrap();
        let mut again = fake.exchange().await;
        again.commit(id).await;
        let reason = "for a test".to_owned();
        again
            .say(Message::Aborted {
                id,
                code: Code::Other,
                reason,
            })
            .await;
        again.end().await;
    });
    let ending = a.call(|here| async move {
        let mover = here.mover();
        let to = here.other();
        let mut moving = mover.move_out(server.into(), None, &to);
        tokio::select! {
            outcome = &mut moving => panic!("{outcome:?}"),
            committed = target_has_it => committed.unwrap(),
        }
        moving.cancel();
        drop(moving);
        let outcome = mover.unclaimed().await.remove(0);
        match outcome.ending {
            Ending::InDoubt(doubt) => doubt.ask().await.ending,
            other => panic!("{other:?}"),
        }
    });
    committed.wait();
    let (server, reason) = crate::support::kept_by(ending);
    assert!(reason.contains("for a test"), "{reason}");
    both_ways(&peer, &server);
});

kernel_test!(a_target_of_another_version_is_named, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    let (peer, server) = net.connect(Family::V4);
    let refusing = b.begin(|here| async move {
        let mut talk = Fake::new(&here).exchange().await;
        talk.say(Message::Hello {
            oldest: 7,
            newest: 9,
        })
        .await;
        talk.end().await;
    });
    let outcome = a.move_out(server, None).wait();
    let (server, reason) = crate::support::kept(outcome);
    assert!(reason.contains("versions 7 to 9"), "{reason}");
    refusing.wait();
    both_ways(&peer, &server);
});

kernel_test!(a_source_of_another_version_is_told, || {
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let heard = a.call(|here| async move {
        let to = here.other();
        let peer = here.endpoint.connect(to.address, &to.name).await.unwrap();
        let mut exchange = peer.open().await.unwrap();
        let (hello, _) = Message::Hello {
            oldest: 100,
            newest: 101,
        }
        .encode();
        exchange.send(hello).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, exchange.recv())
            .await
            .unwrap();
        let answer = answer.unwrap().unwrap();
        let end = tokio::time::timeout(PATIENCE, exchange.recv())
            .await
            .unwrap();
        (
            tcpmig::handover::Decoder::default().frame(answer).unwrap(),
            end.unwrap(),
        )
    });
    assert_eq!(heard, (Some(Message::hello()), None));
});
