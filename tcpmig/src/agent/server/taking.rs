//! Connections that other hosts give: a client is asked, and gets them.

use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::sync::Arc;
use std::time::Duration;

use tcpmig_sys::process::passing;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Shared;
use super::commands::Commanded;
use super::registry::{Client, Registration};
use crate::agent::wire::{self, ToClient};
use crate::driver::{Arrived, Offer};
use crate::handover::{Code, Refusal};

/// How long a client may take for an answer: nobody serves the connection meanwhile. The source waits a little longer, to hear why it is
/// refused.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Who gets a connection.
pub(super) enum Taken {
    Client(Promised),
    Command(Commanded),
}

/// A connection that a client has agreed to take. If it does not come, the client is told.
pub(super) struct Promised {
    client: Arc<Client>,
    service: Arc<str>,
    id: u64,
    has_come: bool,
}

impl Drop for Promised {
    fn drop(&mut self) {
        self.client.settled();
        if !self.has_come {
            self.client.send(ToClient::Withdrawn { id: self.id }, None);
        }
    }
}

/// A question to a client. Dropping it takes the question back.
struct Asked {
    client: Arc<Client>,
    service: Arc<str>,
    id: u64,
    answered: oneshot::Receiver<Result<(), Refusal>>,
}

impl Asked {
    fn taken(&self) -> Promised {
        Promised {
            client: self.client.clone(),
            service: self.service.clone(),
            id: self.id,
            has_come: false,
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.client.forget(self.id);
        // An answer that came and that nobody looked at.
        if let Ok(Ok(())) = self.answered.try_recv() {
            drop(self.taken());
        }
    }
}

impl Shared {
    /// Asks a client whether it takes a connection.
    pub(super) async fn offer(self: Arc<Self>, offer: Offer) -> Result<Taken, Refusal> {
        let config = self.config();
        let takers = match self.registry.takers(offer.flow, &offer.layers) {
            Ok(takers) => takers,
            Err(refusal) => {
                let commanded = self.command_for(&offer)?;
                return commanded.map(Taken::Command).ok_or(refusal);
            }
        };
        let is_allowed = |one: &&Arc<Registration>| {
            let service = config.services.get(&*one.service);
            service.is_some_and(|service| {
                service.may_come_from(&offer.from) && service.has_address(offer.flow.local())
            })
        };
        let mut denied = None;
        for taker in &takers {
            if !is_allowed(&taker) {
                denied = Some(&taker.service);
                continue;
            }
            let Some((id, answered)) = taker.client.ask() else {
                continue;
            };
            let taken = self.ask(taker, id, answered, &offer).await;
            let outcome = if taken.is_ok() { "taken" } else { "refused" };
            self.metrics.count_arrival(&taker.service, outcome);
            return taken;
        }
        Err(match denied {
            Some(service) => {
                self.metrics.count_arrival(service, "denied");
                let from = &offer.from;
                Refusal::new(
                    Code::Policy,
                    format!("connections of the service {service} are not taken from {from}"),
                )
            }
            None => Refusal::new(Code::Full, "the servers of this host are busy"),
        })
    }

    async fn ask(
        &self,
        taker: &Registration,
        id: u64,
        answered: oneshot::Receiver<Result<(), Refusal>>,
        offer: &Offer,
    ) -> Result<Taken, Refusal> {
        let mut asked = Asked {
            client: taker.client.clone(),
            service: taker.service.clone(),
            id,
            answered,
        };
        let message = ToClient::Offer {
            id,
            service: taker.service.to_string(),
            flow: offer.flow,
            from: offer.from.to_string(),
            layers: wire::encode_layers(&offer.layers),
        };
        taker.client.send(message, None);
        match timeout(ANSWERED_WITHIN, &mut asked.answered).await {
            Ok(Ok(Ok(()))) => Ok(Taken::Client(asked.taken())),
            Ok(Ok(Err(refusal))) => Err(refusal),
            Ok(Err(_)) => Err(Refusal::other("the server has ended")),
            Err(_) => Err(Refusal::new(
                Code::Full,
                format!("the server did not answer within {ANSWERED_WITHIN:?}"),
            )),
        }
    }

    /// A connection that came, for the client that takes it.
    pub(super) fn arrived(&self, mut arrived: Arrived) {
        let (id, flow) = (arrived.id, arrived.flow);
        let taken = arrived.ready.take();
        let Some(taken) = taken.and_then(|ready| ready.downcast::<Taken>().ok()) else {
            return tracing::error!(%id, %flow, "a connection arrived for which nobody was asked: it is closed");
        };
        for not_set in &arrived.not_set {
            tracing::warn!(%id, %flow, %not_set, "an option of a connection that moved here is not set");
        }
        let mut taken = match *taken {
            Taken::Client(promised) => promised,
            Taken::Command(commanded) => return self.start(&commanded, arrived),
        };
        if taken.client.is_gone() {
            self.metrics.count_arrival(&taken.service, "lost");
            let service = &taken.service;
            return tracing::error!(%id, %flow, %service, "the server ended before its connection came: it is closed");
        }
        taken.has_come = true;
        give_to(&arrived.socket, taken.client.user);
        self.metrics.count_arrival(&taken.service, "arrived");
        tracing::info!(%id, %flow, from = arrived.from, service = %taken.service, process = taken.client.process, "a connection has come");
        let message = ToClient::Arrived {
            id: taken.id,
            unwritten: arrived.unwritten,
        };
        taken.client.send(message, Some(arrived.socket));
    }
}

/// Firewalls that ask for the user of a socket see its server's, as they did where it comes from.
pub(super) fn give_to(socket: &OwnedFd, user: u32) {
    if user != passing::own_user()
        && let Err(error) = fchown(socket, Some(user), None)
    {
        tracing::debug!(user, %error, "a socket stays the agent's for firewalls");
    }
}
