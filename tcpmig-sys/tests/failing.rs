//! Each call of freeze, read, thaw, rebuild and activate fails in its turn, and what that leaves behind.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use support::{Net, family, kernel_test, pattern, until};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::info::{State, tcp_info};
use tcpmig_sys::lab::calls;
use tcpmig_sys::repair::{
    ClosedSocket, FreezeError, FrozenSocket, RestoringSocket, Snapshot, write_unsent,
};
use tcpmig_sys::sockets::Lookup;
use tcpmig_sys::{Result, repair, sockopt};

/// What the kernel can say to any call.
const ERRORS: [i32; 2] = [libc::ENOMEM, libc::EPERM];

/// A connection whose peer has bytes to read that it did not read yet, and has sent some.
struct Talk {
    peer: TcpStream,
    ends: Ends,
    round: u64,
}

impl Talk {
    fn new(net: &Net, v6: bool) -> (Self, OwnedFd) {
        let (peer, server) = net.connect(family(v6));
        let server = OwnedFd::from(server);
        sockopt::set_keep_alive(server.as_fd(), true).unwrap();
        sockopt::set_user_timeout(server.as_fd(), 30_000).unwrap();
        let ends = Ends::of(server.as_fd()).unwrap();
        let talk = Self {
            peer,
            ends,
            round: 0,
        };
        (talk, server)
    }

    /// Bytes wait in the receive queue.
    fn asks(&mut self, server: &OwnedFd) {
        self.round += 1;
        self.peer.write_all(&pattern(self.round, 3000)).unwrap();
        until("the bytes arrive", || {
            sockopt::receive_queue_len(server.as_fd()).unwrap() == 3000
        });
    }

    /// The connection is as it was, and what was asked is there and can be answered.
    fn is_answered(&mut self, server: &OwnedFd) {
        let fd = server.as_fd();
        assert_eq!(tcp_info(fd).unwrap().state, State::Established);
        assert!(!sockopt::repair(fd).unwrap());
        assert!(sockopt::keep_alive(fd).unwrap());
        assert_eq!(sockopt::user_timeout(fd).unwrap(), 30_000);
        let mut stream = TcpStream::from(server.try_clone().unwrap());
        stream.set_nonblocking(false).unwrap();
        let mut got = vec![0; 3000];
        stream.read_exact(&mut got).unwrap();
        assert!(got == pattern(self.round, 3000), "what the peer wrote");
        stream.write_all(&pattern(!self.round, 2000)).unwrap();
        let mut got = vec![0; 2000];
        self.peer.read_exact(&mut got).unwrap();
        assert!(got == pattern(!self.round, 2000), "what the server wrote");
        until("the answer is acknowledged", || {
            sockopt::send_queue_len(fd).unwrap() == 0
        });
    }
}

/// What has failed to be put back by its own call is the application's to set again; nothing else is.
fn set_again(fd: BorrowedFd<'_>, failed: Option<&str>) {
    match failed {
        Some("setsockopt(SO_KEEPALIVE)") => sockopt::set_keep_alive(fd, true).unwrap(),
        Some("setsockopt(TCP_USER_TIMEOUT)") => sockopt::set_user_timeout(fd, 30_000).unwrap(),
        _ => {}
    }
}

/// Does something with each of its calls failing in turn, until there is none left; how many there were.
fn each_call(mut once: impl FnMut(usize, i32) -> Option<&'static str>) -> usize {
    let mut calls = 0;
    for error in ERRORS {
        calls = 0;
        while let Some(call) = once(calls, error) {
            println!("{call} has failed with {error}");
            calls += 1;
        }
    }
    calls
}

/// Freezes and reads; the connection goes on where it is, whatever fails.
fn a_connection_that_is_not_taken_goes_on(v6: bool) {
    let net = Net::new();
    let (mut talk, server) = Talk::new(&net, v6);
    let mut server = Some(server);
    let work = |fd: OwnedFd| -> std::result::Result<FrozenSocket, FreezeError> {
        let frozen = FrozenSocket::freeze(fd)?;
        match frozen.read() {
            Ok(snapshot) => assert_eq!(snapshot.receive_queue.len(), 3000),
            Err(error) => println!("not read: {error}"),
        }
        Ok(frozen)
    };
    let calls = net.a.run(|| {
        each_call(|nth, error| {
            let fd = server.take().unwrap();
            talk.asks(&fd);
            let (done, failed) = calls::failing(nth, error, || work(fd));
            let fd = match done {
                Ok(frozen) => frozen.thaw().unwrap(),
                Err(FreezeError { fd, .. }) => fd,
            };
            talk.is_answered(&fd);
            server = Some(fd);
            failed
        })
    });
    let calls = calls.unwrap();
    assert!(calls > 20, "{calls} calls");
}

/// A thaw that fails leaves a socket that can be thawed still, also by a process that comes later.
fn what_was_not_thawed_can_be_thawed(v6: bool) {
    let net = Net::new();
    let (mut talk, server) = Talk::new(&net, v6);
    let mut server = Some(server);
    let calls = net.a.run(|| {
        each_call(|nth, error| {
            let fd = server.take().unwrap();
            talk.asks(&fd);
            let frozen = FrozenSocket::freeze(fd).unwrap();
            frozen.read().unwrap();
            let (thawed, failed) = calls::failing(nth, error, || frozen.thaw());
            let fd = match thawed {
                Ok(fd) => fd,
                Err(FreezeError { fd, .. }) if sockopt::repair(fd.as_fd()).unwrap() => {
                    let left = FrozenSocket::left_behind(fd).unwrap();
                    left.thaw().unwrap()
                }
                Err(FreezeError { fd, error }) => {
                    println!("alive, but {error}");
                    set_again(fd.as_fd(), failed);
                    fd
                }
            };
            talk.is_answered(&fd);
            server = Some(fd);
            failed
        })
    });
    let calls = calls.unwrap();
    assert!(calls > 10, "{calls} calls");
}

