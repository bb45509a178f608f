//! How much a target holds for others at a time: for each host that offers connections, and for all
//! of them together, so that one cannot take the room of the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{Code, Refusal};
use super::TargetConfig;

/// What waits for COMMIT, and how much of it may.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Admission {
    each: Usage,
    all: Usage,
    together: Usage,
    /// Only hosts that have something: a host that was refused leaves nothing here.
    by_host: BTreeMap<Arc<str>, Usage>,
}

/// What handovers use of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Usage {
    pub(super) handovers: usize,
    pub(super) bytes: usize,
}

impl Usage {
    fn with(self, more: Self) -> Self {
        Self {
            handovers: self.handovers + more.handovers,
            bytes: self.bytes.saturating_add(more.bytes),
        }
    }

    fn without(self, less: Self) -> Self {
        Self {
            handovers: self.handovers - less.handovers,
            bytes: self.bytes - less.bytes,
        }
    }

    /// Why it is more than may be used `by` somebody.
    fn check(self, limit: Self, by: &str) -> Result<(), Refusal> {
        let full = |reason| Err(Refusal::new(Code::Full, reason));
        if self.handovers > limit.handovers {
            return full(format!(
                "full: {} connections wait for COMMIT here, as many as this host allows {by}",
                self.handovers - 1
            ));
        }
        if self.bytes > limit.bytes {
            return full(format!(
                "full: the images that wait for COMMIT here would have {} bytes with it, more than the {} that this host allows {by}",
                self.bytes, limit.bytes
            ));
        }
        Ok(())
    }
}

impl Admission {
    pub(super) fn new(config: &TargetConfig) -> Self {
        Self {
            each: Usage {
                handovers: config.prepared_by_each,
                bytes: config.bytes_by_each,
            },
            all: Usage {
                handovers: config.prepared_at_once,
                bytes: config.bytes_prepared,
            },
            together: Usage::default(),
            by_host: BTreeMap::new(),
        }
    }

    /// Takes room for an image of so many bytes from this host; or why it is refused.
    pub(super) fn admit(&mut self, from: &Arc<str>, bytes: usize) -> Result<(), Refusal> {
        let one = Usage {
            handovers: 1,
            bytes,
        };
        let by_host = self.by_host.get(from).copied().unwrap_or_default();
        by_host.with(one).check(self.each, "one other")?;
        let together = self.together.with(one);
        together.check(self.all, "all others together")?;
        self.change(from, Usage::default(), one);
        Ok(())
    }

    /// Whether there is room for so many more bytes of a handover of this host; or why not.
    pub(super) fn admit_bytes(&self, from: &Arc<str>, bytes: usize) -> Result<(), Refusal> {
        let more = Usage {
            handovers: 0,
            bytes,
        };
        let by_host = self.by_host.get(from).copied().unwrap_or_default();
        by_host.with(more).check(self.each, "one other")?;
        self.together
            .with(more)
            .check(self.all, "all others together")
    }

    /// A handover of this host uses less than before, or more.
    pub(super) fn change(&mut self, from: &Arc<str>, before: Usage, after: Usage) {
        if before == after {
            return;
        }
        self.together = self.together.with(after).without(before);
        let by_host = self.by_host.entry(from.clone()).or_default();
        *by_host = by_host.with(after).without(before);
        if by_host.handovers == 0 {
            self.by_host.remove(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(&TargetConfig {
            prepared_by_each: 2,
            bytes_by_each: 100,
            prepared_at_once: 3,
            bytes_prepared: 150,
            ..TargetConfig::default()
        })
    }

    fn used(bytes: usize) -> Usage {
        Usage {
            handovers: 1,
            bytes,
        }
    }

    #[test]
    fn one_host_does_not_take_the_places_of_others() {
        let (mut admission, a, b) = (admission(), "a".into(), "b".into());
        let is = |refused: Result<(), Refusal>, why: &str| {
            refused.is_err_and(|refusal| refusal.code == Code::Full && refusal.reason.contains(why))
        };
        admission.admit(&a, 1).unwrap();
        admission.admit(&a, 1).unwrap();
        assert!(is(admission.admit(&a, 1), "one other"));
        admission.admit(&b, 1).unwrap();
        assert!(is(admission.admit(&b, 1), "together"));
        admission.change(&a, used(1), Usage::default());
        admission.admit(&b, 1).unwrap();
        admission.change(&a, used(1), Usage::default());
        assert!(is(admission.admit(&b, 1), "one other"));
    }

    #[test]
    fn nor_their_bytes() {
        let (mut admission, a, b, c) = (admission(), "a".into(), "b".into(), "c".into());
        assert!(admission.admit(&a, 101).is_err());
        admission.admit(&a, 100).unwrap();
        assert!(admission.admit(&a, 1).is_err());
        assert!(admission.admit(&b, 51).is_err());
        admission.admit(&b, 50).unwrap();
        admission.change(&a, used(100), Usage::default());
        // What was built is gone; its place is still taken.
        admission.change(&b, used(50), used(0));
        admission.admit(&b, 100).unwrap();
        admission.change(&b, used(100), Usage::default());
        admission.admit(&b, 50).unwrap();
        assert!(admission.admit(&c, usize::MAX).is_err());
    }

    #[test]
    fn what_was_refused_or_given_back_leaves_nothing() {
        let mut admission = admission();
        for n in 0..1000 {
            let from = n.to_string().as_str().into();
            if admission.admit(&from, 1 + n).is_ok() {
                admission.change(&from, used(1 + n), Usage::default());
            }
        }
        assert_eq!(admission.together, Usage::default());
        assert!(admission.by_host.is_empty());
    }
}
