//! A process that outlives the one which unplugs a device, and plugs it in again.
//!
//! The locker `link` ends a lease by a thread of the process that holds the lock. If that is killed, or ends and leaves the
//! lock to its lease, nobody of it is left. So the command starts another process before it locks. It waits for the
//! end of the first one, which it sees by a pipe, and then for the end of each lease.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tcpmig_lock::{Backend, Link};

/// Its name as a verb of the command, which the help does not show.
pub(crate) const VERB: &str = "device-guardian";
const STAY: &str = "--stay";
/// How often it looks whether the leases that it waits for were prolonged, or ended by somebody else.
const LOOK: Duration = Duration::from_millis(500);

/// What has to be kept as long as something may be locked: the guardian begins when it is dropped, or when this process ends
/// or becomes another program.
#[must_use = "dropping it says that this process locks nothing any more"]
pub(crate) struct Guardian {
    /// None for a locker that needs none.
    _alive: Option<ChildStdin>,
}

/// Starts the guardian if this locker needs one, in the network namespace of the calling thread. It is to be called before the
/// lock.
pub(crate) fn start(backend: &Backend) -> anyhow::Result<Guardian> {
    if !matches!(backend, Backend::Link(_)) {
        return Ok(Guardian { _alive: None });
    }
    let start = || -> anyhow::Result<ChildStdin> {
        // This starts another one and ends, so that neither is a child of what this process may become.
        let mut child = myself().stdin(Stdio::piped()).spawn()?;
        let alive = child.stdin.take().context("its standard input")?;
        let status = child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(alive)
    };
    let alive = start().context("start the process that plugs the device in again")?;
    Ok(Guardian {
        _alive: Some(alive),
    })
}

fn myself() -> Command {
    // Also if the file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(VERB)
        .current_dir("/")
        // No signal that a terminal sends to the processes in its foreground reaches it.
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The verb.
#[derive(Debug, clap::Args)]
pub(crate) struct GuardianArgs {
    /// Be the guardian, and do not start it
    #[arg(long)]
    stay: bool,
}

/// Starts the guardian, or is it.
pub(crate) fn main(args: &GuardianArgs) -> anyhow::Result<ExitCode> {
    if !args.stay {
        let mut child = myself()
            .arg(STAY)
            .stdin(Stdio::inherit())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0];
        let mut said = child.stdout.take().context("its standard output")?;
        said.read_exact(&mut ready).context("it did not start")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout();
    out.write_all(b"r").and_then(|()| out.flush())?;
    // The end of whom it was started for.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    wait_and_sweep();
    Ok(ExitCode::SUCCESS)
}

/// Plugs devices in as their leases end, until none is unplugged.
fn wait_and_sweep() {
    loop {
        if let Err(error) = Link::sweep_all() {
            tracing::debug!(%error, "it is tried again");
        }
        // Also those of processes that live: the one that this was started for may be about to end.
        let left = Link::unplugged_all().unwrap_or_default();
        let Some(first) = left.iter().map(|device| device.remaining).min() else {
            return;
        };
        std::thread::sleep(first.clamp(Duration::from_millis(10), LOOK));
    }
}
