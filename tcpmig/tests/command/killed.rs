//! A dump that is killed, stopped or interrupted at any moment.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::lab::isolated;
use tcpmig_sys::process::take::descriptor;
use tcpmig_sys::repair::is_in_repair_mode;

use crate::disks::{Disk, dump, goes_on, names, place};
use crate::support::{Echo, Net, Program, TCPMIG, fails, succeeds, tcpmig, text, until};

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// The process that does the work of a command.
fn worker(command: &Child) -> u32 {
    let pid = command.id();
    let mut worker = None;
    until("it has a worker", || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        worker = children
            .unwrap()
            .split_whitespace()
            .next()
            .map(|n| n.parse().unwrap());
        worker.is_some()
    });
    worker.unwrap()
}

/// The third field of a process's `stat`.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn in_repair_mode(echo: &Echo) -> bool {
    let socket = descriptor(echo.owner.pid, echo.owner.fd);
    is_in_repair_mode(socket.unwrap().as_fd()).unwrap()
}

/// Nothing is left of a dump: no file, no lock, no process that stands still, no socket in repair mode.
fn is_taken_back(net: &Net, echo: &mut Echo, image: &Path) {
    until("no file is left", || names(image).is_empty());
    until("the server does not stand still", || {
        !matches!(state(echo.owner.pid), Some('t' | 'T'))
    });
    until("the socket is not in repair mode", || !in_repair_mode(echo));
    until("nothing is locked", || {
        crate::disks::locked(net, &echo.flow).is_none()
    });
    goes_on(net, echo, image);
}

/// Whether a process works on this image still.
pub(crate) fn is_worked_on(image: &Path) -> bool {
    let image = image.to_str().unwrap();
    let works = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| text(&line).contains(image))
    };
    tcpmig_sys::process::owners::processes()
        .unwrap()
        .iter()
        .any(works)
}

fn wait(mut command: Child) -> std::process::Output {
    until("the command ends", || command.try_wait().unwrap().is_some());
    command.wait_with_output().unwrap()
}

/// A dump that waits for its disk.
fn waiting(net: &Net, echo: &Echo, disk: &Disk, image: &Path, more: &[&str]) -> Child {
    let mut command = dump(net, &echo.flow, image, more);
    disk.under(&mut command);
    let command = command.spawn().unwrap();
    disk.is_waited_for();
    command
}

fn cut_off(name: &'static str, more: &'static [&str], how: fn(&mut Child)) {
    isolated(name, move || {
        let net = Net::new();
        let (mut echo, disk, image) = (net.echo(), Disk::new(&net), place(&net));
        let mut command = waiting(&net, &echo, &disk, &image, more);
        echo.client.say("meanwhile");
        how(&mut command);
        until("the connection goes on before the disk does", || {
            !in_repair_mode(&echo) && state(echo.owner.pid) == Some('S')
        });
        assert_eq!(echo.client.hear(), "meanwhile");
        disk.is_ready();
        is_taken_back(&net, &mut echo, &image);
        let _ = command.kill();
        command.wait().unwrap();
    });
}

#[test]
fn a_command_that_is_killed_leaves_nothing() {
    cut_off(
        "killed::a_command_that_is_killed_leaves_nothing",
        &[],
        |command| {
            command.kill().unwrap();
        },
    );
}

#[test]
fn nor_one_that_holds_a_frozen_connection() {
    cut_off(
        "killed::nor_one_that_holds_a_frozen_connection",
        &["--lock", "none"],
        |command| command.kill().unwrap(),
    );
}

#[test]
fn a_worker_that_is_killed_is_taken_back() {
    cut_off(
        "killed::a_worker_that_is_killed_is_taken_back",
        &[],
        |command| {
            signal(worker(command), Signal::SIGKILL);
        },
    );
}

#[test]
fn and_so_is_the_connection_that_it_had_frozen() {
    cut_off(
        "killed::and_so_is_the_connection_that_it_had_frozen",
        &["--lock", "none"],
        |command| signal(worker(command), Signal::SIGKILL),
    );
}

#[test]
fn what_ends_a_command_calls_the_dump_off() {
    isolated("killed::what_ends_a_command_calls_the_dump_off", || {
        let net = Net::new();
        let (mut echo, image) = (net.echo(), place(&net));
        for ends in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ] {
            let disk = Disk::new(&net);
            let command = waiting(&net, &echo, &disk, &image, &[]);
            echo.client.say("meanwhile");
            signal(command.id(), ends);
            assert_eq!(echo.client.hear(), "meanwhile");
            disk.is_ready();
            fails(&wait(command), 1, &["interrupted", "goes on here"]);
            is_taken_back(&net, &mut echo, &image);
            disk.again();
        }
    });
}

#[test]
fn a_command_that_is_stopped_does_not_stop_the_connection() {
    isolated(
        "killed::a_command_that_is_stopped_does_not_stop_the_connection",
        || {
            let net = Net::new();
            let (echo, disk, image) = (net.echo(), Disk::new(&net), place(&net));
            let command = waiting(&net, &echo, &disk, &image, &[]);
            signal(command.id(), Signal::SIGSTOP);
            disk.is_ready();
            until("the image is complete", || image.exists());
            until("the server has lost the connection", || {
                state(echo.owner.pid) != Some('t')
            });
            signal(command.id(), Signal::SIGCONT);
            let said = succeeds(&wait(command));
            assert!(said.contains(&echo.flow), "{said}");
        },
    );
}

