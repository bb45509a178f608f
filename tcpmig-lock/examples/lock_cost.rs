//! What a lock costs here, without and with capture: the time of one call for 1, 1000 and 10 000 flows.
//!
//! It makes its table in the network namespace that it runs in: `unshare -Urn cargo run --example lock_cost` keeps it
//! out of the host's (and shows the cost with an ordinary user's buffers), `sudo unshare -n ..` that of root.

use std::time::{Duration, Instant};

use tcpmig_lock::{FourTuple, LockError, Locker, Nftables};

const LEASE: Duration = Duration::from_secs(60);

fn flows(count: u16) -> Vec<FourTuple> {
    let flow = |number: u16| format!("10.0.0.1:80,10.{}.{}.9:1025", number >> 8, number & 255);
    (0..count)
        .map(|number| flow(number).parse().expect("a flow"))
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn measure(what: &str, locker: &Nftables) -> Result<(), LockError> {
    locker.prepare()?;
    for (count, rounds) in [(1, 2001), (1000, 51), (10_000, 11)] {
        let flows = flows(count);
        let (mut lock, mut unlock) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let start = Instant::now();
            let guard = locker.lock(&flows, LEASE)?;
            lock.push(start.elapsed());
            let start = Instant::now();
            guard.unlock()?;
            unlock.push(start.elapsed());
        }
        println!(
            "{what}, {count} flows: lock {:?}, unlock {:?} (medians of {rounds})",
            median(lock),
            median(unlock)
        );
    }
    Ok(())
}

fn main() -> Result<(), LockError> {
    measure("plain", &Nftables::new()?)?;
    measure("capturing", &Nftables::new()?.capturing(8 << 20)?)
}
