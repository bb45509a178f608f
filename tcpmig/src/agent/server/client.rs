//! One program that is connected.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tcpmig_format::{FourTuple, SecretBytes};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::giving::{Answer, Give};
use super::registry::{Client, Out, Registration};
use super::users::Permit;
use crate::agent::link::{Incoming, Link, LinkError};
use crate::agent::wire::{self, ToAgent, ToClient, VERSION};
use crate::handover::{Code, Refusal};

/// How long a program may take to say hello.
const GREETED_WITHIN: Duration = Duration::from_secs(5);
/// How long a client may read nothing of what waits for it.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked whether a client reads again.
const FULL: Duration = Duration::from_millis(5);
/// After so many messages in a row others have their turn.
const IN_A_ROW: u32 = 32;
/// How many questions of a client may be unanswered, beside connections that it gives.
const QUESTIONS: usize = 64;

/// Serves a program until it or the link ends.
pub(super) async fn serve(shared: Arc<Shared>, socket: OwnedFd, number: u64) {
    let ended = match Connection::greet(shared, socket, number).await {
        Ok(connection) => {
            let client = connection.client.clone();
            let error = connection.run().await;
            tracing::debug!(process = client.process, %error, "a client is gone");
            return;
        }
        Err(error) => error,
    };
    tracing::debug!(error = %ended, "a program that connected is turned away");
}

struct Connection {
    shared: Arc<Shared>,
    client: Arc<Client>,
    link: Arc<Link>,
    incoming: Incoming,
    /// What it gave and can cancel.
    gives: HashMap<u64, watch::Sender<bool>>,
    /// Those of processes that stand still only as long as it lives.
    taken: HashSet<u64>,
    ended: (mpsc::UnboundedSender<u64>, mpsc::UnboundedReceiver<u64>),
    /// Tasks that are for this client alone.
    questions: JoinSet<()>,
    _permit: Permit,
}

impl Connection {
    async fn greet(shared: Arc<Shared>, socket: OwnedFd, number: u64) -> Result<Self, LinkError> {
        let link = Arc::new(Link::new(socket)?);
        let (user, process) = link.peer()?;
        if !shared.config().is_known(user) {
            tracing::warn!(
                user,
                process,
                "a program of a user that is not in the configuration is turned away"
            );
            return Err(LinkError::Closed);
        }
        let Some(permit) = shared.users.enter(user) else {
            tracing::warn!(
                user,
                process,
                "a program of a user that has too many connected is turned away"
            );
            return Err(LinkError::Closed);
        };
        let mut incoming = Incoming::within(permit.user().pieces.clone());
        let hello = timeout(GREETED_WITHIN, incoming.next(&link)).await;
        let (hello, _) = hello.unwrap_or(Err(LinkError::Closed))?;
        let ToAgent::Hello { oldest, newest } = hello else {
            return Err(LinkError::Closed);
        };
        if !(oldest..=newest).contains(&VERSION) {
            tracing::warn!(
                user,
                process,
                oldest,
                newest,
                "a program that speaks other versions is turned away"
            );
            return Err(LinkError::Closed);
        }
        let (outbox, waiting) = mpsc::unbounded_channel();
        let client = Arc::new(Client::new(number, (user, process), outbox));
        let welcome = ToClient::Welcome {
            version: VERSION,
            host: shared.config().name.clone(),
            gives: super::registry::GIVES as u32,
        };
        client.send(welcome, None);
        // Weak: it ends when nobody is left who could send.
        tokio::spawn(write(link.clone(), Arc::downgrade(&client), waiting));
        shared.metrics.clients.inc();
        tracing::debug!(user, process, "a client is connected");
        Ok(Self {
            shared,
            client,
            link,
            incoming,
            gives: HashMap::new(),
            taken: HashSet::new(),
            ended: mpsc::unbounded_channel(),
            questions: JoinSet::new(),
            _permit: permit,
        })
    }

    /// Until the link ends; why.
    async fn run(mut self) -> LinkError {
        let mut in_a_row = 0;
        loop {
            // Its answers wait: what it asks waits as well.
            while self.client.is_full() && !self.client.is_gone() {
                sleep(FULL).await;
            }
            tokio::select! {
                message = self.incoming.next(&self.link) => match message {
                    Ok((message, descriptor)) => {
                        if let Err(error) = self.hear(message, descriptor) {
                            return error;
                        }
                    }
                    Err(error) => return error,
                },
                Some(id) = self.ended.1.recv() => {
                    self.gives.remove(&id);
                    self.taken.remove(&id);
                }
                Some(_) = self.questions.join_next() => {}
            }
            in_a_row += 1;
            if in_a_row % IN_A_ROW == 0 {
                yield_now().await;
            }
        }
    }

