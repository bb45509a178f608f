//! Which clients there are, and what they serve.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tcpmig_format::{FourTuple, Layer, SecretBytes};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::agent::wire::{self, Kind, ToClient};
use crate::agent::{Registered, Status};
use crate::handover::{Code, Refusal};

/// How many connections of one client may move at a time; more wait in the client.
pub(super) const GIVES: usize = 256;
/// How many of them stand still at a time.
const IN_FLIGHT: usize = 32;
/// How many connections may be offered to a client and not have come.
const OFFERS: usize = 1024;
/// How many messages may wait for a client before nothing more is read from it or offered to it.
pub(super) const QUEUED: usize = 512;

/// Everything that waits to be sent to a client.
pub(super) struct Out {
    pub(super) packets: Vec<SecretBytes>,
    pub(super) descriptor: Option<OwnedFd>,
}

/// A program that is connected.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) number: u64,
    pub(super) user: u32,
    pub(super) process: u32,
    outbox: mpsc::UnboundedSender<Out>,
    /// How many messages wait in the outbox.
    queued: AtomicUsize,
    /// The right to be under way, for connections that it gives.
    pub(super) gives: Arc<Semaphore>,
    /// The right to stand still.
    pub(super) in_flight: Arc<Semaphore>,
    offers: Mutex<Offers>,
    last_offer: AtomicU64,
    is_gone: AtomicBool,
}

#[derive(Debug, Default)]
struct Offers {
    /// Those that were not answered.
    asked: HashMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    /// Those that were, and did not come yet.
    taken: usize,
}

impl Client {
    pub(super) fn new(
        number: u64,
        (user, process): (u32, u32),
        outbox: mpsc::UnboundedSender<Out>,
    ) -> Self {
        Self {
            number,
            user,
            process,
            outbox,
            queued: AtomicUsize::new(0),
            gives: Arc::new(Semaphore::new(GIVES)),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            offers: Mutex::default(),
            last_offer: AtomicU64::new(0),
            is_gone: AtomicBool::new(false),
        }
    }

    fn offers(&self) -> MutexGuard<'_, Offers> {
        // A panic elsewhere leaves whole values only.
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message into its queue. Everything that is sent is bounded by what the client asked for or was offered.
    pub(super) fn send(&self, message: ToClient, descriptor: Option<OwnedFd>) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        let packets = wire::packets(message);
        let out = Out {
            packets,
            descriptor,
        };
        // A client that is gone needs no answer.
        let _ = self.outbox.send(out);
    }

    /// One that was queued is sent.
    pub(super) fn was_sent(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) >= QUEUED
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Nothing comes from it any more.
    pub(super) fn leave(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
        // Who waits for an answer hears that there is none.
        self.offers().asked.clear();
    }

    /// A number for an offer or a drain, and whoever hears the answer; none if it has too many already.
    pub(super) fn ask(&self) -> Option<(u64, oneshot::Receiver<Result<(), Refusal>>)> {
        let mut offers = self.offers();
        if self.is_full() || self.is_gone() || offers.asked.len() + offers.taken >= OFFERS {
            return None;
        }
        let id = self.next_number();
        let (answer, answered) = oneshot::channel();
        offers.asked.insert(id, answer);
        Some((id, answered))
    }

    pub(super) fn next_number(&self) -> u64 {
        self.last_offer.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Its answer to an offer; nothing if it was not asked, or answered too late.
    pub(super) fn answer(&self, id: u64, decision: Result<(), Refusal>) {
        let mut offers = self.offers();
        let Some(answer) = offers.asked.remove(&id) else {
            return;
        };
        let takes = decision.is_ok();
        if answer.send(decision).is_ok() {
            offers.taken += usize::from(takes);
        } else if takes {
            drop(offers);
            self.send(ToClient::Withdrawn { id }, None);
        }
    }

    /// It is not asked any more.
    pub(super) fn forget(&self, id: u64) {
        self.offers().asked.remove(&id);
    }

    /// What it had taken has come, or has not.
    pub(super) fn settled(&self) {
        self.offers().taken -= 1;
    }
}

/// A service as a client has registered it.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) client: Arc<Client>,
    pub(super) service: Arc<str>,
    pub(super) addresses: Vec<SocketAddr>,
    sessions: Option<Vec<Kind>>,
    takes: bool,
    /// It is giving its connections away.
    drains: AtomicBool,
    /// How many connections it said that are left, when it drains.
    left: Mutex<Option<u64>>,
}

