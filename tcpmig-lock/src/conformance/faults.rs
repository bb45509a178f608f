//! Holders that are killed.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::checks::{assert_locked, end_of_lease, wait_for_nothing, within_lease};
use super::lab::{Connection, eventually, slowed};
use super::wire::{Capture, FIN, RST};
use super::{GROUND, Ground, LEASE, Setup};
use crate::{FourTuple, LeaseEnd, LockError, Locker, Scope, lease};

/// What the process is to lock that a case starts and kills.
const FLOW: &str = "TCPMIG_CONFORMANCE_FLOW";
/// How often a holder is killed at random: 5 times unless this says otherwise.
const KILLS: &str = "TCPMIG_CONFORMANCE_KILLS";
/// What the random times begin with, to repeat a run.
const SEED: &str = "TCPMIG_CONFORMANCE_SEED";
/// The lease of a holder that is to stay, in milliseconds. One without it locks and unlocks again and again.
const STEADY: &str = "TCPMIG_CONFORMANCE_STEADY_MS";
/// The lease of holders that are killed, on a machine that is fast enough for it.
pub(super) const SHORT: Duration = Duration::from_millis(2500);
/// What a lease may end too early or too late without a case that fails.
pub(super) const MARGIN: Duration = Duration::from_millis(500);

/// Whether this process is one that a case started.
pub(super) fn is_holder() -> bool {
    std::env::var_os(FLOW).is_some()
}

/// Locks, prolongs and unlocks the flow again and again, until it is killed. Before it says what it has done it says since when
/// that certainly holds. It holds the socket of the flow, which the kernel closes when it dies.
pub(super) fn hold(setup: &dyn Setup) {
    let ground = Ground::of_parent();
    let flow: FourTuple = std::env::var(FLOW)
        .expect("the variable of the parent")
        .parse()
        .expect("a flow");
    let locker = setup.locker(&ground);
    let say = |what: &str, since: u64| println!("@ {what} {since}");
    say("ready", lease::now());
    let steady = std::env::var(STEADY).ok();
    if let Some(ms) = steady.and_then(|ms| ms.parse().ok()) {
        let guard = locker.lock(&[flow], Duration::from_millis(ms));
        let _guard = guard.expect("lock");
        say("locked", lease::now());
        loop {
            std::thread::park();
        }
    }
    loop {
        let now = lease::now();
        let mut guard = locker.lock(&[flow], slowed(SHORT)).expect("lock");
        say("locked", now);
        for _ in 0..2 {
            let now = lease::now();
            if guard.renew(slowed(SHORT)).is_err() {
                // The machine was busy with others for longer than that.
                break;
            }
            say("locked", now);
        }
        say("unlocking", lease::now());
        guard.unlock().expect("unlock");
    }
}

/// A process that [`hold`]s a flow.
pub(super) struct Holder {
    pub(super) child: Child,
    lines: Receiver<Said>,
}

/// What a holder has said.
pub(super) struct Said {
    what: String,
    /// Since when it holds, in milliseconds since this host started.
    since: u64,
}

impl Holder {
    /// Starts it; to lock once with this lease and stay, or to do so again and again. It has the server's end of the
    /// connection as its standard input.
    pub(super) fn start(
        test: &str,
        ground: &Ground,
        connection: Connection,
        steady: Option<Duration>,
    ) -> (Self, TcpStream) {
        let Connection { server, client } = connection;
        let flow = FourTuple::new(
            server.local_addr().expect("an address"),
            server.peer_addr().expect("an address"),
        );
        let mut command = Command::new(std::env::current_exe().expect("the path of the test"));
        command
            .args([test, "--exact", "--nocapture"])
            .env(GROUND, ground.variable())
            .env(FLOW, flow.expect("a flow").to_string())
            .stdin(OwnedFd::from(server))
            .stdout(Stdio::piped());
        if let Some(lease) = steady {
            command.env(STEADY, lease.as_millis().to_string());
        }
        let mut child = ground
            .server
            .run(|| command.spawn().expect("start a holder"));
        drop(command);
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The harness writes in front of the first.
                if let Some((_, said)) = line.split_once("@ ")
                    && let Some((what, since)) = said.split_once(' ')
                    && let Ok(since) = since.parse()
                {
                    let what = what.to_owned();
                    let _ = sender.send(Said { what, since });
                }
            }
        });
        (Self { child, lines }, client)
    }

    pub(super) fn wait_for(&self, what: &str) {
        eventually(what, || {
            let said = self.lines.recv_timeout(Duration::from_secs(60));
            (said.expect("a line of the holder").what == what).then_some(())
        });
    }

    /// Kills it, and gives the last that it said.
    pub(super) fn kill(&mut self) -> Option<Said> {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("wait");
        // The reader ends with the pipe.
        self.lines.iter().last()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // A case that fails leaves none behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lock of a dead process holds to the end of its lease and not longer.
pub(super) fn killed_holder(test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let killed = |lease| {
        wait_for_nothing(&*locker);
        let mut flow = ground.connection(Ground::addresses()[0]);
        let name = flow.flow();
        let copy = Connection {
            server: flow.server.try_clone().expect("dup"),
            client: flow.client.try_clone().expect("dup"),
        };
        let (mut holder, _client) = Holder::start(test, &ground, copy, Some(lease));
        holder.wait_for("locked");
        let start = Instant::now();
        let owner = holder.child.id();
        holder.kill();
        if !features.remembers {
            flow.ping();
            return (flow, start);
        }
        let entries = locker.list().expect("list");
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].flow, entries[0].owner), (name, Some(owner)));
        let error = locker.lock(&[name], LEASE).map(drop);
        assert!(
            matches!(error, Err(LockError::AlreadyLocked(_))),
            "{error:?}"
        );
        // Sweeping does not end it.
        assert_eq!(locker.sweep().expect("sweep").flows, []);
        ground.expect_locked(features.silence, &mut flow);
        (flow, start)
    };
    let ((mut flow, start), lease) = within_lease(SHORT, killed);
    let name = flow.flow();
    if !features.remembers {
        return end_of_lease(&*locker, name);
    }
    if features.lease == LeaseEnd::Sweep {
        // Nobody ends it but who sweeps.
        while start.elapsed() < lease + MARGIN {
            std::thread::sleep(Duration::from_millis(50));
        }
        super::lab::expect_nothing(&flow.server);
    }
    end_of_lease(&*locker, name);
    Ground::expect_unlocked(features.silence, &mut flow);
    drop(locker.lock(&[name], LEASE).expect("lock"));
}

