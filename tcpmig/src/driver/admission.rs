//! How much a target holds for others at a time: for each host that offers connections, and for all
//! of them together, so that one cannot take the room of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tcpmig_sys::process::descriptors;

use super::Options;

/// What waits for COMMIT, and how much of it may.
pub(super) struct Admission {
    each: Usage,
    together: Usage,
    reserved_descriptors: u64,
    raise_descriptors: bool,
    used: Mutex<Used>,
}

#[derive(Clone, Copy, Default)]
struct Usage {
    handovers: usize,
    octets: usize,
}

#[derive(Default)]
struct Used {
    together: Usage,
    /// Only hosts that have something: a host that was refused leaves nothing here.
    by_host: HashMap<Arc<str>, Usage>,
}

/// What one handover has of it, until this is dropped.
pub(super) struct Permit {
    admission: Arc<Admission>,
    from: Arc<str>,
    octets: usize,
}

impl Usage {
    fn with(self, octets: usize) -> Self {
        Self {
            handovers: self.handovers + 1,
            octets: self.octets.saturating_add(octets),
        }
    }

    fn without(self, octets: usize) -> Self {
        Self {
            handovers: self.handovers - 1,
            octets: self.octets - octets,
        }
    }

    /// Why it is more than may be used `by` somebody.
    fn check(self, limit: Self, by: &str) -> Result<Self, String> {
        if self.handovers > limit.handovers {
            return Err(format!(
                "full: {} connections wait for COMMIT here, as many as this host allows {by}",
                self.handovers - 1
            ));
        }
        if self.octets > limit.octets {
            return Err(format!(
                "full: the images that wait for COMMIT here would have {} octets with it, more than the {} that this host allows {by}",
                self.octets, limit.octets
            ));
        }
        Ok(self)
    }
}

impl Admission {
    pub(super) fn new(options: &Options) -> Arc<Self> {
        Arc::new(Self {
            each: Usage {
                handovers: options.prepared_by_each,
                octets: options.octets_by_each,
            },
            together: Usage {
                handovers: options.prepared_at_once,
                octets: options.octets_prepared,
            },
            reserved_descriptors: options.reserved_descriptors,
            raise_descriptors: options.raise_descriptors,
            used: Mutex::default(),
        })
    }

    /// For an image of so many octets, from this host; or why it is refused.
    pub(super) fn admit(
        self: &Arc<Self>,
        from: &Arc<str>,
        octets: usize,
    ) -> Result<Permit, String> {
        let mut used = self.used();
        let by_host = used.by_host.get(from).copied().unwrap_or_default();
        let by_host = by_host.with(octets).check(self.each, "one other")?;
        let together = used.together.with(octets);
        used.together = together.check(self.together, "all others together")?;
        used.by_host.insert(from.clone(), by_host);
        Ok(Permit {
            admission: self.clone(),
            from: from.clone(),
            octets,
        })
    }

    /// Leaves the application the descriptors that it needs to go on: at the limit its own `accept` would fail, with
    /// EMFILE, for connections that arrive from here. Raises the limit first if the process may.
    pub(super) fn check_descriptors(&self) -> Result<(), String> {
        let failed = |error: tcpmig_sys::Error| format!("descriptors: {error}");
        let (mut limit, hard) = descriptors::limit().map_err(failed)?;
        // A process with a low limit does not need so many itself.
        let reserved = |limit: u64| self.reserved_descriptors.min(limit / 4);
        let mut room = descriptors::room().map_err(failed)?;
        if room <= reserved(limit) && limit < hard && self.raise_descriptors {
            descriptors::raise_limit().map_err(failed)?;
            tracing::info!("RLIMIT_NOFILE was raised from {limit} to {hard}: {room} were left");
            (limit, room) = (hard, descriptors::room().map_err(failed)?);
        }
        if room <= reserved(limit) {
            return Err(format!(
                "full: {room} descriptors are left of {limit} (RLIMIT_NOFILE), and the application keeps {}",
                reserved(limit)
            ));
        }
        Ok(())
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        // The numbers are right after each statement.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// What was built is gone; its place is still taken.
    pub(super) fn give_back_octets(&mut self) {
        let octets = std::mem::take(&mut self.octets);
        let mut used = self.admission.used();
        used.together.octets -= octets;
        if let Some(by_host) = used.by_host.get_mut(&self.from) {
            by_host.octets -= octets;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.admission.used();
        used.together = used.together.without(self.octets);
        if let Some(by_host) = used.by_host.get_mut(&self.from) {
            *by_host = by_host.without(self.octets);
            if by_host.handovers == 0 {
                used.by_host.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Arc<Admission> {
        Admission::new(&Options {
            prepared_by_each: 2,
            octets_by_each: 100,
            prepared_at_once: 3,
            octets_prepared: 150,
            ..Options::default()
        })
    }

    fn host(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn one_host_does_not_take_the_places_of_others() {
        let admission = admission();
        let admit = |from: &str| admission.admit(&host(from), 1);
        let (first, second) = (admit("a").unwrap(), admit("a").unwrap());
        assert!(admit("a").is_err_and(|why| why.contains("one other")));
        let _third = admit("b").unwrap();
        assert!(admit("b").is_err_and(|why| why.contains("together")));
        drop(first);
        let _again = admit("b").unwrap();
        drop(second);
        assert!(admit("b").is_err_and(|why| why.contains("one other")));
    }

    #[test]
    fn nor_their_octets() {
        let admission = admission();
        let admit = |from: &str, octets| admission.admit(&host(from), octets);
        assert!(admit("a", 101).is_err_and(|why| why.contains("octets")));
        let first = admit("a", 100).unwrap();
        assert!(admit("a", 1).is_err());
        assert!(admit("b", 51).is_err_and(|why| why.contains("together")));
        let mut second = admit("b", 50).unwrap();
        drop(first);
        second.give_back_octets();
        drop(admit("b", 100).unwrap());
        admit("b", 50).unwrap();
        assert!(admit("c", usize::MAX).is_err());
    }

    #[test]
    fn what_was_refused_or_given_back_leaves_nothing() {
        let admission = admission();
        for n in 0..1000 {
            drop(admission.admit(&host(&n.to_string()), 1 + n));
        }
        let used = admission.used();
        assert_eq!((used.together.handovers, used.together.octets), (0, 0));
        assert!(used.by_host.is_empty());
    }
}
