//! The task that speaks to the agent.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tcpmig_format::{FourTuple, Layer, SecretBytes};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::drains::{Drain, Heard, Progress};
use super::way::NotGiven;
use super::{AgentError, Event, Fate, Made, Offer, Service};
use crate::agent::Status;
use crate::agent::link::{Incoming, Link, LinkError};
use crate::agent::wire::{self, ToAgent, ToClient, VERSION};
use crate::handover::{Code, Refusal};
use crate::session::{Arrival, Parts};

/// How long the agent may take to greet.
const GREETED_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait before an agent that was not there is looked for again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long the agent may be gone before connections that it was given count as in doubt.
const GONE_FOR: Duration = Duration::from_secs(10);

/// How long to wait for what an agent had sent that does not read any more. Of one that is gone the end is there at once.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a client is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Register {
        service: Arc<Service>,
        events: mpsc::UnboundedSender<Event>,
        answer: oneshot::Sender<Result<(), AgentError>>,
    },
    Give(Give),
    Status {
        answer: oneshot::Sender<Result<Status, AgentError>>,
    },
    Drain {
        service: Option<String>,
        to: Vec<String>,
        progress: mpsc::UnboundedSender<Heard>,
    },
    Drained {
        id: u64,
        left: u64,
    },
    Move {
        flow: FourTuple,
        to: String,
        socket: Option<OwnedFd>,
        answer: oneshot::Sender<Result<Fate, AgentError>>,
    },
}

/// A connection to be given away.
#[derive(Debug)]
pub(super) struct Give {
    pub(super) service: String,
    pub(super) to: String,
    pub(super) flow: FourTuple,
    pub(super) parts: Parts,
    pub(super) ended: mpsc::UnboundedSender<Ended>,
    /// The right to be under way.
    pub(super) _turn: Option<OwnedSemaphorePermit>,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Ended {
    Moved(BTreeMap<String, u64>),
    Kept(Parts, NotGiven),
    Lost(String),
    Doubt,
}

/// An agent that has greeted.
pub(super) struct Connected {
    link: Arc<Link>,
    incoming: Incoming,
    pub(super) host: String,
    pub(super) gives: usize,
}

pub(super) async fn connect(path: &Path) -> Result<Connected, LinkError> {
    let greeting = async {
        let link = Arc::new(Link::connect(path, GREETED_WITHIN).await?);
        let hello = ToAgent::Hello {
            oldest: VERSION,
            newest: VERSION,
        };
        link.send(&wire::packets(hello), None).await?;
        let mut incoming = Incoming::new();
        match incoming.next(&link).await?.0 {
            ToClient::Welcome { host, gives, .. } => Ok(Connected {
                link,
                incoming,
                host,
                gives: gives as usize,
            }),
            _ => Err(LinkError::Closed),
        }
    };
    let greeted = timeout(GREETED_WITHIN, greeting).await;
    greeted.unwrap_or(Err(LinkError::Closed))
}

/// What the agent still has to answer.
enum Waiting {
    Register(oneshot::Sender<Result<(), AgentError>>),
    Status(oneshot::Sender<Result<Status, AgentError>>),
    Drain(mpsc::UnboundedSender<Heard>),
    Move(Moving),
}

/// A connection that an admin moves.
struct Moving {
    flow: FourTuple,
    /// Of one that is taken from its process: the next agent is asked what became of it.
    socket: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Fate, AgentError>>,
}

/// A service that was registered, or is being.
struct Registration {
    service: Arc<Service>,
    events: mpsc::UnboundedSender<Event>,
}

/// A connection that may come.
struct Expected {
    events: mpsc::UnboundedSender<Event>,
    flow: FourTuple,
    layers: Vec<Layer>,
    ready: Option<Made>,
}

/// An application's answer to an offer.
struct Verdict {
    /// Of which connection to the agent it is: numbers begin anew with each.
    link: u64,
    id: u64,
    expected: Expected,
    decision: Result<Made, Refusal>,
}

type Packets = (Vec<SecretBytes>, Option<OwnedFd>);

pub(super) struct Actor {
    path: PathBuf,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Weak: it ends with the last client.
    sender: mpsc::WeakUnboundedSender<Command>,
    last: u64,
    links: u64,
    outgoing: Option<mpsc::UnboundedSender<Packets>>,
    registrations: HashMap<u64, Registration>,
    waiting: HashMap<u64, Waiting>,
    /// What was given, until its end is known.
    given: HashMap<u64, Give>,
    expected: HashMap<u64, Expected>,
    decided: (
        mpsc::UnboundedSender<Verdict>,
        mpsc::UnboundedReceiver<Verdict>,
    ),
    /// No client is left.
    is_alone: bool,
}

impl Actor {
    pub(super) fn new(
        path: PathBuf,
        commands: mpsc::UnboundedReceiver<Command>,
        sender: mpsc::WeakUnboundedSender<Command>,
    ) -> Self {
        Self {
            path,
            commands,
            sender,
            last: 0,
            links: 0,
            outgoing: None,
            registrations: HashMap::new(),
            waiting: HashMap::new(),
            given: HashMap::new(),
            expected: HashMap::new(),
            decided: mpsc::unbounded_channel(),
            is_alone: false,
        }
    }

