//! A connection that was dumped comes back to the same host, and its peer notices nothing.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::Value;
use tcpmig_sys::lab::{Host, isolated};
use tcpmig_sys::process::owners;

use crate::locks::{locks, locks_on};
use crate::support::{Net, Program, TCPMIG, fails, peer_end, succeeds, tcpmig, until};

/// A connection on host A whose peer writes numbered lines all the time.
pub(crate) struct Talk {
    pub(crate) net: Net,
    pub(crate) flow: String,
    /// What the programs heard that had the connection, in order.
    heard: Vec<PathBuf>,
    client: Client,
    #[allow(dead_code, reason = "it is killed when this goes")]
    server: Killed,
}

/// Killed when it goes.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Client {
    process: Killed,
    /// What it says about its connection.
    said: PathBuf,
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    written: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Talk {
    pub(crate) fn new() -> Self {
        let net = Net::new();
        let heard = net.file("heard-0");
        let mut command = net.a.command("socat").unwrap();
        command
            .args(["-u", "TCP-LISTEN:7000,bind=198.18.0.80", "STDOUT"])
            .stdout(File::create(&heard).unwrap());
        let server = Killed(command.spawn().unwrap());
        until("socat listens", || {
            let read = || std::fs::read_to_string("/proc/thread-self/net/tcp");
            net.a
                .run(read)
                .unwrap()
                .unwrap()
                .contains(":1B58 00000000:0000 0A")
        });
        let client = Client::start(&net);
        until("the first line arrives", || {
            client.writes();
            std::fs::read_to_string(&heard).is_ok_and(|text| text.contains('\n'))
        });
        let talk = Self {
            flow: format!("198.18.0.80:7000,{}", net.peer.run(peer_end).unwrap()),
            heard: vec![heard],
            net,
            client,
            server,
        };
        talk.goes_on();
        talk
    }

    fn said(&self) -> String {
        let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        self.heard.iter().map(read).collect()
    }

    /// Waits until more lines have arrived.
    pub(crate) fn goes_on(&self) {
        let before = self.said().lines().count();
        until("more lines arrive", || {
            self.client.writes();
            self.said().lines().count() > before + 10
        });
    }

    /// Waits until the peer has written more lines, whether they arrive or not.
    pub(crate) fn peer_writes(&self) {
        let before = self.client.written.load(Ordering::Relaxed);
        until("the peer writes", || {
            self.client.writes();
            self.client.written.load(Ordering::Relaxed) > before + 10
        });
    }

    pub(crate) fn dump(&mut self, image: &str, more: &[&str]) {
        if more.contains(&"--redirect") {
            // A target that has the address is silent.
            let lock = ["locks", "--lock", &self.flow, "--lease", "3600"];
            succeeds(&tcpmig(&self.net.b, &lock));
        }
        let dump = ["dump", "--flow", &self.flow, "-o", image];
        succeeds(&tcpmig(&self.net.a, &[&dump[..], more].concat()));
    }

    /// Starts a restore on A under a command that writes what it hears to a file.
    pub(crate) fn restore(&mut self, image: &str, more: &[&str]) -> Program {
        self.restore_on(|net| &net.a, image, more)
    }

    fn restore_on(&mut self, host: fn(&Net) -> &Host, image: &str, more: &[&str]) -> Program {
        let heard = self.net.file(&format!("heard-{}", self.heard.len()));
        let mut command = host(&self.net).command(&TCPMIG).unwrap();
        command
            .args(["restore", image])
            .args(more)
            .args(["--", "sh", "-c"]);
        command.arg(format!("cat > {}", heard.display()));
        self.heard.push(heard);
        Program::spawn(&mut command)
    }

    /// Starts a restore on A under a command that leaves the connection to another process at once, and ends.
    pub(crate) fn restore_to_background(&mut self, image: &Path) -> Child {
        let heard = self.net.file(&format!("heard-{}", self.heard.len()));
        let mut command = self.net.a.command(&TCPMIG).unwrap();
        command.arg("restore").arg(image);
        command.args(["--", "sh", "-c", "cat <&3 >\"$0\" 3<&- &"]);
        command.arg(&heard).stdin(Stdio::null());
        self.heard.push(heard);
        command.spawn().unwrap()
    }

    /// Every line has arrived once, in order, and the connection ends as its peer wants it.
    pub(crate) fn ends_whole(mut self) {
        let lines = self.client.end();
        until("all has arrived", || {
            self.said().lines().count() as u64 >= lines
        });
        let expected: String = (0..lines)
            .map(|number| format!("line {number}\n"))
            .collect();
        assert!(
            self.said() == expected,
            "not what was written: {}",
            self.said()
        );
    }

    pub(crate) fn locks(&self) -> Value {
        locks(&self.net, &[])
    }
}

