//! Versions of a server that take over from each other, as processes, under curl.
#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../http/app.rs"]
mod app;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "../http/chat.rs"]
mod chat;
mod killed;
mod server;
mod service;
#[path = "../support/mod.rs"]
mod support;
mod systemd;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;

use axum::Router;
use server::{Bad, VARIABLES};
use support::{PATIENCE, numbered};

/// The application has none here but its own.
fn more_routes() -> Router {
    Router::new()
}

/// A version of the server. It is killed if the test ends before it.
struct Version {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Version {
    /// Starts one, which does `bad` if that is given.
    fn start(path: &Path, bad: Option<Bad>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "server_of_the_tests",
                "--exact",
                "--nocapture",
                "--include-ignored",
            ])
            .env(VARIABLES[0], path);
        if let Some(bad) = bad {
            command.env(VARIABLES[1], bad.name());
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Waits until it says something that begins so; the rest of that.
    fn says(&self, beginning: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{beginning}: {error}"));
            if let Some((_, rest)) = line.split_once(beginning) {
                return rest.trim().to_owned();
            }
        }
    }

    fn ends(mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        // It has nothing left to say.
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
        status
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A curl that fetches something slowly.
struct Curl(Option<Child>);

impl Curl {
    fn start(port: &str, path: &str, rate: &str) -> Self {
        let url = format!("http://127.0.0.1:{port}{path}");
        let child = Command::new("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--noproxy", "*"])
            .args(["--max-time", "110", "--limit-rate", rate])
            .args(["--write-out", "%{stderr}%{http_code} %{num_connects}", &url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(Some(child.expect("curl is installed")))
    }

    /// Whether it is still fetching.
    fn runs(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// What it has got, by one connection.
    fn got(mut self) -> Vec<u8> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.0.take().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{status}: {said}");
        assert_eq!(said, "200 1");
        stdout
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const SIZE: usize = 6_000_000;
const EVENTS: usize = 3000;

/// Downloads that take seconds: of known length, chunked, events.
fn downloads(port: &str) -> [Curl; 3] {
    [
        Curl::start(port, &format!("/file/{SIZE}"), "2M"),
        Curl::start(port, &format!("/chunked/{SIZE}"), "2M"),
        Curl::start(port, &format!("/events/{EVENTS}"), "1G"),
    ]
}

fn are_whole([file, chunked, events]: [Curl; 3]) {
    let bytes = numbered(0, SIZE);
    assert!(file.got() == bytes, "other bytes");
    assert!(chunked.got() == bytes, "other bytes");
    let events = String::from_utf8(events.got()).unwrap();
    let expected: String = (1..=EVENTS)
        .map(|event| format!("id: {event}\ndata: this is event {event}\n\n"))
        .collect();
    assert!(events == expected, "other events");
}

/// Asks all the time, until its standard input is closed; says how often when it is.
const CHAT: &str = r"
import asyncio, sys, websockets
async def run():
    end = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async with websockets.connect('ws://127.0.0.1:' + sys.argv[1] + '/chat') as ws:
        count, port = 0, ws.local_address[1]
        while not end.done():
            await ws.send('x' * (count % 300))
            assert await ws.recv() == 'x' * (count % 300)
            count += 1
            await asyncio.sleep(0.002)
        await ws.send('who')
        said = await ws.recv()
        assert said == f'server {count + 1}', (said, count)
        assert ws.local_address[1] == port
    print(count)
asyncio.run(run())
";

/// A WebSocket that is in use.
struct Chat(Option<Child>);

impl Chat {
    fn start(port: &str) -> Self {
        let child = Command::new("/usr/bin/python3")
            .args(["-c", CHAT, port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(Some(child.expect("python3 is installed")))
    }

    /// How many messages were answered, by one connection, in order.
    fn ends(mut self) -> usize {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn answers(port: &str) {
    let bytes = Curl::start(port, "/plain/100", "1G").got();
    assert_eq!(bytes, numbered(0, 100));
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    (folder, path)
}

/// Not a test: the service that the tests of systemd start.
#[test]
#[ignore = "it is run by the other tests, in processes of its own"]
fn service_of_the_tests() {
    service::run();
}

/// Not a test: the server that the others start.
#[test]
#[ignore = "it is run by the other tests, in processes of its own"]
fn server_of_the_tests() {
    server::run();
}

#[test]
fn downloads_outlive_the_versions_of_their_server() {
    let (_folder, path) = place();
    let mut version = Version::start(&path, None);
    let port = version.says("serving on ");
    let mut curls = downloads(&port);
    let chat = Chat::start(&port);
    let mut versions = 1;
    while curls.iter_mut().all(Curl::runs) && versions < 6 {
        let next = Version::start(&path, None);
        assert_eq!(next.says("serving on "), port);
        assert!(version.ends().success());
        answers(&port);
        version = next;
        versions += 1;
    }
    println!("{versions} versions, {} messages", chat.ends());
    // On a busy machine one may take as long as the downloads.
    assert!(versions > 1, "the downloads took no time");
    are_whole(curls);
    answers(&port);
    drop(version);
}

#[test]
fn a_version_that_fails_changes_nothing() {
    for bad in Bad::ALL {
        let (_folder, path) = place();
        let version = Version::start(&path, None);
        let port = version.says("serving on ");
        let curls = downloads(&port);
        // What a version accepts that fails then ends with it.
        for _ in &curls {
            version.says("accepted");
        }
        let failing = Version::start(&path, Some(bad));
        // The old one finds out, and accepts again.
        if bad != Bad::Early {
            version.says("goes on");
        }
        drop(failing);
        answers(&port);
        are_whole(curls);
        // And another one may come.
        let next = Version::start(&path, None);
        assert_eq!(next.says("serving on "), port);
        assert!(version.ends().success(), "{bad:?}");
        answers(&port);
    }
}
