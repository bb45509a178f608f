//! What a target does with what a source says, however often and in whatever order.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::Options;
use tcpmig::handover::{HandoverId, Message};
use tcpmig_format::FourTuple;
use tcpmig_sys::repair::{ClosedSocket, QueueStart};

use crate::support::{
    Family, Net, Site, Talk, both_ways, end_of, expect, flow, kernel_test, until,
};

fn id() -> HandoverId {
    HandoverId::from_bytes([9; 16])
}

/// A connection that is frozen on host A, whose source is played by hand.
struct Case {
    net: Net,
    a: Site,
    b: Site,
    peer: TcpStream,
    frozen: Frozen,
    image: Bytes,
    flow: FourTuple,
}

impl Case {
    fn new() -> Self {
        Self::with(&Options::default())
    }

    fn with(options: &Options) -> Self {
        let net = Net::new();
        let (a, b) = Site::pair(&net, options);
        b.serve();
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let socket: OwnedFd = server.into();
        let (frozen, image) = a.call(|here| async move {
            let plan = Plan::read(socket.as_fd()).unwrap();
            let lease = Duration::from_secs(60);
            let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
            let image = frozen.capture(None).unwrap();
            (frozen, image.encode().unwrap().into())
        });
        Self {
            net,
            a,
            b,
            peer,
            frozen,
            image,
            flow,
        }
    }

    /// Says one thing in an exchange of its own, and lets that end.
    fn ask(&self, message: Message) -> Message {
        self.a
            .call(|here| async move { Talk::with_other(&here).await.ask(message).await })
    }

    fn give(&self, image: Bytes) -> Message {
        self.a
            .call(|here| async move { Talk::with_other(&here).await.give(id(), image).await })
    }

    fn offer(&self) {
        let image = self.image.clone();
        let answer = self.give(image);
        assert_eq!(answer.name(), "PREPARED", "{answer:?}");
    }

    fn commit(&self) -> Message {
        self.ask(Message::commit(id()))
    }

    /// Says ABORT; when this returns it has been heard.
    fn abort(&self) {
        self.a.call(|here| async move {
            let mut talk = Talk::with_other(&here).await;
            talk.say(Message::Abort { id: id() }).await;
            let answer = talk.ask(Message::commit(id())).await;
            assert_eq!(answer.name(), "ABORTED", "{answer:?}");
        });
    }

    /// The socket that was built on host B is gone.
    fn is_given_up(&self) {
        until("host B gives it up", || {
            self.net.b.run(|| is_free(self.flow)).unwrap()
        });
    }

    /// As a source does when PREPARED has come.
    fn steer(&mut self) {
        let to = "198.18.0.2".parse().unwrap();
        let peer = self.flow.remote().ip();
        let hop = self
            .a
            .call(move |here| async move { here.locker.next_hop(to, peer).unwrap() });
        let lease = Duration::from_secs(60);
        self.frozen.redirect(&hop, lease).unwrap();
    }

    /// Nothing is locked on host B.
    fn is_unlocked(&self) {
        until("host B unlocks", || self.b.entries(self.flow).is_empty());
    }

    /// The connection goes on at host A, and the peer has seen nothing of what happened.
    fn goes_on(self) {
        let ends = self.net.peer.count(&end_of(self.flow));
        self.b.no_arrival();
        let server = self.frozen.keep().unwrap().into();
        both_ways(&self.peer, &server);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    }

    /// Nothing of the flow reaches the peer while this goes on; host A is silent.
    fn in_silence(&self, act: impl FnOnce()) {
        let (other, end) = self.net.connect(Family::V4);
        let port = self.flow.local().port();
        let heard = self.net.peer.count(&format!("tcp sport {port}"));
        act();
        // What was sent to the peer before this connection's packets would be there before them.
        both_ways(&other, &end);
        assert_eq!(heard.packets(), 0, "host B sent something");
    }
}

/// Whether no socket of the calling thread's host has these addresses.
fn is_free(flow: FourTuple) -> bool {
    let bound = ClosedSocket::open(false).unwrap().bind(flow.local());
    let start = QueueStart {
        snd_una: 1,
        copied_seq: 1,
    };
    bound.unwrap().connect(flow.remote(), start, 1460).is_ok()
}

kernel_test!(commit_comes_over_another_link_and_again, || {
    let mut case = Case::new();
    case.offer();
    case.a.call(|here| async move {
        let to = here.other();
        let peer = here.endpoint.connect(to.address, &to.name).await.unwrap();
        peer.close("for a test");
    });
    case.steer();
    let answer = case.commit();
    assert_eq!(answer.name(), "ACTIVE", "{answer:?}");
    let arrived = case.b.arrival();
    assert_eq!(arrived.flow, case.flow);
    assert_eq!(arrived.from, "host-a");
    let server = arrived.socket.into();
    case.frozen.discard().unwrap();
    both_ways(&case.peer, &server);
});

kernel_test!(commit_again_is_answered_again_and_does_nothing, || {
    let mut case = Case::new();
    case.offer();
    case.steer();
    let first = case.commit();
    assert_eq!(first.name(), "ACTIVE", "{first:?}");
    let server: TcpStream = case.b.arrival().socket.into();
    for _ in 0..3 {
        assert_eq!(case.commit(), first);
    }
    // ABORT comes too late.
    case.a.call(|here| async move {
        let mut talk = Talk::with_other(&here).await;
        talk.say(Message::Abort { id: id() }).await;
        assert_eq!(talk.ask(Message::commit(id())).await.name(), "ACTIVE");
    });
    case.b.no_arrival();
    case.frozen.discard().unwrap();
    both_ways(&case.peer, &server);
});

