//! `tcpmig dump`: a connection into a file.

mod attended;
mod departure;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tcpmig::listener::{self, Waiting};
use tcpmig_format::FourTuple;
use tcpmig_lock::Backend;
use tcpmig_sys::listener::{accept_queue, check};
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::process::owners;
use tcpmig_sys::process::take::descriptor;

use self::attended::Attendant;
use self::departure::{Dumped, dump};
use super::files::{NewFile, beside_the_disk};
use super::lockers::{self, seconds};
use super::locks::span;
use super::{IN_DOUBT, NOTHING, Output, enter};
use crate::cli::print::{say, tell};

/// Write a live connection into a file, and take it off this host.
///
/// Takes a duplicate of the descriptor from the process that has it, holds all processes that have the connection for some
/// microseconds, locks its packets, reads it and writes the image. Without --keep the connection then ends on this host without a packet:
/// the process finds its descriptor closed, the peer notices nothing, and the lock (or the redirect) stays until its
/// lease ends, so that no late packet of the peer is answered with a reset. Packets that are forwarded prolong a redirect by
/// its lease. Whoever flushes the host's rules meanwhile (`nft flush ruleset`, a firewall that is started again) ends both,
/// unless `tcpmig locks --guard` runs beside. Restore the image elsewhere before the peer loses patience.
///
/// The processes do not stand still while the image is written, however slow the disk: they find a network that is silent. If they use
/// the connection meanwhile, that is read again. They notice nothing else: no error, no signal, and one that was stopped before
/// stays so. They are held by tracing, so a process that a debugger has cannot be dumped. The file has its name only when
/// it is complete and on the disk. A connection that has ended is dumped without a lock, because another one may live with its ports.
///
/// A listener (by --pid and --fd) is read only, and goes on with what waits in it: `tcpmig restore` makes one like it elsewhere.
///
/// If anything fails, the connection goes on as before and no file is left; also if this command is interrupted or killed,
/// at any moment. If all of its processes are killed at once, `tcpmig thaw` lets the connection go on.
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    which: Which,

    /// The process's descriptor of the connection
    #[arg(long, value_name = "N", requires = "pid")]
    fd: Option<i32>,

    /// Where to write the image (a new file, readable by you alone)
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// How the packets are kept away
    #[arg(long, value_name = "LOCKER", default_value = "nftables", long_help = lockers::help())]
    lock: Backend,

    /// How long the lock stays after the dump; until then it is renewed [seconds]
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    lease: Duration,

    /// Forward the connection's packets to this host, a neighbour, from now on. It answers them with resets, if it has the
    /// address and neither the connection nor a lock: run `tcpmig locks --lock LOCAL,REMOTE` there first, which `tcpmig restore`
    /// takes over
    #[arg(long, value_name = "ADDRESS", conflicts_with = "keep")]
    redirect: Option<IpAddr>,

    /// How long packets are forwarded after the last that was [seconds]
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = seconds, requires = "redirect")]
    redirect_lease: Duration,

    /// Let the connection go on here; the image is a copy to look at
    #[arg(long)]
    keep: bool,

    /// Look for --flow in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "pid")]
    netns: Option<String>,

    /// Do the work for a process that looks after it, which has the other end of standard input
    #[arg(long, hide = true)]
    attended: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The process that has the connection
    #[arg(long, value_name = "P", requires = "fd")]
    pid: Option<u32>,

    /// The connection by its two ends, for example 10.0.0.1:80,10.0.0.9:51234
    #[arg(long, value_name = "LOCAL,REMOTE")]
    flow: Option<FourTuple>,
}

pub(crate) fn main(args: &DumpArgs, output: Output) -> anyhow::Result<ExitCode> {
    if args.attended {
        let attendant = Attendant::on_standard_input()?;
        work(args, output, &attendant)
    } else {
        attended::attend(args, output)
    }
}

fn work(args: &DumpArgs, output: Output, attendant: &Attendant) -> anyhow::Result<ExitCode> {
    enter(args.netns.as_deref())?;
    let Some(Found { pid, fd, socket }) = find(&args.which, args.fd)? else {
        // clap lets nothing else pass than a flow here.
        let flow = args
            .which
            .flow
            .map_or_else(String::new, |flow| flow.to_string());
        tell!("nothing to do: no process that can be seen here has the connection {flow}");
        return Ok(ExitCode::from(NOTHING));
    };
    let whose = || format!("descriptor {fd} of process {pid}");
    // The lock has to be where the socket is, which need not be where we are.
    if let Ok(namespace) = Namespace::of_socket(socket.as_fd())
        && !namespace.is_current()?
    {
        namespace.enter_permanently()?;
    }
    if check(socket.as_fd()).is_ok() {
        dump_listener(args, &socket, output).with_context(whose)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dumped = dump(args, socket, attendant).with_context(whose)?;
    report(args, &dumped, output)?;
    let ended = |until: departure::Until| until.remaining().is_zero();
    if args.lock != Backend::None && dumped.silent_until.is_some_and(ended) {
        tell!(
            "warning: this process stood still for longer than the lease: its lock has ended, and a packet of the peer may have \
             been answered with a reset"
        );
        return Ok(ExitCode::from(IN_DOUBT));
    }
    Ok(ExitCode::SUCCESS)
}

/// A socket of somebody else.
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) fd: i32,
    pub(super) socket: OwnedFd,
}