impl Registration {
    pub(super) fn new(
        client: Arc<Client>,
        service: &str,
        addresses: Vec<SocketAddr>,
        sessions: Option<Vec<Kind>>,
        takes: bool,
    ) -> Self {
        Self {
            client,
            service: service.into(),
            addresses,
            sessions,
            takes,
            drains: AtomicBool::new(false),
            left: Mutex::default(),
        }
    }

    /// Whether a connection with this local end is one of it.
    pub(super) fn has(&self, local: SocketAddr) -> bool {
        let is = |address: &SocketAddr| {
            address.port() == local.port()
                && (address.ip().is_unspecified()
                    || address.ip().to_canonical() == local.ip().to_canonical())
        };
        self.addresses.iter().any(is)
    }

    fn knows(&self, layers: &[Layer]) -> bool {
        let Some(sessions) = &self.sessions else {
            return true;
        };
        let is_known = |layer: &Layer| {
            let mut sessions = sessions.iter();
            sessions.any(|one| {
                one.kind == layer.kind && (one.oldest..=one.newest).contains(&layer.version)
            })
        };
        layers.iter().all(is_known)
    }

    /// It is to give its connections away; nothing is offered to it any more.
    pub(super) fn drain(&self) {
        self.drains.store(true, Ordering::Relaxed);
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It says how many connections are left.
    pub(super) fn set_left(&self, left: u64) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }

    pub(super) fn said_left(&self) -> Option<u64> {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All clients and their registrations.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: Mutex<Vec<Arc<Registration>>>,
    /// Which of several takes the next connection.
    turn: AtomicUsize,
}

/// Why nobody takes a connection.
fn nobody(entries: &[Arc<Registration>], flow: FourTuple, layers: &[Layer]) -> Refusal {
    let local = flow.local();
    if !entries.iter().any(|one| one.has(local)) {
        return Refusal::new(Code::Policy, format!("no server of this host has {local}"));
    }
    if !entries.iter().any(|one| one.has(local) && one.takes) {
        return Refusal::new(
            Code::Policy,
            format!("the server of this host on {local} takes no connections"),
        );
    }
    if !entries
        .iter()
        .any(|one| one.has(local) && one.knows(layers))
    {
        let kinds: Vec<String> = layers.iter().map(ToString::to_string).collect();
        let kinds = kinds.join(", ");
        return Refusal::new(
            Code::Session,
            format!("no server of this host on {local} knows {kinds}"),
        );
    }
    Refusal::new(
        Code::Full,
        format!("the servers of this host on {local} are busy, or give their connections away"),
    )
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Registration>>> {
        // A panic elsewhere leaves whole values only.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In place of what this client had registered by the same name.
    pub(super) fn add(&self, registration: Registration) {
        let mut entries = self.entries();
        entries.retain(|one| {
            one.client.number != registration.client.number || one.service != registration.service
        });
        entries.push(Arc::new(registration));
    }

    pub(super) fn remove(&self, client: u64) {
        self.entries().retain(|one| one.client.number != client);
    }

    /// Those that are not allowed any more.
    pub(super) fn retain(&self, is_allowed: impl Fn(&Registration) -> bool) {
        self.entries().retain(|one| is_allowed(one));
    }

    pub(super) fn all(&self) -> Vec<Arc<Registration>> {
        self.entries().clone()
    }

    /// Those that can take a connection now, the one whose turn it is first.
    pub(super) fn takers(
        &self,
        flow: FourTuple,
        layers: &[Layer],
    ) -> Result<Vec<Arc<Registration>>, Refusal> {
        let entries = self.entries();
        let takes = |one: &&Arc<Registration>| {
            one.takes
                && !one.drains.load(Ordering::Relaxed)
                && !one.client.is_full()
                && one.has(flow.local())
                && one.knows(layers)
        };
        let mut takers: Vec<_> = entries.iter().filter(takes).cloned().collect();
        if takers.is_empty() {
            return Err(nobody(&entries, flow, layers));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % takers.len();
        takers.rotate_left(turn);
        Ok(takers)
    }

    /// What is registered, for this user; all of it if there is none.
    pub(super) fn fill(&self, status: &mut Status, user: Option<u32>) {
        let entries = self.entries();
        let seen = entries
            .iter()
            .filter(|one| user.is_none_or(|user| one.client.user == user));
        status.services = seen
            .map(|one| Registered {
                service: one.service.to_string(),
                user: one.client.user,
                process: one.client.process,
                addresses: one.addresses.clone(),
                takes: one.takes,
            })
            .collect();
    }
}
