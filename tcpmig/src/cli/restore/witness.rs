//! A process that sees whether a restored connection gets to its command.
//!
//! From the moment in which the connection lives until the command has it, nobody but `tcpmig restore` would have its socket. If
//! that is killed then, or if the command cannot be started, the kernel would close it, and the peer lose the connection.
//! So another process follows this one, and a duplicate of the socket is on its way to it. If this one becomes the command,
//! the other one ends; if it does not, the other one takes the connection off this host again and puts it into its file.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use tcpmig::capture::{Frozen, Plan};
use tcpmig_format::{FourTuple, Image, SecretBytes, TcpImage};
use tcpmig_lock::Backend;
use tcpmig_sys::ends::Ends;
use tcpmig_sys::process::following::{Became, Followed, let_follow};
use tcpmig_sys::process::{passing, signals};
use tcpmig_sys::repair::FrozenSocket;
use tcpmig_sys::sockopt;

use crate::cli::print::tell;
use crate::cli::{files, taken};

/// Its name as a verb of the command, which the help does not show.
pub(crate) const VERB: &str = "restore-witness";

/// How long the packets stay locked after the connection is in its file again.
const LEASE: Duration = Duration::from_secs(60);

/// As the process has it that restores.
pub(in crate::cli) struct Witness(Option<UnixStream>);

impl Witness {
    /// Starts it, in the network namespace of the calling thread and before anything is locked. A host that does not let
    /// processes trace each other has none.
    pub(super) fn start(file: &Path, lock: &Backend) -> Self {
        let started = try_start(file, lock).inspect_err(|error| {
            tracing::debug!("the connection ends with this process if it is killed: {error:#}");
        });
        Self(started.ok())
    }

    /// Gives it a duplicate of the socket of a connection that is about to live.
    pub(in crate::cli) fn hold(&self, socket: BorrowedFd<'_>) {
        let Some(witness) = &self.0 else { return };
        if let Err(error) = passing::send(witness, socket) {
            tracing::debug!("the connection ends with this process if it is killed: {error}");
        }
    }

    /// The connection does not live: its image is what there is of it.
    pub(in crate::cli) fn forget(&self) {
        if let Some(mut witness) = self.0.as_ref() {
            // If it has gone it does nothing anyway.
            let _ = witness.write(b"x");
        }
    }
}

