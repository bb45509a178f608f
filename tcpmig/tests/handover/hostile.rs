//! What a host that is let in can do to a target beyond giving it connections.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::resource::{Resource, setrlimit};
use tcpmig::capture::{Frozen, Plan};
use tcpmig::driver::{Acceptor, Ending, Options};
use tcpmig::handover::{HandoverId, Message};
use tcpmig_format::{FourTuple, Image};
use tcpmig_lock::{Entry, Features, LockError, LockGuard, Locker, Nftables, Swept};
use tcpmig_sys::process::descriptors;
use tcpmig_sys::sockopt;

use crate::support::{
    Family, Keys, Net, Site, Talk, both_ways, endpoint, flow, kept, kernel_test, until,
};

/// The image of a connection of host A, which stands still as long as the other part lives.
pub(crate) fn image_of(a: &Site, server: TcpStream) -> (Frozen, Image) {
    let socket: OwnedFd = server.into();
    a.call(|here| async move {
        let plan = Plan::read(socket.as_fd()).unwrap();
        let lease = Duration::from_secs(60);
        let mut frozen = Frozen::freeze(socket, plan, &*here.locker, lease).unwrap();
        let image = frozen.capture(None).unwrap();
        (frozen, image)
    })
}

fn of_another(image: &Image, flow: FourTuple) -> Bytes {
    let mut image = image.clone();
    image.ip_mut().unwrap().flow = flow;
    image.encode().unwrap().into()
}

pub(crate) fn refusal(answer: Message) -> String {
    match answer {
        Message::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn id() -> HandoverId {
    HandoverId::random().unwrap()
}

/// Counts how often something is locked.
struct Counting(Nftables, Arc<AtomicU64>);

impl Locker for Counting {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock(flows, lease)
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        self.0.sweep()
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        self.0.list()
    }
}

/// Host B takes connections in; how often it has locked something.
pub(crate) fn serve_counting(b: &Site) -> Arc<AtomicU64> {
    let locks = Arc::new(AtomicU64::new(0));
    let count = locks.clone();
    b.call(|here| async move {
        let locker = Counting(tcpmig::locker::nftables().unwrap(), count);
        let arrivals = Acceptor::new(here.endpoint.clone(), Arc::new(locker))
            .options(here.options.clone())
            .serve();
        here.keep(arrivals);
    });
    locks
}

/// A connection of the peer with host B itself: the ends at host B and at the peer.
fn of_host_b(net: &Net, device: Option<&str>) -> (TcpStream, TcpStream) {
    let listener = net.b.run(|| std::net::TcpListener::bind("198.18.0.2:0"));
    let listener = listener.unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let far = net.peer.run(|| TcpStream::connect(to)).unwrap().unwrap();
    let (near, _) = listener.accept().unwrap();
    if let Some(device) = device {
        sockopt::set_bound_device(near.as_fd(), device).unwrap();
    }
    (near, far)
}

kernel_test!(
    an_offer_for_a_live_connection_of_the_target_does_not_silence_it,
    || {
        let net = Net::new();
        let (a, b) = Site::pair(&net, &Options::default());
        let locks = serve_counting(&b);
        let (peer, server) = net.connect(Family::V4);
        let (_frozen, image) = image_of(&a, server);
        // The packets of both have the four-tuples that are offered.
        let own = |device| of_host_b(&net, device);
        let live = [own(None), own(Some("eth0"))];
        for (near, far) in &live {
            let flow = flow(near);
            let offered = of_another(&image, flow);
            let reasons = a.begin(move |here| async move {
                let mut talk = Talk::with_other(&here).await;
                let mut reasons = Vec::new();
                for _ in 0..200 {
                    let image = offered.clone();
                    let answer = talk.give(id(), image).await;
                    reasons.push(refusal(answer));
                }
                reasons
            });
            both_ways(near, far);
            let expected = format!(
                "{flow}: a connection with these addresses and ports lives here already, in ESTABLISHED"
            );
            assert!(reasons.wait().iter().all(|reason| *reason == expected));
            assert_eq!(b.entries(flow), []);
            both_ways(near, far);
        }
        assert_eq!(locks.load(Ordering::Relaxed), 0, "locked meanwhile");
        drop(peer);
    }
);

/// One exchange with host B of a host of another name.
async fn talk_as(pem: &[String; 3]) -> (tcpmig_transport::Endpoint, Talk) {
    let other = endpoint("198.18.0.1:0".parse().unwrap(), pem);
    let to = "198.18.0.2:7077".parse().unwrap();
    let peer = other.connect(to, "host-b").await.unwrap();
    (other, Talk::over(&peer).await)
}

kernel_test!(
    commit_and_abort_count_only_from_the_host_that_sent_the_offer,
    || {
        let net = Net::new();
        let keys = Keys::new();
        let (a, b) = Site::pair_with(&net, &keys, &Options::default());
        let locks = serve_counting(&b);
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let (frozen, image) = image_of(&a, server);
        let (offered, id) = (of_another(&image, flow), id());
        let image = offered.clone();
        let answer = a.call(move |here| async move {
            let mut talk = Talk::with_other(&here).await;
            talk.give(id, image).await
        });
        assert_eq!(answer.name(), "PREPARED", "{answer:?}");
        let pem = keys.pem("host-c");
        let answers = a.call(move |_| async move {
            let (_other, mut talk) = talk_as(&pem).await;
            let mut answers = Vec::new();
            talk.say(Message::Abort { id }).await;
            answers.push(talk.ask(Message::commit(id)).await);
            let image = offered;
            answers.push(talk.give(id, image).await);
            answers
        });
        assert_eq!(answers[0], Message::Unknown { id });
        assert!(refusal(answers[1].clone()).contains("offered before"));
        // It waits as it did, and is taken back by the host that it is of.
        assert_eq!(b.entries(flow).len(), 1);
        a.call(move |here| async move {
            let mut talk = Talk::with_other(&here).await;
            talk.say(Message::Abort { id }).await;
            assert_eq!(talk.ask(Message::commit(id)).await.name(), "ABORTED");
        });
        until("host B unlocks", || b.entries(flow).is_empty());
        assert_eq!(locks.load(Ordering::Relaxed), 1);
        let server = frozen.keep().unwrap().into();
        both_ways(&peer, &server);
    }
);

kernel_test!(one_host_leaves_the_others_their_places, || {
    let net = Net::new();
    let keys = Keys::new();
    let mut options = Options::default();
    options.prepared_by_each = 1;
    let (a, b) = Site::pair_with(&net, &keys, &options);
    b.serve();
    let (_peers, images): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| {
            let (peer, server) = net.connect(Family::V4);
            let (frozen, image) = image_of(&a, server);
            ((peer, frozen), Bytes::from(image.encode().unwrap()))
        })
        .unzip();
    let pem = keys.pem("host-c");
    let answers = a.call(|here| async move {
        let mut talk = Talk::with_other(&here).await;
        let (_other, mut others) = talk_as(&pem).await;
        let mut images = images.into_iter();
        let mut next = || images.next().unwrap();
        [
            talk.give(id(), next()).await,
            talk.give(id(), next()).await,
            others.give(id(), next()).await,
        ]
    });
    let [first, second, third] = answers;
    assert_eq!(first.name(), "PREPARED", "{first:?}");
    let reason = refusal(second);
    assert!(reason.starts_with("full: 1 connections wait"), "{reason}");
    assert_eq!(third.name(), "PREPARED", "{third:?}");
});

