//! A locker of one's own: it remembers in memory which flows are locked, and prints what a real one would do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tcpmig_lock::{
    Entry, EntryKind, FourTuple, Held, LockError, LockGuard, Locker, NextHop, Redirecting, Swept,
};

#[derive(Default)]
struct Printing {
    /// When the lease of each locked flow ends.
    locks: Arc<Mutex<HashMap<FourTuple, Instant>>>,
}

impl Locker for Printing {
    fn name(&self) -> &'static str {
        "printing"
    }

    fn lock(&self, flows: &[FourTuple], lease: Duration) -> Result<LockGuard, LockError> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let held = |flow: &&FourTuple| locks.get(flow).is_some_and(|end| *end > now);
        if let Some(flow) = flows.iter().find(held) {
            return Err(LockError::AlreadyLocked(*flow));
        }
        for flow in flows {
            println!("lock {flow} for {lease:?}");
            locks.insert(*flow, now + lease);
        }
        let held = PrintingLock(Arc::clone(&self.locks));
        Ok(LockGuard::new(flows.to_vec(), Box::new(held)))
    }

    fn sweep(&self) -> Result<Swept, LockError> {
        let now = Instant::now();
        let mut swept = Swept::default();
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|flow, end| {
            let holds = *end > now;
            if !holds {
                swept.flows.push(*flow);
            }
            holds
        });
        Ok(swept)
    }

    fn list(&self) -> Result<Vec<Entry>, LockError> {
        let now = Instant::now();
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |(flow, end): (&FourTuple, &Instant)| {
            Entry::new(*flow, EntryKind::Lock, end.saturating_duration_since(now))
        };
        Ok(locks.iter().map(entry).collect())
    }
}

struct PrintingLock(Arc<Mutex<HashMap<FourTuple, Instant>>>);

impl Held for PrintingLock {
    fn renew(&mut self, flows: &[FourTuple], lease: Duration) -> Result<(), LockError> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let ended = |flow: &&FourTuple| locks.get(flow).is_none_or(|end| *end <= now);
        if let Some(flow) = flows.iter().find(ended) {
            return Err(LockError::NotHeld(*flow));
        }
        locks.extend(flows.iter().map(|flow| (*flow, now + lease)));
        Ok(())
    }

    fn unlock(&mut self, flows: &[FourTuple]) -> Result<(), LockError> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for flow in flows {
            println!("unlock {flow}");
            locks.remove(flow);
        }
        Ok(())
    }

    fn redirect(
        &mut self,
        _flows: &[FourTuple],
        _hop: &NextHop,
        _lease: Duration,
    ) -> Result<Box<dyn Redirecting>, LockError> {
        Err(LockError::Unsupported {
            locker: "printing",
            operation: "redirect",
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let locker: Box<dyn Locker> = Box::new(Printing::default());
    let flow: FourTuple = "10.0.0.1:80,10.0.0.9:51234".parse()?;
    let guard = locker.lock(&[flow], Duration::from_secs(30))?;
    let again = locker.lock(&[flow], Duration::from_secs(30));
    println!(
        "again: {}",
        again.err().map_or_else(String::new, |e| e.to_string())
    );
    println!("held: {:?}", locker.list()?);
    guard.unlock()?;
    Ok(())
}
