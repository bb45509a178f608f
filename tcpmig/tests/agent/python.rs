//! The client in Python, whose server has no privileges.

use std::process::Command;

use tcpmig_sys::kernel_test;

use crate::hosts::{Hosts, PYTHON, PYTHON_FILES, signal};
use crate::killed::outcome;
use crate::support::{Program, succeeds};
use crate::traffic::Traffic;

/// What it says next that begins so.
fn says(server: &Program, beginning: &str) -> String {
    loop {
        let line = server.hear();
        if let Some(rest) = line.strip_prefix(beginning) {
            return rest.trim().to_owned();
        }
    }
}

/// Has it give all that it has. What is kept, because the other host is busy, is given again.
fn gives_all(server: &Program, mut left: usize) {
    while left > 0 {
        signal(server, "USR1");
        let outcomes = (0..left).map(|_| outcome(server));
        let outcomes: Vec<String> = outcomes.collect();
        let moved = outcomes.iter().filter(|outcome| *outcome == "moved");
        left -= moved.count();
        assert!(
            outcomes
                .iter()
                .all(|outcome| ["moved", "kept"].contains(&outcome.as_str())),
            "{outcomes:?}"
        );
    }
}

kernel_test!(
    sessions_move_between_servers_in_python_under_traffic,
    || {
        let hosts = Hosts::new();
        let servers = [hosts.python("a"), hosts.python("b")];
        let traffic: Vec<Traffic> = (0..3).map(|_| Traffic::start(&hosts.peer)).collect();
        for round in 0..4 {
            for one in &traffic {
                one.goes_on();
            }
            gives_all(&servers[round % 2], traffic.len());
            for _ in &traffic {
                says(&servers[(round + 1) % 2], "arrived");
            }
        }
        for one in traffic {
            one.goes_on();
            one.ends_well();
        }
        let metrics = hosts.metrics("a");
        let moved = r#"tcpmig_moves_total{service="counter",outcome="moved"} 6"#;
        assert!(metrics.contains(moved), "{metrics}");
    }
);

kernel_test!(a_host_is_drained_and_ends, || {
    let hosts = Hosts::new();
    let mut a = hosts.python("a");
    let b = hosts.python("b");
    let traffic: Vec<Traffic> = (0..5).map(|_| Traffic::start(&hosts.peer)).collect();
    for one in &traffic {
        one.goes_on();
    }
    let status = succeeds(&hosts.verb("a", &["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["services"][0]["service"], "counter");
    assert_eq!(status["services"][0]["process"], a.child.id());
    let drain = ["drain", "--to", "b.example", "--wait", "--json"];
    let drained = succeeds(&hosts.verb("a", &drain));
    let last = drained.lines().last().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["moved"], 5);
    assert_eq!(last["left"], 0);
    says(&a, "empty");
    assert!(a.ends());
    for one in traffic {
        one.goes_on();
        one.ends_well();
    }
    drop(b);
});

#[test]
fn the_library_reads_what_it_writes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in PYTHON_FILES {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let run = |code: &str| {
        let status = Command::new(PYTHON)
            .args([
                "-B",
                "-c",
                &format!("import sys\nfrom tcpmig_agent import *\n{code}"),
            ])
            .env("PYTHONPATH", folder.path())
            .status();
        status.unwrap().success()
    };
    assert!(run(
        "for value in [None, True, 0, 127, 128, 2**64 - 1, -1, 'x' * 70000, b'x' * 300, [1] * 20, {'a': {'b': [b'']}}]: assert unpack(pack(value)) == value"
    ));
    for wrong in [
        r"b'\x81'",
        r"b'\xa5x'",
        r"b'\xcd'",
        r"b'\x91' * 100",
        r"b'\xc0\xc0'",
    ] {
        assert!(
            run(&format!(
                "try: unpack({wrong})\nexcept ValueError: sys.exit()\nsys.exit(1)"
            )),
            "{wrong}"
        );
    }
}
