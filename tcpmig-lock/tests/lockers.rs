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

mod iptables {
    use super::{Ground, Locker, Setup};
    use std::process::Command;
    use tcpmig_lock::{Flavour, Iptables};

    struct It(Flavour);

    impl It {
        fn infix(&self) -> &'static str {
            match self.0 {
                Flavour::Legacy => "-legacy",
                _ => "-nft",
            }
        }

        fn open(&self, ground: &Ground) -> Iptables {
            ground
                .server
                .run(|| Iptables::with_flavour(self.0).expect("apt-get install iptables"))
        }
    }

    impl Setup for It {
        fn locker(&self, ground: &Ground) -> Box<dyn Locker> {
            Box::new(self.open(ground))
        }

        fn exempting(&self, ground: &Ground, mark: u32) -> Option<Box<dyn Locker>> {
            Some(Box::new(self.open(ground).exempt_mark(mark)))
        }

        fn capturing(&self, ground: &Ground) -> Option<Box<dyn Locker>> {
            Some(Box::new(self.open(ground).capturing(1 << 20).unwrap()))
        }

        fn lacking(&self) -> bool {
            let program = format!("/usr/sbin/iptables{}", self.infix());
            let list = Command::new(program)
                .args(["-t", "raw", "-S"])
                .env("XTABLES_LOCKFILE", "/dev/null")
                .output();
            let said = String::from_utf8(list.unwrap().stderr).unwrap();
            said.contains("does not exist") || said.contains("not supported")
        }

        fn traces(&self, ground: &Ground) -> String {
            let infix = self.infix();
            let mut text = String::new();
            for name in ["iptables", "ip6tables"] {
                let save = || Command::new(format!("/usr/sbin/{name}{infix}-save")).output();
                let output = ground.server.run(save).unwrap();
                let rules = String::from_utf8(output.stdout).unwrap();
                text.extend(rules.lines().filter(|line| line.contains("tcpmig")));
            }
            text
        }
    }

    mod nft {
        use super::{Flavour, It};

        tcpmig_lock::conformance_tests!(It(Flavour::Nft));
    }

    mod legacy {
        use super::{Flavour, It};

        tcpmig_lock::conformance_tests!(It(Flavour::Legacy));
    }
}

mod link {
    use super::{Ground, Locker, Setup};
    use std::process::Command;
    use tcpmig_lock::conformance::lab::Host;
    use tcpmig_lock::{Link, Unplug};

    /// The device `.1` of a host, unplugged in this way.
    struct It(fn(&Ground) -> &Host, &'static str, Unplug);

    impl Setup for It {
        fn locker(&self, ground: &Ground) -> Box<dyn Locker> {
            let host = (self.0)(ground);
            Box::new(host.run(|| Link::new(self.1, self.2).unwrap()))
        }

        /// What of the device others can see: its flags, bridge and port settings, its addresses and its routes.
        fn traces(&self, ground: &Ground) -> String {
            let device = self.1;
            let mut text = String::new();
            for command in [
                format!("-d link show dev {device}"),
                format!("-4 address show dev {device}"),
                format!("-6 address show dev {device} -tentative"),
                "-4 route show table all".to_owned(),
                "-6 route show table all".to_owned(),
            ] {
                let ip = || Command::new("ip").args(command.split(' ')).output();
                let output = (self.0)(ground).run(ip).unwrap();
                assert!(output.status.success(), "{output:?}");
                let shown = String::from_utf8(output.stdout).unwrap();
                let mut lines: Vec<_> = shown.lines().map(stable).collect();
                if command.contains("route") {
                    lines.sort();
                }
                text.push_str(&lines.join("\n"));
                text.push('\n');
            }
            text
        }
    }

    /// A line without the timers and identifiers that a bridge counts itself.
    fn stable(line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "hold_timer" | "message_age_timer" | "forward_delay_timer" | "state"
                    if line.contains("bridge_slave") =>
                {
                    words.next();
                }
                _ => kept.push(word),
            }
        }
        kept.join(" ")
    }

    mod port {
        use super::{It, Unplug};

        tcpmig_lock::conformance_tests!(It(|ground| &ground.switch, "port1", Unplug::Port));
    }

    mod own {
        use super::{It, Unplug};

        tcpmig_lock::conformance_tests!(It(|ground| &ground.server, "eth0", Unplug::Down));
    }

    mod host_side {
        use super::{It, Unplug};

        tcpmig_lock::conformance_tests!(It(|ground| &ground.switch, "port1", Unplug::Down));
    }
}

mod redirected_by {
    use super::{Ground, Locker, Setup};
    use std::process::Command;
    use tcpmig_lock::{Flavour, Iptables, Nftables, RedirectedBy};

    struct It;

    /// Rules of `iptables-nft` are seen by `nft` as well.
    fn open(ground: &Ground, locks: impl FnOnce(Iptables) -> Iptables + Send) -> Box<dyn Locker> {
        Box::new(ground.server.run(|| {
            let iptables = Iptables::with_flavour(Flavour::Nft).expect("apt-get install iptables");
            RedirectedBy::new(locks(iptables), Nftables::new().unwrap())
        }))
    }

    impl Setup for It {
        fn locker(&self, ground: &Ground) -> Box<dyn Locker> {
            open(ground, |locks| locks)
        }

        fn exempting(&self, ground: &Ground, mark: u32) -> Option<Box<dyn Locker>> {
            Some(open(ground, move |locks| locks.exempt_mark(mark)))
        }

        fn capturing(&self, ground: &Ground) -> Option<Box<dyn Locker>> {
            Some(open(ground, |locks| locks.capturing(1 << 20).unwrap()))
        }

        fn traces(&self, ground: &Ground) -> String {
            let list = || Command::new("nft").args(["list", "ruleset"]).output();
            let rules = String::from_utf8(ground.server.run(list).unwrap().stdout).unwrap();
            rules
                .lines()
                .filter(|line| line.contains("tcpmig"))
                .collect()
        }
    }

    tcpmig_lock::conformance_tests!(It);
}
