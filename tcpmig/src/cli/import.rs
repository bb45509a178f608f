//! `tcpmig import`: an image of a connection that CRIU dumped; and what `inspect` shows of CRIU's images.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tcpmig::criu::{self, Imported, Kind, Socket, Stream};
use tcpmig_format::SecretBytes;

use super::files::{self, LIMITS, NewFile};
use super::print::say;
use super::{NOTHING, Output};

/// Make an image of a connection that CRIU dumped.
///
/// `criu dump --tcp-established` writes a tcp-stream-INODE.img for each connection, and one files.img with the addresses and
/// options of all sockets. From these two `tcpmig import` makes an image that `tcpmig restore` takes, on this host or on another
/// one, without the process. `tcpmig inspect files.img` lists the connections of a dump.
///
/// What CRIU's images do not have is told; there the target's defaults hold. The rules by which CRIU keeps the packets of the
/// dumped connections away stay on the host of the dump: remove them when the connection lives elsewhere.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The tcp-stream-INODE.img of the connection
    #[arg(value_name = "TCP-STREAM")]
    stream: PathBuf,

    /// The files.img of the same dump [default: the one in the folder of TCP-STREAM]
    #[arg(long, value_name = "FILE")]
    files: Option<PathBuf>,

    /// The file for the image; it must not exist yet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(crate) fn main(args: &ImportArgs, output: Output) -> anyhow::Result<ExitCode> {
    let mut file = NewFile::create(&args.output)?;
    let Imported { image, lacks, .. } = read_connection(&args.stream, args.files.as_deref())?;
    let bytes = image.encode().context("encode the image")?;
    file.write(&bytes)?;
    file.publish()?;
    file.keep()
        .with_context(|| format!("write {}", args.output.display()))?;
    // Every image that was imported has both.
    let flow = image.ip().map(|ip| ip.flow.to_string()).unwrap_or_default();
    let queues = image.tcp().map(|tcp| {
        let (send, receive) = (tcp.send(), tcp.receive());
        (send.sent.len() + send.unsent.len(), receive.queue.len())
    });
    let (to_send, to_read) = queues.unwrap_or_default();
    if output == Output::Json {
        let lacks: Vec<_> = lacks.iter().map(|lack| lack.name()).collect();
        let value = json!({
            "flow": flow,
            "file": args.output,
            "bytes": bytes.len(),
            "send_queue_bytes": to_send,
            "receive_queue_bytes": to_read,
            "lacks": lacks,
        });
        say!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{flow}: {} bytes in {} ({to_send} to send, {to_read} to read)",
        bytes.len(),
        args.output.display(),
    );
    say!("CRIU's images do not have, so that the target's defaults hold:");
    for lack in lacks {
        say!("  {lack}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What a file holds, if CRIU wrote it.
pub(crate) fn kind(path: &Path) -> anyhow::Result<Option<Kind>> {
    Ok(Kind::of(&files::read_beginning(path, Kind::BEGINNING)?))
}

/// The connection of a tcp-stream image, with the addresses and options of its socket.
pub(crate) fn read_connection(stream: &Path, files: Option<&Path>) -> anyhow::Result<Imported> {
    let name = stream.display();
    let in_folder = stream.with_file_name("files.img");
    let sockets = read_sockets(files.unwrap_or(&in_folder)).map_err(|error| match files {
        Some(_) => error,
        None => {
            error.context("the addresses of the connection are in files.img: name it with --files")
        }
    })?;
    let bytes = read_whole(stream)?;
    let read = Stream::read(&bytes, &LIMITS).with_context(|| name.to_string())?;
    let socket = socket_of(stream, &sockets)?;
    criu::import(read, socket).with_context(|| format!("{name}, {}", socket.flow))
}

/// What `inspect` shows of a files.img.
pub(crate) fn show_sockets(path: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let sockets = read_sockets(path)?;
    if output == Output::Json {
        let sockets: Vec<Value> = sockets
            .iter()
            .map(|socket| {
                json!({
                    "file": file_name(socket),
                    "flow": socket.flow.to_string(),
                    "state": socket.state.name(),
                })
            })
            .collect();
        say!("{:#}", json!({ "connections": sockets }));
    } else if sockets.is_empty() {
        say!("no connections: only sockets of TCP with a peer are shown");
    } else {
        for socket in &sockets {
            let (file, state) = (file_name(socket), socket.state);
            say!("{file:<28} {state:<12} {}", socket.flow);
        }
    }
    Ok(if sockets.is_empty() {
        ExitCode::from(NOTHING)
    } else {
        ExitCode::SUCCESS
    })
}

fn file_name(socket: &Socket) -> String {
    format!("tcp-stream-{:x}.img", socket.inode)
}

fn read_whole(path: &Path) -> anyhow::Result<SecretBytes> {
    let bytes = files::read_beginning(path, LIMITS.max_image)?;
    if bytes.len() == LIMITS.max_image {
        bail!(
            "{}: {} bytes or more, which is too long",
            path.display(),
            bytes.len()
        );
    }
    Ok(bytes)
}

fn read_sockets(path: &Path) -> anyhow::Result<Vec<Socket>> {
    let bytes = read_whole(path)?;
    criu::sockets(&bytes).with_context(|| path.display().to_string())
}

/// The socket whose inode is in the name of the file, or the only one that there is.
fn socket_of<'a>(stream: &Path, sockets: &'a [Socket]) -> anyhow::Result<&'a Socket> {
    let name = stream.file_name().unwrap_or_default().to_string_lossy();
    let inode = name
        .strip_prefix("tcp-stream-")
        .and_then(|name| name.strip_suffix(".img"))
        .and_then(|inode| u32::from_str_radix(inode, 16).ok());
    match (inode, sockets) {
        (Some(inode), sockets) => sockets
            .iter()
            .find(|socket| socket.inode == inode)
            .with_context(|| format!("files.img has no connection with inode {inode:x}, which {name} is of: is it of the same dump?")),
        (None, [socket]) => Ok(socket),
        (None, _) => bail!(
            "files.img has {} connections: {name} has to have its name tcp-stream-INODE.img to tell which it is of",
            sockets.len()
        ),
    }
}
