//! `tcpmig demo --upgrade`: one server is replaced again and again under its clients.

mod clients;
mod frames;
mod version;

use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use tcpmig_transport::keys::Authority;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::content::Content;
use super::run::hex;
use super::tls::{Version as TlsVersion, Web};
use super::{DemoArgs, path, positions};
use crate::Output;
use crate::cli::print::say;
use clients::{Downloaded, Events, Load, Service, Wrk};
pub(super) use version::run as run_version;
use version::{ENOUGH, Event, Setup};

/// What the demo calls a version's process.
pub(crate) const VERB: &str = "demo-version";

/// Connections of wrk.
const LOAD: usize = 8;
/// Of the WebSocket, between two messages.
const PAUSE: Duration = Duration::from_millis(2);
/// How long anything may take that has to happen.
const WITHIN: Duration = Duration::from_secs(60);

/// How the server was replaced once.
#[derive(Debug, Serialize)]
pub(crate) struct Hop {
    hop: usize,
    /// The new process.
    process: Option<u32>,
    /// From the start of the new process until it accepted.
    started_ms: f64,
    /// From then until the old one had ended: so long, both had connections.
    took_over_ms: f64,
    /// From the start of the new process until the old one had ended.
    overlap_ms: f64,
    /// What the old one had.
    connections: usize,
}

/// The end of a demo.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) ok: bool,
    hops_wanted: usize,
    hops: Vec<Hop>,
    size_bytes: u64,
    sha256_expected: String,
    download: Downloaded,
    events: Events,
    messages: u64,
    load: Load,
    connections_expected: u64,
    /// By all versions together.
    connections_accepted: u64,
}

/// A process of the server.
struct Version {
    child: Child,
    /// It ends without it.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    begun: Instant,
    ready: Instant,
    port: u16,
}

impl Version {
    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let program = std::env::current_exe().context("find this program")?;
        let mut child = Command::new(program)
            .arg(VERB)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start a version of the server")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the server has no pipes");
        };
        let lines = BufReader::new(stdout).lines();
        let stdin = Some(stdin);
        let mut version = Self {
            child,
            stdin,
            lines,
            begun,
            ready: begun,
            port: 0,
        };
        version.say(&serde_json::to_string(setup)?).await?;
        match version.event().await? {
            Event::Ready { port } => version.port = port,
            other => bail!("a version of the server began with {other:?}"),
        }
        version.ready = Instant::now();
        Ok(version)
    }

    async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        let stdin = self
            .stdin
            .as_mut()
            .context("its standard input is closed")?;
        Ok(stdin.write_all(line.as_bytes()).await?)
    }

    async fn event(&mut self) -> anyhow::Result<Event> {
        let line = timeout(WITHIN, self.lines.next_line()).await;
        match line.context("the server says nothing")?? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => bail!(
                "a version of the server ended early ({})",
                self.child.wait().await?
            ),
        }
    }

    /// Waits for its end; how many connections it had when it was replaced, and how many it has accepted.
    async fn ends(mut self) -> anyhow::Result<(usize, u64)> {
        let mut had = 0;
        loop {
            match self.event().await? {
                Event::Replaced { connections } => had = connections,
                Event::Ended { accepted } => {
                    let status = timeout(WITHIN, self.child.wait()).await??;
                    ensure!(
                        status.success(),
                        "a version of the server ended with {status}"
                    );
                    return Ok((had, accepted));
                }
                other @ Event::Ready { .. } => {
                    bail!("a version of the server said {other:?} again")
                }
            }
        }
    }
}

