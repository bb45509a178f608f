//! Connections that clients give away.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tcpmig_format::{FourTuple, Layer};
use tcpmig_sys::ends::Ends;
use tcpmig_sys::netns::Namespace;
use tcpmig_sys::sockets::cookie;
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::registry::Client;
use crate::agent::wire::ToClient;
use crate::driver::{Destination, Ending, Outcome, Reason, Report};
use crate::handover::HandoverId;

/// How long to wait before a target is asked again that does not answer for a connection.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a server may take until it gives a connection that somebody wants.
const GIVEN_WITHIN: Duration = Duration::from_secs(30);
/// How many endings are remembered for clients that were gone when they came.
const REMEMBERED: usize = 4096;

/// What became of a connection that was given away.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Moved {
        handover: String,
        report: BTreeMap<String, u64>,
    },
    Kept {
        code: &'static str,
        reason: String,
    },
    Lost(String),
    Gone(String),
}

impl Answer {
    pub(super) fn kept(code: &'static str, reason: impl Into<String>) -> Self {
        Self::Kept {
            code,
            reason: reason.into(),
        }
    }

    pub(super) fn message(self, id: u64) -> ToClient {
        match self {
            Self::Moved { handover, report } => ToClient::Moved {
                id,
                handover,
                report,
            },
            Self::Kept { code, reason } => ToClient::Kept {
                id,
                code: code.to_owned(),
                reason,
            },
            Self::Lost(reason) => ToClient::Lost { id, reason },
            Self::Gone(reason) => ToClient::Gone { id, reason },
        }
    }

    /// For the metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Moved { .. } => "moved",
            Self::Kept { .. } => "kept",
            Self::Lost(_) | Self::Gone(_) => "lost",
        }
    }
}

/// Connections under way by their sockets' cookies, and those whose end came lately.
#[derive(Debug)]
pub(super) struct Given {
    inner: Mutex<Inner>,
    /// Tells every ending to whoever waits for one.
    endings: broadcast::Sender<(FourTuple, Answer)>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            endings: broadcast::Sender::new(REMEMBERED),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    under_way: HashMap<u64, watch::Receiver<Option<Answer>>>,
    ended: HashMap<u64, Answer>,
    oldest: VecDeque<u64>,
}

impl Given {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves whole values only.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one; none if it is under way already.
    fn begin(&self, cookie: u64) -> Option<watch::Sender<Option<Answer>>> {
        let mut inner = self.inner();
        if inner.under_way.contains_key(&cookie) {
            return None;
        }
        let (sender, receiver) = watch::channel(None);
        inner.under_way.insert(cookie, receiver);
        // It may come back by another client, and be given again.
        inner.ended.remove(&cookie);
        Some(sender)
    }

    /// What ends from now on.
    fn endings(&self) -> broadcast::Receiver<(FourTuple, Answer)> {
        self.endings.subscribe()
    }

    fn end(&self, cookie: u64, flow: FourTuple, answer: &Answer) {
        // Mostly nobody waits.
        let _ = self.endings.send((flow, answer.clone()));
        let mut inner = self.inner();
        inner.under_way.remove(&cookie);
        inner.oldest.push_back(cookie);
        inner.ended.insert(cookie, answer.clone());
        if inner.oldest.len() > REMEMBERED
            && let Some(oldest) = inner.oldest.pop_front()
        {
            inner.ended.remove(&oldest);
        }
    }

    pub(super) fn under_way(&self, cookie: u64) -> Option<watch::Receiver<Option<Answer>>> {
        self.inner().under_way.get(&cookie).cloned()
    }

    pub(super) fn ended(&self, cookie: u64) -> Option<Answer> {
        self.inner().ended.get(&cookie).cloned()
    }

    pub(super) fn count(&self) -> usize {
        self.inner().under_way.len()
    }
}

/// A connection that a client wants to go.
pub(super) struct Give {
    pub(super) service: Arc<str>,
    pub(super) to: String,
    pub(super) layers: Vec<Layer>,
    pub(super) socket: OwnedFd,
}

