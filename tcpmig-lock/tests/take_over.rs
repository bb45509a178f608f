//! Taking over what another process left lets no packet through, and none is answered.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::capture::{ACK, Capture, PSH, RST, Segment};
use common::net::{Host, switch};
use common::{Ends, eventually, isolated};
use socket2::{Domain, Protocol, Socket, Type};
use tcpmig_lock::{
    Entry, EntryKind, Flavour, FourTuple, Iptables, Link, Locker, NextHop, Nftables, RedirectedBy,
    Unplug,
};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);
/// How often each kind is taken over.
const ROUNDS: usize = 5;
/// What the processes are told that take the steps.
const STEP: &str = "TCPMIG_LOCK_TEST_STEP";
const FLOW: &str = "10.0.0.1:80,10.0.0.9:1025";

fn flow() -> FourTuple {
    FLOW.parse().unwrap()
}

/// A switch with the source, the target and the peer.
struct Net {
    source: Host,
    #[allow(dead_code)] // Held.
    target: Host,
    peer: Host,
    switch: Host,
}

impl Net {
    fn new() -> Self {
        let (source, target, peer) = (Host::new(), Host::new(), Host::new());
        let switch = switch(&[(&source, 1), (&target, 2), (&peer, 9)]);
        // Beside the redirected address, as a source has.
        source.ip("address add 10.0.0.3/24 dev eth0");
        for (host, device) in [(&source, "eth0"), (&target, "eth0"), (&peer, "eth0")] {
            host.settle(device);
        }
        Self {
            source,
            target,
            peer,
            switch,
        }
    }
}

/// What a process leaves behind, and how it is taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nftables,
    Redirect,
    Legacy,
    Nft,
    RedirectedBy,
    Device,
}

const KINDS: [(&str, Kind); 6] = [
    ("nftables", Kind::Nftables),
    ("redirect", Kind::Redirect),
    ("legacy", Kind::Legacy),
    ("nft", Kind::Nft),
    ("redirected-by", Kind::RedirectedBy),
    ("device", Kind::Device),
];

impl Kind {
    /// In the namespace of this thread.
    fn locker(self) -> Box<dyn Locker> {
        match self {
            Self::Nftables | Self::Redirect => Box::new(Nftables::new().unwrap()),
            Self::Legacy => Box::new(Iptables::with_flavour(Flavour::Legacy).unwrap()),
            Self::Nft => Box::new(Iptables::with_flavour(Flavour::Nft).unwrap()),
            Self::RedirectedBy => Box::new(RedirectedBy::new(
                Iptables::with_flavour(Flavour::Nft).unwrap(),
                Nftables::new().unwrap(),
            )),
            Self::Device => Box::new(Link::new("port1", Unplug::Port).unwrap()),
        }
    }

    /// Whether what is left is a redirect.
    fn redirects(self) -> bool {
        matches!(self, Self::Redirect | Self::RedirectedBy)
    }
}

fn hop() -> NextHop {
    NextHop::toward("10.0.0.2".parse().unwrap(), flow().remote().ip()).unwrap()
}

/// Segments that draw a reset wherever they are delivered, one after the other.
struct Flood<'a> {
    sent: &'a AtomicU64,
    over: &'a AtomicBool,
}

