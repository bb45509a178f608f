//! Source or target killed, or the link between them cut, at each step of a handover, with a peer that sends and
//! receives meanwhile: afterwards one host has the connection and no octet is lost or repeated, or what happened to
//! it is said.
//!
//! `TCPMIG_FAULTS=N` tries N faults in random order instead of each once, `TCPMIG_FAULTS_SEED=S` in the order of S.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod peer;
mod roles;
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use support::{END, Keys, Net, PATIENCE, nft};
use tcpmig_sys::lab::Host;

use peer::Peer;

/// Where a process stands when it is stopped for a moment, in the order in which a handover comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Source: the packets are locked.
    Locked,
    /// Target: it is built, before PREPARED.
    Prepare,
    /// Source: before steering.
    Steering,
    /// Source: steered, before COMMIT.
    Steered,
    /// Target: COMMIT is there, and nothing was done.
    Activate,
    /// Target: it is noted that it may live from now on.
    Noted,
    /// Target: the application has it.
    Active,
}

const STEPS: [Step; 7] = [
    Step::Locked,
    Step::Prepare,
    Step::Steering,
    Step::Steered,
    Step::Activate,
    Step::Noted,
    Step::Active,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    KillSource,
    KillTarget,
    CutLink,
}

/// What has to become of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The source says so, and the connection goes on there.
    Kept,
    /// It goes on at the target, and the source says so if it lives.
    Moved,
    /// The source says so.
    Lost,
    /// It moved and ended with the target's process.
    Ended,
    /// Nobody has it, and nobody tells the peer before the lease ends.
    Silent,
}

fn expected(step: Step, fault: Fault) -> Expected {
    match fault {
        // The source owned it, and its process is dead.
        Fault::KillSource if step <= Step::Steered => Expected::Silent,
        Fault::KillSource => Expected::Moved,
        Fault::KillTarget => match step {
            Step::Active => Expected::Ended,
            Step::Noted => Expected::Lost,
            _ => Expected::Kept,
        },
        Fault::CutLink if step <= Step::Prepare => Expected::Kept,
        Fault::CutLink => Expected::Moved,
    }
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
    let faults = [Fault::KillSource, Fault::KillTarget, Fault::CutLink];
    let mut cases: Vec<(Step, Fault)> = STEPS
        .iter()
        .flat_map(|&step| faults.map(|fault| (step, fault)))
        .collect();
    if let Some(count) = number("TCPMIG_FAULTS") {
        let seed = number("TCPMIG_FAULTS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
        println!("TCPMIG_FAULTS={count} TCPMIG_FAULTS_SEED={seed}");
        let mut state = seed;
        let mut random = || {
            // Splitmix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as usize
        };
        let all = cases.clone();
        cases = (0..count).map(|_| all[random() % all.len()]).collect();
    }
    for (step, fault) in cases {
        println!("{fault:?} at {step:?}: {:?}", expected(step, fault));
        try_fault(step, fault);
    }
}

fn try_fault(step: Step, fault: Fault) {
    let directory = tempfile::tempdir().unwrap();
    let (net, keys) = (Net::new(), Keys::new());
    let journal = directory.path().join("journal");
    // A host that starts again has the same key.
    let host_b = keys.pem("host-b");
    let start_target = || Process::start(&net.b, "target", &host_b, &journal);
    let mut target = start_target();
    target.hear_line("serving");
    let mut source = Process::start(&net.a, "source", &keys.pem("host-a"), &journal);
    source.hear_line("listening");
    let ends = net.count_at_peer(END);
    let peer = Peer::start(&net.peer);
    peer.gets_on("before the move");
    source.say("move");

    for at in STEPS {
        let process = if matches!(at, Step::Locked | Step::Steering | Step::Steered) {
            &mut source
        } else {
            &mut target
        };
        process.hear_line(&format!("at {at:?}"));
        if at != step {
            process.say("on");
            continue;
        }
        match fault {
            Fault::CutLink => {
                cut(&net.b);
                process.say("on");
                // Longer than the source waits for PREPARED.
                thread::sleep(Duration::from_millis(1200));
                nft(&net.b, "delete table inet cut");
            }
            Fault::KillSource => {
                source.kill();
                target.say("on");
            }
            Fault::KillTarget => {
                target.kill();
                source.say("on");
                target = start_target();
            }
        }
        break;
    }
    // Steps that come after the fault pass.
    target.let_on();
    source.let_on();

    match expected(step, fault) {
        Expected::Kept => {
            source.hear_line("Kept");
            peer.gets_on("at the source");
        }
        Expected::Moved => {
            if fault != Fault::KillSource {
                source.hear_line("Moved");
            }
            peer.gets_on("at the target");
        }
        Expected::Lost => source.hear_line("Lost"),
        Expected::Ended => {
            source.hear_line("Moved");
            support::until("the peer hears of the end", || ends.packets() > 0);
            return;
        }
        Expected::Silent => peer.is_left_alone(),
    }
    assert_eq!(ends.packets(), 0, "FIN or RST at the peer");
}

/// Drops what the hosts say to each other.
fn cut(host: &Host) {
    nft(
        host,
        "table inet cut { chain i { type filter hook input priority 0; udp dport 7077 drop; }; \
         chain o { type filter hook output priority 0; udp sport 7077 drop; }; }",
    );
}

/// A host's process.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// Whether the steps of the handover are not waited for any longer.
    on: bool,
}

impl Process {
    fn start(host: &Host, role: &str, pem: &[String; 3], journal: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = host.command(program.to_str().unwrap()).unwrap();
        command.args(["role", role, journal.to_str().unwrap()]);
        for (name, value) in ["CERT", "KEY", "CA"].iter().zip(pem) {
            command.env(name, value);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
            on: false,
        }
    }

    fn say(&mut self, line: &str) {
        // It may have been killed.
        let _ = writeln!(self.stdin, "{line}");
    }

    fn let_on(&mut self) {
        self.on = true;
        for _ in STEPS {
            self.say("on");
        }
    }

    fn hear_line(&mut self, line: &str) {
        loop {
            let heard = self.lines.recv_timeout(PATIENCE);
            let heard = heard.unwrap_or_else(|error| panic!("{line:?} was not said: {error}"));
            if heard == line {
                return;
            }
            assert!(
                self.on || !heard.starts_with("at "),
                "{heard:?} before {line:?}"
            );
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
