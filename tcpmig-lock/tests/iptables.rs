//! The iptables locker among the rules of others, and where it cannot work.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Output};
use std::time::Duration;

use common::isolated;
use common::net::{Connection, Host, expect, expect_nothing, link, send};
use tcpmig_lock::{Flavour, FourTuple, Iptables, LockError, Locker, Nftables};

/// Longer than any of these tests, also on a slow machine.
const LEASE: Duration = Duration::from_secs(1200);

fn flows(count: u16) -> Vec<FourTuple> {
    let flow = |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
    (0..count)
        .map(|number| flow(number).parse().unwrap())
        .collect()
}

/// One of the programs, in a host's namespace.
fn run(host: &Host, command: &str) -> Output {
    let words: Vec<&str> = command.split_whitespace().collect();
    let run = || {
        Command::new(format!("/usr/sbin/{}", words[0]))
            .args(&words[1..])
            .env("XTABLES_LOCKFILE", "/dev/null")
            .output()
    };
    host.run(run).unwrap()
}

/// The rules of all tables, without counters and comments.
fn rules(host: &Host, flavour: &str) -> String {
    let mut text = String::new();
    for table in ["raw", "filter"] {
        let output = run(host, &format!("iptables-{flavour}-save -t {table}"));
        let saved = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<_> = saved
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        lines.push("");
        text.push_str(&lines.join("\n"));
    }
    text
}

/// The flavours that this kernel has.
fn flavours(host: &Host) -> Vec<(Flavour, &'static str)> {
    let known = [(Flavour::Nft, "nft"), (Flavour::Legacy, "legacy")];
    let works = |flavour: &str| {
        run(host, &format!("iptables-{flavour} -t raw -S"))
            .status
            .success()
    };
    let flavours: Vec<_> = known.into_iter().filter(|(_, name)| works(name)).collect();
    assert!(
        !flavours.is_empty(),
        "neither flavour works with this kernel"
    );
    flavours
}

#[test]
fn the_rules_of_others_stay_as_they_are() {
    isolated("the_rules_of_others_stay_as_they_are", || {
        let (server, client) = (Host::new(), Host::new());
        link(&server, &client);
        for (flavour, name) in flavours(&server) {
            for command in [
                "-t raw -N mine",
                "-t raw -A PREROUTING -j mine",
                "-t raw -A mine -p udp --dport 9 -j DROP",
                "-t raw -A OUTPUT -p udp -j ACCEPT",
                "-A INPUT -p tcp --dport 7777 -j REJECT",
                "-P FORWARD DROP",
            ] {
                let output = run(&server, &format!("iptables-{name} {command}"));
                assert!(output.status.success(), "{output:?}");
            }
            let before = rules(&server, name);
            let locker = server.run(|| Iptables::with_flavour(flavour).unwrap());
            let guard = locker.lock(&flows(3), LEASE).unwrap();
            let during = rules(&server, name);
            for line in before.lines() {
                assert!(during.contains(line), "{line} is not in {during}");
            }
            assert!(
                during.find("-j tcpmig-in") < during.find("-j mine"),
                "{during}"
            );
            guard.unlock().unwrap();
            assert!(!locker.sweep().unwrap().is_empty());
            assert_eq!(rules(&server, name), before);
        }
    });
}

#[test]
fn rules_that_somebody_removed_are_made_again() {
    isolated("rules_that_somebody_removed_are_made_again", || {
        let (server, client) = (Host::new(), Host::new());
        link(&server, &client);
        for (flavour, name) in flavours(&server) {
            let locker = server.run(|| Iptables::with_flavour(flavour).unwrap());
            let mut flow = Connection::new(&server, &client, "10.0.0.1".parse().unwrap());
            let mut neighbour = Connection::new(&server, &client, "10.0.0.1".parse().unwrap());
            let mut guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            run(&server, &format!("iptables-{name} -t raw -F"));
            let error = guard.renew(LEASE).unwrap_err();
            assert!(matches!(error, LockError::NotHeld(_)), "{error}");
            guard.unlock().unwrap();
            let guard = locker.lock(&[flow.flow()], LEASE).unwrap();
            send(&mut flow.client, b'x');
            neighbour.ping();
            expect_nothing(&flow.server);
            guard.unlock().unwrap();
            expect(&mut flow.server, b'x');
        }
    });
}

#[test]
fn it_and_nftables_do_not_disturb_each_other() {
    isolated("it_and_nftables_do_not_disturb_each_other", || {
        let (server, client) = (Host::new(), Host::new());
        link(&server, &client);
        let mut flow = Connection::new(&server, &client, "10.0.0.1".parse().unwrap());
        let mut neighbour = Connection::new(&server, &client, "10.0.0.1".parse().unwrap());
        let iptables = server.run(|| Iptables::with_flavour(Flavour::Nft).unwrap());
        let nftables = server.run(|| Nftables::new().unwrap());
        let one = iptables.lock(&[flow.flow()], LEASE).unwrap();
        let two = nftables.lock(&[flow.flow()], LEASE).unwrap();
        one.unlock().unwrap();
        iptables.sweep().unwrap();
        send(&mut flow.client, b'x');
        neighbour.ping();
        expect_nothing(&flow.server);
        two.unlock().unwrap();
        expect(&mut flow.server, b'x');
    });
}