    /// Until nobody needs it.
    pub(super) async fn run(mut self, connected: Connected) {
        let mut next = Some(connected);
        while let Some(connected) = next {
            let why = self.talk(connected).await;
            self.outgoing = None;
            self.expected.clear();
            for (id, waiting) in std::mem::take(&mut self.waiting) {
                if let Some(moving) = gone(waiting) {
                    self.waiting.insert(id, Waiting::Move(moving));
                }
            }
            if self.is_over() {
                return;
            }
            tracing::warn!(agent = %self.path.display(), %why, "the link to the agent ended: it is looked for again");
            next = self.reconnect().await;
        }
    }

    fn is_over(&self) -> bool {
        self.is_alone && self.given.is_empty()
    }

    /// An agent that is there again; none if nobody needs one any longer.
    async fn reconnect(&mut self) -> Option<Connected> {
        let since = Instant::now();
        let mut is_told = false;
        loop {
            if let Ok(connected) = connect(&self.path).await {
                return Some(connected);
            }
            if !is_told && since.elapsed() >= GONE_FOR {
                is_told = true;
                for give in self.given.values() {
                    let _ = give.ended.send(Ended::Doubt);
                }
                for (_, waiting) in self.waiting.drain() {
                    if let Waiting::Move(moving) = waiting {
                        let _ = moving.answer.send(Ok(Fate::InDoubt));
                    }
                }
            }
            let again = Instant::now() + AGAIN;
            loop {
                tokio::select! {
                    () = sleep_until(again) => break,
                    command = self.commands.recv(), if !self.is_alone => match command {
                        Some(command) => self.refuse(command),
                        None => self.is_alone = true,
                    },
                }
            }
            if self.is_over() {
                return None;
            }
        }
    }

    /// Without an agent.
    fn refuse(&mut self, command: Command) {
        match command {
            // It is registered with the one that comes.
            Command::Register {
                service,
                events,
                answer,
            } => {
                self.last += 1;
                let registration = Registration { service, events };
                self.registrations.insert(self.last, registration);
                let _ = answer.send(Ok(()));
            }
            Command::Give(give) => {
                let gone = NotGiven::new("unreachable", AgentError::Gone);
                let _ = give.ended.send(Ended::Kept(give.parts, gone));
            }
            Command::Status { answer } => {
                let _ = answer.send(Err(AgentError::Gone));
            }
            Command::Drain { progress, .. } => {
                let _ = progress.send(Heard::Failed(AgentError::Gone));
            }
            Command::Drained { .. } => {}
            Command::Move { answer, .. } => {
                let _ = answer.send(Err(AgentError::Gone));
            }
        }
    }

