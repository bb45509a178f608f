//! Source or target killed, or the link between them cut, at each step of a handover, with a peer that sends and
//! receives meanwhile: afterwards one host has the connection and no byte is lost or repeated, or what happened to
//! it is said, if need be by the process that is started after the one that died.
//!
//! `TCPMIG_FAULTS=N` tries N faults in random order and at random moments instead of each once, `TCPMIG_FAULTS_SEED=S` those
//! of S, `TCPMIG_FAULTS_ONLY=FAULT` only those of one kind:
//!
//!     TCPMIG_FAULTS=500 cargo test -p tcpmig --test faults
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod batch;
mod notes;
mod peer;
mod process;
mod roles;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use support::{END, Keys, Net, PATIENCE};
use tcpmig_lock::{EntryKind, Locker};
use tcpmig_sys::lab::Host;

use peer::Peer;
use process::{Limits, Process};
use support::until;

/// Where a process stands when it is stopped for a moment, in the order in which a handover comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Target: it takes the connection, before ACCEPTED.
    Accept,
    /// Source: the packets are locked.
    Locked,
    /// Source: before steering.
    Steering,
    /// Source: steered, before COMMIT is decided.
    Steered,
    /// Source: it is noted that COMMIT may be sent.
    Decided,
    /// Target: COMMIT is there, and nothing was done.
    Activate,
    /// Target: it is noted that it may live from now on.
    Noted,
    /// Target: the application has it.
    Active,
}

const STEPS: [Step; 8] = [
    Step::Accept,
    Step::Locked,
    Step::Steering,
    Step::Steered,
    Step::Decided,
    Step::Activate,
    Step::Noted,
    Step::Active,
];

