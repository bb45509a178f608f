//! Who uses the server while it is replaced: curl twice, wrk, and a WebSocket.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tcpmig::tls::TlsClient;
use tcpmig_sys::files;
use tcpmig_sys::netns::InNamespace;
use tcpmig_sys::process::signals;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

use super::frames::{self, Role};
use crate::cli::demo::download::Curl;
use crate::cli::demo::run::hex;
use crate::cli::demo::tls::NAME;

/// Where the server is, and by whom its certificate is signed.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) address: SocketAddr,
    pub(super) authority: String,
}

/// A client, which does not outlive the demo.
fn command(program: &str) -> Command {
    let mut command = std::process::Command::new(program);
    command.die_with_parent();
    command.into()
}

/// A curl.
struct Fetching {
    child: Child,
    body: BufReader<ChildStdout>,
}

impl Fetching {
    async fn start(service: &Service, path: &str) -> anyhow::Result<Self> {
        let port = service.address.port();
        let mut child = command("curl")
            .args(["--silent", "--show-error", "--no-buffer", "--globoff"])
            .args(["--noproxy", "*", "--http1.1", "--cacert", "/dev/stdin"])
            .args([
                "--resolve",
                &format!("{NAME}:{port}:{}", service.address.ip()),
            ])
            .args(["--write-out", "%{stderr}%{json}\n"])
            .arg(format!("https://{NAME}:{port}{path}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start curl (is it installed?)")?;
        let (Some(mut stdin), Some(body)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("curl has no pipes");
        };
        stdin.write_all(service.authority.as_bytes()).await?;
        Ok(Self {
            child,
            body: BufReader::with_capacity(1 << 16, body),
        })
    }

    async fn end(self) -> anyhow::Result<Curl> {
        drop(self.body);
        let output = self.child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        let report = said.lines().last().unwrap_or_default();
        serde_json::from_str(report)
            .with_context(|| format!("curl ended with {}: {}", output.status, said.trim()))
    }
}

/// What became of a download.
#[derive(Debug, Serialize)]
pub(super) struct Downloaded {
    pub(super) curl: Curl,
    pub(super) sha256: String,
}

/// Downloads a file, and waits at each of these places until the server has been replaced as often as that.
pub(super) async fn download(
    service: Service,
    path: String,
    places: Vec<u64>,
    reached: watch::Sender<usize>,
    mut replaced: watch::Receiver<usize>,
) -> anyhow::Result<Downloaded> {
    let mut fetching = Fetching::start(&service, &path).await?;
    let (mut hash, mut received, mut passed) = (Sha256::new(), 0, 0);
    loop {
        let bytes = fetching.body.fill_buf().await?;
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        hash.update(bytes);
        fetching.body.consume(len);
        received += len as u64;
        while places.get(passed).is_some_and(|&place| received >= place) {
            passed += 1;
            reached.send_replace(passed);
            // The next one is not reached before.
            replaced
                .wait_for(|&replaced| replaced + 1 >= passed)
                .await?;
        }
    }
    // Whoever waits for a place that did not come waits no longer.
    drop(reached);
    let curl = fetching.end().await?;
    Ok(Downloaded {
        curl,
        sha256: hex(&hash.finalize()),
    })
}

/// What became of a stream of events.
#[derive(Debug, Serialize)]
pub(super) struct Events {
    pub(super) curl: Curl,
    pub(super) count: u64,
    /// Each came once, in its order.
    pub(super) in_order: bool,
}

/// Listens to events until the server has no more.
pub(super) async fn listen(service: Service) -> anyhow::Result<Events> {
    let mut fetching = Fetching::start(&service, "/events").await?;
    let (mut count, mut in_order) = (0, true);
    let mut lines: Lines<_> = (&mut fetching.body).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(id) = line.strip_prefix("id: ") {
            count += 1;
            in_order &= id.parse() == Ok(count);
        }
    }
    Ok(Events {
        curl: fetching.end().await?,
        count,
        in_order,
    })
}

/// Sends messages over a WebSocket, one after the other, until it is told that it is enough: how many were answered.
pub(super) async fn chat(
    service: Service,
    is_enough: watch::Receiver<bool>,
) -> anyhow::Result<u64> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        service.authority.as_bytes(),
    )?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(service.address).await?;
    tcp.set_nodelay(true)?;
    let client = TlsClient::new(config);
    let mut stream = client.connect(tcp, ServerName::try_from(NAME)?).await?;
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let request = format!(
        "GET /chat HTTP/1.1\r\nhost: {NAME}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(
        head.contains(&frames::accept(key.as_bytes())),
        "no WebSocket: {head}"
    );
    let mut count = 0;
    while !*is_enough.borrow() {
        let text = format!("message {count}");
        frames::write(&mut stream, Role::Client, Some(&text)).await?;
        let answer = frames::read(&mut stream).await?;
        count += 1;
        let expected = format!("{count} {text}");
        ensure!(
            answer.as_deref() == Some(&expected),
            "{answer:?} instead of {expected:?}"
        );
        tokio::time::sleep(super::PAUSE).await;
    }
    frames::write(&mut stream, Role::Client, None).await?;
    ensure!(frames::read(&mut stream).await?.is_none(), "no end");
    Ok(count)
}

/// What wrk says at its end.
#[derive(Debug, Serialize)]
pub(super) struct Load {
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// In the middle, 99th percentile, worst.
    pub(super) latency_us: [u64; 3],
}

pub(super) struct Wrk {
    child: Child,
    /// wrk reads it by its place among this process's descriptors.
    _script: File,
}

const SCRIPT: &str = "
delay = function() return math.random(1, 5) end
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format('%d %d %d %d %d\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
";

impl Wrk {
    pub(super) fn start(service: &Service, connections: usize) -> anyhow::Result<Self> {
        let mut script = files::in_memory("wrk.lua")?;
        script.write_all(SCRIPT.as_bytes())?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), script.as_raw_fd());
        let child = command("wrk")
            .args([
                "-t1",
                "-d3600s",
                "--timeout",
                "30s",
                &format!("-c{connections}"),
                "-s",
            ])
            .arg(path)
            .arg(format!("https://{}/", service.address))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start wrk (is it installed?)")?;
        Ok(Self {
            child,
            _script: script,
        })
    }

    /// Interrupted, it says what it saw.
    pub(super) async fn stop(self) -> anyhow::Result<Load> {
        signals::interrupt(self.child.id().context("wrk has ended")?)?;
        let output = self.child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        let numbers: Vec<u64> = said
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [requests, failed, middle, high, worst] = numbers[..] else {
            bail!("wrk said {said:?}");
        };
        Ok(Load {
            requests,
            failed,
            latency_us: [middle, high, worst],
        })
    }
}