impl Flood<'_> {
    fn run(&self) {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (flow().remote(), flow().local()) else {
            panic!("IPv4 only");
        };
        let segment = segment(from, to);
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        let to = SocketAddr::from((*to.ip(), 0)).into();
        while !self.over.load(Ordering::Relaxed) {
            // The device may be down, or its queue full.
            if socket.send_to(&segment, &to).is_ok() {
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Waits for more of them.
    fn go_on(&self) {
        let before = self.sent.load(Ordering::Relaxed);
        eventually("more segments", || {
            (self.sent.load(Ordering::Relaxed) > before + 20).then_some(())
        });
    }
}

fn segment(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = ACK | PSH;
    let sum = checksum(*from.ip(), *to.ip(), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let mut bytes = [from.octets(), to.octets()].concat();
    bytes.extend_from_slice(&[0, 6, 0, u8::try_from(segment.len()).unwrap()]);
    bytes.extend_from_slice(segment);
    let words = bytes.as_chunks::<2>().0;
    let mut sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// What a process does with the flow, and then ends without more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Locks it, or redirects it, and leaves that.
    Begin,
    /// Takes it over and leaves the lock.
    TakeOver,
    /// Takes it over, and gives it back.
    GiveBack,
    /// Takes a lock over, and leaves it as it began.
    BeginAgain,
}

const STEPS: [(&str, Step); 4] = [
    ("begin", Step::Begin),
    ("take over", Step::TakeOver),
    ("give back", Step::GiveBack),
    ("begin again", Step::BeginAgain),
];

impl Step {
    fn name(self) -> &'static str {
        STEPS.iter().find(|(_, step)| *step == self).unwrap().0
    }

    /// In a process of its own.
    fn run(self, kind: Kind) {
        let locker = kind.locker();
        let guard = match self {
            Self::Begin => locker.lock(&[flow()], LEASE).unwrap(),
            _ => locker.take_over(&[flow()], LEASE).unwrap(),
        };
        println!("@ holds");
        // The parent lets it go on when more segments have come.
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let taken = guard.taken_over().to_vec();
        match self {
            Self::Begin => assert_eq!(taken, []),
            Self::TakeOver | Self::GiveBack => {
                assert_eq!(taken.len(), 1, "{taken:?}");
                let is_redirect = matches!(taken[0].kind, EntryKind::Redirect { .. });
                assert_eq!(is_redirect, kind.redirects(), "{taken:?}");
            }
            Self::BeginAgain => assert_eq!(taken[0].kind, EntryKind::Lock, "{taken:?}"),
        }
        let entry = the_entry(&*locker);
        assert_eq!(entry.kind, EntryKind::Lock);
        assert_eq!(entry.owner, Some(std::process::id()));
        match self {
            Self::GiveBack => {
                guard.give_back().unwrap();
                let entry = the_entry(&*locker);
                assert_eq!(entry.kind, taken[0].kind);
                assert!(entry.remaining > LEASE / 2, "{entry:?}");
            }
            Self::Begin | Self::BeginAgain if kind.redirects() => {
                guard.redirect(&hop(), LEASE).unwrap().detach();
            }
            _ => guard.detach(),
        }
    }
}

/// What is held. A packet that was being looked at meanwhile may have put back what a rule prolongs; that is removed again.
fn the_entry(locker: &dyn Locker) -> Entry {
    eventually("one entry is there", || {
        let mut entries = locker.list().unwrap();
        (entries.len() == 1).then(|| entries.remove(0))
    })
}

/// Starts a process of `test` that takes this step on the host.
fn start(host: &Host, test: &str, step: Step) -> (Child, impl FnOnce(Child)) {
    let mut child = host.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(STEP, step.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().ends_with("@ holds")),
        "{}: it did not come so far",
        step.name()
    );
    let end = move |mut child: Child| {
        drop(child.stdin.take());
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        assert!(
            child.wait().unwrap().success(),
            "{}: {rest:#?}",
            step.name()
        );
    };
    (child, end)
}

fn without_a_gap(test: &str, name: &str) {
    let kind = KINDS.iter().find(|(known, _)| *known == name).unwrap().1;
    if let Ok(step) = std::env::var(STEP) {
        let step = STEPS.iter().find(|(known, _)| *known == step).unwrap().1;
        return step.run(kind);
    }
    isolated(test, || {
        let net = Net::new();
        let host = if kind == Kind::Device {
            &net.switch
        } else {
            &net.source
        };
        let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let flood = Flood {
            sent: &sent,
            over: &over,
        };
        let take = |step: Step, flooded: bool| {
            let (child, end) = start(host, test, step);
            if flooded {
                flood.go_on();
            }
            end(child);
        };
        take(Step::Begin, false);
        let mut wire = Capture::new(&net.peer);
        std::thread::scope(|scope| {
            let _ends = Ends(&over);
            scope.spawn(|| net.peer.run(|| flood.run()));
            flood.go_on();
            for _ in 0..ROUNDS {
                for step in [Step::GiveBack, Step::TakeOver, Step::BeginAgain] {
                    take(step, true);
                    flood.go_on();
                    answered(&mut wire, name, step);
                }
            }
            // They would be answered.
            release(host, kind);
            eventually("a reset", || {
                let mut segments = wire.segments().into_iter();
                segments.find(|segment| segment.flags & RST != 0)
            });
        });
    });
}

/// Asserts that nobody has answered the peer.
fn answered(wire: &mut Capture, kind: &str, step: Step) {
    let answer = wire
        .segments()
        .into_iter()
        .find(|segment: &Segment| segment.to == flow().remote());
    assert_eq!(answer, None, "{kind}, {}", step.name());
}

fn release(host: &Host, kind: Kind) {
    host.run(|| match kind {
        Kind::Nftables | Kind::Redirect => {
            Nftables::new().unwrap().force_unlock(&[flow()]).unwrap();
        }
        Kind::Legacy | Kind::Nft => {
            let flavour = match kind {
                Kind::Legacy => Flavour::Legacy,
                _ => Flavour::Nft,
            };
            let locker = Iptables::with_flavour(flavour).unwrap();
            locker.force_unlock(&[flow()]).unwrap();
        }
        Kind::RedirectedBy => Nftables::new().unwrap().force_unlock(&[flow()]).unwrap(),
        Kind::Device => Link::force_unlock_all(&[flow()]).unwrap(),
    });
}

macro_rules! kinds {
    ($($test:ident: $kind:literal,)*) => {
        $(
            #[test]
            fn $test() {
                without_a_gap(stringify!($test), $kind);
            }
        )*
    };
}

kinds! {
    a_lock_of_nftables_is_taken_over_without_a_gap: "nftables",
    a_redirect_is_taken_over_without_a_gap: "redirect",
    a_lock_of_iptables_legacy_is_taken_over_without_a_gap: "legacy",
    a_lock_of_iptables_nft_is_taken_over_without_a_gap: "nft",
    a_redirect_of_two_lockers_is_taken_over_without_a_gap: "redirected-by",
    an_unplugged_device_is_taken_over_without_a_gap: "device",
}
