//! The target does not take the connection: it goes on where it is.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::{Options, Outcome};
use tcpmig::handover::{HandoverId, Message};
use tcpmig_format::FourTuple;
use tcpmig_lock::Locker;
use tcpmig_sys::repair::{ClosedSocket, QueueStart};

use crate::support::{END, Family, Net, Site, Talk, both_ways, flow, kept, kernel_test, until};

/// A connection that is to be refused.
struct Case {
    net: Net,
    a: Site,
    b: Site,
    peer: TcpStream,
    flow: FourTuple,
}

impl Case {
    fn new(net: Net) -> (Self, TcpStream) {
        let connected = net.connect(Family::V4);
        Self::with(net, connected)
    }

    fn with(net: Net, (peer, server): (TcpStream, TcpStream)) -> (Self, TcpStream) {
        let sites = Site::pair(&net, &Options::default());
        Self::at(net, sites, (peer, server))
    }

    /// One in which the target does not answer.
    fn alone() -> (Self, TcpStream) {
        let net = Net::new();
        let connected = net.connect(Family::V4);
        let sites = Site::pair_that_may_lose_one(&net, &Options::default());
        Self::at(net, sites, connected)
    }

    fn at(
        net: Net,
        (a, b): (Site, Site),
        (peer, server): (TcpStream, TcpStream),
    ) -> (Self, TcpStream) {
        let case = Self {
            flow: flow(&server),
            net,
            a,
            b,
            peer,
        };
        (case, server)
    }

    /// It was kept for a reason with these words, and goes on.
    fn is_kept(&self, outcome: Outcome, words: &[&str]) -> TcpStream {
        let ends = self.net.peer.count(END);
        assert_eq!(outcome.flow, Some(self.flow));
        let (server, reason) = kept(outcome);
        for word in words {
            assert!(reason.contains(word), "no {word:?} in {reason:?}");
        }
        both_ways(&self.peer, &server);
        assert_eq!(self.a.entries(self.flow), [], "locked after: {reason}");
        // It hears of it after the source goes on.
        until("the target unlocks", || {
            self.b.entries(self.flow).is_empty()
        });
        assert_eq!(ends.packets(), 0, "RST or FIN at the peer");
        server
    }
}

kernel_test!(a_connection_that_lives_on_the_target_already, || {
    let (case, server) = Case::new(Net::new());
    case.b.serve();
    // In repair mode and silent.
    let twin = case.net.b.run(|| {
        let bound = ClosedSocket::open(false).unwrap().bind(case.flow.local());
        let start = QueueStart {
            snd_una: 1,
            copied_seq: 1,
        };
        bound
            .unwrap()
            .connect(case.flow.remote(), start, 1460)
            .unwrap()
    });
    let outcome = case.a.move_out(server, None).wait();
    let words = ["refused", "lives here already, in ESTABLISHED"];
    let server = case.is_kept(outcome, &words);

    // What was refused once can move when its reason is gone.
    drop(twin);
    let outcome = case.a.move_out(server, None).wait();
    assert!(matches!(outcome.ending, tcpmig::driver::Ending::Moved));
    both_ways(&case.peer, &case.b.arrival().socket.into());
});

kernel_test!(an_address_that_the_target_does_not_have, || {
    let (case, server) = Case::new(Net::without_service_on_b());
    case.b.serve();
    let outcome = case.a.move_out(server, None).wait();
    let words = [
        "refused",
        "the local address 198.18.0.80 is not on this host",
        "Rules::local",
    ];
    case.is_kept(outcome, &words);
});

kernel_test!(a_peer_to_which_the_target_has_no_route, || {
    let net = Net::new();
    net.peer.ip("addr add 198.19.0.9/32 dev lo").unwrap();
    net.a.ip("route add 198.19.0.0/24 via 198.18.0.9").unwrap();
    let from = "198.19.0.9".parse().unwrap();
    let connected = net.connect_from(Family::V4, Some(from));
    let (case, server) = Case::with(net, connected);
    case.b.serve();
    let outcome = case.a.move_out(server, None).wait();
    case.is_kept(outcome, &["gave it up", "connect:", "no route to the peer"]);
});

