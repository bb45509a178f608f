//! Wrong input: a clear error, the right exit status, and the connection goes on.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tcpmig_sys::lab::isolated;

use crate::support::{Net, TCPMIG, fails, succeeds, tcpmig};

fn run(arguments: &[&str]) -> std::process::Output {
    Command::new(&*TCPMIG).args(arguments).output().unwrap()
}

#[test]
fn wrong_usage_is_exit_status_2() {
    for arguments in [
        &["dump", "--pid", "1", "-o", "x"][..],
        &["dump", "-o", "x"],
        &["dump", "--flow", "10.0.0.1:80", "-o", "x"],
        &["dump", "--pid", "1", "--fd", "2", "-o", "x", "--lease", "0"],
        &["restore", "x"],
        &["demo", "--hops", "many"],
        &["demo", "--size", "0"],
        &["keys", "x"],
        &["nonsense"],
    ] {
        fails(&run(arguments), 2, &["error:"]);
    }
}

#[test]
fn images_that_are_none_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    for verb in [&["inspect"][..], &["restore"]] {
        let command = |path: &str| {
            let mut arguments = verb.to_vec();
            arguments.push(path);
            if verb == ["restore"] {
                arguments.extend(["--", "true"]);
            }
            run(&arguments)
        };
        fails(&command(missing), 1, &["missing", "No such file"]);
        fails(&command(&file("empty", b"")), 1, &["empty"]);
        fails(&command(&file("text", b"root:x:0:0")), 1, &["not an image"]);
    }
}

#[test]
fn damaged_images_are_refused_and_leave_nothing() {
    isolated(
        "wrong_input::damaged_images_are_refused_and_leave_nothing",
        || {
            let net = Net::new();
            let mut echo = net.echo();
            let image = net.file("image");
            let path = image.to_str().unwrap();
            succeeds(&tcpmig(
                &net.a,
                &["dump", "--flow", &echo.flow, "-o", path, "--keep"],
            ));
            assert_eq!(
                fs::metadata(&image).unwrap().permissions().mode() & 0o777,
                0o600
            );
            let bytes = fs::read(&image).unwrap();
            let damaged = net.file("damaged");
            let damaged_path = damaged.to_str().unwrap();
            let restore = ["restore", damaged_path, "--", "true"];

            fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
            fails(&tcpmig(&net.b, &restore), 1, &["damaged"]);
            let mut flipped = bytes.clone();
            flipped[bytes.len() / 2] ^= 1;
            fs::write(&damaged, &flipped).unwrap();
            fails(&tcpmig(&net.b, &restore), 1, &["checksum"]);
            fs::write(&damaged, [&bytes[..], b"more"].concat()).unwrap();
            fails(&tcpmig(&net.b, &restore), 1, &["damaged"]);
            echo.goes_on();
        },
    );
}