    fn hear(&mut self, message: ToAgent, descriptor: Option<OwnedFd>) -> Result<(), LinkError> {
        match message {
            ToAgent::Register {
                id,
                service,
                addresses,
                sessions,
                takes,
            } => {
                let registration =
                    Registration::new(self.client.clone(), &service, addresses, sessions, takes);
                match self.shared.register(registration) {
                    Ok(()) => self.client.send(ToClient::Done { id }, None),
                    Err((code, reason)) => self.failed(id, code, reason),
                }
            }
            ToAgent::Give {
                id,
                service,
                to,
                layers,
            } => self.give(id, &service, to, &layers, descriptor)?,
            ToAgent::Move { id, flow, to } => self.move_any(id, flow, to, descriptor),
            ToAgent::Cancel { id } => {
                if let Some(cancel) = self.gives.get(&id) {
                    let _ = cancel.send(true);
                }
            }
            ToAgent::Recover { id, flow, .. } => self.recover(id, flow, descriptor),
            ToAgent::Take { id } => self.client.answer(id, Ok(())),
            ToAgent::Refuse { id, code, reason } => {
                let refusal = Refusal::new(Code::of(&code), reason);
                self.client.answer(id, Err(refusal));
            }
            ToAgent::Drained { id, left } => self.shared.drains.left(self.client.number, id, left),
            ToAgent::Status { id } => {
                let status = self.shared.status(self.client.user);
                self.client.send(ToClient::Status { id, status }, None);
            }
            ToAgent::Drain { id, service, to } => {
                if self.questions.len() >= QUESTIONS {
                    self.failed(id, "full", "too many questions at a time".to_owned());
                    return Ok(());
                }
                let client = self.client.clone();
                let draining = self.shared.clone().drain(client, id, service, to);
                self.questions.spawn(draining);
            }
            ToAgent::Hello { .. } | ToAgent::Piece { .. } => return Err(LinkError::Closed),
        }
        Ok(())
    }

    fn failed(&self, id: u64, code: &str, reason: String) {
        let code = code.to_owned();
        self.client
            .send(ToClient::Failed { id, code, reason }, None);
    }

    fn answer(&self, id: u64, answer: Answer) {
        self.client.send(answer.message(id), None);
    }

    fn give(
        &mut self,
        id: u64,
        service: &str,
        to: String,
        layers: &SecretBytes,
        socket: Option<OwnedFd>,
    ) -> Result<(), LinkError> {
        let layers = wire::decode_layers(layers)?;
        let Some(socket) = socket else {
            let missing = "no descriptor came with it: the agent has no room for more";
            self.answer(id, Answer::kept("full", missing));
            return Ok(());
        };
        let Ok(turn) = self.client.gives.clone().try_acquire_owned() else {
            let full = "too many connections of this client are under way";
            self.answer(id, Answer::kept("full", full));
            return Ok(());
        };
        let (cancel, cancelled) = watch::channel(false);
        self.gives.insert(id, cancel);
        let give = Give {
            service: service.into(),
            to,
            layers,
            socket,
        };
        let (shared, client) = (self.shared.clone(), self.client.clone());
        let ended = self.ended.0.clone();
        // Apart from the client: it goes on without it.
        tokio::spawn(async move {
            let answer = shared.give(&client, id, give, cancelled).await;
            drop(turn);
            client.send(answer.message(id), None);
            // The client's task may have ended.
            let _ = ended.send(id);
        });
        Ok(())
    }

    /// For an admin: any connection of this host.
    fn move_any(&mut self, id: u64, flow: FourTuple, to: String, socket: Option<OwnedFd>) {
        let Ok(turn) = self.client.gives.clone().try_acquire_owned() else {
            let full = "too many connections of this client are under way";
            return self.answer(id, Answer::kept("full", full));
        };
        let (cancel, cancelled) = watch::channel(false);
        self.gives.insert(id, cancel);
        if socket.is_some() {
            self.taken.insert(id);
        }
        let (shared, client) = (self.shared.clone(), self.client.clone());
        let ended = self.ended.0.clone();
        tokio::spawn(async move {
            let answer = match socket {
                Some(socket) => {
                    let give = Give {
                        service: "".into(),
                        to,
                        layers: Vec::new(),
                        socket,
                    };
                    shared.move_any(&client, id, give, flow, cancelled).await
                }
                None => shared.want(&client, flow, to).await,
            };
            drop(turn);
            client.send(answer.message(id), None);
            let _ = ended.send(id);
        });
    }

    fn recover(&mut self, id: u64, flow: FourTuple, socket: Option<OwnedFd>) {
        let Some(socket) = socket else {
            // Nothing is known of it; it is asked about again at the next link.
            return self.link.shut_down();
        };
        let (shared, client) = (self.shared.clone(), self.client.clone());
        let Ok(turn) = self.client.gives.clone().try_acquire_owned() else {
            return self.link.shut_down();
        };
        tokio::spawn(async move {
            let answer = shared.recover(&client, id, flow, socket).await;
            drop(turn);
            client.send(answer.message(id), None);
        });
    }
}

/// What it gave goes on; nothing else is done for it. What it took from processes, which do not stand still any more, is thawed if it can be.
impl Drop for Connection {
    fn drop(&mut self) {
        for (id, cancel) in &self.gives {
            if self.taken.contains(id) {
                let _ = cancel.send(true);
            }
        }
        self.shared.registry.remove(self.client.number);
        self.client.leave();
        self.link.shut_down();
        self.shared.metrics.clients.dec();
    }
}

/// Sends what waits for a client. One that does not read is disconnected.
async fn write(link: Arc<Link>, client: Weak<Client>, mut waiting: mpsc::UnboundedReceiver<Out>) {
    while let Some(Out {
        packets,
        descriptor,
    }) = waiting.recv().await
    {
        let sent = timeout(READ_WITHIN, link.send(&packets, descriptor.as_ref())).await;
        if let Some(client) = client.upgrade() {
            client.was_sent();
        }
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "nothing can be sent to a client");
                break;
            }
            Err(_) => {
                tracing::warn!("a client that does not read is disconnected");
                break;
            }
        }
    }
    link.shut_down();
}
