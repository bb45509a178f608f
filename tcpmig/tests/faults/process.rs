//! The process of a host.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcpmig_sys::lab::Host;

use crate::STEPS;
use crate::support::PATIENCE;

/// What its handovers wait for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) lease: Duration,
    pub(crate) prepared_within: Duration,
    pub(crate) commit_at_once: usize,
}

/// A host's process.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// Whether the steps of the handover are not waited for any longer.
    on: bool,
    role: String,
}

impl Process {
    pub(crate) fn start(
        host: &Host,
        role: &str,
        pem: &[String; 3],
        journal: &Path,
        limits: Limits,
    ) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = host.command(program.to_str().unwrap()).unwrap();
        command.args(["role", role, journal.to_str().unwrap()]);
        for (name, value) in ["CERT", "KEY", "CA"].iter().zip(pem) {
            command.env(name, value);
        }
        command.env("LEASE_MS", limits.lease.as_millis().to_string());
        let prepared = limits.prepared_within.as_millis().to_string();
        command.env("PREPARED_MS", prepared);
        command.env("AT_ONCE", limits.commit_at_once.to_string());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            stdin: child.stdin.take().unwrap(),
            child,
            lines,
            on: false,
            role: role.to_owned(),
        }
    }

    /// Stops it until the guard is dropped.
    pub(crate) fn stop(&self) -> Stopped {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        let stopped = Stopped(pid);
        crate::support::until("it stands still", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.contains(") T ")
        });
        stopped
    }

    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    pub(crate) fn say(&mut self, line: &str) {
        // It may have been killed.
        let _ = writeln!(self.stdin, "{line}");
    }

    /// It does not stop at any step from now on.
    pub(crate) fn let_on(&mut self) {
        self.on = true;
        for _ in STEPS {
            self.say("on");
        }
    }

    /// Waits for a line; what is said before it.
    pub(crate) fn hear_all(&self, line: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let heard = self.lines.recv_timeout(PATIENCE);
            let heard = heard.unwrap_or_else(|error| panic!("{line:?} was not said: {error}"));
            if heard == line {
                return before;
            }
            assert!(
                self.on || !heard.starts_with("at "),
                "{heard:?} before {line:?}"
            );
            before.push(heard);
        }
    }

    /// The next line.
    pub(crate) fn hear_next(&self) -> String {
        let heard = self.lines.recv_timeout(PATIENCE);
        heard.unwrap_or_else(|error| panic!("nothing was said: {error}"))
    }

    pub(crate) fn hear(&self, line: &str) {
        self.hear_all(line);
    }

    /// The lines until it ends.
    pub(crate) fn rest(&self) -> impl Iterator<Item = String> {
        self.lines.iter()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that was sent SIGSTOP.
pub(crate) struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