impl Client {
    fn start(net: &Net) -> Self {
        let said = net.file("client");
        let mut command = net.peer.command("nc").unwrap();
        command
            .args(["-v", "-N", "198.18.0.80", "7000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&said).unwrap());
        let mut process = Killed(command.spawn().unwrap());
        let stdin = Arc::new(Mutex::new(process.0.stdin.take()));
        let (written, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let writer = {
            let (stdin, written, over) = (stdin.clone(), written.clone(), over.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let number = written.load(Ordering::Relaxed);
                    let mut stdin = stdin.lock().unwrap();
                    let line = writeln!(stdin.as_mut().unwrap(), "line {number}");
                    drop(stdin);
                    if line.is_err() {
                        // Whoever waits for its lines says so.
                        break;
                    }
                    written.store(number + 1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        };
        Self {
            process,
            said,
            stdin,
            written,
            over,
            writer: Some(writer),
        }
    }

    /// It has not ended.
    fn writes(&self) {
        let ended = self
            .writer
            .as_ref()
            .is_some_and(std::thread::JoinHandle::is_finished);
        let said = || std::fs::read_to_string(&self.said).unwrap_or_default();
        assert!(!ended, "the client ended: {}", said());
    }

    /// Ends the connection in order, and gives how many lines were written.
    fn end(&mut self) -> u64 {
        self.stop();
        drop(self.stdin.lock().unwrap().take());
        let mut status = None;
        until("the client ends", || {
            status = self.process.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "the peer noticed something");
        self.written.load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

fn there_and_back(dumped: &[&str], restored: &[&str]) {
    let mut talk = Talk::new();
    let image = talk.net.file("connection.image");
    let image = image.to_str().unwrap();
    talk.dump(image, dumped);
    talk.peer_writes();
    assert_eq!(talk.locks()["held"].as_array().unwrap().len(), 1);
    let mut server = talk.restore(image, restored);
    talk.goes_on();
    let value = talk.locks();
    assert_eq!(value["held"], Value::Array(Vec::new()), "{value}");
    assert_eq!(value["unplugged"], Value::Array(Vec::new()), "{value}");
    talk.ends_whole();
    assert!(server.ends());
}

macro_rules! there_and_back {
    ($($name:ident: $dumped:expr, $restored:expr;)*) => {
        $(
            #[test]
            fn $name() {
                isolated(concat!("way_back::", stringify!($name)), || {
                    there_and_back($dumped, $restored);
                });
            }
        )*
    };
}

there_and_back! {
    from_a_lock_of_nftables: &[], &[];
    from_a_redirect: &["--redirect", "198.18.0.2"], &[];
    from_a_lock_of_iptables: &["--lock", "iptables"], &["--lock", "iptables"];
    from_a_lock_of_iptables_legacy: &["--lock", "iptables-legacy"], &["--lock", "iptables-legacy"];
    from_a_lock_of_another_kind: &["--lock", "iptables"], &[];
    from_a_redirect_by_another_locker: &["--redirect", "198.18.0.2"], &["--lock", "iptables"];
    from_an_unplugged_device: &["--lock", "link:eth0"], &[];
}

/// The lease has ended, and there is nothing to take over. The peer was silent meanwhile: nothing drew a reset.
#[test]
fn after_the_lease_it_is_an_ordinary_restore() {
    isolated(
        "way_back::after_the_lease_it_is_an_ordinary_restore",
        || {
            let net = Net::new();
            let mut echo = net.echo();
            let image = net.file("connection.image");
            let image = image.to_str().unwrap();
            let dump = ["dump", "--flow", &echo.flow, "-o", image, "--lease", "3"];
            succeeds(&tcpmig(&net.a, &dump));
            until("the lease ends", || {
                let value = succeeds(&tcpmig(&net.a, &["--json", "locks"]));
                let value: Value = serde_json::from_str(&value).unwrap();
                value["held"].as_array().unwrap().is_empty()
            });
            let mut restore = net.a.command(&TCPMIG).unwrap();
            restore.args(["restore", image, "--", "cat"]);
            let mut server = Program::spawn(&mut restore);
            until("it lives", || {
                let (local, remote) = echo.flow.split_once(',').unwrap();
                let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
                !net.a
                    .run(|| owners::find(local, remote))
                    .unwrap()
                    .unwrap()
                    .is_empty()
            });
            echo.goes_on();
            assert!(echo.client.ends());
            assert!(server.ends());
        },
    );
}

/// What is forwarded to host B arrives there long before the connection does.
#[test]
fn a_target_that_was_locked_before_is_silent_until_it_has_the_connection() {
    isolated(
        "way_back::a_target_that_was_locked_before_is_silent_until_it_has_the_connection",
        || {
            let mut talk = Talk::new();
            let image = talk.net.file("connection.image");
            let image = image.to_str().unwrap();
            talk.dump(image, &["--redirect", "198.18.0.2"]);
            let before = locks_on(&talk.net.b, &[]);
            let began = Instant::now();
            until("the peer sends again what nobody acknowledges", || {
                talk.peer_writes();
                began.elapsed() > Duration::from_secs(2)
            });
            let _server = talk.restore_on(|net| &net.b, image, &[]);
            talk.goes_on();
            assert_eq!(before["held"][0]["kind"], "lock", "{before}");
            let after = locks_on(&talk.net.b, &[]);
            assert_eq!(after["held"], Value::Array(Vec::new()));
            assert_eq!(talk.locks()["held"][0]["kind"], "redirect");
            talk.ends_whole();
        },
    );
}

/// An image that host B refuses: it has an option that is not to be had there.
#[test]
fn what_the_target_refuses_comes_back() {
    isolated("way_back::what_the_target_refuses_comes_back", || {
        let mut talk = Talk::new();
        let image = talk.net.file("connection.image");
        let image = image.to_str().unwrap();
        talk.dump(image, &["--redirect", "198.18.0.2"]);
        // B does not have the address any more.
        talk.net
            .b
            .ip("address del 198.18.0.80/32 dev lo\n")
            .unwrap();
        let refused = tcpmig(&talk.net.b, &["restore", image, "--", "cat"]);
        fails(&refused, 1, &["the local address is not on this host"]);
        let before = talk.locks();
        assert_eq!(before["held"][0]["kind"], "redirect", "{before}");
        // What A refuses leaves the redirect as it was.
        let (local, remote) = talk.flow.split_once(',').unwrap();
        let used = used(&talk.net, local, remote);
        let refused = tcpmig(&talk.net.a, &["restore", image, "--", "cat"]);
        fails(&refused, 1, &["lives here already"]);
        let after = talk.locks();
        assert_eq!(after["held"][0]["kind"], "redirect", "{after}");
        assert_eq!(after["held"][0]["to"], before["held"][0]["to"], "{after}");
        assert_eq!(after["held"].as_array().unwrap().len(), 1, "{after}");
        drop(used);
        let _server = talk.restore(image, &[]);
        talk.goes_on();
        assert_eq!(talk.locks()["held"], Value::Array(Vec::new()));
        talk.ends_whole();
    });
}

/// A socket on A that has these two ends, so that no other one can: it is in SYN-SENT, and its packets do not leave.
fn used(net: &Net, local: &str, remote: &str) -> OwnedFd {
    use socket2::{Domain, Protocol, Socket, Type};
    let (local, remote): (std::net::SocketAddr, std::net::SocketAddr) =
        (local.parse().unwrap(), remote.parse().unwrap());
    let socket = net
        .a
        .run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap())
        .unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&local.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&remote.into());
    socket.into()
}

/// The writing end of a pipe that takes no more.
pub(crate) fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let flags = |flags| fcntl(writer.as_fd(), FcntlArg::F_SETFL(flags)).unwrap();
    flags(OFlag::O_NONBLOCK);
    for piece in [4096, 1] {
        while nix::unistd::write(&writer, &vec![b'x'; piece]).is_ok() {}
    }
    flags(OFlag::empty());
    (reader, writer)
}

/// A restore that has the lock and waits: nobody reads what it logs then. Gives it with what it waits for.
pub(crate) fn stuck(net: &Net, image: &str, locker: &[&str]) -> (Killed, OwnedFd) {
    let (reader, writer) = full_pipe();
    let mut command: Command = net.a.command(&TCPMIG).unwrap();
    command
        .args(["restore", image])
        .args(locker)
        .args(["--", "cat"])
        .env("TCPMIG_LOG", "off,tcpmig::cli::taken=debug")
        .stdin(Stdio::null())
        .stderr(writer);
    let restore = Killed(command.spawn().unwrap());
    until("it has the lock", || {
        let value = locks(net, &[]);
        let held = value["held"].as_array().unwrap();
        held.iter()
            .any(|held| held["owner"] == restore.0.id() && held["kind"] == "lock")
    });
    (restore, reader)
}

fn killed_between(dumped: &[&str], locker: &[&str], then: &[&str]) {
    let mut talk = Talk::new();
    let image = talk.net.file("connection.image");
    let image = image.to_str().unwrap();
    talk.dump(image, dumped);
    let (restore, _reader) = stuck(&talk.net, image, locker);
    talk.peer_writes();
    // As long as it lives the lock is its own.
    let holder = format!("tcpmig ({})", restore.0.id());
    let mut again = vec!["restore", image];
    again.extend(locker);
    again.extend(["--", "cat"]);
    let refused = tcpmig(&talk.net.a, &again);
    fails(&refused, 1, &["already locked", &holder, "tcpmig locks"]);
    drop(restore);
    let _server = talk.restore(image, then);
    talk.goes_on();
    assert_eq!(talk.locks()["held"], Value::Array(Vec::new()));
    talk.ends_whole();
}

macro_rules! killed_between {
    ($($name:ident: $dumped:expr, $locker:expr, $then:expr;)*) => {
        $(
            #[test]
            fn $name() {
                isolated(concat!("way_back::", stringify!($name)), || {
                    killed_between($dumped, $locker, $then);
                });
            }
        )*
    };
}

killed_between! {
    a_restore_that_was_killed_is_made_up_for: &[], &[], &[];
    a_restore_that_was_killed_after_a_redirect_is_made_up_for: &["--redirect", "198.18.0.2"], &[], &[];
    a_restore_that_was_killed_with_iptables_is_made_up_for:
        &["--lock", "iptables"], &["--lock", "iptables"], &["--lock", "iptables"];
    a_restore_that_was_killed_with_a_device_is_made_up_for:
        &["--lock", "link:eth0"], &["--lock", "link:eth0"], &[];
}

/// Without the device there is no route, and nothing can be built: that is said, and the lock stays.
#[test]
fn a_device_that_the_connection_uses_cannot_be_unplugged_for_a_restore() {
    const NAME: &str =
        "way_back::a_device_that_the_connection_uses_cannot_be_unplugged_for_a_restore";
    isolated(NAME, || {
        let mut talk = Talk::new();
        let image = talk.net.file("connection.image");
        let image = image.to_str().unwrap();
        talk.dump(image, &["--lock", "link:eth0"]);
        let restore = ["restore", image, "--lock", "link:eth0", "--", "cat"];
        let refused = tcpmig(&talk.net.a, &restore);
        fails(&refused, 1, &["no route to the peer", "another locker"]);
        assert_eq!(talk.locks()["held"][0]["flow"], talk.flow);
        let _server = talk.restore(image, &[]);
        talk.goes_on();
        talk.ends_whole();
    });
}
