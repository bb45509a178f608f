//! Shows what the transport's tuning gives on the loopback of this host: the round trip of a small
//! frame, and how long big frames take, on a warm connection and on one just made.
//!
//! `cargo run --release -p tcpmig-transport --features keys --example ping`

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tcpmig_transport::keys::Authority;
use tcpmig_transport::{
    Authorities, Endpoint, Exchange, Identity, TransportError, TransportLimits, Trust,
};

const SOURCE: &str = "source.example";
const TARGET: &str = "target.example";
const ROUND_TRIPS: usize = 5000;
const REPEATS: usize = 15;

fn host(authority: &Authority, name: &str) -> Result<Endpoint, Box<dyn Error>> {
    let issued = authority.issue(name)?;
    let identity = Identity::from_pem(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())?;
    let authorities = Authorities::from_pem(authority.ca_pem().as_bytes())?;
    let trust = Trust::anyone_signed_by(authorities);
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    Ok(Endpoint::bind(
        any_port,
        &identity,
        &trust,
        TransportLimits::default(),
    )?)
}

/// Answers each frame: a small one with itself, a big one with an empty frame.
async fn answer(mut exchange: Exchange) -> Result<(), TransportError> {
    while let Some(frame) = exchange.recv().await? {
        let answer = if frame.len() <= 1024 {
            frame
        } else {
            Bytes::new()
        };
        exchange.send(answer).await?;
    }
    exchange.finish().await
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

async fn round_trip(exchange: &mut Exchange, frame: &Bytes) -> Result<Duration, TransportError> {
    let start = Instant::now();
    exchange.send(frame.clone()).await?;
    exchange.recv().await?;
    Ok(start.elapsed())
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6
}

async fn measure() -> Result<(), Box<dyn Error>> {
    let authority = Authority::create("ping")?;
    let (source, target) = (host(&authority, SOURCE)?, host(&authority, TARGET)?);
    let address = target.local_addr()?;
    tokio::spawn(serve(target));

    let peer = source.connect(address, TARGET).await?;
    let mut exchange = peer.open().await?;
    let small = Bytes::from(vec![7; 1024]);
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        times.push(round_trip(&mut exchange, &small).await?);
    }
    println!(
        "   1 KiB round trip, warm: p50 {:.0} us, p99 {:.0} us",
        percentile(&mut times, 50),
        percentile(&mut times, 99)
    );

    for mib in [1, 4, 16] {
        let image = Bytes::from(vec![7; mib << 20]);
        let (mut warm, mut fresh, mut connecting) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            warm.push(round_trip(&mut peer.open().await?, &image).await?);

            let other = host(&authority, SOURCE)?;
            let start = Instant::now();
            let other_peer = other.connect(address, TARGET).await?;
            connecting.push(start.elapsed());
            fresh.push(round_trip(&mut other_peer.open().await?, &image).await?);
            other.close("measured").await;
        }
        println!(
            "  {mib:2} MiB until answered:   p50 {:.1} ms warm, {:.1} ms fresh (after {:.1} ms connecting), p90 {:.1} and {:.1} ms",
            percentile(&mut warm, 50) / 1e3,
            percentile(&mut fresh, 50) / 1e3,
            percentile(&mut connecting, 50) / 1e3,
            percentile(&mut warm, 90) / 1e3,
            percentile(&mut fresh, 90) / 1e3,
        );
    }
    source.close("measured").await;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("both hosts on one thread:");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure())?;
    println!("both hosts on a pool of threads:");
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(measure())
}
