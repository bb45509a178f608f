//! The processes of a measurement: source, target and peer.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tcpmig::driver::{Acceptor, Destination, Ending, Mover, Options, Outcome};
use tcpmig::steer::Redirected;
use tcpmig_sys::fcntl;
use tcpmig_sys::process::descriptors;
use tcpmig_transport::{Authorities, Endpoint, Identity, TransportLimits, Trust};
use tokio::task::JoinSet;

use super::figures::Moves;

/// The verb of such a process.
pub(crate) const PART: &str = "bench-part";
/// How long a redirect lasts: longer than any measurement.
const REDIRECTED: Duration = Duration::from_secs(3600);
/// How long a connection may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Descriptors of a process beside its connections.
const OTHERS: u32 = 64;

#[derive(Debug, Args)]
pub(crate) struct PartArgs {
    name: Name,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    Source,
    Target,
    Peer,
}

/// The first line that such a process reads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) service: SocketAddr,
    pub(crate) source: SocketAddr,
    pub(crate) target: SocketAddr,
    /// The target's address on the switch, where packets are redirected to.
    pub(crate) hop: IpAddr,
    pub(crate) other_name: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) authority: String,
    pub(crate) single: usize,
    pub(crate) many: usize,
}

impl Setup {
    fn connections(&self) -> usize {
        self.single + self.many
    }

    fn endpoint(&self, address: SocketAddr) -> anyhow::Result<Endpoint> {
        let identity = Identity::from_pem(self.certificate.as_bytes(), self.key.as_bytes())?;
        let authorities = Authorities::from_pem(self.authority.as_bytes())?;
        let trust = Trust::only(authorities, [&self.other_name]);
        let limits = TransportLimits::default();
        Ok(Endpoint::bind(address, &identity, &trust, limits)?)
    }
}

/// What it says, a line each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    Ready,
    /// All connections are there.
    Connected,
    /// What became of those that move one by one, and then of those that move at once.
    Moved(Moves),
    /// How many connections have answered.
    Alive(usize),
}

fn say(said: &Said) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// Waits until the one who started this process says to go on.
fn hear() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    ensure!(!line.is_empty(), "the measurement is over");
    Ok(line)
}

pub(crate) fn main_part(args: &PartArgs) -> anyhow::Result<ExitCode> {
    let setup: Setup = serde_json::from_str(&hear()?).context("set-up")?;
    descriptors::raise_limit()?;
    let needed = u32::try_from(setup.connections()).unwrap_or(u32::MAX);
    let enough = descriptors::reserve(needed.saturating_add(OTHERS));
    enough.with_context(|| format!("{needed} connections need as many descriptors"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match args.name {
        Name::Source => runtime.block_on(source(&setup))?,
        Name::Target => runtime.block_on(target(&setup))?,
        Name::Peer => peer(&setup)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn source(setup: &Setup) -> anyhow::Result<()> {
    let listener = TcpListener::bind(setup.service)?;
    let endpoint = setup.endpoint(setup.source)?;
    let locker = Arc::new(tcpmig::locker::nftables()?);
    let to = Destination {
        address: setup.target,
        name: setup.other_name.clone(),
        steer: Arc::new(Redirected::new(setup.hop, REDIRECTED)?),
    };
    say(&Said::Ready)?;
    let mut sockets: Vec<OwnedFd> = Vec::with_capacity(setup.connections());
    for _ in 0..setup.connections() {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        sockets.push(stream.into());
    }
    // Not what is measured: hosts that move connections know each other.
    endpoint.connect(setup.target, &to.name).await?;
    say(&Said::Connected)?;
    hear()?;
    let mover = Mover::new(endpoint, locker, Options::default());
    let many = sockets.split_off(setup.single);
    let mut outcomes = Vec::with_capacity(setup.single);
    let begin = Instant::now();
    for socket in sockets {
        outcomes.push(mover.move_out(socket, None, &to).await);
    }
    say(&Said::Moved(moves(begin.elapsed(), &outcomes)?))?;
    outcomes.clear();
    let begin = Instant::now();
    let mut moving = mover.move_all(many, &to);
    while let Some(outcome) = moving.next().await {
        outcomes.push(outcome);
    }
    say(&Said::Moved(moves(begin.elapsed(), &outcomes)?))?;
    // Until the end the packets are forwarded.
    let _ = hear();
    Ok(())
}

fn moves(taken: Duration, outcomes: &[Outcome]) -> anyhow::Result<Moves> {
    for outcome in outcomes {
        match &outcome.ending {
            Ending::Moved => {}
            Ending::Kept { reason, .. } => bail!("a connection did not move: {reason}"),
            other => bail!("a connection did not move: {other:?}"),
        }
    }
    let reports: Vec<_> = outcomes.iter().map(|outcome| outcome.report).collect();
    Ok(Moves::new(taken.as_secs_f64(), &reports))
}

async fn target(setup: &Setup) -> anyhow::Result<()> {
    let endpoint = setup.endpoint(setup.target)?;
    let locker = Arc::new(tcpmig::locker::nftables()?);
    let mut arrivals = Acceptor::new(endpoint, locker).serve();
    say(&Said::Ready)?;
    let mut echoes = JoinSet::new();
    for _ in 0..setup.connections() {
        let arrived = arrivals.next().await.context("no more arrive")?;
        fcntl::set_non_blocking(arrived.socket.as_fd(), true)?;
        echoes.spawn(echo(arrived.socket));
    }
    // The peer ends them.
    while echoes.join_next().await.is_some() {}
    Ok(())
}

/// Answers each byte with itself.
async fn echo(socket: OwnedFd) -> std::io::Result<()> {
    let stream = tokio::net::TcpStream::from_std(TcpStream::from(socket))?;
    let (mut read, mut write) = stream.into_split();
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(())
}

fn peer(setup: &Setup) -> anyhow::Result<()> {
    let mut streams = Vec::with_capacity(setup.connections());
    for _ in 0..setup.connections() {
        let stream = TcpStream::connect(setup.service).context("connect to the service")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        streams.push(stream);
    }
    say(&Said::Connected)?;
    hear()?;
    let answers = |stream: &mut TcpStream| {
        let mut byte = [0];
        let answered = stream
            .write_all(b"?")
            .and_then(|()| stream.read_exact(&mut byte));
        answered.is_ok() && byte == *b"?"
    };
    let alive = streams
        .iter_mut()
        .map(answers)
        .filter(|alive| *alive)
        .count();
    say(&Said::Alive(alive))
}
