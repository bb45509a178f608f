//! `tcpmig dump`: a connection into a file.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tcpmig::capture::{Frozen, Plan};
use tcpmig::listener::{self, Waiting};
use tcpmig::steer::{Elsewhere, Redirected, Steer};
use tcpmig_format::{FourTuple, Image};
use tcpmig_lock::Backend;
use tcpmig_sys::listener::{accept_queue, check};
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::take::Process;
use tcpmig_sys::{owners, signals};

use super::files::NewFile;
use super::lockers::{self, seconds};
use super::{NOTHING, Output, enter};

/// Write a live connection into a file, and take it off this host.
///
/// Takes a duplicate of the descriptor from the process that has it (which is stopped meanwhile), locks the
/// connection's packets, reads it and writes the image. Without --keep the connection then ends on this host without a packet:
/// the process finds its descriptor closed, the peer notices nothing, and the lock (or the redirect) stays until its
/// lease ends, so that no late packet of the peer is answered with a reset. Restore the image elsewhere before the peer loses patience.
///
/// A listener (by --pid and --fd) is read only, and goes on with what waits in it: `tcpmig restore` makes one like it elsewhere.
///
/// If anything fails, the connection goes on as before and no file is left.
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

    /// How long the lock, or the redirect, stays after the dump [seconds]
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    lease: Duration,

    /// Forward the connection's packets to this host, a neighbour, from now on
    #[arg(long, value_name = "ADDRESS", conflicts_with = "keep")]
    redirect: Option<IpAddr>,

    /// Let the connection go on here; the image is a copy to look at
    #[arg(long)]
    keep: bool,

    /// Look for --flow in this network namespace (a name of `ip netns`, or a path)
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "pid")]
    netns: Option<String>,
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
    enter(args.netns.as_deref())?;
    let (pid, fd) = match (args.which.pid, args.fd, args.which.flow) {
        (Some(pid), Some(fd), _) => (pid, fd),
        (_, _, Some(flow)) => match owners::find(flow.local(), flow.remote())?.first() {
            Some(owner) => (owner.pid, owner.fd),
            None => {
                eprintln!(
                    "nothing to do: no process that can be seen here has the connection {flow}"
                );
                return Ok(ExitCode::from(NOTHING));
            }
        },
        // clap lets nothing else pass.
        _ => bail!("give --pid and --fd, or --flow"),
    };
    let process = Process::open(pid)?;
    let socket = process
        .descriptor(fd)
        .with_context(|| format!("descriptor {fd} of process {pid}"))?;
    // The lock has to be where the socket is, which need not be where we are.
    if let Ok(namespace) = Namespace::of_socket(socket.as_fd())
        && !namespace.is_current()?
    {
        namespace.enter_for_good()?;
    }
    if check(socket.as_fd()).is_ok() {
        dump_listener(args, &socket, output)
            .with_context(|| format!("descriptor {fd} of process {pid}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let dumped = dump(args, &process, socket)
        .with_context(|| format!("descriptor {fd} of process {pid}"))?;
    report(args, &dumped, output)?;
    Ok(ExitCode::SUCCESS)
}

fn dump_listener(args: &DumpArgs, socket: &OwnedFd, output: Output) -> anyhow::Result<()> {
    if args.redirect.is_some() {
        bail!("a listener has no packets that could be redirected: its connections have");
    }
    let waiting = accept_queue(socket.as_fd())?.waiting;
    let image = listener::capture(socket.as_fd(), Waiting::Leave)?.image;
    let listen = image.listen.as_ref().context("the image has no listener")?;
    let octets = image.encode()?;
    let mut file = NewFile::create(&args.output)?;
    file.write(&octets)?;
    file.keep();
    if output == Output::Json {
        let value = json!({
            "listener": listen.local.to_string(),
            "file": args.output,
            "octets": octets.len(),
            "backlog": listen.backlog,
            "waiting": waiting,
        });
        println!("{value}");
        return Ok(());
    }
    println!(
        "listener {}: {} octets in {}\nIt goes on here; {waiting} connections wait in it to be accepted.",
        listen.local,
        octets.len(),
        args.output.display()
    );
    Ok(())
}

struct Dumped {
    image: Image,
    flow: FourTuple,
    octets: usize,
}

fn dump(args: &DumpArgs, process: &Process, socket: OwnedFd) -> anyhow::Result<Dumped> {
    let plan = Plan::of(socket.as_fd())?;
    let flow = plan.flow();
    let locker = tcpmig::locker::open(&args.lock).context("lock")?;
    let steering = match args.redirect {
        Some(target) => Redirected::new(target, args.lease)?.plan(flow)?,
        None => Elsewhere.plan(flow)?,
    };
    let mut file = NewFile::create(&args.output)?;

    // Ctrl-C must leave neither a stopped process nor a frozen connection.
    let _held_back = signals::hold_back()?;
    let _paused = process.pause()?;
    let mut frozen = Frozen::freeze(socket, plan, &*locker, args.lease).map_err(|not| not.error)?;
    // Whatever fails from here on, `frozen` is dropped and the connection goes on.
    let mut image = frozen.capture(None)?;
    if !args.keep {
        steering.steer(&mut frozen)?;
        frozen.catch_up(&mut image)?;
    }
    let octets = image.encode()?;
    file.write(&octets)?;
    frozen.confirm()?;
    if args.keep {
        frozen.keep().map_err(|not| not.error)?;
    } else {
        frozen.discard()?;
    }
    file.keep();
    Ok(Dumped {
        image,
        flow,
        octets: octets.len(),
    })
}

fn report(args: &DumpArgs, dumped: &Dumped, output: Output) -> anyhow::Result<()> {
    let Dumped {
        image,
        flow,
        octets,
    } = dumped;
    let tcp = image.tcp.as_ref().context("the image has no TCP layer")?;
    let (send, receive) = (tcp.send(), tcp.receive());
    let file = args.output.display();
    if output == Output::Json {
        let value = json!({
            "flow": flow.to_string(),
            "file": args.output,
            "octets": octets,
            "send_queue_octets": send.sent.len() + send.unsent.len(),
            "receive_queue_octets": receive.queue.len(),
            "kept": args.keep,
            "lease_seconds": (!args.keep && args.lock != Backend::None).then_some(args.lease.as_secs()),
        });
        println!("{value}");
        return Ok(());
    }
    println!(
        "{flow}: {octets} octets in {file} ({} to send, {} to read)",
        send.sent.len() + send.unsent.len(),
        receive.queue.len()
    );
    let lease = args.lease.as_secs();
    match (args.keep, &args.lock, args.redirect) {
        (true, ..) => println!("The connection goes on here; do not restore this image."),
        (false, _, Some(target)) => {
            println!("Its packets are forwarded to {target} for {lease} s.");
        }
        (false, Backend::None, _) => {
            println!("Keep its packets away from this host, or it answers them with a reset.");
        }
        (false, _, _) => {
            println!("Its packets are locked here for {lease} s: restore it elsewhere by then.");
        }
    }
    Ok(())
}
