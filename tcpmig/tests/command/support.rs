//! Two hosts and a peer, and programs that run on them.

use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

pub(crate) use tcpmig_sys::lab::until;
use tcpmig_sys::lab::{Host, World};
use tcpmig_sys::process::owners::{self, Owner};
use tempfile::TempDir;

/// The command: the one that was built with this test, or the one that `TCPMIG_BIN` names.
pub(crate) static TCPMIG: LazyLock<String> = LazyLock::new(|| {
    std::env::var("TCPMIG_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tcpmig").to_owned())
});

/// A [`World`] with a folder for the test's files.
pub(crate) struct Net {
    world: World,
    pub(crate) folder: TempDir,
}

impl Deref for Net {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Net {
    pub(crate) fn new() -> Self {
        Self {
            world: World::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A file in a folder of the test's own.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Host A does not reset connections that it does not know: a test that looks at something else may be late.
    pub(crate) fn silences_resets_of_a(&self) {
        let rules = "add table inet late; add chain inet late o { type filter hook output priority 0; }; \
                     add rule inet late o tcp flags rst drop";
        self.a.nft(rules);
    }

    /// An echo server on A that knows nothing of tcpmig, and a client at the peer.
    pub(crate) fn echo(&self) -> Echo {
        self.served("PIPE")
    }

    /// The same with a server that says what the test tells it, and tells what it hears.
    pub(crate) fn talk(&self) -> Echo {
        self.served("STDIO")
    }

    fn served(&self, by: &str) -> Echo {
        let server = Program::start(
            &self.a,
            "socat",
            &["TCP-LISTEN:7000,bind=198.18.0.80,reuseaddr", by],
        );
        until("socat listens", || {
            let table = self
                .a
                .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
            table.unwrap().unwrap().contains(":1B58 00000000:0000 0A")
        });
        let mut client = Program::start(&self.peer, "nc", &["-N", "198.18.0.80", "7000"]);
        client.say("one");
        let hears = if by == "PIPE" { &client } else { &server };
        assert_eq!(hears.hear(), "one");
        let peer_end = self.peer.run(peer_end).unwrap();
        let flow = format!("198.18.0.80:7000,{peer_end}");
        let (local, remote) = flow.split_once(',').unwrap();
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        let mut owner = None;
        until("socat has the connection", || {
            let owners = self.a.run(|| owners::find(local, remote));
            owner = owners.unwrap().unwrap().first().copied();
            owner.is_some()
        });
        let owner = owner.unwrap();
        assert_eq!(owner.pid, server.child.id());
        Echo {
            server,
            client,
            flow,
            owner,
        }
    }
}

/// The peer's end of its only connection that is established.
pub(crate) fn peer_end() -> std::net::SocketAddr {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let mut lines = table.lines().skip(1);
    let established = |line: &&str| line.split_whitespace().nth(3) == Some("01");
    let line = lines.find(established).expect("the peer has a connection");
    let local = line.split_whitespace().nth(1).unwrap();
    let (address, port) = local.split_once(':').unwrap();
    let address = u32::from_str_radix(address, 16).unwrap().to_ne_bytes();
    (address, u16::from_str_radix(port, 16).unwrap()).into()
}

pub(crate) struct Echo {
    pub(crate) server: Program,
    pub(crate) client: Program,
    pub(crate) flow: String,
    pub(crate) owner: Owner,
}

impl Echo {
    /// Both directions work, with the server that it has had all along.
    pub(crate) fn goes_on(&mut self) {
        self.client.say("still here");
        assert_eq!(self.client.hear(), "still here");
    }
}

/// A program that is spoken to line by line; killed when it is dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    /// What it says, line by line.
    pub(crate) lines: Receiver<String>,
}

impl Program {
    pub(crate) fn start(host: &Host, program: &str, arguments: &[&str]) -> Self {
        let mut command = host.command(program).unwrap();
        command.args(arguments);
        Self::spawn(&mut command)
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            lines,
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn hear(&self) -> String {
        self.lines
            .recv_timeout(Duration::from_secs(120))
            .expect("the program says something")
    }

    /// Waits for its end.
    pub(crate) fn ends(&mut self) -> bool {
        self.stdin = None;
        let mut status = None;
        until("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().success()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `tcpmig` to its end on a host.
pub(crate) fn tcpmig(host: &Host, arguments: &[&str]) -> Output {
    let mut command = host.command(&TCPMIG).unwrap();
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The command failed with this status, and said all this on standard error.
pub(crate) fn fails(output: &Output, status: i32, says: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for part in says {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}

pub(crate) fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}
