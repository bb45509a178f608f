//! A dump that is undone if the tool is killed.
//!
//! The command does its work in a process of its own, and looks after it. Either of the two can be killed at any moment: the one
//! that works sees that the other is gone, and lets the connection go on; the one that looks after it
//! takes back what the other has left. The worker is in a session of its own, so that what a key press or a
//! terminal that closes does to the command (SIGINT, SIGTSTP, SIGHUP) does not stop it with a connection that stands still.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, bail};
use tcpmig_format::FourTuple;
use tcpmig_sys::ends::Ends;
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::process::signals::{self, Watched, Watcher};

use super::DumpArgs;
use crate::cli::thaw::{self, Selection};
use crate::cli::{FAILED, Output, enter, files, locks};

/// The one who looks after the work, as its worker has him.
#[derive(Debug)]
pub(super) struct Attendant(UnixStream);

/// What the worker says before it gives the image its name.
const PUBLISHES: u8 = b'p';

impl Attendant {
    /// For a process whose standard input leads to it. From here on nothing but SIGKILL ends this process from outside.
    pub(super) fn on_standard_input() -> anyhow::Result<Self> {
        // Ctrl-C, or a limit of the file's size, must leave neither a file, nor processes that stand still, nor a frozen
        // connection. They stay held back until the end, which comes by itself.
        std::mem::forget(signals::block()?);
        signals::own_session()?;
        // It was started by a link, the name of which would be that of this process in the list of locks.
        let _ = std::fs::write("/proc/self/comm", "tcpmig");
        let standard_input = std::io::stdin().as_fd().try_clone_to_owned();
        let socket = UnixStream::from(standard_input.context("standard input")?);
        socket.set_nonblocking(true).context("standard input")?;
        Ok(Self(socket))
    }

    /// Whether it still wants the dump.
    pub(super) fn is_there(&self) -> bool {
        // It never says anything.
        let read = (&self.0).read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// The image gets its name now.
    pub(super) fn publishes(&self) {
        // If it has gone that is found at the next look.
        let _ = (&self.0).write(&[PUBLISHES]);
    }
}

/// Lets a process of its own do the work, and takes back what that leaves if it is killed.
pub(super) fn attend(args: &DumpArgs, output: Output) -> anyhow::Result<ExitCode> {
    let watcher = Watcher::new()?;
    let (mut mine, its) = UnixStream::pair().context("socketpair")?;
    let mut arguments = std::env::args_os();
    let mut worker = Command::new("/proc/self/exe")
        .arg0(arguments.next().unwrap_or_else(|| "tcpmig".into()))
        .args(arguments)
        .arg("--attended")
        .stdin(OwnedFd::from(its))
        .spawn()
        .context("start the process that dumps")?;
    let status = loop {
        match watcher.wait()? {
            Watched::Child => {
                if let Some(status) = worker.try_wait().context("waitpid")? {
                    break status;
                }
            }
            // It has to see that nobody wants the dump any more, but what it says is still read.
            Watched::End => mine.shutdown(Shutdown::Write).context("shutdown")?,
        }
    };
    if let Some(code) = status.code() {
        // Its codes are those of this command.
        return Ok(ExitCode::from(u8::try_from(code).unwrap_or(FAILED)));
    }
    // What it had said before it died.
    let mut said = Vec::new();
    let _ = mine.read_to_end(&mut said);
    // Its file has one name or the other.
    let unnamed = files::remove_partial(&args.output, worker.id());
    let published = said.contains(&PUBLISHES) && !unnamed;
    take_back(args, output, status, published)
}

/// Lets the connection go on that a worker left which was killed.
fn take_back(
    args: &DumpArgs,
    output: Output,
    status: ExitStatus,
    published: bool,
) -> anyhow::Result<ExitCode> {
    let signal = status.signal().unwrap_or_default();
    enter(args.netns.as_deref())?;
    let selection = match (args.which.pid, args.which.flow) {
        (Some(pid), _) => Selection::Process { pid, fd: args.fd },
        (_, Some(flow)) => Selection::Flow(flow),
        _ => bail!("the process that dumped was killed (signal {signal})"),
    };
    let (thawed, failed) = thaw::thaw(&selection, true)?;
    if let Some(error) = failed.into_iter().next() {
        let context = format!("the process that dumped was killed (signal {signal})");
        return Err(error.context(context));
    }
    // A connection that is in repair mode was not given up, and the image is of one that goes on.
    if published && !thawed.is_empty() {
        std::fs::remove_file(&args.output).context("remove the image")?;
    }
    thaw::report(&thawed, output);
    if !published {
        // Its network may be silent still.
        release(args);
    }
    if published && thawed.is_empty() {
        bail!(
            "the process that dumped was killed (signal {signal}) when it was done: {} is complete",
            args.output.display()
        );
    }
    bail!(
        "the process that dumped was killed (signal {signal}): the connection goes on here, and there is no image"
    )
}

/// Ends the lock that the worker had; its lease ends it otherwise.
fn release(args: &DumpArgs) {
    let release = || {
        // clap lets nothing else pass.
        let Some(found) = super::find(&args.which, args.fd)? else {
            return Ok(());
        };
        Namespace::of_socket(found.socket.as_fd())?.enter_permanently()?;
        let Ends { local, remote } = Ends::of(found.socket.as_fd())?;
        locks::release(FourTuple::new(local, remote)?)
    };
    if let Err(error) = release() {
        tracing::warn!("its lock stays until the lease ends: {error:#}");
    }
}
