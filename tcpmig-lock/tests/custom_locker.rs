//! The locker that the documentation gives as a template passes the suite that it points to.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[path = "../examples/custom_locker.rs"]
mod custom_locker;

use custom_locker::NftProgram;
use tcpmig_lock::Locker;
use tcpmig_lock::conformance::{Ground, Setup};

struct It;

impl Setup for It {
    fn locker(&self, ground: &Ground) -> Box<dyn Locker> {
        Box::new(ground.server.run(|| NftProgram::open().unwrap()))
    }
}

tcpmig_lock::conformance_tests!(It);
