//! Who of those that knock is let to a handshake, who has to show its address first, and who gets no answer.
//!
//! Anybody can send a first packet, with any source address, and it costs nothing to make. What it makes this host hold and
//! do has to be bounded, and those that really want to connect have to find a place all the same:
//!
//! 1. While few handshakes are under way everybody may begin one at once.
//! 2. Above that, a host has to come back with a token that only its address can have got (QUIC Retry). This host keeps
//!    nothing meanwhile. An address that is shown this way is *proven*. Those that are not never take a proven one's place.
//! 3. An address has a share of the handshakes, failed ones included for as long as QUIC has to remember them.
//! 4. The last quarter of all places is for addresses that have none: a few that take all they can get shut nobody out.
//! 5. A handshake whose place is wanted makes way once it has had its time: the oldest of the address that has the most. So an
//!    address that takes all it can get is never one that has none.
//! 6. Answers without a handshake have a rate, so that this host is of no use to flood others. Each socket address draws
//!    from one slot of many, which changes from second to second: one that asks without end empties its own.
//!
//! No I/O and no clock in here. [`Knocking::judge`] says what to do, [`Knocking::admit`] and
//! [`Knocking::end`] say that it was done.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::limits::TransportLimits;
use crate::peer::canonical;

/// Slots from which answers are drawn.
const SLOTS: usize = 256;
/// Pause between two reports.
const REPORTS: Duration = Duration::from_secs(10);

/// What to do with one that knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Let it begin a handshake, in place of another one or not.
    Admit { instead_of: Option<Id> },
    /// Have it show that it is where it says.
    Retry,
    /// No answer. A host that means it sends its packet again.
    Ignore,
}

/// Names a handshake; a later one has a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u64);

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The host is let in.
    LetIn,
    /// It is not.
    Failed,
    /// It did not come to an end within the limit.
    Late,
}

/// What became of the hosts that knocked at an [`Endpoint`](crate::Endpoint), since it was made: see
/// [`Endpoint::knocks`](crate::Endpoint::knocks).
///
/// A host that connects under load knocks twice, and once more for each packet that it repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Knocks {
    /// Began a handshake.
    pub admitted: u64,
    /// Were asked to show that they are where they say, because
    /// [`retry_above`](crate::TransportLimits::retry_above) handshakes were under way.
    pub retried: u64,
    /// Got no answer: no place was free, or too many asked.
    pub ignored: u64,
    /// Were refused, because [`max_connections`](crate::TransportLimits::max_connections) were there.
    pub refused: u64,
    /// Handshakes that made way for others, after
    /// [`crowded_handshake`](crate::TransportLimits::crowded_handshake).
    pub made_way: u64,
    /// Handshakes that did not end within the [`handshake`](crate::TransportLimits::handshake) limit.
    pub late: u64,
    /// Handshakes under way at the moment, those included that have just failed.
    pub under_way: usize,
    /// The most that were under way at a time.
    pub most_under_way: usize,
    /// Connections that the endpoint holds at the moment, made by either side: those in use, handshakes, and what is being
    /// closed.
    pub connections: usize,
}

/// The hosts that knock, and those whose handshakes are under way.
#[derive(Debug)]
pub(crate) struct Knocking {
    places: usize,
    per_address: usize,
    retry_above: usize,
    patience: Duration,
    answers: Answers,
    next: u64,
    under_way: BTreeMap<Id, Handshake>,
    /// Those of them that have failed already.
    failed: BTreeSet<Id>,
    /// Those of each proven address.
    proven: HashMap<Network, BTreeSet<Id>>,
    proven_places: usize,
    /// Proven addresses by how many they have, then by how old their oldest one is.
    shares: BTreeSet<(usize, Reverse<Id>, Network)>,
    knocks: Knocks,
    reported: Option<(Instant, Knocks)>,
}

#[derive(Debug)]
struct Handshake {
    since: Instant,
    network: Network,
    proven: bool,
}

