//! The demo, whole and cut off.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{TCPMIG, until};

/// Numbers the processes of one demo: they inherit it.
const MARK: &str = "TCPMIG_TEST_DEMO";

/// A demo that is killed if the test ends before it.
struct Demo {
    child: Option<Child>,
    mark: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{count}", std::process::id());
        Self {
            child: Some(start(&mark, arguments)),
            mark,
        }
    }

    /// Waits until curl and both servers run; the servers.
    fn runs(&self) -> Vec<Pid> {
        let mut servers = Vec::new();
        until("curl and both servers run", || {
            let running = marked(&self.mark);
            let named = |name: &'static str| {
                let named = running.iter().filter(move |(_, c)| c.contains(name));
                named.map(|(pid, _)| *pid).collect::<Vec<_>>()
            };
            servers = named("demo-server");
            servers.len() == 2 && named("curl ").len() == 1
        });
        servers
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    fn output(&mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }

    fn leaves_nothing(&self) {
        until("all its processes are gone", || {
            marked(&self.mark).is_empty()
        });
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(mark: &str, arguments: &[&str]) -> Child {
    Command::new(&*TCPMIG)
        .args(["--json", "demo"])
        .args(arguments)
        .env(MARK, mark)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The processes with a mark, by their command line.
fn marked(mark: &str) -> Vec<(Pid, String)> {
    let wanted = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().map_while(Result::ok) {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let environment = read("environ");
        if environment
            .split(|&byte| byte == 0)
            .any(|pair| pair == wanted.as_bytes())
        {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push((Pid::from_raw(pid), command));
        }
    }
    found
}

fn is_whole(arguments: &[&str], hops: usize) -> serde_json::Value {
    let mut demo = Demo::start(arguments);
    let output = demo.output();
    demo.leaves_nothing();
    let said = String::from_utf8_lossy(&output.stderr);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{report}");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["ok"], true);
    assert_eq!(value["hops_moved"], hops);
    assert_eq!(value["curl"]["num_connects"], 1);
    assert_eq!(value["curl"]["http_code"], 200);
    assert_eq!(value["sha256_expected"], value["sha256_received"]);
    for hop in value["hops"].as_array().unwrap() {
        assert!(hop["blackout_us"].as_u64().unwrap() > 0);
        assert!(hop["image_bytes"].as_u64().unwrap() > 0);
    }
    value
}

#[test]
fn a_server_is_replaced_and_its_clients_do_not_notice() {
    for tls in ["1.3", "1.2"] {
        let arguments = ["--upgrade", "--tls", tls, "--size", "32", "--hops", "5"];
        let mut demo = Demo::start(&arguments);
        let output = demo.output();
        demo.leaves_nothing();
        let said = String::from_utf8_lossy(&output.stderr);
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{report}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["load"]["failed"], 0);
        assert!(value["load"]["requests"].as_u64().unwrap() > 0);
        assert!(value["messages"].as_u64().unwrap() > 0);
        assert_eq!(value["events"]["in_order"], true);
        for client in ["download", "events"] {
            assert_eq!(value[client]["curl"]["num_connects"], 1);
        }
        let hops = value["hops"].as_array().unwrap();
        assert_eq!(hops.len(), 5);
        let mut processes: Vec<_> = hops.iter().map(|hop| hop["process"].as_u64()).collect();
        processes.dedup();
        assert_eq!(processes.len(), 5, "each version is a process of its own");
        assert!(
            hops.iter()
                .all(|hop| hop["connections"].as_u64().unwrap() > 0)
        );
        let expected = &value["connections_expected"];
        assert_eq!(&value["connections_accepted"], expected);
    }
}

#[test]
fn a_killed_demo_of_upgrades_leaves_nothing() {
    let demo = Demo::start(&["--upgrade", "--hops", "1000", "--size", "4096"]);
    until("versions and clients run", || {
        let running = marked(&demo.mark);
        ["demo-version", "curl ", "wrk "]
            .iter()
            .all(|name| running.iter().any(|(_, command)| command.contains(name)))
    });
    demo.signal(Signal::SIGKILL);
    demo.leaves_nothing();
    let name = format!("tcpmig-demo-{}-", demo.child.as_ref().unwrap().id());
    let left = fs::read_dir(std::env::temp_dir()).unwrap();
    let names = left.map_while(Result::ok).map(|entry| entry.file_name());
    let mut names = names.map(|name| name.to_string_lossy().into_owned());
    assert_eq!(names.find(|found| found.starts_with(&name)), None);
}

#[test]
fn a_download_changes_servers_and_curl_does_not_notice() {
    is_whole(&["--size", "16", "--hops", "4"], 4);
}

#[test]
fn a_download_over_ipv6_too() {
    is_whole(&["--size", "8", "--hops", "3", "--ipv6"], 3);
}

#[test]
fn a_download_over_tls_too() {
    is_whole(&["--size", "16", "--hops", "4", "--tls"], 4);
    is_whole(&["--size", "8", "--hops", "3", "--tls", "1.2", "-6"], 3);
}

#[test]
fn downloads_over_http2_too() {
    let value = is_whole(&["--size", "8", "--hops", "4", "--http2"], 4);
    assert_eq!(value["curl"]["http_version"], "2");
    let beside = value["beside"].as_array().unwrap();
    assert_eq!(beside.len(), 2);
    for beside in beside {
        assert_eq!(beside["curl"]["num_connects"], 0);
        assert_eq!(beside["sha256_received"], value["sha256_expected"]);
    }
}

#[test]
fn a_download_moves_with_iptables() {
    is_whole(&["--size", "16", "--hops", "3", "--lock", "iptables"], 3);
}

#[test]
fn a_download_moves_while_its_server_is_unplugged() {
    is_whole(&["--size", "16", "--hops", "3", "--lock", "link"], 3);
    is_whole(&["--size", "8", "--hops", "2", "--lock", "link", "-6"], 2);
}

#[test]
fn full_queues_are_carried() {
    is_whole(&["--size", "32", "--hops", "2", "--settle", "0"], 2);
}

#[test]
fn nothing_is_left_of_a_demo_that_is_cut_off() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut demo = Demo::start(&["--size", "512", "--hops", "100"]);
        demo.runs();
        demo.signal(signal);
        assert!(!demo.output().status.success());
        demo.leaves_nothing();
    }
}

#[test]
fn a_server_that_crashes_fails_the_demo() {
    let mut demo = Demo::start(&["--size", "512", "--hops", "100"]);
    let servers = demo.runs();
    kill(servers[0], Signal::SIGKILL).unwrap();
    let output = demo.output();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ended in the middle"), "{said}");
    demo.leaves_nothing();
}

#[test]
fn a_picture_shows_who_sent_what() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.svg");
    let plot = file.to_str().unwrap();
    is_whole(&["--size", "8", "--hops", "3", "--plot", plot], 3);
    let picture = fs::read_to_string(&file).unwrap();
    for shown in [
        "move 3, A to B",
        "<path class=\"a\" d=\"M",
        "<path class=\"b\" d=\"M",
    ] {
        assert!(picture.contains(shown), "{shown}");
    }
    assert!(picture.ends_with("</svg>\n"));
    // What is there is not lost, and nothing is moved for a picture that cannot be written.
    for (path, why) in [(plot, "File exists"), ("/proc/demo.svg", "create")] {
        let mut demo = Demo::start(&["--plot", path]);
        let output = demo.output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
        demo.leaves_nothing();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), picture);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
