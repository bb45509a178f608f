//! What it costs to empty a host, and to replace a server, with thousands of sessions over TLS that are in use.
//!
//! `cargo bench -p tcpmig --all-features --bench agents [-- drain|itself|upgrade|one] [--sessions N] [--rate N] [--moves N]`
//!
//! - `drain`: `tcpmig drain --wait` of a host whose server has no privileges, through two agents;
//! - `itself`: the same by a server that has them;
//! - `upgrade`: the next version of a server takes over WebSockets on this host;
//! - `one`: how long a client that asks all the time waits when its connection moves, through agents and without.
//!
//! Servers, agents and clients are processes of their own. All of them without a word.
#![allow(clippy::unwrap_used, reason = "a failed set-up ends the benchmark")]

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/fleet/mod.rs"]
mod fleet;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/agent/hosts.rs"]
mod hosts;
mod part;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/command/support.rs"]
mod support;
mod upgrade;

use std::time::Instant;

use fleet::client::{Seen, Task};
use fleet::server::{Drained, Through};
use fleet::{Keys, SERVICE, Spread};
use hosts::Hosts;
use part::{Part, Role};
use support::{Program, succeeds};
use tcpmig_sys::lab::until;
use tcpmig_transport::keys::Authority;

pub(crate) struct Arguments {
    pub(crate) sessions: usize,
    pub(crate) rate: u32,
    moves: usize,
}

impl Arguments {
    pub(crate) fn task(&self, keys: &Keys, address: &str, talk: bool) -> Task {
        Task {
            keys: keys.clone(),
            address: address.parse().unwrap(),
            sessions: self.sessions,
            rate: self.rate,
            talk,
        }
    }
}

const WORDS: [&str; 4] = ["drain", "itself", "upgrade", "one"];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut words = Vec::new();
    let mut given = Arguments {
        sessions: 10_000,
        rate: 2_000,
        moves: 200,
    };
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let number = arguments.next().and_then(|n| n.parse().ok());
            number.unwrap_or_else(|| panic!("a number after {argument}"))
        };
        match argument.as_str() {
            "part" => return part::run(&arguments.next().unwrap()),
            "--sessions" => given.sessions = number(),
            "--rate" => given.rate = number() as u32,
            "--moves" => given.moves = number(),
            // What cargo passes to every benchmark.
            "--bench" => {}
            word if WORDS.contains(&word) => words.push(word.to_owned()),
            other => panic!("{other:?}: give {WORDS:?}, --sessions N, --rate N or --moves N"),
        }
    }
    if !tcpmig_sys::netns::has_capabilities() {
        tcpmig_sys::netns::enter_user_namespace().unwrap();
    }
    let is_meant = |word: &str| words.is_empty() || words.iter().any(|one| one == word);
    if is_meant("drain") {
        drain(&given, true);
    }
    if is_meant("itself") {
        drain(&given, false);
    }
    if is_meant("upgrade") {
        upgrade::measure(&given);
    }
    if is_meant("one") {
        for agents in [true, false] {
            one(&given, agents);
        }
    }
}

/// Two hosts with a server each.
struct Site {
    hosts: Hosts,
    keys: Keys,
    /// On A and B.
    servers: [Part; 2],
}

impl Site {
    fn new(agents: bool) -> Self {
        let hosts = Hosts::with_descriptors(hosts::open_service, 20_000);
        let (keys, authority) = (Keys::new(), Authority::create("hosts").unwrap());
        let servers = ["a", "b"].map(|of| {
            let other = if of == "a" { "b" } else { "a" };
            let through = if agents {
                let socket = hosts.agent(of).socket.clone();
                Through::Agent(socket, format!("{other}.example"))
            } else {
                let address = |of| format!("198.18.0.{}:7077", if of == "a" { 1 } else { 2 });
                let addresses = [of, other].map(|of| address(of).parse().unwrap());
                let issued = authority.issue(&format!("{of}.example")).unwrap();
                let ca = authority.ca_pem().to_owned();
                let pem = [issued.cert_pem.clone(), issued.key_pem.clone(), ca];
                Through::Itself(addresses, pem)
            };
            let server = Part::start(hosts.host(of), &Role::Server(keys.clone(), through));
            assert_eq!(server.hear(), "ready");
            server
        });
        Self {
            hosts,
            keys,
            servers,
        }
    }

