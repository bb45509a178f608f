//! Measures what hosts that connect see while strangers send first packets without end: how many get through, how long that
//! takes, what a connection from before sees, and what the endpoint holds.
//!
//! `cargo run --release -p tcpmig-transport --features keys --example flood`
//!
//! The packets are real Initials from 200 addresses of the loopback. Three kinds: clients that hear nothing; the same from
//! the address of the host that connects; clients that answer a Retry and then fall silent. Kinds and packets per second can be given:
//! `-- deaf 5000`, `-- same 750`, `-- silent 750`.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_transport::keys::Authority;
use tcpmig_transport::{
    Authorities, Endpoint, Exchange, Identity, Peer, TransportError, TransportLimits, Trust,
};

#[path = "../tests/transport/flood.rs"]
mod flood;
use flood::{Flood, Kind, stranger};

const TARGET: &str = "target.example";
const HOSTS: usize = 20;
const ADDRESSES: usize = 200;
/// What the flood does before the hosts connect.
const LEAD: Duration = Duration::from_secs(3);

fn host(authority: &Authority, name: &str) -> Result<Endpoint, Box<dyn Error>> {
    let issued = authority.issue(name)?;
    let identity = Identity::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())?;
    let authorities = Authorities::from_pem(authority.ca_pem().as_bytes())?;
    Ok(Endpoint::bind(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        &identity,
        &Trust::anyone_signed_by(authorities),
        TransportLimits::default(),
    )?)
}

async fn serve(endpoint: Endpoint) {
    while let Some(peer) = endpoint.accept().await {
        let Ok(peer) = peer else { continue };
        tokio::spawn(async move {
            while let Some(Ok(exchange)) = peer.accept().await {
                tokio::spawn(answer(exchange));
            }
        });
    }
}

/// Answers each frame with itself.
async fn answer(mut exchange: Exchange) -> Result<(), TransportError> {
    while let Some(frame) = exchange.recv().await? {
        exchange.send(frame).await?;
    }
    exchange.finish().await
}

/// Round trips on a connection from before, until it is aborted.
async fn round_trips(
    peer: Peer,
    times: tokio::sync::mpsc::UnboundedSender<Duration>,
) -> Result<(), TransportError> {
    let mut exchange = peer.open().await?;
    loop {
        let start = Instant::now();
        exchange.send(Bytes::from_static(&[7; 1024])).await?;
        exchange.recv().await?;
        if times.send(start.elapsed()).is_err() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let Some(last) = times.last() else {
        return "none".to_owned();
    };
    let median = times[times.len() / 2];
    format!("median {median:.1?}, longest {last:.1?}")
}

/// In KiB, of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

async fn measure(title: &str, kind: Option<Kind>) -> Result<(), Box<dyn Error>> {
    let authority = Authority::create("example")?;
    let target = host(&authority, TARGET)?;
    let address = target.local_addr()?;
    let serving = tokio::spawn(serve(target.clone()));
    let before = host(&authority, "before.example")?;
    let peer = before.connect(address, TARGET).await?;
    let (times, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let going_on = tokio::spawn(round_trips(peer, times));
    let sources: Result<Vec<_>, _> = (0..HOSTS)
        .map(|i| host(&authority, &format!("source{i}.example")))
        .collect();

    let memory = resident();
    let flood = kind
        .map(|kind| Flood::begin(kind, address, TARGET))
        .transpose()?;
    let begin = Instant::now();
    if flood.is_some() {
        tokio::time::sleep(LEAD).await;
    }
    let (mut connected, mut failed) = (Vec::new(), 0);
    for source in sources? {
        let start = Instant::now();
        match source.connect(address, TARGET).await {
            Ok(_) => connected.push(start.elapsed()),
            Err(_) => failed += 1,
        }
    }
    let (took, more) = (begin.elapsed(), resident().saturating_sub(memory));
    let sent = flood.as_ref().map_or(0, Flood::sent);
    let knocks = target.knocks();
    drop(flood);
    going_on.abort();
    let mut round_trips = Vec::new();
    while let Ok(time) = seen.try_recv() {
        round_trips.push(time);
    }
    println!("{title}: {sent} packets in {took:.1?}");
    println!(
        "  {} of {HOSTS} hosts connected, {failed} failed; {}",
        connected.len(),
        quantiles(connected)
    );
    println!(
        "  {} round trips before and beside: {}",
        round_trips.len(),
        quantiles(round_trips)
    );
    println!("  {more} KiB more; {knocks:?}\n");
    target.close("done").await;
    serving.abort();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rate = |kind: &str, usual| match arguments.as_slice() {
        [] => Ok(Some(usual)),
        [wanted] => Ok((wanted == kind).then_some(usual)),
        [wanted, rate, ..] => rate.parse().map(|rate| (wanted == kind).then_some(rate)),
    };
    if arguments.is_empty() {
        measure("no flood", None).await?;
    }
    if let Some(rate) = rate("deaf", 750)? {
        measure(
            "clients that hear nothing",
            Some(Kind::deaf(ADDRESSES, rate)),
        )
        .await?;
    }
    if let Some(rate) = rate("same", 750)? {
        let kind = Kind {
            from: vec![Ipv4Addr::LOCALHOST; ADDRESSES],
            rate,
            listens: false,
        };
        measure(
            "the same, all from the address of the hosts that connect",
            Some(kind),
        )
        .await?;
    }
    if let Some(rate) = rate("silent", 750)? {
        let kind = Kind {
            from: (0..ADDRESSES).map(stranger).collect(),
            rate,
            listens: true,
        };
        measure("clients that answer a Retry and fall silent", Some(kind)).await?;
    }
    Ok(())
}
