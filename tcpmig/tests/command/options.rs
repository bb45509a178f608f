//! Options that the host of `tcpmig restore` does not have.

use std::fs::{self, File};

use tcpmig_format::{Image, Limits, TcpImage};
use tcpmig_sys::lab::isolated;

use crate::support::{Echo, Net, Program, TCPMIG, fails, succeeds, tcpmig};

/// An image of the connection with a congestion control that no kernel has.
fn with_unknown_congestion(net: &Net, echo: &Echo) -> String {
    let file = net.file("connection.image");
    let path = file.to_str().unwrap();
    let dump = ["dump", "--flow", &echo.flow, "-o", path];
    succeeds(&tcpmig(
        &net.a,
        &[&dump[..], &["--redirect", "198.18.0.2"]].concat(),
    ));
    let mut image = Image::decode(&fs::read(&file).unwrap(), &Limits::default()).unwrap();
    let mut tcp = image.tcp().unwrap().parts().clone();
    tcp.socket.congestion = Some("elsewhere".to_owned());
    image.connection_mut().unwrap().tcp = Some(TcpImage::new(tcp).unwrap());
    fs::write(&file, image.encode().unwrap()).unwrap();
    path.to_owned()
}

/// What the client says before the connection lives would find no socket.
const SERVER: &str = "echo ready; exec cat";

#[test]
fn a_missing_option_is_an_error_and_by_choice_a_warning() {
    isolated(
        "options::a_missing_option_is_an_error_and_by_choice_a_warning",
        || {
            let net = Net::new();
            let mut echo = net.echo();
            let image = with_unknown_congestion(&net, &echo);
            let refused = tcpmig(&net.b, &["restore", &image, "--", "cat"]);
            let named = "TCP_CONGESTION=elsewhere: this host does not have it (ENOENT)";
            fails(&refused, 1, &["error: ", named, "hint: ", "--options warn"]);

            let said = net.file("stderr");
            let mut restore = net.b.command(&TCPMIG).unwrap();
            restore
                .args(["restore", "--options", "warn", &image, "--"])
                .args(["sh", "-c", SERVER])
                .stderr(File::create(&said).unwrap());
            let _server = Program::spawn(&mut restore);
            assert_eq!(echo.client.hear(), "ready");
            echo.client.say("one");
            assert_eq!(echo.client.hear(), "one");
            let said = fs::read_to_string(said).unwrap();
            assert_eq!(said, format!("warning: {named}\n"));
        },
    );
}

#[test]
fn a_warning_is_json_for_machines() {
    isolated("options::a_warning_is_json_for_machines", || {
        let net = Net::new();
        let mut echo = net.echo();
        let image = with_unknown_congestion(&net, &echo);
        let said = net.file("stderr");
        let mut restore = net.b.command(&TCPMIG).unwrap();
        restore
            .args(["--json", "restore", "--options", "warn", &image, "--"])
            .args(["sh", "-c", SERVER])
            .stderr(File::create(&said).unwrap());
        let _server = Program::spawn(&mut restore);
        assert_eq!(echo.client.hear(), "ready");
        echo.client.say("one");
        assert_eq!(echo.client.hear(), "one");
        let said = fs::read_to_string(said).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["option"], "TCP_CONGESTION");
        assert_eq!(said["value"], "elsewhere");
        assert!(said["warning"].is_string(), "{said}");
    });
}

#[test]
fn a_policy_that_there_is_not_is_wrong_usage() {
    isolated("options::a_policy_that_there_is_not_is_wrong_usage", || {
        let net = Net::new();
        let arguments = ["restore", "--options", "ignore", "file", "--", "cat"];
        fails(&tcpmig(&net.b, &arguments), 2, &["error", "warn"]);
    });
}