/// A holder that dies takes no lock with it that somebody else holds, and its own lock ends although another one goes on.
pub(super) fn killed_beside_another(test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut dead = ground.connection(Ground::addresses()[0]);
    let mut alive = ground.connection(Ground::addresses()[1]);
    let (dead_flow, alive_flow) = (dead.flow(), alive.flow());
    let guard = locker.lock(&[alive_flow], LEASE).expect("lock");
    let copy = Connection {
        server: dead.server.try_clone().expect("dup"),
        client: dead.client.try_clone().expect("dup"),
    };
    let (mut holder, _client) = Holder::start(test, &ground, copy, Some(slowed(SHORT)));
    holder.wait_for("locked");
    holder.kill();
    if features.remembers {
        end_of_lease(&*locker, dead_flow);
    }
    assert_locked(&*locker, &[alive_flow]);
    // What is left of the dead one may be removed, the other lock may not.
    let swept = locker.sweep().expect("sweep").flows;
    assert!(swept.is_empty() || swept == [dead_flow], "swept {swept:?}");
    assert_locked(&*locker, &[alive_flow]);
    if features.silence == Scope::Flows {
        dead.ping();
    }
    ground.expect_locked(features.silence, &mut alive);
    guard.unlock().expect("unlock");
    Ground::expect_unlocked(features.silence, &mut alive);
    dead.ping();
    assert_locked(&*locker, &[]);
}

/// Wherever a holder is killed: as long as its lease lasts, nothing ends the connection, and afterwards nothing is left
/// that is not swept.
pub(super) fn killed_at_random(test: &str, setup: &dyn Setup) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let kills = number(KILLS).unwrap_or(5);
    let seed = number(SEED).unwrap_or_else(|| u64::from(std::process::id()) * 7919 + 1);
    println!("{kills} kills; to repeat them: {SEED}={seed}");
    let mut random = Random(seed);
    let ground = Ground::new();
    let before = setup.traces(&ground);
    let locker = setup.locker(&ground);
    let features = locker.features();
    let longest = round(&*locker);
    let mut strict = 0;
    for _ in 0..kills {
        let flow = ground.connection(Ground::addresses()[(random.next() % 2) as usize]);
        let mut neighbour = ground.connection(Ground::other_addresses()[0]);
        let name = flow.flow();
        let mut wire = Capture::new(&ground.client);
        let (mut holder, mut client) = Holder::start(test, &ground, flow, None);
        holder.wait_for("ready");
        let delay = Duration::from_micros(random.next() % (longest.as_micros() as u64 + 1));
        let start = Instant::now();
        // Traffic all the time.
        client.set_nonblocking(true).expect("nonblocking");
        while start.elapsed() < delay {
            let _ = std::io::Write::write(&mut client, b"x");
            std::thread::sleep(Duration::from_micros(200).min(delay / 4));
        }
        let killed = Instant::now();
        let last = holder.kill();
        let what = last.as_ref().map(|last| &*last.what);
        println!("killed after {delay:?}, last it said {what:?}");
        // Until then it lasts, however long ago the holder said so.
        let until = last
            .filter(|last| last.what == "locked" && features.silence != Scope::Nothing)
            .map(|last| last.since + (slowed(SHORT) - MARGIN).as_millis() as u64);
        if let Some(until) = until.filter(|until| *until > lease::now()) {
            strict += 1;
            while lease::now() < until {
                let _ = std::io::Write::write(&mut client, b"x");
                let ended = wire.segments().into_iter().find(|segment| {
                    segment.from == name.local() && segment.flags & (FIN | RST) != 0
                });
                assert_eq!(ended, None, "{:?} after the kill", killed.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            neighbour.ping();
        }
        eventually("nothing is left", || {
            locker.sweep().expect("sweep");
            locker.list().expect("list").is_empty().then_some(())
        });
        eventually("nothing is left to sweep", || {
            locker.sweep().expect("sweep").is_empty().then_some(())
        });
        super::expect_traces(setup, &ground, &before);
        ground.connection(Ground::addresses()[0]).ping();
        drop(locker.lock(&[name], LEASE).expect("lock"));
        locker.sweep().expect("sweep");
    }
    println!("{strict} of {kills} were killed while they held");
}

/// How long a holder takes for two rounds.
fn round(locker: &dyn Locker) -> Duration {
    let flow = "10.0.0.1:80,10.9.0.9:1025".parse().expect("a flow");
    let start = Instant::now();
    for _ in 0..2 {
        let mut guard = locker.lock(&[flow], LEASE).expect("lock");
        guard.renew(LEASE).expect("renew");
        guard.renew(LEASE).expect("renew");
        guard.unlock().expect("unlock");
    }
    locker.sweep().expect("sweep");
    start.elapsed()
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
