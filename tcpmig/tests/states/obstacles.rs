//! Rebuilds on hosts whose packet filter, lock or addresses are in the way.

use std::time::{Duration, Instant};

use tcpmig::restore::{Prepared, RestoreError};
use tcpmig_format::{FourTuple, Image, TcpState};
use tcpmig_lock::{Entry, LockError, LockGuard, Locker, Nftables, Swept};
use tcpmig_sys::Error;
use tcpmig_sys::info::State;
use tcpmig_sys::lab::Host;

use crate::net::{Family, Net, lives, until};
use crate::scene::{Loss, Scene, activate, build, locker};

/// The states that are reached by segments of the peer.
const INJECTED: [State; 4] = [
    State::FinWait2,
    State::CloseWait,
    State::LastAck,
    State::Closing,
];

/// A host where a connection in this state can be restored, whatever `prepare` does to it.
fn finishes_behind(state: State, family: Family, prepare: impl FnOnce(&Host)) -> Net {
    let net = Net::new();
    prepare(&net.b);
    let (image, ends) = Scene::new(&net, family, state, 1000, Loss::Answers).leave_a(&net);
    let locker = net.b.run(locker).unwrap();
    let prepared = build(&net.b, &locker, image).unwrap();
    net.b.mend();
    ends.finish(&net, activate(prepared));
    net
}

kernel_test!(a_firewall_that_drops_invalid_packets, || {
    for state in INJECTED {
        for family in [Family::V4, Family::V6] {
            let net = finishes_behind(state, family, |host| {
                host.nft("table inet fw { counter n { }; chain c { type filter hook input priority filter; ct state invalid counter name n drop; }; }",
                );
            });
            let invalid = net.b.counted("fw");
            assert_eq!(invalid, 0, "{state}");
        }
    }
});

kernel_test!(a_strict_reverse_path_filter, || {
    for state in INJECTED {
        finishes_behind(state, Family::V4, |host| {
            for device in ["all", "lo", "eth0"] {
                host.set(&format!("net/ipv4/conf/{device}/rp_filter"), "1")
                    .unwrap();
            }
        });
    }
});

kernel_test!(a_receive_buffer_that_is_full, || {
    for state in INJECTED {
        let net = Net::new();
        let sizes = "4096 16777216 33554432";
        net.a.set("net/ipv4/tcp_rmem", sizes).unwrap();
        let bytes = if state == State::Closing {
            100_000
        } else {
            3 << 20
        };
        let (image, ends) = Scene::new(&net, Family::V4, state, bytes, Loss::Answers).leave_a(&net);
        let locker = net.b.run(locker).unwrap();
        let prepared = build(&net.b, &locker, image).unwrap();
        net.b.mend();
        ends.finish(&net, activate(prepared));
    }
});

kernel_test!(a_connection_without_options, || {
    for state in [
        State::Established,
        State::FinWait1,
        State::FinWait2,
        State::CloseWait,
    ] {
        let net = Net::new();
        for option in ["tcp_timestamps", "tcp_window_scaling", "tcp_sack"] {
            net.peer.set(&format!("net/ipv4/{option}"), "0").unwrap();
        }
        let (image, ends) =
            Scene::new(&net, Family::V6, state, 20_000, Loss::Answers).leave_a(&net);
        let negotiated = *image.tcp().unwrap().negotiated();
        assert_eq!(negotiated.timestamps, None);
        assert_eq!(negotiated.window_scale, None);
        let locker = net.b.run(locker).unwrap();
        let prepared = build(&net.b, &locker, image).unwrap();
        net.b.mend();
        let began = Instant::now();
        ends.finish(&net, activate(prepared));
        // Windows that were told with a scale would hold the upload up for many seconds.
        assert!(began.elapsed() < Duration::from_secs(1), "{state}");
    }
});