impl Shared {
    /// Whether it may leave: by the configuration, and because it is what the client says.
    fn check(&self, client: &Client, give: &Give) -> Result<(Destination, FourTuple), Answer> {
        let config = self.config();
        let denied = |reason: String| Answer::kept("denied", reason);
        let service = config.services.get(&*give.service);
        let service = service.filter(|service| service.may_serve(client.user));
        let service = service
            .ok_or_else(|| denied(format!("this user does not serve {:?}", give.service)))?;
        let to = self.destination(&give.to);
        let to = to.ok_or_else(|| Answer::kept("unknown", format!("no host {:?}", give.to)))?;
        if !service.may_go_to(&give.to) {
            let (service, to) = (&give.service, &give.to);
            return Err(denied(format!(
                "connections of the service {service} do not go to {to}"
            )));
        }
        let flow = this_hosts(&give.socket)?;
        if !service.has_address(flow.local()) {
            let service = &give.service;
            let local = flow.local();
            return Err(denied(format!("{local} is not of the service {service}")));
        }
        Ok((to, flow))
    }

    /// Gives a connection of a service away; says what became of it, and before that if it is in doubt.
    pub(super) async fn give(
        &self,
        client: &Client,
        id: u64,
        give: Give,
        cancelled: watch::Receiver<bool>,
    ) -> Answer {
        match self.check(client, &give) {
            Ok(checked) => self.move_out(client, id, give, checked, cancelled).await,
            Err(answer) => answer,
        }
    }

    /// The same of any connection, for an admin, who says which one it is.
    pub(super) async fn move_any(
        &self,
        client: &Client,
        id: u64,
        mut give: Give,
        flow: FourTuple,
        cancelled: watch::Receiver<bool>,
    ) -> Answer {
        if !self.config().is_admin(client.user) {
            return Answer::kept("denied", "this user is not an admin of the agent");
        }
        let Some(to) = self.destination(&give.to) else {
            return Answer::kept("unknown", format!("no host {:?}", give.to));
        };
        match this_hosts(&give.socket) {
            Ok(of) if of == flow => {}
            Ok(of) => return Answer::kept("invalid", format!("it is the connection {of}")),
            Err(answer) => return answer,
        }
        let mut served = self.registry.all().into_iter();
        if let Some(one) = served.find(|one| one.has(flow.local())) {
            give.service = one.service.clone();
        }
        self.move_out(client, id, give, (to, flow), cancelled).await
    }

