//! A listener of a program goes to another program on another host.

use std::net::TcpStream;

use tcpmig_sys::lab::isolated;
use tcpmig_sys::process::owners::{self, Owner};

use crate::support::{Net, Program, TCPMIG, fails, succeeds, tcpmig, until};

/// A program on host A that listens, and its descriptor.
fn listening(net: &Net) -> (Program, Owner) {
    let address = "TCP-LISTEN:7000,bind=198.18.0.80,backlog=37,reuseaddr,fork";
    let server = Program::start(&net.a, "socat", &[address, "PIPE"]);
    let find = || {
        let (local, remote) = ("198.18.0.80:7000", "0.0.0.0:0");
        owners::find(local.parse().unwrap(), remote.parse().unwrap())
    };
    let mut owners = Vec::new();
    until("socat listens", || {
        owners = net.a.run(find).unwrap().unwrap();
        !owners.is_empty()
    });
    (server, owners[0])
}

/// Answers each connection of descriptor 3 with its first line.
const ECHO: &str = r#"open(L, "+<&=", 3) or die; $SIG{PIPE} = "IGNORE"; while (accept(C, L)) { syswrite(C, <C> // ""); close C }"#;

fn echoes(net: &Net) {
    let mut client = Program::start(&net.peer, "nc", &["-N", "198.18.0.80", "7000"]);
    client.say("one");
    assert_eq!(client.hear(), "one");
    assert!(client.ends());
}

#[test]
fn a_listener_is_dumped_and_made_again_under_another_command() {
    isolated(
        "listeners::a_listener_is_dumped_and_made_again_under_another_command",
        || {
            let net = Net::new();
            let (server, owner) = listening(&net);
            let (pid, fd) = (owner.pid.to_string(), owner.fd.to_string());
            let image = net.file("listener.image");
            let path = image.to_str().unwrap();
            let dump = ["dump", "--pid", &pid, "--fd", &fd, "-o", path];
            let redirect = [&dump[..], &["--redirect", "198.18.0.2"]].concat();
            fails(&tcpmig(&net.a, &redirect), 1, &["a listener"]);
            let said = succeeds(&tcpmig(&net.a, &dump));
            for part in ["listener 198.18.0.80:7000", "goes on here", "0 connections"] {
                assert!(said.contains(part), "{said}");
            }
            echoes(&net);
            let shown = succeeds(&tcpmig(&net.b, &["--json", "inspect", path]));
            let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(value["listener"]["backlog"], 37);
            assert_eq!(value["listener"]["local"], "198.18.0.80:7000");

            // Beside itself it cannot be.
            let beside = ["restore", path, "--", "true"];
            fails(&tcpmig(&net.a, &beside), 1, &["Address already in use"]);
            drop(server);

            // Socket activation: the listener is descriptor 3.
            let mut restore = net.b.command(&TCPMIG).unwrap();
            restore.args(["restore", path, "--", "perl", "-e", ECHO]);
            let _server = Program::spawn(&mut restore);
            until("the target listens", || {
                let connect = || TcpStream::connect("198.18.0.80:7000");
                net.b.run(connect).unwrap().is_ok()
            });
            net.point_peer_at_b();
            echoes(&net);
        },
    );
}
