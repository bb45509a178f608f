//! The target's side: taking connections in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_core::Stream;
use tcpmig_format::{AppImage, FourTuple, Image, Limits, Octets};
use tcpmig_lock::{LockGuard, Locker};
use tcpmig_transport::{Endpoint, Exchange, Peer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Options;
use super::journal::{About, Journal, Note, Nowhere, Role};
use crate::handover::{
    Decoder, HandoverId, Message, OLDEST_VERSION, Target, TargetAction, TargetEvent, VERSION,
};
use crate::options::NotSet;
use crate::restore::{NotActivated, Prepared, Restored};

/// A connection that moved to this host.
#[derive(Debug)]
pub struct Arrived {
    /// Its socket.
    pub socket: OwnedFd,
    /// Its addresses and ports.
    pub flow: FourTuple,
    /// Octets to write before anything else: those of [`Restored::unwritten`] that the send
    /// buffer did not take.
    pub unwritten: Octets,
    /// The application's state.
    pub app: Option<AppImage>,
    /// As [`Restored::not_set`].
    pub not_set: Vec<NotSet>,
    /// The name of the host that it comes from.
    pub from: String,
}

/// Connections as they arrive.
///
/// Dropping it stops taking them in: what waits for COMMIT is discarded, so that its source keeps it, and what has arrived and
/// was not taken from here is closed.
#[derive(Debug)]
pub struct Arrivals {
    arrived: mpsc::UnboundedReceiver<Arrived>,
    _tasks: JoinSet<()>,
}

impl Arrivals {
    /// The next connection; `None` when the endpoint is closed. Cancel-safe: a connection that arrives while nobody
    /// waits is there for the next call.
    pub async fn next(&mut self) -> Option<Arrived> {
        self.arrived.recv().await
    }
}

impl Stream for Arrivals {
    type Item = Arrived;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Arrived>> {
        self.arrived.poll_recv(cx)
    }
}

/// Takes connections in from the hosts that the endpoint trusts.
///
/// Runs on the current tokio runtime until the [`Arrivals`] are dropped or the endpoint is
/// closed.
#[must_use]
pub fn serve(endpoint: Endpoint, locker: Arc<dyn Locker>, options: Options) -> Arrivals {
    serve_all(
        endpoint,
        locker,
        options,
        Arc::new(Nowhere),
        Box::new(|_| Ok(())),
    )
}

/// As [`serve`], with a journal: if this process dies, the one after it can say of each handover whether the
/// connection died with it or never lived here.
#[must_use]
pub fn serve_with(
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    options: Options,
    journal: Arc<dyn Journal>,
) -> Arrivals {
    serve_all(endpoint, locker, options, journal, Box::new(|_| Ok(())))
}

/// As [`serve`], for connections whose application state is accepted: before anything is built,
/// `accepts` says why one is not. The source is told, and keeps it.
#[must_use]
pub fn serve_if(
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    options: Options,
    accepts: impl Fn(Option<&AppImage>) -> Result<(), String> + Send + Sync + 'static,
) -> Arrivals {
    serve_all(
        endpoint,
        locker,
        options,
        Arc::new(Nowhere),
        Box::new(accepts),
    )
}

fn serve_all(
    endpoint: Endpoint,
    locker: Arc<dyn Locker>,
    options: Options,
    journal: Arc<dyn Journal>,
    accepts: Box<Accepts>,
) -> Arrivals {
    let (sender, arrived) = mpsc::unbounded_channel();
    let host = Arc::new(Host {
        room: Room::new(&options),
        locker,
        options,
        journal,
        arrived: sender,
        accepts,
        handovers: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(endpoint, host));
    Arrivals {
        arrived,
        _tasks: tasks,
    }
}

async fn accept(endpoint: Endpoint, host: Arc<Host>) {
    let mut peers = JoinSet::new();
    loop {
        tokio::select! {
            peer = endpoint.accept() => match peer {
                Some(Ok(peer)) => {
                    info!(peer = peer.name(), address = %peer.address(), "a host connected");
                    peers.spawn(exchanges(peer, host.clone()));
                }
                Some(Err(error)) => warn!(%error, "a host was turned away"),
                None => return,
            },
            Some(_) = peers.join_next() => {}
        }
    }
}

async fn exchanges(peer: Peer, host: Arc<Host>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            exchange = peer.accept() => match exchange {
                Some(Ok(exchange)) => {
                    open.spawn(serve_exchange(exchange, host.clone(), peer.name().to_owned()));
                }
                Some(Err(error)) => {
                    debug!(%error, "the link to a host ended");
                    break;
                }
                None => break,
            },
            Some(_) = open.join_next() => {}
        }
    }
    // What is still in the pipe of an ended link gets its end as well.
    while open.join_next().await.is_some() {}
}

