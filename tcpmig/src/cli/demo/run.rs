//! Starts the demo's processes, follows them and gathers what they say.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tcpmig::driver::Report;
use tcpmig_sys::lab::Host;
use tcpmig_transport::keys::Authority;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::content::Content;
use super::download::{Curl, Download, Fetched, Order};
use super::lock::Lock;
use super::messages::{Event, Setup};
use super::net::Net;
use super::timeline::Timeline;
use super::tls::Web;
use super::{DemoArgs, path, plot, positions};
use crate::Output;
use crate::cli::files::NewFile;
use crate::cli::print::tell;

/// One move.
#[derive(Debug, Serialize)]
pub(crate) struct Hop {
    pub(crate) hop: usize,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// Bytes of the body that the server had written.
    pub(crate) position: u64,
    /// `moved`, `kept` or `in_doubt`.
    pub(crate) fate: &'static str,
    pub(crate) reason: Option<String>,
    #[serde(flatten)]
    pub(crate) report: Option<Report>,
    /// When it was done.
    #[serde(skip)]
    at: Option<SystemTime>,
}

/// The end of a demo.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) ok: bool,
    pub(crate) hops_wanted: u32,
    pub(crate) hops_moved: usize,
    pub(crate) size_bytes: u64,
    pub(crate) hops: Vec<Hop>,
    pub(crate) curl: Curl,
    pub(crate) sha256_expected: String,
    pub(crate) sha256_received: String,
    /// What else curl has fetched over the connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) beside: Vec<Fetched>,
    pub(crate) throughput_mib_per_second: f64,
}

/// A web server of the demo.
struct Server {
    name: &'static str,
    other: &'static str,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    async fn start(host: &Host, name: &'static str, setup: &Setup) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let program = program
            .to_str()
            .context("this program's path is not UTF-8")?;
        let mut command = Command::from(host.command(program)?);
        let mut child = command
            .arg("demo-server")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start a web server")?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the web server has no pipes");
        };
        let mut line = serde_json::to_vec(setup)?;
        line.push(b'\n');
        stdin.write_all(&line).await?;
        let mut server = Self {
            name,
            other: if name == "A" { "B" } else { "A" },
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        };
        match server.event().await? {
            Event::Ready => Ok(server),
            other => bail!("web server {name} began with {other:?}"),
        }
    }

    /// The next thing that the server says. Cancel-safe.
    async fn event(&mut self) -> anyhow::Result<Event> {
        match self.lines.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => {
                let status = self.child.wait().await?;
                bail!("web server {} ended in the middle ({status})", self.name)
            }
        }
    }

    fn hop(&self, hop: usize, event: Event) -> anyhow::Result<Hop> {
        let mut at = None;
        let (fate, position, reason, report) = match event {
            Event::Moved {
                position,
                report,
                at_us,
            } => {
                at = Some(SystemTime::UNIX_EPOCH + Duration::from_micros(at_us));
                ("moved", position, None, Some(report))
            }
            Event::Kept { position, reason } => ("kept", position, Some(reason), None),
            Event::InDoubt { position } => ("in_doubt", position, None, None),
            Event::Ready => bail!("web server {} said twice that it is ready", self.name),
        };
        Ok(Hop {
            hop,
            from: self.name,
            to: self.other,
            position,
            fate,
            reason,
            report,
            at,
        })
    }

    /// Ends the server when nothing is left for it to do.
    async fn stop(self) -> anyhow::Result<()> {
        let Self {
            mut child, stdin, ..
        } = self;
        drop(stdin);
        let status = tokio::time::timeout(Duration::from_secs(10), child.wait())
            .await
            .context("the web server did not end")??;
        ensure!(status.success(), "the web server ended with {status}");
        Ok(())
    }
}

