//! A connection of a program that knows nothing of tcpmig goes to another program on another
//! host.

use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::lab::isolated;

use crate::support::{Net, Program, TCPMIG, succeeds, tcpmig, text, until};

#[test]
fn a_connection_is_dumped_by_pid_and_fd_and_goes_on_under_another_command() {
    isolated(
        "dump_restore::a_connection_is_dumped_by_pid_and_fd_and_goes_on_under_another_command",
        || {
            let net = Net::new();
            let mut echo = net.echo();
            // What the server has not read yet travels too.
            let server = Pid::from_raw(echo.server.child.id().cast_signed());
            kill(server, Signal::SIGSTOP).unwrap();
            echo.client.say("unread");
            until("the line arrives", || {
                let table = net
                    .a
                    .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
                table.unwrap().unwrap().contains("00000000:00000007")
            });

            let image = net.file("connection.image");
            let image = image.to_str().unwrap();
            let (pid, fd) = (echo.owner.pid.to_string(), echo.owner.fd.to_string());
            // From another namespace than the connection's, which the command has to find.
            let dumped = tcpmig(
                &net.peer,
                &[
                    "--json",
                    "dump",
                    "--pid",
                    &pid,
                    "--fd",
                    &fd,
                    "-o",
                    image,
                    "--redirect",
                    "198.18.0.2",
                    "--lease",
                    "1",
                ],
            );
            let said: serde_json::Value = serde_json::from_str(&succeeds(&dumped)).unwrap();
            assert_eq!(said["flow"], echo.flow);
            // A redirect does not end with the lock that it was made of.
            assert_eq!(said["lease_seconds"], 86400);
            assert!(crate::disks::locked(&net, &echo.flow).unwrap() > 3600.0);
            assert_eq!(said["receive_queue_bytes"], 7);

            let shown = succeeds(&tcpmig(&net.b, &["inspect", image]));
            assert!(shown.contains("198.18.0.80:7000"), "{shown}");
            assert!(shown.contains("ESTABLISHED"), "{shown}");
            assert!(!shown.contains("unread\n"), "{shown}");
            let shown = succeeds(&tcpmig(&net.b, &["--json", "inspect", image]));
            let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(value["tcp"]["receive"]["unread"]["bytes"], 7);
            assert!(!shown.contains("hex"));
            let taken = value["image"]["taken_us"].as_u64().unwrap();
            let taken = SystemTime::UNIX_EPOCH + Duration::from_micros(taken);
            assert!(taken <= SystemTime::now(), "{shown}");
            assert!(
                taken.elapsed().unwrap() < Duration::from_secs(3600),
                "{shown}"
            );
            let shown = succeeds(&tcpmig(&net.b, &["--json", "inspect", "--payload", image]));
            let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(value["tcp"]["receive"]["unread"]["hex"], "756e726561640a");

            let mut restore = net.b.command(&TCPMIG).unwrap();
            restore.args(["restore", image, "--", "sed", "-u", "s/^/on B: /"]);
            let mut server_on_b = Program::spawn(&mut restore);
            assert_eq!(echo.client.hear(), "on B: unread");
            echo.client.say("two");
            assert_eq!(echo.client.hear(), "on B: two");

            // The peer ends it in order, and the new server does too.
            assert!(echo.client.ends());
            assert!(server_on_b.ends());
        },
    );
}

#[test]
fn a_kept_connection_goes_on_and_its_image_is_not_restored_beside_it() {
    isolated(
        "dump_restore::a_kept_connection_goes_on_and_its_image_is_not_restored_beside_it",
        || {
            let net = Net::new();
            let mut echo = net.echo();
            let image = net.file("copy.image");
            let image = image.to_str().unwrap();
            let dumped = tcpmig(
                &net.a,
                &["dump", "--flow", &echo.flow, "-o", image, "--keep"],
            );
            assert!(succeeds(&dumped).contains("goes on here"));
            echo.goes_on();

            let restored = tcpmig(&net.a, &["restore", image, "--", "cat"]);
            crate::support::fails(&restored, 1, &["connect", "lives here already"]);
            echo.goes_on();
            let ruleset = net.a.run(|| {
                std::process::Command::new("nft")
                    .args(["list", "ruleset"])
                    .output()
            });
            let ruleset = text(&ruleset.unwrap().unwrap().stdout);
            assert!(
                !ruleset.contains("198.18.0.9"),
                "a lock was left: {ruleset}"
            );
        },
    );
}

#[test]
fn the_command_gets_the_connection_as_descriptor_3_too() {
    isolated(
        "dump_restore::the_command_gets_the_connection_as_descriptor_3_too",
        || {
            let net = Net::new();
            let echo = net.echo();
            let image = net.file("connection.image");
            let image = image.to_str().unwrap();
            let dump = ["dump", "--flow", &echo.flow, "-o", image];
            succeeds(&tcpmig(&net.a, &dump));
            // On the same host, where the lock of the dump still runs.
            let script = "echo \"$LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID == $$))\" >&3; basename \"$TCPMIG_IMAGE\" >&3";
            let mut restore = net.a.command(&TCPMIG).unwrap();
            restore.args(["restore", image, "--", "sh", "-c", script]);
            let _server = Program::spawn(&mut restore);
            assert_eq!(echo.client.hear(), "1 connection 1");
            assert_eq!(echo.client.hear(), "connection.image");
        },
    );
}