type Accepts = dyn Fn(Option<&AppImage>) -> Result<(), String> + Send + Sync;

struct Host {
    accepts: Box<Accepts>,
    locker: Arc<dyn Locker>,
    options: Options,
    journal: Arc<dyn Journal>,
    room: Room,
    arrived: mpsc::UnboundedSender<Arrived>,
    handovers: Mutex<HashMap<HandoverId, Arc<Mutex<Slot>>>>,
}

/// How much may wait for COMMIT.
struct Room {
    handovers: Arc<Semaphore>,
    /// In units of 1 KiB.
    octets: Arc<Semaphore>,
}

/// What one handover has of it.
struct Place {
    _handover: OwnedSemaphorePermit,
    _octets: OwnedSemaphorePermit,
}

impl Room {
    fn new(options: &Options) -> Self {
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            handovers: semaphore(options.prepared_at_once),
            octets: semaphore(options.octets_prepared >> 10),
        }
    }

    /// For an image of so many octets.
    fn place(&self, octets: usize) -> Result<Place, String> {
        let few = |_| "as many connections as this host allows wait for COMMIT here".to_owned();
        let small = |_| {
            "the images that wait for COMMIT here have as many octets as this host allows"
                .to_owned()
        };
        let units = u32::try_from(octets >> 10)
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let handover = self.handovers.clone().try_acquire_owned().map_err(few)?;
        let octets = self
            .octets
            .clone()
            .try_acquire_many_owned(units)
            .map_err(small)?;
        Ok(Place {
            _handover: handover,
            _octets: octets,
        })
    }
}

/// One handover, kept for a while after its end.
struct Slot {
    machine: Target,
    /// With its place among those that wait.
    prepared: Option<(Prepared, Place)>,
    /// Of what was discarded, until the source says with ABORT that it has the packets again:
    /// they may come here for as long as it redirects them, and would draw an RST.
    lock: Option<LockGuard>,
    reason: String,
    activate_us: u32,
}

