//! Two hosts with agents.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use tcpmig_sys::lab::Host;

use crate::support::{Net, Program, TCPMIG, succeeds, tcpmig, text, until};

/// How many descriptors an agent may have, unless a test says otherwise.
pub(crate) const DESCRIPTORS: usize = 400;

/// The system's own: one in a folder of root's is out of reach for servers.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// The client in Python and its example.
pub(crate) const PYTHON_FILES: [(&str, &str); 2] = [
    (
        "tcpmig_agent.py",
        include_str!("../../python/tcpmig_agent.py"),
    ),
    (
        "counter_server.py",
        include_str!("../../python/counter_server.py"),
    ),
];

/// The user of servers: one without privileges.
pub(crate) fn user() -> u32 {
    // In a user namespace of an ordinary user there is one user only.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let all = map.split_whitespace().nth(2) != Some("1");
    if all { 65534 } else { 0 }
}

/// Both hosts with their keys and configurations, and agents.
pub(crate) struct Hosts {
    net: Net,
    /// How many descriptors each agent may have.
    descriptors: usize,
    pub(crate) agents: Vec<Agent>,
}

impl Deref for Hosts {
    type Target = Net;

    fn deref(&self) -> &Net {
        &self.net
    }
}

/// An agent, as a process.
pub(crate) struct Agent {
    pub(crate) program: Program,
    log: Arc<Mutex<Vec<String>>>,
    pub(crate) socket: PathBuf,
    config: PathBuf,
}

/// The configuration of host `a` or `b`, whose services are these.
fn config(of: &str, services: &str) -> String {
    let (own, (other, address)) = match of {
        "a" => ("198.18.0.1", ("b", "198.18.0.2")),
        _ => ("198.18.0.2", ("a", "198.18.0.1")),
    };
    format!(
        r#"
        name = "{of}.example"
        listen = "{own}:4433"
        certificate = "{of}.example.pem"
        key = "{of}.example.key"
        authority = "ca.pem"
        journal = "{of}.journal"
        socket = "{of}.sock"
        socket_mode = "0666"
        metrics = "unix:{of}.metrics"
        [hosts."{other}.example"]
        address = "{address}:4433"
        steer = "redirect"
        {services}
        "#
    )
}

/// A service that may go everywhere and come from everywhere.
pub(crate) fn open_service(of: &str) -> String {
    let other = if of == "a" { "b" } else { "a" };
    format!(
        r#"
        [services.counter]
        users = ["root", {}]
        addresses = ["198.18.0.80"]
        ports = [7000]
        to = ["{other}.example"]
        from = ["{other}.example"]
        "#,
        user()
    )
}

impl Hosts {
    /// Both run an agent with the open service.
    pub(crate) fn new() -> Self {
        Self::with(open_service)
    }

    /// Both run an agent with these services.
    pub(crate) fn with(services: impl Fn(&str) -> String) -> Self {
        Self::with_descriptors(services, DESCRIPTORS)
    }

    /// The same, and each agent may have so many descriptors.
    pub(crate) fn with_descriptors(services: impl Fn(&str) -> String, descriptors: usize) -> Self {
        let net = Net::new();
        // Servers of another user reach the sockets.
        fs::set_permissions(net.folder.path(), Permissions::from_mode(0o755)).unwrap();
        let folder = net.folder.path().to_str().unwrap();
        let arguments = ["keys", folder, "--host", "a.example", "--host", "b.example"];
        succeeds(&tcpmig(&net.a, &arguments));
        let mut hosts = Self {
            net,
            descriptors,
            agents: Vec::new(),
        };
        for of in ["a", "b"] {
            let path = hosts.file(&format!("{of}.toml"));
            fs::write(&path, config(of, &services(of))).unwrap();
            let agent = hosts.start_agent(of);
            hosts.agents.push(agent);
        }
        hosts
    }

    pub(crate) fn host(&self, of: &str) -> &Host {
        if of == "a" { &self.a } else { &self.b }
    }

    pub(crate) fn agent(&self, of: &str) -> &Agent {
        &self.agents[usize::from(of == "b")]
    }