pub(super) async fn run(args: &DemoArgs, output: Output) -> anyhow::Result<Summary> {
    let size = args.size << 20;
    let hops_wanted = args.hops as usize;
    let folder = folder()?;
    let authority = Authority::create("tcpmig demo")?;
    let setup = Setup {
        socket: folder.join("server.sock"),
        web: Web::new(args.tls.unwrap_or(TlsVersion::V13), false, &authority)?,
        size,
    };
    let sha256_expected = hex(&Content::new(size).sha256());
    let mut version = Version::start(&setup).await?;
    let service = Service {
        address: (Ipv4Addr::LOCALHOST, version.port).into(),
        authority: authority.ca_pem().to_owned(),
    };
    begin(args, &service, output);

    let (reached, mut is_reached) = watch::channel(0);
    let (replaced, is_replaced) = watch::channel(0);
    let (enough, is_enough) = watch::channel(false);
    let places = positions(size, args.hops);
    let wrk = Wrk::start(&service, LOAD)?;
    let events = tokio::spawn(clients::listen(service.clone()));
    let chat = tokio::spawn(clients::chat(service.clone(), is_enough));
    let downloading = clients::download(service, path(size), places, reached, is_replaced);
    let downloading = tokio::spawn(downloading);

    let (mut hops, mut accepted) = (Vec::new(), 0);
    for hop in 1..=hops_wanted {
        if is_reached
            .wait_for(|&reached| reached >= hop)
            .await
            .is_err()
        {
            // The download has ended before; it says why.
            break;
        }
        let next = Version::start(&setup).await?;
        let old = std::mem::replace(&mut version, next);
        let (connections, by_old) = old.ends().await?;
        accepted += by_old;
        let (ended, ms) = (Instant::now(), |time: Duration| time.as_secs_f64() * 1000.0);
        let hop = Hop {
            hop,
            process: version.child.id(),
            started_ms: ms(version.ready - version.begun),
            took_over_ms: ms(ended - version.ready),
            overlap_ms: ms(ended - version.begun),
            connections,
        };
        print_hop(&hop, output);
        hops.push(hop);
        replaced.send_replace(hops.len());
    }
    let download = downloading.await??;
    enough.send_replace(true);
    version.say(ENOUGH).await?;
    let (events, messages) = (events.await??, chat.await??);
    let load = wrk.stop().await?;
    version.stdin = None;
    let (_, by_last) = version.ends().await?;
    accepted += by_last;

    // wrk sees by one more whether somebody listens.
    let connections_expected = 3 + LOAD as u64 + 1;
    let is_good = |curl: &super::download::Curl| {
        curl.exitcode == 0 && curl.http_code == 200 && curl.num_connects == 1
    };
    let ok = hops.len() == hops_wanted
        && download.sha256 == sha256_expected
        && is_good(&download.curl)
        && is_good(&events.curl)
        && events.in_order
        && load.failed == 0
        && accepted == connections_expected;
    Ok(Summary {
        ok,
        hops_wanted,
        hops,
        size_bytes: size,
        sha256_expected,
        download,
        events,
        messages,
        load,
        connections_expected,
        connections_accepted: accepted,
    })
}

/// A folder of its own; the last version of the server removes it.
fn folder() -> anyhow::Result<PathBuf> {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let name = format!("tcpmig-demo-{}-{}", std::process::id(), since.as_nanos());
    let folder = std::env::temp_dir().join(name);
    let made = DirBuilder::new().mode(0o700).create(&folder);
    made.with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

fn begin(args: &DemoArgs, service: &Service, output: Output) {
    if output == Output::Json {
        return;
    }
    say!(
        "One server at https://{} is replaced {} times, while curl downloads {} MiB, another curl listens to events, a WebSocket\n\
         is in use, and wrk asks over {LOAD} connections. Each version is a process of its own. Times in milliseconds.\n\n\
         hop  process  started in  took over in  both ran for  connections",
        service.address,
        args.hops,
        args.size,
    );
}

fn print_hop(hop: &Hop, output: Output) {
    if output == Output::Json {
        return;
    }
    say!(
        "{:>3}  {:>7}  {:>10.1}  {:>12.1}  {:>12.1}  {:>11}",
        hop.hop,
        hop.process.unwrap_or_default(),
        hop.started_ms,
        hop.took_over_ms,
        hop.overlap_ms,
        hop.connections
    );
}

/// The end: what the clients say.
pub(super) fn print_end(summary: &Summary, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        say!("{}", serde_json::to_string_pretty(summary)?);
        return Ok(());
    }
    let Summary {
        download,
        events,
        load,
        ..
    } = summary;
    let mut overlaps: Vec<f64> = summary.hops.iter().map(|hop| hop.overlap_ms).collect();
    overlaps.sort_unstable_by(f64::total_cmp);
    say!();
    if let (Some(least), Some(most)) = (overlaps.first(), overlaps.last()) {
        say!(
            "overlap    {least:.1} ms at the least, {:.1} in the middle, {most:.1} at the most (from the start of the new process to the end of the old)",
            overlaps[overlaps.len() / 2]
        );
    }
    let equal = download.sha256 == summary.sha256_expected;
    say!(
        "download   HTTP {}, {} bytes, connections used: {}; SHA-256 {}",
        download.curl.http_code,
        download.curl.size_download,
        download.curl.num_connects,
        if equal { "equal" } else { "DIFFERENT" }
    );
    say!(
        "events     HTTP {}, {} events {}, connections used: {}",
        events.curl.http_code,
        events.count,
        if events.in_order {
            "in their order"
        } else {
            "OUT OF ORDER"
        },
        events.curl.num_connects
    );
    say!(
        "WebSocket  {} messages answered, each with its number",
        summary.messages
    );
    let ms = |us: u64| us as f64 / 1000.0;
    let [middle, high, worst] = load.latency_us.map(ms);
    say!(
        "wrk        {} requests, {} failed; latency {middle:.1} ms in the middle, {high:.1} for 99 %, {worst:.1} at the most",
        load.requests,
        load.failed
    );
    say!(
        "accepted   {} connections, one for each of the clients and one by which wrk sees whether somebody listens\n{}",
        summary.connections_accepted,
        if summary.ok {
            format!(
                "The server was replaced {} times and nobody noticed.",
                summary.hops.len()
            )
        } else {
            format!(
                "FAILED: replaced {} of {} times; see above.",
                summary.hops.len(),
                summary.hops_wanted
            )
        }
    );
    Ok(())
}