#[test]
fn what_cannot_be_dumped_goes_on() {
    isolated("wrong_input::what_cannot_be_dumped_goes_on", || {
        let net = Net::new();
        let mut echo = net.echo();
        let (pid, fd) = (echo.owner.pid.to_string(), echo.owner.fd.to_string());
        let image = net.file("image");
        let path = image.to_str().unwrap();

        // An output that cannot be made, before anything is touched.
        fs::write(&image, b"precious").unwrap();
        let dump = ["dump", "--pid", &pid, "--fd", &fd, "-o", path];
        fails(&tcpmig(&net.a, &dump), 1, &["create", "File exists"]);
        assert_eq!(fs::read(&image).unwrap(), b"precious");
        fs::remove_file(&image).unwrap();
        let nowhere = [
            "dump",
            "--pid",
            &pid,
            "--fd",
            &fd,
            "-o",
            "/nonexistent/image",
        ];
        fails(&tcpmig(&net.a, &nowhere), 1, &["/nonexistent/image"]);

        // Descriptors that are not a connection, and processes that are not there.
        let input = ["dump", "--pid", &pid, "--fd", "0", "-o", path];
        fails(&tcpmig(&net.a, &input), 1, &["not a TCP socket"]);
        let none = ["dump", "--pid", &pid, "--fd", "999", "-o", path];
        fails(
            &tcpmig(&net.a, &none),
            1,
            &["pidfd_getfd", "no such descriptor"],
        );
        let nobody = ["dump", "--pid", "4194303", "--fd", "0", "-o", path];
        fails(
            &tcpmig(&net.a, &nobody),
            1,
            &["pidfd_open", "no such process"],
        );
        let other = "198.18.0.80:7000,198.18.0.9:1";
        let flow = ["dump", "--flow", other, "-o", path];
        fails(&tcpmig(&net.a, &flow), 4, &["nothing to do", other]);

        // A redirect to where no neighbour is.
        let far = [
            "dump",
            "--flow",
            &echo.flow,
            "-o",
            path,
            "--redirect",
            "192.0.2.1",
        ];
        fails(&tcpmig(&net.a, &far), 1, &["redirect"]);
        assert!(!image.exists(), "a failed dump left a file");
        echo.goes_on();

        // Somebody else holds the lock.
        let locker = net.a.run(tcpmig_lock::Nftables::new).unwrap().unwrap();
        let lease = std::time::Duration::from_secs(60);
        let lock = tcpmig_lock::Locker::lock(&locker, &[echo.flow.parse().unwrap()], lease);
        fails(&tcpmig(&net.a, &dump), 1, &["locked", "hint:"]);
        lock.unwrap().unlock().unwrap();
        assert!(!image.exists(), "a failed dump left a file");
        echo.goes_on();
    });
}

#[test]
fn a_target_without_the_address_or_the_command_refuses() {
    isolated(
        "wrong_input::a_target_without_the_address_or_the_command_refuses",
        || {
            let net = Net::new();
            let echo = net.echo();
            let image = net.file("image");
            let path = image.to_str().unwrap();
            succeeds(&tcpmig(&net.a, &["dump", "--flow", &echo.flow, "-o", path]));
            let unknown = ["restore", path, "--", "no-such-program"];
            fails(&tcpmig(&net.b, &unknown), 1, &["no-such-program", "PATH"]);
            let elsewhere = ["restore", path, "--", "true"];
            fails(
                &tcpmig(&net.peer, &elsewhere),
                1,
                &["bind", "not on this host"],
            );
            let namespace = [
                "restore",
                path,
                "--netns",
                "no-such-namespace",
                "--",
                "true",
            ];
            fails(&tcpmig(&net.b, &namespace), 1, &["no-such-namespace"]);
        },
    );
}

#[test]
fn keys_are_made_once_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("keys");
    let dir = dir.to_str().unwrap();
    succeeds(&run(&[
        "keys",
        dir,
        "--host",
        "a.example",
        "--host",
        "b.example",
    ]));
    let key = fs::read(format!("{dir}/a.example.key")).unwrap();
    fails(
        &run(&["keys", dir, "--host", "a.example"]),
        1,
        &["a.example"],
    );
    assert_eq!(fs::read(format!("{dir}/a.example.key")).unwrap(), key);
    fails(&run(&["keys", dir, "--host", "../evil"]), 1, &["evil"]);
    let mode = fs::metadata(format!("{dir}/ca.key")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // Whoever could read it could sign a host of his own.
    fs::set_permissions(format!("{dir}/ca.key"), Permissions::from_mode(0o644)).unwrap();
    fails(
        &run(&["keys", dir, "--host", "c.example"]),
        1,
        &["ca.key", "others can read", "0644", "chmod 600"],
    );
}

#[test]
fn errors_are_json_when_asked_for() {
    let output = run(&["--json", "inspect", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(value["error"].as_str().unwrap().contains("/nonexistent"));
}

#[test]
fn an_agent_without_its_file_says_where_one_is_to_be_had() {
    let missing = ["agent", "--config", "/nonexistent/agent.toml"];
    fails(
        &run(&missing),
        1,
        &["/nonexistent/agent.toml", "hint: write one"],
    );
}
