//! Starts the processes of a measurement and leads them through it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use tcpmig_sys::lab::Host;
use tcpmig_transport::keys::Authority;

use super::BenchArgs;
use super::figures::{Measured, Moves};
use super::part::{PART, Said, Setup};
use crate::cli::demo::Net;

/// One of the processes. It ends when this is dropped.
struct Part {
    name: &'static str,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Part {
    fn start(host: &Host, name: &'static str, setup: &Setup) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let program = program
            .to_str()
            .context("this program's path is not UTF-8")?;
        let mut command = host.command(program)?;
        command.args([PART, name]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start the {name}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the {name} has no pipes");
        };
        let mut part = Self {
            name,
            child,
            stdin,
            stdout: BufReader::new(stdout),
        };
        part.say(&serde_json::to_string(setup)?)?;
        Ok(part)
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let said = writeln!(self.stdin, "{line}");
        said.with_context(|| format!("the {} does not listen", self.name))
    }

    fn hear(&mut self) -> anyhow::Result<Said> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            // What it said about that is on standard error.
            bail!("the {} ended in the middle ({status})", self.name);
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn moved(&mut self) -> anyhow::Result<Moves> {
        match self.hear()? {
            Said::Moved(moves) => Ok(moves),
            other => bail!("the {} said {other:?}", self.name),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<Measured> {
    // It shows itself on a terminal only.
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(100));
    progress.set_message(format!("{} connections are made", args.single + args.many));
    let net = Net::new(false, false).context("make the network")?;
    let authority = Authority::create("tcpmig bench")?;
    let setup = |name: &str, other: &str| -> anyhow::Result<Setup> {
        let issued = authority.issue(name)?;
        Ok(Setup {
            service: net.addresses.service,
            source: net.addresses.a,
            target: net.addresses.b,
            hop: net.addresses.on_switch[1],
            other_name: other.to_owned(),
            certificate: issued.cert_pem.clone(),
            key: issued.key_pem.clone(),
            authority: authority.ca_pem().to_owned(),
            single: args.single as usize,
            many: args.many as usize,
        })
    };
    let mut target = Part::start(&net.b, "target", &setup("host-b", "host-a")?)?;
    let mut source = Part::start(&net.a, "source", &setup("host-a", "host-b")?)?;
    for part in [&mut target, &mut source] {
        part.hear()?;
    }
    let mut peer = Part::start(&net.peer, "peer", &setup("peer", "nobody")?)?;
    for part in [&mut peer, &mut source] {
        part.hear()?;
    }
    source.say("move")?;
    progress.set_message(format!("{} connections move one by one", args.single));
    let single = source.moved()?;
    progress.set_message(format!("{} connections move at once", args.many));
    let many = source.moved()?;
    progress.set_message("the peer asks each of them");
    peer.say("ask")?;
    let alive = match peer.hear()? {
        Said::Alive(alive) => alive,
        other => bail!("the peer said {other:?}"),
    };
    progress.finish_and_clear();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("read the kernel's version")?;
    Ok(Measured {
        kernel: format!("Linux {}", kernel.trim_end()),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        connections: single.connections + many.connections,
        single,
        many,
        alive,
    })
}