/// How often to look again for the owner of a connection that had given its descriptor another meaning meanwhile.
const LOOKS: usize = 20;

/// A duplicate of the socket that was asked for. `None` if nobody has the connection.
fn find(which: &Which, fd: Option<i32>) -> anyhow::Result<Option<Found>> {
    match (which.pid, fd, which.flow) {
        (Some(pid), Some(fd), _) => {
            let socket = take(pid, fd)?;
            Ok(Some(Found { pid, fd, socket }))
        }
        (_, _, Some(flow)) => find_flow(flow),
        // clap lets nothing else pass.
        _ => bail!("give --pid and --fd, or --flow"),
    }
}

pub(super) fn take(pid: u32, fd: i32) -> anyhow::Result<OwnedFd> {
    descriptor(pid, fd).with_context(|| format!("descriptor {fd} of process {pid}"))
}

/// The same by its ends.
pub(super) fn find_flow(flow: FourTuple) -> anyhow::Result<Option<Found>> {
    // A descriptor can mean another connection by the time that it is taken: it has to be the socket that the kernel knows by
    // these addresses and ports.
    let (mut last, mut was_found) = (None, false);
    for _ in 0..LOOKS {
        let Some(owner) = owners::find(flow.local(), flow.remote())?.first().copied() else {
            continue;
        };
        was_found = true;
        match take(owner.pid, owner.fd) {
            Ok(socket) if owners::is_connection(socket.as_fd(), flow.local(), flow.remote())? => {
                return Ok(Some(Found {
                    pid: owner.pid,
                    fd: owner.fd,
                    socket,
                }));
            }
            Ok(_) => last = None,
            Err(error) => last = Some(error),
        }
    }
    match last {
        _ if !was_found => Ok(None),
        Some(error) => Err(error),
        None => bail!(
            "the process that has {flow} gave its descriptor another meaning each time that it was looked for"
        ),
    }
}

fn dump_listener(args: &DumpArgs, socket: &OwnedFd, output: Output) -> anyhow::Result<()> {
    if args.redirect.is_some() {
        bail!("a listener has no packets that could be redirected: its connections have");
    }
    let waiting = accept_queue(socket.as_fd())?.waiting;
    let image = listener::capture(socket.as_fd(), Waiting::Leave)?.image;
    let listen = image.listener().context("the image has no listener")?;
    let bytes = image.encode()?;
    let mut file = NewFile::create(&args.output)?;
    beside_the_disk(
        args.lease,
        || file.write(&bytes).and_then(|()| file.publish()),
        || {},
    )?;
    file.keep()?;
    if output == Output::Json {
        let value = json!({
            "listener": listen.local.to_string(),
            "file": args.output,
            "bytes": bytes.len(),
            "backlog": listen.backlog,
            "waiting": waiting,
        });
        say!("{value}");
        return Ok(());
    }
    say!(
        "listener {}: {} bytes in {}\nIt goes on here; {waiting} connections wait in it to be accepted.",
        listen.local,
        bytes.len(),
        args.output.display()
    );
    Ok(())
}

fn report(args: &DumpArgs, dumped: &Dumped, output: Output) -> anyhow::Result<()> {
    let Dumped {
        image,
        flow,
        bytes,
        silent_until,
    } = dumped;
    let tcp = image.tcp().context("the image has no TCP layer")?;
    let (send, receive) = (tcp.send(), tcp.receive());
    let file = args.output.display();
    let lease = match args.redirect {
        Some(_) => args.redirect_lease,
        None => args.lease,
    };
    let until = silent_until.filter(|_| args.lock != Backend::None);
    if output == Output::Json {
        let value = json!({
            "flow": flow.to_string(),
            "file": args.output,
            "bytes": bytes,
            "send_queue_bytes": send.sent.len() + send.unsent.len(),
            "receive_queue_bytes": receive.queue.len(),
            "kept": args.keep,
            "lease_seconds": until.map(|_| lease.as_secs()),
            "remaining_seconds": until.map(|until| until.remaining().as_secs_f64()),
            "silent_until": until.map(departure::Until::seconds),
        });
        say!("{value}");
        return Ok(());
    }
    say!(
        "{flow}: {bytes} bytes in {file} ({} to send, {} to read)",
        send.sent.len() + send.unsent.len(),
        receive.queue.len()
    );
    if args.keep {
        say!("The connection goes on here; do not restore this image.");
        return Ok(());
    }
    let Some(until) = silent_until else {
        say!("It had ended: nothing of it is locked here.");
        return Ok(());
    };
    let left = span(until.remaining());
    match (&args.lock, args.redirect) {
        (_, Some(target)) => say!("Its packets are forwarded to {target} for {left}."),
        (Backend::None, _) => {
            say!("Keep its packets away from this host, or it answers them with a reset.");
        }
        _ => say!("Its packets are locked here for {left}: restore it elsewhere by then."),
    }
    Ok(())
}