fn try_start(file: &Path, lock: &Backend) -> anyhow::Result<UnixStream> {
    let (mine, its) = UnixStream::pair()?;
    // This starts another one and ends: what this process becomes has no child that it does not know.
    let status = myself()
        .arg(file)
        .arg("--lock")
        .arg(lock.to_string())
        .stdin(OwnedFd::from(its))
        .status()?;
    ensure!(status.success(), "it did not start: {status}");
    let mut said = BufReader::new(mine.try_clone()?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    // A kernel without Yama needs no leave; where it is missing the next step fails.
    let _ = let_follow(line.trim().parse().context("its number")?);
    writeln!(&mine, "{}", std::process::id())?;
    line.clear();
    said.read_line(&mut line)?;
    ensure!(line == FOLLOWS, "this process cannot be followed: {line}");
    Ok(mine)
}

const FOLLOWS: &str = "follows\n";

fn myself() -> Command {
    // Also if the file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(VERB)
        // No signal that a terminal sends to the processes in its foreground reaches it.
        .process_group(0)
        .stdout(Stdio::null());
    command
}

/// The verb.
#[derive(Debug, Args)]
pub(crate) struct WitnessArgs {
    /// The image
    file: PathBuf,

    /// How packets are locked
    #[arg(long)]
    lock: Backend,

    /// Be the witness, and do not start it
    #[arg(long)]
    stay: bool,
}

/// Starts the witness, or is it.
pub(crate) fn main(args: &WitnessArgs) -> anyhow::Result<ExitCode> {
    if !args.stay {
        let mut command = myself();
        command.arg(&args.file).arg("--lock");
        command.arg(args.lock.to_string()).arg("--stay");
        command.stdin(Stdio::inherit()).spawn()?;
        return Ok(ExitCode::SUCCESS);
    }
    // Nothing but SIGKILL ends it before it has seen what it is for.
    std::mem::forget(signals::block()?);
    signals::own_session()?;
    // It was started by a link, the name of which would be that of this process in the list of locks.
    let _ = std::fs::write("/proc/self/comm", "tcpmig");
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    writeln!(&socket, "{}", std::process::id())?;
    let mut pid = String::new();
    BufReader::new(&socket).read_line(&mut pid)?;
    let followed = match Followed::follow(pid.trim().parse().context("the number of a process")?) {
        Ok(followed) => followed,
        Err(error) => {
            writeln!(&socket, "{error}")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    (&socket).write_all(FOLLOWS.as_bytes())?;
    socket.set_nonblocking(true)?;
    let became = followed.wait()?;
    // One that was not sent, or not yet, is of a connection that does not live.
    let connection = passing::receive(&socket).ok().flatten();
    match (became, connection) {
        (Became::Program(program), connection) => {
            // The command alone has it from here on.
            drop((connection, socket));
            drop(program);
        }
        (Became::Ended, Some(connection)) => {
            let is_forgotten = (&socket).read(&mut [0]).is_ok_and(|count| count == 1);
            if !is_forgotten {
                let file = args.file.display();
                put_back(args, connection)
                    .with_context(|| format!("put the connection back into {file}"))?;
            }
        }
        (Became::Ended, None) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a connection off this host, and replaces the image that it came from with one of what it is now.
fn put_back(args: &WitnessArgs, connection: OwnedFd) -> anyhow::Result<()> {
    let (old, _) = files::read(&args.file)?;
    let Ends { local, remote } = Ends::of(connection.as_fd())?;
    let flow = FourTuple::new(local, remote)?;
    let locker = tcpmig::locker::open(&args.lock).context("lock")?;
    // That of the process which ended may still be there.
    let lock = taken::lock(&*locker, flow, LEASE)?;
    // Where that process stood it may or may not have been about to live: behind the lock that makes no difference.
    let connection = match sockopt::repair(connection.as_fd())? {
        true => {
            let left = FrozenSocket::left_behind(connection).map_err(|failed| failed.error)?;
            left.thaw().map_err(|failed| failed.error)?
        }
        false => connection,
    };
    let plan = Plan::read(connection.as_fd())?;
    let frozen = Frozen::freeze_locked(connection, plan, lock, LEASE);
    let mut frozen = frozen.map_err(|not| not.error)?;
    let mut image = frozen.capture(old.layers.clone())?;
    frozen.merge_captured(&mut image)?;
    add_unwritten(&mut image, &old)?;
    let bytes = image.encode()?;
    files::check(&bytes).context("this connection cannot be restored")?;
    files::replace(&args.file, &bytes)?;
    frozen.check_unchanged()?;
    frozen.discard()?;
    tell!(
        "the command was not started: {flow} is in {} again, as it is now; its packets are locked for {} s",
        args.file.display(),
        LEASE.as_secs()
    );
    Ok(())
}

/// Adds what the connection had to send that was not yet written to its socket.
fn add_unwritten(image: &mut Image, old: &Image) -> anyhow::Result<()> {
    let (Some(connection), Some(old)) = (image.connection_mut(), old.tcp()) else {
        return Ok(());
    };
    let Some(tcp) = connection.tcp.take() else {
        return Ok(());
    };
    let mut parts = tcp.into_parts();
    let old = old.send();
    let all = [&old.sent[..], &old.unsent[..]].concat();
    let end = parts.send.snd_una.get().wrapping_add(
        u32::try_from(parts.send.sent.len() + parts.send.unsent.len()).context("a queue")?,
    );
    // More than all of it if a FIN was sent, which is the last.
    let written = end.wrapping_sub(old.snd_una.get()) as usize;
    let rest = all.get(written..).unwrap_or_default();
    parts.send.unsent = SecretBytes::from([&parts.send.unsent[..], rest].concat());
    connection.tcp = Some(TcpImage::new(parts)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tcpmig_format::{Negotiated, ReceiveSpace, SendSpace, Seq, TcpParts, TcpState, Window};

    use super::*;

    fn image(snd_una: u32, sent: &str, unsent: &str) -> Image {
        let parts = TcpParts {
            state: TcpState::Established,
            send: SendSpace {
                snd_una: Seq::new(snd_una),
                sent: SecretBytes::from(sent.as_bytes()),
                unsent: SecretBytes::from(unsent.as_bytes()),
            },
            receive: ReceiveSpace {
                rcv_nxt: Seq::new(77),
                ..ReceiveSpace::default()
            },
            negotiated: Negotiated {
                mss_clamp: 1460,
                ..Negotiated::default()
            },
            window: Window {
                snd_wl1: Seq::new(77),
                snd_wnd: 64_000,
                max_window: 64_000,
                rcv_wnd: 65_535,
                rcv_wup: Seq::new(77),
            },
            socket: tcpmig_format::SocketOptions::default(),
            pending_error: None,
        };
        Image::new(TcpImage::new(parts).unwrap())
    }

    #[test]
    fn what_was_not_written_follows_what_was() {
        // The sequence numbers wrap around.
        let start = u32::MAX - 1;
        let old = image(start, "abc", "defgh");
        for (acknowledged, sent, unsent) in [(0, "abc", "de"), (2, "c", "de"), (4, "e", "")] {
            let mut new = image(start.wrapping_add(acknowledged), sent, unsent);
            add_unwritten(&mut new, &old).unwrap();
            let tcp = new.tcp().unwrap();
            let all = [&tcp.send().sent[..], &tcp.send().unsent[..]].concat();
            assert_eq!(all, &b"abcdefgh"[acknowledged as usize..]);
            assert_eq!(tcp.send().sent, sent.as_bytes());
        }
    }

    #[test]
    fn what_was_written_is_not_added_again() {
        let old = image(1000, "abc", "defgh");
        let mut new = image(1005, "fgh", "");
        add_unwritten(&mut new, &old).unwrap();
        assert_eq!(new, image(1005, "fgh", ""));
    }
}
