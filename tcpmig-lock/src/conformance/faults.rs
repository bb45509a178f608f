//! Holders that are killed.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::checks::{assert_locked, end_of_lease};
use super::lab::{Connection, eventually, slowed};
use super::wire::{Capture, FIN, RST};
use super::{GROUND, Ground, LEASE, Setup};
use crate::{FourTuple, LeaseEnd, LockError, Locker, Scope};

/// What the process is to lock that a case starts and kills.
const FLOW: &str = "TCPMIG_CONFORMANCE_FLOW";
/// How often a holder is killed at random: 5 times unless this says otherwise.
const KILLS: &str = "TCPMIG_CONFORMANCE_KILLS";
/// What the random times begin with, to repeat a run.
const SEED: &str = "TCPMIG_CONFORMANCE_SEED";
/// The lease of holders that are killed.
pub(super) fn short() -> Duration {
    slowed(Duration::from_millis(2500))
}

/// Whether this process is one that a case started.
pub(super) fn is_holder() -> bool {
    std::env::var_os(FLOW).is_some()
}

/// Locks, prolongs and unlocks the flow again and again, and says so, until it is killed. It holds the socket of the
/// flow, which the kernel closes when it dies.
pub(super) fn hold(setup: &dyn Setup) {
    let ground = Ground::of_parent();
    let flow: FourTuple = std::env::var(FLOW)
        .expect("the variable of the parent")
        .parse()
        .expect("a flow");
    let locker = setup.locker(&ground);
    let say = |what: &str| println!("@ {what}");
    say("ready");
    let steady = std::env::var_os("TCPMIG_CONFORMANCE_STEADY").is_some();
    loop {
        let mut guard = locker.lock(&[flow], short()).expect("lock");
        say("locked");
        if steady {
            loop {
                std::thread::park();
            }
        }
        guard.renew(short()).expect("renew");
        say("locked");
        guard.renew(short()).expect("renew");
        say("unlocking");
        guard.unlock().expect("unlock");
    }
}

/// A process that [`hold`]s a flow.
pub(super) struct Holder {
    pub(super) child: Child,
    lines: Receiver<String>,
}

impl Holder {
    /// Starts it. It has the server's end of the connection as its standard input.
    pub(super) fn start(
        test: &str,
        ground: &Ground,
        connection: Connection,
        steady: bool,
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
        if steady {
            command.env("TCPMIG_CONFORMANCE_STEADY", "1");
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
                if let Some((_, what)) = line.split_once("@ ") {
                    let _ = sender.send(what.to_owned());
                }
            }
        });
        (Self { child, lines }, client)
    }

    pub(super) fn wait_for(&self, what: &str) {
        eventually(what, || {
            let line = self.lines.recv_timeout(Duration::from_secs(10));
            (line.expect("a line of the holder") == what).then_some(())
        });
    }

    /// Kills it, and gives the last that it said.
    pub(super) fn kill(mut self) -> String {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("wait");
        // The reader ends with the pipe.
        self.lines.iter().last().unwrap_or_default()
    }
}

/// The lock of a dead process holds to the end of its lease and not longer.
pub(super) fn killed_holder(test: &str, setup: &dyn Setup) {
    let ground = Ground::new();
    let locker = setup.locker(&ground);
    let features = locker.features();
    let mut flow = ground.connection(Ground::addresses()[0]);
    let name = flow.flow();
    let copy = Connection {
        server: flow.server.try_clone().expect("dup"),
        client: flow.client.try_clone().expect("dup"),
    };
    let (holder, _client) = Holder::start(test, &ground, copy, true);
    holder.wait_for("locked");
    let start = Instant::now();
    let owner = holder.child.id();
    holder.kill();
    if !features.remembers {
        flow.ping();
        return end_of_lease(&*locker, name);
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
    assert!(
        start.elapsed() < short(),
        "the machine is too slow for this"
    );
    if features.lease == LeaseEnd::Sweep {
        // Nobody ends it but who sweeps.
        while start.elapsed() < short() + Duration::from_millis(500) {
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
    let (holder, _client) = Holder::start(test, &ground, copy, true);
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
        let (holder, mut client) = Holder::start(test, &ground, flow, false);
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
        let held = last == "locked" && features.silence != Scope::Nothing;
        println!("killed after {delay:?}, last it said {last:?}");
        if held {
            strict += 1;
            let lease = short().saturating_sub(Duration::from_millis(500));
            while killed.elapsed() < lease {
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
        let mut guard = locker.lock(&[flow], short()).expect("lock");
        guard.renew(short()).expect("renew");
        guard.renew(short()).expect("renew");
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