    fn clients(&self, given: &Arguments, sessions: usize) -> Part {
        let mut task = given.task(&self.keys, SERVICE, false);
        task.sessions = sessions;
        let clients = Part::start(&self.hosts.peer, &Role::Clients(task));
        assert_eq!(clients.hear(), "connected");
        clients
    }
}

/// Bytes of memory that a process has.
pub(crate) fn memory(of: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", of.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() << 10
}

/// Seconds of a processor that a process has used.
pub(crate) fn used(of: &Program) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", of.child.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    // Linux counts in hundredths of a second here.
    ticks
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

fn ms(us: u64) -> String {
    format!("{:.2}", us as f64 / 1000.0)
}

pub(crate) fn spread(of: Spread) -> String {
    let Spread { p50, p99, max } = of;
    format!("p50 {} p99 {} max {} ms", ms(p50), ms(p99), ms(max))
}

fn drain(given: &Arguments, agents: bool) {
    let mut site = Site::new(agents);
    let mut clients = site.clients(given, given.sessions);
    clients.say("load");
    assert_eq!(clients.hear(), "loading");
    let before = [0, 1].map(|at| memory(&site.hosts.agents[at].program));
    let begin = Instant::now();
    if agents {
        let arguments = ["drain", "--to", "b.example", "--wait"];
        succeeds(&site.hosts.verb("a", &arguments));
    } else {
        site.servers[0].say("drain");
    }
    let drained: Drained = serde_json::from_str(&site.servers[0].hear()).unwrap();
    let took = begin.elapsed();
    clients.say("stop");
    let seen: Seen = serde_json::from_str(&clients.hear()).unwrap();
    let way = if agents {
        "agents"
    } else {
        "the server itself"
    };
    println!(
        "drain of {} sessions by {way}: {:.2} s, {:.0} a second; stood still {}; {} attempts kept {:?}",
        drained.moved,
        took.as_secs_f64(),
        drained.moved as f64 / took.as_secs_f64(),
        spread(drained.blackout_us),
        drained.kept,
        drained.reasons,
    );
    println!(
        "    {} requests, {} failed {:?}; answered within {}",
        seen.requests,
        seen.failed.len(),
        seen.failed.first(),
        spread(seen.answered_us)
    );
    if agents {
        let after = [0, 1].map(|at| memory(&site.hosts.agents[at].program));
        let each = |at: usize| (after[at] as i64 - before[at] as i64) / given.sessions as i64;
        println!(
            "    memory of the agents: source {} kB, {} bytes more a session; target {} kB, {} bytes more a session",
            after[0] >> 10,
            each(0),
            after[1] >> 10,
            each(1)
        );
    }
    assert_eq!(drained.moved, given.sessions, "some did not move");
    assert_eq!(seen.failed, Vec::<String>::new());
}

/// One connection after another moves while its client asks all the time.
fn one(given: &Arguments, agents: bool) {
    let mut site = Site::new(agents);
    let mut clients = site.clients(given, given.moves.min(100));
    let (mut still, mut waited, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..given.moves {
        // There, and back.
        let from = at / 100 % 2;
        clients.say("ask");
        let port = clients.hear();
        let order = format!("move {port}");
        let mut moved = Err("it was not tried".to_owned());
        until("the connection moves", || {
            site.servers[from].say(&order);
            let said = site.servers[from].hear();
            moved = said.parse::<u64>().map_err(|_| said);
            moved.is_ok()
        });
        still.push(moved.unwrap());
        std::thread::sleep(std::time::Duration::from_millis(10));
        clients.say("stop");
        let seen: Seen = serde_json::from_str(&clients.hear()).unwrap();
        assert_eq!(seen.failed, Vec::<String>::new());
        waited.push(seen.answered_us.max);
        usual.push(seen.answered_us.p50);
    }
    let way = if agents {
        "agents"
    } else {
        "the server itself"
    };
    println!(
        "{} moves, one at a time, by {way}: stood still {}; the client's longest answer {}, its usual one {}",
        still.len(),
        spread(Spread::of(still)),
        spread(Spread::of(waited)),
        spread(Spread::of(usual))
    );
}
