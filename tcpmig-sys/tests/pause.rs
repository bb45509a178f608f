//! Programs that stand still while their socket is in repair mode, and notice nothing.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::epoll;
use support::{Family, Net, kernel_test, until};
use tcpmig_sys::process::pause::Holders;
use tcpmig_sys::repair::FrozenSocket;

/// What this program does when another one starts it.
const ROLE: &str = "TCPMIG_TEST_ROLE";

/// Starts this program for a part, with the socket as its standard input.
fn start(role: &str, socket: OwnedFd) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "part", "--nocapture"])
        .env(ROLE, role)
        .stdin(socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "it is run by other tests, in processes of their own"]
fn part() {
    let socket = || TcpStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    match std::env::var(ROLE).unwrap().as_str() {
        "threads" => threads(&socket),
        "child" => write_on(socket()),
        "pauses" => {
            let parent = std::os::unix::process::parent_id();
            let mut holders = Holders::of(std::io::stdin().as_fd()).unwrap();
            // Who started this has the socket for a moment too, and could not read what this says if it stood still.
            while holders.pids().any(|pid| pid == parent) {
                holders = Holders::of(std::io::stdin().as_fd()).unwrap();
            }
            let _paused = holders.pause().unwrap();
            println!("\npaused");
            thread::park();
        }
        other => panic!("{other}"),
    }
}

/// Threads that do with the socket what a program may do, and a child that does so too, until the peer has closed.
fn threads(socket: &(impl Fn() -> TcpStream + Sync)) {
    let mut child = start("child", socket().into());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| write_on(socket()));
        }
        let reader = scope.spawn(|| {
            let mut reader = socket();
            reader
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            loop {
                match reader.read(&mut [0; 100]) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => ends("read", &error),
                }
            }
        });
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        println!("\nready");
        let mut events = Vec::with_capacity(1);
        let limit = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        while !reader.is_finished() {
            if let Err(error) = epoll::wait(
                &poller,
                rustix::buffer::spare_capacity(&mut events),
                Some(&limit),
            ) {
                ends("epoll_wait", &error);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // The writers would not end.
        println!("\nnoticed nothing");
        std::process::exit(0);
    });
}

fn write_on(mut socket: TcpStream) {
    loop {
        if let Err(error) = socket.write_all(b"hello") {
            // The peer has closed.
            if error.kind() == std::io::ErrorKind::ConnectionReset {
                return;
            }
            ends("write", &error);
        }
    }
}

fn ends(what: &str, error: &dyn std::fmt::Display) -> ! {
    println!("\nnoticed: {what}: {error}");
    std::process::exit(3);
}

fn hear(child: &mut Child, wanted: &str) {
    let mut heard = String::new();
    let output = child.stdout.as_mut().unwrap();
    while !heard.lines().any(|line| line == wanted) {
        let mut bytes = [0; 100];
        let read = output.read(&mut bytes).unwrap();
        assert!(read > 0, "instead of {wanted:?}: {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

/// The third field of a thread's `stat`.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.chars().next().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

kernel_test!(threads_and_children_notice_nothing, || {
    let net = Net::new();
    let (peer, server) = net.connect(Family::V4);
    let mut program = start("threads", server.try_clone().unwrap().into());
    hear(&mut program, "ready");
    let mut reads = peer.try_clone().unwrap();
    let reader = thread::spawn(move || while reads.read(&mut [0; 1 << 16]).is_ok_and(|n| n > 0) {});
    let mut writes = peer.try_clone().unwrap();
    for _ in 0..60 {
        writes.write_all(b"something to read").unwrap();
        let mut holders = Holders::of(server.as_fd()).unwrap();
        // The program and its child.
        assert!(holders.pids().count() >= 2);
        let paused = holders.pause().unwrap();
        let socket = server.try_clone().unwrap().into();
        let frozen = net.a.run(|| FrozenSocket::freeze(socket).unwrap()).unwrap();
        // Long enough for each of them to come back from its call if it could.
        thread::sleep(Duration::from_millis(2));
        net.a.run(|| frozen.thaw().unwrap()).unwrap();
        drop(paused);
        thread::sleep(Duration::from_millis(5));
    }
    peer.shutdown(Shutdown::Write).unwrap();
    hear(&mut program, "noticed nothing");
    assert!(program.wait().unwrap().success());
    peer.shutdown(Shutdown::Both).unwrap();
    reader.join().unwrap();
});

kernel_test!(a_program_that_was_stopped_stays_so_and_others_go_on, || {
    let net = Net::new();
    let (_peer, server) = net.connect(Family::V4);
    let sleeper = |socket: &TcpStream| {
        Command::new("sleep")
            .arg("600")
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .spawn()
            .unwrap()
    };
    let (mut goes, mut stopped) = (sleeper(&server), sleeper(&server));
    signal(&stopped, Signal::SIGSTOP);
    until("it is stopped", || state(stopped.id()) == 'T');
    for _ in 0..3 {
        let paused = Holders::of(server.as_fd()).unwrap().pause().unwrap();
        assert_eq!((state(goes.id()), state(stopped.id())), ('t', 't'));
        drop(paused);
        until("it goes on", || state(goes.id()) == 'S');
        until("it is stopped again", || state(stopped.id()) == 'T');
    }
    // Somebody lets it go on while it stands still.
    let paused = Holders::of(server.as_fd()).unwrap().pause().unwrap();
    signal(&stopped, Signal::SIGCONT);
    assert_eq!(state(stopped.id()), 't');
    drop(paused);
    until("it goes on", || state(stopped.id()) == 'S');
    // A signal that comes meanwhile is not lost.
    let paused = Holders::of(server.as_fd()).unwrap().pause().unwrap();
    signal(&goes, Signal::SIGTERM);
    drop(paused);
    goes.wait().unwrap();
    stopped.kill().unwrap();
    stopped.wait().unwrap();
});

kernel_test!(
    a_process_that_dies_while_others_stand_still_lets_them_go_on,
    || {
        let net = Net::new();
        let (_peer, server) = net.connect(Family::V4);
        let mut sleeper = Command::new("sleep")
            .arg("600")
            .stdin(OwnedFd::from(server.try_clone().unwrap()))
            .spawn()
            .unwrap();
        let mut tool = start("pauses", server.try_clone().unwrap().into());
        drop(server);
        hear(&mut tool, "paused");
        assert_eq!(state(sleeper.id()), 't');
        tool.kill().unwrap();
        tool.wait().unwrap();
        until("it goes on", || state(sleeper.id()) == 'S');
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
);

kernel_test!(a_parent_that_waits_is_told_of_the_end_alone, || {
    let net = Net::new();
    let (_peer, server) = net.connect(Family::V4);
    let mut sleeper = Command::new("sleep")
        .arg("600")
        .stdin(OwnedFd::from(server.try_clone().unwrap()))
        .spawn()
        .unwrap();
    let mut holders = Holders::of(server.as_fd()).unwrap();
    for _ in 0..2000 {
        drop(holders.pause().unwrap());
        assert_eq!(sleeper.try_wait().unwrap(), None);
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
});

kernel_test!(two_do_not_let_a_process_go_on_for_each_other, || {
    let net = Net::new();
    let (_peer, server) = net.connect(Family::V4);
    let mut sleeper = Command::new("sleep")
        .arg("600")
        .stdin(OwnedFd::from(server.try_clone().unwrap()))
        .spawn()
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let paused = Holders::of(server.as_fd()).unwrap().pause().unwrap();
                    for _ in 0..20 {
                        assert_eq!(state(sleeper.id()), 't');
                    }
                    drop(paused);
                }
            });
        }
    });
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
});
