//! `tcpmig restore`: a connection from a file, for a command.

mod witness;

use std::ffi::OsString;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;
use tcpmig::listener;
use tcpmig::options::{NotSet, Unsupported};
use tcpmig_format::Image;
use tcpmig_lock::Backend;
use tcpmig_sys::process::exec::{become_with_connection, become_with_listener};

use super::{Output, enter, files, guardian, lockers, taken};

pub(super) use self::witness::{VERB as WITNESS, Witness, WitnessArgs, main as main_witness};

/// Restore a connection from a file, under a command.
///
/// Locks the connection's packets, rebuilds it, unlocks, and becomes COMMAND, which gets the connection as standard input and standard output and,
/// in the manner of socket activation, as descriptor 3 with `LISTEN_FDS=1`. The variable `TCPMIG_IMAGE` names the image, for commands that want
/// the layers, which tcpmig leaves to them. The connection's local address must be on this host and its packets must come here.
///
/// The image of a listener makes one like it: COMMAND gets it as descriptor 3, and its standard input and output are those of this command.
///
/// An image with a layer of a TLS session is refused: the secrets of sessions are not kept in files.
///
/// Nothing in the image is held against a policy: it can bring any address, mark and option that you may set. Restore
/// only what you trust.
///
/// On the host where the connection was dumped, and on one where a restore was killed, the lock or the redirect that was left
/// is taken over, and a redirect ends: the connection comes back as if it had not been away. If a process that lives holds
/// the connection, nothing is done.
///
/// If anything fails before the connection lives, nothing of it is left here, what locked or redirected it before does so
/// again, and the image can be tried again. If this command is killed when the connection lives and COMMAND does not have it
/// yet, or COMMAND cannot be started, FILE gets an image of the connection as it is then, which can be restored.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The image
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// How the packets are kept away meanwhile
    #[arg(long, value_name = "LOCKER", default_value = "nftables", long_help = lockers::help())]
    lock: Backend,

    /// What happens if this host cannot honour an option of the connection: nothing is restored, or it is restored without it
    #[arg(long, value_name = "POLICY", default_value = "error")]
    options: Policy,

    /// Restore in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<String>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Restore nothing and name the option
    Error,
    /// Restore the connection and name the option on standard error
    Warn,
}

impl From<Policy> for Unsupported {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Error => Self::Refuse,
            Policy::Warn => Self::Warn,
        }
    }
}

pub(crate) fn main(args: &RestoreArgs, output: Output) -> anyhow::Result<ExitCode> {
    let (image, _) = files::read(&args.file)?;
    files::refuse_secrets(&image).with_context(|| args.file.display().to_string())?;
    warn_of_age(&image, output);
    let file = args.file.canonicalize().context("find the image")?;
    // A command that cannot be started would end the connection.
    let (program, arguments) = args.command.split_first().context("no command")?;
    let program = find(program)?;
    enter(args.netns.as_deref())?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", std::process::id().to_string())
        .env("TCPMIG_IMAGE", &file);
    if image.listener().is_some() {
        let listener = listener::restore(&image)?;
        command.env("LISTEN_FDNAMES", "listener");
        let error = become_with_listener(&mut command, listener);
        return Err(error).context("start the command");
    }
    let _guardian = guardian::start(&args.lock)?;
    let witness = Witness::start(&file, &args.lock);
    let activated = taken::restore(image, &args.lock, args.options.into(), &witness)?;
    let restored = activated.write();
    warn(&restored.not_set, output);
    let socket = blocking(restored.socket, &restored.unwritten)?;
    command.env("LISTEN_FDNAMES", "connection");
    let error = become_with_connection(&mut command, socket);
    Err(error).context("start the command")
}

/// When a peer that has sent something is about to give up: Linux repeats for 924 s (`tcp_retries2` of 15).
const OLD: Duration = Duration::from_secs(900);

/// Says so if the peer may not have waited for the image to be restored.
fn warn_of_age(image: &Image, output: Output) {
    let taken = image.taken.map(Duration::from_micros);
    let taken = taken.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    let Some(age) = taken.and_then(|taken| taken.elapsed().ok()) else {
        return;
    };
    if age < OLD || image.listener().is_some() {
        return;
    }
    let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
    let text = format!("the image was taken {age} ago: the peer may have given the connection up");
    let mut err = std::io::stderr().lock();
    // Nobody reads it if this fails.
    let _ = match output {
        Output::Text => writeln!(err, "warning: {text}"),
        Output::Json => writeln!(err, "{}", json!({ "warning": text })),
    };
}

/// Names the options that the connection no longer has. Standard output is the command's.
fn warn(not_set: &[NotSet], output: Output) {
    let mut err = std::io::stderr().lock();
    for option in not_set {
        // Nobody reads it if this fails.
        let _ = match output {
            Output::Text => writeln!(err, "warning: {option}"),
            Output::Json => writeln!(
                err,
                "{}",
                json!({ "warning": option.to_string(), "option": option.option, "value": option.value })
            ),
        };
    }
}

/// A blocking socket, as commands expect it, with what was left to write written.
fn blocking(socket: OwnedFd, unwritten: &[u8]) -> anyhow::Result<OwnedFd> {
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false).context("set O_NONBLOCK")?;
    stream
        .write_all(unwritten)
        .context("write what the connection had to send")?;
    Ok(stream.into())
}

/// The program's path: as it is given, or from `PATH`.
fn find(program: &OsString) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runnable = |path: &Path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let path = Path::new(program);
    if path.components().count() > 1 || path.is_absolute() {
        anyhow::ensure!(runnable(path), "{}: no such program", path.display());
        return Ok(path.to_owned());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(path))
        .find(|candidate| runnable(candidate))
        .with_context(|| format!("{}: no such program in PATH", path.display()))
}
