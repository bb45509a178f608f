//! A dump whose disk is slow, full or broken, and whose lock has a short lease.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tcpmig_sys::lab::{isolated, slowed};
use tcpmig_sys::process::owners;

use crate::support::{Echo, Net, Program, TCPMIG, fails, succeeds, tcpmig, until};

/// `fsync` as a disk has it that is slow (until the file `DISK_GATE` is there; `DISK_WAITS` is made when it begins), or that is broken.
const DISK: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int fsync(int fd)
{
    const char *gate = getenv("DISK_GATE");
    if (gate) {
        close(open(getenv("DISK_WAITS"), O_CREAT | O_WRONLY, 0600));
        while (access(gate, F_OK) != 0)
            usleep(1000);
    }
    if (getenv("DISK_BROKEN")) {
        errno = EIO;
        return -1;
    }
    return fdatasync(fd);
}
"#;

/// A disk that is as slow as the test wants.
pub(crate) struct Disk {
    library: PathBuf,
    gate: PathBuf,
    waits: PathBuf,
}

impl Disk {
    pub(crate) fn new(net: &Net) -> Self {
        let (source, library) = (net.file("disk.c"), net.file("disk.so"));
        std::fs::write(&source, DISK).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source);
        assert!(gcc.status().unwrap().success());
        Self {
            library,
            gate: net.file("gate"),
            waits: net.file("waits"),
        }
    }

    pub(crate) fn under(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("DISK_GATE", &self.gate)
            .env("DISK_WAITS", &self.waits);
    }

    pub(crate) fn is_waited_for(&self) {
        until("the disk is waited for", || self.waits.exists());
    }

    pub(crate) fn is_ready(&self) {
        std::fs::write(&self.gate, "").unwrap();
    }

    /// It is slow again.
    pub(crate) fn again(&self) {
        let _ = std::fs::remove_file(&self.gate);
        std::fs::remove_file(&self.waits).unwrap();
    }
}

