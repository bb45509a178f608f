//! Connections in every state that has a socket, moved between hosts of a lab, on the real kernel.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

/// A test that makes networks.
macro_rules! kernel_test {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            let (_, name) = concat!(module_path!(), "::", stringify!($name))
                .split_once("::")
                .unwrap();
            let _turn = crate::turn::Turn::take();
            tcpmig_sys::lab::isolated(name, $body);
        }
    };
}

mod ended;
mod firewalls;
mod listeners;
mod losses;
mod net;
mod obstacles;
mod opening;
mod refused;
mod scene;
mod turn;

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Instant;

use net::{Family, Net};
use scene::{Loss, Scene, activate, build, capture, locker, without_clock};
use tcpmig_sys::fcntl;
use tcpmig_sys::info::{State, tcp_info};

const FILLED: usize = 100_000;

/// Moves the connection from A to B, captures it there while no packet passes and compares the images, restores it
/// again and lets both ends finish.
fn moves(state: State, family: Family, queued: usize, loss: Loss) {
    let what = format!("{state} {family:?} {queued} {loss:?}");
    println!("{what}");
    let net = Net::new();
    let scene = Scene::new(&net, family, state, queued, loss);
    let (image, ends) = scene.leave_a(&net);
    let tcp = image.tcp().unwrap();
    assert_eq!(&tcp.receive().queue[..], &ends.up[..], "{what}");
    let waiting = [&tcp.send().sent[..], &tcp.send().unsent[..]].concat();
    if state != State::FinWait2 {
        assert_eq!(waiting, ends.down, "{what}");
        assert_eq!(!tcp.send().unsent.is_empty(), queued >= FILLED, "{what}");
        assert_eq!(!tcp.send().sent.is_empty(), queued > 0, "{what}");
    }

    let locker = net.b.run(locker).unwrap();
    let socket = activate(build(&net.b, &locker, image.clone()).unwrap());
    assert_eq!(tcp_info(socket.as_fd()).unwrap().state, state, "{what}");
    let (frozen, again) = capture(socket, &locker);
    assert_eq!(without_clock(&again), without_clock(&image), "{what}");
    frozen.check_unchanged().unwrap();
    frozen.discard().unwrap();
    // The lock was left for packets that would find no socket; until the next one, nothing passes the cut.
    locker.force_unlock(&[again.ip().unwrap().flow]).unwrap();
    let prepared = build(&net.b, &locker, again).unwrap();
    net.b.mend();

    let began = Instant::now();
    ends.finish(&net, activate(prepared));
    println!("{what}: finished {:?} after activation", began.elapsed());
}

fn moves_in_every_way(state: State) {
    for family in [Family::V4, Family::V6] {
        for queued in [0, FILLED] {
            moves(state, family, queued, Loss::Answers);
        }
    }
    moves(state, Family::Mapped, 1000, Loss::Answers);
    // What host A sent last never arrived.
    if !matches!(state, State::FinWait2 | State::Closing) {
        moves(state, Family::V6, 0, Loss::Packets);
        moves(state, Family::V4, FILLED, Loss::Packets);
    }
}

kernel_test!(fin_wait1_moves, || moves_in_every_way(State::FinWait1));
kernel_test!(fin_wait2_moves, || moves_in_every_way(State::FinWait2));
kernel_test!(close_wait_moves, || moves_in_every_way(State::CloseWait));
kernel_test!(last_ack_moves, || moves_in_every_way(State::LastAck));
kernel_test!(closing_moves, || moves_in_every_way(State::Closing));

kernel_test!(a_shut_receiving_direction_moves, || {
    for state in [State::Established, State::FinWait1, State::FinWait2] {
        let net = Net::new();
        let scene = Scene::new(&net, Family::V4, state, 1000, Loss::Answers);
        scene.server.shutdown(Shutdown::Read).unwrap();
        let (image, ends) = scene.leave_a(&net);
        assert_eq!(image.tcp().unwrap().socket().shut_read, Some(true));
        let locker = net.b.run(locker).unwrap();
        let prepared = build(&net.b, &locker, image).unwrap();
        net.b.mend();
        let socket = activate(prepared);
        assert!(fcntl::read_shut(socket.as_fd()).unwrap());
        // What came before is read, and then the end, which the peer has not sent.
        let mut got = Vec::new();
        TcpStream::from(socket).read_to_end(&mut got).unwrap();
        assert!(got == ends.up);
    }
});

kernel_test!(a_frozen_connection_that_was_closed_is_kept, || {
    for state in [State::FinWait1, State::CloseWait, State::LastAck] {
        let net = Net::new();
        let scene = Scene::new(&net, Family::V4, state, FILLED, Loss::Answers);
        let (ends, server) = scene.stay(&net);
        ends.finish(&net, server);
    }
});