#[test]
fn many_handles_at_once() {
    isolated("many_handles_at_once", || {
        let host = Host::new();
        for (flavour, _) in flavours(&host) {
            let flows = flows(16);
            let guards: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = flows
                    .chunks(4)
                    .map(|flows| {
                        let host = &host;
                        scope.spawn(move || {
                            let locker = host.run(|| Iptables::with_flavour(flavour).unwrap());
                            let lock = |flow: &FourTuple| {
                                drop(locker.lock(&[*flow], LEASE).unwrap());
                                locker.lock(&[*flow], LEASE).unwrap()
                            };
                            flows.iter().map(lock).collect::<Vec<_>>()
                        })
                    })
                    .collect();
                let sweeper = host.run(|| Iptables::with_flavour(flavour).unwrap());
                while threads.iter().any(|thread| !thread.is_finished()) {
                    sweeper.sweep().unwrap();
                }
                threads
                    .into_iter()
                    .flat_map(|thread| thread.join().unwrap())
                    .collect()
            });
            let locker = host.run(|| Iptables::with_flavour(flavour).unwrap());
            assert_eq!(locker.list().unwrap().len(), flows.len());
            drop(guards);
            assert_eq!(locker.list().unwrap(), []);
        }
    });
}

/// Runs a test of this program again after this shell command, in namespaces of its own.
fn again_after(test: &str, flags: &[&str], command: &str) {
    let output = Command::new("unshare")
        .args(flags)
        .args(["sh", "-c", &format!("{command} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(AGAIN, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
}

const AGAIN: &str = "TCPMIG_LOCK_TEST_AGAIN";

#[test]
fn without_the_programs_the_error_says_which_and_where_it_was_looked_for() {
    const NAME: &str = "without_the_programs_the_error_says_which_and_where_it_was_looked_for";
    if std::env::var_os(AGAIN).is_none() {
        let hide = "for d in /usr/sbin /sbin; do mount -t tmpfs none \"$(readlink -f $d)\"; done;";
        return again_after(NAME, &["-Urm"], hide);
    }
    let error = Iptables::new().map(drop).unwrap_err();
    let LockError::NoProgram {
        program,
        searched,
        package,
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!((program.as_str(), *package), ("iptables-save", "iptables"));
    assert!(searched.contains("/usr/sbin"), "{searched}");
    assert!(
        error.to_string().contains("apt-get install iptables"),
        "{error}"
    );
}

#[test]
fn without_privileges_the_error_says_what_is_missing() {
    const NAME: &str = "without_privileges_the_error_says_what_is_missing";
    if std::env::var_os(AGAIN).is_none() {
        // A user namespace of its own has no say in a network namespace that it does not own.
        return isolated(NAME, || again_after(NAME, &["-U"], ""));
    }
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let locker = Iptables::with_flavour(flavour).unwrap();
        let error = locker.lock(&flows(1), LEASE).map(drop).unwrap_err();
        assert!(
            matches!(error, LockError::NoPermission { .. }),
            "{flavour:?}: {error}"
        );
    }
}

/// Sets the clock of the whole machine: for one of its own, see `.ci/kernels`.
#[test]
#[ignore = "sets the clock of the machine"]
fn a_clock_that_is_set_neither_ends_nor_prolongs_a_lease() {
    isolated(
        "a_clock_that_is_set_neither_ends_nor_prolongs_a_lease",
        || {
            assert!(
                std::env::var_os("TCPMIG_OWN_MACHINE").is_some(),
                "it sets the clock of the machine: run it by .ci/kernels"
            );
            let (server, client) = (Host::new(), Host::new());
            link(&server, &client);
            let set = |seconds: i64| {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap()
                    .as_secs();
                let to = format!("@{}", now.saturating_add_signed(seconds));
                let output = Command::new("date").args(["-s", &to]).output().unwrap();
                assert!(output.status.success(), "{output:?}");
            };
            for (flavour, name) in flavours(&server) {
                let (tell, told) = std::sync::mpsc::channel();
                let locker = server
                    .run(|| Iptables::with_flavour(flavour).unwrap())
                    .on_event(move |event| drop(tell.send(event.to_string())));
                let connection = || Connection::new(&server, &client, "10.0.0.1".parse().unwrap());
                let mut connections = [(); 3].map(|()| connection());
                let mut neighbour = connection();
                let flows = connections.each_ref().map(Connection::flow);
                let lease = common::slowed(Duration::from_secs(60));
                let guard = locker.lock(&flows, lease).unwrap();
                let start = std::time::Instant::now();
                // One connection for each step: what was sent before comes again, perhaps before the rules are right.
                for (step, flow) in [3600, -7200, 90_000].into_iter().zip(&mut connections) {
                    set(step);
                    let event = told.recv_timeout(Duration::from_secs(60)).unwrap();
                    println!("{name}: {event}");
                    send(&mut flow.client, b'x');
                    neighbour.ping();
                    expect_nothing(&flow.server);
                    let passed = start.elapsed();
                    for entry in locker.list().unwrap() {
                        assert!(
                            entry.remaining <= lease - passed,
                            "{entry:?} after {passed:?}"
                        );
                    }
                    assert_eq!(locker.list().unwrap().len(), 3);
                }
                // Nor is it swept earlier.
                assert!(locker.sweep().unwrap().flows.is_empty());
                guard.unlock().unwrap();
                for flow in &mut connections {
                    expect(&mut flow.server, b'x');
                }
                set(-90_000 + 3600);
                locker.sweep().unwrap();
            }
        },
    );
}