impl Knocking {
    pub(crate) fn new(limits: &TransportLimits, now: Instant) -> Self {
        Self {
            places: limits.max_handshakes,
            per_address: limits.max_handshakes_per_address,
            retry_above: limits.retry_above,
            patience: limits.crowded_handshake,
            answers: Answers::new(limits.answers_per_second, now),
            next: 0,
            under_way: BTreeMap::new(),
            failed: BTreeSet::new(),
            proven: HashMap::new(),
            proven_places: 0,
            shares: BTreeSet::new(),
            knocks: Knocks::default(),
            reported: None,
        }
    }

    /// What to do with a first packet from there; `proven`: it carries a token that shows its address.
    pub(crate) fn judge(&mut self, from: SocketAddr, proven: bool, now: Instant) -> Verdict {
        self.forget_failed(now);
        let verdict = if proven {
            self.judge_proven(from, now)
        } else if self.under_way.len() < self.retry_above {
            Verdict::Admit { instead_of: None }
        } else if self.answers.take(from, now) {
            Verdict::Retry
        } else {
            Verdict::Ignore
        };
        match verdict {
            Verdict::Admit { .. } => {}
            Verdict::Retry => self.knocks.retried += 1,
            Verdict::Ignore => self.knocks.ignored += 1,
        }
        verdict
    }

    fn judge_proven(&self, from: SocketAddr, now: Instant) -> Verdict {
        let here = self.proven.get(&Network::of(from));
        let held = here.map_or(0, BTreeSet::len);
        let places = match held {
            0 => self.places,
            _ => self.places - self.places / 4,
        };
        let oldest = if held >= self.per_address {
            here.and_then(BTreeSet::first).copied()
        } else if self.proven_places >= places {
            self.shares.last().map(|(_, Reverse(oldest), _)| *oldest)
        } else {
            return Verdict::Admit { instead_of: None };
        };
        match oldest {
            Some(id) if self.had_its_time(id, now) => Verdict::Admit {
                instead_of: Some(id),
            },
            _ => Verdict::Ignore,
        }
    }

    fn had_its_time(&self, id: Id, now: Instant) -> bool {
        let handshake = self.under_way.get(&id);
        handshake.is_some_and(|handshake| {
            now.saturating_duration_since(handshake.since) >= self.patience
        })
    }

    /// One that was to be admitted is let to a handshake. The one instead of which it is has no place any more.
    pub(crate) fn admit(
        &mut self,
        from: SocketAddr,
        proven: bool,
        instead_of: Option<Id>,
        now: Instant,
    ) -> Id {
        if let Some(id) = instead_of
            && self.remove(id)
        {
            self.knocks.made_way += 1;
        }
        let id = Id(self.next);
        self.next += 1;
        let network = Network::of(from);
        if proven {
            self.change_share(network, |here| here.insert(id));
            self.proven_places += 1;
        }
        let handshake = Handshake {
            since: now,
            network,
            proven,
        };
        self.under_way.insert(id, handshake);
        self.knocks.admitted += 1;
        self.knocks.most_under_way = self.knocks.most_under_way.max(self.under_way.len());
        id
    }

    /// A handshake has ended, or its place went to another before.
    pub(crate) fn end(&mut self, id: Id, end: End, now: Instant) {
        match end {
            End::LetIn => {
                self.remove(id);
            }
            End::Late if self.remove(id) => self.knocks.late += 1,
            End::Late => {}
            // QUIC remembers it for a while, and whoever fails at once must not have more of them than who never answers.
            End::Failed if self.under_way.contains_key(&id) => {
                self.failed.insert(id);
                self.forget_failed(now);
            }
            End::Failed => {}
        }
    }

    /// One that was to be admitted, or to be asked for its address, is one too many. Whether it may be told.
    pub(crate) fn refuse(&mut self, from: SocketAddr, now: Instant) -> bool {
        let told = self.answers.take(from, now);
        if told {
            self.knocks.refused += 1;
        } else {
            self.knocks.ignored += 1;
        }
        told
    }