kernel_test!(what_is_given_up_has_its_place_until_it_is_unlocked, || {
    let net = Net::new();
    let mut options = Options::default();
    options.prepared_by_each = 1;
    options.bytes_by_each = 10_000;
    options.commit_within = Duration::from_millis(100);
    options.lease = Duration::from_secs(2);
    let (a, b) = Site::pair(&net, &options);
    b.serve();
    let connected = || {
        let (peer, server) = net.connect(Family::V4);
        let flow = flow(&server);
        let (frozen, image) = image_of(&a, server);
        (peer, frozen, flow, of_another(&image, flow))
    };
    let (_first_peer, _first_frozen, first_flow, first) = connected();
    let (_peer, _frozen, flow, second) = connected();
    let (id, again) = (id(), second.clone());
    a.call(move |here| async move {
        let mut talk = Talk::with_other(&here).await;
        let answer = talk.give(id, first).await;
        assert_eq!(answer.name(), "PREPARED", "{answer:?}");
        // Not answered before it was given up.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let answer = talk.ask(Message::commit(id)).await;
        assert_eq!(answer.name(), "ABORTED", "{answer:?}");
    });
    // Its lease has ended several times, and it is renewed all the time.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(b.entries(first_flow).len(), 1);
    let refused = a.call(|here| async move {
        let mut talk = Talk::with_other(&here).await;
        let id = HandoverId::random().unwrap();
        talk.give(id, second).await
    });
    let reason = refusal(refused);
    assert!(reason.contains("full: 1 connections wait"), "{reason}");
    let answer = a.call(move |here| async move {
        let mut talk = Talk::with_other(&here).await;
        talk.say(Message::Abort { id }).await;
        let id = HandoverId::random().unwrap();
        talk.give(id, again).await
    });
    assert_eq!(answer.name(), "PREPARED", "{answer:?}");
    assert_eq!(b.entries(first_flow), []);
    assert_eq!(b.entries(flow).len(), 1);
});