kernel_test!(a_handover_is_not_offered_twice, || {
    let mut case = Case::new();
    case.offer();
    let image = case.image.clone();
    let answer = case.give(image);
    let Message::Refused { reason, .. } = &answer else {
        panic!("{answer:?}");
    };
    assert!(reason.contains("offered before"), "{reason}");
    // The first offer stands.
    case.steer();
    assert_eq!(case.commit().name(), "ACTIVE");
    let server = case.b.arrival().socket.into();
    case.frozen.discard().unwrap();
    both_ways(&case.peer, &server);
});

kernel_test!(abort_discards_what_was_built, || {
    let case = Case::new();
    case.in_silence(|| {
        case.offer();
        assert_eq!(case.b.entries(case.flow).len(), 1);
        case.abort();
        case.is_unlocked();
    });
    case.goes_on();
});

kernel_test!(what_is_not_committed_in_time_is_discarded, || {
    let mut options = Options::default();
    options.commit_within = Duration::from_millis(200);
    let case = Case::with(&options);
    case.in_silence(|| {
        case.offer();
        case.is_given_up();
        let Message::Aborted { reason, .. } = case.commit() else {
            panic!("the handover is over");
        };
        assert_eq!(reason, "COMMIT did not come in time");
        // The source has its packets again when it says ABORT, and not before.
        assert_eq!(case.b.entries(case.flow).len(), 1);
        case.abort();
        case.is_unlocked();
    });
    case.goes_on();
});

kernel_test!(what_is_given_up_draws_no_reset_from_the_target, || {
    let mut options = Options::default();
    options.commit_within = Duration::from_millis(200);
    let mut case = Case::with(&options);
    case.offer();
    // COMMIT was sent and got lost: the packets go to host B until its answer is heard.
    case.steer();
    case.is_given_up();
    let ends = case.net.peer.count(&end_of(case.flow));
    (&case.peer).write_all(b"meanwhile").unwrap();
    assert_eq!(case.commit().name(), "ABORTED");
    let server: TcpStream = case.frozen.keep().unwrap().into();
    expect(&server, b"meanwhile");
    both_ways(&case.peer, &server);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
});

kernel_test!(
    an_application_that_stops_before_commit_draws_no_reset,
    || {
        let mut case = Case::new();
        case.offer();
        case.steer();
        case.b.stop_serving();
        case.is_given_up();
        let ends = case.net.peer.count(&end_of(case.flow));
        (&case.peer).write_all(b"meanwhile").unwrap();
        let (other, end) = case.net.connect(Family::V4);
        both_ways(&other, &end);
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
        let server: TcpStream = case.frozen.keep().unwrap().into();
        expect(&server, b"meanwhile");
        both_ways(&case.peer, &server);
    }
);

kernel_test!(an_activation_that_fails_draws_no_reset, || {
    let mut case = Case::new();
    case.offer();
    case.peer.set_nodelay(true).unwrap();
    // Something that changes what was built, so that it is built again.
    (&case.peer).write_all(b"before ").unwrap();
    let mut packets = Vec::new();
    until("the packet is captured", || {
        let captured = case.frozen.captured().unwrap();
        packets.extend(
            captured
                .iter()
                .map(|one| Bytes::copy_from_slice(&one.bytes)),
        );
        !packets.is_empty()
    });
    case.steer();
    case.net
        .b
        .ip("route add unreachable 198.18.0.9/32")
        .unwrap();
    let Message::Aborted { reason, .. } = case.ask(Message::Commit { id: id(), packets }) else {
        panic!("it cannot be built again");
    };
    assert!(reason.contains("no route"), "{reason}");
    case.net
        .b
        .ip("route del unreachable 198.18.0.9/32")
        .unwrap();
    // The packets still go to host B.
    let ends = case.net.peer.count(&end_of(case.flow));
    (&case.peer).write_all(b"meanwhile").unwrap();
    let (other, end) = case.net.connect(Family::V4);
    both_ways(&other, &end);
    assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
    let server: TcpStream = case.frozen.keep().unwrap().into();
    expect(&server, b"before meanwhile");
    both_ways(&case.peer, &server);
});

kernel_test!(a_handover_that_nobody_knows_is_unknown, || {
    let case = Case::new();
    assert_eq!(case.commit(), Message::Unknown { id: id() });
    case.goes_on();
});

kernel_test!(nonsense_ends_the_exchange_and_nothing_else, || {
    let case = Case::new();
    case.offer();
    case.a.call(|here| async move {
        for bytes in [&b""[..], b"garbage", &[0xc1; 100]] {
            let mut talk = Talk::with_other(&here).await;
            talk.say_bytes(Bytes::copy_from_slice(bytes)).await;
            assert_eq!(talk.hear().await, None);
        }
        let mut talk = Talk::with_other(&here).await;
        talk.say(Message::Active {
            id: id(),
            rebuild_us: 1,
            activate_us: 1,
        })
        .await;
        assert_eq!(talk.hear().await, None);
    });
    assert_eq!(case.b.entries(case.flow).len(), 1);
    case.b.no_arrival();
});