pub(crate) fn dump(net: &Net, flow: &str, image: &Path, more: &[&str]) -> Command {
    let mut command = net.a.command(&TCPMIG).unwrap();
    command
        .args(["--json", "dump", "--flow", flow, "-o"])
        .arg(image)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What is in the folder of the image.
pub(crate) fn names(image: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(image.parent().unwrap()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The image's place, in a folder of its own.
pub(crate) fn place(net: &Net) -> PathBuf {
    std::fs::create_dir(net.file("images")).unwrap();
    net.file("images").join("connection.image")
}

/// Seconds that the lock of the flow has left.
pub(crate) fn locked(net: &Net, flow: &str) -> Option<f64> {
    let said = succeeds(&tcpmig(&net.a, &["--json", "locks"]));
    let value: Value = serde_json::from_str(&said).unwrap();
    let held = value["held"].as_array().unwrap();
    let held = held.iter().find(|held| held["flow"] == flow)?;
    held["remaining_seconds"].as_f64()
}

/// Bytes in the send queue of host A's end.
fn unacknowledged(net: &Net) -> u32 {
    let table = net
        .a
        .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
    let table = table.unwrap().unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(":1B58 ") && line.contains(" 01 "));
    let queues = line
        .expect("the connection")
        .split_whitespace()
        .nth(4)
        .unwrap();
    u32::from_str_radix(queues.split_once(':').unwrap().0, 16).unwrap()
}

/// It goes on under its server, and nothing is left of the dump.
pub(crate) fn goes_on(net: &Net, echo: &mut Echo, image: &Path) {
    echo.goes_on();
    assert_eq!(locked(net, &echo.flow), None);
    assert_eq!(names(image), Vec::<String>::new());
}

fn is_dumped_for_as_long_as_the_disk_wants(lease: u64, more: &[&str]) {
    let lease = slowed(Duration::from_secs(lease)).as_secs();
    let net = Net::new();
    let disk = Disk::new(&net);
    let mut talk = net.talk();
    let image = place(&net);
    let mut command = dump(
        &net,
        &talk.flow,
        &image,
        &[more, &["--lease", &lease.to_string()]].concat(),
    );
    disk.under(&mut command);
    let dumping = command.spawn().unwrap();
    disk.is_waited_for();
    // The server does not stand still, and its connection works, on a network that is silent.
    talk.server.say("meanwhile");
    until("the server writes", || unacknowledged(&net) == 10);
    talk.client.say("is somebody there?");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(lease + lease / 2) {
        assert!(locked(&net, &talk.flow).is_some(), "the lock ended");
        let named = names(&image);
        assert!(!named.contains(&"connection.image".to_owned()), "{named:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(unacknowledged(&net), 10, "a packet got through");
    // With a lease as short as this a busy machine may restore too late: without its lock host A would answer for it.
    net.silences_resets_of_a();
    disk.is_ready();
    let said = succeeds(&dumping.wait_with_output().unwrap());
    let ended = Instant::now();
    let value: Value = serde_json::from_str(&said).unwrap();
    let promised = value["remaining_seconds"].as_f64().unwrap();
    assert!(promised > 0.0 && promised <= lease as f64, "{value}");
    let left = locked(&net, &talk.flow);
    // It may look too late as well.
    if ended.elapsed().as_secs_f64() < promised {
        assert!(left.is_some(), "said {promised}, and it is not locked");
    }
    assert_eq!(value["send_queue_bytes"], 10, "{value}");
    assert_eq!(names(&image), ["connection.image"]);

    net.point_peer_at_b();
    let mut restore = net.b.command(&TCPMIG).unwrap();
    restore
        .arg("restore")
        .arg(&image)
        .args(["--", "sed", "-u", "s/^/on B: /"]);
    let _server = Program::spawn(&mut restore);
    assert_eq!(talk.client.hear(), "meanwhile");
    assert_eq!(talk.client.hear(), "on B: is somebody there?");
}

#[test]
fn the_lock_lasts_as_long_as_a_slow_disk_and_the_server_works() {
    isolated(
        "disks::the_lock_lasts_as_long_as_a_slow_disk_and_the_server_works",
        || is_dumped_for_as_long_as_the_disk_wants(6, &[]),
    );
}

#[test]
fn the_lock_of_iptables_lasts_as_long_as_a_slow_disk() {
    isolated(
        "disks::the_lock_of_iptables_lasts_as_long_as_a_slow_disk",
        || {
            is_dumped_for_as_long_as_the_disk_wants(6, &["--lock", "iptables"]);
        },
    );
}

#[test]
fn a_copy_does_not_make_the_connection_wait_for_the_disk() {
    isolated(
        "disks::a_copy_does_not_make_the_connection_wait_for_the_disk",
        || {
            let net = Net::new();
            let disk = Disk::new(&net);
            let mut echo = net.echo();
            let image = place(&net);
            let mut command = dump(&net, &echo.flow, &image, &["--keep"]);
            disk.under(&mut command);
            let dumping = command.spawn().unwrap();
            disk.is_waited_for();
            echo.goes_on();
            assert_eq!(locked(&net, &echo.flow), None);
            disk.is_ready();
            succeeds(&dumping.wait_with_output().unwrap());
            assert_eq!(names(&image), ["connection.image"]);
            echo.goes_on();
        },
    );
}

#[test]
fn a_lock_that_ends_while_the_disk_is_slow_ends_the_dump_and_not_the_connection() {
    isolated(
        "disks::a_lock_that_ends_while_the_disk_is_slow_ends_the_dump_and_not_the_connection",
        || {
            let net = Net::new();
            let disk = Disk::new(&net);
            let mut echo = net.echo();
            let image = place(&net);
            let mut command = dump(&net, &echo.flow, &image, &["--lease", "1"]);
            disk.under(&mut command);
            let dumping = command.spawn().unwrap();
            disk.is_waited_for();
            let locker = net.a.run(tcpmig_lock::Nftables::new).unwrap().unwrap();
            locker.force_unlock(&[echo.flow.parse().unwrap()]).unwrap();
            // At once, not when the disk is ready.
            echo.goes_on();
            disk.is_ready();
            let output = dumping.wait_with_output().unwrap();
            fails(&output, 1, &["the lock ended", "image"]);
            goes_on(&net, &mut echo, &image);
        },
    );
}

#[test]
fn a_disk_that_is_full_or_broken_leaves_a_connection_that_goes_on_and_no_file() {
    isolated(
        "disks::a_disk_that_is_full_or_broken_leaves_a_connection_that_goes_on_and_no_file",
        || {
            let net = Net::new();
            let mut echo = net.echo();
            let image = place(&net);
            for keep in [&[][..], &["--keep"]] {
                // A limit that would end the process with SIGXFSZ.
                let dump_here = dump(&net, &echo.flow, &image, keep);
                let mut limited = net.a.command("prlimit").unwrap();
                limited.arg("--fsize=100").arg(dump_here.get_program());
                limited.args(dump_here.get_args()).stdin(Stdio::null());
                fails(&limited.output().unwrap(), 1, &["write", "File too large"]);
                goes_on(&net, &mut echo, &image);

                // A file system with no room: what it has is taken by another file.
                let script = r#"mount -t tmpfs -o size=8k tmpfs "$0" && dd if=/dev/zero of="$0/full" bs=8k count=1 status=none \
                    && { "$@"; status=$?; test "$(ls -A "$0")" = full && exit $status; }"#;
                let mut full = net.a.command("unshare").unwrap();
                full.args(["--mount", "--", "sh", "-c", script]);
                full.arg(image.parent().unwrap())
                    .arg(dump_here.get_program());
                full.args(dump_here.get_args()).stdin(Stdio::null());
                fails(&full.output().unwrap(), 1, &["write", "No space left"]);
                goes_on(&net, &mut echo, &image);

                // A disk that fails at the last moment.
                let disk = Disk::new(&net);
                let mut broken = dump(&net, &echo.flow, &image, keep);
                disk.under(&mut broken);
                disk.is_ready();
                let output = broken.env("DISK_BROKEN", "1").output().unwrap();
                fails(&output, 1, &["write", "Input/output error"]);
                goes_on(&net, &mut echo, &image);
            }
            // A listener's image as well.
            let bound = "TCP-LISTEN:7001,bind=198.18.0.80,fork";
            let _listener = Program::start(&net.a, "socat", &[bound, "PIPE"]);
            let ends = ["198.18.0.80:7001", "0.0.0.0:0"].map(|end| end.parse().unwrap());
            let mut owners = Vec::new();
            until("socat listens", || {
                let found = net.a.run(|| owners::find(ends[0], ends[1]));
                owners = found.unwrap().unwrap();
                !owners.is_empty()
            });
            let (pid, fd) = (owners[0].pid.to_string(), owners[0].fd.to_string());
            let mut limited = net.a.command("prlimit").unwrap();
            limited.args([
                "--fsize=20",
                &TCPMIG,
                "dump",
                "--pid",
                &pid,
                "--fd",
                &fd,
                "-o",
            ]);
            let output = limited.arg(&image).stdin(Stdio::null()).output().unwrap();
            fails(&output, 1, &["write", "File too large"]);
            assert_eq!(names(&image), Vec::<String>::new());
        },
    );
}

#[test]
fn a_name_that_is_taken_while_the_image_is_written_is_not_taken_back() {
    isolated(
        "disks::a_name_that_is_taken_while_the_image_is_written_is_not_taken_back",
        || {
            let net = Net::new();
            let disk = Disk::new(&net);
            let mut echo = net.echo();
            let image = place(&net);
            let mut command = dump(&net, &echo.flow, &image, &[]);
            disk.under(&mut command);
            let dumping = command.spawn().unwrap();
            disk.is_waited_for();
            std::fs::write(&image, "somebody else's").unwrap();
            disk.is_ready();
            fails(
                &dumping.wait_with_output().unwrap(),
                1,
                &["create", "File exists"],
            );
            assert_eq!(std::fs::read(&image).unwrap(), b"somebody else's");
            std::fs::remove_file(&image).unwrap();
            goes_on(&net, &mut echo, &image);
        },
    );
}