    /// Asks the servers of a connection's address to give it, for an admin.
    pub(super) async fn want(&self, client: &Client, flow: FourTuple, to: String) -> Answer {
        if !self.config().is_admin(client.user) {
            return Answer::kept("denied", "this user is not an admin of the agent");
        }
        if self.destination(&to).is_none() {
            return Answer::kept("unknown", format!("no host {to:?}"));
        }
        let local = flow.local();
        let mut served = self.registry.all();
        served.retain(|one| one.has(local));
        if served.is_empty() {
            return Answer::kept("unknown", format!("no server is registered for {local}"));
        }
        let mut endings = self.given.endings();
        // Several processes may serve an address: the one that has the connection gives it.
        for of in served {
            let (service, to) = (of.service.to_string(), to.clone());
            of.client.send(ToClient::Want { service, flow, to }, None);
        }
        let ending = async {
            loop {
                match endings.recv().await {
                    Ok((ended, answer)) if ended == flow => return Some(answer),
                    Err(broadcast::error::RecvError::Closed) => return None,
                    // So many others ended meanwhile that this one may be among those that were missed.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
            }
        };
        let ending = timeout(GIVEN_WITHIN, ending).await.ok().flatten();
        ending.unwrap_or_else(|| {
            let reason = format!("its server has not given it within {GIVEN_WITHIN:?}");
            Answer::kept("other", reason)
        })
    }

    async fn move_out(
        &self,
        client: &Client,
        id: u64,
        give: Give,
        (to, flow): (Destination, FourTuple),
        mut cancelled: watch::Receiver<bool>,
    ) -> Answer {
        let number = match cookie(give.socket.as_fd()) {
            Ok(number) => number,
            Err(error) => return Answer::kept("invalid", error.to_string()),
        };
        let Some(ended) = self.given.begin(number) else {
            return Answer::kept("invalid", format!("{flow} is being given away already"));
        };
        self.metrics.moving.inc();
        // INVARIANT: nobody closes the semaphore.
        let turn = tokio::select! {
            biased;
            _ = cancelled.wait_for(|is| *is) => None,
            turn = client.in_flight.acquire() => turn.ok(),
        };
        let answer = match turn {
            None => Answer::kept("cancelled", "it was cancelled before its turn"),
            Some(_turn) => {
                let moving = self.mover.move_out(give.socket, give.layers, &to);
                let outcome = wait(moving, cancelled).await;
                self.settle(client, id, &give.service, outcome).await
            }
        };
        self.metrics.moving.dec();
        self.metrics.count_move(&give.service, answer.word());
        self.given.end(number, flow, &answer);
        let _ = ended.send(Some(answer.clone()));
        answer
    }

    /// Until it has an end.
    async fn settle(
        &self,
        client: &Client,
        id: u64,
        service: &Arc<str>,
        outcome: Outcome,
    ) -> Answer {
        let Outcome {
            id: handover,
            mut ending,
            report,
            ..
        } = outcome;
        let mut is_doubted = false;
        let answer = loop {
            ending = match ending {
                Ending::Moved => {
                    self.metrics.stood_still(report.blackout);
                    break moved(handover, &report);
                }
                Ending::Kept { reason, .. } => {
                    break Answer::kept(code(&reason), reason.to_string());
                }
                Ending::Lost(reason) => break Answer::Lost(reason),
                Ending::InDoubt(doubt) => {
                    if !is_doubted {
                        is_doubted = true;
                        self.metrics.doubts.inc();
                        self.metrics.count_move(service, "doubt");
                        let handover = Some(handover.to_string());
                        client.send(ToClient::Doubt { id, handover }, None);
                    } else {
                        sleep(AGAIN).await;
                    }
                    doubt.ask().await.ending
                }
            };
        };
        if is_doubted {
            self.metrics.doubts.dec();
        }
        answer
    }
}

/// The ends of a connection, if it is one of the agent's own network namespace.
pub(super) fn this_hosts(socket: &OwnedFd) -> Result<FourTuple, Answer> {
    let invalid = |reason: String| Answer::kept("invalid", reason);
    let failed = |error: tcpmig_sys::Error| invalid(format!("it is not a TCP connection: {error}"));
    let ends = Ends::of(socket.as_fd()).map_err(failed)?;
    let flow =
        FourTuple::new(ends.local, ends.remote).map_err(|error| invalid(error.to_string()))?;
    let namespace = Namespace::of_socket(socket.as_fd()).map_err(failed)?;
    if namespace.is_current().map_err(failed)? {
        Ok(flow)
    } else {
        Err(invalid(format!("{flow} is in another network namespace")))
    }
}

async fn wait(mut moving: crate::driver::Move, mut cancelled: watch::Receiver<bool>) -> Outcome {
    let is_cancelled = async {
        if cancelled.wait_for(|is| *is).await.is_err() {
            // The client is gone, and what it gave goes on.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        outcome = &mut moving => return outcome,
        () = is_cancelled => moving.cancel(),
    }
    moving.await
}

/// The numbers of a report.
fn moved(handover: HandoverId, report: &Report) -> Answer {
    Answer::Moved {
        handover: handover.to_string(),
        report: numbers(report),
    }
}

fn numbers(of: &impl Serialize) -> BTreeMap<String, u64> {
    // INVARIANT: a report has numbers with names and nothing else.
    let bytes = rmp_serde::to_vec_named(of).unwrap_or_default();
    rmp_serde::from_slice(&bytes).unwrap_or_default()
}

fn code(reason: &Reason) -> &'static str {
    match reason {
        Reason::Refused(refusal) | Reason::Aborted(refusal) => refusal.code.word(),
        Reason::Link(_) | Reason::Closed | Reason::TooLate(_) | Reason::Version { .. } => {
            "unreachable"
        }
        Reason::Capture(_) => "socket",
        Reason::Cancelled | Reason::Stopped => "cancelled",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_its_numbers() {
        let report = Report {
            blackout: Duration::from_micros(700),
            image_bytes: u64::MAX,
            ..Report::default()
        };
        let numbers = numbers(&report);
        assert_eq!(numbers["blackout_us"], 700);
        assert_eq!(numbers["image_bytes"], u64::MAX);
        assert_eq!(numbers["settle_us"], 0);
    }

    #[test]
    fn endings_are_remembered_up_to_a_number() {
        let given = Given::default();
        let flow = "10.0.0.1:80,10.0.0.2:81".parse().unwrap();
        for cookie in 0..=REMEMBERED as u64 {
            let _ended = given.begin(cookie).expect("it is not under way");
            assert!(given.begin(cookie).is_none(), "it is under way");
            given.end(cookie, flow, &Answer::Lost(String::new()));
        }
        assert!(given.ended(0).is_none());
        assert!(given.ended(1).is_some());
        assert_eq!(given.count(), 0);
    }
}