    /// Until the link ends, or nobody needs it; why.
    async fn talk(&mut self, connected: Connected) -> LinkError {
        let Connected {
            link, mut incoming, ..
        } = connected;
        self.links += 1;
        let (outgoing, mut packets) = mpsc::unbounded_channel::<Packets>();
        self.outgoing = Some(outgoing);
        self.begin_again();
        let writing = async {
            while let Some((bytes, descriptor)) = packets.recv().await {
                if let Err(error) = link.send(&bytes, descriptor.as_ref()).await {
                    return error;
                }
            }
            pending().await
        };
        tokio::pin!(writing);
        loop {
            tokio::select! {
                error = &mut writing => {
                    // Connections may have come before the agent ended: their only descriptors are in the link.
                    while let Ok(Ok((message, descriptor))) =
                        timeout(LAST_WORDS, incoming.next(&link)).await
                    {
                        self.hear(message, descriptor);
                    }
                    return error;
                }
                message = incoming.next(&link) => match message {
                    Ok((message, descriptor)) => self.hear(message, descriptor),
                    Err(error) => return error,
                },
                command = self.commands.recv(), if !self.is_alone => match command {
                    Some(command) => self.command(command),
                    None => self.is_alone = true,
                },
                Some(decided) = self.decided.1.recv() => self.decide(decided),
            }
            if self.is_over() {
                return LinkError::Closed;
            }
        }
    }

    fn send(&self, message: ToAgent, descriptor: Option<OwnedFd>) {
        if let Some(outgoing) = &self.outgoing {
            // What cannot be sent any more is asked about at the next link.
            let _ = outgoing.send((wire::packets(message), descriptor));
        }
    }

    /// What an agent that has just greeted has to know.
    fn begin_again(&self) {
        for (id, registration) in &self.registrations {
            self.register(*id, &registration.service);
        }
        for (id, give) in &self.given {
            self.recover(*id, &give.service, give.flow, &give.parts.socket);
        }
        for (id, waiting) in &self.waiting {
            if let Waiting::Move(Moving {
                flow,
                socket: Some(socket),
                ..
            }) = waiting
            {
                self.recover(*id, "", *flow, socket);
            }
        }
    }

    fn recover(&self, id: u64, service: &str, flow: FourTuple, socket: &OwnedFd) {
        let recover = ToAgent::Recover {
            id,
            service: service.to_owned(),
            flow,
        };
        match socket.try_clone() {
            Ok(socket) => self.send(recover, Some(socket)),
            // It is tried at the next link.
            Err(error) => {
                tracing::error!(%flow, %error, "a connection cannot be asked about");
            }
        }
    }

    fn register(&self, id: u64, service: &Service) {
        let register = ToAgent::Register {
            id,
            service: service.name.clone(),
            addresses: service.addresses.clone(),
            sessions: service.sessions.clone(),
            takes: service.takes.is_some(),
        };
        self.send(register, None);
    }

    fn command(&mut self, command: Command) {
        self.last += 1;
        let id = self.last;
        match command {
            Command::Register {
                service,
                events,
                answer,
            } => {
                self.register(id, &service);
                let registration = Registration { service, events };
                self.registrations.insert(id, registration);
                self.waiting.insert(id, Waiting::Register(answer));
            }
            Command::Give(give) => self.give(id, give),
            Command::Status { answer } => {
                self.send(ToAgent::Status { id }, None);
                self.waiting.insert(id, Waiting::Status(answer));
            }
            Command::Drain {
                service,
                to,
                progress,
            } => {
                self.send(ToAgent::Drain { id, service, to }, None);
                self.waiting.insert(id, Waiting::Drain(progress));
            }
            Command::Drained { id, left } => self.send(ToAgent::Drained { id, left }, None),
            Command::Move {
                flow,
                to,
                socket,
                answer,
            } => {
                let sent = socket.as_ref().map(OwnedFd::try_clone).transpose();
                let sent = match sent {
                    Ok(sent) => sent,
                    Err(error) => {
                        let full = format!("duplicate the descriptor: {error}");
                        let kept = Fate::Kept(NotGiven::new("full", full));
                        let _ = answer.send(Ok(kept));
                        return;
                    }
                };
                self.send(ToAgent::Move { id, flow, to }, sent);
                let moving = Moving {
                    flow,
                    socket,
                    answer,
                };
                self.waiting.insert(id, Waiting::Move(moving));
            }
        }
    }

