//! A role of the benchmark in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{self, ChildStdin, ChildStdout, Stdio};

use tcpmig_sys::lab::Host;

use crate::Task;

pub(crate) struct Child {
    process: process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    role: &'static str,
}

impl Child {
    pub(crate) fn start(host: &Host, role: &'static str, pem: &[String; 3], task: &Task) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = host.command(program.to_str().unwrap()).unwrap();
        command.args(["role", role, &serde_json::to_string(task).unwrap()]);
        for (name, value) in ["CERT", "KEY", "CA"].iter().zip(pem) {
            command.env(name, value);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        Self {
            stdin: process.stdin.take().unwrap(),
            stdout: BufReader::new(process.stdout.take().unwrap()),
            process,
            role,
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// The next line that it says.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the {} has ended", self.role);
        line.trim_end().to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