/// Bytes of memory that this process has.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Runs the rest of a test in a process of its own, for what concerns all of a process. The name is
/// that of the test.
fn alone(name: &str, body: impl FnOnce()) {
    const ALONE: &str = "TCPMIG_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    let output = program
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

kernel_test!(refused_offers_leave_nothing, || {
    alone("hostile::refused_offers_leave_nothing", refused_offers);
});

fn refused_offers() {
    const OFFERS: usize = 20_000;
    let net = Net::new();
    let (a, b) = Site::pair(&net, &Options::default());
    b.serve();
    let (peer, server) = net.connect(Family::V4);
    let (frozen, image) = image_of(&a, server);
    // Refused after all that can be looked at has been: it lives at host B.
    let (near, far) = of_host_b(&net, None);
    let flow = crate::support::flow(&near);
    let image = of_another(&image, flow);
    let offer = |count: usize| {
        let image = image.clone();
        a.call(move |here| async move {
            let mut talk = Talk::with_other(&here).await;
            for _ in 0..count / 100 {
                // So many at a time that the exchange is busy, and its window is not full.
                for _ in 0..100 {
                    let (id, draft) = (id(), image.clone());
                    let queued = 0;
                    talk.say(Message::Offer { id, queued, draft }).await;
                }
                for _ in 0..100 {
                    refusal(talk.answer().await);
                }
            }
        });
    };
    // What is needed for any number of them.
    offer(5_000);
    let (before, begin) = (memory(), Instant::now());
    for _ in 0..OFFERS / 5_000 {
        offer(5_000);
    }
    let grown = memory().saturating_sub(before);
    println!(
        "{OFFERS} refused offers in {:?} left {grown} bytes",
        begin.elapsed()
    );
    assert!(grown < 4 << 20, "{grown} bytes are left");
    assert_eq!(b.entries(flow), []);
    both_ways(&near, &far);
    both_ways(&peer, &frozen.keep().unwrap().into());
}

kernel_test!(the_application_keeps_its_descriptors, || {
    alone("hostile::the_application_keeps_its_descriptors", || {
        let net = Net::new();
        let mut options = Options::default();
        options.reserved_descriptors = u64::MAX;
        let (a, b) = Site::pair(&net, &options);
        b.serve();
        let (peer, server) = net.connect(Family::V4);
        // The first descriptor that is free is beyond three quarters of what the process may have.
        setrlimit(Resource::RLIMIT_NOFILE, 600, 600).unwrap();
        let in_use: Vec<_> = (0..460).map(|_| peer.try_clone().unwrap()).collect();
        let (server, reason) = kept(a.move_out(server, None).wait());
        assert!(
            reason.contains("full: ") && reason.contains("descriptors are left of 600"),
            "{reason}"
        );
        both_ways(&peer, &server);
        drop(in_use);
        let outcome = a.move_out(server, None).wait();
        assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
        both_ways(&peer, &b.arrival().socket.into());
    });
});

kernel_test!(
    the_limit_of_descriptors_is_raised_when_they_run_short,
    || {
        alone(
            "hostile::the_limit_of_descriptors_is_raised_when_they_run_short",
            || {
                let net = Net::new();
                let mut options = Options::default();
                options.reserved_descriptors = 256;
                let (a, b) = Site::pair(&net, &options);
                b.serve();
                setrlimit(Resource::RLIMIT_NOFILE, 600, 1200).unwrap();
                let (peer, server) = net.connect(Family::V4);
                // Enough are free.
                let outcome = a.move_out(server, None).wait();
                assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                both_ways(&peer, &b.arrival().socket.into());
                assert_eq!(descriptors::limit().unwrap(), (600, 1200));

                let (peer, server) = net.connect(Family::V4);
                let _in_use: Vec<_> = (0..460).map(|_| peer.try_clone().unwrap()).collect();
                let outcome = a.move_out(server, None).wait();
                assert!(matches!(outcome.ending, Ending::Moved), "{outcome:?}");
                both_ways(&peer, &b.arrival().socket.into());
                assert_eq!(descriptors::limit().unwrap(), (1200, 1200));
            },
        );
    }
);