fn setups(
    net: &Net,
    args: &DemoArgs,
    authority: &Authority,
    size: u64,
) -> anyhow::Result<[Setup; 2]> {
    let addresses = &net.addresses;
    let switch = net.lab.switch().path();
    let setup =
        |host: &Host, name: &str, other: &str, own, other_address, hop| -> anyhow::Result<Setup> {
            let issued = authority.issue(name)?;
            Ok(Setup {
                name: name.to_owned(),
                service: addresses.service,
                own,
                other: other_address,
                hop,
                lock: args.lock,
                switch: switch.clone(),
                port: host.port().to_owned(),
                other_name: other.to_owned(),
                certificate: issued.cert_pem.clone(),
                key: issued.key_pem.clone(),
                authority: authority.ca_pem().to_owned(),
                web: args
                    .tls_version()
                    .map(|version| Web::new(version, args.http2, authority))
                    .transpose()?,
                size,
                settle_ms: args.settle,
                move_at: positions(size, args.hops),
            })
        };
    let [on_a, on_b] = addresses.on_switch;
    Ok([
        setup(&net.a, "host-a", "host-b", addresses.a, addresses.b, on_b)?,
        setup(&net.b, "host-b", "host-a", addresses.b, addresses.a, on_a)?,
    ])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Draws the picture into its file.
fn draw(
    mut file: NewFile,
    recorder: plot::Recorder,
    hops: &[Hop],
    args: &DemoArgs,
) -> anyhow::Result<()> {
    let recording = recorder.end()?;
    let stills: Vec<_> = hops
        .iter()
        .filter_map(|hop| {
            let lasted = hop.report?.blackout;
            recording.still(hop.at?, lasted, hop.from)
        })
        .collect();
    let title = format!(
        "One TCP connection, {} MiB to curl, moved {} times between two hosts",
        args.size,
        stills.len()
    );
    file.write(plot::draw(&recording, &stills, &title).as_bytes())?;
    file.publish()?;
    Ok(file.keep()?)
}

/// How long after the end of the download a server may tell of a move.
const LATE: Duration = Duration::from_secs(10);

/// The next move of either server. Cancel-safe.
async fn next_hop(a: &mut Server, b: &mut Server, number: usize) -> anyhow::Result<Hop> {
    tokio::select! {
        event = a.event() => a.hop(number, event?),
        event = b.event() => b.hop(number, event?),
    }
}

pub(crate) async fn run(args: &DemoArgs, output: Output) -> anyhow::Result<Summary> {
    let size = args.size << 20;
    // What cannot be written is known before the rest is done.
    let picture = args.plot.as_deref().map(NewFile::create).transpose()?;
    let net = Net::new(args.ipv6, args.lock == Lock::Link).context("make the demo's network")?;
    if size > 1 << 32 {
        tell!("computing the checksum of {} MiB first", args.size);
    }
    let expected = hex(&Content::new(size).sha256());
    let authority = Authority::create("tcpmig demo")?;
    let [for_a, for_b] = setups(&net, args, &authority, size)?;
    let mut a = Server::start(&net.a, "A", &for_a).await?;
    let mut b = Server::start(&net.b, "B", &for_b).await?;
    let recorder = match &args.plot {
        Some(_) => Some(plot::Recorder::start(&net)?),
        None => None,
    };
    let mut timeline = Timeline::begin(args, &net.addresses, output);

    let (service, path) = (net.addresses.service, path(size));
    let order = Order {
        service,
        path: &path,
        authority: args.tls_version().map(|_| authority.ca_pem()),
        http2: args.http2,
    };
    let mut download = Download::start(&net.peer, &order).await?;
    let mut hops: Vec<Hop> = Vec::new();
    loop {
        let number = hops.len() + 1;
        let hop = tokio::select! {
            more = download.advance() => {
                if !more? {
                    break;
                }
                timeline.progress(download.received);
                continue;
            }
            hop = next_hop(&mut a, &mut b, number) => hop?,
        };
        timeline.hop(&hop);
        hops.push(hop);
    }
    // A server learns that the last move is done when the other one may have served the rest.
    while download.received == size && hops.len() < args.hops as usize {
        let hop = next_hop(&mut a, &mut b, hops.len() + 1);
        let Ok(hop) = tokio::time::timeout(LATE, hop).await else {
            break;
        };
        let hop = hop?;
        timeline.hop(&hop);
        hops.push(hop);
    }
    timeline.finish();
    let (first, beside) = download.end().await?;
    if let (Some(recorder), Some(picture)) = (recorder, picture) {
        draw(picture, recorder, &hops, args)?;
    }
    for server in [a, b] {
        server.stop().await?;
    }

    let hops_moved = hops.iter().filter(|hop| hop.fate == "moved").count();
    let Fetched {
        curl,
        sha256_received,
    } = first;
    let is_right = |curl: &Curl, sha256: &str| {
        sha256 == expected
            && curl.exitcode == 0
            && curl.http_code == 200
            && (curl.http_version == "2") == args.http2
    };
    // The first one made the connection, and the others are on it.
    let connects = |fetched: &Fetched| fetched.curl.num_connects;
    let ok = is_right(&curl, &sha256_received)
        && beside
            .iter()
            .all(|one| is_right(&one.curl, &one.sha256_received))
        && curl.num_connects + beside.iter().map(connects).sum::<u32>() == 1
        && hops_moved == args.hops as usize;
    let bytes = beside.iter().map(|fetched| fetched.curl.size_download);
    let bytes = bytes.sum::<u64>() + curl.size_download;
    Ok(Summary {
        ok,
        hops_wanted: args.hops,
        hops_moved,
        size_bytes: size,
        hops,
        throughput_mib_per_second: bytes as f64 / 1_048_576.0 / curl.time_total,
        curl,
        sha256_expected: expected,
        sha256_received,
        beside,
    })
}
