//! Every locker of this crate passes the conformance suite.
#![allow(clippy::unwrap_used)]

use tcpmig_lock::Locker;
use tcpmig_lock::conformance::{Ground, Setup};

mod nftables {
    use super::{Ground, Locker, Setup};
    use std::process::Command;
    use tcpmig_lock::Nftables;

    struct It;

    impl Setup for It {
        fn locker(&self, ground: &Ground) -> Box<dyn Locker> {
            Box::new(ground.server.run(|| Nftables::new().unwrap()))
        }

        fn exempting(&self, ground: &Ground, mark: u32) -> Option<Box<dyn Locker>> {
            let locker = ground.server.run(|| Nftables::new().unwrap());
            Some(Box::new(locker.exempt_mark(mark)))
        }

        fn capturing(&self, ground: &Ground) -> Option<Box<dyn Locker>> {
            let open = || Nftables::new().unwrap().capturing(1 << 20).unwrap();
            Some(Box::new(ground.server.run(open)))
        }

        fn traces(&self, ground: &Ground) -> String {
            let list = || Command::new("nft").args(["list", "ruleset"]).output();
            String::from_utf8(ground.server.run(list).unwrap().stdout).unwrap()
        }
    }

    tcpmig_lock::conformance_tests!(It);
}

mod none {
    use super::{Ground, Locker, Setup};
    use tcpmig_lock::NoLock;

    struct It;

    impl Setup for It {
        fn locker(&self, _ground: &Ground) -> Box<dyn Locker> {
            Box::new(NoLock)
        }
    }

    tcpmig_lock::conformance_tests!(It);
}
