//! What is locked and redirected is shown, and what is stale removed.

use std::process::Command;

use serde_json::Value;
use tcpmig::driver::journal::{Decision, File, HandoverInfo, Journal, Note, Role};
use tcpmig::handover::HandoverId;
use tcpmig_sys::lab::{Host, isolated};

use crate::support::{Net, Program, TCPMIG, fails, succeeds, tcpmig};

pub(crate) fn locks(net: &Net, arguments: &[&str]) -> Value {
    locks_on(&net.a, arguments)
}

pub(crate) fn locks_on(host: &Host, arguments: &[&str]) -> Value {
    let mut all = vec!["--json", "locks"];
    all.extend(arguments);
    serde_json::from_str(&succeeds(&tcpmig(host, &all))).unwrap()
}

/// The lock of a dump, and then that it is gone.
fn shown_and_swept(locker: &str) {
    let net = Net::new();
    let none = succeeds(&tcpmig(&net.a, &["locks"]));
    assert!(none.contains("no connection is locked"), "{none}");

    let echo = net.echo();
    let image = net.file("connection.image");
    let image = image.to_str().unwrap();
    let dump = ["dump", "--flow", &echo.flow, "-o", image, "--lock", locker];
    succeeds(&tcpmig(&net.a, &dump));

    // A lease that runs is nothing to sweep.
    let value = locks(&net, &["--sweep"]);
    assert_eq!(value["swept"], Value::Array(Vec::new()), "{value}");
    let held = &value["held"];
    assert_eq!(held.as_array().unwrap().len(), 1, "{value}");
    assert!(held[0]["locker"].as_str().unwrap().starts_with(locker));
    assert_eq!(held[0]["flow"], echo.flow);
    assert_eq!(held[0]["kind"], "lock");
    let remaining = held[0]["remaining_seconds"].as_f64().unwrap();
    assert!(remaining > 0.0 && remaining <= 60.0, "{value}");
    let shown = succeeds(&tcpmig(&net.a, &["locks"]));
    assert!(shown.contains(&echo.flow), "{shown}");
    assert!(shown.contains("locked"), "{shown}");
    // Another host has its own.
    let other = succeeds(&tcpmig(&net.b, &["locks"]));
    assert!(other.contains("no connection is locked"), "{other}");
}

#[test]
fn locks_of_nftables_are_shown() {
    isolated("locks::locks_of_nftables_are_shown", || {
        shown_and_swept("nftables");
    });
}

#[test]
fn locks_of_iptables_are_shown() {
    isolated("locks::locks_of_iptables_are_shown", || {
        shown_and_swept("iptables");
    });
}

#[test]
fn a_redirect_is_shown_with_its_next_hop() {
    isolated("locks::a_redirect_is_shown_with_its_next_hop", || {
        let net = Net::new();
        let echo = net.echo();
        let image = net.file("connection.image");
        let image = image.to_str().unwrap();
        let dump = [
            "dump",
            "--flow",
            &echo.flow,
            "-o",
            image,
            "--redirect",
            "198.18.0.2",
        ];
        succeeds(&tcpmig(&net.a, &dump));
        let value = locks(&net, &[]);
        assert_eq!(value["held"][0]["kind"], "redirect", "{value}");
        assert_eq!(value["held"][0]["to"]["address"], "198.18.0.2");
        let shown = succeeds(&tcpmig(&net.a, &["locks"]));
        assert!(shown.contains("redirected to 198.18.0.2"), "{shown}");
    });
}

/// A dump's process is gone when the firewall is started again.
#[test]
fn under_a_guard_what_is_flushed_comes_back() {
    isolated("locks::under_a_guard_what_is_flushed_comes_back", || {
        let net = Net::new();
        let guard = Program::start(&net.a, &TCPMIG, &["--json", "locks", "--guard"]);
        assert!(guard.hear().contains("guarding"));
        let echo = net.echo();
        let image = net.file("connection.image");
        let image = image.to_str().unwrap();
        let dump = ["dump", "--flow", &echo.flow, "-o", image];
        succeeds(&tcpmig(
            &net.a,
            &[&dump[..], &["--redirect", "198.18.0.2"]].concat(),
        ));
        let value = locks(&net, &[]);
        assert_eq!(value["table"], "shared", "{value}");
        let shown = succeeds(&tcpmig(&net.a, &["locks"]));
        assert!(shown.contains("tcpmig locks --guard"), "{shown}");
        // It has its copy a moment after the redirect was made, here at the latest.
        net.a.nft("flush ruleset");
        assert!(guard.hear().contains("1 redirects"));
        let value = locks(&net, &[]);
        assert_eq!(value["held"][0]["kind"], "redirect", "{value}");
        assert_eq!(value["held"][0]["flow"], echo.flow);
        assert_eq!(value["held"][0]["to"]["address"], "198.18.0.2");
        // Without it, nothing comes back.
        drop(guard);
        net.a.nft("flush ruleset");
        let none = succeeds(&tcpmig(&net.a, &["locks"]));
        assert!(none.contains("no connection is locked"), "{none}");
        fails(
            &tcpmig(&net.a, &["locks", "--guard", "--sweep"]),
            2,
            &["--sweep"],
        );
    });
}

