//! What a lock costs with each locker, as a table: the time of one call for 1 to 10 000 flows, and what it adds to the
//! round trip of an unrelated connection. `cargo bench -p tcpmig-lock` as root, or `unshare -Urn cargo bench ..`, which
//! shows the cost with an ordinary user's buffers. It works in network namespaces of its own.
//!
//! `cargo bench -p tcpmig-lock --bench lock -- --list`: how long it takes to list many redirects.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tcpmig_lock::conformance::Ground;
use tcpmig_lock::conformance::lab::Connection;
use tcpmig_lock::{Backend, FourTuple, LockError, Locker, NextHop, Nftables};

const LEASE: Duration = Duration::from_secs(600);
/// How many flows, and how often they are locked with a locker that starts programs, and with one that does not.
const COUNTS: [(u16, usize, usize); 4] = [
    (1, 51, 2001),
    (100, 21, 501),
    (1_000, 5, 51),
    (10_000, 3, 11),
];
const ROUND_TRIPS: usize = 2000;

fn flows(count: u16) -> Vec<FourTuple> {
    let flow = |number: u16| format!("10.0.0.1:80,10.9.{}.{}:1025", number >> 8, number & 255);
    (0..count)
        .map(|number| flow(number).parse().expect("a flow"))
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Three digits, and the unit.
fn short(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        us if us < 100.0 => format!("{us:.1} µs"),
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e5 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.0} ms", us / 1e3),
    }
}

fn round_trip(connection: &mut Connection) -> Duration {
    let once = |_| {
        let start = Instant::now();
        connection.ping();
        start.elapsed()
    };
    // One ping is two trips there and back again, less the one that is under way already.
    median((0..ROUND_TRIPS).map(once).collect())
}

fn measure(name: &str, ground: &Ground, locker: &dyn Locker, slow: bool) -> Result<(), LockError> {
    let mut row = vec![name.to_owned()];
    drop(locker.lock(&flows(1), LEASE)?);
    for (count, few, many) in COUNTS {
        let flows = flows(count);
        let (mut lock, mut unlock) = (Vec::new(), Vec::new());
        for _ in 0..if slow { few } else { many } {
            let start = Instant::now();
            let guard = locker.lock(&flows, LEASE)?;
            lock.push(start.elapsed());
            let start = Instant::now();
            guard.unlock()?;
            unlock.push(start.elapsed());
        }
        row.push(format!(
            "{} / {}",
            short(median(lock)),
            short(median(unlock))
        ));
    }
    // On the device that no locker unplugs.
    let mut other = ground.connection(Ground::other_addresses()[0]);
    let before = round_trip(&mut other);
    let guard = locker.lock(&flows(10_000), LEASE)?;
    let during = round_trip(&mut other);
    guard.unlock()?;
    row.push(format!("{} → {}", short(before), short(during)));
    println!("| {} |", row.join(" | "));
    Ok(())
}

/// How long it takes to list very many redirects.
fn list(ground: &Ground) -> Result<(), LockError> {
    println!("\n| redirects | listed in |\n|---|---|");
    let locker = ground.server.run(Nftables::new)?;
    ground.server.ip("link set lo up");
    let hop = NextHop {
        device: "lo".to_owned(),
        address: Ipv4Addr::new(10, 0, 0, 2).into(),
        ingress: "lo".to_owned(),
    };
    let mut redirected = 0_u32;
    for count in [1_000, 20_000, 100_000, 200_000] {
        while redirected < count {
            let flow = |number: u32| {
                let local = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 80));
                let [_, a, b, c] = number.to_be_bytes();
                let peer = SocketAddr::from((Ipv4Addr::new(10, a + 1, b, c), 1025));
                FourTuple::new(local, peer).expect("a flow")
            };
            let flows: Vec<_> = (redirected..redirected + 1000).map(flow).collect();
            locker.lock(&flows, LEASE)?.redirect(&hop, LEASE)?.detach();
            redirected += 1000;
        }
        let start = Instant::now();
        let entries = locker.list()?;
        let took = start.elapsed();
        assert_eq!(entries.len() as u32, count, "all are listed");
        println!("| {count} | {} |", short(took));
    }
    Ok(())
}

fn main() -> Result<(), LockError> {
    if std::env::args().any(|argument| argument == "--list") {
        return list(&Ground::new());
    }
    println!(
        "| locker | 1 flow | 100 | 1 000 | 10 000 | bytes there and back with 10 000 locked |"
    );
    println!("|---|---|---|---|---|---|");
    let ground = Ground::new();
    let open = |name: &str| {
        let backend: Backend = name.parse()?;
        ground.server.run(|| backend.open())
    };
    measure("nftables", &ground, &*open("nftables")?, false)?;
    let capturing = ground.server.run(|| Nftables::new()?.capturing(8 << 20))?;
    measure("nftables, capturing", &ground, &capturing, false)?;
    for name in ["iptables-nft", "iptables-legacy"] {
        match measure(name, &ground, &*open(name)?, true) {
            Err(error @ LockError::Program { .. }) => println!("| {name} | {error} | | | | |"),
            result => result?,
        }
    }
    let port = Backend::Link("port1".to_owned());
    let port = ground.switch.run(|| port.open())?;
    measure("link, a port off its bridge", &ground, &*port, true)?;
    measure("link, down and up", &ground, &*open("link:eth0")?, true)?;
    measure("none", &ground, &*open("none")?, false)
}
