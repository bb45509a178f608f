//! What the kernels of some distributions have and others lack, so that the rest of the tests cannot count on it.
//!
//! `.ci/kernels` runs these tests under kernels that have most of it; elsewhere they are ignored. One whose feature a kernel
//! lacks says so in a line that begins with `not applicable:`, which `.ci/kernels` does not count as passed.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[allow(dead_code, reason = "it has more than is used here")]
#[path = "../options/scene.rs"]
mod scene;
#[path = "../support/mod.rs"]
mod support;

mod layers;
mod signed;
mod vrf;

use std::fmt::Display;

use tcpmig::driver::{Ending, Options, Reason};
use tcpmig_sys::NotMigratable;

use support::{Net, Site, both_ways, flow};

/// A test that `.ci/kernels` runs.
macro_rules! feature_test {
    ($name:ident, $body:expr) => {
        #[test]
        #[ignore = "of kernels that have it: .ci/kernels"]
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            tcpmig_sys::lab::isolated(tcpmig_sys::lab::test_name(path), $body);
        }
    };
}
pub(crate) use feature_test;

/// Says that this kernel lacks what the test is about.
fn not_applicable(feature: &str, because: impl Display) {
    println!("not applicable: {feature}: {because}");
}

/// A handover of this connection of host A is refused for this reason before the target hears of it; the connection goes on.
fn keeps(net: &Net, peer: &std::net::TcpStream, server: std::net::TcpStream, why: NotMigratable) {
    let (a, b) = Site::pair(net, &Options::default());
    b.serve();
    let flow = flow(&server);
    let outcome = a.move_out(server, None).wait();
    let Ending::Kept { socket, reason, .. } = outcome.ending else {
        panic!("{outcome:?}");
    };
    let Reason::Capture(tcpmig::capture::CaptureError::Socket(error)) = reason else {
        panic!("{reason:?}");
    };
    let text = format!("the connection cannot be moved: {why}");
    assert_eq!(error.to_string(), text);
    b.no_arrival();
    assert_eq!(a.entries(flow), []);
    both_ways(peer, &socket.into());
}