impl Slot {
    fn discard(&mut self) {
        if let Some((prepared, _)) = self.prepared.take() {
            self.lock = Some(prepared.discard());
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.discard();
        if let Some(lock) = self.lock.take() {
            // As above; the lease ends the silence.
            lock.leave();
        }
    }
}

/// A panic elsewhere left the value as it was: the machine's steps are complete or not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Answers the messages of one exchange.
async fn serve_exchange(mut exchange: Exchange, host: Arc<Host>, from: String) {
    let mut decoder = Decoder::default();
    let mut begun: Vec<HandoverId> = Vec::new();
    let mut greeted = false;
    let ended = loop {
        let frame = match exchange.recv().await {
            Ok(Some(frame)) => frame,
            Ok(None) => break "the source finished".to_owned(),
            Err(error) => break error.to_string(),
        };
        let mut restored = None;
        let answer = match decoder.frame(frame) {
            Ok(None) => continue,
            Ok(Some(Message::Hello { newest, .. })) if !greeted => {
                greeted = true;
                if (OLDEST_VERSION..=VERSION).contains(&newest) {
                    continue;
                }
                let (hello, _) = Message::hello().encode();
                if exchange.send(hello).await.is_ok() {
                    let _ = exchange.finish().await;
                }
                break format!("the source speaks version {newest} of the protocol");
            }
            Ok(Some(other)) if !greeted => break format!("{} came before HELLO", other.name()),
            Ok(Some(Message::Offer { id, image })) => {
                begun.push(id);
                Some(host.offer(id, image, &from))
            }
            Ok(Some(Message::Commit { id, packets })) => {
                Some(host.commit(id, &packets, &mut restored))
            }
            Ok(Some(Message::Abort { id })) => {
                host.event(id, TargetEvent::Abort);
                None
            }
            Ok(Some(other)) => break format!("{} was not expected", other.name()),
            Err(error) => break error.to_string(),
        };
        if let Some(answer) = answer {
            let answer_id = answer.id();
            let (frame, _) = answer.encode();
            let sent = exchange.send(frame).await;
            // The connection lives whether or not the source got to know it.
            if let Some(restored) = restored {
                // What was sent leaves with the link's own task, which would have to wait for an
                // application that begins to write at once.
                tokio::task::yield_now().await;
                host.deliver(restored, &from);
                if let Some(id) = answer_id {
                    host.note_end(id, Note::Active);
                }
            }
            if let Err(error) = sent {
                break error.to_string();
            }
        }
    };
    debug!(ended, "an exchange ended");
    for id in begun {
        host.event(id, TargetEvent::LinkLost);
    }
}

impl Host {
    /// Builds what is offered.
    fn offer(self: &Arc<Self>, id: HandoverId, image: Bytes, from: &str) -> Message {
        let begin = Instant::now();
        let refused = |reason: String| {
            info!(%id, from, reason, "a connection was refused");
            Message::Refused { id, reason }
        };
        let slot = Arc::new(Mutex::new(Slot {
            machine: Target::preparing(),
            prepared: None,
            lock: None,
            reason: String::new(),
            activate_us: 0,
        }));
        // Whoever asks for it meanwhile waits for what becomes of it.
        let mut building = lock(&slot);
        match lock(&self.handovers).entry(id) {
            Entry::Vacant(vacant) if self.journal.recall(id).is_none() => {
                vacant.insert(slot.clone());
            }
            _ => return refused("this handover was offered before".to_owned()),
        }
        let built = self
            .room
            .place(image.len())
            .and_then(|place| {
                let decoded = Image::decode_shared(image.into(), &Limits::default());
                Ok((decoded.map_err(|error| format!("image: {error}"))?, place))
            })
            .and_then(|(image, place)| {
                (self.accepts)(image.app.as_ref())?;
                let Options {
                    lease, unsupported, ..
                } = self.options;
                let built = Prepared::build_with(image, &*self.locker, lease, unsupported);
                Ok((built.map_err(|error| error.to_string())?, place))
            })
            .and_then(|(prepared, place)| {
                let about = About {
                    role: Role::Target,
                    flow: prepared.flow(),
                    host: from.to_owned(),
                    address: None,
                };
                match self.journal.begin(id, &about) {
                    Ok(()) => Ok((prepared, place)),
                    Err(error) => Err(format!("journal: {error}")),
                }
            });
        let answer = match built {
            Ok(prepared) => {
                building.machine.handle(TargetEvent::Built);
                building.prepared = Some(prepared);
                Message::Prepared {
                    id,
                    rebuild_us: micros(begin),
                }
            }
            Err(reason) => {
                building.machine.handle(TargetEvent::NotBuilt);
                building.reason.clone_from(&reason);
                refused(reason)
            }
        };
        drop(building);
        self.expire(id);
        answer
    }

    /// Discards what was built if COMMIT does not come in time, whatever the link does, and
    /// forgets the handover when nobody can ask for it any more.
    fn expire(self: &Arc<Self>, id: HandoverId) {
        let host = Arc::downgrade(self);
        let Options {
            commit_within,
            remember,
            ..
        } = self.options;
        tokio::spawn(async move {
            sleep(commit_within).await;
            if let Some(host) = host.upgrade() {
                host.event(id, TargetEvent::Deadline);
            }
            sleep(remember).await;
            if let Some(host) = host.upgrade() {
                lock(&host.handovers).remove(&id);
            }
        });
    }

    fn slot(&self, id: HandoverId) -> Option<Arc<Mutex<Slot>>> {
        lock(&self.handovers).get(&id).cloned()
    }