kernel_test!(a_flow_that_is_locked_on_the_target, || {
    let (case, server) = Case::new(Net::new());
    case.b.serve();
    let flow = case.flow;
    let lock = case.b.call(move |here| async move {
        here.locker.lock(&[flow], Duration::from_secs(60)).unwrap()
    });
    let outcome = case.a.move_out(server, None).wait();
    assert_eq!(
        case.b.entries(flow).len(),
        1,
        "another's lock is not touched"
    );
    lock.unlock().unwrap();
    case.is_kept(outcome, &["refused", "lock:", "already locked"]);
});

kernel_test!(an_application_that_takes_no_more_connections, || {
    let (case, server) = Case::alone();
    case.b.serve();
    case.b.stop_serving();
    let outcome = case.a.move_out(server, None).wait();
    case.is_kept(outcome, &["link to the target", "198.18.0.2:7077"]);
});

kernel_test!(
    an_application_that_stops_when_the_hosts_know_each_other,
    || {
        let (case, server) = Case::new(Net::new());
        case.b.serve();
        case.a.call(|here| async move {
            let (address, name) = (here.other().address, here.other().name);
            drop(here.endpoint.connect(address, &name).await.unwrap());
        });
        case.b.stop_serving();
        let outcome = case.a.move_out(server, None).wait();
        case.is_kept(outcome, &["link to the target"]);
    }
);

kernel_test!(a_target_that_is_not_there, || {
    let (case, server) = Case::alone();
    case.net.b.ip("link set eth0 down").unwrap();
    let outcome = case.a.move_out(server, None).wait();
    case.is_kept(outcome, &["link to the target", "198.18.0.2:7077"]);
});

kernel_test!(a_target_of_another_name, || {
    let (case, server) = Case::new(Net::new());
    case.b.serve();
    let socket: OwnedFd = server.into();
    let outcome = case.a.call(|here| async move {
        let mut to = here.other();
        to.name = "host-c".to_owned();
        here.mover().move_out(socket, None, &to).await
    });
    case.is_kept(outcome, &["link to the target", "host-c", "host-b"]);
});

kernel_test!(a_target_that_is_the_source_itself, || {
    let (case, server) = Case::new(Net::new());
    let socket: OwnedFd = server.into();
    let outcome = case.a.call(|here| async move {
        let own: SocketAddr = here.endpoint.local_addr().unwrap();
        let lease = here.options.redirect_lease;
        let mut to = here.other();
        to.steer = std::sync::Arc::new(tcpmig::steer::Redirected::new(own.ip(), lease).unwrap());
        here.mover().move_out(socket, None, &to).await
    });
    case.is_kept(outcome, &["redirect:", "is an address of this host"]);
});

kernel_test!(an_image_that_was_damaged_on_the_way, || {
    let (case, server) = Case::new(Net::new());
    case.b.serve();
    let socket: OwnedFd = server.into();
    let (socket, answers) = case.a.call(|here| async move {
        let plan = Plan::read(std::os::fd::AsFd::as_fd(&socket)).unwrap();
        let lease = here.options.lease;
        let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
        let whole = frozen.capture(None).unwrap().encode().unwrap().to_vec();
        let socket = frozen.keep().unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let mut talk = Talk::with_other(&here).await;
        let mut answers = Vec::new();
        for image in [
            flipped,
            whole[..whole.len() - 1].to_vec(),
            b"nonsense".to_vec(),
            Vec::new(),
        ] {
            let id = HandoverId::random().unwrap();
            let image = image.into();
            let answer = talk.give(id, image).await;
            assert_eq!(answer.id(), Some(id));
            // Nothing is left there of a handover that was refused.
            let commit = talk.ask(Message::commit(id)).await;
            assert_eq!(commit, Message::Unknown { id });
            answers.push(answer);
        }
        (socket, answers)
    });
    for answer in answers {
        let Message::Refused { reason, .. } = answer else {
            panic!("{answer:?}");
        };
        assert!(reason.starts_with("image: "), "{reason}");
    }
    both_ways(&case.peer, &socket.into());
    assert_eq!(case.b.entries(case.flow), []);
    case.b.no_arrival();
});