    /// One that was to be admitted gets no answer.
    pub(crate) fn ignore(&mut self) {
        self.knocks.ignored += 1;
    }

    fn forget_failed(&mut self, now: Instant) {
        while let Some(id) = self.failed.first().copied()
            && self.had_its_time(id, now)
        {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: Id) -> bool {
        let Some(handshake) = self.under_way.remove(&id) else {
            return false;
        };
        let failed = self.failed.remove(&id);
        if handshake.proven {
            self.change_share(handshake.network, |here| here.remove(&id));
            self.proven_places -= 1;
        }
        // One that failed does not make way, it is forgotten.
        !failed
    }

    fn change_share(&mut self, network: Network, change: impl FnOnce(&mut BTreeSet<Id>) -> bool) {
        let here = self.proven.entry(network).or_default();
        let key = |here: &BTreeSet<Id>| Some((here.len(), Reverse(*here.first()?), network));
        let before = key(here);
        change(here);
        let after = key(here);
        if let Some(before) = before {
            self.shares.remove(&before);
        }
        match after {
            Some(after) => {
                self.shares.insert(after);
            }
            None => {
                self.proven.remove(&network);
            }
        }
    }

    pub(crate) fn knocks(&self) -> Knocks {
        Knocks {
            under_way: self.under_way.len(),
            ..self.knocks
        }
    }

    /// What was turned away since the last report, if that is long ago.
    pub(crate) fn report(&mut self, now: Instant) -> Option<Knocks> {
        let (all, before) = (self.knocks(), self.reported);
        if before.is_some_and(|(at, _)| now.saturating_duration_since(at) < REPORTS) {
            return None;
        }
        let before = before.map(|(_, before)| before).unwrap_or_default();
        let new = Knocks {
            admitted: all.admitted - before.admitted,
            retried: all.retried - before.retried,
            ignored: all.ignored - before.ignored,
            refused: all.refused - before.refused,
            made_way: all.made_way - before.made_way,
            late: all.late - before.late,
            ..all
        };
        if new.ignored + new.refused + new.made_way + new.late == 0 {
            return None;
        }
        self.reported = Some((now, all));
        Some(new)
    }
}

/// What counts as one address: who has an IPv6 address has the other ones of its link as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Network {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Network {
    fn of(address: SocketAddr) -> Self {
        match canonical(address).ip() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Answers that may be given, refilled with time.
#[derive(Debug)]
struct Answers {
    /// Per second, of each slot.
    rate: f64,
    slots: Vec<Slot>,
    since: Instant,
    /// Nobody outside knows who shares a slot with whom.
    hasher: RandomState,
}

#[derive(Debug, Clone)]
struct Slot {
    left: f64,
    at: Instant,
}

impl Answers {
    fn new(per_second: u32, now: Instant) -> Self {
        let rate = f64::from(per_second) / SLOTS as f64;
        let left = Self::most(rate);
        Self {
            rate,
            slots: vec![Slot { left, at: now }; SLOTS],
            since: now,
            hasher: RandomState::new(),
        }
    }

    /// What a slot may save up: a second's worth, but a whole answer unless there are none.
    fn most(rate: f64) -> f64 {
        if rate > 0.0 { rate.max(1.0) } else { 0.0 }
    }

    fn take(&mut self, from: SocketAddr, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.since).as_secs();
        let hash = self.hasher.hash_one((from, second));
        // Below SLOTS, so it fits.
        let slot = &mut self.slots[(hash % SLOTS as u64) as usize];
        let passed = now.saturating_duration_since(slot.at).as_secs_f64();
        slot.left = (slot.left + passed * self.rate).min(Self::most(self.rate));
        slot.at = now;
        let may = slot.left >= 1.0;
        if may {
            slot.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests;