impl Step {
    fn is_of_source(self) -> bool {
        matches!(
            self,
            Self::Locked | Self::Steering | Self::Steered | Self::Decided
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    KillSource,
    KillTarget,
    KillBoth,
    /// What the hosts say to each other is dropped.
    CutLink,
    /// The target is cut off from everybody.
    TargetDown,
    /// The source is.
    SourceDown,
    /// The source's process stands still for longer than its lease.
    StopSource,
    /// The target's does.
    StopTarget,
    /// Somebody loads another rule set on the source: its locks and redirects are gone.
    FlushSource,
    /// On the target.
    FlushTarget,
}

const FAULTS: [Fault; 10] = [
    Fault::KillSource,
    Fault::KillTarget,
    Fault::KillBoth,
    Fault::CutLink,
    Fault::TargetDown,
    Fault::SourceDown,
    Fault::StopSource,
    Fault::StopTarget,
    Fault::FlushSource,
    Fault::FlushTarget,
];

impl Fault {
    fn kills_source(self) -> bool {
        matches!(self, Self::KillSource | Self::KillBoth)
    }

    fn kills_target(self) -> bool {
        matches!(self, Self::KillTarget | Self::KillBoth)
    }

    /// Whether a connection that moved can have ended. Between a flush on the source and the moment in which its process
    /// has set the redirect up again a packet of the peer draws RST; before the move, the frozen socket keeps it silent.
    fn may_end(self) -> bool {
        self.kills_source() || self.kills_target() || self == Self::FlushSource
    }

    /// What a process that is killed has locked ends with its lease: not before the one after it is there. In all other
    /// cases somebody has to renew it.
    ///
    /// At once a source commits only to a target whose lock lasts for longer than it waits for an answer, several times.
    fn lease(self, at_once: bool) -> Duration {
        if self.kills_source() || self.kills_target() {
            Duration::from_secs(90)
        } else {
            Duration::from_secs(if at_once { 3 } else { 1 })
        }
    }

    /// Longer than the source waits for PREPARED, and than a lease.
    fn lasts(self, at_once: bool) -> Duration {
        match self {
            Self::StopSource | Self::StopTarget => self.lease(at_once) * 5 / 2,
            Self::KillSource | Self::KillTarget | Self::KillBoth => Duration::ZERO,
            Self::FlushSource | Self::FlushTarget => Duration::ZERO,
            _ => roles::PREPARED_WITHIN + Duration::from_millis(400),
        }
    }
}

/// What has to become of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// It goes on at the source, which says so.
    Kept,
    /// It goes on at the target, and the source says so.
    Moved,
    /// The source says so.
    Lost,
    /// It moved and ended with the target's process.
    Ended,
    /// Either, by chance.
    KeptOrMoved,
    /// It moved, and may have ended since.
    MovedOrEnded,
    /// Whether its image had left when the source died is chance.
    MovedOrLost,
}

impl Expected {
    fn allows(self, became: Self) -> bool {
        match self {
            Self::KeptOrMoved => matches!(became, Self::Kept | Self::Moved),
            Self::MovedOrEnded => matches!(became, Self::Moved | Self::Ended),
            Self::MovedOrLost => matches!(became, Self::Moved | Self::Lost),
            // Whether the source had heard of the move before it died is chance.
            Self::Ended => matches!(became, Self::Ended | Self::Lost),
            _ => self == became,
        }
    }
}

/// With a fault at a step; the source may have died and been started again.
fn expected(step: Step, fault: Fault, at_once: bool) -> Expected {
    // The image and COMMIT come when they can, or COMMIT comes again before the image.
    let is_under_way = at_once && (Step::Locked..=Step::Decided).contains(&step);
    match fault {
        // The source owned it, and its process is dead.
        Fault::KillSource if step <= Step::Steered => Expected::Lost,
        Fault::KillSource if step == Step::Decided && at_once => Expected::MovedOrLost,
        Fault::KillSource => Expected::Moved,
        Fault::KillBoth if step == Step::Active => Expected::Ended,
        Fault::KillBoth => Expected::Lost,
        Fault::KillTarget => match step {
            Step::Active => Expected::Ended,
            Step::Noted => Expected::Lost,
            _ => Expected::Kept,
        },
        // It has no way to the peer, so it does not take the connection; unless the link is back before it gets on.
        Fault::TargetDown if matches!(step, Step::Activate | Step::Noted) => Expected::KeptOrMoved,
        // Its own deadline may be the first thing that it sees when it goes on.
        Fault::StopSource if step <= Step::Decided => Expected::KeptOrMoved,
        Fault::FlushSource if step == Step::Active => Expected::MovedOrEnded,
        // It is set up again, and the handover goes on. It may begin before that, and is kept then.
        Fault::FlushSource | Fault::FlushTarget => Expected::KeptOrMoved,
        _ if is_under_way => Expected::KeptOrMoved,
        _ if step <= Step::Locked => Expected::Kept,
        _ => Expected::Moved,
    }
}

/// Whether COMMIT follows the image at once. Each fault is tried at each second step in this way, and at the others in the
/// other way.
fn at_once(when: When, fault: Fault) -> bool {
    let moment = match when {
        When::At(step) => step as u128,
        When::After(time) | When::Many(_, time) => time.as_micros(),
    };
    (moment + fault as u128).is_multiple_of(2)
}

/// When a fault comes.
#[derive(Debug, Clone, Copy)]
enum When {
    At(Step),
    /// So long after the move has begun, wherever it stands.
    After(Duration),
    /// So long after so many of a batch have ended.
    Many(usize, Duration),
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("role") {
        return roles::run(arguments);
    }
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let seed = number("TCPMIG_FAULTS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut random = splitmix64(seed);
    let steps = STEPS
        .iter()
        .flat_map(|&step| FAULTS.map(|fault| (When::At(step), fault)));
    let mut cases: Vec<(When, Fault)> = steps.collect();
    let only = std::env::var("TCPMIG_FAULTS_ONLY").ok();
    let wanted = |fault: Fault| {
        only.as_ref()
            .is_none_or(|only| format!("{fault:?}") == *only)
    };
    cases.retain(|(_, fault)| wanted(*fault));
    assert!(!cases.is_empty(), "no fault is called {only:?}");
    let count = number("TCPMIG_FAULTS");
    println!(
        "TCPMIG_FAULTS={} TCPMIG_FAULTS_SEED={seed}",
        count.unwrap_or(0)
    );
    let some_time = |random: u64| Duration::from_micros(random % 40_000);
    let many = |random: u64| {
        let ended = random as usize % (roles::BATCH - 4);
        When::Many(ended, Duration::from_micros((random >> 32) % 4_000))
    };
    if let Some(count) = count {
        let all = cases.clone();
        cases = (0..count)
            .map(|_| {
                let (when, fault) = all[random() as usize % all.len()];
                match random() % 4 {
                    0 | 1 => (when, fault),
                    2 => (When::After(some_time(random())), fault),
                    _ => (many(random()), fault),
                }
            })
            .collect();
    } else {
        for fault in FAULTS.into_iter().filter(|fault| wanted(*fault)) {
            cases.push((When::After(some_time(random())), fault));
            cases.push((many(random()), fault));
        }
    }
    notes::a_process_that_dies_while_it_notes(splitmix64(random()));

    // They wait more than they compute; but what starves meets time limits that are not what is tested here.
    let at_once = 2 * thread::available_parallelism().map_or(1, usize::from);
    let cases = Mutex::new(cases.into_iter());
    thread::scope(|scope| {
        for _ in 0..at_once.clamp(2, 4) {
            scope.spawn(|| {
                loop {
                    let next = cases.lock().unwrap().next();
                    let Some((when, fault)) = next else { return };
                    let what = format!("{fault:?} {when:?}");
                    let begin = Instant::now();
                    let tried = std::panic::catch_unwind(|| match when {
                        When::Many(ended, time) => batch::try_fault(ended, time, fault),
                        _ => format!("{:?}", try_fault(when, fault)),
                    });
                    match tried {
                        Ok(became) => {
                            println!("{what}: {became} ({:.1} s)", begin.elapsed().as_secs_f32());
                        }
                        Err(_) => {
                            println!("FAILED: {what}, TCPMIG_FAULTS_SEED={seed}");
                            std::process::exit(1);
                        }
                    }
                }
            });
        }
    });
}

/// Random numbers.
fn splitmix64(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The hosts, and what happens to them.
struct Scene {
    net: Net,
    pem: [[String; 3]; 2],
    directory: tempfile::TempDir,
    limits: Limits,
    /// The fault.
    lasts: Duration,
}

impl Scene {
    fn new(fault: Fault, when: When) -> Self {
        let keys = Keys::new();
        // Where a fault comes before PREPARED its end is not waited for; where it comes later it has to be reached, however
        // busy the machine is.
        let prepared_within = match when {
            When::At(step) if step > Step::Locked => PATIENCE,
            _ => roles::PREPARED_WITHIN,
        };
        let at_once = at_once(when, fault);
        let commit_at_once = if at_once { usize::MAX } else { 0 };
        Self {
            limits: Limits {
                lease: fault.lease(at_once),
                prepared_within,
                commit_at_once,
            },
            lasts: fault.lasts(at_once),
            net: Net::new(),
            // A host that starts again has the same key.
            pem: ["host-a", "host-b"].map(|name| keys.pem(name)),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn source(&self, role: &str) -> Process {
        let journal = self.directory.path().join("source");
        Process::start(&self.net.a, role, &self.pem[0], &journal, self.limits)
    }

    fn target(&self, role: &str) -> Process {
        let journal = self.directory.path().join("target");
        let target = Process::start(&self.net.b, role, &self.pem[1], &journal, self.limits);
        target.hear("serving");
        target
    }

    /// Does it, and lets the processes go on.
    fn happen(&self, fault: Fault, source: &mut Process, target: &mut Process) {
        if fault.kills_source() {
            source.kill();
        }
        if fault.kills_target() {
            target.kill();
            *target = self.target(target.role());
        }
        let link = |host: &Host, state| host.ip(&format!("link set eth0 {state}")).unwrap();
        let stopped = match fault {
            Fault::StopSource => Some(source.stop()),
            Fault::StopTarget => Some(target.stop()),
            Fault::CutLink => {
                cut(&self.net.b);
                None
            }
            Fault::TargetDown => {
                link(&self.net.b, "down");
                None
            }
            Fault::SourceDown => {
                link(&self.net.a, "down");
                None
            }
            Fault::FlushSource => {
                self.net.a.nft("flush ruleset");
                None
            }
            Fault::FlushTarget => {
                self.net.b.nft("flush ruleset");
                None
            }
            Fault::KillSource | Fault::KillTarget | Fault::KillBoth => None,
        };
        // Steps that come after the fault pass.
        source.let_on();
        target.let_on();
        if self.lasts > Duration::ZERO {
            thread::sleep(self.lasts);
        }
        drop(stopped);
        match fault {
            Fault::KillSource
            | Fault::KillTarget
            | Fault::KillBoth
            | Fault::StopSource
            | Fault::StopTarget
            | Fault::FlushSource
            | Fault::FlushTarget => {}
            Fault::CutLink => drop(self.net.b.nft("delete table inet cut")),
            Fault::TargetDown => link(&self.net.b, "up"),
            Fault::SourceDown => link(&self.net.a, "up"),
        }
    }

    /// Whether a host has a lock, or a redirect.
    fn has(host: &Host, lock: bool) -> bool {
        let list = || tcpmig::locker::nftables().unwrap().list().unwrap();
        let entries = host.run(list).unwrap();
        entries
            .iter()
            .any(|entry| matches!(entry.kind, EntryKind::Lock) == lock)
    }
}

fn try_fault(when: When, fault: Fault) -> Expected {
    let scene = Scene::new(fault, when);
    let mut target = scene.target("target");
    let mut source = scene.source("source");
    source.hear("listening");
    let ends = scene.net.peer.count(END);
    let peer = Peer::start(&scene.net.peer, Duration::from_millis(5));
    peer.gets_on("before the move");
    if !matches!(when, When::At(_)) {
        source.let_on();
        target.let_on();
    }
    source.say("move");
    match when {
        When::At(step) => {
            for at in STEPS {
                let process = if at.is_of_source() {
                    &mut source
                } else {
                    &mut target
                };
                process.hear(&format!("at {at:?}"));
                if at == step {
                    break;
                }
                process.say("on");
            }
        }
        When::After(time) | When::Many(_, time) => thread::sleep(time),
    }
    scene.happen(fault, &mut source, &mut target);

    let until_restart = peer.mark();
    let said = if fault.kills_source() {
        source = scene.source("again");
        source.hear_all("nothing is open")
    } else {
        source.hear_all("ended")
    };
    let said = |fate: &str| said.iter().any(|line| line.ends_with(fate));
    let became = if said("Kept") {
        Expected::Kept
    } else if said("Lost") {
        Expected::Lost
    } else {
        assert!(
            said("Moved") || fault.kills_source(),
            "the source says nothing"
        );
        // To a target that has ended since, or not; or it was not begun.
        let goes_on = || peer.mark() > until_restart + 60_000;
        until("it goes on or has ended", || {
            goes_on() || ends.packets() > 0
        });
        if goes_on() {
            Expected::Moved
        } else {
            assert!(fault.may_end());
            Expected::Ended
        }
    };
    if let When::At(step) = when {
        let expected = expected(step, fault, at_once(when, fault));
        assert!(expected.allows(became), "{became:?}, not {expected:?}");
    }
    match became {
        Expected::Kept => peer.gets_on("at the source"),
        Expected::Moved => peer.gets_on("at the target"),
        Expected::Lost => {
            peer.gets_no_further();
            // The target was told, or its process has ended: only what a process that was killed has locked stays.
            if !fault.kills_target() {
                until("the target unlocks", || !Scene::has(&scene.net.b, true));
            }
            until("the source redirects nothing", || {
                !Scene::has(&scene.net.a, false)
            });
        }
        // No other is what became of one.
        Expected::Ended
        | Expected::KeptOrMoved
        | Expected::MovedOrEnded
        | Expected::MovedOrLost => {}
    }
    if matches!(became, Expected::Kept | Expected::Moved) {
        assert_eq!(ends.packets(), 0, "FIN or RST at the peer");
    }
    became
}

/// Drops what the hosts say to each other.
fn cut(host: &Host) {
    host.nft(
        "table inet cut { chain i { type filter hook input priority 0; udp dport 7077 drop; }; \
         chain o { type filter hook output priority 0; udp sport 7077 drop; }; }",
    );
}