    fn give(&mut self, id: u64, give: Give) {
        let message = ToAgent::Give {
            id,
            service: give.service.clone(),
            to: give.to.clone(),
            layers: wire::encode_layers(&give.parts.layers),
        };
        match give.parts.socket.try_clone() {
            Ok(socket) => {
                self.send(message, Some(socket));
                self.given.insert(id, give);
            }
            Err(error) => {
                let full = NotGiven::new("full", format!("duplicate the descriptor: {error}"));
                let _ = give.ended.send(Ended::Kept(give.parts, full));
            }
        }
    }

    fn hear(&mut self, message: ToClient, descriptor: Option<OwnedFd>) {
        match message {
            ToClient::Done { id } => match self.waiting.remove(&id) {
                Some(Waiting::Register(answer)) => drop(answer.send(Ok(()))),
                Some(Waiting::Drain(progress)) => drop(progress.send(Heard::Done)),
                _ => {}
            },
            ToClient::Failed { id, code, reason } => self.failed(id, code, reason),
            ToClient::Status { id, status } => {
                if let Some(Waiting::Status(answer)) = self.waiting.remove(&id) {
                    let _ = answer.send(Ok(status));
                }
            }
            ToClient::Progress {
                id,
                moved,
                kept,
                left,
            } => {
                if let Some(Waiting::Drain(progress)) = self.waiting.get(&id) {
                    let _ = progress.send(Heard::Progress(Progress { moved, kept, left }));
                }
            }
            ToClient::Moved { id, report, .. } => {
                self.answered(id, || Fate::Moved(report.clone()));
                self.ended(id, |_| Ended::Moved(report));
            }
            ToClient::Kept { id, code, reason } => {
                let why = NotGiven { code, reason };
                self.answered(id, || Fate::Kept(why.clone()));
                self.ended(id, |parts| Ended::Kept(parts, why));
            }
            ToClient::Lost { id, reason } | ToClient::Gone { id, reason } => {
                self.answered(id, || Fate::Lost(reason.clone()));
                self.ended(id, |_| Ended::Lost(reason));
            }
            ToClient::Doubt { id, .. } => {
                self.answered(id, || Fate::InDoubt);
                if let Some(give) = self.given.get(&id) {
                    let _ = give.ended.send(Ended::Doubt);
                }
            }
            ToClient::Want { service, flow, to } => {
                let mut registrations = self.registrations.values();
                if let Some(one) = registrations.find(|one| one.service.name == service) {
                    let _ = one.events.send(Event::Wanted { flow, to });
                }
            }
            ToClient::Offer {
                id,
                service,
                flow,
                from,
                layers,
            } => self.offered(id, &service, flow, &from, &layers),
            ToClient::Withdrawn { id } => drop(self.expected.remove(&id)),
            ToClient::Arrived { id, unwritten } => self.arrived(id, unwritten, descriptor),
            ToClient::Drain { id, service, to } => {
                let mut registrations = self.registrations.values();
                if let Some(one) = registrations.find(|one| one.service.name == service) {
                    let commands = self.sender.clone();
                    let drain = Drain {
                        id,
                        service,
                        to,
                        commands,
                    };
                    let _ = one.events.send(Event::Drain(drain));
                }
            }
            ToClient::Welcome { .. } | ToClient::Piece { .. } => {}
        }
    }

    fn answered(&mut self, id: u64, fate: impl FnOnce() -> Fate) {
        if let Some(Waiting::Move(moving)) = self.waiting.remove(&id) {
            let _ = moving.answer.send(Ok(fate()));
        }
    }