#[test]
fn silence_for_nothing_is_shown_and_swept() {
    isolated("locks::silence_for_nothing_is_shown_and_swept", || {
        let net = Net::new();
        let echo = net.echo();
        let image = net.file("connection.image");
        let image = image.to_str().unwrap();
        let dump = ["dump", "--flow", &echo.flow, "-o", image];
        succeeds(&tcpmig(
            &net.a,
            &[&dump[..], &["--redirect", "198.18.0.2"]].concat(),
        ));
        net.a
            .nft("flush map netdev tcpmig device4; flush map netdev tcpmig hop4");
        let value = locks(&net, &[]);
        assert_eq!(value["held"][0]["kind"], "silent", "{value}");
        assert_eq!(value["held"][0]["flow"], echo.flow);
        let shown = succeeds(&tcpmig(&net.a, &["locks"]));
        assert!(shown.contains("silent, was redirected"), "{shown}");
        let value = locks(&net, &["--sweep"]);
        assert_eq!(value["swept"][0]["flows"][0], echo.flow, "{value}");
        assert_eq!(value["held"].as_array().unwrap().len(), 0, "{value}");
    });
}

#[test]
fn what_holds_nothing_is_swept() {
    isolated("locks::what_holds_nothing_is_swept", || {
        let net = Net::new();
        let echo = net.echo();
        let image = net.file("copy.image");
        let image = image.to_str().unwrap();
        let dump = ["dump", "--flow", &echo.flow, "-o", image, "--keep"];
        succeeds(&tcpmig(&net.a, &dump));
        let tables = || {
            let list = || Command::new("nft").args(["list", "tables"]).output();
            let output = net.a.run(list).unwrap().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(tables().contains("inet tcpmig"));
        let swept = succeeds(&tcpmig(&net.a, &["locks", "--sweep"]));
        assert!(swept.contains("removed: inet tcpmig"), "{swept}");
        assert_eq!(tables(), "");
        let swept = succeeds(&tcpmig(&net.a, &["locks", "--sweep"]));
        assert!(swept.contains("nothing was stale"), "{swept}");
    });
}

#[test]
fn handovers_without_an_end_are_shown_and_settled() {
    isolated(
        "locks::handovers_without_an_end_are_shown_and_settled",
        || {
            let net = Net::new();
            let path = net.file("journal");
            let file = path.to_str().unwrap();
            let ids = [1, 2].map(|n| HandoverId::from_bytes([n; 16]));
            let journal = File::open(&path).unwrap();
            for id in ids {
                let flow = "198.18.0.1:80,198.18.0.9:51234".parse().unwrap();
                // Nobody is there.
                let nobody = Some("127.0.0.1:9".parse().unwrap());
                let about = HandoverInfo::new(Role::Source, flow, "host-b", nobody);
                journal.begin(id, &about).unwrap();
            }
            journal.note(ids[1], Note::Committing).unwrap();
            let of = |value: &Value, field: &str| {
                let open = value["handovers"]["open"].as_array().unwrap();
                open.iter()
                    .map(|open| open[field].clone())
                    .collect::<Vec<_>>()
            };
            // Its process is at work.
            let value = locks(&net, &["--journal", file]);
            assert_eq!(of(&value, "in_use"), [true, true], "{value}");
            assert_eq!(of(&value, "in_doubt"), [false, false], "{value}");
            let forget = ["locks", "--journal", file, "--forget", &ids[1].to_string()];
            fails(&tcpmig(&net.a, &forget), 1, &["in use by another process"]);
            // Until it says that its target does not answer.
            journal.in_doubt(ids[1]).unwrap();
            let value = locks(&net, &["--journal", file]);
            assert_eq!(of(&value, "in_doubt"), [false, true], "{value}");
            assert_eq!(of(&value, "can_be_resolved"), [false, false], "{value}");
            assert!(
                of(&value, "in_doubt_seconds")[1].as_u64().unwrap() < 3600,
                "{value}"
            );
            let shown = succeeds(&tcpmig(&net.a, &["locks", "--journal", file]));
            assert!(
                shown.contains("in doubt: the target does not answer its process, for "),
                "{shown}"
            );
            assert!(shown.contains("--settle"), "{shown}");
            // Then it was killed.
            drop(journal);
            let value = locks(&net, &["--journal", file]);
            assert_eq!(of(&value, "in_doubt"), [false, true], "{value}");
            assert_eq!(of(&value, "can_be_resolved"), [true, true], "{value}");
            let shown = succeeds(&tcpmig(&net.a, &["locks", "--journal", file]));
            assert!(
                shown.contains("198.18.0.1:80") && shown.contains("in doubt"),
                "{shown}"
            );
            assert!(shown.contains("--resolve"), "{shown}");

            let keys = net.file("keys");
            let keys = keys.to_str().unwrap();
            succeeds(&tcpmig(&net.a, &["keys", keys, "--host", "host-a"]));
            let pem = ["host-a.pem", "host-a.key", "ca.pem"].map(|name| format!("{keys}/{name}"));
            let resolve = [
                "--json",
                "locks",
                "--journal",
                file,
                "--resolve",
                "--cert",
                &pem[0],
                "--key",
                &pem[1],
                "--ca",
                &pem[2],
            ];
            let output = tcpmig(&net.a, &resolve);
            assert_eq!(output.status.code(), Some(3), "{output:?}");
            let value: Value = serde_json::from_slice(&output.stdout).unwrap();
            let resolved = &value["handovers"]["resolved"];
            assert_eq!(resolved[0]["fate"], "lost", "{value}");
            assert_eq!(resolved[1]["fate"], "in doubt", "{value}");
            assert_eq!(of(&value, "id"), [ids[1].to_string()], "{value}");

            succeeds(&tcpmig(&net.a, &forget));
            let shown = succeeds(&tcpmig(&net.a, &["locks", "--journal", file]));
            assert!(shown.contains("every handover"), "{shown}");
            fails(&tcpmig(&net.a, &forget), 1, &["without an end"]);
            let nowhere = ["locks", "--journal", "/nowhere/journal"];
            fails(&tcpmig(&net.a, &nowhere), 1, &["/nowhere/journal"]);
        },
    );
}

#[test]
fn a_doubt_is_settled_by_hand_with_a_warning() {
    isolated("locks::a_doubt_is_settled_by_hand_with_a_warning", || {
        let net = Net::new();
        let path = net.file("journal");
        let file = path.to_str().unwrap();
        let ids = [1, 2, 3].map(|n| HandoverId::from_bytes([n; 16]));
        let journal = File::open(&path).unwrap();
        for id in ids {
            let flow = "198.18.0.1:80,198.18.0.9:51234".parse().unwrap();
            let about = HandoverInfo::new(Role::Source, flow, "host-b", None);
            journal.begin(id, &about).unwrap();
            journal.note(id, Note::Committing).unwrap();
        }
        let texts = ids.map(|id| id.to_string());
        let settle = |id: usize, to: &str, more: &[&str]| {
            let arguments = ["locks", "--journal", file, "--settle", &texts[id], to];
            tcpmig(&net.a, &[&arguments[..], more].concat())
        };
        // It may be answered any moment.
        fails(
            &settle(0, "kept", &["--yes"]),
            1,
            &["no handover", "in doubt"],
        );
        journal.in_doubt(ids[0]).unwrap();
        // Nothing is done that was not understood.
        fails(&settle(0, "kept", &[]), 1, &["two owners", "--yes"]);
        fails(&settle(0, "mine", &["--yes"]), 1, &["kept, moved and lost"]);
        fails(
            &settle(0, "moved", &["--yes", "--within", "1"]),
            1,
            &["did not take the decision"],
        );
        // The process that has it.
        let id = ids[0];
        let process = std::thread::spawn(move || {
            let begin = std::time::Instant::now();
            while begin.elapsed() < std::time::Duration::from_secs(60) {
                if let Some(decision) = journal.decided(id) {
                    journal.note(id, Note::Kept).unwrap();
                    return Some((decision, journal));
                }
                std::thread::yield_now();
            }
            None
        });
        let output = settle(0, "kept", &["--yes"]);
        let (decision, journal) = process.join().unwrap().expect("it was told");
        assert_eq!(decision, Decision::Kept);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("warning: "),
            "{output:?}"
        );
        succeeds(&output);

        // A process that has died has no socket any more.
        drop(journal);
        fails(
            &settle(1, "kept", &["--yes"]),
            1,
            &["its socket ended with its process"],
        );
        succeeds(&settle(1, "moved", &["--yes"]));
        let shown = succeeds(&settle(2, "lost", &["--yes"]));
        assert!(shown.contains("every handover"), "{shown}");
        fails(&settle(2, "lost", &["--yes"]), 1, &["no handover"]);
    });
}
