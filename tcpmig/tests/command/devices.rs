//! A device that was unplugged for a lock comes back, whoever was killed.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::lab::isolated;

use crate::locks::locks;
use crate::support::{Net, Program, TCPMIG, succeeds, tcpmig, text, until};
use crate::way_back::stuck;

/// What of the device `eth0` others can see.
fn shown(net: &Net) -> String {
    let mut all = String::new();
    for arguments in [
        "-o address show dev eth0",
        "-4 route show table all",
        "-6 route show table all",
    ] {
        let mut command = net.a.command("ip").unwrap();
        let output = command.args(arguments.split(' ')).output().unwrap();
        all.push_str(&text(&output.stdout));
    }
    all
}

/// The same when the kernel has given it its link-local address, which it does a moment after it is up.
fn settled(net: &Net) -> String {
    until("a link-local address", || {
        let shown = shown(net);
        shown.contains("inet6 fe80") && !shown.contains("tentative")
    });
    shown(net)
}

/// A connection of a host, the image of which a restore that was killed had begun with.
fn killed(net: &Net) {
    let echo = net.echo();
    let image = net.file("connection.image");
    let image = image.to_str().unwrap();
    succeeds(&tcpmig(
        &net.a,
        &["dump", "--flow", &echo.flow, "-o", image, "--lease", "5"],
    ));
    let (restore, _reader) = stuck(net, image, &["--lock", "link:eth0"]);
    assert!(!shown(net).contains("198.18.0.0/24 dev eth0"));
    drop(restore);
}

/// The processes that are there to bring devices of this host back.
fn guardians(net: &Net) -> Vec<Pid> {
    use std::os::unix::fs::MetadataExt;
    let namespace = |path: &str| std::fs::metadata(path).ok().map(|meta| meta.ino());
    let own = net.a.run(|| namespace("/proc/thread-self/ns/net")).unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if text(&command).contains("device-guardian")
            && namespace(&format!("/proc/{pid}/ns/net")) == own
        {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

#[test]
fn it_comes_back_when_the_lease_of_a_killed_process_ends() {
    isolated(
        "devices::it_comes_back_when_the_lease_of_a_killed_process_ends",
        || {
            let net = Net::new();
            let before = settled(&net);
            killed(&net);
            let said = succeeds(&tcpmig(&net.a, &["locks"]));
            assert!(said.contains("eth0 is unplugged for"), "{said}");
            until("the device is as it was", || shown(&net) == before);
            assert_eq!(locks(&net, &[])["unplugged"].as_array().unwrap().len(), 0);
            until("nobody waits any more", || guardians(&net).is_empty());
        },
    );
}

/// Everybody was killed, also who would bring it back.
fn left_behind(brought_back: impl Fn(&Net)) {
    let net = Net::new();
    let before = settled(&net);
    killed(&net);
    for pid in guardians(&net) {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    until("the lease ends", || {
        locks(&net, &[])["unplugged"][0]["ended"] == true
    });
    let said = succeeds(&tcpmig(&net.a, &["locks"]));
    assert!(
        said.contains("eth0 is unplugged for a lock that has ended"),
        "{said}"
    );
    assert!(said.contains("tcpmig locks --sweep"), "{said}");
    assert_ne!(shown(&net), before);
    brought_back(&net);
    until("the device is as it was", || shown(&net) == before);
    assert_eq!(locks(&net, &[])["unplugged"].as_array().unwrap().len(), 0);
}

#[test]
fn what_nobody_brings_back_is_named_and_swept() {
    isolated(
        "devices::what_nobody_brings_back_is_named_and_swept",
        || {
            left_behind(|net| {
                let said = succeeds(&tcpmig(&net.a, &["locks", "--sweep"]));
                assert!(said.contains("link eth0"), "{said}");
            });
        },
    );
}

#[test]
fn a_guard_brings_it_back() {
    isolated("devices::a_guard_brings_it_back", || {
        left_behind(|net| {
            let guard = Program::start(&net.a, &TCPMIG, &["locks", "--guard"]);
            assert!(guard.hear().contains("guarding"));
            assert!(guard.hear().contains("link eth0"));
        });
    });
}

#[test]
fn one_that_a_dump_unplugged_comes_back_when_its_lease_ends() {
    isolated(
        "devices::one_that_a_dump_unplugged_comes_back_when_its_lease_ends",
        || {
            let net = Net::new();
            let before = settled(&net);
            let echo = net.echo();
            let image = net.file("connection.image");
            let image = image.to_str().unwrap();
            let lock = ["--lock", "link:eth0", "--lease", "2"];
            let dump = ["dump", "--flow", &echo.flow, "-o", image];
            succeeds(&tcpmig(&net.a, &[&dump[..], &lock].concat()));
            until("the device is as it was", || shown(&net) == before);
            until("nobody waits any more", || guardians(&net).is_empty());
        },
    );
}