    fn failed(&mut self, id: u64, code: String, reason: String) {
        let refused = AgentError::Refused { code, reason };
        match self.waiting.remove(&id) {
            Some(Waiting::Register(answer)) => {
                self.registrations.remove(&id);
                let _ = answer.send(Err(refused));
            }
            Some(Waiting::Status(answer)) => drop(answer.send(Err(refused))),
            Some(Waiting::Move(moving)) => drop(moving.answer.send(Err(refused))),
            Some(Waiting::Drain(progress)) => drop(progress.send(Heard::Failed(refused))),
            // One that was registered with an earlier agent: its next one may allow it.
            None if self.registrations.contains_key(&id) => {
                tracing::error!(%refused, "the agent does not register a service again");
            }
            None => {}
        }
    }

    fn ended(&mut self, id: u64, how: impl FnOnce(Parts) -> Ended) {
        if let Some(give) = self.given.remove(&id) {
            // Nobody may wait; then what is kept is closed.
            let _ = give.ended.send(how(give.parts));
        }
    }

    fn offered(&self, id: u64, service: &str, flow: FourTuple, from: &str, layers: &[u8]) {
        let refuse = |refusal: Refusal| ToAgent::Refuse {
            id,
            code: refusal.code.word().to_owned(),
            reason: refusal.reason,
        };
        let layers = match wire::decode_layers(layers) {
            Ok(layers) => layers,
            Err(error) => {
                let refusal = Refusal::new(Code::Image, error.to_string());
                return self.send(refuse(refusal), None);
            }
        };
        let mut registrations = self.registrations.values();
        let takes = registrations.find_map(|one| {
            let takes = one.service.takes.as_ref()?;
            let is_alive = one.service.name == service && !one.events.is_closed();
            is_alive.then(|| (takes.clone(), one.events.clone()))
        });
        let Some((takes, events)) = takes else {
            let refusal = Refusal::other("the server does not take connections any more");
            return self.send(refuse(refusal), None);
        };
        let deciding = takes(Offer {
            flow,
            from: from.into(),
            layers: layers.clone(),
        });
        let (decided, link) = (self.decided.0.clone(), self.links);
        tokio::spawn(async move {
            let decision = deciding.await;
            let expected = Expected {
                events,
                flow,
                layers,
                ready: None,
            };
            let _ = decided.send(Verdict {
                link,
                id,
                expected,
                decision,
            });
        });
    }

    fn decide(&mut self, decided: Verdict) {
        let Verdict {
            link,
            id,
            mut expected,
            decision,
        } = decided;
        if link != self.links {
            return;
        }
        match decision {
            Ok(ready) => {
                expected.ready = Some(ready);
                self.expected.insert(id, expected);
                self.send(ToAgent::Take { id }, None);
            }
            Err(refusal) => {
                let (code, reason) = (refusal.code.word().to_owned(), refusal.reason);
                self.send(ToAgent::Refuse { id, code, reason }, None);
            }
        }
    }

    fn arrived(&mut self, id: u64, unwritten: SecretBytes, descriptor: Option<OwnedFd>) {
        let Some(expected) = self.expected.remove(&id) else {
            return;
        };
        let Some(socket) = descriptor else {
            let flow = expected.flow;
            return tracing::error!(%flow, "a connection arrived, and this process has no room for its descriptor (RLIMIT_NOFILE): it is lost");
        };
        let parts = Parts {
            socket,
            layers: expected.layers,
        };
        let mut arrival = Arrival::new(parts, expected.flow);
        arrival.unwritten = unwritten;
        arrival.ready = expected.ready;
        // Who does not want it any more closes it.
        let _ = expected.events.send(Event::Arrived(arrival));
    }
}

/// Tells who waits that the agent is gone; but of a connection that it had, what the next one says of it.
fn gone(waiting: Waiting) -> Option<Moving> {
    match waiting {
        // It is registered with the agent that comes.
        Waiting::Register(answer) => drop(answer.send(Ok(()))),
        Waiting::Status(answer) => drop(answer.send(Err(AgentError::Gone))),
        Waiting::Move(moving) if moving.socket.is_some() => return Some(moving),
        Waiting::Move(moving) => drop(moving.answer.send(Err(AgentError::Gone))),
        Waiting::Drain(progress) => drop(progress.send(Heard::Failed(AgentError::Gone))),
    }
    None
}