/// Nothing of a restore that was refused is left, and the next one succeeds.
fn refused_then_restored(
    state: State,
    spoil: impl FnOnce(&Net),
    refuses: impl FnOnce(&Net, Image) -> Result<Prepared, RestoreError>,
    unspoil: impl FnOnce(&Net),
) -> RestoreError {
    let net = Net::new();
    let (image, ends) = Scene::new(&net, Family::V4, state, 1000, Loss::Answers).leave_a(&net);
    spoil(&net);
    let flow = image.ip().unwrap().flow;
    let error = refuses(&net, image.clone()).unwrap_err();
    // A process that another test starts can hold the descriptor for a moment.
    until("the socket is gone", || !lives(&net.b, flow.local().port()));
    let locker = net.b.run(locker).unwrap();
    assert_eq!(locker.list().unwrap(), []);
    unspoil(&net);
    let prepared = build(&net.b, &locker, image).unwrap();
    net.b.mend();
    ends.finish(&net, activate(prepared));
    error
}

fn with_mark(net: &Net, image: Image) -> Result<Prepared, RestoreError> {
    let locker = net.b.run(locker).unwrap();
    build(&net.b, &locker, image)
}

#[track_caller]
fn assert_not_delivered(error: &RestoreError) {
    assert!(
        matches!(error, RestoreError::Socket(Error::NotDelivered { .. })),
        "{error}"
    );
}

kernel_test!(a_firewall_that_lets_nothing_in_on_lo, || {
    for state in INJECTED {
        let error = refused_then_restored(
            state,
            |net| {
                net.b.nft("table inet fw { chain c { type filter hook input priority filter; iif lo drop; ct state established,related accept; }; }",
                );
            },
            with_mark,
            |net| {
                net.b.nft("delete table inet fw");
            },
        );
        assert_not_delivered(&error);
    }
});

kernel_test!(a_lock_that_does_not_let_the_mark_pass, || {
    let error = refused_then_restored(
        State::CloseWait,
        |_| {},
        |net, image| {
            let locker = net.b.run(|| Nftables::with_table("other")).unwrap();
            build(&net.b, &locker.unwrap(), image)
        },
        |_| {},
    );
    assert_not_delivered(&error);
    assert!(error.to_string().contains("0x7463706d"), "{error}");
});

kernel_test!(an_address_that_is_not_here_yet, || {
    let error = refused_then_restored(
        State::CloseWait,
        |net| net.b.ip("addr del 198.18.0.80/32 dev lo\n").unwrap(),
        |net, mut image| {
            image.ip_mut().unwrap().transparent = true;
            with_mark(net, image)
        },
        |net| net.b.ip("addr add 198.18.0.80/32 dev lo\n").unwrap(),
    );
    assert!(
        matches!(error, RestoreError::Socket(Error::NotLocal { .. })),
        "{error}"
    );
});

/// A locker that is not to be asked, which comes before a socket is made.
struct Unasked;

impl Locker for Unasked {
    fn name(&self) -> &'static str {
        "unasked"
    }

    fn lock(&self, flows: &[FourTuple], _: Duration) -> Result<LockGuard, LockError> {
        panic!("a lock of {flows:?} was asked for")
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        Ok(Swept::default())
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        Ok(Vec::new())
    }
}

kernel_test!(images_without_a_connection, || {
    let net = Net::new();
    let scene = Scene::new(&net, Family::V4, State::CloseWait, 0, Loss::Answers);
    let (image, ends) = scene.leave_a(&net);
    for state in [TcpState::Listen, TcpState::SynRecv, TcpState::TimeWait] {
        let mut image = image.clone();
        let mut parts = image.tcp().unwrap().parts().clone();
        parts.state = state;
        image.connection_mut().unwrap().tcp = Some(tcpmig_format::TcpImage::new(parts).unwrap());
        let build = || Prepared::build(image, &Unasked, Duration::from_secs(1));
        let error = net.b.run(build).unwrap().unwrap_err();
        let RestoreError::State(refused) = error else {
            panic!("{error}");
        };
        assert_eq!(refused, state);
    }
    drop(ends);
});