fn rebuild(snapshot: &Snapshot, Ends { local, remote }: Ends) -> Result<RestoringSocket> {
    let bound = ClosedSocket::open(local.is_ipv6())?.bind(local)?;
    let mut socket = bound.connect(
        remote,
        snapshot.queue_start(),
        snapshot.negotiated.mss_clamp,
    )?;
    socket.negotiated(&snapshot.negotiated, snapshot.timestamp)?;
    socket.fill_receive_queue(&snapshot.receive_queue)?;
    let (sent, unsent) = snapshot.sent_and_unsent();
    socket.fill_send_queue(sent, unsent.len())?;
    socket.enter_state(State::Established, &[], 0)?;
    socket.window(snapshot.window)?;
    socket.verify(&snapshot.rebuilt_numbers(), &snapshot.negotiated)?;
    sockopt::set_keep_alive(socket.as_fd(), true)?;
    sockopt::set_user_timeout(socket.as_fd(), 30_000)?;
    socket.hold()?;
    Ok(socket)
}

/// Rebuilds and activates: what fails leaves nothing behind and sends nothing, and the next try has all of it.
fn what_is_not_activated_leaves_nothing(v6: bool) {
    let net = Net::new();
    let (mut talk, server) = Talk::new(&net, v6);
    let ends = talk.ends;
    let mut server = Some(server);
    let calls = net.a.run(|| {
        let lookup = Lookup::new().unwrap();
        each_call(|nth, error| {
            let fd = server.take().unwrap();
            talk.asks(&fd);
            let frozen = FrozenSocket::freeze(fd).unwrap();
            let snapshot = frozen.read().unwrap();
            frozen.discard().unwrap();
            let (built, failed) = calls::failing(nth, error, || {
                let socket = rebuild(&snapshot, ends)?;
                let fd = socket.activate(true).map_err(|failed| failed.error)?;
                Ok::<_, tcpmig_sys::Error>(fd)
            });
            let fd = match built {
                Ok(fd) => fd,
                Err(error) => {
                    println!("not rebuilt: {error}");
                    // It goes as soon as nothing of the kernel is at work on it.
                    until("no socket is left", || {
                        lookup.find(ends.local, ends.remote).unwrap().is_none()
                    });
                    // The peer has heard nothing: it takes up the connection that is made now.
                    let socket = rebuild(&snapshot, ends).unwrap();
                    socket.activate(true).unwrap()
                }
            };
            let (_, unsent) = snapshot.sent_and_unsent();
            write_unsent(fd.as_fd(), unsent).unwrap();
            set_again(fd.as_fd(), failed);
            talk.is_answered(&fd);
            server = Some(fd);
            failed
        })
    });
    let calls = calls.unwrap();
    assert!(calls > 40, "{calls} calls");
}

kernel_test!(a_connection_that_is_not_taken_goes_on_v4, || {
    a_connection_that_is_not_taken_goes_on(false);
});
kernel_test!(a_connection_that_is_not_taken_goes_on_v6, || {
    a_connection_that_is_not_taken_goes_on(true);
});
kernel_test!(what_was_not_thawed_can_be_thawed_v4, || {
    what_was_not_thawed_can_be_thawed(false);
});
kernel_test!(what_was_not_thawed_can_be_thawed_v6, || {
    what_was_not_thawed_can_be_thawed(true);
});
kernel_test!(what_is_not_activated_leaves_nothing_v4, || {
    what_is_not_activated_leaves_nothing(false);
});
kernel_test!(what_is_not_activated_leaves_nothing_v6, || {
    what_is_not_activated_leaves_nothing(true);
});

/// What an idle connection costs, in calls: more are noticed here.
fn an_idle_connection_takes_few_calls(v6: bool) {
    let net = Net::new();
    let (_peer, server) = net.connect(family(v6));
    let ends = Ends::of(server.as_fd()).unwrap();
    // What the kernel lacks is asked for once in a process, not for each connection.
    net.a
        .run(|| repair::check(server.as_fd()).unwrap())
        .unwrap();
    let (frozen, source) = net
        .a
        .run(|| {
            calls::made(|| {
                let frozen = FrozenSocket::freeze(server.into()).unwrap();
                let snapshot = frozen.read().unwrap();
                assert_eq!(frozen.progress().unwrap(), snapshot.progress);
                frozen.discard().unwrap();
                snapshot
            })
        })
        .unwrap();
    let (_alive, target) = net
        .a
        .run(|| calls::made(|| rebuild(&frozen, ends).unwrap().activate(true).unwrap()))
        .unwrap();
    println!("source {}: {source:?}", source.len());
    println!("target {}: {target:?}", target.len());
    assert!(source.len() <= SOURCE_CALLS, "{source:?}");
    assert!(target.len() <= TARGET_CALLS, "{target:?}");
}

const SOURCE_CALLS: usize = 38;
const TARGET_CALLS: usize = 41;

kernel_test!(an_idle_connection_takes_few_calls_v4, || {
    an_idle_connection_takes_few_calls(false);
});
kernel_test!(an_idle_connection_takes_few_calls_v6, || {
    an_idle_connection_takes_few_calls(true);
});
