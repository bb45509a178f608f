//! `tcpmig list` and `tcpmig move`.

use serde_json::Value;
use tcpmig_sys::kernel_test;

use crate::hosts::{Hosts, open_service, user};
use crate::support::{fails, succeeds, tcpmig, text, until};
use crate::traffic::Traffic;

impl Hosts {
    /// What `tcpmig list` says, with these filters.
    fn list(&self, of: &str, filters: &[&str]) -> Vec<Value> {
        let mut arguments = vec!["list", "--json"];
        arguments.extend(filters);
        let listed = self.verb(of, &arguments);
        assert!(
            matches!(listed.status.code(), Some(0 | 4)),
            "{}",
            text(&listed.stderr)
        );
        serde_json::from_slice(&listed.stdout).unwrap()
    }
}

fn flow(listed: &Value) -> String {
    format!(
        "{},{}",
        listed["local"].as_str().unwrap(),
        listed["remote"].as_str().unwrap()
    )
}

kernel_test!(connections_are_listed_and_one_of_them_moves, || {
    let hosts = Hosts::new();
    let (a, b) = (hosts.python("a"), hosts.python("b"));
    let traffic: Vec<Traffic> = (0..3).map(|_| Traffic::start(&hosts.peer)).collect();
    for one in &traffic {
        one.goes_on();
    }
    let listed = hosts.list("a", &["--service", "counter", "--check"]);
    assert_eq!(listed.len(), 3);
    for one in &listed {
        assert_eq!(one["state"], "established");
        assert_eq!(one["local"], "198.18.0.80:7000");
        assert_eq!(one["service"], "counter");
        assert_eq!(one["user"], user());
        assert_eq!(one["owners"][0]["pid"], a.child.id());
        assert_eq!(
            (&one["movable"], &one["reason"]),
            (&Value::Bool(true), &Value::Null)
        );
    }
    let port = |listed: &Value| {
        listed["remote"]
            .as_str()
            .unwrap()
            .split(':')
            .next_back()
            .unwrap()
            .to_owned()
    };
    let first = format!(":{}", port(&listed[0]));
    for (filters, count) in [
        (
            &["--local", "198.18.0.0/16", "--state", "established"][..],
            3,
        ),
        (&["--remote", &first], 1),
        (&["--state", "listen", "--local", ":7000"], 1),
        (&["--local", ":7001"], 0),
        (&["--service", "other"], 0),
        (&["--pid", &a.child.id().to_string(), "--movable"], 3),
        (&["--state", "listen", "--movable"], 0),
    ] {
        assert_eq!(hosts.list("a", filters).len(), count, "{filters:?}");
    }
    let table = succeeds(&hosts.verb("a", &["list", "--local", ":7000"]));
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("python3"), "{table}");

    // One by its ends, and the others by their service.
    let moved = hosts.verb(
        "a",
        &[
            "move",
            "--to",
            "b.example",
            "--flow",
            &flow(&listed[0]),
            "--json",
        ],
    );
    let moved: Value = serde_json::from_str(&succeeds(&moved)).unwrap();
    assert_eq!(moved["fate"], "moved");
    assert!(moved["report"]["blackout_us"].as_u64().unwrap() > 0);
    assert!(b.hear().starts_with("arrived"));
    // Both hosts name the handover.
    let id = a.hear().replace("moved ", "");
    for (of, said) in [("a", "lives on the target"), ("b", "a connection has come")] {
        until("the agent has logged it", || {
            let lines = hosts.agent(of).logged(said);
            lines.iter().any(|line| line.contains(&format!("id={id}")))
        });
    }
    assert_eq!(hosts.list("a", &["--local", ":7000"]).len(), 2);
    assert_eq!(hosts.list("b", &["--local", ":7000"]).len(), 1);
    let moved = hosts.verb("a", &["move", "--to", "b.example", "--service", "counter"]);
    assert_eq!(succeeds(&moved).matches("moved to b.example").count(), 2);
    for one in traffic {
        one.goes_on();
        one.ends_well();
    }
    let nothing = hosts.verb("a", &["move", "--to", "b.example", "--service", "counter"]);
    fails(&nothing, 4, &["nothing to do"]);
    let all = hosts.verb("a", &["move", "--to", "b.example"]);
    fails(&all, 1, &["say which connections"]);
    let absent = tcpmig(&hosts.a, &["status", "--agent", "/nowhere/agent.sock"]);
    fails(&absent, 1, &["/nowhere/agent.sock", "hint: start it"]);
});

kernel_test!(
    a_program_that_knows_nothing_loses_its_connection_to_a_command,
    || {
        let hosts = Hosts::with(|of| {
            let user = if user() == 0 { "root" } else { "nobody" };
            let command = format!("command = [\"/bin/cat\"]\ncommand_user = \"{user}\"\n");
            open_service(of) + &command
        });
        let mut echo = hosts.echo();
        let owner = echo.owner;
        let move_to = |host: &str| {
            let (pid, fd) = (owner.pid.to_string(), owner.fd.to_string());
            hosts.verb(
                "a",
                &["move", "--to", host, "--pid", &pid, "--fd", &fd, "--json"],
            )
        };
        let refused = move_to("c.example");
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            text(&refused.stdout).contains("no host"),
            "{}",
            text(&refused.stdout)
        );
        echo.goes_on();
        let moved = hosts.verb("a", &["move", "--to", "b.example", "--flow", &echo.flow]);
        assert!(succeeds(&moved).contains("moved to b.example"));
        // A cat answers now.
        echo.client.say("who is there");
        assert_eq!(echo.client.hear(), "who is there");
        let listed = hosts.list("b", &["--local", ":7000"]);
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["user"], user());
        // Its process finds its descriptor closed, and ends.
        until("the program ends", || {
            echo.server.child.try_wait().unwrap().is_some()
        });
        drop(echo.client);
        until("the command ends", || {
            hosts.list("b", &["--local", ":7000"]).is_empty()
        });
    }
);

kernel_test!(a_drain_that_is_called_again_goes_on, || {
    let hosts = Hosts::with(|of| {
        let service = open_service(of);
        let closed = r#"from = []"#;
        if of == "b" {
            service.replace(r#"from = ["a.example"]"#, closed)
        } else {
            service
        }
    });
    let (mut a, _b) = (hosts.python("a"), hosts.python("b"));
    let traffic: Vec<Traffic> = (0..2).map(|_| Traffic::start(&hosts.peer)).collect();
    for one in &traffic {
        one.goes_on();
    }
    // The other host takes nothing, and says so.
    let drain = ["drain", "--to", "b.example", "--wait", "--json"];
    let within = [&drain[..], &["--within", "1"]].concat();
    fails(&hosts.verb("a", &within), 1, &["connections are left"]);
    assert!(
        a.hear()
            .contains("connections of the service counter are not taken")
    );
    for one in &traffic {
        one.goes_on();
    }
    hosts
        .agent("b")
        .reload(&|text| text.replace("from = []", r#"from = ["a.example"]"#));
    let drained = succeeds(&hosts.verb("a", &drain));
    let last: Value = serde_json::from_str(drained.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["left"], &last["done"]),
        (&Value::from(0), &Value::Bool(true))
    );
    assert!(a.ends());
    for one in traffic {
        one.goes_on();
        one.ends_well();
    }
    let unknown = hosts.verb("a", &["drain", "--to", "c.example"]);
    fails(&unknown, 1, &["no host \"c.example\""]);
});
