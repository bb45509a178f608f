//! What is locked and redirected is shown, and what is stale removed.

use std::process::Command;

use serde_json::Value;
use tcpmig_sys::lab::isolated;

use crate::support::{Net, succeeds, tcpmig};

fn locks(net: &Net, arguments: &[&str]) -> Value {
    let mut all = vec!["--json", "locks"];
    all.extend(arguments);
    serde_json::from_str(&succeeds(&tcpmig(&net.a, &all))).unwrap()
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
            "10.66.0.2",
        ];
        succeeds(&tcpmig(&net.a, &dump));
        let value = locks(&net, &[]);
        assert_eq!(value["held"][0]["kind"], "redirect", "{value}");
        assert_eq!(value["held"][0]["to"]["address"], "10.66.0.2");
        let shown = succeeds(&tcpmig(&net.a, &["locks"]));
        assert!(shown.contains("redirected to 10.66.0.2"), "{shown}");
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
