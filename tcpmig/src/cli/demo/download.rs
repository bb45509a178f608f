//! curl, which downloads the file from the demo's web servers.

use std::io::PipeWriter;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tcpmig_sys::lab::Host;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::run::hex;
use super::tls::NAME;

/// How many downloads there are beside the first one, over HTTP/2.
const BESIDE: usize = 2;

/// What curl says about itself at the end (its `%{json}`).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Curl {
    pub(crate) http_code: u32,
    pub(crate) http_version: String,
    pub(crate) num_connects: u32,
    pub(crate) size_download: u64,
    pub(crate) time_total: f64,
    pub(crate) exitcode: i32,
    pub(crate) errormsg: Option<String>,
    #[serde(default, skip_serializing)]
    urlnum: usize,
}

/// A download that is over.
#[derive(Debug, Serialize)]
pub(crate) struct Fetched {
    pub(crate) curl: Curl,
    pub(crate) sha256_received: String,
}

/// What is downloaded.
pub(crate) struct Order<'a> {
    pub(crate) service: SocketAddr,
    pub(crate) path: &'a str,
    /// Over TLS, if there is one.
    pub(crate) authority: Option<&'a str>,
    /// Several times at once, over HTTP/2.
    pub(crate) http2: bool,
}

impl Order<'_> {
    fn url(&self) -> String {
        let Self { service, path, .. } = self;
        match self.authority {
            None => format!("http://{service}{path}"),
            Some(_) => format!("https://{NAME}:{}{path}", service.port()),
        }
    }
}

/// A running curl.
pub(crate) struct Download {
    child: Child,
    body: ChildStdout,
    hash: Sha256,
    pub(crate) received: u64,
    buffer: Vec<u8>,
    /// Each tells the checksum of another download, when its pipe has ended.
    beside: Vec<(PipeWriter, JoinHandle<std::io::Result<String>>)>,
}

impl Download {
    pub(crate) async fn start(host: &Host, order: &Order<'_>) -> anyhow::Result<Self> {
        let mut command = Command::from(host.command("curl")?);
        let service = order.service;
        if order.authority.is_some() {
            let resolve = format!("{NAME}:{}:{}", service.port(), service.ip());
            command.args(["--cacert", "/dev/stdin", "--resolve", &resolve]);
        }
        let url = order.url();
        command
            .args(["--silent", "--show-error", "--no-buffer", "--globoff"])
            .args(["--noproxy", "*", "--max-time", "600"])
            .args(["--write-out", "%{stderr}%{json}\n"])
            .args(["--output", "-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut beside = Vec::new();
        if order.http2 {
            command.args(["--http2", "--parallel"]);
            for number in 1..=BESIDE {
                let (reads, writes) = std::io::pipe()?;
                let into = format!("/proc/{}/fd/{}", std::process::id(), writes.as_raw_fd());
                // Whatever has a query does not tell where to move.
                command.args(["--output", &into, &format!("{url}?{number}")]);
                let reads = Receiver::from_owned_fd(OwnedFd::from(reads))?;
                beside.push((writes, tokio::spawn(hash(reads))));
            }
        }
        let mut child = command.spawn().context("start curl (is it installed?)")?;
        let body = child.stdout.take().context("curl has no output")?;
        let stdin = child.stdin.take();
        if let (Some(mut stdin), Some(authority)) = (stdin, order.authority) {
            stdin.write_all(authority.as_bytes()).await?;
        }
        Ok(Self {
            child,
            body,
            hash: Sha256::new(),
            received: 0,
            buffer: vec![0; 1 << 18],
            beside,
        })
    }

    /// Reads and hashes the next bytes; `false` at the end. Cancel-safe.
    pub(crate) async fn advance(&mut self) -> anyhow::Result<bool> {
        let count = self.body.read(&mut self.buffer).await?;
        self.hash.update(&self.buffer[..count]);
        self.received += count as u64;
        Ok(count > 0)
    }

    /// curl's own reports, and the checksums of what it wrote: of the first download, and of those beside it.
    pub(crate) async fn end(self) -> anyhow::Result<(Fetched, Vec<Fetched>)> {
        drop(self.body);
        let output = self.child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Of transfers that are parallel it shows its progress as well, on the same lines.
        let reports = said.lines().filter_map(|line| line.get(line.find('{')?..));
        let reports = reports.filter_map(|report| serde_json::from_str(report).ok());
        let mut reports: Vec<Curl> = reports.collect();
        // As they are on its command line.
        reports.sort_unstable_by_key(|curl| curl.urlnum);
        let ended = || format!("curl ended with {}: {}", output.status, said.trim());
        let mut reports = reports.into_iter();
        let curl = reports.next().with_context(ended)?;
        anyhow::ensure!(reports.len() == self.beside.len(), ended());
        let mut beside = Vec::new();
        for (curl, (pipe, hash)) in reports.zip(self.beside) {
            // curl's end of it is closed.
            drop(pipe);
            let sha256_received = hash.await??;
            beside.push(Fetched {
                curl,
                sha256_received,
            });
        }
        let first = Fetched {
            curl,
            sha256_received: hex(&self.hash.finalize()),
        };
        Ok((first, beside))
    }
}

async fn hash(mut body: impl AsyncRead + Unpin) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = body.read(&mut buffer).await?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}