#[test]
fn what_all_of_them_left_is_thawed() {
    isolated("killed::what_all_of_them_left_is_thawed", || {
        let net = Net::new();
        let (mut echo, disk, image) = (net.echo(), Disk::new(&net), place(&net));
        let thaw = |host, more: &[&str]| tcpmig(host, &[&["thaw"], more].concat());
        let pid = echo.owner.pid.to_string();
        let pid = ["--pid", &pid];
        fails(&thaw(&net.peer, &pid), 4, &["nothing to do"]);
        // By a process the connection is found in whatever network namespace it is.
        for (host, selection) in [(&net.a, &["--all"][..]), (&net.peer, &pid)] {
            // It holds the connection frozen while it waits.
            let mut command = waiting(&net, &echo, &disk, &image, &["--lock", "none"]);
            let worker = worker(&command);
            signal(command.id(), Signal::SIGSTOP);
            signal(worker, Signal::SIGKILL);
            command.kill().unwrap();
            command.wait().unwrap();
            until("the kernel lets the server go on", || {
                state(echo.owner.pid) == Some('S')
            });
            assert!(in_repair_mode(&echo));
            fails(&thaw(&net.b, &["--all"]), 4, &["nothing to do"]);
            let said = succeeds(&thaw(host, selection));
            assert!(
                said.contains(&echo.flow) && said.contains("goes on"),
                "{said}"
            );
            echo.goes_on();
            assert!(!in_repair_mode(&echo));
            fails(&thaw(host, selection), 4, &["nothing to do"]);
            disk.again();
            for name in names(&image) {
                assert!(name.ends_with(".partial"), "{name}");
                std::fs::remove_file(image.with_file_name(name)).unwrap();
            }
        }
    });
}

#[test]
fn a_connection_that_is_being_moved_is_not_thawed() {
    isolated(
        "killed::a_connection_that_is_being_moved_is_not_thawed",
        || {
            let net = Net::new();
            let (mut echo, image) = (net.echo(), place(&net));
            let locker = net.a.run(tcpmig_lock::Nftables::new).unwrap().unwrap();
            let lock = tcpmig_lock::Locker::lock(
                &locker,
                &[echo.flow.parse().unwrap()],
                Duration::from_secs(60),
            )
            .unwrap();
            let taken = descriptor(echo.owner.pid, echo.owner.fd).unwrap();
            let frozen = net
                .a
                .run(|| tcpmig_sys::repair::FrozenSocket::freeze(taken).unwrap())
                .unwrap();
            let refused = tcpmig(&net.a, &["thaw", "--flow", &echo.flow]);
            fails(&refused, 1, &["being moved", "--force"]);
            assert!(in_repair_mode(&echo));
            net.a.run(|| frozen.thaw().unwrap()).unwrap();
            lock.unlock().unwrap();
            goes_on(&net, &mut echo, &image);
        },
    );
}

/// How many dumps, or restores, are killed at a moment that chance chooses: `TCPMIG_KILLS`, or a few.
pub(crate) fn kills() -> usize {
    std::env::var("TCPMIG_KILLS").map_or(30, |n| n.parse().unwrap())
}

#[test]
fn kills_at_any_moment_leave_nothing_or_all() {
    isolated("killed::kills_at_any_moment_leave_nothing_or_all", || {
        let net = Net::new();
        let image = place(&net);
        let mut echo = net.echo();
        // The whole of a dump, with what starting it takes.
        let begin = Instant::now();
        succeeds(
            &dump(&net, &echo.flow, &image, &["--keep"])
                .output()
                .unwrap(),
        );
        let whole = begin.elapsed() * 3 / 2;
        std::fs::remove_file(&image).unwrap();
        let seed = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_nanos() as u64;
        println!("seed {seed}");
        let mut random = seed | 1;
        let (mut taken_back, mut complete) = (0, 0);
        for n in 0..kills() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let after = whole.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64);
            let mut command = dump(&net, &echo.flow, &image, &["--lease", "20"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let line = format!("line {n}");
            echo.client.say(&line);
            thread::sleep(after);
            command.kill().unwrap();
            command.wait().unwrap();
            // Its worker, if it had one, ends by itself.
            until("nothing of the command is left", || !is_worked_on(&image));
            if image.exists() {
                // It was done: the server has lost the connection, and the image has it.
                complete += 1;
                assert_eq!(names(&image), ["connection.image"]);
                // Its lock is taken over.
                let mut restore = net.a.command(&TCPMIG).unwrap();
                let path = image.to_str().unwrap();
                restore.args(["restore", path, "--", "cat"]);
                let restored = Program::spawn(&mut restore);
                assert_eq!(echo.client.hear(), line);
                echo.goes_on();
                std::fs::remove_file(&image).unwrap();
                drop((restored, echo));
                echo = net.echo();
            } else {
                taken_back += 1;
                assert_eq!(echo.client.hear(), line);
                is_taken_back(&net, &mut echo, &image);
            }
        }
        println!("{taken_back} taken back, {complete} complete");
        assert!(taken_back > 0);
    });
}