    fn event(&self, id: HandoverId, event: TargetEvent) {
        if let Some(slot) = self.slot(id) {
            let mut slot = lock(&slot);
            if slot.machine.handle(event) == TargetAction::Discard {
                slot.discard();
                self.note_end(id, Note::Aborted);
                slot.reason = match event {
                    TargetEvent::Deadline => "COMMIT did not come in time".to_owned(),
                    _ => "the source gave it up".to_owned(),
                };
                info!(%id, reason = slot.reason, "a built connection was discarded");
            }
            if event == TargetEvent::Abort {
                slot.lock = None;
            }
        }
    }

    /// Activates what was built, the first time.
    fn commit(
        &self,
        id: HandoverId,
        packets: &[Bytes],
        restored: &mut Option<Restored>,
    ) -> Message {
        let Some(slot) = self.slot(id) else {
            return self.recalled(id);
        };
        let mut slot = lock(&slot);
        let mut action = slot.machine.handle(TargetEvent::Commit);
        if action == TargetAction::Activate {
            let event = self.activate(id, &mut slot, packets, restored);
            action = slot.machine.handle(event);
        }
        match action {
            TargetAction::SayActive => Message::Active {
                id,
                activate_us: slot.activate_us,
            },
            _ => Message::Aborted {
                id,
                reason: slot.reason.clone(),
            },
        }
    }

    /// What a process before this one has done.
    fn recalled(&self, id: HandoverId) -> Message {
        let mut machine = match self.journal.recall(id) {
            None => return Message::Unknown { id },
            Some(Note::Activating | Note::Active) => Target::died(),
            Some(_) => Target::never_active(),
        };
        let reason = "the process that had it has ended since".to_owned();
        match machine.handle(TargetEvent::Commit) {
            TargetAction::SayLost => Message::Lost { id, reason },
            _ => Message::Aborted { id, reason },
        }
    }

    fn activate(
        &self,
        id: HandoverId,
        slot: &mut Slot,
        packets: &[Bytes],
        restored: &mut Option<Restored>,
    ) -> TargetEvent {
        let begin = Instant::now();
        if self.arrived.is_closed() {
            slot.discard();
            self.note_end(id, Note::Aborted);
            "the application takes no more connections".clone_into(&mut slot.reason);
            return TargetEvent::NotActivated;
        }
        let Some((prepared, _place)) = slot.prepared.take() else {
            return TargetEvent::NotActivated;
        };
        if let Err(error) = self.journal.note(id, Note::Activating) {
            slot.lock = Some(prepared.discard());
            slot.reason = format!("journal: {error}");
            return TargetEvent::NotActivated;
        }
        let arrived = packets.iter().map(|packet| &packet[..]);
        let flow = prepared.flow();
        match prepared.activate_with(arrived) {
            Ok(live) => {
                slot.activate_us = micros(begin);
                *restored = Some(live);
                TargetEvent::Activated
            }
            Err(failed) => {
                let NotActivated { error, lock } = *failed;
                slot.reason = error.to_string();
                // Until ABORT comes, as after any other end.
                slot.lock = lock.or_else(|| {
                    let again = self.locker.lock(&[flow], self.options.lease);
                    again
                        .inspect_err(|error| warn!(%id, "not locked again: {error}"))
                        .ok()
                });
                self.note_end(id, Note::Aborted);
                TargetEvent::NotActivated
            }
        }
    }

    fn note_end(&self, id: HandoverId, note: Note) {
        if let Err(error) = self.journal.note(id, note) {
            warn!(%id, ?note, "the journal does not have the end of a handover: {error}");
        }
    }

    /// Hands a connection to the application.
    fn deliver(&self, mut restored: Restored, from: &str) {
        restored.write();
        for option in &restored.not_set {
            warn!(flow = %restored.flow, %option, "a connection arrived without an option");
        }
        let arrived = Arrived {
            socket: restored.socket,
            flow: restored.flow,
            unwritten: restored.unwritten,
            app: restored.app,
            not_set: restored.not_set,
            from: from.to_owned(),
        };
        if self.arrived.send(arrived).is_err() {
            warn!("a connection arrived after the application stopped: it is closed");
        }
    }
}