    /// Starts an agent, and waits until it can be reached.
    pub(crate) fn start_agent(&self, of: &str) -> Agent {
        let config = self.file(&format!("{of}.toml"));
        let socket = self.file(&format!("{of}.sock"));
        // What an agent before it left.
        let _ = fs::remove_file(&socket);
        // No more than the unit gives it; what is started as another user needs more.
        let mut capabilities = "-all,+net_admin,+net_raw,+chown".to_owned();
        if fs::read_to_string(&config)
            .unwrap()
            .contains("command_user")
        {
            capabilities += ",+setuid,+setgid";
        }
        let mut command = self.host(of).command("prlimit").unwrap();
        command
            .args([&format!("--nofile={}", self.descriptors), "--", "setpriv"])
            .args(["--pdeathsig", "KILL", "--no-new-privs", "--inh-caps=-all"])
            .args([
                "--bounding-set",
                &capabilities,
                "--",
                &TCPMIG,
                "agent",
                "--config",
            ])
            .arg(&config);
        let mut program = Program::spawn(command.stderr(Stdio::piped()));
        let log = Arc::default();
        let logs = BufReader::new(program.child.stderr.take().unwrap());
        thread::spawn({
            let (log, of) = (Arc::clone(&log), of.to_owned());
            move || follow(logs, &of, &log)
        });
        let mut agent = Agent {
            program,
            log,
            socket,
            config,
        };
        until("the agent listens", || {
            assert_eq!(
                agent.program.child.try_wait().unwrap(),
                None,
                "the agent has ended"
            );
            agent.socket.exists()
        });
        agent
    }

    /// A verb of the command, with the agent of this host.
    pub(crate) fn verb(&self, of: &str, arguments: &[&str]) -> std::process::Output {
        let socket = self.agent(of).socket.to_str().unwrap();
        let mut arguments = arguments.to_vec();
        arguments.extend(["--agent", socket]);
        tcpmig(self.host(of), &arguments)
    }

    /// What Prometheus would be told.
    pub(crate) fn metrics(&self, of: &str) -> String {
        let path = self.file(&format!("{of}.metrics"));
        let got = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--unix-socket"])
            .arg(path)
            .arg("http://agent/metrics")
            .output()
            .unwrap();
        assert!(got.status.success(), "{}", text(&got.stderr));
        text(&got.stdout)
    }

    /// Puts the Python files where servers can read them: the checkout may be out of that user's reach.
    pub(crate) fn python_files(&self) {
        for (name, text) in PYTHON_FILES {
            let path = self.file(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        }
    }

    /// A server of the example in Python on a host, without privileges.
    pub(crate) fn python(&self, of: &str) -> Program {
        let other = if of == "a" { "b.example" } else { "a.example" };
        self.python_files();
        let mut command = self.unprivileged(of, PYTHON);
        command
            .arg("-B")
            .arg(self.file("counter_server.py"))
            .args(["--listen", "198.18.0.80:7000", "--service", "counter"])
            .args(["--to", other, "--agent"])
            .arg(&self.agent(of).socket);
        let server = Program::spawn(&mut command);
        assert_eq!(server.hear(), "ready");
        server
    }

    /// A command on a host, of a user without privileges.
    pub(crate) fn unprivileged(&self, of: &str, program: &str) -> Command {
        let mut command = self.host(of).command("setpriv").unwrap();
        // Who changes the user is not ended with its parent any more.
        command.args(["--pdeathsig", "KILL", "--no-new-privs"]);
        command.args(["--inh-caps=-all", "--bounding-set=-all"]);
        if user() != 0 {
            let user = user().to_string();
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        }
        command.arg("--").arg(program);
        command
    }
}

/// Keeps what an agent logs, and shows it among what the test says.
fn follow(logs: impl BufRead, of: &str, log: &Mutex<Vec<String>>) {
    for line in logs.lines().map_while(Result::ok) {
        eprintln!("{of}: {line}");
        log.lock().unwrap().push(line);
    }
}

impl Agent {
    /// What it has logged that has this in it.
    pub(crate) fn logged(&self, what: &str) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let lines = log.iter().filter(|line| line.contains(what));
        lines.cloned().collect()
    }

    /// Changes its configuration and tells it.
    pub(crate) fn reload(&self, change: &dyn Fn(String) -> String) {
        let text = fs::read_to_string(&self.config).unwrap();
        fs::write(&self.config, change(text)).unwrap();
        signal(&self.program, "HUP");
    }
}

/// Sends a signal to a program.
pub(crate) fn signal(program: &Program, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &program.child.id().to_string()])
        .stdin(Stdio::null())
        .process_group(0)
        .status();
    assert!(sent.unwrap().success());
}
